"""The only image and text preprocessing: the encoder, the trainer and the exporter all call it.

An image becomes `pixel_values` in four steps: decode to 8-bit RGB (EXIF orientation applied, alpha laid on white,
the first frame of an animation; a large JPEG at 1/2, 1/4 or 1/8 of its size), scale to fit inside (height_px,
width_px) with the aspect ratio kept (Pillow BICUBIC, horizontally first), centre on white, normalise. A text becomes
WordPiece ids. What comes after decoding is native code, shared with the C++ SDK.
"""

from __future__ import annotations

import io
import os
import struct
import threading
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, TypeAlias, Union

import numpy as np
import numpy.typing as npt

from uniecs.config import Preprocessing
from uniecs.errors import BundleError, ImageError, TextError

if TYPE_CHECKING:
    from PIL.Image import Image

ImageSource: TypeAlias = Union[str, "os.PathLike[str]", bytes, BinaryIO, "Image", npt.NDArray[np.uint8]]

MAX_IMAGE_PIXELS = 64_000_000
MAX_TEXT_CHARS = 1_000_000
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
WHITE = (255, 255, 255)
# A JPEG is decoded at the smallest of these sizes that leaves both sides at least SPARE times as long as needed.
REDUCTIONS = (8, 4, 2)
SPARE = 2
ORIENTATION = 0x0112
# Pillow's transposition that shows a picture of an orientation upright.
UPRIGHT = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
# What Pillow raises on an EXIF block without a TIFF header, cut short in it, not hexadecimal, or that is text.
EXIF_ERRORS = (SyntaxError, struct.error, ValueError, TypeError)
# Reading a file object, or a Pillow image opened from a file, changes it, and several calls may have it: one at a time.
READING = [threading.Lock() for _ in range(64)]
# What Pillow's decoders raise on damaged files, seen over its formats.
DECODER_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    TypeError,
    EOFError,
    LookupError,
    ArithmeticError,
    AssertionError,
    MemoryError,
    NotImplementedError,
    struct.error,
    zlib.error,
)


def open_image(source: ImageSource) -> Image:
    """Decode a path, bytes, binary file object, Pillow image or HxWx3 uint8 array to an 8-bit RGB Pillow image.

    It may be the given Pillow image itself. Raises `ImageError` when it is missing, damaged, of an unknown kind, or has
    more than `MAX_IMAGE_PIXELS` pixels (seen from the header, before anything is decoded).
    """
    return _decode(source, None).image


class _Picture(NamedTuple):
    """An RGB image at 1/scale of the size (width, height) that its file tells, sides rounded up."""

    image: Image
    size: tuple[int, int]
    scale: int


def _decode(source: ImageSource, preprocessing: Preprocessing | None) -> _Picture:
    """`open_image`; with `preprocessing`, a JPEG file that is far larger than that needs at a reduced size."""
    from PIL import Image, UnidentifiedImageError

    name = describe(source)
    try:
        if isinstance(source, Image.Image):
            with _reading(source):
                return _whole(_to_rgb(source, name))
        if isinstance(source, np.ndarray):
            return _whole(Image.fromarray(_checked_array(source)))
        Image.init()
        formats = [each for each in FORMATS if each in Image.OPEN]  # a Pillow build may lack one
        with Image.open(_opened(source, name), formats=formats) as image:
            _check_pixels(*image.size, name)
            if preprocessing is None or image.format not in ("JPEG", "MPO"):
                return _whole(_to_rgb(image, name))
            size, scale = _reduce(image, preprocessing)
            return _Picture(_to_rgb(image, name), size, scale)
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"{name} is too large: {error}") from error
    except FileNotFoundError as error:
        raise ImageError(f"{name} does not exist; expected an image file") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{name} is not an image of a known kind; expected {', '.join(FORMATS)}") from error
    except DECODER_ERRORS as error:
        raise ImageError(f"{name} cannot be decoded: {error}") from error


def describe(source: object) -> str:
    """Name an image source in an error message."""
    if isinstance(source, (str, os.PathLike)):
        return f"image {os.fspath(source)!r}"
    if isinstance(source, (bytes, bytearray)):
        return f"image of {len(source)} bytes"
    return f"image of type {type(source).__name__}"


def _opened(source: ImageSource, name: str) -> str | io.BytesIO:
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    if isinstance(source, (bytes, bytearray)):
        return io.BytesIO(source)
    if hasattr(source, "read"):
        with _reading(source):
            data = source.read()
        if not isinstance(data, bytes):
            raise ImageError(f"{name} gave {type(data).__name__}; open the file in binary mode")
        if not data:
            raise ImageError(f"{name} gave no bytes: it is empty, or was read before (seek(0) reads it again)")
        return io.BytesIO(data)
    raise ImageError(f"{name} is not a path, bytes, a file object, a Pillow image or an HxWx3 uint8 array")


