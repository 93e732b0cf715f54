"""The int8 variant on OpenVINO: FakeQuantize where the bundle's recipe says, which compile to int8 matrix products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from uniecs.errors import BundleError
from uniecs.int8_recipe import QuantizedInput

INPUT_LEVELS, WEIGHT_LEVELS = 256, 255


def quantize(model: Any, inputs: Sequence[QuantizedInput]) -> None:
    """Put FakeQuantize on `inputs` of an OpenVINO model and on the weights that meet them, in place.

    As it compiles the model, OpenVINO makes int8 matrix products of them. Raises `BundleError` for inputs that do not
    fit the model.
    """
    nodes = {node.get_friendly_name(): node for node in model.get_ops() if node.get_type_name() == "MatMul"}
    for each in inputs:
        if absent := set(each.matmuls) - set(nodes):
            raise BundleError(f"the int8 recipe does not fit the graph: there is no matrix product {min(absent)!r}")
        _quantize_input(each, [nodes[name] for name in each.matmuls])
    if inputs:
        model.validate_nodes_and_infer_types()


def _quantize_input(quantized: QuantizedInput, matmuls: Sequence[Any]) -> None:
    from openvino import opset8

    source = matmuls[0].input_value(0)
    scale = np.array(quantized.scale, np.float32)
    matrices = []
    for matmul in matmuls:
        weights = constant_weights(matmul)
        if weights is None or len(weights) != len(scale) or matmul.input_value(0) != source:
            name = matmul.get_friendly_name()
            raise BundleError(f"the int8 recipe does not fit the graph: {name} is another kind of matrix product")
        matrices.append(weights / scale[:, None])
    scaled = opset8.multiply(source, opset8.constant(scale))
    narrow = _fake_quantize(scaled, np.float32(quantized.low), np.float32(quantized.high), INPUT_LEVELS)
    for matmul, matrix in zip(matmuls, matrices, strict=True):
        bound = np.maximum(np.abs(matrix).max(axis=0, keepdims=True), np.finfo(np.float32).tiny)
        matmul.input(0).replace_source_output(narrow)
        matmul.input(1).replace_source_output(_fake_quantize(opset8.constant(matrix), -bound, bound, WEIGHT_LEVELS))


def _fake_quantize(node: Any, low: Any, high: Any, levels: int) -> Any:
    from openvino import opset8

    return opset8.fake_quantize(node, low, high, low, high, levels).output(0)


def constant_weights(matmul: Any) -> npt.NDArray[np.float32] | None:
    """The weights (K, N) of an OpenVINO MatMul as float32, however they are stored; None if they are not constant."""
    weights = constant(matmul.input_value(1).get_node())
    transposed = any(matmul.get_attributes().get(side) for side in ("transpose_a", "transpose_b"))
    return None if weights is None or weights.ndim != 2 or transposed else weights


def constant(node: Any) -> npt.NDArray[np.float32] | None:
    """The value of a constant as float32, however it is stored; None for any other node."""
    stored = constant_node(node)
    if stored is None:
        return None
    value: npt.NDArray[np.float32] = stored.data.astype(np.float32)
    return value


def constant_node(node: Any) -> Any | None:
    """A constant, also behind a Convert; None for any other node."""
    if node.get_type_name() == "Convert":
        node = node.input_value(0).get_node()
    return node if node.get_type_name() == "Constant" else None
