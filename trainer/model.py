"""The UniECS network: image encoder, text encoder, gated cross-modal fusion (eq. 1-6).

Shapes: B batch, Nv image tokens, Nt text tokens, D = embed_dim. The three submodules are the three exported graphs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig, BertModel, CLIPVisionConfig, CLIPVisionModel, ViTConfig, ViTModel

from uniecs.config import FusionConfig, ModelConfig
from uniecs.errors import ConfigError


class ImageEncoder(nn.Module):
    """(B, 3, H, W) float32 -> image tokens (B, Nv, D): a ViT or CLIP vision backbone, then Proj_v (eq. 1)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.backbone = build_image_backbone(config)
        self.proj = nn.Linear(config.image.hidden, config.embed_dim)

    def forward(self, pixel_values: Tensor, patches: Tensor | None = None) -> Tensor:
        """`patches` (B, n) int64, only in training: the encoder sees these patches of each image alone."""
        if patches is None:
            tokens = self.backbone(pixel_values=pixel_values).last_hidden_state
        else:
            with keep_patches(self.backbone.embeddings, patches):
                tokens = self.backbone(pixel_values=pixel_values).last_hidden_state
        if isinstance(self.backbone, CLIPVisionModel):
            # CLIP normalises only its pooled token; here every token is used.
            tokens = self.backbone.post_layernorm(tokens)
        projected: Tensor = self.proj(tokens)
        return projected


@contextmanager
def keep_patches(embeddings: nn.Module, patches: Tensor) -> Iterator[None]:
    """Within, `embeddings` gives the class token and the tokens of `patches` (B, n), positions included."""

    def keep(_module: nn.Module, _inputs: object, tokens: Tensor) -> Tensor:
        index = torch.cat((torch.zeros_like(patches[:, :1]), patches + 1), dim=1)
        return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[-1]))

    handle = embeddings.register_forward_hook(keep)
    try:
        yield
    finally:
        handle.remove()


