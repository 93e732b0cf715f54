"""What this machine can do at best: a large matrix product in each precision, and reading and copying memory."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from uniecs.backends.openvino import has_precision, make_core

CHAIN = 4  # products one after the other in a graph, so that what enters and leaves it hardly counts
PRECISIONS = ("fp32", "bf16", "int8")


def product_operations(size: int) -> int:
    """Operations of one call of `product`."""
    return CHAIN * 2 * size**3


def product(precision: str, size: int, threads: int) -> Callable[[int], object] | None:
    """A call that multiplies (size, size) by `CHAIN` others in OpenVINO; None where the CPU lacks the precision."""
    core = make_core()
    if precision != "fp32" and not has_precision(core, precision):
        return None
    from openvino import Model
    from openvino import opset13 as ops

    random = np.random.default_rng(0)
    parameter = ops.parameter([size, size], np.float32, name="x")
    tensor: Any = parameter
    for _ in range(CHAIN):
        weights: Any = ops.constant(random.standard_normal((size, size), dtype=np.float32) / np.float32(size**0.5))
        if precision == "int8":
            tensor, weights = _quantized(ops, tensor), _quantized(ops, weights)
        tensor = ops.matmul(tensor, weights, False, False)
    config = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "bf16" if precision != "fp32" and has_precision(core, "bf16") else "f32",
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,
    }
    request = core.compile_model(Model([tensor], [parameter], "product"), "CPU", config).create_infer_request()
    given = random.standard_normal((size, size), dtype=np.float32)
    return lambda number: request.infer({0: given}, share_inputs=True, share_outputs=True)


def memory(what: str, size_bytes: int, threads: int) -> Callable[[int], object]:
    """A call that reads ("read") or copies ("copy") blocks of `size_bytes` in all, a part on each thread."""
    parts = [np.ones(size_bytes // threads // 4, np.float32) for _ in range(threads)]
    copies = [np.empty_like(part) for part in parts] if what == "copy" else parts
    pool = ThreadPoolExecutor(threads, "uniecs-floor")

    def run(place: int) -> None:
        if what == "copy":
            np.copyto(copies[place], parts[place])
        else:
            parts[place].max()

    return lambda number: list(pool.map(run, range(threads)))


def moved_bytes(what: str, size_bytes: int, threads: int) -> int:
    """Bytes that one call of `memory` reads and writes."""
    return size_bytes // threads // 4 * 4 * threads * (2 if what == "copy" else 1)


def _quantized(ops: Any, tensor: Any) -> Any:
    """Signed, symmetric, 255 levels: what OpenVINO turns into an int8 product."""
    low, high = np.float32(-4), np.float32(4)
    return ops.fake_quantize(tensor, ops.constant(low), ops.constant(high), ops.constant(low), ops.constant(high), 255)
