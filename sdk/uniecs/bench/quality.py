"""What a precision costs in quality: its embeddings, and the neighbours they find, against those of fp32."""

from __future__ import annotations

from typing import Any

import numpy as np

from uniecs.bench.inputs import Vectors
from uniecs.bench.scenarios import KINDS, Bench, K

FP32 = "fp32"


def compare_precisions(bench: Bench) -> list[dict[str, Any]]:
    """For each precision beside fp32 and each modality, over drawn products: cosine, and recall of fp32's ten nearest.

    A query is a product's text, photo or both, the candidates are all products by both; queries and candidates are
    embedded in the same precision, as an index of it would hold them.
    """
    from uniecs.drawn_catalog import draw, drawn_products

    products = drawn_products()
    products = products[:: max(1, len(products) // bench.effort.compared)][: bench.effort.compared]
    titles, photos = [each.title for each in products], [draw(each.look) for each in products]
    sides: dict[str, dict[str, Any]] = {"text": {"texts": titles}, "image": {"images": photos}}
    sides["both"] = {**sides["text"], **sides["image"]}
    made = {
        precision: {kind: np.asarray(encoder.encode(**sides[kind]), np.float32) for kind in KINDS}
        for precision, encoder in bench.encoders.items()
    }
    if FP32 not in made:
        bench.left_out["quality"] = "there is no fp32 to compare with"
        return []
    nearest = {name: {kind: _nearest(found[kind], found["both"]) for kind in KINDS} for name, found in made.items()}
    return [
        {
            "precision": precision,
            "kind": kind,
            "products": len(products),
            **_cosine(made[precision][kind], made[FP32][kind]),
            f"recall_at_{K}": overlap(nearest[precision][kind], nearest[FP32][kind]),
        }
        for precision in made
        if precision != FP32
        for kind in KINDS
    ]


def _cosine(one: Vectors, other: Vectors) -> dict[str, float]:
    cosines = (one * other).sum(axis=1)
    return {"cosine_mean": float(cosines.mean()), "cosine_min": float(cosines.min())}


def _nearest(queries: Vectors, candidates: Vectors) -> Any:
    """Places (n, K) of the most similar."""
    return np.argsort(-(queries @ candidates.T), axis=1, kind="stable")[:, :K]


def overlap(found: Any, exact: Any) -> float:
    """Share of the rows of `exact` (n, k) that are in the same line of `found` (n, k)."""
    pairs = zip(found.tolist(), exact.tolist(), strict=True)
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in pairs]))
