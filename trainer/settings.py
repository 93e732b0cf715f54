"""The training configuration: one TOML file, strict keys (docs/training.md lists them)."""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass, field, replace
from glob import escape
from pathlib import Path
from typing import Any, Literal

from uniecs.config import MODELS, Functions, FusionKind, ModelConfig, StrictConfig
from uniecs.errors import ConfigError
from uniecs.trainer.losses import NAMES, QUERY_NAMES, LossName

PATH_KEYS = {
    "data": ("catalog", "pairs", "queries", "pair_files"),
    "validation": ("catalog", "pairs"),
    "init": ("text_weights", "image_weights", "tokenizer", "checkpoint"),
}
PACKAGE, BUNDLE = "package:", "bundle:"
"""How a value of `init` begins that is no path: a folder of an installed package, a bundle that uniecs carries."""

# The last share of a run, in which no patches are dropped: the network gets used to whole images again.
WHOLE_IMAGES = 0.15


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ConfigError(f"{name} is {value}; expected a positive number")


def _not_negative(**values: float) -> None:
    for name, value in values.items():
        if not value >= 0:
            raise ConfigError(f"{name} is {value}; expected 0 or more")


@dataclass(frozen=True)
class DataSettings(StrictConfig):
    """Where the products are and which of them are similar.

    Either a `catalog`, held in memory, with one of `pairs` (a CSV of trigger_id,recall_id), `group_columns` (the
    products that share every one of them are similar) and `queries` (query,product_id: two towers); or `pair_files`, a
    pattern of Parquet files in the layout that `uniecs pairs` writes, of which about 2 * `shuffle_pairs` rows are held.
    `~` is expanded; a relative path is relative to the configuration file.
    """

    catalog: str | None = None
    pairs: str | None = None
    group_columns: tuple[str, ...] = ()
    queries: str | None = None
    pair_files: str | None = None
    shuffle_pairs: int = 8192

    def __post_init__(self) -> None:
        _positive(shuffle_pairs=self.shuffle_pairs)
        keys = ("catalog", "pairs", "group_columns", "queries", "pair_files")
        given = [key for key in keys if getattr(self, key)]
        if given not in (["catalog", "pairs"], ["catalog", "group_columns"], ["catalog", "queries"], ["pair_files"]):
            raise ConfigError("data needs a catalog with one of pairs, group_columns and queries, or else pair_files")


@dataclass(frozen=True)
class ValidationSettings(StrictConfig):
    """A held-out catalogue and its pairs, on which the nine tasks are measured every `every` steps."""

    catalog: str
    pairs: str
    every: int = 200

    def __post_init__(self) -> None:
        _positive(every=self.every)


@dataclass(frozen=True)
class InitSettings(StrictConfig):
    """Pre-trained weights and the tokenizer, or all of a `checkpoint` (or a run, or a bundle) of the same network.

    `text_weights` and `image_weights` are checkpoint folders in transformers' layout. The tokenizer.json is read from
    `tokenizer`, else `text_weights`. Each may be "package:NAME/FOLDER" for a folder inside an installed Python package;
    `checkpoint` may be "bundle:NAME" for a bundle that uniecs carries, such as `mini`.
    """

    text_weights: str | None = None
    image_weights: str | None = None
    tokenizer: str | None = None
    checkpoint: str | None = None

    def __post_init__(self) -> None:
        if self.checkpoint and (self.text_weights or self.image_weights or self.tokenizer):
            raise ConfigError("init.checkpoint brings all weights and the tokenizer; name nothing beside it")


@dataclass(frozen=True)
class AugmentSettings(StrictConfig):
    """Random crop to at least `crop` of each side, flip with probability `flip`, colour jitter of +-`jitter`.

    Each token of a title is dropped with probability `token_dropout`, the first and last (special) ones never. Of
    each image's patches the share `patch_dropout` is left out, until the last `WHOLE_IMAGES` of the steps.
    """

    crop: float = 0.8
    flip: float = 0.5
    jitter: float = 0.1
    token_dropout: float = 0.0
    patch_dropout: float = 0.0

    def __post_init__(self) -> None:
        rates = (self.jitter, self.token_dropout, self.patch_dropout)
        if not 0 < self.crop <= 1 or not 0 <= self.flip <= 1 or not all(0 <= rate < 1 for rate in rates):
            raise ConfigError(f"augmentation out of range: {self}")


