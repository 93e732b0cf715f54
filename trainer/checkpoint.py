"""Checkpoints: safetensors + JSON, written atomically; and pre-trained CLIP, ViT and BERT weights by path."""

from __future__ import annotations

import json
import math
import pickle
import shutil
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import BertModel, CLIPVisionModel, ViTModel
from transformers.utils import logging as transformers_log

from uniecs.config import Activation, ModelConfig
from uniecs.durable import sync
from uniecs.errors import CheckpointError, UniecsError
from uniecs.preprocess import read_tokenizer
from uniecs.trainer.model import UniECS

FORMAT = "uniecs-checkpoint"
FORMAT_VERSION = 1
CHECKPOINTS = "checkpoints"
UNFINISHED = ".unfinished-"
UNREADABLE = (
    *(OSError, RuntimeError, ValueError, EOFError, LookupError, TypeError, AttributeError, AssertionError),
    *(struct.error, pickle.UnpicklingError),
)
"""What torch.load raises for damaged files of all kinds."""
NOT_IN_SHAPES = ("num_attention_heads", "hidden_act", "layer_norm_eps")
"""What a backbone computes with, and the shapes of its weights do not tell."""


@dataclass(frozen=True)
class Checkpoint:
    """A network in evaluation mode, its tokenizer.json, and where its weights come from."""

    model: UniECS
    tokenizer_json: bytes
    provenance: Mapping[str, Any]

    @property
    def config(self) -> ModelConfig:
        """The dimensions that rebuild the network."""
        return self.model.config


def save_checkpoint(
    folder: Path,
    model: UniECS,
    tokenizer_json: bytes,
    provenance: Mapping[str, Any],
    training_state: Mapping[str, Any] | None = None,
) -> None:
    """Write model.safetensors, checkpoint.json, tokenizer.json (and training_state.pt) to the new folder `folder`.

    They are written to a temporary folder beside it, fsynced and renamed: a `folder` that exists is whole. Raises
    `CheckpointError` if it cannot be written.
    """
    weights = {name: tensor.detach().contiguous().cpu() for name, tensor in model.state_dict().items()}
    document = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "model": model.config.to_dict(),
        "provenance": dict(provenance),
    }
    temporary = folder.with_name(f"{UNFINISHED}{folder.name}")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        save_file(weights, temporary / "model.safetensors")
        (temporary / "tokenizer.json").write_bytes(tokenizer_json)
        (temporary / "checkpoint.json").write_text(json.dumps(document, indent=2), encoding="utf-8")
        if training_state is not None:
            torch.save(dict(training_state), temporary / "training_state.pt")
        for path in [*temporary.iterdir(), temporary]:
            sync(path)
        temporary.rename(folder)
        sync(folder.parent)
    except (OSError, SafetensorError, RuntimeError) as error:  # a full disk is any of the three
        raise CheckpointError(f"{folder} cannot be written: {error}") from error


def kept_checkpoints(run: Path) -> list[Path]:
    """The whole checkpoints of a run's folder, oldest first."""
    return sorted(each for each in (run / CHECKPOINTS).glob("*") if each.name.isdecimal() and each.is_dir())


def drop_checkpoints(run: Path, keep: int) -> None:
    """Remove all but the last `keep` checkpoints of a run, and what a killed process left unfinished."""
    for each in (*kept_checkpoints(run)[:-keep], *(run / CHECKPOINTS).glob(f"{UNFINISHED}*")):
        shutil.rmtree(each)


def checkpoint_folder(path: Path) -> Path:
    """`path` itself, or the last checkpoint of the run's folder `path`; raises `CheckpointError` if it has none."""
    if not (path / CHECKPOINTS).is_dir():
        return path
    kept = kept_checkpoints(path)
    if not kept:
        raise CheckpointError(f"{path / CHECKPOINTS} holds no whole checkpoint")
    return kept[-1]


