"""Configuration: frozen dataclasses that rebuild a network and its preprocessing; an unknown key is an error."""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from uniecs.errors import ConfigError

FusionKind = Literal["gated", "additive", "feature", "score"]
Activation = Literal["gelu", "gelu_new", "quick_gelu"]
# A model's name begins the model_id, and with it the names of files.
PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class StrictConfig:
    """Base of the configuration dataclasses: strict, recursive conversion from and to plain dictionaries."""

    @classmethod
    def from_dict(cls, data: object) -> Self:
        """Build from a mapping; raises `ConfigError` on an unknown or missing key or a value of the wrong type."""
        return typing.cast(Self, _convert(cls, data, cls.__name__))

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary of JSON types; `from_dict` inverts it."""
        values = {each.name: getattr(self, each.name) for each in dataclasses.fields(typing.cast(Any, self))}
        return {name: each.to_dict() if isinstance(each, StrictConfig) else each for name, each in values.items()}


def _convert(kind: Any, value: object, where: str) -> object:
    """Check `value` against the annotation `kind` and return it in that type."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _convert_dataclass(typing.cast(Any, kind), value, where)
    if origin is Literal:
        if value in arguments:
            return value
        raise ConfigError(f"{where} is {value!r}; expected one of {', '.join(map(repr, arguments))}")
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        (inner,) = (each for each in arguments if each is not type(None))
        return _convert(inner, value, where)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where} is {value!r}; expected a list")
        if arguments[-1] is not Ellipsis and len(arguments) != len(value):
            raise ConfigError(f"{where} has {len(value)} values; expected {len(arguments)}")
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        return tuple(
            _convert(each, item, f"{where}[{i}]") for i, (each, item) in enumerate(zip(kinds, value, strict=True))
        )
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError as error:
            raise ConfigError(f"{where} is an integer beyond what a float holds") from error
    if type(value) is kind:
        return value
    raise ConfigError(f"{where} is {value!r}; expected {kind.__name__}")


