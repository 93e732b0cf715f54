"""The float16 form of a graph, derived from its float32 form: a bundle keeps one set of weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper, shape_inference

from uniecs.errors import BackendError
from uniecs.export.attention import ZERO_MASK

FLOAT, HALF = int(onnx.TensorProto.FLOAT), int(onnx.TensorProto.FLOAT16)
DTYPES: dict[int, np.dtype[Any]] = {FLOAT: np.dtype(np.float32), HALF: np.dtype(np.float16)}
TOKENS = ("image_tokens", "text_tokens")
"""The ports that carry float16, from an encoder to the fusion; other float ports stay float32."""
IN_FLOAT32 = {"LayerNormalization", "Softmax", "ReduceMean", "ReduceSum", "ReduceL2", "Pow", "Sqrt", "Clip"}
"""Operators that sum, square or exponentiate; a division by what was computed joins them."""
PRODUCTS = {"MatMul", "Gemm", "Conv"}
MASKED = -30000.0
"""In place of the lowest float32 and of -inf: far below any score, and finite in float16 with one added."""


def half_graph(model: onnx.ModelProto) -> onnx.ModelProto:
    """The strongly typed float16 form of a float32 graph of a bundle; `model` is not changed.

    Matrices and activations are float16; LayerNorm, softmax, means, sums and the final norm compute in float32,
    between explicit casts. The ports in `TOKENS` are float16, the others keep their type. Constants are stored in
    the type their reader takes, and masks of zeros, which OpenVINO needs, are left out. The same graph gives the same
    bytes. Raises `BackendError` for a constant float16 cannot hold.

    Attention stays MatMul-Softmax-MatMul: TensorRT's importer of ONNX's own Attention (opset 23) refuses
    `softmax_precision`, so that softmax in float32 cannot be asked for there.
    """
    return _Halving(model).result()


class _Halving:
    """One pass over the nodes in order; each is rewritten in the type that it computes in."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model
        self._floats = _float_names(model)
        self._constants = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
        self._nodes: list[onnx.NodeProto] = []
        self._stored: dict[str, onnx.TensorProto] = {}
        self._kinds: dict[str, int] = {}  # of the float tensors that are inputs or computed
        self._alias: dict[str, str] = {}  # casts from float to float, masks of zeros: nothing is computed
        self._integers: dict[str, str] = {}  # float tensor -> the integers it is a cast of: has either type
        self._casts: set[str] = set()
        self._gathers: dict[str, onnx.NodeProto] = {}  # rows of a constant

    def result(self) -> onnx.ModelProto:
        graph = self._model.graph
        inputs, outputs = ([_port(each) for each in ports] for ports in (graph.input, graph.output))
        for port in inputs:
            if port.name in self._floats:
                self._kinds[port.name] = port.type.tensor_type.elem_type
        for node in graph.node:
            self._rewrite(node)
        for port in outputs:
            self._deliver(port)
        halved = helper.make_graph(self._nodes, graph.name, inputs, outputs, list(self._stored.values()))
        _drop_unused(halved)
        result = onnx.ModelProto()
        result.CopyFrom(self._model)
        result.graph.CopyFrom(halved)
        return result

    def _rewrite(self, node: onnx.NodeProto) -> None:
        inputs = [self._alias.get(name, name) for name in node.input]
        output = node.output[0]
        if node.op_type == "Cast" and self._cast(inputs[0], output, helper.get_node_attr_value(node, "to")):
            return
        if node.op_type == "Add" and inputs[1] == ZERO_MASK:
            self._alias[output] = inputs[0]
            return
        if node.op_type == "Mul" and self._joined_table(inputs, output):
            return
        kind = self._kind(node.op_type, inputs)
        rewritten = onnx.NodeProto()
        rewritten.CopyFrom(node)
        rewritten.input[:] = [self._taken(name, kind) for name in inputs]
        self._nodes.append(rewritten)
        if node.op_type == "Gather" and inputs[0] in self._constants and _axis(node) == 0:
            self._gathers[output] = node
        self._kinds |= {name: kind for name in node.output if name in self._floats}

    def _kind(self, operator: str, inputs: list[str]) -> int:
        """The type a node computes in: where all it is given is float32 already, that costs no cast."""
        if operator in IN_FLOAT32 or (operator == "Div" and inputs[1] not in self._constants):
            return FLOAT
        given = {self._kinds[name] for name in inputs if name in self._kinds}
        return FLOAT if given == {FLOAT} and operator not in PRODUCTS else HALF

    def _cast(self, source: str, output: str, to: int) -> bool:
        """Whether this Cast needs no node of its own."""
        if source in self._constants:
            self._constants[output] = self._constants[source].astype(helper.tensor_dtype_to_np_dtype(to))
        elif output in self._floats and source in self._floats:
            self._alias[output] = source
        elif output in self._floats:
            self._integers[output] = source
        else:
            return False
        return True

    def _joined_table(self, inputs: list[str], output: str) -> bool:
        """Whether this Mul restores rows stored as int8: then rows and scales become one table, looked up once.

        TensorRT takes int8 constants for quantised ones and refuses such a Gather.
        """
        rows, scales = (self._gathers.get(self._integers.get(name, name)) for name in inputs)
        if rows is None or scales is None or rows.input[1] != scales.input[1]:
            return False
        table = f"{output}.table"
        self._constants[table] = self._constants[rows.input[0]].astype(np.float32) * self._constants[scales.input[0]]
        stored = self._taken(table, HALF)
        self._nodes.append(helper.make_node("Gather", [stored, rows.input[1]], [output], name=output))
        self._kinds[output] = HALF
        return True

    def _taken(self, name: str, kind: int) -> str:
        """The tensor `name`, in type `kind` if it is of floats; its own type where it has no other reader."""
        if name in self._constants:
            return self._constant(name, kind)
        if name in self._integers:
            return self._cast_once(self._integers[name], name, kind)
        return name if self._kinds.get(name, kind) == kind else self._cast_once(name, name, kind)

    def _cast_once(self, source: str, name: str, kind: int) -> str:
        target = f"{name}.{DTYPES[kind].name}"
        if target not in self._casts:
            self._casts.add(target)
            self._nodes.append(helper.make_node("Cast", [source], [target], name=target, to=kind))
        return target

    def _constant(self, name: str, kind: int) -> str:
        array = self._constants[name]
        if array.dtype not in DTYPES.values():
            self._stored.setdefault(name, numpy_helper.from_array(array, name))
            return name
        target = f"{name}.{DTYPES[kind].name}"
        if target not in self._stored:
            converted = _halved(name, array) if kind == HALF else array.astype(np.float32)
            self._stored[target] = numpy_helper.from_array(np.ascontiguousarray(converted).reshape(array.shape), target)
        return target

    def _deliver(self, port: onnx.ValueInfoProto) -> None:
        """Give the output its type under its own name."""
        name, kind = port.name, port.type.tensor_type.elem_type
        if self._kinds.get(name, kind) == kind and name not in self._alias:
            return
        source = self._alias.get(name, name)
        if source == name:
            source = f"{name}.computed"
            for node in self._nodes:
                for names in (node.input, node.output):
                    names[:] = [source if each == name else each for each in names]
        self._nodes.append(helper.make_node("Cast", [source], [name], name=f"{name}.delivered", to=kind))


