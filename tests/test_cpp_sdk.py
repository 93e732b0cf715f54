"""The C++ SDK through its C interface: the embeddings are Python's, and errors are statuses with messages."""

from __future__ import annotations

import ctypes
import io
import json
import locale
import os
import resource
import runpy
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import uniecs
from uniecs.bundle import open_bundle, packaged_bundle, write_manifest

OK, INPUT, IMAGE, TEXT, BUNDLE, BACKEND = 0, 1, 2, 3, 5, 8
Pair = tuple[str | None, bytes | None]


cpp = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("cpp_sdk.py"))))


@pytest.fixture(scope="module")
def sdk(cpp_sdk_build: Path) -> Any:
    return cpp.Sdk(cpp_sdk_build / "libuniecs.so")


def photo(seed: int, size: tuple[int, int], kind: str) -> bytes:
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(0, 256, (9, 7, 3), dtype=np.uint8))
    file = io.BytesIO()
    small.resize(size, Image.Resampling.BICUBIC).save(file, kind)
    return file.getvalue()


def pairs() -> list[Pair]:
    """Texts, photos and both, of many lengths and kinds."""
    texts = ["red kurta", "Blue cotton shirt for men, slim fit", "x", "连衣裙 夏季", "Café ÉTÉ 👗", "word " * 100]
    photos = [
        photo(0, (300, 400), "JPEG"),
        photo(1, (1500, 2000), "JPEG"),
        photo(2, (60, 80), "PNG"),
        photo(3, (400, 50), "WEBP"),
    ]
    both: list[Pair] = [(text, image) for text, image in zip(texts, photos, strict=False)]
    return [(text, None) for text in texts] + [(None, image) for image in photos] + both


@pytest.mark.parametrize("bundle", ["mini", "tiny"])
def test_embeddings_are_pythons(sdk: Any, bundle: str, request: pytest.FixtureRequest) -> None:
    folder = packaged_bundle("mini") if bundle == "mini" else request.getfixturevalue("tiny_bundle")
    encoder = sdk.load(folder)
    python = uniecs.load(folder, threads=1)
    assert sdk.c.uniecs_encoder_model_id(encoder).decode() == python.model_id
    items = pairs()
    status, found = sdk.encode(encoder, items)
    assert status == OK, sdk.message()
    expected = python.encode([text for text, _ in items], [image for _, image in items])
    cosine = (found * expected).sum(1)
    assert cosine.min() >= 1 - 1e-6
    assert (found[1:] * expected[:-1]).sum(1).max() < 1 - 1e-3  # other items are not as near
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    sdk.c.uniecs_encoder_free(encoder)


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_low_precisions_are_pythons(sdk: Any, precision: str) -> None:
    folder, items = packaged_bundle("mini"), pairs()
    texts, images = [text for text, _ in items], [image for _, image in items]
    try:
        python = uniecs.load(folder, precision=precision, threads=1)
    except uniecs.BackendError as error:
        made = ctypes.c_void_p()  # what Python refuses C++ refuses
        given = (str(folder).encode(), b"openvino", precision.encode(), 1)
        assert sdk.c.uniecs_encoder_load(*given, ctypes.byref(made)) == BACKEND
        pytest.skip(str(error))
    encoder = sdk.load(folder, precision.encode())
    status, found = sdk.encode(encoder, items)
    assert status == OK, sdk.message()
    cosine = (found * python.encode(texts, images)).sum(1)
    plain = (found * uniecs.load(folder, threads=1).encode(texts, images)).sum(1)
    assert cosine.min() >= 1 - 1e-4 and cosine.mean() > plain.mean() + 1e-5
    sdk.c.uniecs_encoder_free(encoder)


def test_golden_vectors(sdk: Any) -> None:
    """Photos, texts and both, from image files and strings on: fp32 within 1e-6, and no other row's."""
    folder = packaged_bundle("mini")
    bundle = open_bundle(folder)
    golden, texts = bundle.golden(), bundle.manifest["golden"]["texts"]
    sides = golden["modality_indicator"].astype(bool)
    assert {tuple(row) for row in sides} == {(True, False), (False, True), (True, True)}
    given: list[Pair] = [
        (text if has_text else None, png(image) if has_image else None)
        for (has_image, has_text), text, image in zip(sides, texts, golden["images"], strict=True)
    ]
    encoder = sdk.load(folder)
    status, found = sdk.encode(encoder, given)
    assert status == OK, sdk.message()
    cosines = found @ golden["embedding"].T
    assert cosines.diagonal().min() >= 1 - 1e-6
    assert (cosines - 2 * np.eye(len(given))).max() < 1 - 1e-3
    sdk.c.uniecs_encoder_free(encoder)


