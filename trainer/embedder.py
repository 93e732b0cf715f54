"""Torch networks behind the encoder's `encode`, so that evaluation runs on them before, and without, any export."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from uniecs.errors import InputError, UniecsError
from uniecs.evaluation import VIEWS, check_view
from uniecs.preprocess import ImageSource, Tokenizer, check_text, pixel_values
from uniecs.trainer.model import UniECS

BATCH = 64


@dataclass(frozen=True)
class Embeddings:
    """Embeddings (n, D) float32 and the errors by position."""

    embeddings: npt.NDArray[np.float32]
    errors: dict[int, UniecsError] = field(default_factory=dict)


class BatchEncoder(ABC):
    """A `uniecs.evaluation.PairEncoder` around `_embed`, which embeds one batch: a bad item fails alone."""

    backend = "torch"
    device = "cpu"
    precision = "fp32"
    views: tuple[str, ...] = tuple(VIEWS.values())
    embed_dim: int
    model_id: str

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.model_id!r}, {self.backend}, {self.device}, {self.precision})"

    def encode(
        self,
        texts: Sequence[str] | None = None,
        images: Sequence[ImageSource] | None = None,
        *,
        errors: Literal["raise", "return"] = "raise",
    ) -> npt.NDArray[np.float32] | Embeddings:
        """Embed texts, images or both of them (one kind for all items): (n, D) float32 unit rows.

        Raises the first bad item's `UniecsError`, or returns all (their rows NaN). `InputError` for a view that is
        not among `views`, and for lists of different lengths.
        """
        if texts is None and images is None:
            raise InputError("encode needs texts, images or both")
        if texts is not None and images is not None and len(texts) != len(images):
            raise InputError(f"{len(texts)} texts and {len(images)} images; expected as many")
        check_view(self, texts is not None, images is not None)
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

    @abstractmethod
    def _embed(self, texts: Sequence[str] | None, images: Sequence[ImageSource] | None) -> npt.NDArray[np.float32]:
        """(n, D) float32 unit rows of a batch; raises the `UniecsError` of an item that cannot be used."""


class TorchEncoder(BatchEncoder):
    """A network of ours in evaluation mode, in training or from a checkpoint."""

    def __init__(self, model: UniECS, tokenizer_json: bytes) -> None:
        self.model = model
        self.embed_dim = model.config.embed_dim
        self.model_id = f"{model.config.name}-in-training"
        self._tokenizer = Tokenizer(tokenizer_json, model.config.preprocessing.max_tokens)

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