def _axis(node: onnx.NodeProto) -> int:
    return next((each.i for each in node.attribute if each.name == "axis"), 0)


def _float_names(model: onnx.ModelProto) -> set[str]:
    graph = shape_inference.infer_shapes(model).graph
    ports = [*graph.value_info, *graph.input, *graph.output]
    kinds = {each.name: each.type.tensor_type.elem_type for each in ports}
    return {name for name, kind in kinds.items() if kind in DTYPES}


def _port(port: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    copy = onnx.ValueInfoProto()
    copy.CopyFrom(port)
    if port.name in TOKENS:
        copy.type.tensor_type.elem_type = HALF
    return copy


def _halved(name: str, array: npt.NDArray[Any]) -> npt.NDArray[np.float16]:
    masked = array <= np.finfo(np.float32).min
    with np.errstate(over="ignore"):
        half = np.where(masked, MASKED, array).astype(np.float16)
    if not np.isfinite(half).all():
        largest = np.abs(array[~np.isfinite(half)]).max()
        raise BackendError(
            f"constant {name} reaches {largest:.3g}, beyond float16's 65504: this model cannot run in fp16"
        )
    if array.size == 1 and array.any() and not half.any():
        raise BackendError(f"constant {name} is {array.item():.3g}, zero in float16: this model cannot run in fp16")
    return half


def _drop_unused(graph: onnx.GraphProto) -> None:
    """Remove the nodes and constants whose results nothing reads."""
    needed = {port.name for port in graph.output}
    for node in reversed(list(graph.node)):
        if needed.isdisjoint(node.output):
            graph.node.remove(node)
        else:
            needed.update(node.input)
    for constant in list(graph.initializer):
        if constant.name not in needed:
            graph.initializer.remove(constant)
