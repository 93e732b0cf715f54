"""Both engines give the golden answers, alone and from many threads; what is unavailable is an error."""

from __future__ import annotations

import runpy
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from uniecs.backends import onnxruntime as ort_backend
from uniecs.backends import openvino as ov_backend
from uniecs.backends.base import Backend, available_backends, create_backend
from uniecs.bundle import Bundle
from uniecs.errors import BackendError, InputError, MissingExtraError

fake = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("fake_bundle.py"))))

BACKENDS = ("openvino", "onnxruntime")
"""Those that run on a CPU; test_tensorrt.py has the other."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    opened: Bundle = fake.write_fake_bundle(tmp_path_factory.mktemp("bundles") / "fake")
    return opened


def made(bundle: Bundle, backend: str, **options: Any) -> Backend:
    if backend == "onnxruntime":
        pytest.importorskip("onnxruntime")
    return create_backend(bundle, backend, **options)


def golden_run(backend: Backend, golden: dict[str, np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    """All golden rows in one batch, the absent sides full of what the golden inputs hold there."""
    pixels = {"pixel_values": golden["pixel_values"]}
    tokens = {"input_ids": golden["input_ids"], "attention_mask": golden["attention_mask"]}
    return backend.run(
        "fusion",
        {
            "image_tokens": backend.run("image_encoder", pixels),
            "text_tokens": backend.run("text_encoder", tokens),
            "text_mask": golden["attention_mask"],
            "modality_indicator": golden["modality_indicator"],
        },
    )


@pytest.mark.parametrize("threads", [None, 1, 2])
@pytest.mark.parametrize("name", BACKENDS)
def test_fp32_gives_the_golden_embeddings(bundle: Bundle, name: str, threads: int | None) -> None:
    backend = made(bundle, name, threads=threads)
    golden = bundle.golden()
    assert (backend.name, backend.device, backend.precision) == (name, "cpu", "fp32")
    np.testing.assert_allclose(golden_run(backend, golden), golden["embedding"], atol=1e-5)


def test_bf16_is_close_and_is_not_fp32(bundle: Bundle) -> None:
    if "bf16" not in available_backends()["openvino"]:
        with pytest.raises(BackendError, match="bf16"):
            create_backend(bundle, "openvino", precision="bf16")
        return
    golden = bundle.golden()
    embeddings = golden_run(create_backend(bundle, "openvino", precision="bf16"), golden)
    error = np.abs(embeddings - golden["embedding"]).max()
    assert 1e-5 < error < 0.1


@pytest.mark.parametrize("name", BACKENDS)
def test_many_threads_get_their_own_answers(bundle: Bundle, name: str) -> None:
    backend = made(bundle, name, threads=1)
    ids = np.random.default_rng(0).integers(0, 10, (64, 1, 5))
    mask = np.ones((1, 5), np.int64)

    def run(row: int) -> np.ndarray[Any, Any]:
        return backend.run("text_encoder", {"input_ids": ids[row], "attention_mask": mask})

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(run, range(64)))
    alone = [run(row) for row in range(64)]
    np.testing.assert_array_equal(together, alone)
    assert len({each.tobytes() for each in alone}) > 60


@pytest.mark.parametrize("name", BACKENDS)
def test_an_output_is_the_callers_own(bundle: Bundle, name: str) -> None:
    backend = made(bundle, name)
    inputs = {"input_ids": np.array([[2, 4, 3]]), "attention_mask": np.ones((1, 3), np.int64)}
    first = backend.run("text_encoder", inputs)
    kept = first.copy()
    backend.run("text_encoder", {**inputs, "input_ids": np.array([[2, 9, 3]])})
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("name", BACKENDS)
def test_engine_failures_are_backend_errors(bundle: Bundle, name: str, tmp_path: Path) -> None:
    backend = made(bundle, name)
    with pytest.raises(BackendError, match=r"image_encoder.*pixel_values"):
        backend.run("image_encoder", {"pixel_values": np.zeros((1, 3, 5, 5), np.float32)})
    broken = fake.write_fake_bundle(tmp_path / "broken")
    broken.graph_path("fusion").write_bytes(b"no graph at all")
    with pytest.raises(BackendError, match="cannot compile"):
        made(broken, name).run("fusion", {})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "torch"}, "expected one of auto, openvino, onnxruntime, tensorrt"),
        ({"device": "gpu"}, "expected one of auto, cpu, cuda"),
        ({"precision": "int4"}, "expected one of auto, fp32, bf16, fp16, int8"),
        ({"backend": "openvino", "device": "cuda"}, "onnxruntime-gpu"),
        ({"backend": "onnxruntime", "precision": "bf16"}, "openvino"),
    ],
)
def test_what_is_unavailable_is_an_error(bundle: Bundle, options: dict[str, str], message: str) -> None:
    with pytest.raises(BackendError, match=message):
        create_backend(bundle, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2", True])
def test_bad_threads_are_refused(bundle: Bundle, threads: Any) -> None:
    with pytest.raises(InputError, match="threads"):
        create_backend(bundle, threads=threads)


def fake_onnxruntime(listed: list[str], used: list[str]) -> SimpleNamespace:
    """An ONNX Runtime that lists providers and then uses others, as it does on a machine without a driver."""
    session = SimpleNamespace(get_providers=lambda: used, disable_fallback=lambda: None)
    return SimpleNamespace(
        get_available_providers=lambda: listed,
        SessionOptions=SimpleNamespace,
        InferenceSession=lambda *_, **__: session,
    )


@pytest.mark.parametrize(
    ("listed", "used", "message"),
    [
        (["CPUExecutionProvider"], [], "needs CUDAExecutionProvider"),
        (["CUDAExecutionProvider", "CPUExecutionProvider"], ["CPUExecutionProvider"], "fell back"),
    ],
)
@pytest.mark.parametrize("backend", ["auto", "onnxruntime"])
def test_cuda_never_falls_back_to_the_cpu(
    bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    backend: str,
    listed: list[str],
    used: list[str],
    message: str,
) -> None:
    monkeypatch.setattr(ort_backend, "import_onnxruntime", lambda: fake_onnxruntime(listed, used))
    with pytest.raises(BackendError, match=message):
        create_backend(bundle, backend, device="cuda")


def test_a_missing_engine_names_what_to_install(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"uniecs\[onnxruntime\]"):
        create_backend(bundle, "onnxruntime")
    assert available_backends()["onnxruntime"].startswith("unavailable: ")
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtraError, match="pip install openvino"):
        ov_backend.import_openvino()


def test_engines_are_imported_without_their_telemetry(tmp_path: Path) -> None:
    """Both wheels report home when imported plainly; ours must leave no trace in the home folder either."""
    code = (
        "import sys; from uniecs.backends.base import available_backends; print(available_backends()); "
        "sys.exit(any(name.split('.')[0] == 'openvino_telemetry' for name in sys.modules))"
    )
    environment = {"HOME": str(tmp_path), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())
