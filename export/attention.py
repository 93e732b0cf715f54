"""Attention as torch's exporter writes it, in fewer nodes, which engines make one kernel of.

Each node costs an engine some microseconds a call, and OpenVINO prepares a matrix product of activations anew for every
shape, in half a megabyte that it keeps; MatMul-Add-Softmax-MatMul it runs as one kernel for all shapes.
"""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import helper, numpy_helper

Nodes = dict[str, onnx.NodeProto]

ZERO_MASK = "zero_mask"
"""The mask (batch, 1, 1, 1) of attention that masks no key; see `mask_attention`."""


def simplify_attention(graph: onnx.GraphProto) -> None:
    """Shorten attention in place; the numbers change by the rounding of one factor.

    Keys are transposed in one step, not by reshape, transpose and reshape to computed shapes; the queries alone are
    scaled, by s, not queries and keys by sqrt(s); a Reshape keeps the leading axes of its input (0), and computes
    no shape; a mask that masks nothing goes, and so does `where(isnan(p), 0, p)` behind a Softmax, for a finite mask
    makes no NaN. What does not look so stays as it is. That batch and length are the input's own leading axes is how
    torch exports; the comparison of each graph with torch at several sizes would tell otherwise.
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
    _bypass(graph, _empty_masks(graph, makers, scalars))
    _bypass(graph, _nan_guards(graph, makers, scalars))
    _remove_unused(graph)


def mask_attention(graph: onnx.GraphProto, indicator: str) -> None:
    """Add a mask of zeros, made from the input `indicator` (batch, n), to scores that have none, in place; exact.

    Without, OpenVINO 2026.4 gives wrong numbers for 17 keys or more once its first run had one (a text query, then a
    photo). `uniecs.export.half`, for TensorRT, leaves the zeros out.
    """
    makers = {output: node for node in graph.node for output in node.output}
    nodes = list(graph.node)
    del graph.node[:]
    for name, values in (("start", [0]), ("end", [1]), ("axis", [1]), ("shape", [0, 1, 1, 1])):
        graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), f"{ZERO_MASK}.{name}"))
    graph.initializer.append(numpy_helper.from_array(np.array(0, np.float32), f"{ZERO_MASK}.zero"))
    parts = [indicator, *(f"{ZERO_MASK}.{name}" for name in ("start", "end", "axis"))]
    zeros, column = f"{ZERO_MASK}.zeros", f"{ZERO_MASK}.column"
    graph.node.append(helper.make_node("Slice", parts, [column], name=column))
    graph.node.append(helper.make_node("Mul", [column, f"{ZERO_MASK}.zero"], [zeros], name=zeros))
    graph.node.append(helper.make_node("Reshape", [zeros, f"{ZERO_MASK}.shape"], [ZERO_MASK], name=ZERO_MASK))
    for node in nodes:
        maker = makers.get(node.input[0]) if node.op_type == "Softmax" else None
        if maker is not None and maker.op_type == "MatMul":
            scores, masked = node.input[0], f"{node.input[0]}.masked"
            graph.node.append(helper.make_node("Add", [scores, ZERO_MASK], [masked], name=masked))
            node.input[0] = masked
        graph.node.append(node)
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


def _empty_masks(graph: onnx.GraphProto, makers: Nodes, scalars: dict[str, float]) -> dict[str, str]:
    """By the name of masked scores those without the mask, of each Add of where(true, 0, x)."""
    flags = (each for each in graph.initializer if each.data_type == onnx.TensorProto.BOOL)
    true = {each.name for each in flags if numpy_helper.to_array(each).all()}
    found = {}
    for node in graph.node:
        mask = makers.get(node.input[1]) if node.op_type == "Add" else None
        if mask is None or mask.op_type != "Where" or scalars.get(mask.input[1]) != 0:
            continue
        seen = makers.get(mask.input[0])
        if (seen.input[0] if seen is not None and seen.op_type == "Expand" else mask.input[0]) in true:
            found[node.output[0]] = node.input[0]
    return found


def _nan_guards(graph: onnx.GraphProto, makers: Nodes, scalars: dict[str, float]) -> dict[str, str]:
    """By the name of guarded weights those of the Softmax, of each where(isnan(weights), 0, weights) that is idle."""
    found = {}
    for node in graph.node:
        if node.op_type != "Where":
            continue
        check, weights = makers.get(node.input[0]), makers.get(node.input[2])
        if check is None or weights is None or (check.op_type, weights.op_type) != ("IsNaN", "Softmax"):
            continue
        if check.input[0] == node.input[2] and _finite(makers.get(weights.input[0]), makers, scalars):
            found[node.output[0]] = node.input[2]
    return found


def _finite(scores: onnx.NodeProto | None, makers: Nodes, scalars: dict[str, float]) -> bool:
    """Whether `scores` are a product as it is, or with a mask where(..., finite, finite) added."""
    mask = makers.get(scores.input[1]) if scores is not None and scores.op_type == "Add" else None
    if mask is None:
        return scores is not None and scores.op_type == "MatMul"
    return mask.op_type == "Where" and all(math.isfinite(scalars.get(each, math.inf)) for each in mask.input[1:])


def _bypass(graph: onnx.GraphProto, sources: dict[str, str]) -> None:
    """Let nodes read the tensors that `sources` gives in place of its keys."""
    for node in graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = sources.get(name, name)


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
