"""The gate's benchmark where there is no GPU: its counts, its verdicts, its contenders' results, and its refusal."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from uniecs.kernels.accuracy import random_weights

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "gate_kernel.py"
bench = runpy.run_path(str(SCRIPT))


def test_counts() -> None:
    # One row of 64 numbers in 2 bytes: four of the five tensors are read, one is written.
    assert bench["row_bytes"](1, 64, 2) == 640
    assert bench["row_operations"](1, 64) == 64 * 15 + 35
    # 10 rows: attention (10, 64) with (64, 128), x (10, 64) with (64, 64).
    products = (10 * 64 + 64 * 128 + 10 * 128) + (10 * 64 + 64 * 64 + 10 * 64)
    assert bench["tail_bytes"](10, 64, 2) == 2 * products + 6400
    assert bench["tail_operations"](10, 64) == 2 * 10 * 64 * 192 + 10 * (64 * 15 + 35)


def test_counts_are_those_of_torch() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    weights = random_weights(64, np.random.default_rng(0))
    x, attention = torch.randn(2, 2, 5, 64)
    tails = [bench[name](weights, torch.float32) for name in ("PlainTail", "FoldedTail")]
    for tail in tails:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            tail(x, attention, bench["indicators"](2, "cpu"))
        products = bench["tail_operations"](10, 64) - bench["row_operations"](10, 64)
        # The plain gate's W3 e, one vector, is folded away.
        assert counter.get_total_flops() - products in (0, 2 * 64 * 64)


def test_roofline() -> None:
    assert bench["roofline_us"](4_000_000, 1, 4e12, 1e12) == pytest.approx(1.0)
    assert bench["roofline_us"](1, 5_000_000, 4e12, 1e12) == pytest.approx(5.0)


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        (
            {"contest": "rows", "batch": 32, "median_us": {"kernel": 10, "eager": 40, "compile": 13, "copy": 8}},
            {"winner": "kernel", "beats_compile": True, "copy_bandwidth": True},
        ),
        (
            {"contest": "rows", "batch": 32, "median_us": {"kernel": 10, "eager": 40, "compile": 12.9, "copy": 7.9}},
            {"winner": "kernel", "beats_compile": False, "copy_bandwidth": False},
        ),
        (
            {"contest": "rows", "batch": 1, "median_us": {"kernel": 10, "eager": 40, "compile": 9, "copy": 1}},
            {"winner": "plain", "beats_compile": False},
        ),
        ({"contest": "tail", "batch": 8, "median_us": {"kernel": 5, "eager": 6, "compile": 5}}, {"winner": "plain"}),
        (
            {
                "contest": "fusion",
                "batch": 1,
                "median_us": {"kernel": 50, "eager": 100, "eager_graph": 60, "kernel_no_graph": 40},
            },
            {"winner": "kernel", "half_of_eager": True},
        ),
    ],
)
def test_verdicts(case: dict[str, Any], expected: dict[str, bool]) -> None:
    assert bench["verdict"](case) == expected
    figures = {"dim": 256, "roofline_us": 3.0, "verdict": expected}
    assert "B=" in bench["table"]({"gpu": "none", "rates": {"copy_bytes_per_s": 4e12}, "cases": [case | figures]})


def test_contenders_compute_the_same() -> None:
    weights, indicator = random_weights(64, np.random.default_rng(1)), bench["indicators"](3, "cpu")
    x, attention = torch.randn(2, 3, 5, 64)
    plain, folded = (bench[name](weights, torch.float32) for name in ("PlainTail", "FoldedTail"))
    with torch.no_grad():
        expected = plain(x, attention, indicator)
        assert (folded(x, attention, indicator) - expected).abs().max() < 1e-5
        rows = bench["plain_rows"](x, *folded.products(x, attention), indicator, folded.parameters_)
    assert (rows - expected).abs().max() < 1e-5
    assert (plain(x, attention, indicator.flip(1)) - expected).abs().max() > 1e-2


def test_the_accuracy_rule_holds_for_the_tails_on_the_cpu() -> None:
    sheet = bench["check_accuracy"]("cpu", (64,))
    assert [case["dtype"] for case in sheet] == ["fp16", "bf16", "fp32"]
    assert [case for case in sheet if not case["holds"]] == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device to measure")
def test_it_says_that_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gate_kernel.py"])
    with pytest.raises(SystemExit, match="no CUDA device here: nothing was run"):
        bench["main"]()
