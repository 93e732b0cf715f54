"""The paper's losses and weight update, transcribed term by term in float64 with Python loops.

Written from the equations alone, separately from `uniecs.trainer.losses`, and slow on purpose: every
similarity is summed coordinate by coordinate, every sum of an equation is one loop. Values are float64 torch
scalars, so autograd differentiates the transcription itself. Embeddings are (N, D). In eq. 9 and 16 the print
repeats the outer index inside the inner sum; it is read as j. Sums over a neighbourhood are divided by its
size, and eq. 12 and 16 are means over i like the rest.

Functions with hinges append the argument of each max(0, .) to `hinges`: a test sees which were active.
"""

from __future__ import annotations

import math

from torch import Tensor, exp, float64, log, tensor


def zero() -> Tensor:
    return tensor(0.0, dtype=float64)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """a . b for two (D,) rows."""
    total = zero()
    for x, y in zip(a, b, strict=True):
        total = total + x * y
    return total


def table(a: Tensor, b: Tensor) -> list[list[Tensor]]:
    """All similarities: entry [i][j] is a_i . b_j."""
    return [[dot(row, column) for column in b] for row in a]


def hinge(argument: Tensor, hinges: list[float] | None) -> Tensor:
    """max(0, argument)."""
    if hinges is not None:
        hinges.append(argument.item())
    return argument if argument.item() > 0 else zero()


def log_softmax_entry(s: list[list[Tensor]], i: int, tau: float) -> Tensor:
    """log( exp(s_ii / tau) / sum_j exp(s_ij / tau) )."""
    denominator = zero()
    for j in range(len(s)):
        denominator = denominator + exp(s[i][j] / tau)
    return log(exp(s[i][i] / tau) / denominator)


def nearest(s: list[list[Tensor]], i: int, k: int) -> list[int]:
    """The k largest s_ij over j != i (all of them where there are fewer)."""
    others = [j for j in range(len(s)) if j != i]
    return sorted(others, key=lambda j: s[i][j].item(), reverse=True)[:k]


def info_nce(s: list[list[Tensor]], tau: float) -> Tensor:
    n = len(s)
    total = zero()
    for i in range(n):
        total = total + log_softmax_entry(s, i, tau)
    return -total / n


def v2t(v: Tensor, t: Tensor, tau: float = 0.07) -> Tensor:
    """Eq. 8."""
    return info_nce(table(v, t), tau)


def pml(v1: Tensor, t1: Tensor, f1: Tensor, f2: Tensor, tau: float = 0.07) -> Tensor:
    """Eq. 9."""
    n = len(f1)
    f_f, v_f, t_f = table(f1, f2), table(v1, f2), table(t1, f2)
    total = zero()
    for i in range(n):
        total = total + log_softmax_entry(f_f, i, tau)
        total = total + log_softmax_entry(v_f, i, tau)
        total = total + log_softmax_entry(t_f, i, tau)
    return -total / n


def pdc(v: Tensor, t: Tensor, f: Tensor, alpha_2: float = 0.1, hinges: list[float] | None = None) -> Tensor:
    """Eq. 11."""
    n = len(f)
    m2m, v2m, t2m = table(f, f), table(v, f), table(t, f)
    total = zero()
    for i in range(n):
        for j in range(n):
            if j != i:
                total = total + hinge(alpha_2 + m2m[i][j] - v2m[i][i], hinges)
                total = total + hinge(alpha_2 + m2m[i][j] - t2m[i][i], hinges)
    return total / n


def plc(
    v: Tensor, t: Tensor, f: Tensor, alpha_3: float = 0.05, k: int = 10, hinges: list[float] | None = None
) -> Tensor:
    """Eq. 12."""
    n = len(f)
    m2m, v2m, t2m = table(f, f), table(v, f), table(t, f)
    total = zero()
    for i in range(n):
        neighbours = nearest(m2m, i, k)
        inner = zero()
        for j in neighbours:
            inner = inner + hinge(-alpha_3 + (v2m[i][j] - m2m[i][j]) ** 2, hinges)
            inner = inner + hinge(-alpha_3 + (t2m[i][j] - m2m[i][j]) ** 2, hinges)
            inner = inner + hinge(-alpha_3 + (v2m[i][j] - t2m[i][j]) ** 2, hinges)
        total = total + inner / len(neighbours)
    return total / n


def v2v(
    v1: Tensor,
    v2: Tensor,
    tau_v: float = 0.07,
    alpha_4: float = 0.2,
    k: int = 10,
    hinges: list[float] | None = None,
) -> Tensor:
    """Eq. 14: eq. 15 + eq. 16."""
    n = len(v1)
    s = table(v1, v2)
    hard = zero()
    for i in range(n):
        negatives = nearest(s, i, k)
        inner = zero()
        for j in negatives:
            inner = inner + hinge(alpha_4 + s[i][j] - s[i][i], hinges)
        hard = hard + inner / len(negatives)
    return info_nce(s, tau_v) + hard / n


def t2t(t1: Tensor, t2: Tensor, tau_t: float = 0.03) -> Tensor:
    """Eq. 17."""
    return info_nce(table(t1, t2), tau_t)


def update_weights(weights: list[float], magnitudes: list[float], beta: float = 0.5) -> list[float]:
    """Eq. 19, its first term times the number of losses, so that weights of mean 1 keep their mean."""
    n = len(weights)
    whole = sum(magnitudes)
    g = [magnitude / whole if whole > 0 else 0.0 for magnitude in magnitudes]
    denominator = 0.0
    for k in range(n):
        denominator += weights[k] * math.exp(g[k])
    return [beta * n * weights[i] * math.exp(g[i]) / denominator + (1 - beta) * weights[i] for i in range(n)]
