"""The gate kernel on a GPU: correct first, then its speed against torch eager, torch.compile and the roofline.

    python benchmarks/gate_kernel.py [--rounds 30] [--out FILE.json]

Three contests, each for B = 1, 8, 32, 256 and D = 256, 512, 768 in bf16 (the last for B = 1 in fp16):

rows    the row kernel alone, from the products [y | z] and u to the mixed tokens
tail    all that replaces the plain gate, from the attention's output and the tokens on, products included
fusion  the whole fusion network of one image+text query: folded, as a CUDA graph, against torch eager

In rows and tail every contender is a CUDA graph that sweeps over so many sets of operands that none stays in the L2
cache, so launches cost the same and memory is read from memory; a figure is the median over rounds that take turns. The
copy bandwidth is that of a copy of as many bytes as the kernel moves, in the same sweep. In fusion the eager network is
called as it is, and once more as a CUDA graph. The verdicts hold the goals of docs/kernels.md against the figures, and
name the case's winner. Needs a CUDA device, nvcc and `uniecs[train,kernels]`; the report goes to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uniecs.config import FusionConfig
from uniecs.kernels.accuracy import Accuracy, compare, fresh_seeds, over, random_weights
from uniecs.kernels.gate import GateWeights, fold_gate, plain_gate
from uniecs.trainer.folded import FoldedFusion
from uniecs.trainer.fusion import Gate, GatedFusion
from uniecs.trainer.gate_op import attended_and_gate, gate

BATCHES, DIMS = (1, 8, 32, 256), (256, 512, 768)
IMAGE_TOKENS, TEXT_TOKENS = 197, 16
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
# What a sweep touches in all: several times the L2 cache of an H200 (50 MB) or B200 (126 MB).
SWEEP_BYTES = 768 << 20
# docs/kernels.md: of the measured copy bandwidth from B = 32 on, against torch.compile, and of torch eager at B = 1.
COPY_FRACTION, COMPILE_SPEEDUP, EAGER_FRACTION, LARGE_BATCH = 0.8, 1.3, 0.5, 32
# Published for an H200; it bounds the rows, which are far from it, and nothing else.
H200_FP32 = 67e12
RESULTS = Path(__file__).with_name("results")
Call = Callable[[], Any]


def row_bytes(rows: int, dim: int, item_bytes: int) -> int:
    """What the row kernel must move: x, y, z and u read, the result written; parameters stay in the cache."""
    return 5 * rows * dim * item_bytes


def row_operations(rows: int, dim: int) -> int:
    """Floating-point operations of the row kernel, counting exp, rsqrt and division as one each.

    For each number: 2 for the sum of squares, 3 for LayerNorm (two products, a sum), 3 for the logit, 4 for the sigmoid
    (negation, exp, sum, quotient), 3 for the blend. Those for a row (4) and the reduction of its 32 lanes (31) beside.
    """
    return rows * (15 * dim + 35)


def tail_bytes(rows: int, dim: int, item_bytes: int) -> int:
    """What the folded tail must move: two products (operands, weights, result), then the rows."""
    products = (rows * dim + 2 * dim * dim + 2 * rows * dim) + (rows * dim + dim * dim + rows * dim)
    return products * item_bytes + row_bytes(rows, dim, item_bytes)


def tail_operations(rows: int, dim: int) -> int:
    """Operations of the folded tail: products of D with 3D, then the rows. The plain tail's products are as many."""
    return 2 * rows * dim * 3 * dim + row_operations(rows, dim)


def roofline_us(moved_bytes: int, operations: int, bytes_per_s: float, operations_per_s: float) -> float:
    """The least time, in microseconds: that of the memory or of the arithmetic, whichever is longer."""
    return max(moved_bytes / bytes_per_s, operations / operations_per_s) * 1e6