class TextEncoder(nn.Module):
    """input_ids, attention_mask (B, Nt) int64 -> text tokens (B, Nt, D): a BERT backbone, then Proj_t (eq. 1)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.backbone = build_text_backbone(config)
        self.proj = nn.Linear(config.text.hidden, config.embed_dim)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        # A 4-d mask is taken as it is: (B, 1, 1, Nt), True where a token may be seen.
        seen = (attention_mask != 0)[:, None, None, :].expand(-1, 1, input_ids.shape[1], -1)
        tokens = self.backbone(input_ids=input_ids, attention_mask=seen).last_hidden_state
        projected: Tensor = self.proj(tokens)
        return projected


def build_image_backbone(config: ModelConfig) -> Any:
    """The image backbone of `config.image`, with random weights."""
    image, p = config.image, config.preprocessing
    dimensions: dict[str, Any] = {
        "hidden_size": image.hidden,
        "num_hidden_layers": image.layers,
        "num_attention_heads": image.heads,
        "intermediate_size": image.intermediate,
        "patch_size": image.patch_px,
    }
    if image.kind == "vit":
        size = (p.height_px, p.width_px)
        return ViTModel(
            ViTConfig(image_size=size, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **dimensions),
            add_pooling_layer=False,
        )
    if p.height_px != p.width_px:
        raise ConfigError(f"a CLIP vision tower takes square images; got {p.height_px}x{p.width_px} px")
    return CLIPVisionModel(CLIPVisionConfig(image_size=p.height_px, **dimensions))


def build_text_backbone(config: ModelConfig) -> Any:
    """The text backbone of `config.text`, with random weights; dropout off (the data are augmented instead)."""
    text = config.text
    return BertModel(
        BertConfig(
            vocab_size=text.vocab_size,
            hidden_size=text.hidden,
            num_hidden_layers=text.layers,
            num_attention_heads=text.heads,
            intermediate_size=text.intermediate,
            max_position_embeddings=text.max_positions,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        ),
        add_pooling_layer=False,
    )


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

    def forward(self, x: Tensor, attended: Tensor, indicator: Tensor) -> Tensor:
        """x, attended (B, N, D), indicator (B, 1, 1) -> gated (B, N, D)."""
        columns = self.linear.weight
        present = F.linear(self.indicator_embedding, columns[:, 2 * self.dim :])
        tokens = F.linear(torch.cat((x, attended), dim=-1), columns[:, : 2 * self.dim], self.linear.bias)
        gate = torch.sigmoid(tokens + indicator * present)
        return gate * attended + (1 - gate) * x


class GatedSide(nn.Module):
    """Eq. 2-5 for one modality: cross-attention, gate, self-attention block."""

    def __init__(self, dim: int, config: FusionConfig) -> None:
        super().__init__()
        self.cross_attention = Attention(dim, config.heads)
        self.norm = nn.LayerNorm(dim)
        self.gate = Gate(dim)
        self.block = Block(dim, config.heads, config.mlp_ratio)

    def forward(
        self, x: Tensor, other: Tensor, x_mask: Tensor | None, other_mask: Tensor | None, indicator: Tensor
    ) -> Tensor:
        attended = self.norm(self.cross_attention(x, other, other_mask))
        out: Tensor = self.block(self.gate(x, attended, indicator), x_mask)
        return out


class Fusion(nn.Module):
    """Image tokens (B, Nv, D), text tokens (B, Nt, D), text mask (B, Nt), indicator (B, 2) -> unit embedding (B, D).

    Columns of the indicator: image, text; 1 = present. The tokens of an absent modality are multiplied by 0 here and
    its text mask is set to ones, per sample, so nothing left in a buffer leaks; its length may be 1.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim, fusion = config.embed_dim, config.fusion
        self.image_sides = nn.ModuleList(GatedSide(dim, fusion) for _ in range(fusion.gated_layers))
        self.text_sides = nn.ModuleList(GatedSide(dim, fusion) for _ in range(fusion.gated_layers))
        self.modality_embedding = nn.Parameter(torch.randn(2, dim) * 0.02)
        self.blocks = nn.ModuleList(Block(dim, fusion.heads, fusion.mlp_ratio) for _ in range(fusion.blocks))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, dim)

    def forward(
        self, image_tokens: Tensor, text_tokens: Tensor, text_mask: Tensor, modality_indicator: Tensor
    ) -> Tensor:
        has_image, has_text = modality_indicator[:, 0, None, None], modality_indicator[:, 1, None, None]
        # where, not a product: an absent buffer may hold NaN or Inf.
        image = torch.where(has_image != 0, image_tokens * has_image, 0.0)
        text = torch.where(has_text != 0, text_tokens * has_text, 0.0)
        seen = (text_mask != 0) | (modality_indicator[:, 1:] == 0)
        mask = seen[:, None, None, :]
        for image_side, text_side in zip(self.image_sides, self.text_sides, strict=True):
            image, text = (
                image_side(image, text, None, mask, has_image),
                text_side(text, image, mask, None, has_text),
            )
        weights = seen.to(text.dtype)[..., None]
        pooled_text = (text * weights).sum(1) / weights.sum(1)
        pair = torch.stack((image.mean(1), pooled_text), dim=1)
        pair = pair + modality_indicator[..., None] * self.modality_embedding
        for block in self.blocks:
            pair = block(pair)
        embedding: Tensor = self.head(self.norm(pair.mean(1))).float()
        return embedding / embedding.square().sum(-1, keepdim=True).clamp_min(1e-24).sqrt()


class UniECS(nn.Module):
    """The whole network; `config` rebuilds it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.image_encoder = ImageEncoder(config)
        self.text_encoder = TextEncoder(config)
        self.fusion = Fusion(config)

    def forward(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor, patches: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(B, 3, H, W), (B, Nt), (B, Nt) -> (v, t, f), each (B, D) of unit norm: image only, text only, both.

        The absent side of v and t is one zero token: exactly the same result as zero tokens of full length.
        `patches` as in `ImageEncoder`.
        """
        image_tokens = self.image_encoder(pixel_values, patches)
        text_tokens = self.text_encoder(input_ids, attention_mask)
        batch = len(image_tokens)
        nothing = image_tokens.new_zeros(batch, 1, self.config.embed_dim)
        one = attention_mask.new_ones(batch, 1)
        indicator = image_tokens.new_tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])[:, None].expand(-1, batch, -1)
        v = self.fusion(image_tokens, nothing, one, indicator[0])
        t = self.fusion(nothing, text_tokens, attention_mask, indicator[1])
        f = self.fusion(image_tokens, text_tokens, attention_mask, indicator[2])
        return v, t, f
