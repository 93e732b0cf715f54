"""The `base` network with random weights in torch on a GPU, by CUDA events, against this GPU's own floor.

    python benchmarks/gpu/model.py [--rounds 20] [--out FILE.json]

NOT YET RUN ON A GPU. For each kind of query, batch and precision: eager, and as a CUDA graph; medians over rounds that
take turns (benchmarks/gate_kernel.py's). The floor: the largest product of each precision, and a copy. Needs a
CUDA device and `uniecs[train,kernels]`.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gate_kernel import graph, measure_rates, medians

from uniecs.bench.machine import gpu_state
from uniecs.config import MODELS
from uniecs.trainer.model import UniECS

BATCHES = (1, 8, 32, 128)
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
TOKENS = 16
SIZE = 8192


def query(network: UniECS, kind: str, batch: int, dtype: torch.dtype, device: str) -> Callable[[], Any]:
    """A call that embeds a batch of texts, of images or of both; an absent side is one zero token."""
    config = network.config
    p, dim = config.preprocessing, config.embed_dim
    pixels = torch.randn(batch, 3, p.height_px, p.width_px, device=device, dtype=dtype)
    ids = torch.randint(1000, 2000, (batch, TOKENS), device=device) % config.text.vocab_size
    mask = torch.ones(batch, TOKENS, dtype=torch.int64, device=device)
    indicator = torch.tensor([[kind != "text", kind != "image"]] * batch, device=device, dtype=dtype)
    nothing, one = torch.zeros(batch, 1, dim, device=device, dtype=dtype), torch.ones_like(mask[:, :1])

    def call() -> Any:
        image = nothing if kind == "text" else network.image_encoder(pixels)
        text = nothing if kind == "image" else network.text_encoder(ids, mask)
        return network.fusion(image, text, one if kind == "image" else mask, indicator)

    return call


def products(rounds: int) -> dict[str, float]:
    """Operations a second of a product of (SIZE, SIZE) by precision."""
    calls: dict[str, Callable[[], Any]] = {}
    for name, dtype in {"fp32": torch.float32, **DTYPES}.items():
        x = torch.randn(SIZE, SIZE, device="cuda", dtype=dtype)
        calls[name] = lambda x=x: x @ x  # type: ignore[misc]
    whole = torch.randint(-100, 100, (SIZE, SIZE), device="cuda", dtype=torch.int8)
    calls["int8"] = lambda: torch._int_mm(whole, whole.t())
    return {name: 2 * SIZE**3 / us * 1e6 for name, us in medians(calls, rounds).items()}


def measure(rounds: int) -> dict[str, Any]:
    """Every figure; the state of the GPU before and after."""
    report: dict[str, Any] = {
        "format": "uniecs-gpu-model",
        "gpu": torch.cuda.get_device_name(0),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
        "state": [gpu_state()],
        "rates": measure_rates(rounds),
        "products": products(rounds),
        "cases": [],
    }
    torch.manual_seed(0)
    network = UniECS(MODELS["base"]).eval().cuda()
    with torch.no_grad():
        for name, dtype in DTYPES.items():
            network = network.to(dtype)
            for kind in ("text", "image", "both"):
                for batch in BATCHES:
                    call = query(network, kind, batch, dtype, "cuda")
                    times = medians({"eager": call, "graph": graph(call)}, rounds)
                    case = {"kind": kind, "batch": batch, "precision": name, "median_us": times}
                    report["cases"].append({**case, "per_s": batch / min(times.values()) * 1e6})
                    print(case, flush=True)
    report["state"].append(gpu_state())
    return report


def main() -> None:
    """Measure, print, and write --out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks/gpu/model.py measures a GPU, and torch sees no CUDA device here: nothing was run")
    report = measure(options.rounds)
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
