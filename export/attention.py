"""Attention as torch's exporter writes it, in fewer nodes: each costs an engine some microseconds a call."""

from __future__ import annotations

import math

import onnx
from onnx import helper, numpy_helper

Nodes = dict[str, onnx.NodeProto]


def simplify_attention(graph: onnx.GraphProto) -> None:
    """Shorten attention in place; the numbers change by the rounding of one factor.

    Keys are transposed in one step, not by reshape, transpose and reshape to computed shapes; the queries alone are
    scaled, by s, not queries and keys by sqrt(s); and a Reshape keeps the leading axes of its input (0), and computes
    no shape. What does not look so stays as it is. That batch and length are the input's own leading axes is how torch
    exports; the comparison of each graph with torch at several sizes would tell otherwise.
    """
    makers = {output: node for node in graph.node for output in node.output}
    single = (each for each in graph.initializer if math.prod(each.dims) == 1)
    scalars = {each.name: float(numpy_helper.to_array(each).item()) for each in single}
    transposed: Nodes = {}
    for node in graph.node:
        keys = _keys(node, makers, scalars)
        if keys is not None:
            name = f"{node.output[0]}.keys"
            queries, scaled_keys = (makers[each] for each in node.input)
            scale = scalars[queries.input[1]] * scalars[scaled_keys.input[1]]
            graph.initializer.append(helper.make_tensor(f"{name}.scale", onnx.TensorProto.FLOAT, [], [scale]))
            queries.input[1], node.input[1] = f"{name}.scale", name
            transposed[node.name] = helper.make_node("Transpose", [keys], [name], name=name, perm=[0, 1, 3, 2])
        shape = _shape(node, makers, scalars)
        if shape is not None:
            name = f"{node.output[0]}.shape"
            graph.initializer.append(helper.make_tensor(name, onnx.TensorProto.INT64, [len(shape)], shape))
            node.input[1] = name
            del node.attribute[:]  # without allowzero a 0 is the input's own size
    for place, node in reversed(list(enumerate(graph.node))):
        if node.name in transposed:
            graph.node.insert(place, transposed[node.name])
    _remove_unused(graph)


def _keys(node: onnx.NodeProto, makers: Nodes, scalars: dict[str, float]) -> str | None:
    """The keys (batch, heads, length, width) that a MatMul multiplies with queries; None for any other node."""
    if node.op_type != "MatMul":
        return None
    factors = [makers.get(each) for each in node.input]
    if not all(each is not None and each.op_type == "Mul" and each.input[1] in scalars for each in factors):
        return None
    name: str = makers[node.input[1]].input[0]
    for step in ("Reshape", "Transpose", "Reshape"):
        if name not in makers or makers[name].op_type != step:
            return None
        name = makers[name].input[0]
    return name


def _shape(node: onnx.NodeProto, makers: Nodes, scalars: dict[str, float]) -> list[int] | None:
    """(0, 0, constants...) for a Reshape that computes batch and length alone; None for any other node."""
    maker = makers.get(node.input[1]) if node.op_type == "Reshape" else None
    if maker is None or maker.op_type != "Concat" or len(maker.input) < 3:
        return None
    if any(each in scalars for each in maker.input[:2]) or any(each not in scalars for each in maker.input[2:]):
        return None
    return [0, 0, *(int(scalars[each]) for each in maker.input[2:])]


def _remove_unused(graph: onnx.GraphProto) -> None:
    while True:
        read = {name for node in graph.node for name in node.input} | {each.name for each in graph.output}
        unused = [node for node in graph.node if not read.intersection(node.output)]
        if not unused:
            break
        for node in unused:
            graph.node.remove(node)
    for each in [each for each in graph.initializer if each.name not in read]:
        graph.initializer.remove(each)
