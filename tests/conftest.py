"""Fixtures shared by all tests: a tiny random checkpoint, and the bundle exported from it."""

from __future__ import annotations

import importlib.util
import json
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest


def pytest_configure() -> None:
    """Tests compile what they test, and leave nothing in the home folder."""
    os.environ["UNIECS_CACHE"] = ""


# The files that take longest come first, or a process would be left with one of them in the end.
LONGEST = [
    f"test_{name}"
    for name in (
        *("bulk_embed", "distributed", "cpp_tokenizer", "graph", "cpp_images", "from_bundle", "gate_kernel"),
        *("house", "cpp_engine", "item_fusion", "export", "cpp_fuzz", "cpp_benchmarks", "training"),
    )
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


COLOURS = ("red", "blue", "black", "green", "white", "grey")


def tokenizer_json() -> bytes:
    """A small uncased WordPiece tokenizer in the layout of BERT's: special tokens, ASCII, a few words."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer
    from tokenizers.processors import TemplateProcessing

    characters = [chr(code) for code in range(33, 127) if not chr(code).isupper()] + list("红色连衣裙女夏季")
    words = ("red", "blue", "black", "cotton", "shirt", "dress", "shoes", "watch", "bag", "leather", "women", "kurta")
    tokens = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *characters,
        *(f"##{c}" for c in characters),
        *words,
    ]
    tokenizer = Tokenizer(WordPiece({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return tokenizer.to_str().encode()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a file's lock; another process waits."""
    import fcntl

    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this run that all of pytest's processes share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def cpp_build(shared: Path) -> Callable[..., Path]:
    """Builds sdk/cpp with some options of CMake, whole or some targets, once; returns the folder of the programs."""

    def build(*options: str, targets: Sequence[str] = ()) -> Path:
        cmake = shutil.which("cmake")
        if cmake is None:
            pytest.skip("cmake is not installed")
        folder = shared / f"cpp-{crc32(repr((options, targets)).encode()):08x}"
        with locked(folder.with_suffix(".lock")):
            if not (folder / "built").exists():
                source = Path(__file__).parents[1] / "sdk" / "cpp"
                for command in (
                    [cmake, "-S", str(source), "-B", str(folder), *options],
                    [cmake, "--build", str(folder), "--parallel", "2", *(["--target", *targets] if targets else [])],
                ):
                    done = subprocess.run(command, capture_output=True, text=True, check=False)
                    if "UNIECS_SDK needs" in done.stderr:
                        pytest.skip("libraries of the C++ SDK are not installed: see CONTRIBUTING.md")
                    assert done.returncode == 0, done.stdout + done.stderr
                (folder / "built").touch()
        return folder

    return build


@pytest.fixture(scope="session")
def sanitized_build(cpp_build: Callable[..., Path]) -> Callable[[str], Path]:
    """Builds sdk/cpp with "address,undefined", or its programs of many threads with "thread"."""
    targets = {"thread": ("of_many_threads",)}
    return lambda sanitizer: cpp_build(f"-DUNIECS_SANITIZE={sanitizer}", targets=targets.get(sanitizer, ()))


def sdk_options() -> list[str]:
    """The SDK as docs/cpp.md builds it, with OpenVINO from its wheel, and its benchmarks."""
    found = importlib.util.find_spec("openvino")
    assert found is not None and found.origin is not None
    prefix = f"-DCMAKE_PREFIX_PATH={Path(found.origin).parent / 'cmake'}"
    return ["-DUNIECS_SDK=ON", "-DUNIECS_BENCHMARKS=ON", "-DBUILD_TESTING=OFF", prefix]


@pytest.fixture(scope="session")
def cpp_sdk_build(cpp_build: Callable[..., Path]) -> Path:
    """The SDK, its examples and benchmarks."""
    return cpp_build(*sdk_options())


@pytest.fixture(scope="session")
def sanitized_soak(sanitized_build: Callable[[str], Path], cpp_build: Callable[..., Path]) -> Path:
    """benchmarks/cpp/soak.cpp and the SDK under it with AddressSanitizer and UndefinedBehaviorSanitizer."""
    sanitized_build("address,undefined")  # first: ccache then has what both need
    return cpp_build("-DUNIECS_SANITIZE=address,undefined", *sdk_options(), targets=["soak"]) / "soak"


@pytest.fixture(scope="session")
def draw_catalog() -> Callable[[Path], list[dict[str, Any]]]:
    """Draws `products.jsonl` into a folder, and returns its rows.

    24 products: 6 colours x 2 kinds x 2 variants; colour and kind make a group of two. A photo is its colour.
    """

    def draw(folder: Path) -> list[dict[str, Any]]:
        from PIL import Image

        rows = []
        for colour in COLOURS:
            Image.new("RGB", (24, 32), colour).save(folder / f"{colour}.png")
            for kind in ("shirt", "bag"):
                for variant in ("cotton", "leather"):
                    row = {"id": f"{colour}-{kind}-{variant}", "title": f"{colour} {variant} {kind}", "colour": colour}
                    rows.append(row | {"kind": kind, "image": f"{colour}.png"})
        (folder / "products.jsonl").write_text("\n".join(map(json.dumps, rows)))
        return rows

    return draw


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a checkpoint of the `tiny` configuration with seeded random weights."""
    torch = pytest.importorskip("torch", reason="making a checkpoint needs torch")
    pytest.importorskip("transformers", reason="making a checkpoint needs transformers")
    from uniecs.config import MODELS
    from uniecs.trainer.checkpoint import save_checkpoint
    from uniecs.trainer.model import UniECS

    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = UniECS(MODELS["tiny"])
    save_checkpoint(folder, model, tokenizer_json(), {"seed": 0, "steps": 0, "command": "tests/conftest.py"})
    return folder


@pytest.fixture(scope="session")
def resumes_alike() -> Callable[[Any], Any]:
    """Trains a `TrainConfig` whole, and once more with a stop after three steps: asserts equal weights and scalers.

    Returns the checkpoint of the run that was stopped and resumed, in the output's folder with "-stopped" added.
    """

    def check(config: Any) -> Any:
        import torch

        from uniecs.trainer.checkpoint import load_checkpoint, load_training_state
        from uniecs.trainer.distributed import World
        from uniecs.trainer.loop import Run, fast_attention, train

        whole = load_checkpoint(train(config))
        stopped = replace(config, output=f"{config.output}-stopped")
        run = Run(stopped, World(0, 1, torch.device("cpu")), None)
        with fast_attention(run.model):
            for _, batch in zip(range(3), run.batches(), strict=False):
                run.train_step(batch)
        run.save(Path(stopped.output))
        resumed = load_checkpoint(train(stopped, resume=True))
        for (name, a), b in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
            assert torch.equal(a, b), name
        states = [load_training_state(Path(each.output)) for each in (config, stopped)]
        assert states[0]["scaler"] == states[1]["scaler"]
        return resumed

    return check


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Path, shared: Path) -> Path:
    """Folder of the bundle exported from `tiny_checkpoint`, once; read-only by agreement."""
    for module in ("onnx", "onnxscript", "onnxruntime", "openvino"):
        pytest.importorskip(module, reason=f"exporting a bundle needs {module}")
    from uniecs.export.bundle_export import export_bundle

    folder = shared / "tiny"
    with locked(shared / "tiny.lock"):
        return folder if folder.exists() else export_bundle(tiny_checkpoint, folder).path


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`tests/fake_bundle.py`'s bundle, opened; read-only by agreement."""
    pytest.importorskip("onnx", reason="the graphs are written with onnx")
    write = runpy.run_path(str(Path(__file__).with_name("fake_bundle.py")))["write_fake_bundle"]
    return write(tmp_path_factory.mktemp("bundles") / "fake")


@pytest.fixture(scope="session")
def cpp_sdk(cpp_sdk_build: Path) -> Any:
    """`tests/cpp_sdk.py`'s Sdk: the C interface."""
    sdk = runpy.run_path(str(Path(__file__).with_name("cpp_sdk.py")))["Sdk"]
    return sdk(cpp_sdk_build / "libuniecs.so")


@pytest.fixture(scope="session")
def cpp_encoder(cpp_sdk: Any, tiny_bundle: Path) -> Iterator[Any]:
    """The tiny bundle in the C++ SDK."""
    loaded = cpp_sdk.load(tiny_bundle)
    yield loaded
    cpp_sdk.c.uniecs_encoder_free(loaded)


@pytest.fixture(scope="session")
def tiny_encoder(tiny_bundle: Path) -> Any:
    """The tiny bundle in Python."""
    import uniecs

    return uniecs.load(tiny_bundle, threads=1)


@pytest.fixture(scope="session")
def comma_locale(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a locale that writes one and a half as 1,5."""
    localedef = shutil.which("localedef")
    if localedef is None:
        pytest.skip("localedef is not installed (Debian: libc-bin)")
    folder = tmp_path_factory.mktemp("locale")
    (folder / "source").write_text('LC_NUMERIC\ndecimal_point ","\nthousands_sep ""\ngrouping -1\nEND LC_NUMERIC\n')
    command = [localedef, "-c", "-i", folder / "source", folder / "xx_XX"]  # -c: though that is not all of a locale
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (folder / "xx_XX" / "LC_NUMERIC").exists(), done.stderr
    return {"LOCPATH": str(folder), "LC_ALL": "xx_XX"}


@pytest.fixture
def tmpfs() -> Iterator[Path]:
    """A file system of 8 MB."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root on Linux")
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode != 0:
        folder.rmdir()
        pytest.skip(f"tmpfs cannot be mounted here: {mounted.stderr.decode()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)
    folder.rmdir()


@pytest.fixture(scope="session")
def milvus() -> None:
    """Skips where Milvus is not installed."""
    pytest.importorskip("pymilvus", reason="pymilvus is not installed (the milvus extra)")
    pytest.importorskip("milvus_lite", reason="milvus-lite is not installed (the milvus extra, not on Windows)")


@pytest.fixture
def milvus_url(milvus: None, tmp_path: Path) -> str:
    """Of a collection of milvus-lite's that does not exist yet."""
    return f"milvus-lite://{tmp_path}/shop.db/products"
