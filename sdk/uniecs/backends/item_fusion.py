"""The fusion graph as the core's `ItemFusion`: its weights, found by the names that they keep."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from uniecs._core import ItemFusion
from uniecs.backends.openvino_int8 import constant

NAMED = (".bias", ".weight", "modality_embedding")
FIRST_QUERY, GATE = "image_sides.0.cross_attention.q", ".gate.linear"


def item_fusion(model: Any) -> ItemFusion | None:
    """Reads an OpenVINO model; None for a fusion that `ItemFusion` does not take, and on a CPU without AVX2.

    Vectors are constants with the names of the trainer (`GatedFusion`). Matrices have lost theirs, turned at export:
    each is what meets the bias of its name.
    """
    nodes = model.get_ops()
    named = (node for node in nodes if node.get_type_name() == "Constant" and _name(node).endswith(NAMED))
    arrays = {_name(node): node.data.astype(np.float32) for node in named}
    heads = 0
    for node in nodes:
        layer, matrix = _linear(node)
        if matrix is None:
            continue
        arrays[f"{layer}.weight"] = matrix
        if layer == FIRST_QUERY:
            heads = _heads(node)
        elif layer.endswith(GATE):
            arrays |= {f"{layer.removesuffix('linear')}present": each for each in _indicated(node)}
    try:
        return ItemFusion(arrays, heads)
    except ValueError:
        return None


def _name(node: Any) -> str:
    name: str = node.get_friendly_name()
    return name.removesuffix(".float16")


def _linear(node: Any) -> tuple[str, npt.NDArray[np.float32] | None]:
    """The name of a linear layer and its weights (in, out), of the Add of its bias; None for any other node."""
    if node.get_type_name() == "Add":
        sources = _sources(node)
        for product, bias in (sources, sources[::-1]):
            if product.get_type_name() == "MatMul" and _name(bias).endswith(".bias"):
                weights = constant(product.input_value(1).get_node())
                if weights is not None:
                    turned = product.get_attributes()["transpose_b"]
                    return _name(bias).removesuffix(".bias"), np.ascontiguousarray(weights.T) if turned else weights
    return "", None


def _sources(node: Any) -> list[Any]:
    """What a node of two inputs takes, before any factor 1 (which a Gemm brings)."""
    found = []
    for each in (node.input_value(0).get_node(), node.input_value(1).get_node()):
        while each.get_type_name() == "Multiply":
            factors = [each.input_value(i).get_node() for i in (0, 1)]
            others = [node for node in factors if not _is_one(node)]
            if len(others) != 1:
                break
            each = others[0]
        found.append(each)
    return found


def _is_one(node: Any) -> bool:
    return bool(node.get_type_name() == "Constant" and node.data.size == 1 and node.data.item() == 1)


def _takers(node: Any, kind: str) -> Iterator[Any]:
    takers = (each.get_node() for each in node.output(0).get_target_inputs())
    return (each for each in takers if each.get_type_name() == kind)


def _heads(query: Any) -> int:
    """The third axis that a query is reshaped to, (0, 0, heads, width)."""
    shapes = (constant(each.input_value(1).get_node()) for each in _takers(query, "Reshape"))
    return next((int(each[2]) for each in shapes if each is not None and len(each) == 4), 0)


def _indicated(gate: Any) -> Iterator[npt.NDArray[np.float32]]:
    """The vector that the indicator multiplies before it is added to `gate` (eq. 3)."""
    for add in _takers(gate, "Add"):
        for product in _sources(add):
            if product.get_type_name() == "Multiply":
                found = (constant(product.input_value(i).get_node()) for i in (0, 1))
                yield from (each.reshape(-1) for each in found if each is not None)
