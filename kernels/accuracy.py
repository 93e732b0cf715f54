"""The kernel's accuracy rule: it errs at most twice as much as the plain network in the same precision.

Both are held against eq. 2-4 in float64 (`gate.plain_gate`), on random inputs that the storage type represents exactly.
The rule is about what is to be expected, so it takes several draws (`over`): the largest error of one is a single
number of thousands, whose rounding and whose neighbours' may happen to add up, in the plain network as in the kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from uniecs.kernels.gate import Array, GateWeights

ALLOWANCE = 2.0
DRAWS = 8


@dataclass(frozen=True)
class Accuracy:
    """The largest and the root-mean-square error of the kernel and of the plain network, of one draw or `over` some."""

    kernel_max: float
    plain_max: float
    kernel_rms: float
    plain_rms: float

    @property
    def holds(self) -> bool:
        """True where the rule is kept by both measures; NaN anywhere breaks it."""
        return self.kernel_max <= ALLOWANCE * self.plain_max and self.kernel_rms <= ALLOWANCE * self.plain_rms


def compare(reference: Array, plain: Array, kernel: Array) -> Accuracy:
    """The errors of `plain` and `kernel` against `reference` (float64), arrays of one shape."""
    errors = [np.abs(each.astype(np.float64) - reference) for each in (kernel, plain)]
    of_kernel, of_plain = errors
    rms_kernel, rms_plain = (float(np.sqrt(np.square(each).mean())) for each in errors)
    return Accuracy(float(of_kernel.max()), float(of_plain.max()), rms_kernel, rms_plain)


def fresh_seeds() -> list[int]:
    """For as many draws as the rule takes, others at each call."""
    return [int(seed) for seed in np.random.SeedSequence().generate_state(DRAWS)]


def over(draws: Sequence[Accuracy]) -> Accuracy:
    """The measures over draws of one size: the mean of their largest errors, and the root mean square of all errors."""

    def mean(name: str) -> float:
        return float(np.mean([getattr(each, name) for each in draws]))

    def rms(name: str) -> float:
        return float(np.sqrt(np.mean([getattr(each, name) ** 2 for each in draws])))

    return Accuracy(mean("kernel_max"), mean("plain_max"), rms("kernel_rms"), rms("plain_rms"))


def random_weights(dim: int, rng: np.random.Generator, mean: float = 0.0) -> GateWeights:
    """Weights of a gate that opens and shuts; `mean` shifts the projection, in units of its standard deviation."""

    def matrix(columns: int) -> Array:
        drawn: Array = rng.standard_normal((dim, columns)) / np.sqrt(dim)
        return drawn

    return GateWeights(
        projection_weight=matrix(dim),
        projection_bias=rng.standard_normal(dim) * 0.1 + mean,
        norm_weight=1 + 0.2 * rng.standard_normal(dim),
        norm_bias=0.2 * rng.standard_normal(dim),
        gate_weight=matrix(3 * dim),
        gate_bias=0.2 * rng.standard_normal(dim),
        indicator_embedding=rng.standard_normal(dim),
    )
