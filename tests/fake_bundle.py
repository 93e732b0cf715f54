"""A small but honest bundle, written with `onnx` alone; its golden embeddings come from a NumPy reference.

Image tokens are linear in patches; text tokens are looked up and see the mean of their text; fusion pools
what is present, adds a vector for each present side, and goes through tanh to unit norm. An embedding depends
on every input, on no batch mate, on no padding, and not on the length of an absent side.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file
from tokenizers import Tokenizer as HuggingFaceTokenizer
from tokenizers import models, normalizers, pre_tokenizers, processors

from uniecs.bundle import Bundle, write_manifest
from uniecs.config import FusionConfig, ImageEncoderConfig, ModelConfig, Preprocessing, TextEncoderConfig
from uniecs.preprocess import Tokenizer, pixel_values

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
COLOURS = ("red", "blue", "green", "black")
WORDS = (*SPECIAL, *COLOURS, "kurta", "dress", "shoe", "watch", "bag", "men", "women", "cotton", "##s")
DIM, PATCH = 8, 4
TEXTS = (None, None, "red kurta", "black watches for women", "blue dress", "green bag men cotton")
PICTURED = (True, True, False, False, True, True)

Weights = dict[str, np.ndarray[Any, Any]]


def fake_config(name: str = "fake") -> ModelConfig:
    return ModelConfig(
        name=name,
        preprocessing=Preprocessing(height_px=16, width_px=12, max_tokens=16),
        embed_dim=DIM,
        image=ImageEncoderConfig(patch_px=PATCH, hidden=8, layers=1, heads=2, intermediate=8),
        text=TextEncoderConfig(vocab_size=len(WORDS), hidden=8, layers=1, heads=2, intermediate=8, max_positions=16),
        fusion=FusionConfig(heads=2),
    )


def write_fake_bundle(folder: Path, name: str = "fake", seed: int = 0, **manifest: Any) -> Bundle:
    """Write and open a bundle in `folder`; another `seed` is another model; `manifest` adds keys."""
    folder.mkdir(parents=True, exist_ok=True)
    config, weights = fake_config(name), _weights(seed)
    graphs = {"image_encoder": _image_graph, "text_encoder": _text_graph, "fusion": _fusion_graph}
    for graph, build in graphs.items():
        model = build(weights, config)
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, folder / f"{graph}.onnx")
    (folder / "tokenizer.json").write_text(_tokenizer().to_str(), encoding="utf-8")
    save_file(_golden(weights, config, folder), folder / "golden.safetensors")
    base = {
        "name": name,
        "embed_dim": DIM,
        "preprocessing": config.preprocessing.to_dict(),
        "model": config.to_dict(),
        "graphs": {graph: _described(folder / f"{graph}.onnx") for graph in graphs},
        "opset": 18,
        "weights": "float32",
        "evaluation": None,
        "provenance": {"made by": "tests/fake_bundle.py"},
        "golden": {"texts": list(TEXTS)},
        "created": {},
    }
    return write_manifest(folder, {**base, **manifest})


def edit_manifest(folder: Path, **changes: Any) -> None:
    """Overwrite keys of a written manifest as an attacker or a bad tool would: nothing is recomputed."""
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **changes}), encoding="utf-8")


def golden_rows(
    golden: dict[str, np.ndarray[Any, Any]], count: int
) -> tuple[np.ndarray[Any, Any], tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """Pixels and tokens of `count` rows, the golden ones over and over."""
    index = np.arange(count) % len(golden["embedding"])
    return golden["pixel_values"][index], (golden["input_ids"][index], golden["attention_mask"][index])


def _weights(seed: int) -> Weights:
    rng = np.random.default_rng(seed)
    shapes = {
        "patch": (3 * PATCH * PATCH, DIM),
        "word": (len(WORDS), DIM),
        "present": (2, DIM),
        "out": (DIM, DIM),
    }
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def _model(nodes: list[Any], inputs: dict[str, Any], output: tuple[str, list[Any]], constants: Weights) -> Any:
    ports = [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()]
    result = helper.make_tensor_value_info(output[0], TensorProto.FLOAT, output[1])
    stored = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "graph", ports, [result], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def _image_graph(weights: Weights, config: ModelConfig) -> Any:
    height, width = config.preprocessing.height_px, config.preprocessing.width_px
    rows, columns, node = height // PATCH, width // PATCH, helper.make_node
    constants = {
        "patch": weights["patch"],
        "grid": np.array([0, 3, rows, PATCH, columns, PATCH], np.int64),
        "flat": np.array([0, rows * columns, 3 * PATCH * PATCH], np.int64),
        "tokens_axis": np.array([1], np.int64),
    }
    nodes = [
        node("Reshape", ["pixel_values", "grid"], ["a"]),
        node("Transpose", ["a"], ["b"], perm=[0, 2, 4, 1, 3, 5]),
        node("Reshape", ["b", "flat"], ["c"]),
        node("MatMul", ["c", "patch"], ["d"]),
        node("ReduceMean", ["d", "tokens_axis"], ["class"], keepdims=1),
        node("Concat", ["class", "d"], ["image_tokens"], axis=1),
    ]
    inputs = {"pixel_values": (TensorProto.FLOAT, ["batch", 3, height, width])}
    return _model(nodes, inputs, ("image_tokens", ["batch", config.image_tokens, DIM]), constants)


def _text_graph(weights: Weights, config: ModelConfig) -> Any:
    node = helper.make_node
    constants = {"word": weights["word"], "one": np.array([1], np.int64), "two": np.array([2], np.int64)}
    nodes = [
        node("Gather", ["word", "input_ids"], ["a"]),
        node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        node("Unsqueeze", ["mask", "two"], ["mask3"]),
        node("Mul", ["a", "mask3"], ["b"]),
        node("ReduceSum", ["b", "one"], ["c"], keepdims=1),
        node("ReduceSum", ["mask3", "one"], ["count"], keepdims=1),
        node("Div", ["c", "count"], ["mean"]),
        node("Add", ["a", "mean"], ["text_tokens"]),
    ]
    text = (TensorProto.INT64, ["batch", "text_length"])
    output = ("text_tokens", ["batch", "text_length", DIM])
    return _model(nodes, {"input_ids": text, "attention_mask": text}, output, constants)


def _fusion_graph(weights: Weights, config: ModelConfig) -> Any:
    node = helper.make_node
    constants = {name: weights[name] for name in ("present", "out")}
    constants |= {name: np.array([i], np.int64) for i, name in enumerate(("zero", "one", "two"))}
    nodes = [
        node("Gather", ["modality_indicator", "zero"], ["has_image"], axis=1),
        node("Gather", ["modality_indicator", "one"], ["has_text"], axis=1),
        node("ReduceMean", ["image_tokens", "one"], ["image_mean"], keepdims=0),
        node("Mul", ["image_mean", "has_image"], ["image_pooled"]),
        node("Cast", ["text_mask"], ["mask"], to=TensorProto.FLOAT),
        node("Unsqueeze", ["mask", "two"], ["mask3"]),
        node("Mul", ["text_tokens", "mask3"], ["masked"]),
        node("ReduceSum", ["masked", "one"], ["text_sum"], keepdims=0),
        node("ReduceSum", ["mask", "one"], ["count"], keepdims=1),
        node("Div", ["text_sum", "count"], ["text_mean"]),
        node("Mul", ["text_mean", "has_text"], ["text_pooled"]),
        node("MatMul", ["modality_indicator", "present"], ["marks"]),
        node("Sum", ["image_pooled", "text_pooled", "marks"], ["sum"]),
        node("MatMul", ["sum", "out"], ["mixed"]),
        node("Tanh", ["mixed"], ["bent"]),
        node("ReduceL2", ["bent", "one"], ["norm"], keepdims=1),
        node("Div", ["bent", "norm"], ["embedding"]),
    ]
    inputs = {
        "image_tokens": (TensorProto.FLOAT, ["batch", "image_length", DIM]),
        "text_tokens": (TensorProto.FLOAT, ["batch", "text_length", DIM]),
        "text_mask": (TensorProto.INT64, ["batch", "text_length"]),
        "modality_indicator": (TensorProto.FLOAT, ["batch", 2]),
    }
    return _model(nodes, inputs, ("embedding", ["batch", DIM]), constants)


def _tokenizer() -> HuggingFaceTokenizer:
    tokenizer = HuggingFaceTokenizer(
        models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]", max_input_chars_per_word=100)
    )
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


def _golden(weights: Weights, config: ModelConfig, folder: Path) -> Weights:
    """Golden tensors by plain NumPy in float64: a second implementation of the graphs."""
    rng = np.random.default_rng(99)
    images = rng.integers(0, 256, (len(TEXTS), 20, 15, 3), np.uint8) * np.array(PICTURED, np.uint8)[:, None, None, None]
    pixels = np.stack([pixel_values(image, config.preprocessing) for image in images])
    tokenizer = Tokenizer((folder / "tokenizer.json").read_bytes(), config.preprocessing.max_tokens)
    encoded = [[2, 3] if text is None else tokenizer.encode([text])[0] for text in TEXTS]
    ids, mask = tokenizer.pad(encoded)
    indicator = np.array([[has, text is not None] for has, text in zip(PICTURED, TEXTS, strict=True)], np.float32)
    rows = [
        [picture[:, y : y + PATCH, x : x + PATCH].ravel() for y in range(0, 16, PATCH) for x in range(0, 12, PATCH)]
        for picture in pixels
    ]
    patches = np.array(rows, np.float64) @ weights["patch"]
    image_tokens = np.concatenate([patches.mean(1, keepdims=True), patches], axis=1)
    words = weights["word"][ids].astype(np.float64)
    share = mask[..., None] / mask.sum(1)[:, None, None]
    text_tokens = words + (words * share).sum(1, keepdims=True)
    pooled = indicator[:, :1] * image_tokens.mean(1) + indicator[:, 1:] * (text_tokens * share).sum(1)
    bent = np.tanh((pooled + indicator @ weights["present"]) @ weights["out"])
    return {
        "images": images,
        "pixel_values": pixels,
        "input_ids": ids,
        "attention_mask": mask,
        "image_tokens": image_tokens.astype(np.float32),
        "text_tokens": text_tokens.astype(np.float32),
        "modality_indicator": indicator,
        "embedding": (bent / np.linalg.norm(bent, axis=1, keepdims=True)).astype(np.float32),
    }


def _described(path: Path) -> dict[str, Any]:
    """The manifest's entry for a graph, read from the graph itself."""
    graph = onnx.load(path).graph

    def ports(values: Any) -> dict[str, Any]:
        return {
            value.name: {
                "dtype": helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name,
                "shape": [each.dim_param or each.dim_value for each in value.type.tensor_type.shape.dim],
            }
            for value in values
        }

    return {"file": path.name, "inputs": ports(graph.input), "outputs": ports(graph.output)}
