"""The training loop: pairs in, checkpoint out (`uniecs train --config FILE`)."""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from uniecs.config import ModelConfig
from uniecs.errors import ConfigError, TrainingError
from uniecs.evaluation import evaluate_pairs, read_pairs
from uniecs.evaluation import read_products as read_catalog_products
from uniecs.preprocess import Tokenizer, read_tokenizer
from uniecs.trainer.checkpoint import (
    load_checkpoint,
    load_image_backbone,
    load_text_backbone,
    load_training_state,
    save_checkpoint,
)
from uniecs.trainer.data import Batch, ProductSet, batches, read_products
from uniecs.trainer.embedder import TorchEncoder
from uniecs.trainer.losses import NAMES, Representations, all_losses, update_weights
from uniecs.trainer.model import UniECS
from uniecs.trainer.pairs import PairSource, pairs_from_columns, pairs_from_ids
from uniecs.trainer.settings import DataSettings, OptimizerSettings, TrainConfig

CHECKPOINT = "checkpoint"


@dataclass(frozen=True)
class StepReport:
    """What one step did: each loss, each weight (before its update), and the norm of the clipped gradient."""

    losses: Mapping[str, float]
    weights: Mapping[str, float]
    gradient_norm: float


def train(config: TrainConfig, resume: bool = False) -> Path:
    """Run a training configuration; returns the checkpoint's folder, `output`/checkpoint.

    With `resume` the run goes on from that folder; without it the folder must not exist. Raises `TrainingError`
    (nothing to train on, a loss that is not finite), `CheckpointError`, `ConfigError`, `CatalogError`.
    """
    folder = Path(config.output) / CHECKPOINT
    if folder.exists() and not resume:
        raise TrainingError(f"{folder} exists; pass --resume to go on, or choose another output")
    run = Run(config, folder if resume else None)
    with ExitStack() as stack:
        writer = SummaryWriter(str(Path(config.output) / "tensorboard"), purge_step=run.step)
        stack.callback(writer.close)
        stack.enter_context(fast_attention(run.model))
        bar = stack.enter_context(
            tqdm(total=config.optimizer.steps, initial=run.step, unit="step", file=sys.stderr, mininterval=5)
        )
        for batch in run.batches():
            report = run.train_step(batch)
            _log(writer, bar, report, run)
            if config.validation and run.step % config.validation.every == 0:
                _validate(run, writer)
            if run.step % config.optimizer.checkpoint_every == 0 and run.step < config.optimizer.steps:
                run.save(folder)
        run.save(folder)
    return folder


