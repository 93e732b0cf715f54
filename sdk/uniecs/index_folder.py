"""The folder that holds an index (docs/index-format.md): manifest, checksums, and saving it whole.

A save writes a new generation of files beside the old one and renames the manifest last, so that a reader,
or a machine that loses power, finds either the old index or the new one. Opening only reads.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from uniecs.catalog import Product
from uniecs.config import StrictConfig
from uniecs.durable import sync
from uniecs.errors import ConfigError, IndexFileError
from uniecs.index import VectorIndex

FORMAT = "uniecs-index"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
CHECKSUM = "manifest_sha256"

View: TypeAlias = Literal["multimodal", "image", "text"]


@dataclass(frozen=True)
class IndexConfig(StrictConfig):
    """What an index is created with: its views, and hnswlib's M and ef_construction."""

    views: tuple[View, ...] = ("multimodal",)
    M: int = 16
    ef_construction: int = 200

    def __post_init__(self) -> None:
        if not self.views or len(set(self.views)) < len(self.views):
            raise ConfigError(
                f"views is {self.views!r}; expected one or more of 'multimodal', 'image', 'text', each once"
            )
        if not 2 <= self.M <= 512:
            raise ConfigError(f"M is {self.M}; expected 2 to 512")
        if not self.M <= self.ef_construction <= 10_000:
            raise ConfigError(f"ef_construction is {self.ef_construction}; expected {self.M} (M) to 10000")


@dataclass(frozen=True)
class BundleReference(StrictConfig):
    """Where the encoder came from: the name of a packaged bundle, or the path of a bundle folder."""

    name: str | None = None
    path: str | None = None

    def __post_init__(self) -> None:
        if (self.name is None) == (self.path is None):
            raise ConfigError("bundle needs exactly one of name and path")

    @classmethod
    def of(cls, path: Path) -> BundleReference:
        """The reference to the bundle folder `path`."""
        from uniecs.bundle import packaged_bundle, packaged_names

        if path.name in packaged_names() and path.resolve() == packaged_bundle(path.name).resolve():
            return cls(name=path.name)
        return cls(path=str(path.absolute()))


