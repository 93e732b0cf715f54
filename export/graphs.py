"""One ONNX graph a submodule: dynamic batch and token axes, named inputs and outputs, constants folded."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.export import Dim

from uniecs.config import ModelConfig
from uniecs.export.attention import mask_attention, simplify_attention
from uniecs.trainer.model import UniECS

OPSET = 18
BATCH, IMAGE_LENGTH, TEXT_LENGTH = "batch", "image_length", "text_length"
MAX_BATCH, MAX_IMAGE_LENGTH = 65536, 65536
# Third-party notices that say nothing about the graph; tests turn every other warning into an error.
HARMLESS = (
    (FutureWarning, r".*treespec, LeafSpec"),
    (UserWarning, r"(?s).*The axis name: \w+ will not be used"),
)
TRACED_LENGTH = 5
"""Tokens of the texts that graphs are traced with, where a model takes as many."""


@dataclass(frozen=True)
class Port:
    """An input or output of a graph: dtype as NumPy names it, and a shape whose strings are dynamic axes."""

    dtype: str
    shape: tuple[int | str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As the manifest carries it."""
        return {"dtype": self.dtype, "shape": list(self.shape)}


@dataclass(frozen=True)
class GraphSpec:
    """The contract of one graph; `inputs` in the order of the submodule's forward."""

    inputs: Mapping[str, Port]
    outputs: Mapping[str, Port]

    def to_dict(self, file: str) -> dict[str, Any]:
        """As the manifest carries it."""
        return {
            "file": file,
            "inputs": {name: port.to_dict() for name, port in self.inputs.items()},
            "outputs": {name: port.to_dict() for name, port in self.outputs.items()},
        }


def graph_specs(config: ModelConfig) -> dict[str, GraphSpec]:
    """The three graphs of design/model.md for the dimensions of `config`."""
    p, dim = config.preprocessing, config.embed_dim
    text = (BATCH, TEXT_LENGTH)
    return {
        "image_encoder": GraphSpec(
            {"pixel_values": Port("float32", (BATCH, 3, p.height_px, p.width_px))},
            {"image_tokens": Port("float32", (BATCH, config.image_tokens, dim))},
        ),
        "text_encoder": GraphSpec(
            {"input_ids": Port("int64", text), "attention_mask": Port("int64", text)},
            {"text_tokens": Port("float32", (*text, dim))},
        ),
        "fusion": GraphSpec(
            {
                "image_tokens": Port("float32", (BATCH, IMAGE_LENGTH, dim)),
                "text_tokens": Port("float32", (*text, dim)),
                "text_mask": Port("int64", text),
                "modality_indicator": Port("float32", (BATCH, 2)),
            },
            {"embedding": Port("float32", (BATCH, dim))},
        ),
    }


def export_graph(model: UniECS, name: str) -> onnx.ModelProto:
    """The submodule `name` of `model` as an ONNX model of opset 18 in float32, without paths or traces in it.

    Everything that depends on weights alone is folded: transposed and sliced matrices, W3 e of the gate
    (eq. 3). The same network gives the same bytes.
    """
    from onnxscript import optimizer

    spec = graph_specs(model.config)[name]
    limits = {
        BATCH: MAX_BATCH,
        IMAGE_LENGTH: MAX_IMAGE_LENGTH,
        TEXT_LENGTH: model.config.preprocessing.max_tokens,
    }
    axes = {axis: Dim(axis, min=1, max=limit) for axis, limit in limits.items()}
    traced_at = {BATCH: 2, IMAGE_LENGTH: 3, TEXT_LENGTH: min(TRACED_LENGTH, limits[TEXT_LENGTH])}
    submodule: nn.Module = getattr(model, name)
    with _quiet():
        program = torch.onnx.export(
            submodule.eval(),
            tuple(_example(port, traced_at) for port in spec.inputs.values()),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(spec.inputs),
            output_names=list(spec.outputs),
            dynamic_shapes=tuple(
                {i: axes[axis] for i, axis in enumerate(port.shape) if isinstance(axis, str)}
                for port in spec.inputs.values()
            ),
            verbose=False,
        )
        if program is None:
            raise RuntimeError("torch.onnx.export returned no program")
        optimizer.fold_constants(program.model, input_size_limit=1 << 40, output_size_limit=1 << 40)
        optimizer.optimize(program.model)
    model_proto = _stripped(program.model_proto)
    simplify_attention(model_proto.graph)
    if name == "fusion":
        mask_attention(model_proto.graph, "modality_indicator")
    return model_proto


def _example(port: Port, sizes: Mapping[str, int]) -> Tensor:
    shape = [sizes[axis] if isinstance(axis, str) else axis for axis in port.shape]
    return torch.ones(shape, dtype=getattr(torch, port.dtype))


def _stripped(model: onnx.ModelProto) -> onnx.ModelProto:
    """Without the exporter's notes: they hold local paths and source lines, and differ between machines."""
    graph = model.graph
    for each in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        each.ClearField("metadata_props")
        each.ClearField("doc_string")
    graph.ClearField("value_info")
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's log lines (missing torchvision) and its known notices, nothing else."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for category, message in HARMLESS:
                warnings.filterwarnings("ignore", message, category)
            yield
    finally:
        logger.setLevel(level)
