"""An index folder of format version 1 becomes one of version 2, in place.

Version 1 (what uniecs wrote before it had a store): manifest.json with a SHA-256 of each other file and of itself,
products-G.jsonl with a product or null a row, and for each view VIEW-G.safetensors (tensors `rows` and `vectors`) and
VIEW-G.hnsw, the graph, which is not read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from uniecs.catalog import Product
from uniecs.config import StrictConfig
from uniecs.database import disk_errors
from uniecs.durable import sync
from uniecs.errors import ConfigError, IndexFileError, InputError
from uniecs.index_folder import BundleReference, IndexConfig
from uniecs.progress import progress_bar
from uniecs.store import OLD_MANIFEST, STORE_FILE, Item, Store, build_store
from uniecs.store_format import FORMAT, Header, Rows, Vectors
from uniecs.writer_lock import WriterLock

BATCH_PRODUCTS = 4096
UNIT_TOLERANCE = 1e-3


@dataclass(frozen=True)
class _FileRecord(StrictConfig):
    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class _Manifest(StrictConfig):
    generation: int
    model_id: str
    embed_dim: int
    bundle: BundleReference
    config: IndexConfig
    rows: int
    files: tuple[_FileRecord, ...]
    format: Literal["uniecs-index"]
    format_version: Literal[1]

    def file_names(self) -> list[str]:
        """No other names are accepted: none can lead out of the folder."""
        kinds = ("safetensors", "hnsw")
        names = [f"{view}-{self.generation}.{kind}" for view in self.config.views for kind in kinds]
        return [f"products-{self.generation}.jsonl", *names]


def needs_migration(folder: Path) -> bool:
    """Whether `folder` holds an index of version 1, or what a migration that was cut off left of one.

    Raises `IndexFileError` if it cannot be read.
    """
    try:
        return (folder / OLD_MANIFEST).is_file()
    except OSError as error:
        raise IndexFileError(f"{folder} cannot be read: {error}; check the permissions") from error


def migrate(folder: Path) -> None:
    """Turn the index of format version 1 in `folder` into version 2; does nothing for any other folder.

    All checksums are verified first. The store is made under another name and renamed, and only then are the old
    files removed: whatever stops this, the folder holds a whole index, and `migrate` can be called again. Raises
    `IndexFileError` for a damaged index, a folder that cannot be written or that another process writes.
    """
    if not needs_migration(folder):
        return
    lock = WriterLock(folder)
    lock.acquire()
    try:
        if not needs_migration(folder):
            return  # another process did it just now
        manifest, checksum = _read_manifest(folder / OLD_MANIFEST)
        if (folder / STORE_FILE).exists():
            _check_origin(folder, checksum)
        else:
            _verify_files(folder, manifest)
            header = Header(manifest.model_id, manifest.embed_dim, manifest.bundle, manifest.config, checksum)
            try:
                build_store(folder, lock, header, _batches(folder, manifest))
            except InputError as error:
                raise IndexFileError(f"{folder} cannot be migrated: {error}") from error
        with disk_errors(folder):
            # The manifest last: as long as it is there, this is tried again.
            for name in (*manifest.file_names(), OLD_MANIFEST):
                (folder / name).unlink(missing_ok=True)
            sync(folder)
    finally:
        lock.release()


def _check_origin(folder: Path, checksum: str) -> None:
    """Nothing may be removed unless the store was made from it."""
    store = Store.open(folder)
    store.close()
    if store.migrated_from != checksum:
        raise IndexFileError(
            f"{folder} holds {OLD_MANIFEST} and a {STORE_FILE} that was not made from it: move one of them elsewhere"
        )


def _read_manifest(path: Path) -> tuple[_Manifest, str]:
    """The manifest and its checksum."""
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise IndexFileError(f"{path} is damaged: {error}") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise IndexFileError(f"{path} is not the manifest of an index: its format is not {FORMAT!r}")
    checksum = data.pop("manifest_sha256", None)
    if checksum != _checksum(data):
        raise IndexFileError(f"{path} is damaged: its checksum is wrong")
    try:
        manifest = _Manifest.from_dict(data)
    except ConfigError as error:
        raise IndexFileError(f"{path} is not valid: {error}") from error
    if [record.name for record in manifest.files] != manifest.file_names():
        raise IndexFileError(f"{path} names other files than {', '.join(manifest.file_names())}")
    return manifest, checksum


def _checksum(data: dict[str, Any]) -> str:
    """SHA-256 of the canonical JSON: sorted keys, no spaces, ASCII."""
    return hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _verify_files(folder: Path, manifest: _Manifest) -> None:
    for record in manifest.files:
        path = folder / record.name
        if path.is_symlink() or not path.is_file():
            raise IndexFileError(f"{path} is missing; restore the index from a copy, or build it again")
        with disk_errors(path), path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
        if (size, sha256) != (record.bytes, record.sha256):
            raise IndexFileError(
                f"{path} is damaged: {size} bytes with SHA-256 {sha256}; expected {record.bytes} bytes with "
                f"{record.sha256}; restore the index from a copy, or build it again"
            )


def _batches(folder: Path, manifest: _Manifest) -> Iterator[list[Item]]:
    """The products, in the order of their rows, with their vectors."""
    views = [(view, *_read_vectors(folder, view, manifest)) for view in manifest.config.views]
    path = folder / manifest.file_names()[0]
    batch: list[Item] = []
    ids = set[str]()
    with disk_errors(path):
        lines = path.read_bytes().splitlines()
    for row, line in enumerate(progress_bar(lines, desc="migrate", unit="product")):
        product = _read_product(path, line)
        vectors: dict[str, Vectors] = {view: values[places[row]] for view, places, values in views if row in places}
        if product is None:
            if vectors:
                raise IndexFileError(f"{path} has vectors of deleted products, such as of row {row}")
            continue
        if product.id in ids:
            raise IndexFileError(f"{path} has the id {product.id!r} more than once")
        ids.add(product.id)
        batch.append((product, vectors))
        if len(batch) == BATCH_PRODUCTS:
            yield batch
            batch = []
    if len(lines) != manifest.rows:
        raise IndexFileError(f"{path} has {len(lines)} rows; expected {manifest.rows}")
    yield batch


def _read_product(path: Path, line: bytes) -> Product | None:
    try:
        record = json.loads(line)
        if record is None:
            return None
        # A .csv that was not UTF-8 could give an attribute a name that a store does not take.
        attributes = {key.encode("utf-8", "replace").decode(): value for key, value in record["attributes"].items()}
        return Product(record["id"], record["title"], record["image"], attributes)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise IndexFileError(f"{path} cannot be read: {error}") from error


def _read_vectors(folder: Path, view: str, manifest: _Manifest) -> tuple[dict[int, int], Vectors]:
    """Row -> place, and the vectors (n, embed_dim) at these places."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = folder / f"{view}-{manifest.generation}.safetensors"
    try:
        tensors = load_file(path)
        rows: Rows = tensors["rows"]
        vectors: Vectors = tensors["vectors"]
    except (OSError, SafetensorError, KeyError) as error:
        raise IndexFileError(f"{path} cannot be read: {error}") from error
    fits = vectors.shape == (*rows.shape, manifest.embed_dim)
    if not fits or rows.dtype != np.int64 or vectors.dtype != np.float32:
        raise IndexFileError(f"{path} holds {rows.dtype} {rows.shape} rows and {vectors.dtype} {vectors.shape} vectors")
    if np.any(np.diff(rows, prepend=-1, append=manifest.rows) < 1):
        raise IndexFileError(f"{path} has rows that do not ascend from 0 to below {manifest.rows}")
    if not np.all(np.abs(np.linalg.norm(vectors, axis=1) - 1) <= UNIT_TOLERANCE):
        raise IndexFileError(f"{path} has vectors that are not of L2 norm 1")
    return {row: place for place, row in enumerate(rows.tolist())}, vectors
