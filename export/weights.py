"""Compact weights: rounded in the network first, then stored small in the graph, so that both stay equal.

`round_weights` changes the network in place; `store_compactly` then writes the same numbers as float16, and
the word table as int8 rows with one float32 scale a row; operators in the graph restore float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor

from uniecs.errors import CheckpointError
from uniecs.trainer.model import UniECS

WORD_TABLE = "text_encoder.backbone.embeddings.word_embeddings.weight"
INT8_MAX = 127
SMALLEST_STORED = 1024
"""Initializers of fewer elements stay float32: there is nothing to save."""


@dataclass(frozen=True)
class Int8Rows:
    """A matrix as int8 `rows` (R, C) times a float32 `scale` (R, 1)."""

    rows: npt.NDArray[np.int8]
    scale: npt.NDArray[np.float32]

    def matrix(self) -> npt.NDArray[np.float32]:
        """The float32 matrix (R, C) that the graph computes with."""
        return self.rows.astype(np.float32) * self.scale


def check_finite(model: UniECS) -> None:
    """Raise `CheckpointError` naming a weight that holds NaN or infinite values."""
    for name, weight in model.named_parameters():
        if not weight.isfinite().all():
            raise CheckpointError(f"weight {name} holds NaN or infinite values; the network cannot be exported")


def round_weights(model: UniECS) -> Int8Rows:
    """Round the weights of `model` in place to what compact storage holds; returns the word table.

    The word table becomes int8 rows, every other weight of two or more axes float16; vectors (biases,
    LayerNorm) stay float32. No matrix becomes int8: OpenVINO would quantise the activations it meets, and its
    fp32 would no longer be fp32. Raises `CheckpointError` for a weight beyond float16's range.
    """
    words = model.get_parameter(WORD_TABLE)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() < 2 or weight is words:
                continue
            rounded = weight.half()
            if not rounded.isfinite().all():
                largest = weight.abs().max().item()
                raise CheckpointError(
                    f"weight {name} reaches {largest:.3g}, beyond float16's 65504: use weights='float32'"
                )
            weight.copy_(rounded)
        table = _int8_rows(words)
        words.copy_(torch.from_numpy(table.matrix()))
    return table


def _int8_rows(weight: Tensor) -> Int8Rows:
    matrix = weight.detach().float().numpy()
    scale = np.abs(matrix).max(axis=1, keepdims=True) / np.float32(INT8_MAX)
    scale[scale == 0] = 1
    rows = np.rint(matrix / scale).clip(-INT8_MAX, INT8_MAX).astype(np.int8)
    return Int8Rows(rows, scale)


def store_compactly(model: onnx.ModelProto, words: Int8Rows) -> None:
    """Rewrite the initializers of a graph in place: the word table as int8, others as float16 where exact."""
    graph = model.graph
    table = words.matrix()
    casts = []
    for initializer in list(graph.initializer):
        array, name = numpy_helper.to_array(initializer), initializer.name
        if array.dtype != np.float32 or array.size < SMALLEST_STORED:
            continue
        if np.array_equal(array, table):
            graph.initializer.remove(initializer)
            _add(graph, f"{name}.int8", words.rows)
            _add(graph, f"{name}.scale", words.scale)
            _gather_rows(graph, name)
            continue
        with np.errstate(over="ignore"):
            half = array.astype(np.float16)
        if np.array_equal(half, array):
            graph.initializer.remove(initializer)
            _add(graph, f"{name}.float16", half)
            casts.append(_cast(f"{name}.float16", name))
    for cast in reversed(casts):
        graph.node.insert(0, cast)


def _add(graph: onnx.GraphProto, name: str, array: npt.NDArray[np.generic]) -> None:
    graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))


def _cast(source: str, target: str) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], name=f"{target}.cast", to=onnx.TensorProto.FLOAT)


def _gather_rows(graph: onnx.GraphProto, name: str) -> None:
    """Replace Gather(table, ids) by Gather on the rows times Gather on the scales: the table stays int8."""
    for index, node in reversed(list(enumerate(graph.node))):
        if node.op_type != "Gather" or node.input[0] != name:
            continue
        ids, output = node.input[1], node.output[0]
        rows, scale, wide = f"{output}.int8", f"{output}.scale", f"{output}.wide"
        graph.node.remove(node)
        for new in (
            helper.make_node("Mul", [wide, scale], [output], name=f"{output}.scaled"),
            helper.make_node("Gather", [f"{name}.scale", ids], [scale], name=scale),
            _cast(rows, wide),
            helper.make_node("Gather", [f"{name}.int8", ids], [rows], name=rows),
        ):
            graph.node.insert(index, new)
