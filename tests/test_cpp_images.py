"""The C++ resize and image decoding against preprocess.py: the same bits, and errors where it gives errors."""

from __future__ import annotations

import os
import runpy
import struct
import subprocess
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from uniecs import _core, preprocess
from uniecs.config import Preprocessing
from uniecs.errors import ImageError

SOURCE = Path(__file__).parents[1] / "sdk" / "cpp"
SHARED = Path(os.environ.get("UNIECS_SHARED", Path(__file__).resolve().parents[2] / "shared")) / "data" / "myntra"
P = Preprocessing(40, 30, mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711))
WIDE = Preprocessing(33, 47, mean=(0.0, 0.1, 0.9), std=(1.0, 0.3, 0.7))
BICUBIC = Image.Resampling.BICUBIC
# TIFF and AVIF, which Python takes, are the documented difference.
NOT_READ = ("tiff",)

files = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("image_files.py"))))
Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]


def sample(random: np.random.Generator, width: int, height: int) -> Pixels:
    """Noise, every second time black and white: then sums leave 0 to 255."""
    pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return np.asarray(pixels // 128 * 255 if random.integers(2) else pixels, np.uint8)


def scaled(pixels: Pixels, width: int, height: int, across: int = BICUBIC, down: int = BICUBIC) -> Pixels:
    """Pillow's, horizontally first whatever the shape."""
    wide = Image.fromarray(pixels).resize((width, pixels.shape[0]), across)
    return np.asarray(wide.resize((width, height), down))


def test_resize_is_pillows_at_every_size() -> None:
    random = np.random.default_rng(0)
    sets = _core.resize_instructions()
    assert sets[-1] == "portable"
    for i in range(1500):
        most = (9, 70, 200)[i % 3]
        width, height = (1 + int(random.integers(most) * (random.random() > 0.05)) for _ in range(2))
        to = int(random.integers(1, 260)), int(random.integers(1, 260))
        pixels = sample(random, width, height)
        expected = scaled(pixels, *to)
        for each in sets:
            found = _core.resize(pixels, *to, each)
            assert found.tobytes() == expected.tobytes(), f"{each}: {width}x{height} to {to}"


@pytest.mark.parametrize("size", [(3000, 1), (1, 3000), (1, 1), (1200, 900), (900_000, 1), (30, 40), (30, 7), (8, 40)])
def test_resize_of_long_and_unchanged_sides(size: tuple[int, int]) -> None:
    pixels = sample(np.random.default_rng(1), *size)
    for each in _core.resize_instructions():
        assert _core.resize(pixels, 30, 40, each).tobytes() == scaled(pixels, 30, 40).tobytes()


def test_the_comparison_notices_another_resize() -> None:
    pixels = sample(np.random.default_rng(2), 90, 70)
    found = _core.resize(pixels, 31, 23)
    for other in (Image.Resampling.LANCZOS, Image.Resampling.BILINEAR):
        assert found.tobytes() != scaled(pixels, 31, 23, down=other).tobytes()
    vertical_first = np.asarray(Image.fromarray(pixels).resize((90, 23), BICUBIC).resize((31, 23), BICUBIC))
    assert found.tobytes() != vertical_first.tobytes()
    nearly = pixels.copy()
    nearly[35, 45, 1] ^= 64
    assert found.tobytes() != _core.resize(nearly, 31, 23).tobytes()


def pillows_canvas(picture: preprocess._Picture, p: Preprocessing) -> Pixels:
    """A picture letterboxed by Pillow alone."""
    image, whole, scale = picture
    size = preprocess._fitted(*whole, p)
    # Two steps: Pillow 13 chooses the order of its passes by the picture's shape.
    if image.width != size[0]:
        image = image.resize((size[0], image.height), BICUBIC, (0, 0, whole[0] / scale, image.height))
    if image.height != size[1]:
        image = image.resize(size, BICUBIC, (0, 0, size[0], whole[1] / scale))
    canvas = Image.new("RGB", (p.width_px, p.height_px), (255, 255, 255))
    canvas.paste(image, ((p.width_px - size[0]) // 2, (p.height_px - size[1]) // 2))
    return np.asarray(canvas)


def test_pixel_values_are_pillows() -> None:
    random = np.random.default_rng(3)
    for _ in range(300):
        scale = int(random.choice([1, 2, 4, 8]))
        whole = int(random.integers(1, 500)), int(random.integers(1, 500))
        pixels = sample(random, -(-whole[0] // scale), -(-whole[1] // scale))
        mean, std = (tuple(float(x) for x in random.random(3) + 0.05) for _ in range(2))
        p = Preprocessing(int(random.integers(1, 230)), int(random.integers(1, 230)), mean=mean, std=std)
        picture = preprocess._Picture(Image.fromarray(pixels), whole, scale)
        found = np.empty((3, p.height_px, p.width_px), np.float32)
        _core.pixel_values(pixels, found, p.mean, p.std, whole, scale)
        canvas = pillows_canvas(picture, p)
        assert found.tobytes() == preprocess.normalize(canvas, p).tobytes()
        assert preprocess._letterbox(picture, p).tobytes() == canvas.tobytes()


def test_misuse_of_the_binding_is_an_error() -> None:
    pixels = np.zeros((4, 4, 3), np.uint8)
    for wrong in (lambda: _core.resize(pixels, 0, 4), lambda: _core.resize(pixels, 4, 4, "unknown")):
        with pytest.raises(ValueError, match=r"cannot|not supported"):
            wrong()
    with pytest.raises(ValueError, match="cannot"):
        _core.resize(pixels, 2, 2, whole=(9, 8), scale=2)
    with pytest.raises(ValueError, match="H, W, 3"):
        _core.resize(np.zeros((4, 4, 4), np.uint8), 2, 2)
    out = np.empty((3, 4, 8), np.float32)
    for wrong_out in (out[:, :, ::2], out.astype(np.float64)):  # a copy would be written, and lost
        with pytest.raises(TypeError):
            _core.pixel_values(pixels, wrong_out, P.mean, P.std)


def programs(folder: Path) -> Path:
    """`folder`, if it has the program `pixel_values`; skips where a library was missing."""
    if not (folder / "pixel_values").exists():
        pytest.skip("libjpeg62-turbo-dev, zlib1g-dev, libwebp-dev or pkg-config is not installed")
    return folder


@pytest.fixture(scope="module")
def plain(cpp_sdk_build: Path) -> Path:
    return programs(cpp_sdk_build)


@pytest.fixture(scope="module")
def sanitized(sanitized_build: Callable[[str], Path]) -> Path:
    return programs(sanitized_build("address,undefined"))


Answer = bytes | str  # values or an error message


def by_cpp(programs: Path, tmp_path: Path, data: Sequence[bytes], p: Preprocessing) -> list[Answer]:
    paths = [tmp_path / str(i) for i in range(len(data))]
    for path, each in zip(paths, data, strict=True):
        path.write_bytes(each)
    command = [str(programs / "pixel_values"), *map(repr, (p.height_px, p.width_px, *p.mean, *p.std))]
    environment = os.environ | {"UBSAN_OPTIONS": "halt_on_error=1"}
    done = subprocess.run(
        command, input="\n".join(map(str, paths)).encode(), capture_output=True, check=False, env=environment
    )
    answers: list[Answer] = []
    at, size = 0, 12 * p.height_px * p.width_px
    while at < len(done.stdout):
        (length,) = struct.unpack_from("<I", done.stdout, at)
        at += 4
        answers.append(done.stdout[at : at + length].decode() if length else done.stdout[at : at + size])
        at += length or size
    failed = paths[len(answers)] if len(answers) < len(paths) else None
    assert (done.returncode, failed) == (0, None), done.stderr.decode()[-4000:]
    return answers


def by_python(data: bytes, p: Preprocessing) -> Answer:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of damaged files
        try:
            values = preprocess.normalize(pillows_canvas(preprocess._decode(data, p), p), p)
            assert values.tobytes() == preprocess.pixel_values(data, p).tobytes()
            return values.tobytes()
        except (ImageError, AssertionError) as error:  # Pillow asserts that a palette image has a palette
            return str(error) or "AssertionError"


def different(names: Sequence[str], found: Sequence[Answer], expected: Sequence[Answer]) -> list[str]:
    """What is not the same bits, or not an error in both."""
    return [
        f"{name}: {a if isinstance(a, str) else 'values'} against {b if isinstance(b, str) else 'values'}"
        for name, a, b in zip(names, found, expected, strict=True)
        if isinstance(a, str) != isinstance(b, str) or (isinstance(a, bytes) and a != b)
    ]


@pytest.fixture(scope="module")
def images() -> dict[str, bytes]:
    return {name: data for name, data in files.image_files().items() if name not in NOT_READ}


@pytest.mark.parametrize("p", [P, WIDE])
def test_files_of_every_kind_give_the_same_bits(
    plain: Path, tmp_path: Path, images: dict[str, bytes], p: Preprocessing
) -> None:
    expected = [by_python(data, p) for data in images.values()]
    assert sum(isinstance(each, bytes) for each in expected) >= 600
    assert sum(isinstance(each, str) for each in expected) >= 50
    found = by_cpp(plain, tmp_path, list(images.values()), p)
    assert different(list(images), found, expected) == []
    off = Preprocessing(p.height_px, p.width_px, mean=p.mean, std=(p.std[0] * (1 + 2e-7), *p.std[1:]))
    seen = different(list(images), by_cpp(plain, tmp_path, list(images.values()), off), expected)
    assert len(seen) >= 600, "the comparison does not notice a factor that is off by a bit"


def test_damaged_files_give_the_same_outcome_and_never_crash(
    sanitized: Path, tmp_path: Path, images: dict[str, bytes]
) -> None:
    random = np.random.default_rng(9)
    small = {name: data for name, data in images.items() if 0 < len(data) < 20_000}
    cases = [(name, each) for name, data in small.items() for each in files.damaged(data, 8, random)]
    expected = [by_python(data, P) for _, data in cases]
    assert min(sum(isinstance(each, kind) for each in expected) for kind in (bytes, str)) >= 1000
    found = by_cpp(sanitized, tmp_path, [data for _, data in cases], P)
    wrong = different([name for name, _ in cases], found, expected)
    # Pillow's wheels carry newer versions of these two libraries, and those may judge damage differently.
    by_library = [each for each in wrong if each.startswith(("jpeg", "mpo", "webp"))]
    assert [each for each in wrong if each not in by_library] == []
    assert len(by_library) <= len(cases) // 1000, by_library


def test_every_file_is_clean_under_sanitizers(sanitized: Path, tmp_path: Path, images: dict[str, bytes]) -> None:
    regressions = sorted((SOURCE / "fuzz" / "corpus" / "images").iterdir())
    assert regressions
    data = [*images.values(), *(path.read_bytes() for path in regressions)]
    names = [*images, *(path.name for path in regressions)]
    found = by_cpp(sanitized, tmp_path, data, P)
    assert different(names, found, [by_python(each, P) for each in data]) == []


def test_a_jpeg_cut_anywhere_is_judged_alike(plain: Path, tmp_path: Path) -> None:
    for options in ({}, {"progressive": True}):
        data = files.saved(files.picture(61, 43), "JPEG", **options)
        cuts = [data[:end] for end in range(0, len(data), 7)] + [data[:-1], data[:-2], data[:-3], data[:-4]]
        found = by_cpp(plain, tmp_path, cuts, P)
        assert different(list(map(str, map(len, cuts))), found, [by_python(each, P) for each in cuts]) == []


def test_kinds_that_are_not_read_are_named(plain: Path, tmp_path: Path) -> None:
    tiff = files.saved(files.picture(9, 9), "TIFF")
    avif = b"\0\0\0\x20ftypavif" + bytes(20)
    answers = by_cpp(plain, tmp_path, [tiff, avif, b"hello world"], P)
    for answer, words in zip(answers, ("a TIFF file", "an AVIF file", "not an image of a known kind"), strict=True):
        assert isinstance(answer, str)
        assert words in answer
        assert "expected JPEG, PNG, WebP, GIF or BMP" in answer


@pytest.mark.parametrize("name", ["val_hires", "val"])
def test_real_photos_give_the_same_bits(plain: Path, tmp_path: Path, name: str) -> None:
    path = SHARED / f"{name}.parquet"
    if not path.is_file():
        pytest.skip("the development data (../shared or UNIECS_SHARED) is not on this machine")
    parquet = pytest.importorskip("pyarrow.parquet", reason="the photos are in a Parquet file")
    rows = parquet.read_table(path, columns=["image"]).column("image").slice(0, 400).to_pylist()
    photos = [row["image"]["bytes"] if "image" in row else row["bytes"] for row in rows]
    found = by_cpp(plain, tmp_path, photos, P)
    assert different(list(map(str, range(len(photos)))), found, [by_python(each, P) for each in photos]) == []


def test_the_resize_test_passes_under_sanitizers(sanitized: Path) -> None:
    done = subprocess.run([str(sanitized / "resize_test")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
