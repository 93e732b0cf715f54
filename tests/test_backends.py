"""Both engines give the golden answers, alone and from many threads; what is unavailable is an error."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from uniecs.backends import base
from uniecs.backends import onnxruntime as ort_backend
from uniecs.backends import openvino as ov_backend
from uniecs.backends.base import Backend, available_backends, create_backend
from uniecs.bundle import Bundle, write_manifest
from uniecs.encoder import embed
from uniecs.errors import BackendError, BundleError, InputError, MissingExtraError

fake = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("fake_bundle.py"))))

BACKENDS = ("openvino", "onnxruntime")
"""Those that run on a CPU; test_tensorrt.py has the other."""


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
    with pytest.raises(BackendError, match=r"cannot compile .*fusion\.onnx"):
        made(write_manifest(broken.path, broken.manifest), name).run("fusion", {})


@pytest.mark.parametrize("name", BACKENDS)
def test_a_graph_that_was_replaced_since_it_was_opened_is_not_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNIECS_CACHE", str(tmp_path / "cache"))
    backend = made(fake.write_fake_bundle(tmp_path / "live"), name)
    other = fake.write_fake_bundle(tmp_path / "live", seed=1)
    for graph in other.manifest["graphs"]:
        with pytest.raises(BundleError, match=rf"{graph}\.onnx has changed since the bundle was loaded"):
            backend.run(graph, {})
    np.testing.assert_allclose(golden_run(made(other, name), other.golden()), other.golden()["embedding"], atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "torch"}, "expected one of auto, openvino, onnxruntime, tensorrt"),
        ({"device": "gpu"}, "expected one of auto, cpu, cuda"),
        ({"precision": "int4"}, "expected one of auto, fp32, bf16, fp16, int8"),
        ({"backend": "openvino", "device": "cuda"}, "onnxruntime-gpu"),
        ({"backend": "onnxruntime", "precision": "bf16"}, "use backend='openvino'"),
        ({"device": "cuda", "precision": "fp16"}, "use backend='tensorrt'"),
        ({"device": "cuda", "precision": "int8"}, "use precision='fp32'"),
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
        SessionOptions=lambda: SimpleNamespace(add_session_config_entry=lambda *_: None),
        InferenceSession=lambda *_, **__: session,
        preload_dlls=lambda: print("Failed to load libcublas.so.13"),
    )


@pytest.mark.parametrize(
    ("listed", "used", "message"),
    [
        (["CPUExecutionProvider"], [], "needs CUDAExecutionProvider"),
        (
            ["CUDAExecutionProvider", "CPUExecutionProvider"],
            ["CPUExecutionProvider"],
            "fell back.*Failed to load libcublas",
        ),
    ],
)
@pytest.mark.parametrize("backend", ["auto", "onnxruntime"])
def test_cuda_never_falls_back_to_the_cpu(
    bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    backend: str,
    listed: list[str],
    used: list[str],
    message: str,
) -> None:
    monkeypatch.setattr(ort_backend, "import_onnxruntime", lambda: fake_onnxruntime(listed, used))
    with pytest.raises(BackendError, match=message):
        create_backend(bundle, backend, device="cuda")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("kinds", ["image", "text", "both"])
def test_tokens_pass_from_session_to_session_on_the_device(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, kinds: str
) -> None:
    """The path for GPUs, with OrtValues on the CPU."""
    pytest.importorskip("onnxruntime")
    backend: Any = create_backend(bundle, "onnxruntime", threads=1)
    golden = bundle.golden()
    has = golden["modality_indicator"]
    rows = (has == {"image": (1, 0), "text": (0, 1), "both": (1, 1)}[kinds]).all(1)
    tokens = (golden["input_ids"][rows], golden["attention_mask"][rows]) if kinds != "image" else None
    pixels = golden["pixel_values"][rows] if kinds != "text" else None
    passed: list[Any] = []
    original = ort_backend.Session.bound

    def spied(self: Any, inputs: Any) -> Any:
        passed.append(dict(inputs))
        return original(self, inputs)

    monkeypatch.setattr(ort_backend.Session, "bound", spied)
    embedding = backend.embed(pixels, tokens)
    np.testing.assert_allclose(embedding, golden["embedding"][rows], atol=1e-5)
    assert np.abs(embedding[::-1] - golden["embedding"][rows]).max() > 0.01
    np.testing.assert_array_equal(embedding, embed(backend, 8, pixels, tokens))
    on_device = {name for name, value in passed[-1].items() if not isinstance(value, np.ndarray)}
    assert (
        on_device
        == {"image": {"image_tokens"}, "text": {"text_tokens"}, "both": {"image_tokens", "text_tokens"}}[kinds]
    )
    with pytest.raises(BackendError, match=r"image_encoder.*pixel_values"):
        backend.embed(np.zeros((1, 3, 5, 5), np.float32), None)


THREADS = """
import re, sys, time, numpy as np
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uniecs.encoder import load
encoder = load(sys.argv[1], backend=sys.argv[2], threads=int(sys.argv[3]))
picture = np.zeros((20, 15, 3), np.uint8)
with ThreadPoolExecutor(4) as pool:
    list(pool.map(lambda _: encoder.encode(["red bag"], [picture]), range(40)))
