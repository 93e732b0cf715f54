"""Throughput of a training step, and where its time goes; or, with --plan, a large run by calculation.

    python benchmarks/train_step.py MODEL [--pairs 64] [--steps 10] [--precision auto] [--device cpu] [--out FILE.json]
    python benchmarks/train_step.py base --plan

Each round prepares a batch (data), makes the trainer's own step (Stepper and optimiser), and makes the same step once
more in stages, cut at the tokens between the encoders and the fusion and at the embeddings: a stage's time holds its
forward and its backward pass, and the stages' sum against the whole step shows the error of the attribution. Losses
are timed with one backward for each of the six (eq. 19 needs them). A square matrix product in the same precision and
the same round is the device's matmul rate. Figures are medians over the rounds; a GPU is waited for at both ends of
every interval. The weights are random; titles have the model's full length. Needs `uniecs[train]`.
"""

from __future__ import annotations

import argparse
import io
import json
import platform
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import uniecs
from uniecs.catalog import Product
from uniecs.config import MODELS, ModelConfig
from uniecs.preprocess import Tokenizer, read_tokenizer
from uniecs.trainer.checkpoint import parameter_count, quiet_transformers
from uniecs.trainer.data import Batch, BatchMaker, decoder_threads
from uniecs.trainer.distributed import World
from uniecs.trainer.loop import auto_precision, build_optimizer, checkpoint_activations, fast_attention
from uniecs.trainer.losses import NAMES, Representations, all_losses, update_weights
from uniecs.trainer.model import UniECS
from uniecs.trainer.settings import AugmentSettings, OptimizerSettings
from uniecs.trainer.step import DTYPES, Stepper, loss_gradients, norm, sum_weighted

NETWORKS = ("image_encoder", "text_encoder", "fusion")
STAGES = (*NETWORKS, "losses", "weighting", "optimizer")
# The paper's run (section 4.1.4), and the published peak of a V100's tensor cores in fp16.
GPUS, GLOBAL_PAIRS, RUN_STEPS = 8, 1024, 200_000
V100_FLOPS = 125e12
ASSUMED_FRACTIONS = (0.2, 0.3, 0.4)
WARM_UP = 1
# The side of the square matrices, and how many products are timed together.
MATMUL = {"cpu": (1024, 2), "cuda": (8192, 10)}


class Clock:
    """Seconds of each named stretch of work in one round."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Add the time of the block to `name`; a GPU has finished its work at both ends."""
        self._wait()
        start = time.perf_counter()
        yield
        self._wait()
        self.seconds[name] += time.perf_counter() - start

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class Given(nn.Module):
    """Stands for an encoder whose tokens (B, N, D) are known."""

    def __init__(self, tokens: Tensor) -> None:
        super().__init__()
        self.tokens = tokens

    def forward(self, *_inputs: object) -> Tensor:
        return self.tokens


@contextmanager
def given_tokens(model: UniECS, image_tokens: Tensor, text_tokens: Tensor) -> Iterator[None]:
    """Within, `model` is its fusion alone, on these tokens."""
    encoders = model.image_encoder, model.text_encoder
    model.image_encoder, model.text_encoder = Given(image_tokens), Given(text_tokens)  # type: ignore[assignment]
    try:
        yield
    finally:
        model.image_encoder, model.text_encoder = encoders


