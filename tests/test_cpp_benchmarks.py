"""The programs of benchmarks/cpp run; how fast they are is not looked at."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
BENCHMARKS, NO_DEEPBIND = ROOT / "benchmarks" / "cpp", ROOT / "sdk" / "cpp" / "tools" / "no_deepbind.cpp"


def test_latency_finds_the_same_in_both_languages(cpp_sdk_build: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "cpp.json"
    program = ["--program", str(cpp_sdk_build / "latency"), "--bundle", str(tiny_bundle)]
    few = ["--products", "300", "--rounds", "2", "--out", str(out)]
    command = [sys.executable, str(BENCHMARKS / "latency.py"), *program, *few]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads(out.read_text())["results"]
    assert list(results) == ["tiny, 1 thread", "tiny, 2 threads"]
    for measured in results.values():
        assert measured.pop("different_hits") == 0
        for kind, sides in measured.items():
            for side, figures in sides.items():
                parts = ["engine", "graph", "own", *(["pixels"] if kind != "text" else [])]
                assert min(figures[f"{part}_p50_ms"] for part in parts) > 0, (kind, side)
                assert figures["engine_p50_ms"] + figures["own_p50_ms"] <= figures["p99_ms"]


@pytest.fixture
def soak(tiny_bundle: Path, tmp_path: Path) -> Callable[..., None]:
    """Runs the program for some seconds; it must pass."""
    photo = tmp_path / "photo.jpg"
    Image.new("RGB", (60, 80), "red").save(photo)

    def run(program: Path, seconds: int, **environment: str) -> None:
        command = [program, tiny_bundle, tmp_path / "soak.uniecs", str(seconds), "1", photo]
        known = os.environ | environment
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=known)
        assert done.returncode == 0, done.stdout + done.stderr
        assert " 0 errors: passed" in done.stdout

    return run


def test_a_soak(cpp_sdk_build: Path, soak: Callable[..., None]) -> None:
    soak(cpp_sdk_build / "soak", 2)


def test_a_soak_under_sanitizers(sanitized_soak: Path, soak: Callable[..., None], tmp_path: Path) -> None:
    """As docs/cpp.md does it: all of the SDK, with OpenVINO."""
    library = tmp_path / "no_deepbind.so"
    subprocess.run(["c++", "-shared", "-fPIC", "-o", library, NO_DEEPBIND], check=True)
    soak(sanitized_soak, 5, LD_PRELOAD=str(library), ASAN_OPTIONS="verify_asan_link_order=0")
