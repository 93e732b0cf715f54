"""Fusion of image and text tokens to one embedding: the paper's gate (eq. 2-6), and what it is compared with.

Shapes: B batch, Nv image tokens, Nt text tokens, D = embed_dim. Whatever the kind, an embedding depends neither on its
batch mates nor on what lies in the buffer of an absent modality, whose length may be 1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uniecs.config import FusionConfig, ModelConfig

GATE_BIAS = -4.0
"""Where the gate starts: nearly shut (sigmoid(-4) = 0.02), as in highway networks, so that a modality first learns by
itself; from a half-open one (0) it learns more slowly (docs/training.md)."""


class Attention(nn.Module):
    """Multi-head attention of (B, Nq, D) over (B, Nk, D); `mask` (B, 1, 1, Nk) is True where a key may be seen."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, query: Tensor, memory: Tensor, mask: Tensor | None) -> Tensor:
        q = self.q(query).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(memory).unflatten(-1, (2 * self.heads, -1)).transpose(1, 2).chunk(2, dim=1)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        out: Tensor = self.out(attended.transpose(1, 2).flatten(2))
        return out


class Block(nn.Module):
    """A pre-LN Transformer block: self-attention and feed-forward, each with its residual."""

    def __init__(self, dim: int, heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, mlp_ratio * dim), nn.GELU(), nn.Linear(mlp_ratio * dim, dim))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, mask)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class Gate(nn.Module):
    """Eq. 3-4: G = sigmoid(W[X; A; E] + b), then G * A + (1 - G) * X, with E = indicator * a learned D-vector.

    W is stored whole as (D, 3D) and applied in its columns: the part of E is one vector per sample, not per token.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.indicator_embedding = nn.Parameter(torch.randn(dim) * 0.02)
        self.linear = nn.Linear(3 * dim, dim)
        nn.init.constant_(self.linear.bias, GATE_BIAS)

    def forward(self, x: Tensor, attended: Tensor, indicator: Tensor) -> Tensor:
        """x, attended (B, N, D), indicator (B, 1, 1) -> gated (B, N, D)."""
        columns = self.linear.weight
        present = F.linear(self.indicator_embedding, columns[:, 2 * self.dim :])
        tokens = F.linear(torch.cat((x, attended), dim=-1), columns[:, : 2 * self.dim], self.linear.bias)
        gate = torch.sigmoid(tokens + indicator * present)
        return gate * attended + (1 - gate) * x


class GatedSide(nn.Module):
    """Eq. 2-5 for one modality: cross-attention, gate, self-attention block; `additive` adds in the gate's place."""

    def __init__(self, dim: int, config: FusionConfig) -> None:
        super().__init__()
        self.cross_attention = Attention(dim, config.heads)
        self.norm = nn.LayerNorm(dim)
        self.gate = Gate(dim) if config.kind == "gated" else None
        self.block = Block(dim, config.heads, config.mlp_ratio)

    def forward(
        self, x: Tensor, other: Tensor, x_mask: Tensor | None, other_mask: Tensor | None, indicator: Tensor
    ) -> Tensor:
        attended = self.norm(self.cross_attention(x, other, other_mask))
        mixed = x + attended if self.gate is None else self.gate(x, attended, indicator)
        out: Tensor = self.block(mixed, x_mask)
        return out


class GatedFusion(nn.Module):
    """Eq. 2-6: image tokens (B, Nv, D), text tokens (B, Nt, D), text mask (B, Nt), indicator (B, 2) -> unit (B, D).

    Columns of the indicator: image, text; 1 = present.
    """

    def __init__(self, dim: int, config: FusionConfig) -> None:
        super().__init__()
        self.image_sides = nn.ModuleList(GatedSide(dim, config) for _ in range(config.gated_layers))
        self.text_sides = nn.ModuleList(GatedSide(dim, config) for _ in range(config.gated_layers))
        self.modality_embedding, self.blocks, self.norm, self.head = trunk(dim, config)

    def forward(
        self, image_tokens: Tensor, text_tokens: Tensor, text_mask: Tensor, modality_indicator: Tensor
    ) -> Tensor:
        image, text, seen = present(image_tokens, text_tokens, text_mask, modality_indicator)
        has_image, has_text = modality_indicator[:, 0, None, None], modality_indicator[:, 1, None, None]
        mask = seen[:, None, None, :]
        for image_side, text_side in zip(self.image_sides, self.text_sides, strict=True):
            image, text = (
                image_side(image, text, None, mask, has_image),
                text_side(text, image, mask, None, has_text),
            )
        pair = torch.stack((image.mean(1), masked_mean(text, seen)), dim=1)
        pair = pair + modality_indicator[..., None] * self.modality_embedding
        for block in self.blocks:
            pair = block(pair)
        return unit(self.head(self.norm(pair.mean(1))))