class Bench:
    """A network with random weights, the trainer's Stepper and its optimiser, on one device."""

    def __init__(self, config: ModelConfig, device: torch.device, precision: str) -> None:
        torch.manual_seed(0)
        self.settings = OptimizerSettings(steps=1)
        self.device, self.dtype = device, DTYPES[precision]
        self.model = UniECS(config).to(device).train()
        self.optimizer = build_optimizer(self.model, self.settings)
        world = World(0, 1, device)
        self.stepper = Stepper(self.model, world, precision=precision, grad_at="embeddings", micro_products=None)
        self.weights = torch.ones(len(NAMES), device=device)

    def whole_step(self, batch: Batch) -> None:
        """One training step as `Run.train_step` makes it."""
        self.optimizer.zero_grad(set_to_none=True)
        _, magnitudes = self.stepper.backward(batch, self.weights)
        self._update()
        self.weights = update_weights(self.weights, magnitudes, self.settings.beta)

    def staged_step(self, batch: Batch, clock: Clock) -> None:
        """The same step, each stage timed; `STAGES` names them."""
        model, (pixels, ids, mask, patches, _) = self.model, batch.inputs()
        self.optimizer.zero_grad(set_to_none=True)
        with clock.time("image_encoder"), self._autocast():
            image = model.image_encoder(pixels, patches)
        with clock.time("text_encoder"), self._autocast():
            text = model.text_encoder(ids, mask)
        leaves = [each.detach().requires_grad_() for each in (image, text)]
        with clock.time("fusion"), given_tokens(model, *leaves), self._autocast():
            outputs = model(*batch.inputs())
        gradients = self.weigh(outputs, clock, "losses", "weighting")
        with clock.time("fusion"):
            torch.autograd.backward(outputs, [self.stepper.scaler.scale(each) for each in gradients])
        with clock.time("text_encoder"):
            text.backward(leaves[1].grad)
        with clock.time("image_encoder"):
            image.backward(leaves[0].grad)
        with clock.time("optimizer"):
            self._update()

    def weigh(self, outputs: Sequence[Tensor], clock: Clock, losses: str, weighting: str) -> list[Tensor]:
        """The weighted gradient at v, t, f (2N, D); times the losses and eq. 19 under the names given.

        `loss_gradients` takes the norms of eq. 19 too: they are counted in both times, against the goal.
        """
        with clock.time(losses):
            found = loss_gradients(outputs)
        with clock.time(weighting):
            magnitudes = torch.stack([norm(each) for each in found.at_embeddings])
            total = [sum_weighted(self.weights, each) for each in zip(*found.at_embeddings, strict=True)]
            self.weights = update_weights(self.weights, magnitudes, self.settings.beta)
        return total

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def _update(self) -> None:
        scaler = self.stepper.scaler
        scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)
        scaler.step(self.optimizer)
        scaler.update()


def jpegs(config: ModelConfig, count: int) -> list[bytes]:
    """`count` JPEG files of the model's size: a smooth gradient under noise, about as large as photos are."""
    height, width = config.preprocessing.height_px, config.preprocessing.width_px
    random = np.random.default_rng(0)
    ramp = np.linspace(0, 200, height * width * 3).reshape(height, width, 3)
    files = []
    for _ in range(count):
        buffer = io.BytesIO()
        picture = ramp + random.integers(0, 56, ramp.shape)
        Image.fromarray(picture.astype(np.uint8)).save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
    return files


def time_matmul(clock: Clock, dtype: torch.dtype) -> None:
    """Time the square matrix products of `MATMUL` as "matmul"."""
    size, repeats = MATMUL[clock.device.type]
    a = torch.randn(size, size, device=clock.device).to(dtype)
    a @ a  # the first product of a shape chooses its kernel
    with clock.time("matmul"):
        for _ in range(repeats):
            a @ a


def matmul_rate(medians: Mapping[str, float], device: torch.device) -> float:
    """Operations a second of `time_matmul`."""
    size, repeats = MATMUL[device.type]
    return 2 * size**3 * repeats / medians["matmul"]


def measure(
    config: ModelConfig, device: torch.device, precision: str, pairs: int, rounds: int, global_pairs: int = GLOBAL_PAIRS
) -> dict[str, Any]:
    """The report: medians over `rounds`, shares of the stages, and the fraction of the device's matmul rate."""
    medians = timed(config, device, precision, pairs, rounds, global_pairs)
    operations = step_operations(config, 2 * pairs)
    report: dict[str, Any] = {"model": config.name, "device": describe(device), "precision": precision}
    report |= {"torch": torch.__version__, "threads": torch.get_num_threads(), "decoders": decoder_threads()}
    report |= {"pairs": pairs, "rounds": rounds, "products_per_s": round(2 * pairs / medians["step"], 1)}
    report |= shares(medians, pairs, global_pairs)
    report |= {"step_operations": operations, "matmul_operations_per_s": matmul_rate(medians, device)}
    report["fraction_of_matmul_rate"] = round(operations / medians["step"] / matmul_rate(medians, device), 3)
    if device.type == "cuda":
        report["peak_memory_bytes"] = torch.cuda.max_memory_allocated(device)
    return report | {"median_s": medians}


