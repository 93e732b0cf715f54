"""The six losses (eq. 8-17) and the adaptive weights (eq. 19): pure functions of unit embeddings.

Every embedding is (N, D) with rows of unit norm; similarity is the dot product; row i of side 1 and row i of side 2
are a pair of similar products. Each loss returns a scalar and is a mean over the N items: eq. 12 and 16 print no
1/N before their sum over i, which alone would make them grow with the batch. Where a product's own three
representations meet (eq. 8, 11, 12) a function takes one side; the training step averages the two sides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

PairLoss = Literal["v2t", "pml", "pdc", "plc", "v2v", "t2t"]
QueryLoss = Literal["q2t", "q2v", "q2f"]
LossName = Literal[PairLoss, QueryLoss]
NAMES: tuple[PairLoss, ...] = get_args(PairLoss)
"""The six components of the paper (eq. 7)."""
QUERY_NAMES: tuple[QueryLoss, ...] = get_args(QueryLoss)
"""Those of two towers (Beyond Text): a query's t against its product's t, v and f."""


@dataclass(frozen=True)
class Representations:
    """Image-only v, text-only t and fused f embeddings of one side of the pairs, each (N, D)."""

    v: Tensor
    t: Tensor
    f: Tensor


def info_nce(query: Tensor, candidate: Tensor, tau: float) -> Tensor:
    """-1/N sum_i log softmax_j(query_i . candidate_j / tau) at j = i: the form of eq. 8, 9, 15 and 17."""
    target = torch.arange(len(query), device=query.device)
    return F.cross_entropy(query @ candidate.T / tau, target)


def v2t(v: Tensor, t: Tensor, tau: float = 0.07) -> Tensor:
    """Visual-textual contrastive loss (eq. 8) of one side."""
    return info_nce(v, t, tau)


def pml(v1: Tensor, t1: Tensor, f1: Tensor, f2: Tensor, tau: float = 0.07) -> Tensor:
    """Product matching loss (eq. 9): f, v and t of the first product, each against the second's f."""
    return info_nce(f1, f2, tau) + info_nce(v1, f2, tau) + info_nce(t1, f2, tau)


def pdc(v: Tensor, t: Tensor, f: Tensor, alpha_2: float = 0.1) -> Tensor:
    """Product distinctiveness consistency loss (eq. 11) of one side; j runs over the other items (j != i)."""
    m2m = f @ f.T
    v2m, t2m = (v * f).sum(1, keepdim=True), (t * f).sum(1, keepdim=True)
    hinges = F.relu(alpha_2 + m2m - v2m) + F.relu(alpha_2 + m2m - t2m)
    return (hinges * _others(len(f), f)).sum() / len(f)


def plc(v: Tensor, t: Tensor, f: Tensor, alpha_3: float = 0.05, k: int = 10) -> Tensor:
    """Product locality consistency loss (eq. 12) of one side, over the k most similar other items by f_i . f_j."""
    if len(f) < 2:
        return f.sum() * 0.0
    m2m = f @ f.T
    near = _nearest_others(m2m, k)
    m2m, v2m, t2m = m2m.gather(1, near), (v @ f.T).gather(1, near), (t @ f.T).gather(1, near)
    gaps = (v2m - m2m, t2m - m2m, v2m - t2m)
    return torch.stack([F.relu(gap.square() - alpha_3) for gap in gaps]).sum(0).mean()


def v2v(v1: Tensor, v2: Tensor, tau_v: float = 0.07, alpha_4: float = 0.2, k: int = 10) -> Tensor:
    """Visual-to-visual loss (eq. 14): InfoNCE (eq. 15) and the k hardest negatives of each item (eq. 16)."""
    standard = info_nce(v1, v2, tau_v)
    if len(v1) < 2:
        return standard
    similarity = v1 @ v2.T
    hardest = similarity.gather(1, _nearest_others(similarity, k))
    return standard + F.relu(alpha_4 + hardest - similarity.diagonal()[:, None]).mean()


def t2t(t1: Tensor, t2: Tensor, tau_t: float = 0.03) -> Tensor:
    """Text-to-text contrastive loss (eq. 17)."""
    return info_nce(t1, t2, tau_t)


def _others(n: int, like: Tensor) -> Tensor:
    return 1 - torch.eye(n, dtype=like.dtype, device=like.device)


def _nearest_others(similarity: Tensor, k: int) -> Tensor:
    """(N, min(k, N-1)) columns of the most similar items, the item itself left out; no gradient."""
    n = len(similarity)
    scores = similarity.detach().clone().fill_diagonal_(-torch.inf)
    return scores.topk(min(k, n - 1), dim=1).indices


def all_losses(one: Representations, two: Representations, names: Sequence[LossName] = NAMES) -> dict[str, Tensor]:
    """The components `names`, for N pairs: side `one` holds the triggers or queries, side `two` their partners."""
    components: dict[LossName, Callable[[], Tensor]] = {
        "v2t": lambda: (v2t(one.v, one.t) + v2t(two.v, two.t)) / 2,
        "pml": lambda: pml(one.v, one.t, one.f, two.f),
        "pdc": lambda: (pdc(one.v, one.t, one.f) + pdc(two.v, two.t, two.f)) / 2,
        "plc": lambda: (plc(one.v, one.t, one.f) + plc(two.v, two.t, two.f)) / 2,
        "v2v": lambda: v2v(one.v, two.v),
        "t2t": lambda: t2t(one.t, two.t),
        "q2t": lambda: info_nce(one.t, two.t, 0.07),
        "q2v": lambda: info_nce(one.t, two.v, 0.07),
        "q2f": lambda: info_nce(one.t, two.f, 0.07),
    }
    return {name: components[name]() for name in names}


def update_weights(weights: Tensor, magnitudes: Tensor, beta: float = 0.5) -> Tensor:
    """Adaptive loss weights of the next step (eq. 19), from the gradient magnitude of each loss.

    weights, magnitudes (n,) -> (n,). g_i is the share of loss i in the sum of magnitudes (0 for all where that is 0).
    As printed, the first term sums to 1, so that the weights' sum would shrink from n to 1; here it is multiplied by
    n, which keeps their mean at 1.
    """
    total = magnitudes.sum()
    shares = magnitudes / total if total > 0 else torch.zeros_like(magnitudes)
    scaled = weights * shares.exp()
    return beta * len(weights) * scaled / scaled.sum() + (1 - beta) * weights
