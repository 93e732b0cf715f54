"""How far an engine may be from torch in float32, for each precision: the one place where this is decided.

The figures that they are set by stand in docs/export.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Tolerance:
    """`cosine`: the least cosine of a vector, whole, with the true one, however it is batched, padded or accompanied.

    `overlap`: the least share of a product's ten nearest neighbours that are the same as in float32.
    """

    cosine: float
    overlap: float

    @property
    def length(self) -> float:
        """Largest |length ratio - 1| of a vector: the relative error that, sideways, would just reach `cosine`."""
        return math.sqrt(2 * (1 - self.cosine))


TOLERANCES: Mapping[str, Tolerance] = {
    "fp32": Tolerance(cosine=1 - 1e-6, overlap=0.99),
    "fp16": Tolerance(cosine=0.9995, overlap=0.9),
    "bf16": Tolerance(cosine=0.9995, overlap=0.9),
    "int8": Tolerance(cosine=0.985, overlap=0.9),
}