def timed(
    config: ModelConfig, device: torch.device, precision: str, pairs: int, rounds: int, global_pairs: int
) -> dict[str, float]:
    """Median seconds of everything that a round times, after `WARM_UP` rounds."""
    bench = Bench(config, device, precision)
    gathered = [nn.functional.normalize(torch.randn(2 * global_pairs, config.embed_dim, device=device)) for _ in "vtf"]
    clocks = []
    with fast_attention(bench.model), batch_maker(config, pairs) as make:
        for _ in range(WARM_UP + rounds):
            clock = Clock(device)
            with clock.time("data"):
                batch = make()
            batch = batch.to(device)
            with clock.time("step"):
                bench.whole_step(batch)
            bench.staged_step(batch, clock)
            bench.weigh(gathered, clock, "global_losses", "global_weighting")
            time_matmul(clock, bench.dtype)
            clocks.append(clock)
    kept = [clock.seconds for clock in clocks[WARM_UP:]]
    return {name: float(np.median([each[name] for each in kept])) for name in kept[0]}


def shares(medians: Mapping[str, float], pairs: int, global_pairs: int) -> dict[str, Any]:
    """Ratios of the medians.

    `shares` are of the sum of data and stages, although data are prepared by other threads while a step runs: they
    hide behind it where `data_over_step` is below 1 and cores are free. The last figure is for a GPU's part of the
    paper's run, with losses over all `global_pairs`: encoders and fusion are scaled to its pairs, the rest is as timed.
    """
    stages = {name: medians[name] for name in STAGES}
    total = medians["data"] + sum(stages.values())
    losses = medians["losses"] + medians["weighting"]
    global_losses = medians["global_losses"] + medians["global_weighting"]
    networks = sum(medians[name] for name in NETWORKS) * (global_pairs / GPUS) / pairs
    return {
        "shares": {name: round(medians[name] / total, 6) for name in ("data", *STAGES)},
        "stages_over_step": round(sum(stages.values()) / medians["step"], 3),
        "data_over_step": round(medians["data"] / medians["step"], 3),
        "losses_and_weighting_over_step": round(losses / medians["step"], 4),
        f"losses_and_weighting_over_step_of_{global_pairs}_pairs_on_{GPUS}": round(
            global_losses / (global_losses + networks + medians["optimizer"]), 4
        ),
    }


