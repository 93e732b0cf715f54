"""The training loop: pairs in, checkpoint out (`uniecs train --config FILE`, alone or under torchrun)."""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from uniecs.benchmark_sets import read_queries
from uniecs.bundle import MANIFEST, packaged_bundle
from uniecs.catalog import Product
from uniecs.config import ModelConfig
from uniecs.errors import ConfigError, TrainingError
from uniecs.evaluation import Pairs, evaluate_pairs, read_held_out, read_pairs
from uniecs.preprocess import Tokenizer, read_tokenizer
from uniecs.progress import progress_bar
from uniecs.trainer.checkpoint import (
    CHECKPOINTS,
    Checkpoint,
    checkpoint_folder,
    drop_checkpoints,
    kept_checkpoints,
    load_checkpoint,
    load_image_backbone,
    load_text_backbone,
    load_training_state,
    save_checkpoint,
)
from uniecs.trainer.data import Batch, batches
from uniecs.trainer.distributed import World, join
from uniecs.trainer.embedder import TorchEncoder
from uniecs.trainer.from_bundle import load_bundle
from uniecs.trainer.losses import update_weights
from uniecs.trainer.model import UniECS
from uniecs.trainer.pair_files import PairFiles
from uniecs.trainer.pairs import (
    CatalogPairs,
    PairStream,
    QueryPairs,
    pairs_from_columns,
    pairs_from_ids,
    pairs_from_queries,
    read_products,
)
from uniecs.trainer.settings import (
    BUNDLE,
    PACKAGE,
    DataSettings,
    OptimizerSettings,
    TrainConfig,
)
from uniecs.trainer.step import Stepper

STARTED_FROM = "started_from"
"""Key of a checkpoint's provenance: that of the checkpoint or bundle whose weights the run began with."""
SHOWN_REJECTIONS = 20
MIN_SCALE = 1.0
"""The loss scaler halves its scale, 65536 at first, at each step that it skips: below this, gradients are faulty."""


@dataclass(frozen=True)
class StepReport:
    """What one step did: each loss, each weight (before its update), and the norm of the gradient before clipping."""

    losses: Mapping[str, float]
    weights: Mapping[str, float]
    gradient_norm: float


def train(config: TrainConfig, resume: bool = False, pairs: PairStream | None = None) -> Path:
    """Run a training configuration; returns the folder of the last checkpoint, in `output`/checkpoints.

    With `resume` the run goes on from its last whole checkpoint, which must be there; without it there must be none.
    `pairs`, where given, are those of `config.data`, read already. Under torchrun every process calls this. Raises
    `TrainingError` (nothing to train on, a loss or gradient that is not finite), `CheckpointError`, `ConfigError`,
    `CatalogError`.
    """
    folder = Path(config.output)
    kept = kept_checkpoints(folder)
    if kept and not resume:
        raise TrainingError(f"{folder} holds checkpoints; pass --resume to go on, or choose another output")
    if resume and not kept:
        raise TrainingError(f"{folder} holds no checkpoint yet; start without --resume")
    with ExitStack() as stack:
        world = stack.enter_context(join())
        run = Run(config, world, folder if resume else None, pairs)
        reporter = Reporter(run) if world.leads else None
        if reporter:
            stack.callback(reporter.close)
        stack.enter_context(fast_attention(run.model))
        for batch in run.batches():
            report = run.train_step(batch)
            if run.step % config.optimizer.checkpoint_every == 0 or run.step == config.optimizer.steps:
                run.save(folder)  # first, so that a validation that fails loses no steps
            if reporter:
                reporter.log(report)
        world.wait()
    return checkpoint_folder(folder)