class Run:
    """The state of a training run: network, optimiser, loss weights and the number of steps done."""

    def __init__(self, config: TrainConfig, resume_from: Path | None) -> None:
        self.config = config
        optimizer = config.optimizer
        torch.manual_seed(config.seed)
        if resume_from is None:
            self.model, self.tokenizer_json = initial_model(config)
        else:
            checkpoint = load_checkpoint(resume_from)
            if checkpoint.config != config.model_config:
                raise TrainingError(f"{resume_from} holds another network than the configuration describes")
            self.model, self.tokenizer_json = checkpoint.model, checkpoint.tokenizer_json
        self.model.train()
        if optimizer.freeze_word_embeddings:
            self.model.text_encoder.backbone.embeddings.requires_grad_(False)
        self.optimizer = build_optimizer(self.model, optimizer)
        self.bf16 = optimizer.precision == "bf16" or (optimizer.precision == "auto" and cpu_has_bf16())
        self.loss_weights = torch.ones(len(NAMES))
        self.step = 0
        if resume_from is not None:
            state = load_training_state(resume_from)
            self.optimizer.load_state_dict(state["optimizer"])
            self.loss_weights, self.step = state["loss_weights"], int(state["step"])
        preprocessing = config.model_config.preprocessing
        tokenizer = Tokenizer(self.tokenizer_json, preprocessing.max_tokens)
        if tokenizer.vocab_size > config.model_config.text.vocab_size:
            raise ConfigError(f"the tokenizer has {tokenizer.vocab_size} tokens, more than the network's vocabulary")
        self.data = read_products(Path(config.data.catalog), tokenizer)
        for reason in self.data.rejected[:20]:
            print(f"left out: {reason}", file=sys.stderr)
        self.source = pair_source(self.data, config.data)

    def batches(self) -> Iterator[Batch]:
        """The batches of the steps that are left."""
        optimizer = self.config.optimizer
        return batches(
            self.data,
            self.source,
            self.config.model_config,
            self.config.augment,
            batch_pairs=optimizer.batch_pairs,
            seed=self.config.seed,
            start=self.step,
            stop=optimizer.steps,
        )

    def train_step(self, batch: Batch) -> StepReport:
        """One update of the network and of the loss weights."""
        settings = self.config.optimizer
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * schedule(self.step, settings)
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            outputs = self.model(batch.pixel_values, batch.input_ids, batch.attention_mask, batch.patches)
        losses, magnitudes = backward(self.model, outputs, self.loss_weights, settings.grad_at)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip_norm)
        _check_finite(losses, float(norm), self.step)
        self.optimizer.step()
        weights = dict(zip(NAMES, self.loss_weights.tolist(), strict=True))
        self.loss_weights = update_weights(self.loss_weights, magnitudes, settings.beta)
        self.step += 1
        return StepReport({name: loss.item() for name, loss in losses.items()}, weights, float(norm))

    def save(self, folder: Path) -> None:
        """Write the checkpoint with all that `resume` needs; data order and augmentation follow from the step."""
        state = {
            "optimizer": self.optimizer.state_dict(),
            "loss_weights": self.loss_weights,
            "step": self.step,
        }
        provenance = {
            "steps": self.step,
            "train_config": self.config.described(),
            "products": len(self.data.products),
            "groups": len(self.source.groups),
            "bf16": self.bf16,
            "torch": torch.__version__,
        }
        save_checkpoint(folder, self.model, self.tokenizer_json, provenance, state)


def backward(
    model: UniECS, outputs: tuple[Tensor, Tensor, Tensor], weights: Tensor, grad_at: str
) -> tuple[dict[str, Tensor], Tensor]:
    """Put the gradient of sum_i lambda_i L_i into the parameters; returns the losses and |grad L_i| (eq. 19).

    `outputs` are v, t, f, each (2N, D). The losses see detached embeddings, so that each one's gradient there costs
    almost nothing; one pass through the network follows. grad_at="parameters" takes one pass for each loss instead.
    """
    leaves = [each.detach().float().requires_grad_() for each in outputs]
    sides = zip(*(leaf.chunk(2) for leaf in leaves), strict=True)
    losses = all_losses(*(Representations(*side) for side in sides))
    gradients = [
        torch.autograd.grad(loss, leaves, retain_graph=True, materialize_grads=True) for loss in losses.values()
    ]
    if grad_at == "embeddings":
        magnitudes = torch.stack([_norm(each) for each in gradients])
        total = [sum_weighted(weights, each) for each in zip(*gradients, strict=True)]
        torch.autograd.backward(outputs, total)
        return losses, magnitudes
    parameters = [each for each in model.parameters() if each.requires_grad]
    magnitudes = torch.zeros(len(losses))
    for i, gradient in enumerate(gradients):
        each = torch.autograd.grad(outputs, parameters, gradient, retain_graph=True, materialize_grads=True)
        magnitudes[i] = _norm(each)
        for parameter, value in zip(parameters, each, strict=True):
            scaled = weights[i] * value
            parameter.grad = scaled if parameter.grad is None else parameter.grad + scaled
    return losses, magnitudes


def _norm(tensors: tuple[Tensor, ...]) -> Tensor:
    return torch.stack([each.square().sum() for each in tensors]).sum().sqrt()


