"""Images of every kind to pixel values, texts to ids: parity facts and bad input."""

from __future__ import annotations

import contextlib
import io
import math
import runpy
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from uniecs import preprocess
from uniecs.config import Preprocessing
from uniecs.errors import ImageError, TextError
from uniecs.preprocess import (
    MAX_IMAGE_PIXELS,
    check_text,
    letterbox,
    normalize,
    open_image,
    pixel_values,
    read_canvas,
)

P = Preprocessing(height_px=40, width_px=30)
files = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("image_files.py"))))


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photo(width: int = 60, height: int = 80) -> Image.Image:
    rows = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(rows)


def test_every_source_gives_the_same_pixels(tmp_path: Path) -> None:
    image = photo()
    path = tmp_path / "a.png"
    image.save(path)
    expected = pixel_values(image, P)
    assert expected.shape == (3, 40, 30)
    assert expected.dtype == np.float32
    for source in (path, str(path), path.read_bytes(), io.BytesIO(path.read_bytes()), np.asarray(image)):
        np.testing.assert_array_equal(pixel_values(source, P), expected)
    with path.open("rb") as file:
        np.testing.assert_array_equal(pixel_values(file, P), expected)


@pytest.mark.parametrize("size", [(60, 80), (80, 60), (1, 1), (3000, 2), (2, 3000), (30, 40), (31, 41)])
def test_letterbox_keeps_the_aspect_ratio_on_white(size: tuple[int, int]) -> None:
    canvas = letterbox(Image.new("RGB", size, (10, 20, 30)), P)
    assert canvas.shape == (40, 30, 3)
    inside = (canvas != 255).any(axis=2)
    height, width = inside.any(axis=1).sum(), inside.any(axis=0).sum()
    scale = min(30 / size[0], 40 / size[1])
    assert width == max(1, int(size[0] * scale + 0.5))  # half up
    assert height == max(1, int(size[1] * scale + 0.5))
    assert (canvas[inside] == (10, 20, 30)).all()