class FeatureFusion(nn.Module):
    """CLIP with feature fusion (UniIR's CLIP_FF): a Transformer over all tokens, and their mean; as `GatedFusion`."""

    def __init__(self, dim: int, config: FusionConfig) -> None:
        super().__init__()
        self.modality_embedding, self.blocks, self.norm, self.head = trunk(dim, config)

    def forward(
        self, image_tokens: Tensor, text_tokens: Tensor, text_mask: Tensor, modality_indicator: Tensor
    ) -> Tensor:
        image, text, seen = present(image_tokens, text_tokens, text_mask, modality_indicator)
        tokens = torch.cat((image + self.modality_embedding[0], text + self.modality_embedding[1]), dim=1)
        has_image, has_text = modality_indicator[:, :1] != 0, modality_indicator[:, 1:] != 0
        # With neither, the image's zeros are seen: no row is masked wholly.
        kept = torch.cat(((has_image | ~has_text).expand(-1, image.shape[1]), seen & has_text), dim=1)
        for block in self.blocks:
            tokens = block(tokens, kept[:, None, None, :])
        return unit(self.head(self.norm(masked_mean(tokens, kept))))


class ScoreFusion(nn.Module):
    """CLIP with score fusion (UniIR's CLIP_SF): a unit embedding of each modality, and their sum; as `GatedFusion`.

    The product of two such sums is the sum of the four similarities, up to its norm.
    """

    def __init__(self, dim: int, config: FusionConfig) -> None:
        super().__init__()
        self.image_norm, self.text_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.image_head, self.text_head = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(
        self, image_tokens: Tensor, text_tokens: Tensor, text_mask: Tensor, modality_indicator: Tensor
    ) -> Tensor:
        image, text, seen = present(image_tokens, text_tokens, text_mask, modality_indicator)
        v = unit(self.image_head(self.image_norm(image.mean(1))))
        t = unit(self.text_head(self.text_norm(masked_mean(text, seen))))
        return unit(v * modality_indicator[:, :1] + t * modality_indicator[:, 1:])


def trunk(dim: int, config: FusionConfig) -> tuple[nn.Parameter, nn.ModuleList, nn.LayerNorm, nn.Linear]:
    """A (2, D) embedding of the modalities, the Transformer blocks, and the head with its norm."""
    modality_embedding = nn.Parameter(torch.randn(2, dim) * 0.02)
    blocks = nn.ModuleList(Block(dim, config.heads, config.mlp_ratio) for _ in range(config.blocks))
    return modality_embedding, blocks, nn.LayerNorm(dim), nn.Linear(dim, dim)


def build_fusion(config: ModelConfig) -> nn.Module:
    """The fusion of `config.fusion.kind`, with random weights."""
    kinds: dict[str, type[GatedFusion | FeatureFusion | ScoreFusion]] = {
        "gated": GatedFusion,
        "additive": GatedFusion,
        "feature": FeatureFusion,
        "score": ScoreFusion,
    }
    return kinds[config.fusion.kind](config.embed_dim, config.fusion)


def present(
    image_tokens: Tensor, text_tokens: Tensor, text_mask: Tensor, modality_indicator: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The tokens, zeros where their modality is absent, and (B, Nt) bool: which text tokens are seen.

    An absent text's mask is all ones, so that no row is masked wholly.
    """
    has_image, has_text = modality_indicator[:, 0, None, None], modality_indicator[:, 1, None, None]
    # where, not a product: an absent buffer may hold NaN or Inf.
    image = torch.where(has_image != 0, image_tokens * has_image, 0.0)
    text = torch.where(has_text != 0, text_tokens * has_text, 0.0)
    return image, text, (text_mask != 0) | (modality_indicator[:, 1:] == 0)


def masked_mean(tokens: Tensor, seen: Tensor) -> Tensor:
    """(B, N, D), (B, N) bool -> (B, D): the mean of the tokens that are seen."""
    weights = seen.to(tokens.dtype)[..., None]
    return (tokens * weights).sum(1) / weights.sum(1)


def unit(x: Tensor) -> Tensor:
    """Rows divided by their L2 norm, in float32."""
    x = x.float()
    return x / x.square().sum(-1, keepdim=True).clamp_min(1e-24).sqrt()
