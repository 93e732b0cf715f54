"""The builder on TensorRT for RTX, which builds ahead of time without a GPU; and our calls against its real types.

In subprocesses: its libraries may abort a process, and warn where tests take warnings for errors.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

pytest.importorskip("onnx", reason="engines are built from ONNX graphs")
if importlib.util.find_spec("tensorrt_rtx") is None:
    reason = "tensorrt-rtx-cu13 is not installed (pip install 'uniecs[tensorrt-test]')"
    pytest.skip(reason, allow_module_level=True)

from uniecs.bundle import packaged_bundle

BUILD = """
import sys
import tensorrt_rtx

sys.modules["tensorrt"] = tensorrt_rtx  # the same interface under another name

from uniecs.backends.engine_cache import Profile
from uniecs.bundle import open_bundle
from uniecs.export.tensorrt_build import _progress, build_engine

bundle, graph, *capabilities = sys.argv[1:]
bundle = open_bundle(bundle)
with _progress(graph) as monitor:
    engine, timings = build_engine(
        bundle, graph, Profile.of(bundle), monitor=monitor, compute_capabilities=tuple(capabilities)
    )
print(tensorrt_rtx.__version__, len(engine), monitor._outermost)
"""
DAMAGED = BUILD.replace(
    "bundle, graph, *cap",
    """
import onnx
from uniecs.export import tensorrt_build

def damaged(model):
    model.graph.node[-1].op_type = "Frobnicate"
    return model

tensorrt_build.half_graph = damaged
bundle, graph, *cap""",
)
CHECKED = ("uniecs.export.tensorrt_build", "uniecs.backends.tensorrt", "uniecs.backends.tensorrt_worker")
CUDA_CORE = """from cuda.core import system as system
from cuda.core._device import Device as Device
from cuda.core._memory._buffer import Buffer as Buffer
from cuda.core._memory._legacy import LegacyPinnedMemoryResource as LegacyPinnedMemoryResource
"""


def build(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    # tensorrt_rtx warns of its own deprecated timing cache: -W ignore.
    command = [sys.executable, "-W", "ignore", "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("graph", ["image_encoder", "text_encoder", "fusion"])
@pytest.mark.parametrize(("model", "capabilities"), [("mini", ("SM80", "SM86", "SM89", "SM120")), ("tiny", ("SM75",))])
def test_it_builds_ahead_of_time(
    model: str, capabilities: tuple[str, ...], graph: str, request: pytest.FixtureRequest
) -> None:
    path = packaged_bundle("mini") if model == "mini" else request.getfixturevalue("tiny_bundle")
    done = build(BUILD, str(path), graph, *capabilities)
    assert done.returncode == 0, done.stderr
    version, size, phase = done.stdout.split(maxsplit=2)
    assert version.startswith("1.")
    assert int(size) > 10_000
    assert phase.strip()


def test_a_graph_it_cannot_read_is_an_error_with_its_reason(tiny_bundle: Path) -> None:
    done = build(DAMAGED, str(tiny_bundle), "fusion")
    assert done.returncode == 1
    assert "BackendError: TensorRT cannot read fusion" in done.stderr
    assert "Frobnicate" in done.stderr


# --- types


@pytest.fixture(scope="module")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stubs of the real modules: of `tensorrt` made from the bindings of TensorRT for RTX, of `cuda.core` its own."""
    pytest.importorskip("mypy", reason="types are checked by mypy")
    folder = tmp_path_factory.mktemp("stubs")
    stubgen = [sys.executable, "-c", "from mypy.stubgen import main; main()", "-q", "-o", "."]
    bindings = "tensorrt_rtx_bindings.tensorrt_rtx"
    subprocess.run([*stubgen, "-m", bindings], cwd=folder, check=True, capture_output=True)
    generated = folder / "tensorrt_rtx_bindings" / "tensorrt_rtx.pyi"
    text = "\n".join(map(readable, generated.read_text("utf-8").splitlines()))
    # stubgen leaves out the buffer protocol, and the constant `bool` would hide the type.
    text = text.replace(
        "class IHostMemory:", "class IHostMemory:\n    def __buffer__(self, flags: int) -> memoryview: ..."
    )
    generated.write_text(re.sub(r"(?m)^bool: .*$", "", text), "utf-8")
    package = folder / "tensorrt" / "__init__.pyi"
    package.parent.mkdir()
    package.write_text(f"from {bindings} import *\n__version__: str\ndef nptype(trt_type: DataType) -> type: ...\n")
    try:
        installed = metadata.distribution("cuda-core")
    except metadata.PackageNotFoundError:
        pytest.skip("cuda-core is not installed (pip install 'uniecs[tensorrt]')")
    core = folder / "cuda" / "core"
    shutil.copytree(
        str(installed.locate_file("cuda/core/cu13")), core, ignore=shutil.ignore_patterns("*.so", "*.pxd", "_cpp")
    )
    (core / "__init__.py").unlink()
    (core / "__init__.pyi").write_text(CUDA_CORE)
    return folder


def readable(line: str) -> str:
    """A line of a stub, its parameters left open where stubgen wrote what is not Python."""
    if line.strip().startswith("def "):
        try:
            ast.parse(line.strip())
        except SyntaxError:
            return re.sub(r"\(.*", "(self, *args, **kwargs): ...", line)
    return line


def complaints(stubs: Path, sources: Path) -> list[str]:
    """What mypy says of our modules under `sources`, not of the stubs."""
    command = [sys.executable, "-m", "mypy", "--config-file=", "--ignore-missing-imports", "--check-untyped-defs"]
    modules = [each for module in CHECKED for each in ("-m", module)]
    done = subprocess.run(
        [*command, "--follow-imports=silent", "--cache-dir", str(stubs / "cache"), *modules],
        cwd=stubs,
        env={**os.environ, "MYPYPATH": f"{stubs}{os.pathsep}{sources}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return [line for line in done.stdout.splitlines() if f"{os.sep}uniecs{os.sep}" in line or line.startswith("uniecs")]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of our modules, in their places under the import name."""
    import uniecs

    home = Path(uniecs.__file__).parent
    target = tmp_path_factory.mktemp("sources")
    shutil.copytree(home, target / "uniecs", ignore=shutil.ignore_patterns("bundles", "__pycache__"))
    return target


def test_our_calls_have_the_types_of_the_real_bindings(stubs: Path, sources: Path) -> None:
    assert complaints(stubs, sources) == []


def test_the_check_of_types_can_fail(stubs: Path, sources: Path, tmp_path: Path) -> None:
    damages = [
        ("backends/tensorrt_worker.py", "execute_async_v3(int(", "execute_async_v9(int("),
        ("backends/tensorrt_worker.py", "create_graph_builder", "create_graph"),
        ("backends/tensorrt.py", "deserialize_cuda_engine(load", "deserialize_cuda_engine(1, load"),
        ("export/tensorrt_build.py", "trt.BuilderFlag.TF32", "trt.BuilderFlag.FP16"),
    ]
    damaged = Path(shutil.copytree(sources, tmp_path / "damaged"))
    for module, right, wrong in damages:
        path = damaged / "uniecs" / module
        text = path.read_text("utf-8")
        assert text.count(right) == 1
        path.write_text(text.replace(right, wrong), "utf-8")
    found = "\n".join(complaints(stubs, damaged))
    for name in ("execute_async_v9", '"create_graph"', "deserialize_cuda_engine", '"FP16"'):
        assert name in found, found