class Run:
    """The state of a training run: network, optimiser, loss weights and the number of steps done."""

    def __init__(
        self, config: TrainConfig, world: World, resume_from: Path | None, pairs: PairStream | None = None
    ) -> None:
        self.config, self.world = config, world
        optimizer = config.optimizer
        torch.manual_seed(config.seed)
        start = initial_checkpoint(config) if resume_from is None else same_network(config, resume_from)
        self.model, self.tokenizer_json = start.model, start.tokenizer_json
        self.started_from: Mapping[str, Any] | None = start.provenance.get(STARTED_FROM)
        self.model.to(world.device).train()
        if optimizer.freeze_encoders:
            self.model.image_encoder.requires_grad_(False)
            self.model.text_encoder.requires_grad_(False)
        if optimizer.freeze_word_embeddings:
            self.model.text_encoder.backbone.embeddings.requires_grad_(False)
        if optimizer.activation_checkpointing:
            checkpoint_activations(self.model)
        self.optimizer = build_optimizer(self.model, optimizer)
        self.precision = optimizer.precision if optimizer.precision != "auto" else auto_precision(world.device)
        self.stepper = Stepper(
            self.model,
            world,
            precision=self.precision,
            grad_at=optimizer.grad_at,
            micro_products=optimizer.micro_products,
            losses=optimizer.losses,
        )
        self.loss_weights = torch.ones(len(optimizer.losses), device=world.device)
        self.step = 0
        if resume_from is not None:
            self._restore(resume_from)
        self.tokenizer = Tokenizer(self.tokenizer_json, config.model_config.preprocessing.max_tokens)
        if self.tokenizer.vocab_size > config.model_config.text.vocab_size:
            raise ConfigError(
                f"the tokenizer has {self.tokenizer.vocab_size} tokens, more than the network's vocabulary"
            )
        self.pairs = pairs or pair_stream(config.data, tells=world.leads)
        given = self.pairs.described()
        before = {name: start.provenance.get(name) for name in given}
        if resume_from is not None and before != given:
            raise TrainingError(
                f"{resume_from} holds a run on other data: {before}, now {given}; give it the same, "
                "or start another run from it (init.checkpoint)"
            )

    def _restore(self, folder: Path) -> None:
        """The state beside a checkpoint; raises `TrainingError` where the run froze other weights or had other losses.

        Rates and weight decay are those that the configuration gives now, not those that were saved.
        """
        state, losses = load_training_state(folder), list(self.config.optimizer.losses)
        count, names = len(state["loss_weights"]), state.get("losses")  # older states do not name them
        if count != len(losses) or names not in (None, losses):
            raise TrainingError(f"{folder} holds a run with {count} losses {names or ''}, not with {losses}")
        mine, saved = self.optimizer.state_dict(), state["optimizer"]
        if [each["params"] for each in saved["param_groups"]] != [each["params"] for each in mine["param_groups"]]:
            raise TrainingError(f"{folder} holds a run with another freeze_word_embeddings or freeze_encoders")
        self.optimizer.load_state_dict({**mine, "state": saved["state"]})
        if state.get("scaler"):
            self.stepper.scaler.load_state_dict(state["scaler"])
        self.loss_weights, self.step = state["loss_weights"].to(self.world.device), int(state["step"])

    def batches(self) -> Iterator[Batch]:
        """This rank's part of the batches of the steps that are left."""
        optimizer = self.config.optimizer
        return batches(
            self.pairs,
            self.tokenizer,
            self.config.model_config,
            self.config.augment,
            batch_pairs=optimizer.batch_pairs,
            seed=self.config.seed,
            start=self.step,
            stop=optimizer.steps,
            world=self.world,
        )

    def train_step(self, batch: Batch) -> StepReport:
        """One update of the network and of the loss weights."""
        settings, scaler = self.config.optimizer, self.stepper.scaler
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * schedule(self.step, settings)
        self.optimizer.zero_grad(set_to_none=True)
        losses, magnitudes = self.stepper.backward(batch.to(self.world.device), self.loss_weights)
        scaler.unscale_(self.optimizer)
        norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip_norm))
        # With a loss scaler, a gradient that overflows is skipped and the scale halved.
        _check_finite(losses, 0.0 if scaler.is_enabled() else norm, self.step)
        scaler.step(self.optimizer)
        scaler.update()
        if scaler.is_enabled() and scaler.get_scale() < MIN_SCALE:
            raise TrainingError(
                f"the gradient is {norm} at step {self.step}, in fp16 at any loss scale: so many steps were skipped "
                f"that it is {scaler.get_scale():g} now; the last checkpoint is intact"
            )
        weights = dict(zip(losses, self.loss_weights.tolist(), strict=True))
        if magnitudes.isfinite().all():
            self.loss_weights = update_weights(self.loss_weights, magnitudes, settings.beta)
        self.step += 1
        return StepReport({name: loss.item() for name, loss in losses.items()}, weights, norm)

    def save(self, folder: Path) -> None:
        """Write the checkpoint with all that `resume` needs; data order and augmentation follow from the step."""
        if not self.world.leads:
            return
        state = {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.stepper.scaler.state_dict(),
            "losses": list(self.config.optimizer.losses),
            "loss_weights": self.loss_weights.cpu(),
            "step": self.step,
        }
        provenance = {
            "steps": self.step,
            "train_config": self.config.described(),
            **self.pairs.described(),
            "precision": self.precision,
            "ranks": self.world.size,
            "torch": torch.__version__,
            **({STARTED_FROM: self.started_from} if self.started_from else {}),
        }
        name = f"{self.step:08d}"
        save_checkpoint(folder / CHECKPOINTS / name, self.model, self.tokenizer_json, provenance, state)
        drop_checkpoints(folder, self.config.optimizer.keep_checkpoints)