def _convert_dataclass(kind: Any, value: object, where: str) -> object:
    if isinstance(value, kind):
        return value
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} is {value!r}; expected a table of keys")
    hints = typing.get_type_hints(kind)
    fields = {each.name: each for each in dataclasses.fields(kind)}
    unknown = sorted(set(value) - set(fields))
    if unknown:
        raise ConfigError(f"{where} has the unknown key {unknown[0]!r}; known keys: {', '.join(fields)}")
    required = {
        name
        for name, each in fields.items()
        if each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING
    }
    missing = sorted(required - set(value))
    if missing:
        raise ConfigError(f"{where} lacks the key {missing[0]!r}")
    return kind(**{name: _convert(hints[name], item, f"{where}.{name}") for name, item in value.items()})


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _require_at_least(config: Any, minimum: int, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        _require(value >= minimum, f"{name} is {value}; expected at least {minimum}")


@dataclass(frozen=True)
class Preprocessing(StrictConfig):
    """What turns a photo into `pixel_values` and a title into `input_ids`; it travels with the model.

    An image is scaled to fit inside (height_px, width_px), aspect ratio kept, centred on white, then
    (x / 255 - mean) / std. A text is cut at `max_tokens` tokens, the special ones included.
    """

    height_px: int
    width_px: int
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    max_tokens: int = 64

    def __post_init__(self) -> None:
        _require(1 <= self.height_px <= 4096, f"height_px is {self.height_px}; expected 1 to 4096")
        _require(1 <= self.width_px <= 4096, f"width_px is {self.width_px}; expected 1 to 4096")
        _require(all(map(math.isfinite, self.mean + self.std)), "mean and std must be finite numbers")
        _require(min(self.std) > 0, f"std is {self.std}; expected positive numbers")
        _require(3 <= self.max_tokens <= 4096, f"max_tokens is {self.max_tokens}; expected 3 to 4096")


@dataclass(frozen=True, kw_only=True)
class Functions(StrictConfig):
    """What a backbone computes beside its products; None is what its kind has, in `USUAL`.

    `activation` is one of transformers' names, `layer_norm_eps` the epsilon of every LayerNorm.
    """

    activation: Activation | None = None
    layer_norm_eps: float | None = None

    def __post_init__(self) -> None:
        eps = self.layer_norm_eps
        _require(eps is None or 0 < eps < 1, f"layer_norm_eps is {eps}; expected a number between 0 and 1")

    def to_dict(self) -> dict[str, Any]:
        """Without what is None: usual networks are written as ever, and older readers know them."""
        return {name: value for name, value in super().to_dict().items() if value is not None}

    def _leave_out_usual(self, kind: str) -> None:
        """One network has one configuration: what its kind has anyway is None."""
        for name, usual in USUAL[kind].to_dict().items():
            if getattr(self, name) == usual:
                object.__setattr__(self, name, None)


USUAL: Mapping[str, Functions] = {
    "vit": Functions(activation="gelu", layer_norm_eps=1e-12),
    "clip": Functions(activation="quick_gelu", layer_norm_eps=1e-5),
    "bert": Functions(activation="gelu", layer_norm_eps=1e-12),
}


@dataclass(frozen=True)
class ImageEncoderConfig(Functions):
    """Dimensions and functions of the image backbone: transformers' ViT or CLIP vision tower."""

    kind: Literal["vit", "clip"] = "vit"
    patch_px: int = 16
    hidden: int = 768
    layers: int = 12
    heads: int = 12
    intermediate: int = 3072

    def __post_init__(self) -> None:
        super().__post_init__()
        self._leave_out_usual(self.kind)
        _require_at_least(self, 1, "patch_px", "hidden", "layers", "heads", "intermediate")
        _require(
            self.hidden % self.heads == 0,
            f"image hidden {self.hidden} is not a multiple of heads {self.heads}",
        )


@dataclass(frozen=True)
class TextEncoderConfig(Functions):
    """Dimensions and functions of the text backbone: transformers' BERT."""

    vocab_size: int = 30522
    hidden: int = 768
    layers: int = 12
    heads: int = 12
    intermediate: int = 3072
    max_positions: int = 512

    def __post_init__(self) -> None:
        super().__post_init__()
        self._leave_out_usual("bert")
        _require_at_least(self, 1, "vocab_size", "hidden", "layers", "heads", "intermediate", "max_positions")
        _require(
            self.hidden % self.heads == 0,
            f"text hidden {self.hidden} is not a multiple of heads {self.heads}",
        )


@dataclass(frozen=True)
class FusionConfig(StrictConfig):
    """Dimensions of the gated fusion (eq. 2-6): `gated_layers` stacks eq. 2-5, `blocks` is eq. 6's network.

    The other kinds are for comparison: `additive` adds where `gated` gates; `feature` is one Transformer of `blocks`
    over all tokens; `score` adds the embeddings of the two modalities (CLIP with feature and with score fusion).
    """

    kind: FusionKind = "gated"
    heads: int = 4
    gated_layers: int = 1
    blocks: int = 3
    mlp_ratio: int = 4

    def __post_init__(self) -> None:
        _require_at_least(self, 1, "heads", "gated_layers", "mlp_ratio")
        _require_at_least(self, 0, "blocks")


@dataclass(frozen=True)
class ModelConfig(StrictConfig):
    """The one dataclass of dimensions that rebuilds a network from its checkpoint."""

    name: str
    preprocessing: Preprocessing
    embed_dim: int = 256
    image: ImageEncoderConfig = field(default_factory=ImageEncoderConfig)
    text: TextEncoderConfig = field(default_factory=TextEncoderConfig)
    fusion: FusionConfig = field(default_factory=FusionConfig)

    def __post_init__(self) -> None:
        _require(
            PLAIN_NAME.fullmatch(self.name) is not None,
            f"name is {self.name!r}; expected up to 100 letters, digits, '.', '_' and '-', the first a letter or digit",
        )
        _require(
            self.embed_dim > 0 and self.embed_dim % self.fusion.heads == 0,
            f"embed_dim {self.embed_dim} is not a multiple of the fusion's heads {self.fusion.heads}",
        )
        for side in ("height_px", "width_px"):
            size, patch = getattr(self.preprocessing, side), self.image.patch_px
            _require(size % patch == 0, f"{side} {size} is not a multiple of patch_px {patch}")
        _require(
            self.preprocessing.max_tokens <= self.text.max_positions,
            f"max_tokens {self.preprocessing.max_tokens} exceeds max_positions {self.text.max_positions}",
        )

    @property
    def image_tokens(self) -> int:
        """Nv: the patches and the class token."""
        p, patch = self.preprocessing, self.image.patch_px
        return (p.height_px // patch) * (p.width_px // patch) + 1


CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

MODELS: Mapping[str, ModelConfig] = {
    "base": ModelConfig(
        name="base",
        preprocessing=Preprocessing(height_px=224, width_px=224, mean=CLIP_MEAN, std=CLIP_STD, max_tokens=64),
        image=ImageEncoderConfig(kind="clip"),
    ),
    "mini": ModelConfig(
        name="mini",
        preprocessing=Preprocessing(height_px=80, width_px=60, max_tokens=64),
        image=ImageEncoderConfig(patch_px=10, hidden=224, layers=6, heads=7, intermediate=896),
        text=TextEncoderConfig(hidden=384, layers=3, heads=12, intermediate=1536, max_positions=64),
        fusion=FusionConfig(mlp_ratio=2),
    ),
    "small": ModelConfig(
        name="small",
        preprocessing=Preprocessing(height_px=80, width_px=60, max_tokens=48),
        embed_dim=128,
        image=ImageEncoderConfig(patch_px=10, hidden=96, layers=3, heads=3, intermediate=384),
        text=TextEncoderConfig(hidden=384, layers=1, heads=12, intermediate=1536, max_positions=48),
        fusion=FusionConfig(mlp_ratio=2),
    ),
    "tiny": ModelConfig(
        name="tiny",
        preprocessing=Preprocessing(height_px=32, width_px=24, max_tokens=16),
        embed_dim=64,
        image=ImageEncoderConfig(patch_px=8, hidden=32, layers=2, heads=2, intermediate=64),
        text=TextEncoderConfig(hidden=32, layers=2, heads=2, intermediate=64, max_positions=16),
        fusion=FusionConfig(heads=2, mlp_ratio=2),
    ),
}
