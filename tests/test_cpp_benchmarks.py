"""The programs of benchmarks/cpp run; how fast they are is not looked at."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1] / "benchmarks" / "cpp"


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


def test_a_soak(cpp_sdk_build: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    from PIL import Image

    photo = tmp_path / "photo.jpg"
    Image.new("RGB", (60, 80), "red").save(photo)
    command = [str(cpp_sdk_build / "soak"), str(tiny_bundle), str(tmp_path / "soak.uniecs"), "2", "1", str(photo)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 errors: passed" in done.stdout
