"""Engines built, loaded and run on a real GPU; skipped without one. Where it has run: docs/tensorrt.md."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("onnx", reason="engines are built from ONNX graphs")

# Each kind of query four times: directly, captured, and twice from the CUDA graph; then a catalogue of 70.
PROGRAM = """
import importlib, json, sys
import numpy as np

sys.modules["tensorrt"] = importlib.import_module(sys.argv[1])

from uniecs.backends.base import create_backend
from uniecs.bundle import open_bundle, packaged_bundle
from uniecs.encoder import Encoder
from uniecs.export.tensorrt_build import build_engines

bundle = open_bundle(packaged_bundle("mini"))
machine, built = build_engines(bundle)
assert all(each.cached for each in build_engines(bundle)[1])
encoder = Encoder(bundle, create_backend(bundle, "tensorrt"))
golden, texts = bundle.golden(), bundle.manifest["golden"]["texts"]
images = [i if has else None for i, has in zip(golden["images"], golden["modality_indicator"][:, 0])]
worst = {}
for name, rows in {"one": [[i] for i in range(len(texts))] * 4, "all": [list(range(len(texts)))] * 4}.items():
    found = [encoder.encode([texts[i] for i in each], [images[i] for i in each]) for each in rows]
    worst[name] = min(float((a * golden["embedding"][each]).sum(1).min()) for a, each in zip(found, rows))
index = np.arange(70) % len(texts)
many = encoder.encode([texts[i] for i in index], [images[i] for i in index], batch_size=64)
worst["many"] = float((many * golden["embedding"][index]).sum(1).min())
print(json.dumps({"machine": vars(machine), "worst": worst}))
"""


def gpu() -> str:
    """The name of the GPU, or nothing."""
    if importlib.util.find_spec("cuda") is None or importlib.util.find_spec("cuda.core") is None:
        return ""
    program = "from cuda import core; device = core.Device(0); device.set_current(); print(device.name)"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False).stdout.strip()


@pytest.mark.parametrize("module", ["tensorrt", "tensorrt_rtx"])
def test_the_shipped_model_gives_its_golden_embeddings(module: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    if not (name := gpu()):
        pytest.skip("no NVIDIA GPU, or cuda-core is not installed")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, module],
        env={**os.environ, "UNIECS_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{name}: {done.stderr}"
    report = json.loads(done.stdout.splitlines()[-1])
    assert min(report["worst"].values()) > 0.9995, report
