"""The gated fusion rebuilt for inference around the operator `uniecs::gate`: half the products, each twice as wide."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uniecs.errors import InputError
from uniecs.kernels.gate import GateWeights, fold_gate
from uniecs.trainer.fusion import Attention, GatedFusion, GatedSide, masked_mean, present, unit
from uniecs.trainer.gate_op import gate


def gate_weights(side: GatedSide) -> GateWeights:
    """What `fold_gate` folds, of one gated side; raises `InputError` for a side without a gate."""
    if side.gate is None:
        raise InputError("this side adds in the gate's place: there is nothing to fold")
    tensors = (
        side.cross_attention.out.weight,
        side.cross_attention.out.bias,
        side.norm.weight,
        side.norm.bias,
        side.gate.linear.weight,
        side.gate.linear.bias,
        side.gate.indicator_embedding,
    )
    return GateWeights(*(np.asarray(each.detach().double().cpu()) for each in tensors))


class FoldedSide(nn.Module):
    """One `GatedSide` as two products, its attention, the operator and its block; `column` as the operator's.

    The first product makes all projections of the side's tokens, [W1 x | q | k | v], the last two for the other side's
    attention; the second makes [y | z] from the attention's output.
    """

    own_weight: Tensor
    own_bias: Tensor
    attended_weight: Tensor
    attended_bias: Tensor
    gate_parameters: Tensor

    def __init__(self, side: GatedSide, other: Attention, column: int, dtype: torch.dtype) -> None:
        super().__init__()
        attention, folded = side.cross_attention, fold_gate(gate_weights(side))
        self.column, self.heads = column, attention.heads
        self.block = copy.deepcopy(side.block).to(dtype)
        linears = (attention.q, other.kv)
        own = np.concatenate((folded.own_weight, *(np.asarray(each.weight.detach().cpu()) for each in linears)))
        bias = np.concatenate((np.zeros(len(own) // 4), *(np.asarray(each.bias.detach().cpu()) for each in linears)))
        for name, array in (("own_weight", own), ("own_bias", bias)):
            self.register_buffer(name, torch.from_numpy(array).to(dtype))
        for name in ("attended_weight", "attended_bias"):
            self.register_buffer(name, torch.from_numpy(getattr(folded, name)).to(dtype))
        self.register_buffer("gate_parameters", torch.from_numpy(folded.parameters).float())

    def project(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, 4D)."""
        return F.linear(x, self.own_weight, self.own_bias)

    def forward(
        self, x: Tensor, own: Tensor, other: Tensor, x_mask: Tensor | None, other_mask: Tensor | None, indicator: Tensor
    ) -> Tensor:
        """Tokens (B, N, D), both sides' `project`ions, masks as in fusion.py, indicator (B, 2) -> tokens."""
        u, q, _, _ = own.chunk(4, -1)
        _, _, k, v = other.chunk(4, -1)
        q, k, v = (each.view(*each.shape[:2], self.heads, -1).transpose(1, 2) for each in (q, k, v))
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=other_mask).transpose(1, 2).flatten(2)
        yz = F.linear(attended, self.attended_weight, self.attended_bias)
        out: Tensor = self.block(gate(x, yz, u, indicator, self.gate_parameters, self.column), x_mask)
        return out


class FoldedFusion(nn.Module):
    """A trained `GatedFusion` for inference, with its inputs and output; tokens are computed in `dtype`.

    The weights are copies, folded in float64. Move it with `.to(device)`; another precision is another fold. Raises
    `InputError` for a fusion without gates or of a width the kernel does not take.
    """

    def __init__(self, fusion: GatedFusion, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        pairs = cast(list[tuple[GatedSide, GatedSide]], [*zip(fusion.image_sides, fusion.text_sides, strict=True)])
        self.image_sides = nn.ModuleList(FoldedSide(i, t.cross_attention, 0, dtype) for i, t in pairs)
        self.text_sides = nn.ModuleList(FoldedSide(t, i.cross_attention, 1, dtype) for i, t in pairs)
        self.dtype = dtype
        self.modality_embedding = nn.Parameter(fusion.modality_embedding.detach().to(dtype))
        self.blocks = copy.deepcopy(fusion.blocks).to(dtype)
        self.norm, self.head = copy.deepcopy(fusion.norm).to(dtype), copy.deepcopy(fusion.head).to(dtype)

    @torch.no_grad()
    def forward(
        self, image_tokens: Tensor, text_tokens: Tensor, text_mask: Tensor, modality_indicator: Tensor
    ) -> Tensor:
        """As `GatedFusion.forward`."""
        image, text, seen = present(image_tokens, text_tokens, text_mask, modality_indicator)
        image, text, mask = image.to(self.dtype), text.to(self.dtype), seen[:, None, None, :]
        sides = zip(self.image_sides, self.text_sides, strict=True)
        for image_side, text_side in cast(Iterable[tuple[FoldedSide, FoldedSide]], sides):
            of_image, of_text = image_side.project(image), text_side.project(text)
            image, text = (
                image_side(image, of_image, of_text, None, mask, modality_indicator),
                text_side(text, of_text, of_image, mask, None, modality_indicator),
            )
        pair = torch.stack((image.mean(1), masked_mean(text, seen)), dim=1)
        pair = pair + modality_indicator[..., None].to(self.dtype) * self.modality_embedding
        for block in self.blocks:
            pair = block(pair)
        return unit(self.head(self.norm(pair.mean(1))))
