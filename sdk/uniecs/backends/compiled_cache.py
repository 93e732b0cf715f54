"""Compiled graphs kept on disk between processes: a second start need not compile again.

A blob is used only if it is whole, was written under the same key, and lies where nobody else can write. Whatever is
wrong with the folder, the graphs are compiled as if there were none.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path

MAX_BYTES = 4_000_000_000
DIGEST_BYTES = 32


def cache_folder() -> Path | None:
    """`$UNIECS_CACHE`, or `uniecs` in `$XDG_CACHE_HOME` or `~/.cache`; None if `$UNIECS_CACHE` is set but empty.

    Also None where there is no home. A relative path is none either: it would follow the working directory.
    """
    chosen = os.environ.get("UNIECS_CACHE")
    if chosen is None:
        home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111 (never raises)
        chosen = f"{home}/uniecs"
    return Path(chosen) if os.path.isabs(chosen) else None  # noqa: PTH117 (no path yet)


def cache_key(parts: Mapping[str, object]) -> str:
    """A plain file name that stands for all of `parts` (JSON types)."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def read_blob(folder: Path | None, key: str) -> bytes | None:
    """What `write_blob` stored under `key`; None if there is none, it is damaged, or others could have written it."""
    if folder is None:
        return None
    path = folder / f"{key}.blob"
    try:
        with path.open("rb") as file:
            if not (trusted(folder) and _private(os.fstat(file.fileno()))):
                return None
            digest, blob = file.read(DIGEST_BYTES), file.read()
        os.utime(path)  # used last: deleted last
    except OSError:
        return None
    return blob if digest == _digest(key, blob) else None


def write_blob(folder: Path | None, key: str, blob: bytes) -> None:
    """Store `blob` whole or not at all, and delete the blobs used longest ago beyond `MAX_BYTES`."""
    if folder is None:
        return
    with contextlib.suppress(OSError):  # full, read-only, or another process deletes too: then nothing is kept
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not trusted(folder):
            return
        handle, temporary = tempfile.mkstemp(prefix=".", suffix=".blob", dir=folder)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(_digest(key, blob))
                file.write(blob)
            Path(temporary).replace(folder / f"{key}.blob")
        finally:
            Path(temporary).unlink(missing_ok=True)
        _trim(folder)


def trusted(folder: Path) -> bool:
    """Whether blobs in `folder` are used, or may be once it exists."""
    try:
        return _private(folder.stat())
    except FileNotFoundError:
        return True
    except OSError:
        return False


def _digest(key: str, blob: bytes) -> bytes:
    # With the key: a blob renamed to another key is refused.
    digest = hashlib.sha256(key.encode())
    digest.update(blob)
    return digest.digest()


def _private(status: os.stat_result) -> bool:
    """Whether a file or folder belongs to this user and no other may write it (Windows: by where it lies)."""
    if not hasattr(os, "getuid"):
        return True
    return status.st_uid == os.getuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _trim(folder: Path) -> None:
    kept = 0
    for path in sorted(folder.glob("*.blob"), key=lambda each: each.stat().st_mtime, reverse=True):
        kept += path.stat().st_size
        if kept > MAX_BYTES:
            path.unlink(missing_ok=True)
