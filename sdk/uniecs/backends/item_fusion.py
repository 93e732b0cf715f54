"""The fusion graph as the core's `ItemFusion`: its weights, found by the names that they keep."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from uniecs._core import Crew, ItemFusion
from uniecs.backends.graph_arrays import linear_of, name_of, sources_of, split_of, takers_of, weights_of
from uniecs.backends.openvino_int8 import constant

NAMED = (".bias", ".weight", "modality_embedding")
FIRST_QUERY, GATE = "image_sides.0.cross_attention.q", ".gate.linear"


def item_fusion(model: Any, crew: Crew) -> ItemFusion | None:
    """Reads an OpenVINO model; None for a fusion that `ItemFusion` does not take, and on a CPU without AVX2.

    Vectors are constants with the names of the trainer (`GatedFusion`). Matrices have lost theirs, turned at export:
    each is what meets the bias of its name.
    """
    nodes = model.get_ops()
    named = (node for node in nodes if node.get_type_name() == "Constant" and name_of(node).endswith(NAMED))
    arrays = {name_of(node): node.data.astype(np.float32) for node in named}
    heads = 0
    for node in nodes:
        layer, product = linear_of(node)
        if product is None:
            continue
        arrays[f"{layer}.weight"] = weights_of(product)
        if layer == FIRST_QUERY:
            heads = max(0, split_of(node)[0])
        elif layer.endswith(GATE):
            arrays |= {f"{layer.removesuffix('linear')}present": each for each in _indicated(node)}
    try:
        return ItemFusion(arrays, heads, crew)
    except ValueError:
        return None


def _indicated(gate: Any) -> Iterator[npt.NDArray[np.float32]]:
    """The vector that the indicator multiplies before it is added to `gate` (eq. 3)."""
    for add in takers_of(gate, "Add"):
        for product in sources_of(add):
            if product.get_type_name() == "Multiply":
                found = (constant(product.input_value(i).get_node()) for i in (0, 1))
                yield from (each.reshape(-1) for each in found if each is not None)