def png(image: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def test_an_encoder_tells_what_it_is(sdk: Any, tiny_bundle: Path, tiny_encoder: Any) -> None:
    encoder = sdk.load(tiny_bundle)
    for name in ("model_id", "backend", "device", "precision"):
        assert getattr(sdk.c, f"uniecs_encoder_{name}")(encoder).decode() == getattr(tiny_encoder, name)
    assert sdk.c.uniecs_encoder_bundle(encoder) == bytes(tiny_bundle)
    assert sdk.c.uniecs_encoder_backend(None) == b""
    sdk.c.uniecs_encoder_free(encoder)


def test_items_that_cannot_be_used_are_reported(sdk: Any, tiny_bundle: Path) -> None:
    encoder = sdk.load(tiny_bundle)
    given = [*pairs()[:2], (None, b"no image"), *pairs()[2:], ("", None), (None, None)]
    expected = sdk.encode(encoder, pairs())[1]
    for batch_size in (0, 1, 5):
        found, embedded, rejected = sdk.encode_good(encoder, given, batch_size)
        good = ~np.isnan(found).any(1)
        assert good.sum() == embedded == len(expected)
        assert (found[good] * expected).sum(1).min() >= 1 - 1e-5
        assert [(row, id, status) for row, id, status, _ in rejected] == [
            (2, "", IMAGE),
            (len(given) - 2, "", TEXT),
            (len(given) - 1, "", INPUT),
        ]
        assert all(message for *_, message in rejected)
    twice = cpp.items(given[:1])
    twice[0].image_path = b"a.jpg"
    twice[0].image_data, twice[0].image_bytes = b"x", 1
    assert sdk.encode_good(encoder, twice)[2] == [(0, "", INPUT, "there are both image_path and image_data")]
    assert sdk.encode_good(encoder, [])[1:] == (0, [])
    sdk.c.uniecs_encoder_free(encoder)


def test_many_threads_use_the_c_interface_under_thread_sanitizer(
    sanitized_build: Callable[[str], Path], tmp_path: Path
) -> None:
    program = sanitized_build("thread") / "sdk_stress"
    if not program.exists():
        pytest.skip("libraries of the C++ SDK are not installed: see CONTRIBUTING.md")
    (tmp_path / "a.jpg").write_bytes(photo(0, (60, 80), "JPEG"))
    command = [program, packaged_bundle("mini"), tmp_path / "a.uniecs", tmp_path / "a.jpg"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("this kernel's address layout is not known to ThreadSanitizer")
    assert (done.returncode, done.stderr) == (0, "")


SIGNAL = """
import os, runpy, signal, sys, time
from pathlib import Path
sdk = runpy.run_path(sys.argv[1])["Sdk"](Path(sys.argv[2]))
encoders = [sdk.load(Path(sys.argv[3])) for _ in range(2)]
for each in encoders:
    sdk.encode(each, [("red bag", None)])
for each in encoders:
    sdk.c.uniecs_encoder_free(each)
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(10)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_signals_arrive_when_encoders_are_freed(cpp_sdk_build: Path, tiny_bundle: Path) -> None:
    """OpenVINO's stack for signal handlers was freed while in use."""
    helper = Path(__file__).with_name("cpp_sdk.py")
    command = [sys.executable, "-c", SIGNAL, helper, cpp_sdk_build / "libuniecs.so", tiny_bundle]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr


def test_many_threads_share_an_encoder(sdk: Any, tiny_bundle: Path) -> None:
    encoder = sdk.load(tiny_bundle)
    items = pairs()
    expected = sdk.encode(encoder, items)[1]
    wrong: list[Any] = []

    def run(place: int) -> None:
        for _ in range(20):
            status, found = sdk.encode(encoder, items[place : place + 1])
            if status != OK or (found[0] * expected[place]).sum() < 1 - 1e-5:
                wrong.append((place, status))

    threads = [threading.Thread(target=run, args=(place,)) for place in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not wrong
    sdk.c.uniecs_encoder_free(encoder)


def test_errors_are_statuses_with_messages(sdk: Any, tiny_bundle: Path, tmp_path: Path) -> None:
    encoder = sdk.load(tiny_bundle)
    for item, status, message in (
        ((None, None), INPUT, "item 1: the item has neither text nor image"),
        (("", None), TEXT, "item 1: "),
        ((None, b"no image"), IMAGE, "item 1: "),
        (("good", photo(0, (30, 40), "JPEG")[:100]), IMAGE, "item 1: "),
    ):
        assert sdk.encode(encoder, [("good", None), item])[0] == status, item
        assert message in sdk.message()
    missing = (cpp.Item * 1)(cpp.Item(None, str(tmp_path / "none.jpg").encode(), None, 0))
    out = np.zeros(sdk.c.uniecs_encoder_embed_dim(encoder), np.float32)
    one = (missing, ctypes.c_size_t(1), ctypes.c_size_t(0), out.ctypes, None)
    assert sdk.c.uniecs_encoder_encode(encoder, *one) == IMAGE
    assert "none.jpg" in sdk.message()
    assert sdk.c.uniecs_encoder_encode(None, *one) == INPUT
    sdk.c.uniecs_encoder_free(encoder)
    sdk.c.uniecs_encoder_free(None)

    def refused(folder: Path, precision: bytes = b"fp32", backend: bytes | None = None, threads: int = 1) -> int:
        made, count = ctypes.c_void_p(), ctypes.c_uint(threads)
        status = sdk.c.uniecs_encoder_load(str(folder).encode(), backend, precision, count, ctypes.byref(made))
        assert made.value is None and sdk.message()
        return int(status)

    assert refused(tmp_path / "none") == BUNDLE
    assert refused(tiny_bundle, b"fp64") == BACKEND
    assert refused(tiny_bundle, b"int8") == BACKEND  # it has no such variant
    assert refused(tiny_bundle, b"fp32", b"onnx") == BACKEND
    assert refused(tiny_bundle, b"fp16", b"tensorrt") == BACKEND and "UNIECS_TENSORRT" in sdk.message()
    assert refused(tiny_bundle, threads=2**32 - 1) == BACKEND and "threads is 4294967295" in sdk.message()  # a C -1
    for name in ("manifest.json", "tokenizer.json", "fusion.onnx"):
        copy = tmp_path / name.partition(".")[0]
        shutil.copytree(tiny_bundle, copy)
        data = bytearray((copy / name).read_bytes())
        data[len(data) // 2] ^= 1
        (copy / name).write_bytes(data[: len(data) // 2] if name == "manifest.json" else data)
        assert refused(copy) == BUNDLE


def test_numbers_of_a_manifest_are_written_as_python_writes_them(sdk: Any, tiny_bundle: Path, tmp_path: Path) -> None:
    """They are part of what a model_id is made of."""
    folder = shutil.copytree(tiny_bundle, tmp_path / "a")
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    powers = [sign * float(f"{digits}e{power}") for power in range(-7, 19) for sign, digits in ((1, 1), (-1, 1.25))]
    for first in range(0, len(powers), 6):
        mean, std = powers[first : first + 3], [abs(each) for each in powers[-3 - first :][:3]]
        manifest["preprocessing"] |= {"mean": mean, "std": std}
        manifest["model"]["preprocessing"] |= {"mean": mean, "std": std}
        write_manifest(folder, manifest)
        sdk.c.uniecs_encoder_free(sdk.load(folder))
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    manifest["preprocessing"]["std"][0] *= 2
    (folder / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    with pytest.raises(sdk.Failed, match="altered"):
        sdk.load(folder)


def test_a_locale_with_commas(sdk: Any, tiny_bundle: Path, comma_locale: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = sdk.load(tiny_bundle)
    expected = sdk.encode(encoder, pairs()[:4])[1]
    sdk.c.uniecs_encoder_free(encoder)
    before = locale.setlocale(locale.LC_ALL)
    monkeypatch.setenv("LOCPATH", comma_locale["LOCPATH"])
    locale.setlocale(locale.LC_ALL, comma_locale["LC_ALL"])
    try:
        assert locale.localeconv()["decimal_point"] == ","
        encoder = sdk.load(tiny_bundle)
        status, found = sdk.encode(encoder, pairs()[:4])
    finally:
        locale.setlocale(locale.LC_ALL, before)
    assert status == OK and (found == expected).all()
    sdk.c.uniecs_encoder_free(encoder)


def test_what_was_verified_is_what_runs(sdk: Any, tiny_bundle: Path, tmp_path: Path) -> None:
    """A bundle that is exchanged after it was loaded, before its graphs have run."""
    encoder, folder = sdk.load(tiny_bundle), shutil.copytree(tiny_bundle, tmp_path / "a")
    expected = sdk.encode(encoder, pairs())[1]
    sdk.c.uniecs_encoder_free(encoder)
    encoder = sdk.load(folder)
    shutil.rmtree(folder)
    status, found = sdk.encode(encoder, pairs())
    assert status == OK and (found == expected).all(), sdk.message()
    sdk.c.uniecs_encoder_free(encoder)


def test_the_example_runs(cpp_sdk_build: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(photo(0, (300, 400), "JPEG"))
    likeness = str(cpp_sdk_build / "likeness")
    command = [likeness, str(packaged_bundle("mini")), str(tmp_path / "a.jpg"), "red kurta", "blue bag"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [line.split("  ")[1] for line in done.stdout.splitlines()] == ["red kurta", "blue bag"]
    assert subprocess.run([likeness], capture_output=True, check=False).returncode == 2


def test_files_that_are_too_large(cpp_sdk_build: Path, tmp_path: Path) -> None:
    """16 GB in 8 GB of memory: a film is refused by its first bytes, a photo for its size; neither is read."""
    for name, start, message in (
        ("film.mp4", b"\0\0\0\x20ftypisom", "film.mp4': it is not an image of a known kind"),
        ("photo.jpg", b"\xff\xd8\xff", "photo.jpg': there is not enough memory"),
    ):
        (tmp_path / name).write_bytes(start)
        os.truncate(tmp_path / name, 16 << 30)
        command = [cpp_sdk_build / "likeness", packaged_bundle("mini"), tmp_path / name, "red"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            resource.prlimit(process.pid, resource.RLIMIT_AS, (8 << 30, 8 << 30))
            try:
                _, told = process.communicate(timeout=20)
            finally:
                process.kill()
        assert process.returncode == 1 and message in told, told
