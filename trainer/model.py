"""The UniECS network: image encoder, text encoder (eq. 1), and a fusion (fusion.py; eq. 2-6).

Shapes: B batch, Nv image tokens, Nt text tokens, D = embed_dim. The three submodules are the three exported graphs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel, CLIPVisionConfig, CLIPVisionModel, ViTConfig, ViTModel

from uniecs.config import USUAL, Functions, ModelConfig
from uniecs.errors import ConfigError
from uniecs.trainer.fusion import build_fusion


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
        **functions(image, image.kind),
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
            **functions(text, "bert"),
        ),
        add_pooling_layer=False,
    )


def functions(given: Functions, kind: str) -> dict[str, Any]:
    """A backbone's activation and LayerNorm epsilon, `kind`'s where none is given, by transformers' names."""
    usual = USUAL[kind]
    return {
        "hidden_act": given.activation or usual.activation,
        "layer_norm_eps": given.layer_norm_eps or usual.layer_norm_eps,
    }


class UniECS(nn.Module):
    """The whole network; `config` rebuilds it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.image_encoder = ImageEncoder(config)
        self.text_encoder = TextEncoder(config)
        self.fusion = build_fusion(config)

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        patches: Tensor | None = None,
        has_image: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(B, 3, H, W), (B, Nt), (B, Nt) -> (v, t, f), each (B, D) of unit norm: image only, text only, both.

        The absent side of v and t is one zero token: exactly the same result as zero tokens of full length.
        `patches` as in `ImageEncoder`. `has_image` (B,) bool, None for all: the pixels of the others are not looked at,
        their f is their t, and their v means nothing.
        """
        image_tokens = self._image_tokens(pixel_values, patches, has_image)
        text_tokens = self.text_encoder(input_ids, attention_mask)
        batch = len(image_tokens)
        nothing = image_tokens.new_zeros(batch, 1, self.config.embed_dim)
        one = attention_mask.new_ones(batch, 1)
        no, yes = image_tokens.new_zeros(batch), image_tokens.new_ones(batch)
        seen = yes if has_image is None else has_image.to(yes.dtype)
        v = self.fusion(image_tokens, nothing, one, torch.stack((seen, no), dim=1))
        t = self.fusion(nothing, text_tokens, attention_mask, torch.stack((no, yes), dim=1))
        f = self.fusion(image_tokens, text_tokens, attention_mask, torch.stack((seen, yes), dim=1))
        return v, t, f

    def _image_tokens(self, pixel_values: Tensor, patches: Tensor | None, has_image: Tensor | None) -> Tensor:
        """(B, Nv, D), zeros for the rows without an image, which the encoder does not see."""
        if has_image is None:
            tokens: Tensor = self.image_encoder(pixel_values, patches)
            return tokens
        rows = has_image.nonzero().squeeze(1)
        if not len(rows):
            return pixel_values.new_zeros(len(has_image), 1, self.config.embed_dim)
        tokens = self.image_encoder(pixel_values[rows], None if patches is None else patches[rows])
        return tokens.new_zeros(len(has_image), *tokens.shape[1:]).index_copy(0, rows, tokens)