def test_normalize_is_x_over_255_minus_mean_over_std() -> None:
    p = Preprocessing(height_px=2, width_px=2, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    canvas = np.arange(12, dtype=np.uint8).reshape(2, 2, 3) * 20
    expected = np.moveaxis((canvas / 255.0 - np.array(p.mean)) / np.array(p.std), -1, 0)
    np.testing.assert_allclose(normalize(canvas, p), expected, atol=1e-6)


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_normalize_is_bit_for_bit_the_plain_formula(kind: type) -> None:
    p = Preprocessing(height_px=16, width_px=16, mean=(0.48145466, 0.4578275, 0.40821073), std=(0.27, 0.26, 0.28))
    canvas = np.stack([np.arange(256).reshape(16, 16)] * 3, axis=-1).astype(kind)[np.newaxis].repeat(2, axis=0)
    factor = (1.0 / (255.0 * np.array(p.std))).astype(np.float32)
    shift = (np.array(p.mean) / np.array(p.std)).astype(np.float32)
    expected = np.moveaxis(canvas.astype(np.float32) * factor - shift, -1, -3)
    assert expected.dtype == np.float32
    np.testing.assert_array_equal(normalize(canvas, p), expected)
    filled = np.full((2, 3, 16, 16), np.nan, np.float32)
    assert normalize(canvas, p, filled) is filled
    np.testing.assert_array_equal(filled, expected)
    fused = np.moveaxis(canvas.astype(np.float64) * factor - shift, -1, -3).astype(np.float32)
    assert (fused != expected).any(), "the test would not see a fused multiply-add"


def blurred(width: int, height: int) -> Image.Image:
    """Six by eight random colours, enlarged: as smooth as a photo."""
    return photo(6, 8).resize((width, height), Image.Resampling.BICUBIC)


def decoded_size(data: bytes) -> tuple[int, int]:
    return preprocess._decode(data, P).image.size


@pytest.mark.parametrize(
    ("size", "scale"),
    [
        ((119, 160), 1),  # 119 // 2 is less than twice 30
        ((120, 160), 2),
        ((121, 163), 2),
        ((239, 320), 2),
        ((240, 320), 4),
        ((247, 327), 4),
        ((480, 640), 8),
        ((2003, 3007), 8),
        ((120, 40), 2),  # becomes 30 x 10
        ((60, 640), 4),  # becomes 4 x 40
    ],
)
@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"progressive": True}])
def test_a_large_jpeg_is_decoded_at_a_reduced_size(
    size: tuple[int, int], scale: int, options: dict[str, object]
) -> None:
    data = encoded(blurred(*size), "JPEG", quality=90, **options)
    assert decoded_size(data) == (-(-size[0] // scale), -(-size[1] // scale))
    assert open_image(data).size == size
    canvas, whole = read_canvas(data, P).astype(int), letterbox(open_image(data), P)
    assert np.abs(canvas - whole).mean() < 0.6
    assert np.abs(canvas - whole).max() < 16
    for wrong in (np.roll(canvas, 1, 0), np.roll(canvas, 1, 1), canvas[::-1], np.full_like(canvas, 255)):
        assert np.abs(wrong - whole).mean() > 1.2


def reference_pass(rows: np.ndarray[Any, Any], length: float, out: int) -> np.ndarray[Any, Any]:
    """docs/bundle-format.md, step 3, along the first axis."""
    scale = length / out
    width = max(scale, 1.0)
    lines = []
    for i in range(out):
        centre = (i + 0.5) * scale
        taken = range(max(0, int(centre - 2 * width + 0.5)), min(math.ceil(length), int(centre + 2 * width + 0.5)))
        t = np.abs([(x - centre + 0.5) / width for x in taken])
        inner, outer = (1.5 * t - 2.5) * t * t + 1, (((t - 5) * t + 8) * t - 4) * -0.5
        weights = np.where(t < 1, inner, np.where(t < 2, outer, 0.0))
        weights = weights / weights.sum() * 2**22
        integers = np.where(weights < 0, np.ceil(weights - 0.5), np.floor(weights + 0.5)).astype(np.int64)
        total = np.tensordot(integers, rows[taken.start : taken.stop].astype(np.int64), 1)
        lines.append(np.clip((2**21 + total) >> 22, 0, 255))
    return np.array(lines, np.uint8)


@pytest.mark.parametrize("size", [(247, 327), (121, 163), (480, 640), (90, 61)])
def test_a_reduced_jpeg_is_scaled_as_the_format_page_says(size: tuple[int, int]) -> None:
    data = encoded(photo(*size), "JPEG", quality=90)
    image, (w, h), scale = preprocess._decode(data, P)
    assert (w, h) == size
    fills_height = w * 40 <= 30 * h
    w2, h2 = (max(1, (2 * w * 40 + h) // (2 * h)), 40) if fills_height else (30, max(1, (2 * h * 30 + w) // (2 * w)))
    across = reference_pass(np.asarray(image).swapaxes(0, 1), w / scale, w2).swapaxes(0, 1)
    expected = np.full((40, 30, 3), 255, np.uint8)
    top, left = (40 - h2) // 2, (30 - w2) // 2
    expected[top : top + h2, left : left + w2] = reference_pass(across, h / scale, h2)
    np.testing.assert_array_equal(read_canvas(data, P), expected)


def test_a_reduced_jpeg_is_turned_after_its_size_was_chosen() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    upright, turned = (encoded(blurred(640, 60), "JPEG", **extra) for extra in ({}, {"exif": exif}))
    assert decoded_size(upright) == (80, 8)  # 640 x 60 becomes 30 x 3
    assert decoded_size(turned) == (15, 160)  # 60 x 640 becomes 4 x 40
    whole = letterbox(open_image(turned), P)
    assert np.abs(read_canvas(turned, P).astype(int) - whole).mean() < 0.6


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_cmyk_jpegs_are_reduced(mode: str) -> None:
    data = encoded(blurred(480, 640).convert(mode), "JPEG")
    assert decoded_size(data) == (60, 80)
    assert np.abs(read_canvas(data, P).astype(int) - letterbox(open_image(data), P)).mean() < 0.6


def test_a_reduced_multi_picture_file_gives_its_first_picture() -> None:
    first, second = (Image.new("RGB", (480, 640), colour) for colour in ("red", "blue"))
    data = encoded(first, "MPO", save_all=True, append_images=[second])
    assert decoded_size(data) == (60, 80)
    assert read_canvas(data, P)[9, 9, 0] > 200


def test_only_jpeg_files_are_reduced() -> None:
    image = blurred(480, 640)
    for source in (image, np.asarray(image), encoded(image), encoded(image, "WEBP")):
        assert preprocess._decode(source, P).image.size == (480, 640)
    lazy = Image.open(io.BytesIO(encoded(image, "JPEG")))
    assert preprocess._decode(lazy, P).image.size == lazy.size == (480, 640)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_an_image_that_is_read_on_use_may_be_used_by_many_threads(kind: str) -> None:
    data = encoded(blurred(1200, 1600), kind)
    expected = read_canvas(Image.open(io.BytesIO(data)), P)

    def read(lazy: Image.Image, together: threading.Barrier) -> Any:
        together.wait(30)
        return read_canvas(lazy, P)

    with ThreadPoolExecutor(4) as pool:
        for _ in range(8):
            lazy, together = Image.open(io.BytesIO(data)), threading.Barrier(4)
            for each in pool.map(read, [lazy] * 4, [together] * 4):
                np.testing.assert_array_equal(each, expected)


def test_a_file_object_is_read_once() -> None:
    file = io.BytesIO(encoded(blurred(60, 80)))
    open_image(file)
    with pytest.raises(ImageError, match=r"type BytesIO gave no bytes: .*seek\(0\)"):
        open_image(file)
    file.seek(0)
    assert open_image(file).size == (60, 80)


def test_exif_orientation_is_applied() -> None:
    image = Image.new("RGB", (40, 20), "white")
    image.paste((255, 0, 0), (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown rotated by 90 degrees clockwise
    shown = open_image(encoded(image, "JPEG", exif=exif, quality=95))
    assert shown.size == (20, 40)
    assert shown.getpixel((10, 5))[1] < 60
    assert shown.getpixel((10, 35))[1] > 200
    assert open_image(shown).size == (20, 40)  # and not once more


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of damaged EXIF
def test_an_exif_block_that_cannot_be_read_is_none() -> None:
    upright, turned = (files.with_exif(files.exif(orientation)[6:]) for orientation in (1, 6))
    assert {open_image(data).size for data in turned.values()} == {(23, 19)}
    for blocks, expected in ((files.unreadable_exif(), upright), (files.odd_exif(), turned)):
        for name, block in blocks.items():
            for place, data in files.with_exif(block).items():
                shown = pixel_values(data, P)
                np.testing.assert_array_equal(shown, pixel_values(expected[place], P), f"{place}, {name}")
    for data in files.with_exif(b"nonsense", files.XMP.format(6).encode()).values():
        assert open_image(data).size == (19, 23)


def test_damaged_pixels_beside_damaged_exif_are_an_error() -> None:
    for data in files.with_exif(b"nonsense").values():
        with pytest.raises(ImageError):
            open_image(data[: len(data) * 3 // 4])


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparency_is_laid_on_white(mode: str) -> None:
    clear = Image.new("RGBA", (8, 8), (200, 0, 0, 0))
    image = clear.convert("LA") if mode == "LA" else clear
    data = encoded(clear.quantize(4) if mode == "PA" else image)
    assert np.asarray(open_image(data)).min() == 255


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV", "LAB"])
def test_colour_modes_are_converted(mode: str) -> None:
    image = photo().convert("RGB").convert(mode) if mode != "LAB" else Image.new("LAB", (60, 80), (128, 128, 128))
    assert open_image(image).mode == "RGB"
    if mode == "CMYK":
        assert open_image(encoded(image, "JPEG")).mode == "RGB"


def test_16_bit_grey_keeps_its_high_byte() -> None:
    wide = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    shown = np.asarray(open_image(encoded(Image.fromarray(wide))))
    expected = (wide >> 8).astype(np.uint8)
    np.testing.assert_array_equal(shown[..., 0], expected)
    wide[0, 2] = wide[0, 1] ^ 1  # the same grey, but not the transparent value
    clear = np.asarray(open_image(encoded(Image.fromarray(wide), transparency=int(wide[0, 1]))))
    expected[0, 1], expected[0, 2] = 255, expected[0, 1]
    np.testing.assert_array_equal(clear[..., 0], expected)


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert open_image(data).getpixel((4, 4)) == (255, 0, 0)


def png_header(width: int, height: int) -> bytes:
    """A PNG of a given size without its pixels: what a decompression bomb looks like before it is decoded."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 4) + b"IDAT" + b"\0" * 8


@pytest.mark.parametrize("size", [(20_000, 20_000), (10_000, 10_000), (8_001, 8_000)])
def test_decompression_bombs_are_refused_from_the_header(size: tuple[int, int]) -> None:
    assert size[0] * size[1] > MAX_IMAGE_PIXELS
    with pytest.raises(ImageError, match=r"too large|pixels"):
        open_image(png_header(*size))
    with pytest.raises(ImageError, match="pixels"):
        read_canvas(png_header(*size), P)


def bad_images() -> dict[str, object]:
    data = encoded(photo(), "JPEG")
    return {
        "empty": b"",
        "not an image": b"hello world",
        "truncated": data[: len(data) // 2],
        "missing": "/nonexistent/photo.jpg",
        "folder": "/",
        "url": "https://example.com/a.jpg",
        "text file object": io.StringIO("text"),
        "NaN array": np.full((4, 4, 3), np.nan, np.float32),
        "grey array": np.zeros((4, 4), np.uint8),
        "empty array": np.zeros((0, 4, 3), np.uint8),
        "number": 3,
        "float image": Image.new("F", (4, 4)),
        "empty image": Image.new("RGB", (0, 4)),
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    }


@pytest.mark.parametrize("name", bad_images())
def test_bad_images_give_a_clear_error(name: str) -> None:
    with pytest.raises(ImageError) as caught:
        open_image(bad_images()[name])  # type: ignore[arg-type]
    assert str(caught.value).startswith(("image", "array"))


def test_damaged_files_never_raise_anything_else() -> None:
    random = np.random.default_rng(1)
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"):
        data = encoded(photo(20, 20), kind)
        for _ in range(60):
            damaged = bytearray(data)
            for position in random.integers(0, len(data), 4):
                damaged[position] = random.integers(0, 256)
            cut = bytes(damaged[: random.integers(1, len(data) + 1)])
            with warnings.catch_warnings(), contextlib.suppress(ImageError):
                warnings.simplefilter("ignore", UserWarning)  # Pillow's "Corrupt EXIF data"
                assert open_image(cut).mode == "RGB"
                assert read_canvas(cut, Preprocessing(height_px=4, width_px=4)).shape == (4, 4, 3)


@pytest.mark.parametrize("text", ["", "   ", "\0\0", None, 3, b"bytes", "\ud800", "x" * 1_000_001])
def test_bad_texts_give_a_clear_error(text: object) -> None:
    with pytest.raises(TextError, match="text"):
        check_text(text)


@pytest.mark.parametrize("text", ["red kurta", "红色连衣裙", "👗", "a\0b", "é" * 100_000])
def test_unusual_texts_are_accepted(text: str) -> None:
    assert check_text(text) == text


def test_a_palette_without_colours_is_an_image_error() -> None:
    file = io.BytesIO()
    Image.new("P", (3, 3)).save(file, "PNG")
    data = file.getvalue()
    start = data.index(b"PLTE") - 4
    length = int.from_bytes(data[start : start + 4])
    with pytest.raises(ImageError):
        open_image(data[:start] + data[start + 12 + length :])


ENDING = """
import threading, time
import numpy as np
from uniecs import _core
image, out = np.zeros((600, 600, 3), np.uint8), np.zeros((3, 224, 224), np.float32)

def call():
    while True:
        _core.pixel_values(image, out, (0.5,) * 3, (0.5,) * 3)

for _ in range(4):
    threading.Thread(target=call, daemon=True).start()
time.sleep(0.2)
"""


def test_a_process_ends_while_daemon_threads_are_in_the_core() -> None:
    ended = subprocess.run([sys.executable, "-c", ENDING], capture_output=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (0, b"")