class Reporter:
    """The leading rank's progress bar, TensorBoard scalars and validations."""

    def __init__(self, run: Run) -> None:
        self.run = run
        world, steps, validation = run.world, run.config.optimizer.steps, run.config.validation
        # Read before the first step, so that a file that cannot be used costs none.
        self.held_out = read_held_out(validation.catalog, validation.pairs) if validation else None
        print(f"training on {world.device.type}, {run.precision}, {world.size} processes", file=sys.stderr)
        asked = run.config.optimizer.batch_pairs
        if isinstance(run.pairs, CatalogPairs) and (most := run.pairs.largest_batch(asked, run.config.seed)) < asked:
            why = f"{len(run.pairs.source.groups)} groups, each once in a batch, are shared out evenly"
            print(f"batches hold at most {most} pairs, not batch_pairs = {asked}: {why}", file=sys.stderr)
        self.writer = SummaryWriter(str(Path(run.config.output) / "tensorboard"), purge_step=run.step + 1)
        self.bar = progress_bar(total=steps, initial=run.step, unit="step", mininterval=5)

    def close(self) -> None:
        self.bar.close()
        self.writer.close()

    def log(self, report: StepReport) -> None:
        """The scalars of one step, and the validation where it is due."""
        run = self.run
        for name, loss in report.losses.items():
            self.writer.add_scalar(f"loss/{name}", loss, run.step)
            self.writer.add_scalar(f"lambda/{name}", report.weights[name], run.step)
        self.writer.add_scalar("gradient_norm", report.gradient_norm, run.step)
        self.writer.add_scalar("learning_rate", run.optimizer.param_groups[0]["lr"], run.step)
        self.bar.set_postfix({name: f"{loss:.3f}" for name, loss in report.losses.items()}, refresh=False)
        self.bar.update()
        if run.config.validation and self.held_out and run.step % run.config.validation.every == 0:
            self._validate(*self.held_out)

    def _validate(self, products: Mapping[str, Product], pairs: Pairs) -> None:
        """The nine tasks on the validation pairs, to TensorBoard and as a line of R@1 / R@10."""
        run = self.run
        run.model.eval()
        results = evaluate_pairs(TorchEncoder(run.model, run.tokenizer_json), products, pairs)
        run.model.train()
        for task, recalls in results.items():
            for k, value in recalls.items():
                self.writer.add_scalar(f"validation_recall_at_{k}/{task}", value, run.step)
        line = "  ".join(f"{task} {recalls[1]:.2f}/{recalls[10]:.2f}" for task, recalls in results.items())
        mean = np.mean([recalls[10] for recalls in results.values()])
        tqdm.write(f"step {run.step}: R@1/R@10 {line}  mean R@10 {mean:.4f}", file=sys.stderr)


def _check_finite(losses: Mapping[str, Tensor], norm: float, step: int) -> None:
    for name, loss in losses.items():
        if not torch.isfinite(loss):
            raise TrainingError(f"the loss {name} is {loss.item()} at step {step}; the last checkpoint is intact")
    if not math.isfinite(norm):
        raise TrainingError(f"the gradient is {norm} at step {step}; the last checkpoint is intact")


def auto_precision(device: torch.device) -> str:
    """bf16 where the device multiplies it in hardware; else fp16 on a GPU (as Volta), fp32 on a CPU."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    capabilities = torch.cpu.get_capabilities()
    return "bf16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "fp32"


def schedule(step: int, settings: OptimizerSettings) -> float:
    """Share of the peak learning rate: linear warm-up, then half a cosine down to zero at the last step."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    progress = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * progress))


