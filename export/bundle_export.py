"""Checkpoint to bundle: graphs, tokenizer, golden vectors, parity with torch, evaluation, manifest."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from uniecs.backends.base import GRAPHS, Backend, create_backend
from uniecs.bundle import Bundle, open_bundle, write_manifest
from uniecs.catalog import Product
from uniecs.config import ModelConfig
from uniecs.durable import new_folder
from uniecs.encoder import load
from uniecs.errors import BundleError, CheckpointError, ConfigError, ParityError
from uniecs.evaluation import Pairs, evaluate_products, read_held_out
from uniecs.export.golden import ROWS, golden_inputs
from uniecs.export.graphs import OPSET, TRACED_LENGTH, export_graph, graph_specs
from uniecs.export.tolerances import TOLERANCES
from uniecs.export.verify import Agreement, compare, tokens_read, verify_bundle
from uniecs.export.weights import check_finite, round_weights, store_compactly
from uniecs.preprocess import Tokenizer
from uniecs.trainer.checkpoint import load_checkpoint
from uniecs.trainer.model import UniECS

Arrays = dict[str, npt.NDArray[Any]]

PARITY_BACKENDS = ("onnxruntime", "openvino")
PARITY_BATCHES = (1, 3, 32)
RECORDED_VERSIONS = ("uniecs", "torch", "transformers", "onnx", "onnxscript", "numpy", "pillow")


def export_bundle(
    checkpoint: str | Path,
    out: str | Path,
    *,
    catalog: str | Path | None = None,
    pairs: str | Path | None = None,
    weights: Literal["float32", "compact"] = "compact",
) -> Bundle:
    """Export the checkpoint folder `checkpoint` to a new bundle folder `out`; all of it, or nothing.

    The graphs compute in float32. weights="compact" stores matrices as float16 and the word table as int8
    rows, the network being rounded to those values first; "float32" stores it as trained. Each graph is
    compared with torch on ONNX Runtime and OpenVINO, then the bundle with its golden vectors on every backend
    there is. With `catalog` and `pairs`, which are read before all this, the finished bundle is evaluated
    (nine tasks, baselines; OpenVINO fp32) and the figures go into the manifest.

    Raises `BundleError` if `out` exists or cannot be written, `CheckpointError` if the checkpoint cannot be read
    or holds weights that cannot be stored, `ParityError` if a graph differs from torch, `BackendError` or
    `MissingExtraError` if a backend is missing, and `CatalogError` for a catalogue or pairs that cannot be used.
    """
    if (catalog is None) != (pairs is None):
        raise BundleError("evaluation needs both a catalogue and a pairs file, or neither")
    if weights not in ("float32", "compact"):
        raise ConfigError(f"weights is {weights!r}; expected 'float32' or 'compact'")
    with new_folder(Path(out)) as folder:
        held_out = None if catalog is None or pairs is None else read_held_out(catalog, pairs)
        _write_bundle(Path(checkpoint), folder, held_out, weights)
    return open_bundle(out)


def _write_bundle(
    checkpoint: Path,
    folder: Path,
    held_out: tuple[Mapping[str, Product], Pairs] | None,
    weights: Literal["float32", "compact"],
) -> None:
    """Fill `folder`: files, manifest, checks, and the manifest again with the evaluation."""
    loaded = load_checkpoint(checkpoint)
    model, config = loaded.model, loaded.config
    check_finite(model)
    (folder / "tokenizer.json").write_bytes(loaded.tokenizer_json)
    inputs = golden_inputs(_tokenizer(loaded.tokenizer_json, config), config.preprocessing)
    trained = golden_outputs(model, inputs)["embedding"]
    words = round_weights(model) if weights == "compact" else None
    for name in GRAPHS:
        graph = export_graph(model, name)
        if words is not None:
            store_compactly(graph, words)
        (folder / f"{name}.onnx").write_bytes(graph.SerializeToString(deterministic=True))
    outputs = golden_outputs(model, inputs)
    _save_golden(folder, inputs | outputs)
    rounding = compare(outputs["embedding"], trained).min_cosine
    manifest = _manifest(config, weights, loaded.provenance, rounding)
    parity = check_parity(model, write_manifest(folder, manifest))
    report = verify_bundle(folder)
    if not report.ok:
        raise ParityError(f"the exported bundle does not reproduce its golden vectors:\n{report.table()}")
    manifest["provenance"]["export"]["parity"] = parity
    if held_out is not None:
        # Through the exported graphs, not torch.
        encoder = load(folder, backend="openvino", device="cpu", precision="fp32")
        manifest["evaluation"] = evaluate_products(encoder, *held_out)
    write_manifest(folder, manifest)


def _tokenizer(tokenizer_json: bytes, config: ModelConfig) -> Tokenizer:
    tokenizer = Tokenizer(tokenizer_json, config.preprocessing.max_tokens)
    if tokenizer.vocab_size > config.text.vocab_size:
        raise CheckpointError(
            f"the tokenizer has {tokenizer.vocab_size} tokens; the network embeds {config.text.vocab_size}"
        )
    return tokenizer


def golden_outputs(model: UniECS, inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
    """image_tokens, text_tokens and embedding of the golden inputs by torch in float32, as one batch."""
    image_tokens = _torch(model, "image_encoder", [inputs["pixel_values"]])
    text_tokens = _torch(model, "text_encoder", [inputs["input_ids"], inputs["attention_mask"]])
    fusion_inputs = [image_tokens, text_tokens, inputs["attention_mask"], inputs["modality_indicator"]]
    embedding = _torch(model, "fusion", fusion_inputs)
    return {"image_tokens": image_tokens, "text_tokens": text_tokens, "embedding": embedding}


def _torch(model: UniECS, graph: str, inputs: Iterable[npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
    with torch.inference_mode():
        output: torch.Tensor = getattr(model, graph)(*(torch.from_numpy(array) for array in inputs))
    return output.numpy()


def _save_golden(folder: Path, arrays: Arrays) -> None:
    from safetensors.numpy import save_file

    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / "golden.safetensors")


def _manifest(
    config: ModelConfig, weights: str, provenance: Mapping[str, Any], rounding_min_cosine: float
) -> dict[str, Any]:
    """Everything but the files' checksums and the model_id, which `write_manifest` adds."""
    return {
        "name": config.name,
        "embed_dim": config.embed_dim,
        "preprocessing": config.preprocessing.to_dict(),
        "model": config.to_dict(),
        "graphs": {name: spec.to_dict(f"{name}.onnx") for name, spec in graph_specs(config).items()},
        "opset": OPSET,
        "weights": weights,
        "golden": {"texts": [row.text for row in ROWS]},
        "evaluation": None,
        "provenance": {
            **provenance,
            "export": {"weights": weights, "rounding_min_cosine": rounding_min_cosine},
        },
        "created": {name: importlib.metadata.version(name) for name in RECORDED_VERSIONS},
    }


