"""Making what was written survive a crash: the one place that flushes a path to the disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from uniecs.errors import BundleError


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk; raises `OSError`."""
    if path.is_dir() and os.name == "nt":
        return  # Windows has no descriptor of a folder
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `out`, flushed to the disk, when the block ends: all of it, or nothing.

    Raises `BundleError` if `out` exists, before or after, or cannot be written.
    """
    try:
        refuse_existing(out)
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            yield temporary
            for path in [*temporary.iterdir(), temporary]:
                sync(path)
            refuse_existing(out)
            temporary.rename(out)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        sync(out.parent)
    except OSError as error:
        raise BundleError(f"{out} cannot be written: {error}") from error


def refuse_existing(out: Path) -> None:
    """Raise `BundleError` if there is anything at `out`, or it could not be made."""
    if out.exists() or out.is_symlink():
        raise BundleError(f"{out} exists; a bundle is never overwritten: choose another --out or remove it")
    if not can_be_made(out):
        raise BundleError(f"{out} cannot be written: its folder, or what is above it, is none or cannot be written to")


def can_be_made(folder: Path) -> bool:
    """Whether `folder`, or what of the path above it is there, is a folder that can be written to."""
    place = folder.absolute()
    there = next(each for each in (place, *place.parents) if each.exists())
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)