def build_optimizer(model: UniECS, settings: OptimizerSettings) -> torch.optim.AdamW:
    """AdamW; vectors (biases, norms, embeddings of indicators) are not decayed, the text backbone has its own rate."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    text = {id(each) for each in model.text_encoder.backbone.parameters()}
    for parameter in model.parameters():
        if parameter.requires_grad:
            groups.setdefault((id(parameter) in text, parameter.dim() > 1), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "peak_lr": settings.learning_rate * (settings.text_lr_scale if is_text else 1.0),
                "weight_decay": settings.weight_decay if decays else 0.0,
            }
            for (is_text, decays), parameters in groups.items()
        ],
        lr=settings.learning_rate,
        betas=(0.9, 0.98),
        fused=True,
    )


def checkpoint_activations(model: UniECS) -> None:
    """Have the backbones recompute their activations in the backward pass."""
    for encoder in (model.image_encoder, model.text_encoder):
        encoder.backbone.activation_checkpointing_enable({"use_reentrant": False})


def same_network(config: TrainConfig, folder: Path) -> Checkpoint:
    """A checkpoint, run or bundle as a checkpoint; raises `TrainingError` if its network is not that of `config`.

    Raises what `load_checkpoint` and `load_bundle` raise, too.
    """
    checkpoint = load_bundle(folder) if (folder / MANIFEST).is_file() else load_checkpoint(folder)
    if checkpoint.config != config.model_config:
        raise TrainingError(f"{folder} holds another network than the configuration describes")
    return checkpoint


def initial_checkpoint(config: TrainConfig) -> Checkpoint:
    """The network with its pre-trained weights and its tokenizer.json; the provenance of a checkpoint that it is."""
    if config.init.checkpoint:
        source = same_network(config, resolve(config.init.checkpoint))
        return replace(source, provenance={STARTED_FROM: dict(source.provenance)})
    model_config: ModelConfig = config.model_config
    model = UniECS(model_config)
    if config.init.image_weights:
        load_image_backbone(model, resolve(config.init.image_weights))
    if config.init.text_weights:
        load_text_backbone(model, resolve(config.init.text_weights))
    source_folder = config.init.tokenizer or config.init.text_weights
    if source_folder is None:
        raise ConfigError("init needs tokenizer or text_weights: a folder with a tokenizer.json")
    return Checkpoint(model, read_tokenizer(resolve(source_folder)), {})


def resolve(place: str) -> Path:
    """The folder of a path, a packaged bundle "bundle:NAME", or "package:NAME/FOLDER" (which is not imported)."""
    if place.startswith(BUNDLE):
        return packaged_bundle(place.removeprefix(BUNDLE))
    if not place.startswith(PACKAGE):
        return Path(place)
    name, _, rest = place.removeprefix(PACKAGE).partition("/")
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):  # a.b without a; a name that none can have
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"the Python package {name} is not installed: pip install {name.replace('_', '-')}")
    return Path(spec.submodule_search_locations[0]) / rest


def pair_stream(settings: DataSettings, tells: bool) -> PairStream:
    """The pairs that the configuration names; `tells` prints what is left out to stderr, the first rows one by one."""
    if settings.pair_files is not None:
        return PairFiles(settings.pair_files, settings.shuffle_pairs)
    if settings.catalog is None:
        raise ConfigError("data needs a catalog or pair_files")
    products, rejected = read_products(Path(settings.catalog))
    notes = [f"left out: {reason}" for reason in rejected[:SHOWN_REJECTIONS]]
    if len(rejected) > SHOWN_REJECTIONS:
        notes.append(f"and {len(rejected) - SHOWN_REJECTIONS} more rows left out")
    stream: QueryPairs | CatalogPairs
    if settings.queries is not None:
        queries = read_queries(settings.queries)
        stream = pairs_from_queries(products, queries)
        notes += _left_out("queries", len(queries), len(stream.queries))
    elif settings.pairs is not None:
        pairs = read_pairs(settings.pairs)
        stream = CatalogPairs(products, pairs_from_ids(products, pairs))
        notes += _left_out("pairs", len(pairs), sum(map(len, stream.source.edges or ())))
    else:
        stream = CatalogPairs(products, pairs_from_columns(products, settings.group_columns))
    for note in notes if tells else ():
        print(note, file=sys.stderr)
    return stream


def _left_out(what: str, count: int, kept: int) -> list[str]:
    """A line on rows whose products are not all in the catalogue, if there are any."""
    left = count - kept
    return [f"{left} of {count} {what} left out: product not among the readable ones"] if left else []


@contextmanager
def fast_attention(model: UniECS) -> Iterator[None]:
    """Plain matrix products for attention: on a CPU, SDPA's flash backward takes twice the time at these lengths."""
    if next(model.parameters()).device.type != "cpu":
        yield
        return
    model.image_encoder.backbone.set_attn_implementation("eager")
    with sdpa_kernel([SDPBackend.MATH]):
        yield
    model.image_encoder.backbone.set_attn_implementation("sdpa")