def load_checkpoint(folder: Path) -> Checkpoint:
    """Rebuild the network of a checkpoint, or of a run's last one; raises `CheckpointError` if it cannot be read."""
    folder = checkpoint_folder(folder)
    try:
        document = json.loads((folder / "checkpoint.json").read_text(encoding="utf-8"))
        weights = load_file(folder / "model.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{folder} is not a readable checkpoint: {error}") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise CheckpointError(f"{folder} is not a uniecs checkpoint")
    if document.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{folder} has format version {document.get('format_version')}; this uniecs reads {FORMAT_VERSION}"
        )
    provenance = document.get("provenance", {})
    if not isinstance(provenance, dict):
        raise CheckpointError(f"{folder} has the provenance {provenance!r}; expected a table")
    model = UniECS(ModelConfig.from_dict(document.get("model")))
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"the weights of {folder} do not fit its configuration: {error}") from error
    return Checkpoint(model.eval(), read_tokenizer(folder), provenance)


def average_checkpoints(folders: Sequence[Path], out: Path) -> None:
    """Write the new checkpoint folder `out` with the mean of the weights of `folders`, checkpoints or runs.

    Runs that started from the same weights have a mean worth having; that they did is for the caller to know. Raises
    `CheckpointError` if `out` exists or the networks or tokenizers differ, and as `load_checkpoint`.
    """
    if out.exists():
        raise CheckpointError(f"{out} exists already")
    first, *others = loaded = [load_checkpoint(folder) for folder in folders]
    if any(each.config != first.config or each.tokenizer_json != first.tokenizer_json for each in others):
        raise CheckpointError("checkpoints of different networks or tokenizers have no mean")
    states = [each.model.state_dict() for each in loaded]
    first.model.load_state_dict({name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]})
    provenance = {"mean_of": [dict(each.provenance) for each in loaded]}
    save_checkpoint(out, first.model, first.tokenizer_json, provenance)