@dataclass(frozen=True)
class FileRecord(StrictConfig):
    """One file of the current generation."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest(StrictConfig):
    """manifest.json; `rows` is the number of lines of the products file, deleted ones included."""

    generation: int
    model_id: str
    embed_dim: int
    bundle: BundleReference
    config: IndexConfig
    rows: int = 0
    files: tuple[FileRecord, ...] = ()
    format: Literal["uniecs-index"] = "uniecs-index"
    format_version: Literal[1] = 1

    def file_names(self) -> list[str]:
        """The files that this generation consists of, beside the manifest."""
        return [self.products_name(), *(name for view in self.config.views for name in self.view_names(view))]

    def products_name(self) -> str:
        return f"products-{self.generation}.jsonl"

    def view_names(self, view: str) -> tuple[str, str]:
        return f"{view}-{self.generation}.safetensors", f"{view}-{self.generation}.hnsw"


def empty_indexes(manifest: Manifest) -> dict[str, VectorIndex]:
    """A new index for each view."""
    config = manifest.config
    return {view: VectorIndex(manifest.embed_dim, config.M, config.ef_construction) for view in config.views}


def read_manifest(folder: Path) -> Manifest:
    """Read and check manifest.json, not yet the files it names; raises `IndexFileError`."""
    path = folder / MANIFEST
    if not path.is_file():
        raise IndexFileError(f"{folder} is not an index: it has no {MANIFEST}; SearchEngine.create makes one")
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise IndexFileError(f"{path} is damaged: {error}") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise IndexFileError(f"{path} is not the manifest of an index: its format is not {FORMAT!r}")
    version = data.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise IndexFileError(
            f"{path} has format version {version}; this uniecs reads up to {FORMAT_VERSION}: upgrade uniecs"
        )
    if data.pop(CHECKSUM, None) != _checksum(data):
        raise IndexFileError(f"{path} is damaged: its checksum is wrong")
    try:
        manifest = Manifest.from_dict(data)
    except ConfigError as error:
        raise IndexFileError(f"{path} is not valid: {error}") from error
    if [record.name for record in manifest.files] != manifest.file_names():
        raise IndexFileError(f"{path} names other files than {', '.join(manifest.file_names())}")
    return manifest


def read_contents(folder: Path, manifest: Manifest) -> tuple[list[Product | None], dict[str, VectorIndex]]:
    """The product of each row (None: deleted) and the index of each view; raises `IndexFileError`."""
    _verify_files(folder, manifest)
    path, config = folder / manifest.products_name(), manifest.config
    products = list(_read_products(path))
    live = [product.id for product in products if product is not None]
    if len(products) != manifest.rows or len(set(live)) < len(live):
        raise IndexFileError(f"{path} has {len(products)} rows; expected {manifest.rows}, and each id once")
    indexes: dict[str, VectorIndex] = {}
    for view in config.views:
        vectors, graph = (folder / name for name in manifest.view_names(view))
        index = VectorIndex.load(vectors, graph, manifest.embed_dim, config.M, config.ef_construction, len(products))
        if any(products[row] is None for row in index.rows().tolist()):
            raise IndexFileError(f"{vectors} has vectors of deleted products")
        indexes[view] = index
    return products, indexes


def _verify_files(folder: Path, manifest: Manifest) -> None:
    """Compare size and SHA-256 of every file with the manifest; raises `IndexFileError`."""
    for record in manifest.files:
        path = folder / record.name
        if path.is_symlink() or not path.is_file():
            raise IndexFileError(f"{path} is missing; restore the index from a copy, or build it again")
        size, sha256 = _measure(path)
        if (size, sha256) != (record.bytes, record.sha256):
            raise IndexFileError(
                f"{path} is damaged: {size} bytes with SHA-256 {sha256}; expected {record.bytes} bytes with "
                f"{record.sha256}; restore the index from a copy, or build it again"
            )


def write_contents(
    folder: Path, manifest: Manifest, products: Sequence[Product | None], indexes: Mapping[str, VectorIndex]
) -> Manifest:
    """Save as the generation after `manifest`'s, which must still be the one in `folder` (0: there is none).

    On any failure the folder holds what it held before. Returns the new manifest; raises `IndexFileError`.
    """
    found = read_manifest(folder).generation if (folder / MANIFEST).exists() else 0
    if found != manifest.generation:
        raise IndexFileError(
            f"{folder} has generation {found}; expected {manifest.generation}: "
            "another engine saved or removed it meanwhile"
        )
    new = replace(manifest, generation=found + 1, rows=len(products))
    paths, beside = [folder / name for name in new.file_names()], folder / f"{MANIFEST}.new"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_products(folder / new.products_name(), products)
        for view, index in indexes.items():
            index.save(*(folder / name for name in new.view_names(view)))
        new = replace(new, files=tuple(FileRecord(path.name, *_measure(path)) for path in paths))
        _write_manifest(beside, new)
        for path in (*paths, beside, folder):
            sync(path)
        beside.replace(folder / MANIFEST)
    except (OSError, IndexFileError) as error:
        _remove([*paths, beside])
        raise IndexFileError(f"{folder} cannot be saved ({error}); what was saved before is unharmed") from error
    # From here on the new generation counts: nothing below may fail the save.
    with suppress(OSError):
        sync(folder)
    _remove([folder / record.name for record in manifest.files])
    return new


def _write_manifest(path: Path, manifest: Manifest) -> None:
    data = manifest.to_dict()
    data[CHECKSUM] = _checksum(data)
    path.write_text(json.dumps(data, indent=2), encoding="utf-8")


def _checksum(data: dict[str, Any]) -> str:
    """SHA-256 of the canonical JSON: sorted keys, no spaces, ASCII."""
    return hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _measure(path: Path) -> tuple[int, str]:
    """Size in bytes and SHA-256."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return file.tell(), sha256


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        # What stays is in nobody's way: the next save of its generation overwrites it.
        with suppress(OSError):
            path.unlink()


def _write_products(path: Path, products: Iterable[Product | None]) -> None:
    """One JSON line a row: the product, or null where it was deleted."""
    with path.open("w", encoding="ascii", newline="\n") as file:
        for product in products:
            file.write(json.dumps(None if product is None else _product_record(product)) + "\n")


def _product_record(product: Product) -> dict[str, object]:
    return {
        "id": product.id,
        "title": product.title,
        "image": product.image,
        "attributes": dict(product.attributes),
    }


def _read_products(path: Path) -> Iterator[Product | None]:
    """The rows that `_write_products` wrote; raises `IndexFileError`."""
    try:
        with path.open("rb") as file:
            for line in file:
                record = json.loads(line)
                yield None if record is None else Product(**record)
    except (OSError, ValueError, TypeError) as error:
        raise IndexFileError(f"{path} cannot be read: {error}") from error
