"""The text encoder's graph as the core's `BertEncoder`: its weights, found by the names that they keep."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt

from uniecs._core import BertEncoder, Crew
from uniecs.backends.graph_arrays import linear_of, name_of, split_of, weights_of

FIRST_QUERY = "backbone.encoder.layer.0.attention.self.query"
FOR_EACH_LAYER = {"Softmax": 1, "MatMul": 8, "Erf": 1, "Divide": 1, "MVN": 2}
ONCE_MORE = {"MatMul": 1, "MVN": 1}
"""Beside the layers: the projection, and the embeddings' LayerNorm."""
BESIDE = {
    *("Parameter", "Constant", "Convert", "Result", "ShapeOf", "Range", "Gather", "GatherElements", "Slice", "Concat"),
    *("Unsqueeze", "Broadcast", "Equal", "LogicalNot", "Select", "Add", "Multiply", "Reshape", "Transpose"),
}


def bert_encoder(model: Any, crew: Crew) -> BertEncoder | None:
    """Reads an OpenVINO model; None for an encoder that `BertEncoder` does not take, and on a CPU without AVX2.

    A BERT with another activation than gelu has other operations.
    """
    nodes = model.get_ops()
    epsilons = {node.get_attributes()["eps"] for node in nodes if node.get_type_name() == "MVN"}
    if not _is_bert(Counter(node.get_type_name() for node in nodes)) or len(epsilons) != 1:
        return None
    named = {name_of(node): node for node in nodes if node.get_type_name() == "Constant"}
    products: dict[str, Any] = {}
    width = 0
    for node in nodes:
        layer, product = linear_of(node)
        if product is not None:
            products[f"{layer}.weight"] = product
        if layer == FIRST_QUERY:
            width = max(0, split_of(node)[1])

    def find(wanted: str) -> npt.NDArray[np.float32] | None:  # one by one: in float32 all take twice the room
        if wanted in products:
            return weights_of(products[wanted])
        node = named.get(wanted)
        return None if node is None else node.data.astype(np.float32)

    try:
        return BertEncoder(find, width, epsilons.pop(), crew)
    except ValueError:
        return None


def _is_bert(found: Counter[str]) -> bool:
    layers = found["Softmax"]
    expected = {kind: each * layers + ONCE_MORE.get(kind, 0) for kind, each in FOR_EACH_LAYER.items()}
    return {kind: found[kind] for kind in expected} == expected and found.keys() <= BESIDE | expected.keys()
