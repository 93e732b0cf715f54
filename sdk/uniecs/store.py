"""The store of an index: products, attributes and vectors in one SQLite file (docs/index-format.md). It is the truth;
graphs are made from it.

Every version of a product has a row number of its own, ascending and never used again. What a row holds never changes:
an update removes the old row and adds a new one, in one transaction. Each change raises the sequence by one.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import islice
from pathlib import Path
from sqlite3 import Connection
from typing import Any, Self, TypeAlias

import numpy as np

from uniecs.catalog import Product, Scalar
from uniecs.database import Database, Durability, check_durability, create_database, disk_errors, remove_database
from uniecs.durable import sync
from uniecs.errors import FilterError, IndexFileError, InputError
from uniecs.filters import BOOLEAN, NUMBER, READ_NUMBER, STRING, Between, OneOf, equals_strings, within_64_bits
from uniecs.index_folder import BundleReference, IndexConfig
from uniecs.pacing import paced
from uniecs.store_change import Change, NewProduct
from uniecs.store_format import (
    Header,
    Rows,
    State,
    Vectors,
    checked_vectors,
    read_header,
    read_products,
    read_state,
    schema,
    select_in,
    select_of,
    select_rows,
    write_header,
)
from uniecs.writer_lock import WriterLock

Item: TypeAlias = tuple[Product, Mapping[str, Vectors]]

STORE_FILE = "store.sqlite"
NEW_STORE_FILE = "store.sqlite.new"
OLD_MANIFEST = "manifest.json"  # of format version 1

CACHED_PRODUCTS = 4096
BATCH_ROWS = 2048


class Store:
    """The products of one index folder; safe to share between threads. Made by `create` or `open`.

    Reading needs no lock and gives the state of the last commit. The first change takes the folder's writer lock, until
    `close`. Any method raises `IndexFileError` if the file is damaged, missing or not accessible, and `InputError`
    after `close`.
    """

    def __init__(self, path: Path, lock: WriterLock, durability: Durability) -> None:
        """Not to be called: use `create` or `open`."""
        self.folder = path.parent
        self._path = path
        self._database = Database(path, durability)
        self._lock = lock
        self._writing = threading.RLock()
        self._cache: dict[int, Product] = {}
        self._caching = threading.Lock()
        self._removals = 0
        try:
            with self._database.reading() as connection:
                header = read_header(connection, path)
                read_state(connection, path)
        except BaseException:
            self._database.close()
            raise
        self.model_id, self.embed_dim = header.model_id, header.embed_dim
        self.bundle, self.config = header.bundle, header.config
        self.migrated_from, self.store_id = header.migrated_from, header.store_id

    @classmethod
    def create(
        cls,
        folder: str | os.PathLike[str],
        *,
        model_id: str,
        embed_dim: int,
        bundle: BundleReference,
        config: IndexConfig,
        durability: Durability = "full",
    ) -> Self:
        """A new, empty store in `folder`, which is made if need be; it has the writer lock from the start.

        `durability` as in `open`. Raises `IndexFileError` if the folder has a store or cannot be written.
        """
        folder = Path(folder)
        check_durability(durability)
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        lock = WriterLock(folder)
        lock.acquire()
        try:
            if (folder / OLD_MANIFEST).exists():
                raise IndexFileError(f"{folder} already exists, in an older format; open it with SearchEngine.open")
            build_store(folder, lock, Header(model_id, embed_dim, bundle, config), ())
            return cls(folder / STORE_FILE, lock, durability)
        except BaseException:
            lock.release()
            raise

    @classmethod
    def open(cls, folder: str | os.PathLike[str], durability: Durability = "full") -> Self:
        """The store in `folder`, which may be read-only.

        A change has reached the disk when its method returns ("full"), or survives the end of the process but perhaps
        not a power cut ("batch", faster). Raises `IndexFileError` for what is no store, damaged, of a newer format, or
        still of format version 1 (`index_migration.migrate`).
        """
        path = Path(folder) / STORE_FILE
        try:
            found = path.is_file()
        except OSError as error:
            raise IndexFileError(f"{folder} cannot be read: {error}; check the permissions") from error
        if not found:
            raise IndexFileError(f"{folder} is not an index: it has no {STORE_FILE}; SearchEngine.create makes one")
        return cls(path, WriterLock(path.parent), durability)

    def close(self) -> None:
        """Close the file and give the writer lock back."""
        with self._writing:
            self._database.close()
            self._lock.release()

    def snapshot(self) -> AbstractContextManager[None]:
        """Within `with store.snapshot():` all that this thread reads is of one moment. Keep it short: the log grows."""
        return self._database.snapshot()

    # Reading

    @property
    def sequence(self) -> int:
        """The number of changes so far."""
        return self._state().sequence

    @property
    def writes(self) -> bool:
        """Whether this store has the writer lock."""
        return self._lock.held

    @property
    def last_row(self) -> int:
        """The highest row ever used; 0 for none."""
        return self._state().last_row

    @property
    def purged(self) -> int:
        """The lowest sequence that `deleted_after` takes."""
        return self._state().purged

    def count(self, view: str | None = None) -> int:
        """The number of products, or of vectors in a view."""
        state = self._state()
        return state.products if view is None else state.vectors[self._checked(view)]

    def _state(self) -> State:
        with self._database.reading() as connection:
            return read_state(connection, self._path)

    def _checked(self, view: str) -> str:
        if view not in self.config.views:
            raise InputError(f"view is {view!r}; this index has {', '.join(self.config.views)}")
        return view

    def row_of(self, id: str) -> int | None:
        """The row of a product; None for an unknown id."""
        return self.rows_of([id]).get(id)

    def known(self, ids: Iterable[str]) -> set[str]:
        """Those of `ids` that the store holds."""
        return set(self.rows_of(ids))

    def rows_of(self, ids: Iterable[str]) -> dict[str, int]:
        """id -> row, for those of `ids` that the store holds."""
        query = "SELECT id, row FROM product WHERE id IN ({})"
        with self._database.reading() as connection:
            return dict(select_in(connection, query, filter(_is_possible_id, ids)))

    def products(self, rows: Iterable[int]) -> dict[int, Product]:
        """Row -> product, for those of `rows` that hold one; one that another process removed since may still be given.

        The products are shared with other callers: do not change them.
        """
        rows = list(dict.fromkeys(map(int, rows)))
        found = {row: product for row in rows if (product := self._cache.get(row)) is not None}
        if len(found) < len(rows):
            removals = self._removals
            with self._database.reading() as connection:
                read = read_products(connection, [row for row in rows if row not in found], self._path)
            self._remember(read, removals)
            found |= read
        return found

    def _remember(self, products: dict[int, Product], removals: int) -> None:
        """Keep what was read, unless rows were removed since: these might be among them."""
        with self._caching:
            if self._removals == removals:
                self._cache |= products
                for row in list(islice(self._cache, max(0, len(self._cache) - CACHED_PRODUCTS))):
                    del self._cache[row]

    def _forget(self, rows: Iterable[int]) -> None:
        with self._caching:
            self._removals += 1
            for row in rows:
                self._cache.pop(row, None)

    def products_after(self, row: int) -> Iterator[dict[int, Product]]:
        """The products of all higher rows, in batches of ascending rows. Each batch is of the moment it is read."""
        query = f"SELECT row FROM product WHERE row > ? ORDER BY row LIMIT {BATCH_ROWS}"
        while True:
            with self.snapshot(), self._database.reading() as connection:
                rows = [each for (each,) in connection.execute(query, (row,)).fetchall()]
                products = read_products(connection, rows, self._path)
            if not rows:
                return
            yield {each: products[each] for each in rows}
            row = rows[-1]

    def vectors(self, view: str, rows: Iterable[int]) -> tuple[Rows, Vectors]:
        """Those of `rows` that have a vector in the view, ascending (n,), and their vectors (n, embed_dim)."""
        # The order within the three is the same. A damaged file may have values of any type, which the checksums must
        # see.
        three_texts = (
            "group_concat(row), group_concat(ifnull(CAST(checksum AS INTEGER), -1)), "
            "CAST(group_concat(vector, '') AS BLOB)"
        )
        table, wanted = f"vector_{self._checked(view)}", list(dict.fromkeys(map(int, rows)))
        found: list[int] = []
        checksums: list[int] = []
        data = b""
        with self._database.reading() as connection:
            read = select_of(connection, three_texts, table, "row, checksum, vector", wanted)
            for some_rows, some_checksums, some_data in read:
                if some_rows is not None:
                    found += map(int, some_rows.split(","))
                    checksums += map(int, some_checksums.split(","))
                    data += some_data
        vectors = checked_vectors(self._path, view, self.embed_dim, found, checksums, data)
        order = np.argsort(found)
        return np.array(found, np.int64)[order], vectors[order]

    def vectors_after(self, view: str, row: int) -> Iterator[tuple[Rows, Vectors]]:
        """The vectors of all higher rows, in batches of ascending rows (n,) and vectors (n, embed_dim).

        Each batch is of the moment it is read.
        """
        table = f"vector_{self._checked(view)}"
        vector = "CAST(ifnull(vector, '') AS BLOB)"
        query = f"SELECT row, checksum, {vector} FROM {table} WHERE row > ? ORDER BY row LIMIT {BATCH_ROWS}"
        while True:
            with self._database.reading() as connection:
                read = connection.execute(query, (row,)).fetchall()
            if not read:
                return
            rows, checksums, blobs = zip(*read, strict=True)
            vectors = checked_vectors(self._path, view, self.embed_dim, rows, checksums, b"".join(blobs))
            yield np.array(rows, np.int64), vectors
            row = rows[-1]

    def deleted_after(self, sequence: int) -> Rows:
        """The rows removed by changes after `sequence`, ascending (n,).

        Raises `InputError` if that is below `purged`.
        """
        with self.snapshot(), self._database.reading() as connection:
            purged = self._state().purged
            if sequence < purged:
                raise InputError(f"sequence is {sequence}; removed rows are known from {purged} on")
            query = "SELECT group_concat(CAST(row AS INTEGER)) FROM deleted WHERE sequence > ?"
            return self._given(select_rows(connection, query, sequence))

    def rows_matching(self, predicate: OneOf | Between) -> Rows:
        """The rows of the products that match, ascending (n,); raises `FilterError` for text that is no Unicode."""
        with self.snapshot(), self._database.reading() as connection:
            try:
                return self._given(
                    _rows_between(connection, predicate)
                    if isinstance(predicate, Between)
                    else _rows_of(connection, predicate)
                )
            except UnicodeEncodeError as error:
                raise FilterError(f"the filter on {predicate.key!r} is not valid Unicode: {error}") from error

    def _given(self, rows: Rows) -> Rows:
        """`rows`, ascending, if they are such as were ever given: no checksum tells."""
        if len(rows) and not 1 <= rows[0] <= rows[-1] <= self.last_row:
            raise IndexFileError(
                f"{self._path} is damaged: it lists the rows {rows[0]} to {rows[-1]} of 1 to {self.last_row}; restore "
                "the index from a copy, or build it again"
            )
        return rows

    def attribute_keys(self) -> set[str]:
        """Every attribute that some product has."""
        query = "SELECT name FROM attribute_key AS k WHERE EXISTS (SELECT 1 FROM attribute WHERE key = k.key)"
        with self._database.reading() as connection:
            names = {name for (name,) in connection.execute(query).fetchall()}
        if not all(isinstance(name, str) for name in names):
            raise IndexFileError(f"{self._path} is damaged: its list of attributes has a name that is no text")
        return names

    def stats(self) -> dict[str, Any]:
        """products, vectors (by view), deleted (rows kept for `deleted_after`), sequence, store_bytes, log_bytes."""
        with self.snapshot(), self._database.reading() as connection:
            state = self._state()
            ((deleted,),) = connection.execute("SELECT count(*) FROM deleted").fetchall()
            ((pages,),) = connection.execute("PRAGMA page_count").fetchall()
            ((page_bytes,),) = connection.execute("PRAGMA page_size").fetchall()
        return {
            "products": state.products,
            "vectors": state.vectors,
            "deleted": deleted,
            "sequence": state.sequence,
            "store_bytes": pages * page_bytes,
            "log_bytes": self._database.log_bytes(),
        }

    def verify(self) -> list[str]:
        """Every fault in the file, in words; none if it is sound. It reads all of it."""
        from uniecs.store_check import problems

        with self.snapshot(), self._database.reading() as connection:
            return problems(connection, self._path, self.embed_dim, self._state())

    # Writing

    def begin_writing(self) -> int:
        """Take the writer lock, unless this store has it, and return the sequence: another may have written before.

        Raises `IndexFileError`, naming the process, while another writer has the lock.
        """
        with self._writing:
            self._database.check_usable()
            if not self._lock.held:
                self._lock.acquire()
                self._forget(list(self._cache))
            return self.sequence

    @contextmanager
    def _change(self) -> Iterator[Change]:
        with self._writing:
            self.begin_writing()
            with self._database.writing() as connection:
                change = Change(connection, self._path)
                yield change
                change.finish()
            self._forget(change.removed)

    def put(self, items: Sequence[Item]) -> tuple[int, Rows, Rows]:
        """Add products with their vectors (view -> (embed_dim,) float32), or replace those of their ids whole.

        All or none, durable on return. Returns the sequence after it, the new rows in the order of `items`, and the
        rows that were replaced, ascending. Raises `InputError` for an id given twice and for what cannot be stored: an
        image that is not a path, an attribute that is no finite JSON scalar or list of them, text that is not Unicode,
        a vector of another shape or view.
        """
        views = self.config.views
        new = [NewProduct.of(product, vectors, views, self.embed_dim) for product, vectors in paced(items)]
        ids = [product.id for product in new]
        if len(set(ids)) < len(ids):
            raise InputError(f"id {max(ids, key=ids.count)!r} is given more than once")
        if not new:
            return self.sequence, np.zeros(0, np.int64), np.zeros(0, np.int64)
        with self._change() as change:
            replaced = change.remove(list(change.find(ids).values()))
            added = change.insert(new)
        return change.sequence, added, replaced

    def delete(self, ids: Iterable[str]) -> tuple[int, Rows]:
        """Remove products, all or none, durable on return; returns the sequence after it and their rows, ascending.

        Raises `InputError` for an unknown id.
        """
        ids = list(dict.fromkeys(ids))
        if not ids:
            return self.sequence, np.zeros(0, np.int64)
        with self._change() as change:
            found = change.find([id for id in ids if _is_possible_id(id)])
            unknown = [id for id in ids if id not in found]
            if unknown:
                raise InputError(f"{len(unknown)} of {len(ids)} ids are not in the index, such as {unknown[0]!r}")
            rows = change.remove(list(found.values()))
        return change.sequence, rows

    def purge_deleted(self, sequence: int) -> None:
        """Forget which rows were removed by the changes up to `sequence`: all graphs on the disk are beyond it."""
        with self._change() as change:
            change.purge_deleted(sequence)

    def checkpoint(self) -> None:
        """Empty the write-ahead log into the file, as far as readers allow."""
        with self._writing:
            self.begin_writing()
            self._database.checkpoint()


def build_store(folder: Path, lock: WriterLock, header: Header, batches: Iterable[Sequence[Item]]) -> None:
    """Make the store of `folder` and fill it: it appears whole, or not at all. `lock` is held.

    Raises `IndexFileError` if there is one, or if it cannot be written.
    """
    path, new = folder / STORE_FILE, folder / NEW_STORE_FILE
    if path.exists():
        raise IndexFileError(f"{folder} already exists; open it with SearchEngine.open, or choose another path")
    with disk_errors(folder):
        remove_database(new)
        try:
            create_database(new, schema(header.config.views), lambda connection: write_header(connection, header))
            store = Store(new, lock, "batch")
            try:
                for batch in batches:
                    store.put(batch)
                store.checkpoint()
            finally:
                store._database.close()
            if store._database.log_bytes():
                raise IndexFileError(f"{new} is in use by another process; try again when that has ended")
            sync(new)
            remove_database(path)  # a log without its file would be taken for this one's
            new.replace(path)
        except BaseException:
            remove_database(new)
            raise
        sync(folder)


def _is_possible_id(id: object) -> bool:
    """Whether `id` is a string that SQLite can be asked for."""
    return isinstance(id, str) and (id.isascii() or not any("\ud800" <= character <= "\udfff" for character in id))


_EQUAL = (
    "SELECT group_concat(CAST(row AS INTEGER)) FROM attribute "
    "WHERE key = (SELECT key FROM attribute_key WHERE name = ?)"
)


def _rows_of(connection: Connection, predicate: OneOf) -> Rows:
    key, found = predicate.key, list[Rows]()
    for value in predicate.values:
        if value is None:
            having = np.unique(select_rows(connection, _EQUAL, key))
            everything = select_rows(connection, "SELECT group_concat(row) FROM product")
            found.append(np.setdiff1d(everything, having, assume_unique=True))
        else:
            kind, stored = _stored(value)
            query = f"{_EQUAL} AND kind = ? AND value = ?"
            reads = kind == NUMBER and not isinstance(stored, str) and equals_strings(stored)
            kinds = [kind, READ_NUMBER] if reads else [kind]
            found += [select_rows(connection, query, key, each, stored) for each in kinds]
    return found[0] if len(found) == 1 else np.unique(np.concatenate(found))


def _stored(value: Scalar) -> tuple[int, str | int | float]:
    """The kind and value under which `filters.entries` lists a scalar."""
    if isinstance(value, bool):
        return BOOLEAN, int(value)
    return (STRING, value) if isinstance(value, str) else (NUMBER, within_64_bits(value))


def _rows_between(connection: Connection, predicate: Between) -> Rows:
    low, high = (None if bound is None else _stored(bound) for bound in (predicate.low, predicate.high))
    text = STRING in {bound[0] for bound in (low, high) if bound is not None}
    ends = [(sign, bound[1]) for sign, bound in ((">=", low), ("<=", high)) if bound is not None]
    query = " AND ".join([f"{_EQUAL} AND kind = ?", *(f"value {sign} ?" for sign, _ in ends)])
    found = [
        select_rows(connection, query, predicate.key, kind, *(value for _, value in ends))
        for kind in ([STRING] if text else [NUMBER, READ_NUMBER])
    ]
    return np.unique(np.concatenate(found))