def describe(device: torch.device) -> str:
    """The device's name; of a CPU its architecture alone."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu {platform.machine()}"


def forward_operations(config: ModelConfig) -> dict[str, int]:
    """Operations of the matrix products for one product, a multiply-add being two: v, t and f at full text length.

    A Transformer layer of n tokens, width h and inner width i takes 2 n (4 h^2 + 2 h i) for its weights and
    4 n^2 h for its attention; the fusion runs three times, with one zero token for an absent side.
    """
    image, text, dim = config.image, config.text, config.embed_dim
    nv, nt = config.image_tokens, config.preprocessing.max_tokens

    def layer(n: int, width: int, inner: int) -> int:
        return 2 * n * (4 * width**2 + 2 * width * inner) + 4 * n**2 * width

    patches = 2 * (nv - 1) * 3 * image.patch_px**2 * image.hidden
    return {
        "image_encoder": patches
        + image.layers * layer(nv, image.hidden, image.intermediate)
        + 2 * nv * image.hidden * dim,
        "text_encoder": text.layers * layer(nt, text.hidden, text.intermediate) + 2 * nt * text.hidden * dim,
        "fusion": sum(fusion_operations(config, *tokens) for tokens in ((nv, 1), (1, nt), (nv, nt))),
    }


def fusion_operations(config: ModelConfig, image_tokens: int, text_tokens: int) -> int:
    """Those of one pass of the gated fusion (eq. 2-6) for one product."""
    dim, fusion = config.embed_dim, config.fusion

    def block(n: int) -> int:
        return 2 * n * (4 + 2 * fusion.mlp_ratio) * dim**2 + 4 * n**2 * dim

    def side(n: int, other: int) -> int:
        cross_attention = 4 * n * dim**2 + 4 * other * dim**2 + 4 * n * other * dim
        gate = 4 * n * dim**2
        return cross_attention + gate + block(n)

    sides = side(image_tokens, text_tokens) + side(text_tokens, image_tokens)
    return fusion.gated_layers * sides + fusion.blocks * block(2) + 2 * dim**2


def step_operations(config: ModelConfig, products: int, recomputed: float = 0.0) -> float:
    """A forward pass, a backward pass of twice that, and `recomputed` forward passes more; the losses are left out."""
    return (3 + recomputed) * sum(forward_operations(config).values()) * products


def saved_bytes(run: Callable[[], object], parameters: Sequence[Tensor] = ()) -> int:
    """Bytes of the tensors that the graph of `run` saves for its backward pass, each storage once."""
    known = {each.untyped_storage().data_ptr() for each in parameters}
    found: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        graph = run()
    del graph
    return sum(found.values())


def activation_bytes(config: ModelConfig, precision: str) -> dict[str, float]:
    """What one more product adds to the saved tensors, counted on a CPU between one product and two.

    `whole` as it is; `checkpointed` with activation checkpointing: what lies outside the backbones, every layer's
    float32 input, and one layer's activations anew (at most all backbones' over the image layers). `weight_copies`:
    autocast's copies of the weights, whatever the batch.
    """
    model = UniECS(config).train()
    with quiet_transformers(), fast_attention(model):
        one, two = (model_saved_bytes(model, products, precision) for products in (1, 2))
        checkpoint_activations(model)
        outside = model_saved_bytes(model, 2, precision) - model_saved_bytes(model, 1, precision)
    nv, nt = config.image_tokens, config.preprocessing.max_tokens
    inputs = 4 * (config.image.layers * nv * config.image.hidden + config.text.layers * nt * config.text.hidden)
    layer = (two - one - outside) / config.image.layers
    return {"whole": two - one, "checkpointed": outside + inputs + layer, "weight_copies": max(0, 2 * one - two)}


def model_saved_bytes(model: UniECS, products: int, precision: str) -> int:
    """`saved_bytes` of the forward pass of `products` full-length products, without the parameters."""
    p, dtype = model.config.preprocessing, DTYPES[precision]
    pixels = torch.zeros(products, 3, p.height_px, p.width_px)
    ids = torch.ones(products, p.max_tokens, dtype=torch.int64)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        return saved_bytes(lambda: model(pixels, ids, ids), list(model.parameters()))


def loss_bytes(config: ModelConfig, pairs: int) -> int:
    """Bytes that the six losses of `pairs` pairs save: N x N matrices."""
    sides = [[torch.randn(pairs, config.embed_dim).requires_grad_() for _ in "vtf"] for _ in range(2)]
    return saved_bytes(lambda: all_losses(*(Representations(*side) for side in sides)))


def plan(config: ModelConfig) -> str:
    """The paper's run on 8 x V100, by calculation: every figure with the formula that it comes from."""
    return "\n".join((*plan_time(config), *plan_memory(config)))


