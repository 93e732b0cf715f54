"""The least work of a graph, counted from its ONNX file: operations of its products, bytes that must be read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from uniecs.backends.openvino import make_core

ITEM_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}
FLOATS = ("f64", "f32", "f16", "bf16")


@dataclass(frozen=True)
class Work:
    """Operations (a product and a sum count as two), numbers in the weights that are read, in inputs and outputs."""

    operations: int
    weights: int
    ports: int

    def bytes(self, precision: str) -> int:
        """Weights, inputs and outputs, each read or written once; what passes between layers stays in the caches."""
        return (self.weights + self.ports) * ITEM_BYTES[precision]


@dataclass(frozen=True)
class Floor:
    """How long `Work` must take: operations over the rate, bytes over the bandwidth, and the larger of both."""

    compute_ms: float
    memory_ms: float

    @property
    def ms(self) -> float:
        """The larger term."""
        return max(self.compute_ms, self.memory_ms)

    @property
    def bound(self) -> str:
        """Which one that is: "compute" or "memory"."""
        return "compute" if self.compute_ms >= self.memory_ms else "memory"


def floor_of(work: Work, precision: str, operations_per_s: float, bytes_per_s: float) -> Floor:
    """The floor of `work` in a precision on a machine of these rates."""
    return Floor(work.operations / operations_per_s * 1e3, work.bytes(precision) / bytes_per_s * 1e3)


def count_work(path: Path, shapes: Mapping[str, Sequence[int]]) -> Work:
    """The work of the ONNX graph `path` with its inputs of these shapes.

    MatMul, Gemm and convolutions count, as products with a constant or not; element-wise operators do not. Of a table
    of embeddings only the rows that are looked up are weights. OpenVINO reads the file and works out the shapes.
    """
    model = make_core().read_model(path)
    model.reshape({name: list(shape) for name, shape in shapes.items()})
    nodes = model.get_ops()
    ports = [each.get_shape() for each in (*model.inputs, *model.outputs)]
    return Work(
        sum(_operations(node) for node in nodes),
        sum(_read(node) for node in nodes if node.get_type_name() == "Constant"),
        sum(prod(shape) for shape in ports),
    )


def _operations(node: Any) -> int:
    kind = node.get_type_name()
    if kind not in ("MatMul", "Convolution", "GroupConvolution"):
        return 0
    outputs: int = prod(node.get_output_shape(0))
    if kind == "MatMul":
        left = node.get_input_shape(0)
        turned = node.get_attributes()["transpose_a"] and len(left) > 1
        return 2 * outputs * int(left[-2 if turned else -1])
    weights = node.get_input_shape(1)  # (out, in, kernel...), of groups (groups, out, in, kernel...)
    each: int = prod(weights[1 if kind == "Convolution" else 2 :])
    return 2 * outputs * each


def _read(constant: Any) -> int:
    """Numbers that must be read of a constant: all, or what is gathered from it; none of integers and conditions."""
    if constant.get_output_element_type(0).get_type_name() not in FLOATS:
        return 0
    whole: int = prod(constant.get_output_shape(0))
    readers = _readers(constant)
    gathered: list[int] = [prod(each.get_output_shape(0)) for each in readers if each.get_type_name() == "Gather"]
    if whole == 1:  # a factor or a bound
        return 0
    return min(whole, sum(gathered)) if readers and len(gathered) == len(readers) else whole


def _readers(node: Any) -> list[Any]:
    """Nodes that read an output, past a change of its type."""
    found = []
    for reader in (target.get_node() for target in node.output(0).get_target_inputs()):
        found += _readers(reader) if reader.get_type_name() == "Convert" else [reader]
    return found
