"""The gate kernel as the torch operator `uniecs::gate`.

On the CPU the operator is the plain computation; on a CUDA device it launches kernels/gate.cu on torch's current stream
(`uniecs[kernels]` and nvcc). Its gradient is plain torch on both. Shapes as in fusion.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from uniecs.errors import InputError
from uniecs.kernels.gate import EPSILON, VECTOR_BYTES, check_dim
from uniecs.kernels.launch import GateCall, device_launcher

STORAGE = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}


@torch.library.custom_op("uniecs::gate", mutates_args=(), device_types="cpu")
def gate(x: Tensor, yz: Tensor, u: Tensor, modality_indicator: Tensor, parameters: Tensor, column: int) -> Tensor:
    """LayerNorm, gate and blend after the folded products (`uniecs.kernels.gate.fold_gate`): (B, N, D), of x's dtype.

    `x`, `u` (B, N, D), `yz` (B, N, 2D) of one dtype; `modality_indicator` (B, 2) and `parameters` (4, D), float32;
    `column` 0 for the image's side, 1 for the text's. `u` may be the first columns of a wider product. The CPU also
    takes float64. Raises `InputError`.
    """
    check_operands(x, yz, u, modality_indicator, parameters, column)
    a, g = attended_and_gate(yz, u, modality_indicator, parameters, column)[:2]
    own = x.to(a.dtype)
    return (own + g * (a - own)).to(x.dtype).contiguous()


@gate.register_fake
def _(x: Tensor, yz: Tensor, u: Tensor, modality_indicator: Tensor, parameters: Tensor, column: int) -> Tensor:
    return x.new_empty(x.shape)


@gate.register_kernel("cuda")
def launch(x: Tensor, yz: Tensor, u: Tensor, modality_indicator: Tensor, parameters: Tensor, column: int) -> Tensor:
    """The operator on a CUDA device; as `gate`."""
    check_operands(x, yz, u, modality_indicator, parameters, column)
    if x.dtype not in STORAGE:
        raise InputError(f"the gate kernel stores {', '.join(map(str, STORAGE))}, not {x.dtype}")
    rows, dim = x.shape[0] * x.shape[1], x.shape[2]
    out = x.new_empty(x.shape)
    if rows == 0:
        return out
    x, yz, indicator, parameters = (aligned(each) for each in (x, yz, modality_indicator, parameters))
    flat = u.flatten(0, 1)
    step = VECTOR_BYTES // flat.element_size()
    if flat.stride(1) != 1 or flat.stride(0) % step or flat.stride(0) < dim or flat.data_ptr() % VECTOR_BYTES:
        flat = flat.clone(memory_format=torch.contiguous_format)
    call = GateCall(
        x=x.data_ptr(),
        yz=yz.data_ptr(),
        u=flat.data_ptr(),
        indicator=indicator.data_ptr(),
        parameters=parameters.data_ptr(),
        out=out.data_ptr(),
        rows=rows,
        tokens=x.shape[1],
        dim=dim,
        u_stride=flat.stride(0),
        column=column,
        dtype=STORAGE[x.dtype],
    )
    device = x.device.index
    with torch.cuda.device(device):
        device_launcher(device).launch(call, torch.cuda.current_stream(device).cuda_stream)
    return out


def _save(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    *operands, column = inputs
    ctx.save_for_backward(*operands)
    ctx.column = column  # type: ignore[attr-defined]


def _backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
    x, yz, u, indicator, parameters = ctx.saved_tensors  # type: ignore[attr-defined]
    a, g, y, z, scale = attended_and_gate(yz, u, indicator, parameters, ctx.column)  # type: ignore[attr-defined]
    gamma = parameters[0].to(a.dtype)
    by_out = gradient.to(a.dtype)
    by_a, by_logit = by_out * g, by_out * (a - x.to(a.dtype)) * g * (1 - g)
    by_scale = (by_a * gamma * y + by_logit * z).sum(-1, keepdim=True)
    # scale = (mean(y^2) + eps)^(-1/2)
    by_y = by_a * gamma * scale - by_scale * scale**3 * y / y.shape[-1]
    by_row = by_logit.sum(1)
    seen = (indicator[:, ctx.column, None] != 0).to(a.dtype)  # type: ignore[attr-defined]
    by_parameters = (
        (by_a * y * scale).sum((0, 1)),
        by_a.sum((0, 1)),
        (by_row * (1 - seen)).sum(0),
        (by_row * seen).sum(0),
    )
    return (
        (by_out * (1 - g)).to(x.dtype),
        torch.cat((by_y, by_logit * scale), -1).to(yz.dtype),
        by_logit.to(u.dtype),
        None,
        torch.stack(by_parameters).to(parameters.dtype),
        None,
    )


gate.register_autograd(_backward, setup_context=_save)


def attended_and_gate(
    yz: Tensor, u: Tensor, indicator: Tensor, parameters: Tensor, column: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """LayerNorm's output, the gate, y, z and 1 / std(y), in float32, or float64 where that is the operands' dtype."""
    dtype = torch.promote_types(yz.dtype, torch.float32)
    y, z = yz.to(dtype).chunk(2, -1)
    gamma, beta, absent, there = parameters.to(dtype)
    scale = torch.rsqrt(y.square().mean(-1, keepdim=True) + EPSILON)
    bias = torch.where(indicator[:, column, None, None] != 0, there, absent)
    return y * scale * gamma + beta, torch.sigmoid(u.to(dtype) + z * scale + bias), y, z, scale


def check_operands(
    x: Tensor, yz: Tensor, u: Tensor, modality_indicator: Tensor, parameters: Tensor, column: int
) -> None:
    """Raises `InputError` where shapes, dtypes or devices are not those that `gate` takes."""
    if x.dim() != 3:
        raise InputError(f"x must be (batch, tokens, dim), not {tuple(x.shape)}")
    batch, tokens, dim = x.shape
    check_dim(dim)
    wide = torch.promote_types(x.dtype, torch.float32)
    expected = {
        "yz": (yz, (batch, tokens, 2 * dim), (x.dtype,)),
        "u": (u, (batch, tokens, dim), (x.dtype,)),
        "modality_indicator": (modality_indicator, (batch, 2), (torch.float32, wide)),
        "parameters": (parameters, (4, dim), (torch.float32, wide)),
    }
    for name, (tensor, shape, dtypes) in expected.items():
        if tuple(tensor.shape) != shape or tensor.dtype not in dtypes or tensor.device != x.device:
            raise InputError(
                f"{name} must be {shape}, {dtypes[0]}, on {x.device} for this x; "
                f"got {tuple(tensor.shape)}, {tensor.dtype}, on {tensor.device}"
            )
    if column not in (0, 1):
        raise InputError(f"column must be 0 (image) or 1 (text), not {column}")


def aligned(tensor: Tensor) -> Tensor:
    """The tensor, or a copy of it where its rows do not lie one after the other from a multiple of 16 bytes on."""
    tensor = tensor.contiguous()
    return tensor.clone() if tensor.data_ptr() % VECTOR_BYTES else tensor
