"""The index in a folder: the store keeps the truth, and one native graph a view, derived from it, finds neighbours."""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from uniecs.backends.threads import usable_cpus
from uniecs.catalog import Product
from uniecs.database import Durability
from uniecs.errors import IndexFileError, InputError
from uniecs.filter_sets import FilterSets
from uniecs.filters import Filter
from uniecs.index import Found, Vectors, check_vectors
from uniecs.index_folder import BundleReference, IndexConfig
from uniecs.index_migration import migrate
from uniecs.store import Store

if TYPE_CHECKING:
    from uniecs._core import Graph

LOG = "uniecs"
NO_ROWS: npt.NDArray[np.uint64] = np.zeros(0, np.uint64)
# Of float16 and int8 graphs so many times k are scored anew with the store's float32 vectors.
RESCORED = 4
MIN_RESCORED = 40
# Searches anew for products that were replaced while they were being found.
ATTEMPTS = 5
# A process that only reads looks for changes of the writer so often.
REFRESH_S = 1.0
# Deleted rows stay in filters' sets until they are this share of the products.
FORGET_SHARE = 0.1


class LocalIndex:
    """See `uniecs.index.Index`; one process writes, any number read and follow it within `REFRESH_S`."""

    def __init__(self, folder: Path, store: Store) -> None:
        """Not to be called: use `create` or `open`."""
        self._folder = folder
        self._store = store
        self.config: IndexConfig = store.config
        self.model_id: str = store.model_id
        self.embed_dim: int = store.embed_dim
        self.bundle: BundleReference = store.bundle
        self._changing = threading.RLock()
        self._threads = max(1, usable_cpus() - 1)  # one is left to searches
        self._filters = FilterSets(store.rows_matching)
        self._graphs: dict[str, Graph] = {}
        self._reached: dict[str, tuple[int, int]] = {}  # per view: the store's sequence and last row that it shows
        self._saved: dict[str, int] = {}
        self._deleted = 0
        self._behind = False
        self._looked = time.monotonic()
        self._compacting = threading.Lock()

    @classmethod
    def create(
        cls,
        folder: Path,
        model_id: str,
        embed_dim: int,
        bundle: BundleReference,
        config: IndexConfig,
        durability: Durability,
    ) -> Self:
        """A new, empty index in `folder`, which this process writes until it closes it.

        Raises `IndexFileError` if `folder` already holds something or cannot be written.
        """
        if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
            raise IndexFileError(f"{folder} already exists; open it with SearchEngine.open, or choose another path")
        store = Store.create(
            folder, model_id=model_id, embed_dim=embed_dim, bundle=bundle, config=config, durability=durability
        )
        index = cls(folder, store)
        for view in config.views:
            index._graphs[view] = index._empty_graph()
            index._reached[view] = (store.sequence, 0)
        return index

    @classmethod
    def open(cls, folder: Path, durability: Durability) -> Self:
        """Open what `create` made: the graphs from their snapshots, brought up to the store, or made anew from it.

        Raises `IndexFileError` for a store that is missing, damaged or of a newer format.
        """
        migrate(folder)
        store = Store.open(folder, durability)
        index = cls(folder, store)
        try:
            for view in index.config.views:
                index._load(view)
        except BaseException:
            store.close()
            raise
        return index

    def _empty_graph(self) -> Graph:
        from uniecs._core import Graph

        return Graph(self.embed_dim, self.config.M, self.config.ef_construction, self.config.storage)

    def _snapshot(self, view: str) -> Path:
        return self._folder / f"graph-{view}.hnsw"

    def _owner(self) -> str:
        """What a snapshot must have been made for: this model, and this very store."""
        return f"{self.model_id} {self._store.store_id}"

    def _load(self, view: str) -> None:
        """The graph of a view, from its snapshot if that is of any use."""
        from uniecs._core import Graph, SnapshotError

        path = self._snapshot(view)
        config = self.config
        try:
            graph, sequence, last_row = Graph.load(
                str(path), self.embed_dim, config.M, config.ef_construction, config.storage, self._owner()
            )
            if sequence > self._store.sequence or last_row > self._store.last_row:
                raise IndexFileError(f"{path} is newer than the store")
            self._graphs[view], self._reached[view], self._saved[view] = graph, (sequence, last_row), sequence
            self._catch_up(view)
        except (SnapshotError, IndexFileError) as error:
            if self._store.count(view):
                logging.getLogger(LOG).warning("building the graph of the view %s anew: %s", view, error)
            self._rebuild(view)

    def _catch_up(self, view: str) -> None:
        """Bring a graph up to the store; raises `IndexFileError` if it cannot have been made from it."""
        graph, (sequence, last_row) = self._graphs[view], self._reached[view]
        now, last = self._store.sequence, self._store.last_row
        if sequence < self._store.purged:
            raise IndexFileError(f"the graph of {view} is older than what the store tells of deletions")
        gone = self._store.deleted_after(sequence)
        removed = np.array([row for row in gone.tolist() if row in graph], np.uint64)
        for rows, vectors in self._store.vectors_after(view, last_row):
            graph.apply(removed, rows.astype(np.uint64), check_vectors(vectors, self.embed_dim), self._threads)
            removed = NO_ROWS
        if len(removed):
            graph.apply(removed, NO_ROWS, np.zeros((0, self.embed_dim), np.float32), self._threads)
        self._reached[view] = (now, last)
        if len(graph) != self._store.count(view):
            raise IndexFileError(f"the graph of {view} has {len(graph)} rows, the store {self._store.count(view)}")

    def _rebuild(self, view: str) -> None:
        """A new graph from the store, in place of the old one for searches once it is whole."""
        graph = self._built(view, self._store.sequence)
        self._graphs[view], self._reached[view] = graph
        self._catch_up(view)

    def _built(self, view: str, sequence: int) -> tuple[Graph, tuple[int, int]]:
        from tqdm import tqdm

        graph, last_row = self._empty_graph(), 0
        with tqdm(desc=f"graph of {view}", total=self._store.count(view), unit="product", disable=None) as bar:
            for rows, vectors in self._store.vectors_after(view, 0):
                graph.apply(NO_ROWS, rows.astype(np.uint64), check_vectors(vectors, self.embed_dim), usable_cpus())
                last_row = int(rows[-1])
                bar.update(len(rows))
        return graph, (sequence, last_row)

    def refresh(self) -> None:
        """See what another process has written since."""
        with self._changing:
            for view in self.config.views:
                try:
                    self._catch_up(view)
                except IndexFileError:
                    self._rebuild(view)
            self._filters.forget()
            self._behind = False

    def __len__(self) -> int:
        return self._store.count()

    def known(self, ids: Sequence[str]) -> set[str]:
        """See `Index.known`."""
        return self._store.known(ids)

    def put(self, items: Sequence[tuple[Product, Mapping[str, Vectors]]]) -> None:
        """See `Index.put`."""
        with self._writing():
            sequence, new, old = self._store.put(items)
            self._filters.add(
                ((row, product) for row, (product, _) in zip(new.tolist(), items, strict=True)),
                self._store.last_row,
            )
            for view in self.config.views:
                places = [place for place, (_, vectors) in enumerate(items) if view in vectors]
                vectors = [items[place][1][view] for place in places]
                self._show(view, sequence, old, new[places], vectors)
            self._forget_filters(len(old))

    def delete(self, ids: Sequence[str]) -> None:
        """See `Index.delete`."""
        with self._writing():
            sequence, old = self._store.delete(ids)
            for view in self.config.views:
                self._show(view, sequence, old, np.zeros(0, np.int64), [])
            self._forget_filters(len(old))

    @contextlib.contextmanager
    def _writing(self) -> Any:
        """Holds what `_changing` guards; a change that stops between store and graph is made up for by the next."""
        with self._changing:
            sequence = self._store.begin_writing()
            if self._behind or any(sequence != reached for reached, _ in self._reached.values()):
                self.refresh()  # another process wrote before
            try:
                yield
            except BaseException:
                self._behind = True
                raise

    def _show(
        self,
        view: str,
        sequence: int,
        old: npt.NDArray[np.int64],
        new: npt.NDArray[np.int64],
        vectors: Sequence[Vectors],
    ) -> None:
        """Make a change of the store visible to searches of a view."""
        graph = self._graphs[view]
        removed = np.array([row for row in old.tolist() if row in graph], np.uint64)
        stacked = np.stack(vectors) if vectors else np.zeros((0, self.embed_dim), np.float32)
        graph.apply(removed, new.astype(np.uint64), np.ascontiguousarray(stacked, np.float32), self._threads)
        self._reached[view] = (sequence, self._store.last_row)

    def _forget_filters(self, deleted: int) -> None:
        self._deleted += deleted
        if self._deleted > FORGET_SHARE * max(1_000, len(self)):
            self._filters.forget()
            self._deleted = 0

    def search(self, view: str, queries: Vectors, k: int, where: Filter | None) -> list[list[Found]]:
        """See `Index.search`."""
        self._follow()
        for _ in range(ATTEMPTS):
            version = self._filters.version
            rows, scores, _ = self._nearest(view, queries, k, where)
            lines = rows.tolist()
            wanted = set(itertools.chain.from_iterable(lines)) - {0}
            products = self._store.products(wanted)
            if len(products) == len(wanted) and (where is None or version == self._filters.version):
                break
            # Replaced meanwhile, here or by another process: wait for the change to be whole, and search again.
            with self._changing:
                if self._store.sequence != self._reached[view][0]:
                    self.refresh()
        return [
            [(products[row], score) for row, score in zip(*line, strict=True) if row in products]
            for line in zip(lines, scores.tolist(), strict=True)
        ]

    def explain(self, view: str, query: Vectors, k: int, where: Filter | None) -> dict[str, Any]:
        """See `Index.explain`: strategy ("graph", "filtered graph" or "exact"), ef (0 for exact), matching (rows that
        the filter lets through), compared (vectors that were compared with the query).
        """
        return self._nearest(view, query[np.newaxis], k, where)[2]

    def _follow(self) -> None:
        """See what the writing process has done, if another is that; one thread at a time, the others go on."""
        if self._store.writes or time.monotonic() - self._looked < REFRESH_S:
            return
        if not self._changing.acquire(blocking=False):
            return
        try:
            self._looked = time.monotonic()
            if any(reached != self._store.sequence for reached, _ in self._reached.values()):
                self.refresh()
        finally:
            self._changing.release()

    def _nearest(
        self, view: str, queries: Vectors, k: int, where: Filter | None
    ) -> tuple[npt.NDArray[np.uint64], Vectors, dict[str, Any]]:
        rows_set, matching = (None, None) if where is None else self._filters.find(where)
        graph = self._graphs[view]
        exact = self.config.storage == "float32"
        fetched = k if exact else max(MIN_RESCORED, RESCORED * k)
        threads = 1 if len(queries) == 1 else usable_cpus()
        queries = np.ascontiguousarray(queries, np.float32)
        rows, scores, plan = graph.search(queries, fetched, rows_set, matching, threads=threads)
        if not exact:
            rows, scores = self._rescored(view, queries, rows, k)
        return rows, scores, dict(plan)

    def _rescored(
        self, view: str, queries: Vectors, rows: npt.NDArray[np.uint64], k: int
    ) -> tuple[npt.NDArray[np.uint64], Vectors]:
        """The best `k` of `rows` (n, any) by the store's vectors; a row that is gone is left out."""
        known = dict(zip(*self._store.vectors(view, np.unique(rows[rows > 0]).tolist()), strict=True))
        best = np.zeros((len(rows), min(k, rows.shape[1])), np.uint64)
        best_scores = np.full(best.shape, np.nan, np.float32)
        for place, query in enumerate(queries):
            here = [row for row in rows[place].tolist() if row in known]
            if here:
                scores = np.stack([known[row] for row in here]) @ query
                order = np.lexsort((here, -scores))[: best.shape[1]]
                best[place, : len(order)] = np.array(here, np.uint64)[order]
                best_scores[place, : len(order)] = scores[order]
        return best, best_scores

    def vector(self, id: str, view: str) -> Vectors:
        """See `Index.vector`."""
        row = self._store.row_of(id)
        if row is None:
            raise InputError(f"id {id!r} is not in the index")
        rows, vectors = self._store.vectors(view, [row])
        if not len(rows):
            raise InputError(f"product {id!r} has no vector in the view {view!r}")
        vector: Vectors = vectors[0]
        return vector

    def attribute_keys(self) -> set[str]:
        """See `Index.attribute_keys`."""
        return self._store.attribute_keys()

    def save(self) -> None:
        """Write a snapshot of each graph that changed since its last; without one the next opening builds it."""
        with self._changing:
            if all(self._saved.get(view) == self._reached[view][0] for view in self.config.views):
                return
        with self._writing():
            for view, graph in self._graphs.items():
                sequence, last_row = self._reached[view]
                if self._saved.get(view) != sequence:
                    try:
                        graph.save(str(self._snapshot(view)), self._owner(), sequence, last_row)
                    except RuntimeError as error:
                        raise IndexFileError(f"{error}; no data is lost: the store has it") from error
                    self._saved[view] = sequence
            if not self._compacting.locked():  # a graph in the making still needs to be told of deletions
                self._store.purge_deleted(min(self._saved[view] for view in self.config.views))
            self._store.checkpoint()

    def compact(self) -> None:
        """Build the graphs anew beside the old ones, which are searched and changed until then, and swap."""
        with self._writing():
            pass  # this process writes
        with self._compacting:
            for view in self.config.views:
                self._compact_view(view)
        self._filters.forget()

    def _compact_view(self, view: str) -> None:
        with self._changing:
            sequence = self._store.sequence
        graph, reached = self._built(view, sequence)
        with self._changing:
            old = self._graphs[view], self._reached[view]
            self._graphs[view], self._reached[view] = graph, reached
            try:
                self._catch_up(view)  # what came meanwhile
            except BaseException:
                self._graphs[view], self._reached[view] = old
                raise
            self._saved.pop(view, None)

    def stats(self) -> dict[str, Any]:
        """See `Index.stats`."""
        return {
            "products": len(self),
            "sequence": self._store.sequence,
            "views": {view: graph.stats() for view, graph in self._graphs.items()},
            "store": self._store.stats(),
            "config": self.config.to_dict(),
        }

    def verify(self, sample: int) -> dict[str, Any]:
        """See `Index.verify`: the whole store, and for each view the recall@10 of `sample` of its own vectors."""
        with self._changing:
            self.refresh()
            problems = self._store.verify()
            if problems:
                raise IndexFileError(f"{self._folder} is damaged: {'; '.join(problems[:5])}; restore it from a copy")
            return {"store": "ok", "recall_at_10": {view: self._recall(view, sample) for view in self.config.views}}

    def _recall(self, view: str, sample: int) -> float:
        """Share of the exact ten nearest that a search finds."""
        graph = self._graphs[view]
        rows = graph.rows()
        if not len(rows):
            return 1.0
        chosen = np.random.default_rng(0).choice(rows, min(sample, len(rows)), replace=False)
        _, queries = self._store.vectors(view, chosen.tolist())
        found = self._nearest(view, queries, 10, None)[0]
        exact = self._nearest_exact(view, queries, 10)
        hits = [len(set(a) & set(b)) / max(1, len(b)) for a, b in zip(found.tolist(), exact, strict=True)]
        return float(np.mean(hits))

    def _nearest_exact(self, view: str, queries: Vectors, k: int) -> list[list[int]]:
        """By the store alone, so that a graph with wrong vectors does not agree with itself."""
        best: list[list[tuple[float, int]]] = [[] for _ in queries]
        for rows, vectors in self._store.vectors_after(view, 0):
            scores = queries @ vectors.T
            for place, line in enumerate(scores):
                top = np.argsort(-line)[:k]
                merged = best[place] + [(-float(line[each]), int(rows[each])) for each in top]
                best[place] = sorted(merged)[:k]
        return [[row for _, row in each] for each in best]

    def close(self) -> None:
        """See `Index.close`."""
        with self._changing:
            self._graphs = {}
            self._store.close()
