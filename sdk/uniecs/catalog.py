"""Products: read from .csv, .jsonl, .parquet, DataFrames and iterables, and filtered by their attributes.

Everything that takes products reads them through `read_catalog`: the search engine, the trainer, the command
line. A faulty row is yielded as `Rejected` and reading goes on; a file that cannot be read at all raises
`CatalogError`.
"""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from uniecs.errors import CatalogError, InputError, MissingExtraError, UniecsError
from uniecs.preprocess import check_text

if TYPE_CHECKING:
    from uniecs.preprocess import ImageSource

Scalar: TypeAlias = str | int | float | bool
Attribute: TypeAlias = Scalar | list[Scalar] | None

FIELDS = frozenset({"id", "title", "image"})
PARQUET_ROWS = 64


@dataclass(frozen=True, slots=True)
class Product:
    """One product, with at least one of `title` and `image`."""

    id: str
    title: str | None = None
    image: ImageSource | None = None
    attributes: Mapping[str, Attribute] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that was left out: its position among the rows (from 0), its id where known, the reason."""

    row: int
    id: str | None
    error: UniecsError

    def __post_init__(self) -> None:
        # A traceback keeps its frames alive, and with them the pictures of every row read together with this one.
        link: BaseException | None = self.error
        while link is not None:
            link.__traceback__ = None
            link = link.__cause__ or link.__context__


def read_catalog(source: object) -> Iterator[Product | Rejected]:
    """Stream the products of `source`, one item a row and in order: `enumerate` counts the rows.

    `source` is a path ending in .csv, .jsonl or .parquet, a DataFrame, or an iterable of `Product` or of
    mappings. The columns are id (a string or integer), title and image; every other one is an attribute, and
    so is every entry of a mapping under `attributes`, whose names are none of those beside it. A name like one of the
    three but for case or blanks is an error where that one is not there. None, NaN and blank strings are absent.
    An image is a path (relative to the catalogue file's folder), bytes, or {bytes, path}; it is not opened here.

    Raises `CatalogError` for a file that is missing, damaged (such as a quote in a .csv that is not closed), of
    another kind or without an id column, `MissingExtraError` for .parquet without pyarrow, `InputError` for any other
    kind of source.
    """
    folder = None
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        folder = path.absolute().parent
        records = read_records(path)
    elif hasattr(source, "itertuples") and hasattr(source, "columns"):
        records = _frame_records(source)
    elif isinstance(source, Iterable) and not isinstance(source, (bytes, Mapping, Product)):
        records = iter(source)
    else:
        raise InputError(
            f"catalogue is of type {type(source).__name__}; expected a .csv, .jsonl or .parquet path, "
            "a DataFrame, or an iterable of products"
            + (", such as its .to_pylist()" if hasattr(source, "to_pylist") else "")
        )
    return (_checked(row, record, folder) for row, record in enumerate(records))


def read_records(path: Path, columns: Sequence[str] = ("id",)) -> Iterator[object]:
    """Stream the rows of a .csv, .jsonl or .parquet file, each a JSON value or mapping, or why it is none.

    Raises `CatalogError` for a file that is missing, damaged, of another kind or (but for .jsonl) without one of
    `columns`, `MissingExtraError` for .parquet without pyarrow.
    """
    readers = {".csv": _csv_records, ".jsonl": _jsonl_records, ".parquet": _parquet_records}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise CatalogError(f"{path} ends in {path.suffix!r}; expected one of {', '.join(readers)}")
    if not path.is_file():
        raise CatalogError(f"{path} does not exist or is not a file")
    return reader(path, columns)


def read_row_groups(path: Path, row_groups: Sequence[int], first_row: int) -> Iterator[Product | Rejected]:
    """As `read_catalog`, of some row groups of a .parquet file; `first_row` is the position of their first row."""
    folder = path.absolute().parent
    return (
        _checked(row, record, folder)
        for row, record in enumerate(_parquet_records(path, ("id",), row_groups), first_row)
    )


def _csv_records(path: Path, required: Sequence[str]) -> Iterator[object]:
    # Bytes that are not UTF-8 become lone surrogates, which reject their own row only.
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
            rows = csv.reader(lines, strict=True)  # else a stray quote would take the rows after it into its cell
            columns = _check_columns(next(rows, []), path, required)
            while True:
                first = rows.line_num + 1
                try:
                    row = next(rows)
                except StopIteration:
                    return
                except csv.Error as error:
                    over_lines = rows.line_num > first and "field limit" in str(error)
                    if over_lines or str(error) == "unexpected end of data":
                        raise CatalogError(f"{path} has a quote in line {first} that is not closed: {error}") from error
                    yield InputError(f"{path} line {_span(first, rows.line_num)} is not CSV: {error}")
                    continue
                if row and len(row) != len(columns):
                    where = f"{path} line {_span(first, rows.line_num)}"
                    yield InputError(f"{where} has {len(row)} cells; expected {len(columns)}")
                elif row:
                    yield dict(zip(columns, row, strict=True))
    except (OSError, csv.Error) as error:
        raise CatalogError(f"{path} cannot be read: {error}") from error


def _span(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"


def _jsonl_records(path: Path, _required: Sequence[str]) -> Iterator[object]:
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    yield json.loads(line, object_pairs_hook=_object)
                except (ValueError, RecursionError) as error:
                    yield InputError(f"{path} line {number} is not JSON: {error}")
    except OSError as error:
        raise CatalogError(f"{path} cannot be read: {error}") from error


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object; raises `ValueError` for a name that stands twice, of which one value would be lost."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"an object has {next(name for name in found if names.count(name) > 1)!r} twice")
    return found


def _parquet_records(path: Path, required: Sequence[str], row_groups: Sequence[int] | None = None) -> Iterator[object]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as parquet
    except ModuleNotFoundError as error:
        raise MissingExtraError("reading .parquet needs pyarrow: pip install 'uniecs[parquet]'") from error
    try:
        with parquet.ParquetFile(path) as file:
            _check_columns(file.schema_arrow.names, path, required)
            for batch in file.iter_batches(batch_size=PARQUET_ROWS, row_groups=row_groups):
                yield from _python_rows(_for_python(pa, batch), path)
    except (OSError, pa.ArrowException, UnicodeEncodeError) as error:  # pyarrow opens no path that is not UTF-8
        raise CatalogError(f"{path} cannot be read: {error}") from error


def _for_python(pa: Any, batch: Any) -> Any:
    """A batch whose values Python has. Others are not cast: pyarrow refuses some casts of a type to itself."""
    for place, each in enumerate(batch.schema):
        for kind in _steps_to_python(pa, each.type):
            batch = batch.set_column(place, each.name, batch.column(place).cast(kind, safe=False))
    return batch


def _steps_to_python(pa: Any, kind: Any) -> tuple[Any, ...]:
    """The types to cast a column of `kind` to, one after the other.

    Times get the finest unit that Python has, and a float32 the shortest decimal that it stands for: as a Python float
    19.99 would be 19.989999771118164, which no filter asks for.
    """
    if pa.types.is_timestamp(kind) and kind.unit == "ns":
        return (pa.timestamp("us", kind.tz),)
    if pa.types.is_float32(kind):
        return pa.string(), pa.float64()
    if pa.types.is_list(kind) and pa.types.is_float32(kind.value_type):
        return pa.list_(pa.string()), pa.list_(pa.float64())
    return ()


def _python_rows(batch: Any, path: Path) -> list[object]:
    """The rows of a batch; for one with a value that Python cannot hold, such as a date after 9999, the reason."""
    try:
        rows: list[object] = batch.to_pylist()
        return rows
    except (ValueError, OverflowError) as error:
        if len(batch) == 1:
            return [InputError(f"{path} has a value in this row that cannot be read: {error}")]
    return [row for place in range(len(batch)) for row in _python_rows(batch.slice(place, 1), path)]


def _frame_records(frame: Any) -> Iterator[object]:
    columns = _check_columns(frame.columns, "the DataFrame", ("id",))
    return (dict(zip(columns, row, strict=True)) for row in frame.itertuples(index=False, name=None))


def _check_columns(columns: Iterable[str], name: object, required: Sequence[str]) -> list[str]:
    columns = list(columns)
    if "id" in required:
        _check_spelling(columns, name, CatalogError)
    for each in required:
        if each not in columns:
            raise CatalogError(f"{name} has no column {each!r}; its columns are {', '.join(map(str, columns))}")
    twice = {column for column in columns if columns.count(column) > 1}
    if twice:
        raise CatalogError(f"{name} has the column {min(twice)!r} twice")
    return columns


def _check_spelling(names: Collection[object], where: object, error: type[UniecsError]) -> None:
    """Raise `error` for "Title" where there is no "title": as an attribute it would leave products without words."""
    missing = FIELDS.difference(names)
    for name in names if missing else ():
        if isinstance(name, str) and (meant := name.strip().lower()) in missing:
            raise error(f"{where} has {name!r} and no {meant!r}; write {meant!r}, or another name for an attribute")


def _checked(row: int, record: object, folder: Path | None) -> Product | Rejected:
    identity = None
    try:
        if isinstance(record, UniecsError):
            raise record
        fields, nested = _fields(record)
        _check_spelling(fields.keys(), "row", InputError)
        identity = _id(fields.pop("id", None))
        title = _plain(fields.pop("title", None), "title")
        image = _image(fields.pop("image", None), folder)
        if title is None and image is None:
            raise InputError(f"product {identity!r} has neither a title nor an image; expected at least one")
        reserved = frozenset[Any]() if isinstance(record, Product) else fields.keys() | FIELDS
        if twice := nested.keys() & reserved:
            raise InputError(f"attribute {min(map(str, twice))!r} is given beside attributes too; give it another name")
        fields |= nested
        attributes = {_key(key): value for key, cell in fields.items() if (value := _attribute(cell, key)) is not None}
        return Product(identity, None if title is None else check_text(title), image, attributes)
    except UniecsError as error:
        return Rejected(row, identity, error)


def _fields(record: object) -> tuple[dict[Any, Any], dict[Any, Any]]:
    """What stands beside `attributes` (id, title, image and other attributes), and what stands in it."""
    if isinstance(record, Product):
        fields: dict[Any, Any] = {"id": record.id, "title": record.title, "image": record.image}
        attributes: object = record.attributes
        if not isinstance(attributes, Mapping):
            raise InputError(f"attributes is of type {type(attributes).__name__}; expected a mapping")
        return fields, dict(attributes)
    if not isinstance(record, Mapping):
        raise InputError(f"row is of type {type(record).__name__}; expected a product")
    fields = dict(record)
    nested = fields.pop("attributes") if isinstance(fields.get("attributes"), Mapping) else {}
    return fields, dict(nested)


def _id(value: object) -> str:
    value = _plain(value, "id")
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise InputError(f"id is {value!r}; expected a string or an integer")
    return value


def _key(key: object) -> str:
    if not isinstance(key, str) or not key:
        raise InputError(f"attribute name is {key!r}; expected a string")
    return _unicode(key, "attribute name")


def _image(value: Any, folder: Path | None) -> ImageSource | None:
    if isinstance(value, Mapping):
        if not value.keys() & {"bytes", "path"}:
            raise InputError(f"image has the keys {', '.join(map(str, value)) or 'none'}; expected bytes or path")
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    if isinstance(value, (bytearray, memoryview)):
        value = bytes(value)
    if _is_missing(value):
        return None
    if isinstance(value, str) and folder is not None and "://" not in value:  # an address stays as it is
        return str(folder / value)
    image: ImageSource = value
    return image


def _attribute(value: object, name: str) -> Attribute:
    if isinstance(value, np.ndarray):
        value = list(value) if value.ndim else value[()]
    if not isinstance(value, (list, tuple)):
        return _plain(value, name)
    return [item for each in value if (item := _plain(each, name)) is not None] or None


def _plain(value: object, name: str) -> Scalar | None:
    """A JSON scalar, or None for what is absent; raises `InputError` for any other type."""
    if type(value) is str:  # most are: it need not be asked what else it is
        return None if _is_missing(value) else _unicode(value, name)
    value = as_scalar(value)
    if _is_missing(value):
        return None
    if isinstance(value, float) and math.isinf(value):
        raise InputError(f"{name} is {value}; expected a finite number")
    if isinstance(value, str):
        return _unicode(value, name)
    if isinstance(value, int) and value.bit_length() > 1024:
        raise InputError(f"{name} is an integer of {value.bit_length()} bits; expected one within the range of a float")
    if isinstance(value, (bool, int, float)):
        return value
    raise InputError(f"{name} is of type {type(value).__name__}; expected a string, number, boolean or list of them")


def as_scalar(value: object) -> object:
    """A NumPy scalar, a date or a Decimal as the number or string that stands for it; anything else as it is."""
    if isinstance(value, np.generic):
        # A float32 is the shortest decimal that it stands for, which is what a filter asks for.
        plain: object = float(str(value)) if isinstance(value, np.float32) else value.item()
        if isinstance(value, np.datetime64) and isinstance(plain, int):  # finer than a datetime
            plain = value.astype("datetime64[us]").item()
        value = plain
    if isinstance(value, Decimal):
        return math.nan if value.is_nan() else float(value)
    return value.isoformat() if isinstance(value, date) and not _is_missing(value) else value


def _unicode(text: str, name: str) -> str:
    try:
        if not text.isascii():
            text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"{name} is not valid Unicode (was the file UTF-8?): {error}") from error
    return text


def _is_missing(value: object) -> bool:
    if isinstance(value, str):
        return not value.strip(" \t\r\n\0")
    if isinstance(value, float):
        return math.isnan(value)
    # pandas' own two markers, without importing pandas
    return value is None or type(value).__name__ in ("NAType", "NaTType")
