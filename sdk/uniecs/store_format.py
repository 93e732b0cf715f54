"""The tables of a store, and their rows to and from products, vectors and settings (docs/index-format.md).

Every value that is read back is compared with its checksum. The functions take a connection to the file; what
SQLite itself raises is left to the caller (database.py).
"""

from __future__ import annotations

import json
import uuid
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from sqlite3 import Connection, OperationalError
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from uniecs.catalog import Product
from uniecs.errors import ConfigError, IndexFileError, InputError
from uniecs.index_folder import BundleReference, IndexConfig

Rows: TypeAlias = npt.NDArray[np.int64]
Vectors: TypeAlias = npt.NDArray[np.float32]

FORMAT = "uniecs-index"
FORMAT_VERSION = 2
MAX_ROW = 2**32 - 1  # the highest that a graph takes
QUERY_VALUES = 512  # values bound to one query
FEW_ROWS = 32  # so many are looked up one by one: IN sorts them first, which ten of them do not repay

_TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL, checksum INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE product (row INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, content TEXT NOT NULL,
    checksum INTEGER NOT NULL);
CREATE TABLE attribute_key (key INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE attribute (key INTEGER NOT NULL, kind INTEGER NOT NULL, value NOT NULL, row INTEGER NOT NULL,
    PRIMARY KEY (key, kind, value, row)) WITHOUT ROWID;
CREATE TABLE deleted (sequence INTEGER NOT NULL, row INTEGER NOT NULL, PRIMARY KEY (sequence, row)) WITHOUT ROWID;
"""
_VIEW_TABLE = "CREATE TABLE vector_{} (row INTEGER PRIMARY KEY, vector BLOB NOT NULL, checksum INTEGER NOT NULL);\n"

_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
_ascii_json = json.JSONEncoder(ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode


def schema(views: Iterable[str]) -> str:
    """The statements that make the tables."""
    return _TABLES + "".join(map(_VIEW_TABLE.format, views))


@dataclass(frozen=True)
class Header:
    """What is fixed when an index is made."""

    model_id: str
    embed_dim: int
    bundle: BundleReference
    config: IndexConfig
    migrated_from: str = ""  # the checksum of the manifest of format version 1 that it was made from
    store_id: str = field(default_factory=lambda: uuid.uuid4().hex)  # what a graph was made from


@dataclass(frozen=True)
class State:
    """What every change rewrites."""

    sequence: int  # changes so far
    last_row: int  # the highest row ever used
    purged: int  # rows deleted by changes after this one are listed in `deleted`
    products: int
    vectors: dict[str, int]  # by view


def checksum_of(row: int, data: bytes | memoryview) -> int:
    """CRC-32 of the row as an int64, little-endian, and the data after it."""
    return zlib.crc32(data, zlib.crc32(row.to_bytes(8, "little")))


def damaged(path: Path, what: str) -> IndexFileError:
    """The error for `what` if its checksum is wrong."""
    return IndexFileError(
        f"{path} is damaged: {what} does not have its checksum; put the product again (update), restore the index "
        "from a copy, or build it again"
    )


# Settings


def write_header(connection: Connection, header: Header) -> None:
    """Fill the table meta of a new file."""
    values = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "model_id": header.model_id,
        "embed_dim": str(header.embed_dim),
        "bundle": _ascii_json(header.bundle.to_dict()),
        "config": _ascii_json(header.config.to_dict()),
        "migrated_from": header.migrated_from,
        "store_id": header.store_id,
    }
    for key, value in values.items():
        _write_meta(connection, key, value)
    write_state(connection, State(0, 0, 0, 0, dict.fromkeys(header.config.views, 0)))


def write_state(connection: Connection, state: State) -> None:
    """Replace the state."""
    _write_meta(connection, "state", _ascii_json(asdict(state)))


def _write_meta(connection: Connection, key: str, value: str) -> None:
    checksum = zlib.crc32(f"{key}\0{value}".encode())
    connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?, ?)", (key, value, checksum))


def read_header(connection: Connection, path: Path) -> Header:
    """Check that the file is a store that can be read; raises `IndexFileError`."""
    try:
        found = dict(connection.execute("SELECT key, value FROM meta WHERE key IN ('format', 'format_version')"))
    except OperationalError as error:
        raise IndexFileError(f"{path} is not an index: {error}; SearchEngine.create makes one") from error
    if found.get("format") != FORMAT:
        raise IndexFileError(f"{path} is not an index: its format is {found.get('format')!r}; expected {FORMAT!r}")
    version = str(found.get("format_version"))
    if version.isdecimal() and int(version) > FORMAT_VERSION:
        raise IndexFileError(
            f"{path} has format version {version}; this uniecs reads up to {FORMAT_VERSION}: upgrade uniecs"
        )
    try:
        header = Header(
            _read_meta(connection, path, "model_id"),
            int(_read_meta(connection, path, "embed_dim")),
            BundleReference.from_dict(json.loads(_read_meta(connection, path, "bundle"))),
            IndexConfig.from_dict(json.loads(_read_meta(connection, path, "config"))),
            _read_meta(connection, path, "migrated_from"),
            _read_meta(connection, path, "store_id"),
        )
    except (ConfigError, ValueError) as error:
        raise IndexFileError(f"{path} is not valid: {error}") from error
    if _read_meta(connection, path, "format_version") != str(FORMAT_VERSION) or header.embed_dim < 1:
        raise IndexFileError(f"{path} is not valid: format version {version}, vectors {header.embed_dim} wide")
    tables = {sql for (sql,) in connection.execute("SELECT sql FROM sqlite_master WHERE type = 'table'")}
    if not {each.strip() for each in schema(header.config.views).split(";") if each.strip()} <= tables:
        raise IndexFileError(
            f"{path} is damaged: its tables are not described as they were made; restore the index from a copy, or "
            "build it again"
        )
    return header


def read_state(connection: Connection, path: Path) -> State:
    """The state of the last commit; raises `IndexFileError` if it is damaged."""
    try:
        return State(**json.loads(_read_meta(connection, path, "state")))
    except (TypeError, ValueError) as error:
        raise IndexFileError(f"{path} is not valid: {error}") from error


def _read_meta(connection: Connection, path: Path, key: str) -> str:
    rows = connection.execute("SELECT value, checksum FROM meta WHERE key = ?", (key,)).fetchall()
    if not rows or not isinstance(rows[0][0], str) or zlib.crc32(f"{key}\0{rows[0][0]}".encode()) != rows[0][1]:
        raise IndexFileError(
            f"{path} is damaged: its setting {key!r} does not have its checksum; restore the index from a copy, or "
            "build it again"
        )
    return str(rows[0][0])


# Queries


def select_in(connection: Connection, query: str, values: Iterable[Any]) -> Iterator[Any]:
    """The rows of `query`, whose {} stands for a list of values, for as many queries as the values need."""
    values = list(values)
    for start in range(0, len(values), QUERY_VALUES):
        some = values[start : start + QUERY_VALUES]
        # A few lengths only: SQLite then has most statements prepared.
        some += some[-1:] * ((1 << (len(some) - 1).bit_length()) - len(some))
        yield from connection.execute(query.format(",".join("?" * len(some))), some).fetchall()


def select_of(connection: Connection, aggregates: str, table: str, columns: str, rows: Sequence[int]) -> Iterator[Any]:
    """`aggregates` over the `columns` of those of `rows` that `table` has, once for as many queries as that needs.

    `rows` are different ones. A query takes one step of SQLite, for the reason in `select_rows`.
    """
    if len(rows) <= FEW_ROWS:
        each = " UNION ALL ".join([f"SELECT {columns} FROM {table} WHERE row = ?"] * len(rows))
        return iter(connection.execute(f"SELECT {aggregates} FROM ({each})", rows).fetchall() if rows else ())
    return select_in(connection, f"SELECT {aggregates} FROM {table} WHERE row IN ({{}})", rows)


def select_rows(connection: Connection, query: str, *values: Any) -> Rows:
    """The rows (n,), ascending, of a `query` for one group_concat of rows.

    All of them come in one step of the query: Python's lock is given away once, not once a row. Raises `IndexFileError`
    for what is no integer.
    """
    ((text,),) = connection.execute(query, values).fetchall()
    if text is None:
        return np.zeros(0, np.int64)
    try:
        return np.sort(np.fromstring(text, np.int64, sep=","))
    except ValueError as error:
        raise IndexFileError(f"the store lists a row that is no integer: {error}; restore it from a copy") from error


# Products


def product_content(product: Product) -> str:
    """The JSON text that is stored of a product; raises `InputError` for what cannot be stored."""
    if not isinstance(product.id, str) or not isinstance(product.image, str | None):
        raise InputError(
            f"product {product.id!r} has an image of type {type(product.image).__name__}; expected a string for the "
            "id, and a path or None for the image"
        )
    record = {"id": product.id, "title": product.title, "image": product.image, "attributes": dict(product.attributes)}
    try:
        content = _json(record)
        content.encode()
    except UnicodeEncodeError:
        # The path of an image may hold bytes that are no UTF-8, as surrogates: JSON can, UTF-8 cannot.
        return _ascii_json(record)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"product {product.id!r} cannot be stored: {error}") from error
    return content


def product_of(content: str | bytes) -> Product:
    """The inverse of `product_content`; raises `IndexFileError` for anything else."""
    try:
        return _product(json.loads(content))
    except (ValueError, KeyError, TypeError) as error:
        raise IndexFileError(f"the store holds a product that is not valid ({error}): {content!r:.200}") from error


def _product(record: Any) -> Product:
    return Product(record["id"], record["title"], record["image"], record["attributes"])


def read_products(connection: Connection, rows: Sequence[int], path: Path) -> dict[int, Product]:
    """Row -> product, for those of `rows` that hold one; raises `IndexFileError` for a damaged one."""
    one_text = "group_concat(row || ' ' || checksum || ' ' || content, char(10))"  # JSON text has no line break
    contents: dict[int, str] = {}
    try:
        for (text,) in select_of(connection, one_text, "product", "row, checksum, content", rows):
            for line in text.split("\n") if text is not None else ():
                number, checksum, content = line.split(" ", 2)
                row = int(number)
                if checksum_of(row, content.encode()) != int(checksum):
                    raise ValueError("wrong checksum")
                contents[row] = content
        # One text to parse: half the time of one for each.
        records = json.loads(f"[{','.join(contents.values())}]")
        return dict(zip(contents, map(_product, records), strict=True))
    except (OperationalError, ValueError, KeyError, TypeError) as error:
        for row, content in read_contents(connection, rows):
            if content is None:
                raise damaged(path, f"the product of row {row}") from error
            product_of(content)
        if isinstance(error, OperationalError):
            raise
        raise IndexFileError(f"{path} holds a product that is not valid: {error}") from error


def read_contents(connection: Connection, rows: Sequence[int]) -> Iterator[tuple[int, bytes | None]]:
    """(row, content) of those of `rows` that hold a product; None for a damaged one."""
    query = "SELECT row, checksum, CAST(ifnull(content, '') AS BLOB) FROM product WHERE row IN ({})"
    for row, checksum, content in select_in(connection, query, rows):
        yield row, content if checksum_of(row, content) == checksum else None


# Vectors


def checked_vectors(
    path: Path, view: str, dim: int, rows: Sequence[int], checksums: Sequence[int], data: bytes
) -> Vectors:
    """The vectors (n, dim) of `rows` that lie in `data` one after the other; raises `IndexFileError`."""
    size, whole = 4 * dim, memoryview(data)
    for place, (row, checksum) in enumerate(zip(rows, checksums, strict=True)):
        if checksum_of(row, whole[place * size : (place + 1) * size]) != checksum:
            raise damaged(path, f"the vector of row {row} in the view {view!r}")
    if len(data) != len(rows) * size:
        raise damaged(path, f"a vector of the rows {min(rows)} to {max(rows)} in the view {view!r}")
    return np.frombuffer(data, "<f4").reshape(len(rows), dim).astype(np.float32, copy=False)
