"""The gate of eq. 2-4 in NumPy: as the paper has it, folded into matrix products, and what the kernel makes of these.

The kernel's contract (gate.cu has an entry point for each storage type and number of vectors a lane, `entry_point`):

| argument | type | what it is |
|---|---|---|
| x | T* | (rows, D): the side's own tokens |
| yz | T* | (rows, 2D): y = the attention's output, projected and centred (its mean over D is 0); z = W2 diag(gamma) y |
| u | T* | rows of D numbers, `u_stride` apart: W1 x |
| indicator | float* | (rows / tokens, 2): 0 or 1 for image and text, as the model's `modality_indicator` |
| parameters | float* | (4, D): gamma, beta, the gate's bias where the side is absent, and where it is present |
| rows, tokens | int32 | B N, and N: row r belongs to sample r // N |
| dim, u_stride | int32 | D, a multiple of 64 up to 1024; at least D and a multiple of 16 bytes |
| column | int32 | the side: 0 image, 1 text |
| out | T* | (rows, D); overlaps no input |

T is fp16, bf16 or fp32, the arithmetic fp32. Every T* is aligned to 16 bytes, so every load is of 16 bytes. One warp
makes a row; blocks have `THREADS` threads, the grid is `grid(rows)`, and there is no dynamic shared memory.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from uniecs.errors import InputError

Array: TypeAlias = npt.NDArray[Any]

EPSILON = 1e-5  # of LayerNorm; gate_row.cuh has the same
THREADS, LANES, VECTOR_BYTES = 128, 32, 16
MAX_DIM, DIM_STEP = 1024, 64
ITEM_BYTES = {"fp16": 2, "bf16": 2, "fp32": 4}
# The kernels there are, by vectors a lane; gate_row.cuh has the same.
VECTORS = {"fp16": (1, 2, 3, 4), "bf16": (1, 2, 3, 4), "fp32": (1, 2, 3, 4, 6, 8)}


@dataclass(frozen=True)
class GateWeights:
    """One gated side from its attention's output projection on, as the network stores it (D = embed_dim).

    Matrices have one row for each output, as torch's. `gate_weight` is (D, 3D): W1, W2, W3 for the side's own tokens,
    the attended ones and the indicator's embedding. Raises `InputError` where a shape does not fit.
    """

    projection_weight: Array
    projection_bias: Array
    norm_weight: Array
    norm_bias: Array
    gate_weight: Array
    gate_bias: Array
    indicator_embedding: Array

    def __post_init__(self) -> None:
        dim = self.dim
        expected: dict[str, tuple[int, ...]] = {field.name: (dim,) for field in fields(self)}
        expected |= {"projection_weight": (dim, dim), "gate_weight": (dim, 3 * dim)}
        for name, shape in expected.items():
            got = getattr(self, name).shape
            if got != shape:
                raise InputError(f"{name} has shape {got}; a gate of {dim} dimensions needs {shape}")

    @property
    def dim(self) -> int:
        """D."""
        return len(self.norm_weight)


@dataclass(frozen=True)
class FoldedGate:
    """The operands of the kernel's GEMMs and its parameters, float64.

    `attended_weight` (2D, D), `attended_bias` (2D,): yz = attention output times the transpose, plus the bias.
    `own_weight` (D, D): u = x times the transpose; it has no bias, so it joins the other projections of x.
    `parameters` (4, D): as the kernel takes them, in float32.
    """

    attended_weight: Array
    attended_bias: Array
    own_weight: Array
    parameters: Array


def fold_gate(weights: GateWeights) -> FoldedGate:
    """Fold LayerNorm into the projection before it and the gate behind it; exact but for rounding.

    LayerNorm subtracts the mean over D. That is a projection, so it is made once, on the weights: y = C(O a + o) with
    C = I - 1/D. LayerNorm(O a + o) is then gamma y / std(y) + beta, one number for a row, and W2 of it is
    (W2 gamma y) / std(y) + W2 beta. Were the mean left to the kernel, z would hold W2 gamma mean(y), to be taken off
    again: where the mean is large against std(y), the difference of two large rounded numbers.
    """
    w = {field.name: getattr(weights, field.name).astype(np.float64) for field in fields(weights)}
    own, attended, indicator = np.split(w["gate_weight"], 3, axis=1)
    projection = np.column_stack((w["projection_weight"], w["projection_bias"]))
    y = projection - projection.mean(axis=0)
    yz = np.concatenate((y, (attended * w["norm_weight"]) @ y))
    absent = w["gate_bias"] + attended @ w["norm_bias"]
    present = absent + indicator @ w["indicator_embedding"]
    parameters = np.stack((w["norm_weight"], w["norm_bias"], absent, present))
    return FoldedGate(yz[:, :-1], yz[:, -1], own, parameters)


def plain_gate(weights: GateWeights, x: Array, attention: Array, indicator: Array) -> Array:
    """Eq. 2 from the attention's output on, 3 and 4, as they are printed.

    `x`, `attention` (B, N, D), `indicator` (B,), 0 or 1 -> (B, N, D). Computed in the dtype of the arrays.
    """
    projected = attention @ weights.projection_weight.T + weights.projection_bias
    centred = projected - projected.mean(-1, keepdims=True)
    scale = 1 / np.sqrt(np.square(centred).mean(-1, keepdims=True) + EPSILON)
    attended = centred * scale * weights.norm_weight + weights.norm_bias
    embedding = np.broadcast_to(indicator[:, None, None] * weights.indicator_embedding, x.shape)
    gate = sigmoid(np.concatenate((x, attended, embedding), -1) @ weights.gate_weight.T + weights.gate_bias)
    mixed: Array = gate * attended + (1 - gate) * x
    return mixed


def folded_products(folded: FoldedGate, x: Array, attention: Array) -> tuple[Array, Array]:
    """The GEMMs before the kernel: `x`, `attention` (B, N, D) -> yz (B, N, 2D), u (B, N, D)."""
    return attention @ folded.attended_weight.T + folded.attended_bias, x @ folded.own_weight.T


def gate_rows(x: Array, yz: Array, u: Array, indicator: Array, parameters: Array, column: int) -> Array:
    """What the kernel computes, in the dtype of the arrays (float64 for a reference).

    `x`, `u` (B, N, D), `yz` (B, N, 2D), `indicator` (B, 2), `parameters` (4, D), `column` 0 or 1 -> (B, N, D).
    """
    gamma, beta, absent, present = parameters
    y, z = np.split(yz, 2, axis=-1)
    scale = 1 / np.sqrt(np.square(y).mean(-1, keepdims=True) + EPSILON)
    bias = np.where(indicator[:, column, None, None] != 0, present, absent)
    mixed: Array = x + sigmoid(u + z * scale + bias) * (y * scale * gamma + beta - x)
    return mixed


def sigmoid(logits: Array) -> Array:
    """1 / (1 + exp(-logits)), without overflow."""
    return np.exp(-np.logaddexp(0, -logits))


def check_dim(dim: int) -> None:
    """Raises `InputError` where no kernel takes rows of `dim` numbers."""
    if dim % DIM_STEP or not DIM_STEP <= dim <= MAX_DIM:
        raise InputError(f"the gate kernel takes a multiple of {DIM_STEP} up to {MAX_DIM} dimensions, not {dim}")


def entry_point(dtype: str, dim: int) -> str:
    """The kernel for rows of `dim` numbers of `dtype` (a key of `ITEM_BYTES`); raises `InputError`."""
    check_dim(dim)
    if dtype not in ITEM_BYTES:
        raise InputError(f"the gate kernel stores {', '.join(ITEM_BYTES)}, not {dtype!r}")
    needed = -(-dim * ITEM_BYTES[dtype] // (VECTOR_BYTES * LANES))
    vectors = min(each for each in VECTORS[dtype] if each >= needed)
    return f"uniecs_gate_{dtype}_x{vectors}"


def grid(rows: int) -> int:
    """Blocks of `THREADS` threads for so many rows, one warp a row."""
    return -(-rows * LANES // THREADS)