def _reading(source: object) -> threading.Lock:
    return READING[id(source) // 16 % len(READING)]


def _checked_array(array: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise ImageError(f"array of shape {array.shape} and dtype {array.dtype}; expected (H, W, 3) of uint8")
    _check_pixels(array.shape[1], array.shape[0], "array")
    return np.ascontiguousarray(array)


def _check_pixels(width: int, height: int, name: str) -> None:
    if width * height > MAX_IMAGE_PIXELS:
        raise ImageError(f"{name} has {width}x{height} pixels; at most {MAX_IMAGE_PIXELS} are accepted")
    if width < 1 or height < 1:
        raise ImageError(f"{name} has {width}x{height} pixels; expected at least 1x1")


def _to_rgb(image: Image, name: str) -> Image:
    from PIL import Image

    _check_pixels(*image.size, name)
    image.load()  # first: getexif() would load a PNG, and damaged pixels are an error
    orientation = _orientation(image)
    rgb = _flat(image, name)
    if orientation == 1:
        return rgb
    rgb = rgb.transpose(Image.Transpose[UPRIGHT[orientation]])
    rgb.info.clear()  # or it would be turned again where it is given as a source
    return rgb


def _orientation(image: Image) -> int:
    """1 to 8, from EXIF or XMP; 1 where neither tells it, or the EXIF block cannot be read, as viewers show that."""
    try:
        found: int = image.getexif().get(ORIENTATION, 1)
    except EXIF_ERRORS:
        return 1
    return found if found in UPRIGHT else 1


def _flat(image: Image, name: str) -> Image:
    """A loaded image as 8-bit RGB, transparency on white."""
    from PIL import Image

    if image.mode.startswith("I;16"):
        # 16 bits to 8: the high byte, as 16-bit RGB is decoded too.
        wide = np.asarray(image.convert("I;16") if image.mode != "I;16" else image)
        grey, clear = (wide >> 8).astype(np.uint8), image.info.get("transparency")
        if isinstance(clear, int):  # a PNG's text chunk of that name is none
            grey[wide == clear] = 255
        image = Image.fromarray(grey)
    if image.mode in ("I", "F"):
        raise ImageError(f"{name} has 32 bits a channel (mode {image.mode}); expected 8 or 16")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, (*WHITE, 255)), layer).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _whole(image: Image) -> _Picture:
    return _Picture(image, image.size, 1)