def check_parity(model: UniECS, bundle: Bundle) -> list[dict[str, Any]]:
    """Compare each graph with torch on both CPU engines, at several batch sizes and ends of both token axes.

    Text tokens of padding need only be finite, as in `verify_bundle`.

    Returns the worst figures of each backend and graph; raises `ParityError` at a breach of the fp32 limits.
    """
    figures = []
    for graph in GRAPHS:
        feeds = list(parity_feeds(model.config, graph))
        cases = [(feed, _torch(model, graph, feed.values())) for feed in feeds]
        for name in PARITY_BACKENDS:
            found: list[Agreement] = []
            # Small shapes first, then afresh large ones first: what an engine compiles on a first run serves all.
            for order in (cases, cases[::-1]):
                backend = create_backend(bundle, name, device="cpu", precision="fp32")
                found += [_agreement(backend, graph, feed, expected) for feed, expected in order]
            figures.append({"backend": name, "graph": graph, **asdict(worst(found))})
    return figures


def _agreement(backend: Backend, graph: str, feed: Arrays, expected: npt.NDArray[np.float32]) -> Agreement:
    actual = backend.run(graph, feed)
    if graph == "text_encoder":
        actual, expected = tokens_read(actual, expected, feed["attention_mask"])
    agreement = compare(actual, expected)
    if not agreement.within("fp32"):
        shapes = {key: array.shape for key, array in feed.items()}
        raise ParityError(
            f"graph {graph} differs from torch on {backend.name} at {shapes}: {agreement}; "
            f"expected a cosine of at least {TOLERANCES['fp32'].cosine}"
        )
    return agreement


def worst(found: Iterable[Agreement]) -> Agreement:
    """The least cosine and the largest errors of several comparisons."""
    each = list(found)
    return Agreement(
        min(a.min_cosine for a in each),
        max(a.max_abs_error for a in each),
        max(a.max_norm_error for a in each),
    )


def parity_feeds(config: ModelConfig, graph: str) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """Inputs of a graph, in the order of its forward: seeded noise, prefix masks, all kinds of indicator."""
    rng = np.random.default_rng(0)
    p, dim = config.preprocessing, config.embed_dim
    lengths = sorted({1, min(TRACED_LENGTH, p.max_tokens), p.max_tokens})
    for batch in PARITY_BATCHES:
        if graph == "image_encoder":
            yield {"pixel_values": rng.normal(size=(batch, 3, p.height_px, p.width_px)).astype(np.float32)}
            continue
        for length in lengths:
            seen = rng.integers(1, length + 1, size=(batch, 1))
            mask = (np.arange(length) < seen).astype(np.int64)
            if graph == "text_encoder":
                ids = rng.integers(0, config.text.vocab_size, size=(batch, length))
                yield {"input_ids": ids * mask, "attention_mask": mask}
                continue
            kinds = np.array([[1, 1], [1, 0], [0, 1]], np.float32)
            for image_length in (1, config.image_tokens):
                yield {
                    "image_tokens": rng.normal(size=(batch, image_length, dim)).astype(np.float32),
                    "text_tokens": rng.normal(size=(batch, length, dim)).astype(np.float32),
                    "text_mask": mask,
                    "modality_indicator": kinds[np.arange(batch) % len(kinds)],
                }