def plan_time(config: ModelConfig) -> Iterator[str]:
    """Operations, and hours at assumed fractions of the V100's peak."""
    forward = forward_operations(config)
    total, products = sum(forward.values()), 2 * GLOBAL_PAIRS // GPUS
    parts = " + ".join(f"{name} {value / 1e9:.4g}" for name, value in forward.items())
    yield f"forward pass of a product: {parts} = {total / 1e9:.4g} GFLOP, from the dimensions; a multiply-add is 2"
    backbones = 1 - forward["fusion"] / total
    for name, again in (("plain", 0.0), ("activation checkpointing", backbones), ("gradient caching", 1.0)):
        operations = step_operations(config, products, again)
        product = f"(3 + {again:.2f}) x {total / 1e9:.4g} GFLOP x {products} products"
        yield f"{name}: {product} = {operations / 1e12:.4g} TFLOP a step and GPU"
        for fraction in ASSUMED_FRACTIONS:
            seconds = operations / (fraction * V100_FLOPS)
            rate, hours = 2 * GLOBAL_PAIRS / seconds, seconds * RUN_STEPS / 3600
            assumed = f"at {fraction:.0%} of {V100_FLOPS / 1e12:.0f} TFLOP/s (assumed)"
            yield f"  {assumed}: {seconds:.3g} s a step, {rate:,.0f} products/s, {hours:.3g} h for {RUN_STEPS:,} steps"


def plan_memory(config: ModelConfig) -> Iterator[str]:
    """Bytes on each GPU; float32 activations bound those of autocast, whose LayerNorm and softmax differ by device."""
    with torch.device("meta"):
        parameters = parameter_count(UniECS(config))
    products = 2 * GLOBAL_PAIRS // GPUS
    half, full = activation_bytes(config, "bf16"), activation_bytes(config, "fp32")
    copies, losses = half["weight_copies"], loss_bytes(config, GLOBAL_PAIRS)
    fixed = 20 * parameters + copies + losses
    yield (
        f"fixed: {parameters / 1e6:.4g} M parameters x 20 bytes (4 weight, 4 gradient, 8 AdamW, 4 DDP bucket) + "
        f"half-precision copies {copies / 1e9:.2f} GB + losses {losses / 1e9:.2f} GB = {fixed / 1e9:.2f} GB"
    )
    ways = [("plain", "whole", products), ("activation checkpointing", "checkpointed", products)]
    ways += [(f"gradient caching, pieces of {size}", "whole", size) for size in (128, 64, 32)]
    for name, kind, count in ways:
        low, high = fixed + count * half[kind], fixed + count * full[kind]
        each = f"{half[kind] / 1e6:.4g} MB in bf16 to {full[kind] / 1e6:.4g} MB in fp32 (counted)"
        yield f"{name}: {fixed / 1e9:.2f} GB + {count} x {each} = {low / 1e9:.1f} to {high / 1e9:.1f} GB"


@contextmanager
def batch_maker(config: ModelConfig, pairs: int) -> Iterator[Callable[[], Batch]]:
    """Prepares batches by the trainer's own code: JPEG pictures of the model's size, titles of its full length."""
    tokenizer_json = read_tokenizer(Path(uniecs.__file__).parent / "bundles" / "mini")
    tokenizer = Tokenizer(tokenizer_json, config.preprocessing.max_tokens)
    title = "red cotton shirt with long sleeves and blue stripes " * 10
    products = [Product(id=str(i), title=title, image=image) for i, image in enumerate(jpegs(config, 2 * pairs))]
    with ThreadPoolExecutor(decoder_threads()) as pool:
        maker = BatchMaker(tokenizer, config, AugmentSettings(), 0, pool)
        yield lambda: maker.make(list(zip(products[::2], products[1::2], strict=True)), 0, slice(None), 0.0)


def main() -> None:
    """Print the report, and write it to --out; or print the plan."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=tuple(MODELS))
    parser.add_argument("--pairs", type=int, default=64, help="pairs in a batch (64)")
    parser.add_argument("--steps", type=int, default=10, help="rounds that count (10)")
    parser.add_argument("--precision", choices=("auto", *DTYPES), default="auto")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--plan", action="store_true", help="time and memory of the paper's run, by calculation")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    config, device = MODELS[options.model], torch.device(options.device)
    if options.plan:
        print(plan(config))
        return
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: this torch finds no GPU; is it the CUDA build?")
    precision = auto_precision(device) if options.precision == "auto" else options.precision
    report = measure(config, device, precision, options.pairs, options.steps)
    print(json.dumps(report, indent=2))
    if options.out:
        options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
