"""The TensorRT backend of the C++ SDK, on stand-ins for TensorRT and CUDA: nothing here has met a GPU.

The engines are those that Python's `uniecs build` stores, so that keys and files agree in both languages.
"""

from __future__ import annotations

import importlib.util
import os
import runpy
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx", reason="engines are built from ONNX graphs")
pytest.importorskip("onnxruntime", reason="what the engines must give is computed with it")

from uniecs.backends.base import create_backend
from uniecs.backends.engine_cache import EngineKey, Profile, default_cache, store_engine
from uniecs.backends.tensorrt import this_machine
from uniecs.bundle import Bundle
from uniecs.export.tensorrt_build import build_engines

HERE = Path(__file__).parent
FAKES, SOURCE = HERE / "fake_tensorrt_cpp", HERE.parent / "sdk" / "cpp"
VERSION = "10.9.0.34"  # as fake.cpp has it
fake = SimpleNamespace(**runpy.run_path(str(HERE / "fake_bundle.py")))
stand_ins = SimpleNamespace(**runpy.run_path(str(HERE / "fake_tensorrt.py")))
Array = np.ndarray[Any, Any]
Given = tuple[Array | None, tuple[Array, Array] | None]


def cuda_headers() -> Path:
    nvcc = shutil.which("nvcc")
    roots = [Path(nvcc).resolve().parents[1]] if nvcc else []
    for root in [*roots, Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))]:
        if (root / "include" / "cuda_runtime_api.h").is_file():
            return root / "include"
    pytest.skip("the CUDA toolkit's headers are not installed")


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the stand-ins for libnvinfer, libcudart and libnvidia-ml: one library."""
    openvino = importlib.util.find_spec("openvino")
    if openvino is None or openvino.origin is None:
        pytest.skip("the stand-in for TensorRT computes with OpenVINO")
    wheel, folder = Path(openvino.origin).parent, tmp_path_factory.mktemp("fakes")
    runtime = next((wheel / "libs").glob("libopenvino.so*"))
    includes = [f"-I{FAKES}", f"-I{SOURCE / 'src'}", f"-I{SOURCE / 'include'}"]
    system = ["-isystem", str(cuda_headers()), "-isystem", str(wheel / "include")]
    sources = [str(FAKES / "fake.cpp"), str(SOURCE / "src" / "json.cpp")]
    command = ["g++", "-std=c++17", "-O1", "-fPIC", "-shared", *includes, *system, *sources, str(runtime)]
    rpath = f"-Wl,-rpath,{wheel / 'libs'}"
    made = folder / "libnvinfer.so"
    done = subprocess.run([*command, rpath, "-o", str(made)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (folder / "libnvidia-ml.so.1").symlink_to(made)
    return folder


@pytest.fixture(scope="module")
def program(libraries: Path, cpp_build: Callable[..., Path]) -> Path:
    """sdk/cpp/tests/tensorrt_embed.cpp, built as with TensorRT's own headers."""
    paths = {
        "TENSORRT_INCLUDE_DIR": FAKES,
        "TENSORRT_LIBRARY": libraries / "libnvinfer.so",
        "CUDA_INCLUDE_DIR": cuda_headers(),
        "CUDART_LIBRARY": libraries / "libnvinfer.so",
    }
    options = ["-DUNIECS_TENSORRT=ON", *(f"-D{name}={path}" for name, path in paths.items())]
    return cpp_build(*options, targets=("tensorrt_embed",)) / "tensorrt_embed"


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The machine that Python's stand-ins play, which is the one of those in C++; with an empty cache."""
    monkeypatch.setenv("UNIECS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(stand_ins.State.__init__.__globals__, "VERSION", VERSION)
    return stand_ins.install(monkeypatch)


Run = Callable[..., SimpleNamespace]


@pytest.fixture
def run(program: Path, libraries: Path, bundle: Bundle, tmp_path: Path) -> Run:
    """Embeds batches in C++: the embeddings of each, what the stand-ins noted, and what went wrong."""

    def embed(given: Sequence[Given], threads: int = 1, **environment: str) -> SimpleNamespace:
        log = tmp_path / "log"
        log.unlink(missing_ok=True)
        known = {**os.environ, "LD_LIBRARY_PATH": str(libraries), "FAKE_LOG": str(log), **environment}
        done = subprocess.run(
            [str(program), str(bundle.path), str(threads)],
            input=b"".join(map(request, given)),
            capture_output=True,
            env=known,
            check=False,
        )
        rows = np.frombuffer(done.stdout, np.float32).reshape(-1, bundle.embed_dim)
        ends = np.cumsum([size_of(each) for each in given])[:-1] if len(rows) else []
        events = log.read_text().split() if log.exists() else []
        error = done.stderr.decode(errors="replace")
        assert "broken rule" not in error
        return SimpleNamespace(status=done.returncode, embeddings=np.split(rows, ends), events=events, error=error)

    return embed


def size_of(given: Given) -> int:
    pixels, tokens = given
    return len(pixels) if pixels is not None else 0 if tokens is None else len(tokens[0])


def request(given: Given) -> bytes:
    pixels, tokens = given
    length = 0 if tokens is None else tokens[0].shape[1]
    parts: list[Array] = [np.array([size_of(given), length, pixels is not None], np.int64)]
    parts += [] if tokens is None else [each.astype(np.int64) for each in tokens]
    parts += [] if pixels is None else [pixels.astype(np.float32)]
    return b"".join(each.tobytes() for each in parts)


def test_embeddings_are_those_of_the_graphs(state: Any, run: Run, bundle: Bundle) -> None:
    """Every kind of item, in batches below and above the profile's; thrice: directly, captured, from the CUDA graph."""
    build_engines(bundle)
    given: list[Given] = []
    for count in (1, 3, 32, 70):
        pixels, tokens = fake.golden_rows(bundle.golden(), count)
        given += [(pixels, None), (None, tokens), (pixels, tokens)] * 3
    found = run(given)
    assert found.status == 0, found.error
    assert found.error == ""
    graphs = create_backend(bundle, "onnxruntime")
    for each, embeddings in zip(given, found.embeddings, strict=True):
        np.testing.assert_allclose(embeddings, graphs.embed(*each), atol=5e-3)
    assert np.abs(found.embeddings[-1] - found.embeddings[-2]).max() > 0.1  # not one answer for all
    # Of the small batches, one of one item and one of three, three kinds each.
    assert (found.events.count("capture"), found.events.count("launch")) == (6, 12)


def test_an_absent_side_is_zero_whatever_ran_before(state: Any, run: Run, bundle: Bundle) -> None:
    build_engines(bundle)
    pixels, tokens = fake.golden_rows(bundle.golden(), 8)
    alone, _, after = run([(pixels, None), (pixels, tokens), (pixels, None)]).embeddings
    np.testing.assert_array_equal(alone, after)


def test_what_cannot_be_captured_still_runs(state: Any, run: Run, bundle: Bundle) -> None:
    build_engines(bundle)
    pixels, tokens = fake.golden_rows(bundle.golden(), 2)
    found = run([(pixels, tokens)] * 4, FAKE_NO_CAPTURE="1")
    assert found.status == 0 and "launch" not in found.events
    for embeddings in found.embeddings[1:]:
        np.testing.assert_array_equal(embeddings, found.embeddings[0])


def test_many_threads_get_their_own_answers(state: Any, run: Run, bundle: Bundle) -> None:
    build_engines(bundle)
    pixels, (ids, mask) = fake.golden_rows(bundle.golden(), 6)
    given: list[Given] = [(pixels[i : i + 1], (ids[i : i + 1], mask[i : i + 1])) for i in range(6)] * 6
    found, alone = run(given, threads=4), run(given[:6])
    for place, embeddings in enumerate(found.embeddings):
        np.testing.assert_array_equal(embeddings, alone.embeddings[place % 6])


def test_engines_for_another_machine_are_refused(state: Any, run: Run, bundle: Bundle) -> None:
    assert "no TensorRT engine of image_encoder" in run([]).error
    build_engines(bundle)
    assert run([]).status == 0
    other = run([], FAKE_GPU="Other GPU")
    assert other.status == 1
    assert other.error.startswith("EngineMismatchError") and "gpu: Fake GPU, here Other GPU" in other.error


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-1], "its checksum differs"),
        (lambda data: data.replace(b"580.65.6", b"580.65.7"), "driver: 580.65.7, here 580.65.6"),
        (lambda data: b"x" + data[1:], "is no engine of uniecs"),
        (lambda data: data[:20], "is no engine of uniecs"),
        (lambda data: data[:40], "is no engine of uniecs"),
        (lambda data: data[:16] + b"\xff" * 8 + data[24:], "is no engine of uniecs"),
    ],
)
def test_a_damaged_engine_is_told(state: Any, run: Run, bundle: Bundle, damage: Any, message: str) -> None:
    build_engines(bundle)
    (path,) = (default_cache() / "tensorrt" / bundle.model_id).glob("fusion-*.engine")
    path.write_bytes(damage(path.read_bytes()))
    found = run([])
    assert found.status == 1
    assert found.error.startswith("EngineMismatchError") and message in found.error


def test_an_engine_that_tensorrt_cannot_load_is_an_error(state: Any, run: Run, bundle: Bundle) -> None:
    build_engines(bundle)
    key = EngineKey(bundle.model_id, "fusion", this_machine(), Profile.of(bundle))
    store_engine(default_cache(), key, b"no engine")
    found = run([])
    assert found.status == 1 and "cannot load" in found.error and "bad magic" in found.error
