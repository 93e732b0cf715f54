"""One change of a store, within one transaction: rows removed, rows added, the state rewritten."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from sqlite3 import Connection
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from uniecs.catalog import Product
from uniecs.errors import IndexFileError, InputError
from uniecs.filters import entries
from uniecs.store_format import (
    MAX_ROW,
    Rows,
    State,
    checksum_of,
    product_content,
    product_of,
    read_contents,
    read_state,
    select_in,
    write_state,
)


@dataclass(frozen=True)
class NewProduct:
    """A product in the form in which it is stored."""

    id: str
    content: bytes
    entries: set[tuple[str, int, str | int | float]]
    vectors: dict[str, bytes]

    @classmethod
    def of(cls, product: Product, vectors: Mapping[str, npt.ArrayLike], views: Sequence[str], dim: int) -> Self:
        """Raises `InputError` for what cannot be stored."""
        blobs: dict[str, bytes] = {}
        for view, vector in vectors.items():
            array = np.asarray(vector, "<f4")
            if view not in views or array.shape != (dim,) or not np.isfinite(array).all():
                raise InputError(
                    f"product {product.id!r} has a vector of shape {array.shape} for the view {view!r}; expected "
                    f"finite numbers ({dim},) for {', '.join(views)}"
                )
            blobs[view] = array.tobytes()
        _check_attributes(product)
        return cls(product.id, product_content(product).encode(), entries(product.attributes), blobs)


def _check_attributes(product: Product) -> None:
    for key, attribute in product.attributes.items():
        values = attribute if isinstance(attribute, (list, tuple)) else [attribute]
        try:
            if not isinstance(key, str):
                raise InputError(f"product {product.id!r} has the attribute name {key!r}; expected a string")
            key.encode()
            for value in values:
                if isinstance(value, str):
                    if not value.isascii():
                        value.encode()
                elif not isinstance(value, (bool, int, float, type(None))):
                    raise InputError(
                        f"attribute {key!r} of product {product.id!r} is of type {type(value).__name__}; expected a "
                        "string, number, boolean or list of them"
                    )
        except UnicodeEncodeError as error:
            raise InputError(f"attribute {key!r} of product {product.id!r} is not valid Unicode: {error}") from error


class Change:
    """A transaction under way: `remove` and `insert`, then `finish`."""

    def __init__(self, connection: Connection, path: Path) -> None:
        """`connection` is within a transaction that may write."""
        state = read_state(connection, path)
        self._connection = connection
        self.sequence = state.sequence + 1
        self.removed: list[int] = []
        self._last_row, self._purged = state.last_row, state.purged
        self._products, self._counts = state.products, dict(state.vectors)

    def find(self, ids: Sequence[str]) -> dict[str, int]:
        """id -> row of those of `ids` that are there."""
        return dict(select_in(self._connection, "SELECT id, row FROM product WHERE id IN ({})", ids))

    def remove(self, rows: Sequence[int]) -> Rows:
        """Remove products that are there; returns their rows, ascending."""
        self._remove_entries(rows)
        single = [(row,) for row in rows]
        for view in self._counts:
            self._counts[view] -= self._connection.executemany(
                f"DELETE FROM vector_{view} WHERE row = ?", single
            ).rowcount
        self._connection.executemany("DELETE FROM product WHERE row = ?", single)
        self._connection.executemany("INSERT INTO deleted VALUES (?, ?)", [(self.sequence, row) for row in rows])
        self._products -= len(rows)
        self.removed += rows
        return np.array(sorted(rows), np.int64)

    def _remove_entries(self, rows: Sequence[int]) -> None:
        wanted: list[tuple[str, int, Any, int]] = []
        whole = True
        for row, content in read_contents(self._connection, rows):
            if content is None:
                whole = False
            else:
                wanted += [(*entry, row) for entry in entries(product_of(content).attributes)]
        keys = self._keys({key for key, *_ in wanted})
        query = "DELETE FROM attribute WHERE key = ? AND kind = ? AND value = ? AND row = ?"
        gone = self._connection.executemany(query, [(keys.get(key), *rest) for key, *rest in wanted]).rowcount
        if not whole or gone < len(wanted):
            # Damaged: what its attributes were is not known, so look at all there are.
            list(select_in(self._connection, "DELETE FROM attribute WHERE row IN ({})", rows))

    def insert(self, products: Sequence[NewProduct]) -> Rows:
        """Add products whose ids are not there; returns their rows, in their order."""
        if len(products) > MAX_ROW - self._last_row:
            raise IndexFileError(f"the index has used all of its {MAX_ROW} rows: build it again")
        first = self._last_row + 1
        rows = range(first, first + len(products))
        self._connection.executemany(
            "INSERT INTO product VALUES (?, ?, CAST(? AS TEXT), ?)",
            [
                (row, new.id, new.content, checksum_of(row, new.content))
                for row, new in zip(rows, products, strict=True)
            ],
        )
        for view in self._counts:
            blobs = [(row, new.vectors[view]) for row, new in zip(rows, products, strict=True) if view in new.vectors]
            self._connection.executemany(
                f"INSERT INTO vector_{view} VALUES (?, ?, ?)",
                [(row, blob, checksum_of(row, blob)) for row, blob in blobs],
            )
            self._counts[view] += len(blobs)
        self._insert_entries(rows, products)
        self._products += len(products)
        self._last_row += len(products)
        return np.arange(first, first + len(products), dtype=np.int64)

    def _insert_entries(self, rows: Sequence[int], products: Sequence[NewProduct]) -> None:
        names = {key for new in products for key, _, _ in new.entries}
        keys = self._keys(names)
        for name in sorted(names - keys.keys()):
            keys[name] = self._connection.execute("INSERT INTO attribute_key (name) VALUES (?)", (name,)).lastrowid or 0
        self._connection.executemany(
            "INSERT INTO attribute VALUES (?, ?, ?, ?)",
            [
                (keys[key], kind, value, row)
                for row, new in zip(rows, products, strict=True)
                for key, kind, value in new.entries
            ],
        )

    def _keys(self, names: set[str]) -> dict[str, int]:
        """The numbers of those names that have one."""
        return dict(select_in(self._connection, "SELECT name, key FROM attribute_key WHERE name IN ({})", names))

    def purge_deleted(self, sequence: int) -> None:
        """Forget the rows deleted by changes up to `sequence`; in itself no change of the products."""
        self.sequence -= 1
        self._purged = max(self._purged, min(sequence, self.sequence))
        self._connection.execute("DELETE FROM deleted WHERE sequence <= ?", (self._purged,))

    def finish(self) -> None:
        """Write the new state."""
        state = State(self.sequence, self._last_row, self._purged, self._products, self._counts)
        write_state(self._connection, state)