def _reduce(image: Image, preprocessing: Preprocessing) -> tuple[tuple[int, int], int]:
    """Have libjpeg decode a JPEG at 1/8, 1/4 or 1/2 of its size, where `SPARE` times what the letterbox needs remains.

    Returns the size of the whole picture, turned as it will be shown, and the scale.
    """
    size = image.size
    shown = size[::-1] if _orientation(image) >= 5 else size
    needed = _fitted(*shown, preprocessing)
    for scale in REDUCTIONS:
        if shown[0] // scale >= SPARE * needed[0] and shown[1] // scale >= SPARE * needed[1]:
            image.draft(None, (size[0] // scale, size[1] // scale))
            return shown, scale
    return shown, 1


def _fitted(w: int, h: int, preprocessing: Preprocessing) -> tuple[int, int]:
    """The size of a w x h picture inside the letterbox: rounded half up, in integers; a side is at least 1 px."""
    width, height = preprocessing.width_px, preprocessing.height_px
    if w * height <= width * h:
        return max(1, (2 * w * height + h) // (2 * h)), height
    return width, max(1, (2 * h * width + w) // (2 * w))


def letterbox(image: Image, preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    """Fit an RGB image inside (height_px, width_px), aspect ratio kept, centred on white.

    Returns uint8 of shape (height_px, width_px, 3).
    """
    return _letterbox(_whole(image), preprocessing)


def _letterbox(picture: _Picture, preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    """`letterbox`; of a reduced picture without the part of its last row and column that lies beyond its size."""
    from uniecs._core import resize

    image, whole, scale = picture
    width, height = _fitted(*whole, preprocessing)
    left, top = (preprocessing.width_px - width) // 2, (preprocessing.height_px - height) // 2
    canvas = np.full((preprocessing.height_px, preprocessing.width_px, 3), WHITE, np.uint8)
    canvas[top : top + height, left : left + width] = resize(np.asarray(image), width, height, whole=whole, scale=scale)
    return canvas


def read_canvas(source: ImageSource, preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    """One image decoded and letterboxed: uint8 of shape (height_px, width_px, 3); raises `ImageError`.

    A JPEG file that is far larger than that is decoded at 1/2, 1/4 or 1/8 of its size.
    """
    return _letterbox(_decode(source, preprocessing), preprocessing)


def normalize(
    canvas: npt.NDArray[np.uint8] | npt.NDArray[np.float32],
    preprocessing: Preprocessing,
    out: npt.NDArray[np.float32] | None = None,
) -> npt.NDArray[np.float32]:
    """(..., H, W, 3) of 0 to 255 to (..., 3, H, W) float32: x * 1/(255 std) - mean/std, both factors in float32.

    Written to `out` where that is given.
    """
    mean = np.asarray(preprocessing.mean, np.float64)
    std = np.asarray(preprocessing.std, np.float64)
    scale, shift = (1.0 / (255.0 * std)).astype(np.float32), (mean / std).astype(np.float32)
    if out is None:
        out = np.empty((*canvas.shape[:-3], 3, *canvas.shape[-3:-1]), np.float32)
    for channel in range(3):
        plane = out[..., channel, :, :]
        np.multiply(canvas[..., channel], scale[channel], out=plane)
        np.subtract(plane, shift[channel], out=plane)
    return out


def pixel_values(
    source: ImageSource, preprocessing: Preprocessing, out: npt.NDArray[np.float32] | None = None
) -> npt.NDArray[np.float32]:
    """One image to float32 of shape (3, height_px, width_px), written to `out` if given; raises `ImageError`.

    `normalize(read_canvas(...))`, in one go.
    """
    from uniecs._core import pixel_values as write_pixels

    if out is None:
        out = np.empty((3, preprocessing.height_px, preprocessing.width_px), np.float32)
    image, whole, scale = _decode(source, preprocessing)
    write_pixels(np.asarray(image), out, preprocessing.mean, preprocessing.std, whole, scale)
    return out


def check_text(text: object) -> str:
    """Return `text` if it can be encoded; raises `TextError` if not a string, blank, too long or not Unicode."""
    if not isinstance(text, str):
        raise TextError(f"text is of type {type(text).__name__}; expected str (None for an absent text)")
    if len(text) > MAX_TEXT_CHARS:
        raise TextError(f"text has {len(text)} characters; at most {MAX_TEXT_CHARS} are accepted")
    if not text.strip(" \t\r\n\0"):
        raise TextError("text is empty; pass None for an absent text")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise TextError(f"text is not valid Unicode: {error}") from error
    return text


class Tokenizer:
    """A WordPiece tokenizer as a bundle carries it: the bytes of a Hugging Face tokenizer.json, of BERT's kind.

    Own code (sdk/cpp/src/tokenizer.hpp), whose ids are those of `tokenizers`: tests/test_cpp_tokenizer.py.
    """

    def __init__(self, tokenizer_json: bytes, max_tokens: int) -> None:
        """Raises `BundleError` if `tokenizer_json` is not such a tokenizer."""
        from uniecs._core import BundleError as Unsupported
        from uniecs._core import Tokenizer as NativeTokenizer

        try:
            self._tokenizer = NativeTokenizer(tokenizer_json, max_tokens)
        except Unsupported as error:
            raise BundleError(str(error)) from error

    @property
    def vocab_size(self) -> int:
        """Number of token ids, the special ones included."""
        return self._tokenizer.vocab_size

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, special tokens included, cut at `max_tokens`."""
        return self._tokenizer.encode_batch(texts)

    @staticmethod
    def pad(ids: Sequence[Sequence[int]], length: int = 1) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """(input_ids, attention_mask), both int64 (B, longest, at least `length`); padding is id 0 with mask 0."""
        longest = max(length, *map(len, ids))
        input_ids = np.zeros((len(ids), longest), np.int64)
        attention_mask = np.zeros((len(ids), longest), np.int64)
        for row, tokens in enumerate(ids):
            input_ids[row, : len(tokens)] = tokens
            attention_mask[row, : len(tokens)] = 1
        return input_ids, attention_mask


def read_tokenizer(folder: Path) -> bytes:
    """The bytes of `tokenizer.json` in a checkpoint's folder; raises `BundleError` if there is none."""
    try:
        return (folder / "tokenizer.json").read_bytes()
    except OSError as error:
        raise BundleError(f"{folder} has no readable tokenizer.json: {error}") from error