def load_training_state(folder: Path) -> dict[str, Any]:
    """The optimiser, scaler and loop state beside a checkpoint (tensors and plain values: no code is unpickled)."""
    folder = checkpoint_folder(folder)
    try:
        state = torch.load(folder / "training_state.pt", map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        # Not the error's own words: torch advises to read the file as a pickle that may run code.
        kind = type(error).__name__
        raise CheckpointError(f"{folder} holds no readable training_state.pt to resume from ({kind})") from error
    if not isinstance(state, dict) or not {"optimizer", "loss_weights", "step"} <= state.keys():
        raise CheckpointError(f"{folder} holds a training_state.pt that is not of a uniecs run")
    return state


def load_image_backbone(model: UniECS, path: Path) -> None:
    """Load a CLIP (`kind="clip"`) or ViT checkpoint folder into the image backbone.

    Takes transformers' layout (config.json + model.safetensors; a whole CLIP model or its vision tower). Position
    embeddings are interpolated (bicubic over the patch grid, class token kept) where the resolution differs.
    Raises `CheckpointError` if it is missing or damaged, its dimensions, activation or LayerNorm epsilon are not those
    of `model.config.image`, or weights are absent.
    """
    clip = model.config.image.kind == "clip"
    source = pretrained(CLIPVisionModel if clip else ViTModel, path, {} if clip else {"add_pooling_layer": False})
    key = "embeddings.position_embedding.weight" if clip else "embeddings.position_embeddings"
    weights = dict(source.state_dict())
    p, patch = model.config.preprocessing, model.config.image.patch_px
    grid = (p.height_px // patch, p.width_px // patch)
    with reading(path, type(source).__name__):
        size = source.config.image_size
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        source_patch = int(source.config.patch_size)
        table = weights[key] if weights[key].dim() == 3 else weights[key][None]
        table = interpolate_positions(table, (height // source_patch, width // source_patch), grid)
        weights[key] = table[0] if clip else table
    _load_into(model.image_encoder.backbone, weights, source.config, path, "image")


def interpolate_positions(table: Tensor, source: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """(1, 1 + h*w, C) position embeddings of a `source` grid of patches -> (1, 1 + h'*w', C) of a `target` grid."""
    if source == target:
        return table
    cls, patches = table[:, :1], table[:, 1:]
    grid = patches.reshape(len(table), *source, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=target, mode="bicubic", align_corners=False)
    return torch.cat((cls, grid.permute(0, 2, 3, 1).flatten(1, 2)), dim=1)


def load_text_backbone(model: UniECS, path: Path) -> None:
    """Load a BERT checkpoint folder into the text backbone.

    Where the checkpoint has more layers than the configuration, evenly spaced ones are kept (first and last
    included); where it has more positions, the first ones. Raises `CheckpointError` as `load_image_backbone`.
    """
    config = model.config.text
    source = pretrained(BertModel, path, {"add_pooling_layer": False})
    weights = dict(source.state_dict())
    available = int(source.config.num_hidden_layers)
    if available < config.layers:
        raise CheckpointError(f"{path} has {available} layers; the configuration asks for {config.layers}")
    kept = [round(i * (available - 1) / max(1, config.layers - 1)) for i in range(config.layers)]
    prefix = "encoder.layer."
    chosen = {name: tensor for name, tensor in weights.items() if not name.startswith(prefix)}
    for new, old in enumerate(kept):
        head = f"{prefix}{old}."
        chosen |= {f"{prefix}{new}.{n[len(head) :]}": w for n, w in weights.items() if n.startswith(head)}
    positions = "embeddings.position_embeddings.weight"
    chosen[positions] = chosen[positions][: config.max_positions]
    _load_into(model.text_encoder.backbone, chosen, source.config, path, "text")


def pretrained(kind: Any, path: Path, options: Mapping[str, Any], unused: str = "") -> Any:
    """`kind.from_pretrained` of a local folder, safetensors only; missing weights are an error, not a warning.

    Weights whose name starts with `unused` may be missing. Raises `CheckpointError`.
    """
    if not (path / "config.json").is_file():
        raise CheckpointError(f"{path} has no config.json; expected a transformers checkpoint folder")
    with reading(path, kind.__name__):
        model, report = kind.from_pretrained(
            path, local_files_only=True, use_safetensors=True, output_loading_info=True, **options
        )
    missing = [name for name in report["missing_keys"] if not (unused and name.startswith(unused))]
    if missing:
        raise CheckpointError(f"{path} lacks {len(missing)} weights of {kind.__name__}, such as {min(missing)}")
    return model


@contextmanager
def reading(path: Path, kind: str) -> Iterator[None]:
    """Say as `CheckpointError` what is wrong with a folder: its readers raise anything, down to KeyError."""
    try:
        with quiet_transformers():
            yield
    except UniecsError:
        raise
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read as a {kind} checkpoint: {error!r}") from error


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Neither progress bars nor notes of transformers: what matters in its reports is raised as an error here."""
    log: Any = transformers_log  # its functions are untyped
    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()


def _load_into(backbone: Any, weights: Mapping[str, Tensor], source: Any, path: Path, part: str) -> None:
    """Load the weights of a network of the configuration `source`; raises `CheckpointError` unless it is the same."""
    for key in NOT_IN_SHAPES:
        theirs, ours = getattr(source, key), getattr(backbone.config, key)
        if theirs != ours:
            difference = f"{key} {theirs!r}, here {ours!r}{_advice(part, key, theirs)}"
            raise CheckpointError(f"{path} does not fit the configured network: {difference}")
    try:
        backbone.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit the configured dimensions: {error}") from error


def _advice(part: str, key: str, value: Any) -> str:
    """How to have `value` of a network of transformers in the table `part` of the configuration, if there is a way."""
    if key == "layer_norm_eps":
        return f"; set {part}.layer_norm_eps = {value}"
    if key != "hidden_act":
        return ""
    names = get_args(Activation)
    return f'; set {part}.activation = "{value}"' if value in names else f"; expected one of {', '.join(names)}"


def parameter_count(model: nn.Module) -> int:
    """Number of parameters of a module."""
    return sum(math.prod(each.shape) for each in model.parameters())