def verdict(case: Mapping[str, Any]) -> dict[str, Any]:
    """Which goals a case has, whether each is reached, and who wins: `plain` unless the kernel beats every other."""
    times: Mapping[str, float] = case["median_us"]
    others = [value for name, value in times.items() if not name.startswith(("kernel", "copy"))]
    result: dict[str, Any] = {"winner": "kernel" if times["kernel"] < min(others) else "plain"}
    if case["contest"] == "fusion":
        result["half_of_eager"] = times["kernel"] <= EAGER_FRACTION * times["eager"]
    if case["contest"] == "rows":
        result["beats_compile"] = times["compile"] >= COMPILE_SPEEDUP * times["kernel"]
        if case["batch"] >= LARGE_BATCH:
            result["copy_bandwidth"] = times["copy"] >= COPY_FRACTION * times["kernel"]
    return result


class PlainTail(nn.Module):
    """Output projection, LayerNorm and gate of one side, with the layers of fusion.py, in `dtype`."""

    def __init__(self, weights: GateWeights, dtype: torch.dtype) -> None:
        super().__init__()
        dim = weights.dim
        self.out, self.norm, self.gate = nn.Linear(dim, dim), nn.LayerNorm(dim), Gate(dim)
        arrays = {
            "out.weight": weights.projection_weight,
            "out.bias": weights.projection_bias,
            "norm.weight": weights.norm_weight,
            "norm.bias": weights.norm_bias,
            "gate.linear.weight": weights.gate_weight,
            "gate.linear.bias": weights.gate_bias,
            "gate.indicator_embedding": weights.indicator_embedding,
        }
        self.to(dtype).load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})

    def forward(self, x: Tensor, attention: Tensor, indicator: Tensor) -> Tensor:
        """`x`, `attention` (B, N, D), `indicator` (B, 2), of which the first column counts -> (B, N, D)."""
        out: Tensor = self.gate(x, self.norm(self.out(attention)), indicator[:, 0, None, None].to(x.dtype))
        return out


class FoldedTail(nn.Module):
    """The same folded, around the kernel."""

    def __init__(self, weights: GateWeights, dtype: torch.dtype) -> None:
        super().__init__()
        folded = fold_gate(weights)
        for name in ("attended_weight", "attended_bias", "own_weight"):
            self.register_buffer(name, torch.from_numpy(getattr(folded, name)).to(dtype))
        self.register_buffer("parameters_", torch.from_numpy(folded.parameters).float())

    def products(self, x: Tensor, attention: Tensor) -> tuple[Tensor, Tensor]:
        """[y | z] and u."""
        return F.linear(attention, self.attended_weight, self.attended_bias), F.linear(x, self.own_weight)

    def forward(self, x: Tensor, attention: Tensor, indicator: Tensor) -> Tensor:
        """As `PlainTail.forward`."""
        out: Tensor = gate(x, *self.products(x, attention), indicator, self.parameters_, 0)
        return out


def plain_rows(x: Tensor, yz: Tensor, u: Tensor, indicator: Tensor, parameters: Tensor) -> Tensor:
    """What the kernel computes, in torch operators: the others' part in the contest of rows."""
    attended, opened = attended_and_gate(yz, u, indicator, parameters, 0)[:2]
    return (x + opened * (attended - x)).to(x.dtype)


def indicators(batch: int, device: str) -> Tensor:
    """(B, 2): every other product lacks its image."""
    return torch.stack((torch.arange(batch) % 2, torch.ones(batch)), 1).float().to(device)


def tails_accuracy(storage: torch.dtype, dim: int, seed: int, device: str) -> Accuracy:
    """The errors of both tails on one draw."""
    rng = np.random.default_rng(seed)
    weights, indicator = random_weights(dim, rng), indicators(3, device)
    x, attention = (torch.from_numpy(rng.standard_normal((3, 37, dim))).to(storage) for _ in range(2))
    doubles = (x.double().numpy(), attention.double().numpy(), indicator[:, 0].double().cpu().numpy())
    given = (x.to(device), attention.to(device), indicator)
    with torch.no_grad():
        outputs = [tail(weights, storage).to(device)(*given) for tail in (PlainTail, FoldedTail)]
    return compare(plain_gate(weights, *doubles), *(each.double().cpu().numpy() for each in outputs))


