"""Encoders of others behind `encode`, by path: CLIP and BLIP in transformers' layout, sentence-transformers' folders.

Each keeps its own preprocessing and text length. Local files and safetensors only; no code of a folder is run.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoTokenizer, BlipForImageTextRetrieval, CLIPModel

from uniecs.errors import CheckpointError, ImageError, MissingExtraError
from uniecs.preprocess import ImageSource, check_text, describe, open_image
from uniecs.trainer.checkpoint import pretrained, reading
from uniecs.trainer.embedder import BATCH, BatchEncoder

SUPPORTED = "transformers' model_type clip or blip (config.json), or sentence-transformers (modules.json)"
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt")
MAX_ASPECT = 200


def load_foreign(path: Path) -> BatchEncoder:
    """The encoder of a model folder, on the CPU in float32; its model_id is the kind and the folder's name.

    Raises `CheckpointError` for a folder that is missing, damaged, lacks weights or is of another kind, and
    `MissingExtraError` for a sentence-transformers folder without that package.
    """
    if (path / "modules.json").is_file():
        return SentenceEncoder(path)
    kind = _json(path / "config.json").get("model_type")
    if not isinstance(kind, str) or kind not in TOWERS:
        raise CheckpointError(f"{path} is of model_type {kind!r}; supported are {SUPPORTED}")
    return TOWERS[kind](path)


class TwoTowerEncoder(BatchEncoder):
    """A network that embeds images and texts apart, in one space; both together by score fusion.

    Score fusion is the unit sum of the two unit embeddings: the CLIP_SF and BLIP_SF of UniIR, and BGE-VL's.
    """

    kind: ClassVar[str]
    network: ClassVar[Any]

    def __init__(self, path: Path) -> None:
        if not any((path / name).is_file() for name in TOKENIZER_FILES):
            raise CheckpointError(f"{path} has no tokenizer; expected one of {', '.join(TOKENIZER_FILES)}")
        self.model_id = f"{self.kind}:{path.resolve().name}"
        self._model = pretrained(self.network, path, {"dtype": torch.float32}).eval()
        text = self._model.config.text_config
        with reading(path, self.kind):
            processors: tuple[Any, Any] = AutoImageProcessor, AutoTokenizer  # untyped
            local = {"local_files_only": True, "trust_remote_code": False}
            self._image_processor = processors[0].from_pretrained(path, backend="pil", **local)
            self._tokenizer = processors[1].from_pretrained(path, **local)
            self._max_tokens = min(self._tokenizer.model_max_length, text.max_position_embeddings)
            if len(self._tokenizer) > text.vocab_size:
                raise CheckpointError(
                    f"{path} has {len(self._tokenizer)} tokens in its tokenizer and {text.vocab_size} in its network"
                )
            # Seen here rather than in the first batch: parts that do not fit each other.
            self.embed_dim = self._embed(["a"], [Image.new("RGB", (16, 16))]).shape[1]

    @abstractmethod
    def _image_features(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, D), of any length."""

    @abstractmethod
    def _text_features(self, tokens: Mapping[str, Tensor]) -> Tensor:
        """input_ids and attention_mask, (B, Nt) -> (B, D), of any length."""

    @torch.inference_mode()
    def _embed(self, texts: Sequence[str] | None, images: Sequence[ImageSource] | None) -> npt.NDArray[np.float32]:
        sides = []
        if images is not None:
            pictures = [_picture(each) for each in images]
            sides.append(self._image_features(self._image_processor(pictures, return_tensors="pt")["pixel_values"]))
        if texts is not None:
            tokens = self._tokenizer(
                [check_text(each) for each in texts],
                padding=True,
                truncation=True,
                max_length=self._max_tokens,
                return_token_type_ids=False,
                return_tensors="pt",
            )
            sides.append(self._text_features(tokens))
        fused = torch.stack([F.normalize(each, dim=-1) for each in sides]).sum(dim=0)
        return np.asarray(F.normalize(fused, dim=-1).numpy(), np.float32)


class ClipEncoder(TwoTowerEncoder):
    """CLIP, and what is stored as one: BGE-VL-base and -large."""

    kind = "clip"
    network = CLIPModel

    def _image_features(self, pixel_values: Tensor) -> Tensor:
        features: Tensor = self._model.get_image_features(pixel_values=pixel_values).pooler_output
        return features

    def _text_features(self, tokens: Mapping[str, Tensor]) -> Tensor:
        features: Tensor = self._model.get_text_features(**tokens).pooler_output
        return features


class BlipEncoder(TwoTowerEncoder):
    """BLIP for image-text retrieval, by the projections of its contrastive loss."""

    kind = "blip"
    network = BlipForImageTextRetrieval

    def _image_features(self, pixel_values: Tensor) -> Tensor:
        tokens = self._model.vision_model(pixel_values=pixel_values).last_hidden_state
        features: Tensor = self._model.vision_proj(tokens[:, 0])
        return features

    def _text_features(self, tokens: Mapping[str, Tensor]) -> Tensor:
        hidden = self._model.text_encoder(**tokens).last_hidden_state
        features: Tensor = self._model.text_proj(hidden[:, 0])
        return features


TOWERS: Mapping[str, Callable[[Path], TwoTowerEncoder]] = {"clip": ClipEncoder, "blip": BlipEncoder}


class SentenceEncoder(BatchEncoder):
    """A sentence-transformers folder: texts only."""

    views = ("text",)

    def __init__(self, path: Path) -> None:
        try:
            from sentence_transformers import SentenceTransformer
        except ModuleNotFoundError as error:
            raise MissingExtraError(f"{path} needs sentence-transformers: pip install 'uniecs[bench]'") from error
        for weights in path.rglob("pytorch_model*.bin"):
            if not any(weights.parent.glob("*.safetensors")):
                raise CheckpointError(f"{weights} is a pickle; expected safetensors")
        self.model_id = f"sentence-transformers:{path.resolve().name}"
        with reading(path, "sentence-transformers"):
            options = {"use_safetensors": True, "dtype": torch.float32}
            self._model = SentenceTransformer(str(path), device="cpu", local_files_only=True, model_kwargs=options)
            self._model.float()
            # It takes missing weights for a warning. The pooler that it never uses is often left out.
            network = getattr(self._model[0], "auto_model", None)
            if network is not None:
                folder = json.loads((path / "modules.json").read_text(encoding="utf-8"))[0]["path"]
                pretrained(type(network), path / folder, {}, unused="pooler.")
            self.embed_dim = self._embed(["a"], None).shape[1]

    def _embed(self, texts: Sequence[str] | None, images: Sequence[ImageSource] | None) -> npt.NDArray[np.float32]:
        rows = self._model.encode(
            [check_text(each) for each in texts or ()],
            batch_size=BATCH,
            show_progress_bar=False,
            normalize_embeddings=True,
        )
        return np.asarray(rows, np.float32)


def _picture(source: ImageSource) -> Image.Image:
    """`open_image`, but for pictures so long that scaling their short side up would take gigabytes."""
    picture = open_image(source)
    if max(picture.size) > MAX_ASPECT * min(picture.size):
        width, height = picture.size
        raise ImageError(f"{describe(source)} is {width}x{height}; expected sides of at most {MAX_ASPECT} to 1")
    return picture


def _json(path: Path) -> Mapping[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}; supported are {SUPPORTED}") from error
    if not isinstance(document, dict):
        raise CheckpointError(f"{path} is not a configuration; supported are {SUPPORTED}")
    return document
