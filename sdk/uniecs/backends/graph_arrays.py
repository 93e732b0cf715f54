"""The weights of a network in an OpenVINO model: vectors by their names, matrices by the bias that they meet."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from uniecs.backends.openvino_int8 import constant, constant_node


def name_of(node: Any) -> str:
    """The name of a constant in the trainer."""
    name: str = node.get_friendly_name()
    return name.removesuffix(".float16")


def linear_of(node: Any) -> tuple[str, Any | None]:
    """The name of a linear layer and its matrix product, of the Add of its bias; None for any other node."""
    if node.get_type_name() == "Add":
        sources = sources_of(node)
        for product, bias in (sources, sources[::-1]):
            of_matrix = product.get_type_name() == "MatMul" and constant_node(product.input_value(1).get_node())
            if of_matrix and name_of(bias).endswith(".bias"):
                return name_of(bias).removesuffix(".bias"), product
    return "", None


def weights_of(product: Any) -> npt.NDArray[np.float32]:
    """The weights (in, out) of a layer's matrix product."""
    weights = cast("npt.NDArray[np.float32]", constant(product.input_value(1).get_node()))  # by linear_of
    return np.ascontiguousarray(weights.T) if product.get_attributes()["transpose_b"] else weights


def sources_of(node: Any) -> list[Any]:
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


def takers_of(node: Any, kind: str) -> Iterator[Any]:
    """The nodes of a kind that take the first output of `node`."""
    takers = (each.get_node() for each in node.output(0).get_target_inputs())
    return (each for each in takers if each.get_type_name() == kind)


def split_of(layer: Any) -> tuple[int, int]:
    """Heads and width to which a layer is reshaped; -1 for what follows from the other, or if it is not."""
    shapes = (constant(each.input_value(1).get_node()) for each in takers_of(layer, "Reshape"))
    return next(((int(each[2]), int(each[3])) for each in shapes if each is not None and len(each) == 4), (-1, -1))