def check_accuracy(device: str, dims: tuple[int, ...] = DIMS) -> list[dict[str, Any]]:
    """The accuracy rule on `device`, tails against float64, on fresh inputs; a sheet of figures for each case."""
    sheet = []
    for dtype, storage in DTYPES.items():
        for dim in dims:
            seeds = fresh_seeds()
            result = over([tails_accuracy(storage, dim, seed, device) for seed in seeds])
            sheet.append({"dtype": dtype, "dim": dim, "seeds": seeds, "holds": result.holds, **vars(result)})
    return sheet


def graph(call: Call) -> Call:
    """The call as a CUDA graph; warmed up on a side stream first, as capture demands."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        call()
    return captured.replay


def medians(contenders: Mapping[str, Call], rounds: int, each: int = 1) -> dict[str, float]:
    """Microseconds of each contender, by CUDA events, divided by `each`: the median over rounds that take turns."""
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for call in contenders.values():
        call()
    for _ in range(rounds):
        for name, call in contenders.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            start.record()
            call()
            end.record()
            end.synchronize()
            taken[name].append(start.elapsed_time(end) * 1e3)
    return {name: statistics.median(times) / each for name, times in taken.items()}


def sweep(call: Callable[..., Tensor], sets: list[tuple[Tensor, ...]]) -> Call:
    """The call on each set of operands in turn, as one CUDA graph."""

    def all_sets() -> None:
        for each in sets:
            call(*each)

    return graph(all_sets)


def measure_rows(batch: int, dim: int, rates: Mapping[str, float], rounds: int) -> dict[str, Any]:
    """The contest of rows for one size."""
    rows, dtype, indicator = batch * IMAGE_TOKENS, torch.bfloat16, indicators(batch, "cuda")
    moved = row_bytes(rows, dim, 2)
    parameters = torch.randn(4, dim, device="cuda")
    sets = []
    for _ in range(max(1, SWEEP_BYTES // moved)):
        x, u = torch.randn(2, batch, IMAGE_TOKENS, dim, device="cuda", dtype=dtype)
        sets.append(
            (x, torch.randn(batch, IMAGE_TOKENS, 2 * dim, device="cuda", dtype=dtype), u, indicator, parameters)
        )
    # A copy moves its bytes twice.
    blocks = [(torch.empty(moved // 2, dtype=torch.uint8, device="cuda"),) for _ in sets]
    target = [torch.empty_like(each) for (each,) in blocks]
    pairs = [(to, from_) for to, (from_,) in zip(target, blocks, strict=True)]
    compiled = torch.compile(plain_rows, dynamic=False)
    contenders = {
        "kernel": sweep(lambda *given: gate(*given, 0), sets),
        "eager": sweep(plain_rows, sets),
        "compile": sweep(compiled, sets),
        "copy": sweep(lambda to, from_: to.copy_(from_), pairs),
    }
    times = medians(contenders, rounds, len(sets))
    roofline = roofline_us(moved, row_operations(rows, dim), rates["copy_bytes_per_s"], rates["fp32_operations_per_s"])
    sizes = {"contest": "rows", "batch": batch, "dim": dim, "bytes": moved, "operations": row_operations(rows, dim)}
    return sizes | {"roofline_us": roofline, "median_us": times}


def measure_tail(batch: int, dim: int, rates: Mapping[str, float], rounds: int) -> dict[str, Any]:
    """The contest of tails for one size."""
    rows, dtype, indicator = batch * IMAGE_TOKENS, torch.bfloat16, indicators(batch, "cuda")
    weights = random_weights(dim, np.random.default_rng(0))
    plain, folded = (tail(weights, dtype).cuda().eval() for tail in (PlainTail, FoldedTail))
    moved = tail_bytes(rows, dim, 2)
    count = max(1, SWEEP_BYTES // moved)
    shape = (batch, IMAGE_TOKENS, dim)
    sets = [(*torch.randn(2, *shape, device="cuda", dtype=dtype), indicator) for _ in range(count)]
    with torch.no_grad():
        contenders = {
            "kernel": sweep(folded, sets),
            "eager": sweep(plain, sets),
            "compile": sweep(torch.compile(plain, dynamic=False), sets),
        }
        times = medians(contenders, rounds, count)
    operations = tail_operations(rows, dim)
    roofline = roofline_us(moved, operations, rates["copy_bytes_per_s"], rates["bf16_operations_per_s"])
    sizes = {"contest": "tail", "batch": batch, "dim": dim, "bytes": moved, "operations": operations}
    return sizes | {"roofline_us": roofline, "median_us": times}


def measure_fusion(dim: int, rounds: int) -> dict[str, Any]:
    """The contest of whole fusion networks at B = 1, in fp16; `kernel` is the folded one as a CUDA graph."""
    fusion = GatedFusion(dim, FusionConfig()).eval()
    folded = FoldedFusion(fusion, torch.float16).cuda()
    plain = fusion.cuda().half()
    image, text = (torch.randn(1, n, dim, device="cuda", dtype=torch.float16) for n in (IMAGE_TOKENS, TEXT_TOKENS))
    mask, indicator = torch.ones(1, TEXT_TOKENS, dtype=torch.int64, device="cuda"), torch.ones(1, 2, device="cuda")

    def eager() -> Tensor:
        out: Tensor = plain(image, text, mask, indicator.half())
        return out

    def fast() -> Tensor:
        out: Tensor = folded(image, text, mask, indicator)
        return out

    with torch.no_grad():
        cosine = float((eager() * fast()).sum())
        contenders = {"kernel": graph(fast), "eager": eager, "eager_graph": graph(eager), "kernel_no_graph": fast}
        times = medians(contenders, rounds)
    return {"contest": "fusion", "batch": 1, "dim": dim, "cosine": cosine, "median_us": times}


def measure_rates(rounds: int) -> dict[str, float]:
    """The device's own ceilings: a copy of 1 GiB (bytes read and written), a bf16 product, and fp32 as published."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target, square = torch.empty_like(source), torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    times = medians({"copy": lambda: target.copy_(source), "product": lambda: square @ square}, rounds)
    return {
        "copy_bytes_per_s": 2 * source.numel() / times["copy"] * 1e6,
        "bf16_operations_per_s": 2 * 8192**3 / times["product"] * 1e6,
        "fp32_operations_per_s": H200_FP32,
    }


