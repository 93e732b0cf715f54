"""Embeddings of the latest queries, by their content: what many people ask is embedded once."""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from uniecs.errors import InputError, UniecsError
from uniecs.index import Vectors

if TYPE_CHECKING:
    from uniecs.engine import Query

Key: TypeAlias = tuple[str | None, bytes | None]
Encode: TypeAlias = Callable[[Sequence["Query"]], tuple[Vectors, dict[int, UniecsError]]]

# A longer text is no query that many type; kept whole, such texts would take the memory.
MAX_TEXT_CHARS = 1_000


class QueryCache:
    """The `entries` embeddings used last, thread-safe; queries with an image only if `images`."""

    def __init__(self, entries: int, *, images: bool = False) -> None:
        """Raises `InputError` for a negative number of entries."""
        if type(entries) is not int or entries < 0:
            raise InputError(f"query_cache is {entries!r}; expected a number of entries, 0 for none")
        self._entries = entries
        self._images = images
        self._lock = threading.Lock()
        self._rows: OrderedDict[Key, Vectors] = OrderedDict()

    def __len__(self) -> int:
        return len(self._rows)

    def embed(self, queries: Sequence[Query], encode: Encode) -> tuple[Vectors, dict[int, UniecsError]]:
        """What `encode` gives for `queries`, asked only for those that are not known; the caller owns the rows."""
        keys = [self._key(query.text, query.image) for query in queries]
        kept = [self._get(key) for key in keys]
        if not any(row is not None for row in kept):
            rows, errors = encode(queries)
        else:
            new = [place for place, row in enumerate(kept) if row is None]
            encoded, failed = encode([queries[place] for place in new])
            errors = {new[place]: error for place, error in failed.items()}
            found = iter(encoded)
            rows = np.array([next(found) if row is None else row for row in kept])  # stack takes 6 us more
        for place, (key, row) in enumerate(zip(keys, kept, strict=True)):
            if key is not None and row is None and place not in errors:
                self._put(key, rows[place])
        return rows, errors

    def _key(self, text: str | None, image: object) -> Key | None:
        """What stands for a query: the text, and the digest of the image's content; None for one that is not kept."""
        if self._entries == 0 or (image is not None and not self._images):
            return None
        if text is not None and (not isinstance(text, str) or len(text) > MAX_TEXT_CHARS):
            return None
        digest = None if image is None else _digest(image)
        return None if image is not None and digest is None else (text, digest)

    def _get(self, key: Key | None) -> Vectors | None:
        if key is None:
            return None
        with self._lock:
            if key in self._rows:
                self._rows.move_to_end(key)
            return self._rows.get(key)

    def _put(self, key: Key, row: Vectors) -> None:
        with self._lock:
            self._rows[key] = row.copy()
            self._rows.move_to_end(key)
            if len(self._rows) > self._entries:
                self._rows.popitem(last=False)


def _digest(image: object) -> bytes | None:
    """SHA-256 of an image's bytes or pixels; None for what cannot be read here, or not twice."""
    if isinstance(image, np.ndarray):
        return hashlib.sha256(f"{image.dtype} {image.shape} ".encode() + image.tobytes()).digest()
    if isinstance(image, (str, os.PathLike)):
        try:
            image = Path(image).read_bytes()
        except (OSError, ValueError):
            return None
    return hashlib.sha256(image).digest() if isinstance(image, (bytes, bytearray)) else None