def sum_weighted(weights: Tensor, tensors: tuple[Tensor, ...]) -> Tensor:
    """sum_i weights[i] * tensors[i]."""
    return torch.einsum("i,i...->...", weights, torch.stack(tensors))


def _check_finite(losses: Mapping[str, Tensor], norm: float, step: int) -> None:
    for name, loss in losses.items():
        if not torch.isfinite(loss):
            raise TrainingError(f"the loss {name} is {loss.item()} at step {step}; the last checkpoint is intact")
    if not math.isfinite(norm):
        raise TrainingError(f"the gradient is {norm} at step {step}; the last checkpoint is intact")


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 matrices in hardware (AVX-512 BF16 or AMX)."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


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


def initial_model(config: TrainConfig) -> tuple[UniECS, bytes]:
    """The network with its pre-trained weights, and its tokenizer.json."""
    model_config: ModelConfig = config.model_config
    model = UniECS(model_config)
    if config.init.image_weights:
        load_image_backbone(model, resolve(config.init.image_weights))
    if config.init.text_weights:
        load_text_backbone(model, resolve(config.init.text_weights))
    source = config.init.tokenizer or config.init.text_weights
    if source is None:
        raise ConfigError("init needs tokenizer or text_weights: a folder with a tokenizer.json")
    return model, read_tokenizer(resolve(source))


def resolve(place: str) -> Path:
    """A folder's path, or "package:NAME/FOLDER" inside an installed Python package (which is not imported)."""
    if not place.startswith("package:"):
        return Path(place)
    name, _, rest = place.removeprefix("package:").partition("/")
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"the Python package {name} is not installed: pip install {name.replace('_', '-')}")
    return Path(spec.submodule_search_locations[0]) / rest


def pair_source(data: ProductSet, settings: DataSettings) -> PairSource:
    """Pairs as the configuration says: from a file, or from shared columns."""
    if settings.pairs is not None:
        return pairs_from_ids(data.products, read_pairs(settings.pairs))
    return pairs_from_columns(data.products, settings.group_columns)


@contextmanager
def fast_attention(model: UniECS) -> Iterator[None]:
    """Plain matrix products for attention: on a CPU, SDPA's flash backward takes twice the time at these lengths."""
    model.image_encoder.backbone.set_attn_implementation("eager")
    with sdpa_kernel([SDPBackend.MATH]):
        yield
    model.image_encoder.backbone.set_attn_implementation("sdpa")


def _log(writer: SummaryWriter, bar: Any, report: StepReport, run: Run) -> None:
    for name in NAMES:
        writer.add_scalar(f"loss/{name}", report.losses[name], run.step)
        writer.add_scalar(f"lambda/{name}", report.weights[name], run.step)
    writer.add_scalar("gradient_norm", report.gradient_norm, run.step)
    writer.add_scalar("learning_rate", run.optimizer.param_groups[0]["lr"], run.step)
    bar.set_postfix({name: f"{loss:.3f}" for name, loss in report.losses.items()}, refresh=False)
    bar.update()


def _validate(run: Run, writer: SummaryWriter) -> None:
    """The nine tasks on the validation pairs, to TensorBoard and as a line of R@1 / R@10."""
    settings = run.config.validation
    if settings is None:
        return
    products, _ = read_catalog_products(settings.catalog)
    pairs = read_pairs(settings.pairs)
    run.model.eval()
    results = evaluate_pairs(TorchEncoder(run.model, run.tokenizer_json), products, pairs)
    run.model.train()
    for task, recalls in results.items():
        for k, value in recalls.items():
            writer.add_scalar(f"validation_recall_at_{k}/{task}", value, run.step)
    line = "  ".join(f"{task} {recalls[1]:.2f}/{recalls[10]:.2f}" for task, recalls in results.items())
    mean = np.mean([recalls[10] for recalls in results.values()])
    tqdm.write(f"step {run.step}: R@1/R@10 {line}  mean R@10 {mean:.4f}", file=sys.stderr)
