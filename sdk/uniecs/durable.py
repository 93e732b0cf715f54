"""Making what was written survive a crash: the one place that flushes a path to the disk."""

from __future__ import annotations

import os
from pathlib import Path


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk; raises `OSError`."""
    if path.is_dir() and os.name == "nt":
        return  # Windows has no descriptor of a folder
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
