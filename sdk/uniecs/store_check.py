"""The full check of a store: what each read compares with its checksum, and what only all of it together shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from sqlite3 import Connection, DatabaseError

from uniecs.errors import IndexFileError
from uniecs.filters import entries
from uniecs.store_format import State, checked_vectors, checksum_of, product_of

MOST = 100  # faults listed


def problems(connection: Connection, path: Path, dim: int, state: State) -> list[str]:
    """The faults of the store, at most about a hundred; `connection` is within a transaction."""
    found: list[str] = []
    for fault in _faults(connection, path, dim, state):
        found.append(fault)
        if len(found) >= MOST:
            found.append("and perhaps more")
            break
    return found


def _faults(connection: Connection, path: Path, dim: int, state: State) -> Iterator[str]:
    try:
        faults = [text for (text,) in connection.execute(f"PRAGMA integrity_check({MOST})") if text != "ok"]
        yield from faults
        if not faults:
            rows, balance = set[int](), Counter[int]()
            yield from _product_faults(connection, state, rows, balance)
            yield from _attribute_faults(connection, balance)
            for view, count in state.vectors.items():
                yield from _vector_faults(connection, path, dim, view, count, rows)
    except (DatabaseError, AttributeError, TypeError, ValueError, OverflowError) as error:
        # What SQLite can no longer read, or what is not even of its type, ends the check.
        yield f"{path.name} cannot be read any further: {error}"


def _product_faults(connection: Connection, state: State, rows: set[int], balance: Counter[int]) -> Iterator[str]:
    """Gathers the products' rows, and for each the sum of what identifies its attributes' entries."""
    for row, id, content, checksum in connection.execute(
        "SELECT row, CAST(id AS BLOB), CAST(ifnull(content, '') AS BLOB), checksum FROM product ORDER BY row"
    ):
        rows.add(row)
        if checksum_of(row, content) != checksum:
            yield f"the product of row {row} does not have its checksum"
            continue
        product = product_of(content)
        if product.id.encode() != id:
            yield f"the product of row {row} is {product.id!r}, but is listed as {id!r}"
        for entry in entries(product.attributes):
            balance[row] += hash(entry)
    if len(rows) != state.products:
        yield f"there are {len(rows)} products; expected {state.products}"
    if rows and not 0 < min(rows) <= max(rows) <= state.last_row:
        yield f"there are products of the rows {min(rows)} to {max(rows)}; expected 1 to {state.last_row}"
    for (row,) in connection.execute("SELECT row FROM deleted"):
        if row in rows:
            yield f"row {row} is listed as removed, but holds a product"


def _attribute_faults(connection: Connection, balance: Counter[int]) -> Iterator[str]:
    query = "SELECT CAST(name AS BLOB), kind, value, row FROM attribute LEFT JOIN attribute_key USING (key)"
    # SQLite gives text as bytes: damaged, it may not be text any more.
    connection.text_factory = bytes
    try:
        for name, kind, value, row in connection.execute(query):
            try:
                text = value.decode() if isinstance(value, bytes) else value
                balance[row] -= hash((None if name is None else name.decode(), kind, text))
            except UnicodeDecodeError:
                balance[row] -= 1
    finally:
        connection.text_factory = str
    for row in sorted((row for row, rest in balance.items() if rest), key=str):  # damaged, a row may be anything
        yield f"the listed attributes of row {row} are not those of its product"


def _vector_faults(
    connection: Connection, path: Path, dim: int, view: str, count: int, rows: set[int]
) -> Iterator[str]:
    seen = 0
    query = f"SELECT row, checksum, CAST(ifnull(vector, '') AS BLOB) FROM vector_{view} ORDER BY row"
    for row, checksum, vector in connection.execute(query):
        seen += 1
        try:
            checked_vectors(path, view, dim, [row], [checksum], vector)
        except IndexFileError:
            yield f"the vector of row {row} in the view {view!r} does not have its checksum"
        if row not in rows:
            yield f"row {row} has a vector in the view {view!r}, but holds no product"
    if seen != count:
        yield f"there are {seen} vectors in the view {view!r}; expected {count}"
