"""The corpora of the fuzzers (sdk/cpp/fuzz), their past findings among them, under AddressSanitizer and UBSan."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

CORPUS = Path(__file__).parents[1] / "sdk" / "cpp" / "fuzz" / "corpus"
FUZZERS = {
    "images": "image",
    "manifests": "manifest",
    "snapshots": "snapshot",
    "stores": "store",
    "tokenizer": "tokenizer",
}


@pytest.fixture(scope="module")
def fuzzers(sanitized_build: Callable[[str], Path], cpp_build: Callable[..., Path]) -> Path:
    sanitized_build("address,undefined")  # first: ccache then has most of what both need
    # With libFuzzer where the compiler is clang, else with fuzz/replay.cpp: both run files that they are given.
    return cpp_build("-DUNIECS_FUZZ=ON", "-DBUILD_TESTING=OFF")


@pytest.mark.parametrize("folder", FUZZERS)
def test_a_corpus_has_no_finding(fuzzers: Path, folder: str) -> None:
    program = fuzzers / f"{FUZZERS[folder]}_fuzzer"
    if not program.exists():
        pytest.skip("a library of the C++ SDK is not installed: see CONTRIBUTING.md")
    files = sorted((CORPUS / folder).iterdir())
    assert files
    done = subprocess.run([str(program), *map(str, files)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-200:] + done.stderr[-4000:]


def test_all_corpora_are_replayed() -> None:
    assert {path.name for path in CORPUS.iterdir()} == set(FUZZERS)
