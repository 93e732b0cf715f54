"""What callers give to `SearchEngine`: checked, and read where it is to be read once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from uniecs.database import Durability
from uniecs.errors import ImageError, InputError

if TYPE_CHECKING:
    from uniecs.preprocess import ImageSource


def absolute_folder(path: object) -> Path:
    """Absolute: it stays the same place wherever the process goes."""
    if not isinstance(path, (str, os.PathLike)) or "\0" in os.fspath(path):
        raise InputError(f"path is {path!r}; expected the path of a folder")
    folder = Path(path).absolute()
    try:
        str(folder).encode()
    except UnicodeEncodeError as error:
        raise InputError(f"path is {str(folder)!r}, which is not UTF-8; expected a folder whose path is") from error
    return folder


def check_encoder(encoder: object) -> None:
    if not hasattr(encoder, "embed_dim"):
        raise InputError(f"encoder is {encoder!r}; expected an Encoder, such as uniecs.load('mini')")


def check_durability(durability: object) -> Durability:
    if durability == "full" or durability == "batch":
        return durability
    raise InputError(f"durability is {durability!r}; expected 'full' or 'batch'")


def check_k(k: object) -> int:
    if isinstance(k, (int, np.integer)) and not isinstance(k, bool) and k >= 1:
        return int(k)
    raise InputError(f"k is {k!r}; expected an integer of at least 1")


def image_path(image: ImageSource | None) -> str | None:
    """The path of an image that has one, absolute as the index's is; an address (https://...) as it is."""
    if not isinstance(image, (str, os.PathLike)):
        return None
    path = os.fspath(image)
    return path if "://" in path else str(Path(path).absolute())


def read_once(image: ImageSource | None) -> ImageSource | None:
    """The bytes of a file object, which several views need; any other source as it is."""
    if image is None or not hasattr(image, "read"):
        return image
    try:
        data = image.read()
    except (OSError, ValueError) as error:
        raise ImageError(f"image file object cannot be read: {error}") from error
    if not isinstance(data, bytes):
        raise ImageError(f"image file object gave {type(data).__name__}; open the file in binary mode")
    return data