def report(rounds: int) -> dict[str, Any]:
    """Every figure. Speed is measured only where the accuracy rule holds."""
    accuracy = check_accuracy("cuda")
    result: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name(0),
        "capability": torch.cuda.get_device_capability(0),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
        "rounds": rounds,
        "accuracy": accuracy,
    }
    broken = [case for case in accuracy if not case["holds"]]
    if broken:
        raise SystemExit(f"the kernel breaks the accuracy rule, so nothing was timed: {json.dumps(broken, indent=2)}")
    rates = measure_rates(rounds)
    cases = [measure(b, d, rates, rounds) for measure in (measure_rows, measure_tail) for b in BATCHES for d in DIMS]
    cases += [measure_fusion(dim, rounds) for dim in DIMS]
    return result | {"rates": rates, "cases": [case | {"verdict": verdict(case)} for case in cases]}


def table(result: Mapping[str, Any]) -> str:
    """The cases as lines of text."""
    lines = [f"{result['gpu']}, copy {result['rates']['copy_bytes_per_s'] / 1e12:.2f} TB/s"]
    for case in result["cases"]:
        times = ", ".join(f"{name} {value:.1f}" for name, value in case["median_us"].items())
        roofline = f", roofline {case['roofline_us']:.1f}" if "roofline_us" in case else ""
        lines.append(f"{case['contest']} B={case['batch']} D={case['dim']}: {times}{roofline} us; {case['verdict']}")
    return "\n".join(lines)


def main() -> None:
    """Measure, print the table, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30, help="rounds that count (30)")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/gate-kernel-GPU.json")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit(
            "benchmarks/gate_kernel.py measures a GPU, and torch sees no CUDA device here: nothing was run"
        )
    result = report(options.rounds)
    name = re.sub(r"[^a-z0-9]+", "-", result["gpu"].lower()).strip("-")
    out = options.out or RESULTS / f"gate-kernel-{name}.json"
    out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"{table(result)}\nwritten to {out}")


if __name__ == "__main__":
    main()
