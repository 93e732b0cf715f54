"""The C++ sources compile for aarch64 without a warning, all but OpenVINO's and TensorRT's side. Nothing runs there."""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

CPP = Path(__file__).parents[1] / "sdk" / "cpp"
FOREIGN = (
    *("openvino", "NvInferRuntime.h", "bert_encoder_model.hpp", "graph_arrays.hpp", "item_fusion_model.hpp"),
    *("token_padding.hpp", "tensorrt_worker.hpp"),
)


@pytest.mark.parametrize("folder", ["src", "store", "images", "sdk"])
def test_it_compiles_for_aarch64(folder: str) -> None:
    compiler = shutil.which("aarch64-linux-gnu-g++")
    if compiler is None:
        pytest.skip("g++-aarch64-linux-gnu is not installed")
    sources = [str(path) for path in sorted((CPP / folder).glob("*.cpp")) if not includes(path, *FOREIGN)]
    assert sources
    # Last of all the host's headers: libjpeg's jconfig.h, which says the same of both.
    host = f"-idirafter/usr/include/{sysconfig.get_config_var('MULTIARCH')}"
    flags = ["-fsyntax-only", "-std=c++17", "-Wall", "-Wextra", "-Werror", f"-I{CPP / 'include'}", host]
    done = subprocess.run([compiler, *flags, *sources], capture_output=True, text=True, check=False)
    if "No such file or directory" in done.stderr:
        pytest.skip(f"a library of the C++ SDK is not installed: {done.stderr.strip().splitlines()[0]}")
    assert done.returncode == 0, done.stderr


def includes(path: Path, *headers: str) -> bool:
    lines = [line for line in path.read_text("utf-8").splitlines() if line.startswith("#include")]
    return any(header in line for line in lines for header in headers)
