"""What `encode.py` and `peers.py` compare with: the same network in sentence-transformers; and `base`, exported."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules.input_module import InputModule
from transformers import CLIPImageProcessor, PreTrainedTokenizerFast

from uniecs.backends.base import GRAPHS
from uniecs.bundle import Bundle, locate_bundle, open_bundle, write_manifest
from uniecs.config import MODELS, ModelConfig
from uniecs.export.golden import ROWS, golden_inputs
from uniecs.export.graphs import OPSET, export_graph, graph_specs
from uniecs.preprocess import Tokenizer
from uniecs.trainer.model import UniECS


def random_network(config: ModelConfig) -> UniECS:
    """The network with the same random weights at each call; no two vectors alike, as in a trained one.

    Of equal vectors the exporter keeps one, and a fusion whose own are missing runs by the graph alone.
    """
    with torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(0)
        network = UniECS(config).eval()
        for weights in network.parameters():
            if weights.ndim == 1:
                weights += 0.01 * torch.randn_like(weights)
    return network


def base_bundle(folder: Path) -> Bundle:
    """A bundle of `base` with random weights in `folder`, exported there if it is not there yet (needs minutes).

    Its graphs are not compared with torch, as `uniecs export` does; its golden tensors are zeros.
    """
    if (folder / "manifest.json").is_file():
        return open_bundle(folder)
    config = MODELS["base"]
    folder.mkdir(parents=True, exist_ok=True)
    network = random_network(config)
    for name in GRAPHS:
        (folder / f"{name}.onnx").write_bytes(export_graph(network, name).SerializeToString())
    words = open_bundle(locate_bundle("mini")).tokenizer_json()
    (folder / "tokenizer.json").write_bytes(words)
    inputs = golden_inputs(Tokenizer(words, config.preprocessing.max_tokens), config.preprocessing)
    from safetensors.numpy import save_file

    outputs = dict.fromkeys(("image_tokens", "text_tokens"), np.zeros((len(ROWS), 1), np.float32))
    outputs["embedding"] = np.zeros((len(ROWS), config.embed_dim), np.float32)
    save_file({**inputs, **outputs}, folder / "golden.safetensors")
    return write_manifest(
        folder,
        {
            "name": config.name,
            "embed_dim": config.embed_dim,
            "preprocessing": config.preprocessing.to_dict(),
            "model": config.to_dict(),
            "graphs": {name: spec.to_dict(f"{name}.onnx") for name, spec in graph_specs(config).items()},
            "opset": OPSET,
            "weights": "float32",
            "golden": {"texts": [row.text for row in ROWS]},
            "evaluation": None,
            "provenance": {"weights": "random, for benchmarks/encode.py"},
            "created": {},
        },
    )


class EagerModule(InputModule):
    """The network as an input module of sentence-transformers: its tokenizer and image processor are transformers'."""

    modalities = ["text", "image", ("image", "text")]  # noqa: RUF012 (as the base class has it)

    def __init__(self, bundle: Bundle) -> None:
        super().__init__()
        config = ModelConfig.from_dict(bundle.manifest["model"])
        p = config.preprocessing
        self.network = random_network(config)
        self.words = PreTrainedTokenizerFast(tokenizer_file=str(bundle.path / "tokenizer.json"), pad_token="[PAD]")
        self.max_tokens = p.max_tokens
        self.pictures = CLIPImageProcessor(
            size={"shortest_edge": max(p.height_px, p.width_px)},
            crop_size={"height": p.height_px, "width": p.width_px},
            image_mean=list(p.mean),
            image_std=list(p.std),
        )

    def preprocess(self, inputs: list[Any], prompt: str | None = None, **kwargs: Any) -> dict[str, torch.Tensor]:
        """Texts, Pillow images, or dictionaries of both, to tensors."""
        features: dict[str, torch.Tensor] = {}
        texts = [each["text"] if isinstance(each, dict) else each for each in inputs]
        images = [each["image"] if isinstance(each, dict) else each for each in inputs if not isinstance(each, str)]
        if isinstance(texts[0], str):
            options = {"padding": True, "truncation": True, "max_length": self.max_tokens, "return_tensors": "pt"}
            features |= self.words(texts, return_token_type_ids=False, **options)
        if images:
            features |= self.pictures([each.convert("RGB") for each in images], return_tensors="pt")
        return features

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Only the submodules that are needed; an absent side is one zero token, as in the exported graphs' use."""
        pixels, ids = features.get("pixel_values"), features.get("input_ids")
        batch = len(pixels if pixels is not None else ids)
        image_tokens = text_tokens = torch.zeros(batch, 1, self.network.config.embed_dim)
        mask = torch.ones(batch, 1, dtype=torch.int64)
        if pixels is not None:
            image_tokens = self.network.image_encoder(pixels)
        if ids is not None:
            mask = features["attention_mask"]
            text_tokens = self.network.text_encoder(ids, mask)
        indicator = torch.tensor([[pixels is not None, ids is not None]] * batch, dtype=torch.float32)
        features["sentence_embedding"] = self.network.fusion(image_tokens, text_tokens, mask, indicator)
        return features

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """Nothing here is saved."""


class SentenceTransformers:
    """`SentenceTransformer.encode` behind the arguments of `uniecs.Encoder.encode`; images as bytes."""

    def __init__(self, bundle: Bundle) -> None:
        self._model = SentenceTransformer(modules=[EagerModule(bundle)], device="cpu")

    def encode(self, texts: list[str] | None = None, images: list[bytes] | None = None) -> Any:
        """(n, D) float32."""
        pictures = [Image.open(io.BytesIO(each)) for each in images or ()]
        inputs: Any = texts or pictures
        if texts and pictures:
            inputs = [{"image": image, "text": text} for image, text in zip(pictures, texts, strict=True)]
        return self._model.encode(inputs, normalize_embeddings=True, show_progress_bar=False)