counts = []
for _ in range(20):  # a thread that Python has joined may take a moment to leave the kernel's list
    counts.append(int(re.search(r"Threads:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]))
    time.sleep(0.02)
print(min(counts))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="counts threads as Linux does")
@pytest.mark.parametrize("name", BACKENDS)
def test_threads_bounds_what_a_process_starts(bundle: Bundle, name: str) -> None:
    if name == "onnxruntime":
        pytest.importorskip("onnxruntime")

    def count(threads: int) -> int:
        command = [sys.executable, "-c", THREADS, str(bundle.path), name, str(threads)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return int(done.stdout)

    one, three = count(1), count(3)
    # OpenVINO: an idle executor or two a graph, and one pool for all. ONNX Runtime: a pool a graph, without the caller.
    assert three <= one + (3 * 2 if name == "onnxruntime" else 2)
    assert one <= 16


def test_sessions_neither_spin_nor_hoard(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    seen: list[Any] = []
    original = onnxruntime.InferenceSession

    def spied(model: bytes, options: Any, providers: Any) -> Any:
        seen.append(options)
        return original(model, options, providers=providers)

    monkeypatch.setattr(onnxruntime, "InferenceSession", spied)
    golden_run(create_backend(bundle, "onnxruntime", threads=2), bundle.golden())
    assert [each.intra_op_num_threads for each in seen] == [2, 2, 2]
    assert not any(each.enable_cpu_mem_arena for each in seen)
    assert {each.get_session_config_entry("session.intra_op.allow_spinning") for each in seen} == {"0"}


SIGNAL = """
import gc, os, signal, sys, threading, time
from uniecs.encoder import load
def loaded():
    encoder = load(sys.argv[1], backend="openvino", threads=1)
    encoder.encode(["red bag"], [None])
    return encoder
encoders = [loaded(), loaded()]
def free():
    while encoders:
        del encoders[0]
        gc.collect()
if sys.argv[2] == "here":
    free()
else:
    thread = threading.Thread(target=free)
    thread.start()
    thread.join()
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(10)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.parametrize("where", ["here", "in another thread"])
def test_signals_arrive_when_encoders_are_gone(bundle: Bundle, where: str) -> None:
    """OpenVINO's stack for signal handlers was freed while in use."""
    command = [sys.executable, "-c", SIGNAL, str(bundle.path), where]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr


FORK = """
import os, sys
from uniecs.encoder import load
before = load(sys.argv[1], backend="openvino", threads=2).encode(["red bag " * 9], [None])
if child := os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
after = load(sys.argv[1], backend="openvino", threads=2).encode(["red bag " * 9], [None])
os._exit(0 if (after == before).all() else 3)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_process_may_load_what_its_parent_has(bundle: Bundle) -> None:
    command = [sys.executable, "-c", FORK, str(bundle.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


def test_openvino_pins_no_thread_and_keeps_few_requests(bundle: Bundle) -> None:
    backend: Any = create_backend(bundle, "openvino", threads=2)
    model = backend._compiled_model("fusion")
    assert model.get_property("ENABLE_CPU_PINNING") is False
    assert model.get_property("INFERENCE_NUM_THREADS") == 2
    made_requests = 0

    def counted() -> Any:
        nonlocal made_requests
        made_requests += 1
        return request

    def infer(inputs: Any, share_inputs: bool) -> Any:
        together.wait(30)  # so many at once, of 12 that call
        if inputs:
            raise RuntimeError("a request that fails is given back too")
        return [inputs]

    request = SimpleNamespace(infer=infer)
    backend._compiled_model = lambda graph: SimpleNamespace(create_infer_request=counted)
    run = backend._compile("text_encoder")
    together = threading.Barrier(ov_backend.MAX_REQUESTS)
    for bad in (False, True, False):
        with ThreadPoolExecutor(12) as pool:
            done = [pool.submit(run, {"input_ids": 0} if bad else {}) for _ in range(12)]
        assert [each.exception() is not None for each in done] == [bad] * 12
        assert made_requests == ov_backend.MAX_REQUESTS


def test_a_quota_bounds_the_threads(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "usable_cpus", lambda: 1)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    backend: Any = create_backend(bundle)
    assert backend._threads == 1
    assert create_backend(bundle, threads=3)._threads == 3  # type: ignore[attr-defined]
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    assert create_backend(bundle)._threads is None  # type: ignore[attr-defined]


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
