"""A network in training behind the encoder's `encode`, so that evaluation runs on it before any export."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from uniecs.errors import InputError, UniecsError
from uniecs.preprocess import ImageSource, Tokenizer, check_text, pixel_values
from uniecs.trainer.model import UniECS

BATCH = 64


@dataclass(frozen=True)
class Embeddings:
    """Embeddings (n, D) float32 and the errors by position."""

    embeddings: npt.NDArray[np.float32]
    errors: dict[int, UniecsError] = field(default_factory=dict)


class TorchEncoder:
    """Embeds texts, images or both of them (one kind for all items) with a torch network in evaluation mode."""

    backend = "torch"
    device = "cpu"
    precision = "fp32"

    def __init__(self, model: UniECS, tokenizer_json: bytes) -> None:
        self.model = model
        self.embed_dim = model.config.embed_dim
        self.model_id = f"{model.config.name}-in-training"
        self._tokenizer = Tokenizer(tokenizer_json, model.config.preprocessing.max_tokens)

    def encode(
        self,
        texts: Sequence[str] | None = None,
        images: Sequence[ImageSource] | None = None,
        *,
        errors: Literal["raise", "return"] = "raise",
    ) -> npt.NDArray[np.float32] | Embeddings:
        """(n, D) float32 unit rows; raises the first bad item's `UniecsError`, or returns all (their rows NaN)."""
        if texts is None and images is None:
            raise InputError("encode needs texts, images or both")
        count = len(texts if texts is not None else images or ())
        embeddings = np.full((count, self.embed_dim), np.nan, np.float32)
        failed: dict[int, UniecsError] = {}
        for start in range(0, count, BATCH):
            rows = slice(start, start + BATCH)
            try:
                embeddings[rows] = self._embed(texts and texts[rows], images and images[rows])
            except UniecsError:
                if errors == "raise":
                    raise
                for row in range(start, min(start + BATCH, count)):
                    try:
                        embeddings[row] = self._embed(texts and [texts[row]], images and [images[row]])[0]
                    except UniecsError as error:
                        failed[row] = error
        return embeddings if errors == "raise" else Embeddings(embeddings, failed)

    @torch.no_grad()
    def _embed(self, texts: Sequence[str] | None, images: Sequence[ImageSource] | None) -> npt.NDArray[np.float32]:
        n = len(texts if texts is not None else images or ())
        device = next(self.model.parameters()).device
        image_tokens = text_tokens = torch.zeros(n, 1, self.embed_dim, device=device)
        text_mask = torch.ones(n, 1, dtype=torch.int64, device=device)
        if images is not None:
            pixels = np.stack([pixel_values(each, self.model.config.preprocessing) for each in images])
            image_tokens = self.model.image_encoder(torch.from_numpy(pixels).to(device))
        if texts is not None:
            ids = Tokenizer.pad(self._tokenizer.encode([check_text(each) for each in texts]))
            input_ids, text_mask = (torch.from_numpy(each).to(device) for each in ids)
            text_tokens = self.model.text_encoder(input_ids, text_mask)
        indicator = image_tokens.new_tensor([[images is not None, texts is not None]]).expand(n, -1)
        embedding = self.model.fusion(image_tokens, text_tokens, text_mask, indicator)
        return np.asarray(embedding.float().cpu().numpy(), np.float32)