@dataclass(frozen=True)
class OptimizerSettings(StrictConfig):
    """AdamW with linear warm-up and cosine decay to zero.

    `batch_pairs` is N of the losses; `losses` are the components of eq. 7 that are summed, or those of queries. The
    learning rate of pre-trained text weights is `learning_rate` * `text_lr_scale`; `freeze_word_embeddings` leaves
    BERT's embedding tables as they are, `freeze_encoders` all but the fusion. `beta` and `grad_at` are those of eq. 19.
    `precision` "auto" is bf16 autocast where the CPU or GPU has its instructions, else fp16 with a loss scaler on a GPU
    and fp32 on a CPU. Memory: `micro_products` products are embedded at a time on each rank (gradient caching: the same
    gradient, at one more forward pass); `activation_checkpointing` recomputes the backbones' activations. The last
    `keep_checkpoints` checkpoints are kept.
    """

    steps: int
    batch_pairs: int = 128
    learning_rate: float = 1e-4
    text_lr_scale: float = 1.0
    weight_decay: float = 0.05
    warmup_steps: int = 100
    clip_norm: float = 1.0
    freeze_word_embeddings: bool = False
    freeze_encoders: bool = False
    losses: tuple[LossName, ...] = NAMES
    beta: float = 0.5
    grad_at: Literal["embeddings", "parameters"] = "embeddings"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    micro_products: int | None = None
    activation_checkpointing: bool = False
    checkpoint_every: int = 200
    keep_checkpoints: int = 2

    def __post_init__(self) -> None:
        _positive(
            steps=self.steps,
            learning_rate=self.learning_rate,
            checkpoint_every=self.checkpoint_every,
            clip_norm=self.clip_norm,
            keep_checkpoints=self.keep_checkpoints,
            micro_products=1 if self.micro_products is None else self.micro_products,
        )
        _not_negative(text_lr_scale=self.text_lr_scale, weight_decay=self.weight_decay, warmup_steps=self.warmup_steps)
        rates = (self.learning_rate, self.text_lr_scale, self.weight_decay)
        if not all(map(math.isfinite, rates)):  # the weights would be NaN after one step
            raise ConfigError(f"learning_rate, text_lr_scale and weight_decay are {rates}; expected finite numbers")
        if self.batch_pairs < 2:
            raise ConfigError(f"batch_pairs is {self.batch_pairs}; expected at least 2")
        if not self.losses or len(set(self.losses)) < len(self.losses):
            raise ConfigError(f"losses is {list(self.losses)}; expected at least one, none of them twice")
        if len({name in QUERY_NAMES for name in self.losses}) > 1:
            raise ConfigError(f"losses is {list(self.losses)}; those of queries do not mix with those of pairs")
        if not 0 <= self.beta <= 1:
            raise ConfigError(f"beta is {self.beta}; expected 0 to 1")


@dataclass(frozen=True)
class TrainConfig(StrictConfig):
    """A whole training run: `output` receives checkpoints/ and tensorboard/; `model` is a key of `config.MODELS`.

    `fusion` takes the place of the model's own kind of fusion, for a comparison; `image` and `text` take that of what
    its backbones compute with, for pre-trained weights of another activation or LayerNorm epsilon.
    """

    model: str
    output: str
    data: DataSettings
    optimizer: OptimizerSettings
    fusion: FusionKind = "gated"
    image: Functions = field(default_factory=Functions)
    text: Functions = field(default_factory=Functions)
    init: InitSettings = field(default_factory=InitSettings)
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    validation: ValidationSettings | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        _not_negative(seed=self.seed)
        if self.model not in MODELS:
            raise ConfigError(f"model is {self.model!r}; expected one of {', '.join(MODELS)}")
        if self.seed >= 2**64:
            raise ConfigError(f"seed is {self.seed}; expected less than 2**64, as torch takes it")
        if (self.data.queries is not None) != (self.optimizer.losses[0] in QUERY_NAMES):
            raise ConfigError(f"the losses {', '.join(QUERY_NAMES)} go with data.queries, and no others do")

    @property
    def model_config(self) -> ModelConfig:
        """The network's dimensions."""
        config = MODELS[self.model]
        return replace(
            config,
            image=replace(config.image, **self.image.to_dict()),
            text=replace(config.text, **self.text.to_dict()),
            fusion=replace(config.fusion, kind=self.fusion),
        )

    def described(self) -> dict[str, Any]:
        """As a dictionary for a record that travels: files by name only, no folder of this machine."""
        record = self.to_dict()
        del record["output"]
        for part in ("image", "text"):
            if not record[part]:
                del record[part]  # a run without keeps the key (sweep.py) that it has always had
        for table, keys in PATH_KEYS.items():
            section = record[table] or {}
            for key in keys:
                if section.get(key) and not section[key].startswith((PACKAGE, BUNDLE)):
                    section[key] = Path(section[key]).name
        return record


def load_train_config(path: Path) -> TrainConfig:
    """Read a TOML file; relative paths in it become relative to its folder. Raises `ConfigError`."""
    return train_config(read_toml(path), path.parent)


def read_toml(path: Path) -> dict[str, Any]:
    """The document of a TOML file; raises `ConfigError`."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error


def train_config(document: dict[str, Any], folder: Path) -> TrainConfig:
    """The configuration of a document that was read from a file in `folder`, whose paths it makes absolute."""
    resolve_paths(document, ("output",), folder)
    for table, keys in PATH_KEYS.items():
        if isinstance(document.get(table), dict):
            resolve_paths(document[table], keys, folder)
    return TrainConfig.from_dict(document)


def resolve_paths(table: dict[str, Any], keys: tuple[str, ...], folder: Path) -> None:
    """Make the relative paths of a table relative to the configuration file's folder, in place.

    Raises `ConfigError` for what is no path.
    """
    for key in keys:
        value = table.get(key)
        if isinstance(value, str) and not value.startswith((PACKAGE, BUNDLE)):
            # A pattern is what the file says; its folder is not, whatever its name holds.
            root = Path(escape(str(folder.resolve()))) if key == "pair_files" else folder
            try:
                table[key] = str((root / Path(value).expanduser()).resolve())
            except (RuntimeError, ValueError) as error:  # ~name of nobody; a NUL
                raise ConfigError(f"{key} is {value!r}, which is no path: {error}") from error
