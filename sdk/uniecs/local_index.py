"""The index in a folder: the store keeps the truth, and one native graph a view, derived from it, finds neighbours."""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from uniecs.backends.threads import usable_cpus
from uniecs.catalog import Product
from uniecs.database import Durability, disk_errors
from uniecs.durable import sync
from uniecs.errors import IndexFileError, InputError
from uniecs.filter_sets import FilterSets, Predicate, Rows
from uniecs.filters import Filter, matches
from uniecs.index import Found, Vectors, check_vectors
from uniecs.index_folder import BundleReference, IndexConfig
from uniecs.index_migration import migrate
from uniecs.pacing import note_search, searched_lately
from uniecs.progress import progress_bar
from uniecs.store import Store

if TYPE_CHECKING:
    from uniecs._core import Graph

GraphRows: TypeAlias = npt.NDArray[np.uint64]

LOG = "uniecs"
NO_ROWS: GraphRows = np.zeros(0, np.uint64)
# Of float16 and int8 graphs so many times k are scored anew with the store's float32 vectors; 1.4 times k lost
# nothing (benchmarks/index.py's vectors).
RESCORED = 2
MIN_RESCORED = 20
# Searches beside changes that spoil them; then one while nothing may change.
ATTEMPTS = 3
# A process that only reads looks for changes of the writer so often.
REFRESH_S = 1.0
# Sums in another order differ by less.
SAME_SCORE = 1e-6
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
        self._filters = FilterSets(self._rows_matching)
        self._graphs: dict[str, Graph] = {}
        self._reached: dict[str, tuple[int, int]] = {}  # per view: the store's sequence and last row that it shows
        self._saved: dict[str, int] = {}  # per view: the sequence of its snapshot
        self._compacted: set[str] = set()  # views with a snapshot of the graph before
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
        with disk_errors(folder):
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
            index._filters.forget(store.last_row)
        except BaseException:
            store.close()
            raise
        return index

    def _threads(self) -> int:
        """For a change of a graph: one CPU is left to searches where there are any."""
        return max(1, usable_cpus() - searched_lately())

    def _empty_graph(self) -> Graph:
        from uniecs._core import Graph

        return Graph(self.embed_dim, self.config.M, self.config.ef_construction, self.config.storage)

    def _snapshot(self, view: str) -> Path:
        return self._folder / f"graph-{view}.hnsw"

    def _owner(self) -> str:
        """What a snapshot must have been made for: this model, and this very store."""
        return f"{self.model_id} {self._store.store_id}"

    def _load(self, view: str) -> None:
        """The graph of a view, from its snapshot if that is of any use; searches see it once it is whole."""
        from uniecs._core import Graph, SnapshotError

        path = self._snapshot(view)
        config = self.config
        try:
            graph, sequence, last_row = Graph.load(
                str(path), self.embed_dim, config.M, config.ef_construction, config.storage, self._owner()
            )
            reached = self._catch_up(view, graph, (sequence, last_row))
            self._saved[view] = sequence
        except (SnapshotError, IndexFileError) as error:
            if self._store.count(view):
                logging.getLogger(LOG).warning("building the graph of the view %s anew: %s", view, error)
            self._saved.pop(view, None)
            with self._store.snapshot():
                graph, reached = self._built(view)
                reached = self._catch_up(view, graph, reached)
        self._graphs[view], self._reached[view] = graph, reached
        self._compacted.discard(view)

    def _catch_up(self, view: str, graph: Graph, reached: tuple[int, int], *, at_once: bool = False) -> tuple[int, int]:
        """Bring a graph up to the store; `at_once` for one that is searched. Returns the sequence and last row reached.

        Raises `IndexFileError` if it cannot have been made from this store.
        """
        with self._store.snapshot():
            sequence, last_row = reached
            now, last = self._store.sequence, self._store.last_row
            if not self._store.purged <= sequence <= now or last_row > last:
                raise IndexFileError(f"the graph of {view} is newer than the store, or older than what it tells of")
            gone = self._store.deleted_after(sequence)
            removed = np.array([row for row in gone.tolist() if row in graph], np.uint64)
            batches = self._store.vectors_after(view, last_row)
            try:
                for rows, vectors in [_joined(batches, self.embed_dim)] if at_once else batches:
                    graph.apply(
                        removed, rows.astype(np.uint64), check_vectors(vectors, self.embed_dim), self._threads()
                    )
                    removed = NO_ROWS
                if len(removed):
                    graph.apply(removed, NO_ROWS, np.zeros((0, self.embed_dim), np.float32), self._threads())
            except ValueError as error:  # a change that was stopped before left some of it
                raise IndexFileError(f"the graph of {view} does not take the changes of the store: {error}") from error
            if len(graph) != self._store.count(view):
                raise IndexFileError(f"the graph of {view} has {len(graph)} rows, the store {self._store.count(view)}")
        return now, last

    def _built(self, view: str) -> tuple[Graph, tuple[int, int]]:
        """A new graph from the store, and the sequence and last row from which on it must catch up."""
        graph, sequence, last_row = self._empty_graph(), self._store.sequence, 0
        with progress_bar(desc=f"graph of {view}", total=self._store.count(view), unit="product") as bar:
            for rows, vectors in self._store.vectors_after(view, 0):
                vectors = check_vectors(vectors, self.embed_dim)
                try:
                    graph.apply(NO_ROWS, rows.astype(np.uint64), vectors, usable_cpus())
                except ValueError as error:
                    raise IndexFileError(f"{self._folder} is damaged: its vectors make no graph: {error}") from error
                last_row = int(rows[-1])
                bar.update(len(rows))
        return graph, (sequence, last_row)

    def refresh(self) -> None:
        """See what another process has written since, or what a change that failed has left."""
        # All of it of one moment: filters' sets must not know fewer rows than the graphs show.
        with self._changing, self._store.snapshot():
            # First: a search that still has a set of before sees that it must search again.
            self._filters.forget(self._store.last_row)
            for view in self.config.views:
                try:
                    reached = self._catch_up(view, self._graphs[view], self._reached[view], at_once=True)
                    self._reached[view] = reached
                except IndexFileError:
                    self._load(view)
            self._behind = False

    def _see_changes(self) -> None:
        """Wait until the change under way is whole, and see what another process has written since."""
        with self._changing:
            if self._behind or any(reached != self._store.sequence for reached, _ in self._reached.values()):
                self.refresh()

    def _rows_matching(self, predicate: Predicate) -> Rows:
        """As of the store; on return the graphs show no row that is gone from it, which the rows might lack."""
        with self._store.snapshot():
            rows, sequence = self._store.rows_matching(predicate), self._store.sequence
        if any(reached < sequence for reached, _ in self._reached.values()):
            self._see_changes()
        return rows

    def __len__(self) -> int:
        return self._store.count()

    def known(self, ids: Sequence[str]) -> set[str]:
        """See `Index.known`."""
        return self._store.known(ids)

    def check(self, product: Product) -> None:
        """See `Index.check`: what `read_catalog` lets through can be stored."""

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
            self._remove_unusable()
            try:
                yield
            except BaseException:
                self._behind = True
                raise

    def _remove_unusable(self) -> None:
        """Snapshots that `_load` refused: one newer than the store would be taken once the store has grown past it."""
        for path in map(self._snapshot, set(self.config.views) - self._saved.keys()):
            with disk_errors(path):
                if path.exists():
                    path.unlink()
                    sync(self._folder)

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
        graph.apply(removed, new.astype(np.uint64), np.ascontiguousarray(stacked, np.float32), self._threads())
        self._reached[view] = (sequence, self._store.last_row)

    def _forget_filters(self, deleted: int) -> None:
        self._deleted += deleted
        if self._deleted > FORGET_SHARE * max(1_000, len(self)):
            self._filters.forget(self._store.last_row)
            self._deleted = 0

    def search(self, view: str, queries: Vectors, k: int, where: Filter | None) -> list[list[Found]]:
        """See `Index.search`."""
        note_search()
        self._follow()
        for _ in range(ATTEMPTS):
            version = self._filters.version
            found = self._find(view, queries, k, where)
            if found is None:
                self._see_changes()
            elif where is None or version == self._filters.version:
                return found
        with self._changing, self._store.snapshot():
            self._see_changes()
            found = self._find(view, queries, k, where)
        if found is None:
            raise IndexFileError(f"{self._folder} is damaged: it has vectors of products that it has not; see verify()")
        return found

    def _find(self, view: str, queries: Vectors, k: int, where: Filter | None) -> list[list[Found]] | None:
        """None if some of what the graph shows is gone from the store."""
        nearest = self._nearest(view, queries, k, where)
        if nearest is None:
            return None
        rows, scores = nearest
        lines = rows.tolist()
        wanted = set(itertools.chain.from_iterable(lines)) - {0}
        products = self._store.products(wanted)
        if len(products) < len(wanted):
            return None
        if where is not None and not all(matches(where, each.attributes) for each in products.values()):
            raise IndexFileError(f"{self._folder} is damaged: a filter found what does not match; see verify()")
        return [
            [(products[row], score) for row, score in zip(*line, strict=True) if row]
            for line in zip(lines, scores.tolist(), strict=True)
        ]

    def explain(self, view: str, query: Vectors, k: int, where: Filter | None) -> dict[str, Any]:
        """See `Index.explain`: strategy ("graph", "filtered graph" or "exact"), ef (0 for exact), matching (rows that
        the filter lets through), compared (vectors that were compared with the query).
        """
        return self._in_graph(view, query[np.newaxis], k, where)[2]

    def _follow(self) -> None:
        """See what the writing process has done, if another is that; one thread at a time, the others go on."""
        if self._store.writes or 0 <= time.monotonic() - self._looked < REFRESH_S:
            return
        if not self._changing.acquire(blocking=False):
            return
        try:
            self._looked = time.monotonic()
            self._see_changes()
        finally:
            self._changing.release()

    def _in_graph(
        self, view: str, queries: Vectors, k: int, where: Filter | None
    ) -> tuple[GraphRows, Vectors, dict[str, Any]]:
        """The graph's own answer: for vectors that are not float32 more than `k` rows, to be scored anew."""
        rows_set, matching = (None, None) if where is None else self._filters.find(where)
        graph = self._graphs.get(view)
        if graph is None:
            raise InputError(f"{self._folder} is closed; open the index again")
        fetched = k if self.config.storage == "float32" else max(MIN_RESCORED, RESCORED * k)
        fetched = min(fetched, max(1, len(graph)))
        threads = 1 if len(queries) == 1 else usable_cpus()
        queries = np.ascontiguousarray(queries, np.float32)
        rows, scores, plan = graph.search(queries, fetched, rows_set, matching, threads=threads)
        return rows, scores, dict(plan)

    def _nearest(self, view: str, queries: Vectors, k: int, where: Filter | None) -> tuple[GraphRows, Vectors] | None:
        """Rows (n, at most k), 0 where there is none, and scores; None if a row that the graph shows is gone."""
        rows, scores, _ = self._in_graph(view, queries, k, where)
        return (rows, scores) if self.config.storage == "float32" else self._rescored(view, queries, rows, k)

    def _rescored(self, view: str, queries: Vectors, rows: GraphRows, k: int) -> tuple[GraphRows, Vectors] | None:
        """The best `k` of `rows` (n, any) by the store's vectors; None if the store has not all of them."""
        wanted = np.unique(rows[rows > 0])
        known, vectors = self._store.vectors(view, wanted.tolist())
        if len(known) < len(wanted):
            return None
        best = np.zeros((len(rows), min(k, rows.shape[1])), np.uint64)
        best_scores = np.full(best.shape, np.nan, np.float32)
        for place, query in enumerate(queries):
            here = rows[place][rows[place] > 0]
            scores = vectors[np.searchsorted(wanted, here)] @ query
            order = np.lexsort((here, -scores))[: best.shape[1]]
            best[place, : len(order)] = here[order]
            best_scores[place, : len(order)] = scores[order]
        return best, best_scores

    def vector(self, id: str, view: str) -> Vectors:
        """See `Index.vector`."""
        with self._store.snapshot():
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
            if not any(map(self._needs_save, self.config.views)):
                return
        with self._writing():
            # Processes that read may still show what the snapshots before held, and want to catch up from there.
            before = min(self._saved.get(view, 0) for view in self.config.views)
            for left in self._folder.glob("graph-*.hnsw.*.tmp"):  # by a process that was killed: one writes at a time
                left.unlink(missing_ok=True)
            for view in filter(self._needs_save, self.config.views):
                sequence, last_row = self._reached[view]
                try:
                    self._graphs[view].save(str(self._snapshot(view)), self._owner(), sequence, last_row)
                except RuntimeError as error:
                    raise IndexFileError(f"{error}; no data is lost: the store has it") from error
                self._saved[view] = sequence
                self._compacted.discard(view)
            if not self._compacting.locked():  # a graph in the making still needs to be told of deletions
                self._store.purge_deleted(before)
            self._store.checkpoint()

    def _needs_save(self, view: str) -> bool:
        return view in self._compacted or self._saved.get(view) != self._reached[view][0]

    def compact(self) -> None:
        """Build the graphs anew beside the old ones, which are searched and changed until then, and swap."""
        with self._writing():
            pass  # this process writes
        with self._compacting:
            for view in self.config.views:
                graph, reached = self._built(view)
                with self._changing:
                    self._reached[view] = self._catch_up(view, graph, reached)
                    self._graphs[view] = graph
                    self._compacted.add(view)
        with self._changing:
            self._filters.forget(self._store.last_row)

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
        with self._changing, self._store.snapshot():
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
        found = self._nearest(view, queries, 10, None)
        if found is None or len(queries) < len(chosen):
            raise IndexFileError(f"{self._folder} is damaged: the graph of {view} has vectors that the store has not")
        known = dict(zip(*self._store.vectors(view, np.unique(found[0][found[0] > 0]).tolist()), strict=True))
        shares = []
        for query, line, exact in zip(queries, found[0].tolist(), self._best_scores(view, queries, 10), strict=True):
            # By scores: products that are alike may stand for each other.
            right = sum(float(known[row] @ query) > exact[-1] - SAME_SCORE for row in line if row in known)
            shares.append(right / len(exact))
        return float(np.mean(shares))

    def _best_scores(self, view: str, queries: Vectors, k: int) -> Vectors:
        """The `k` best for each of `queries`, by the store alone: a graph with wrong vectors agrees with itself."""
        best = np.zeros((len(queries), 0), np.float32)
        for _, vectors in self._store.vectors_after(view, 0):
            best = -np.sort(-np.hstack([best, queries @ vectors.T]), axis=1)[:, :k]
        return best

    def close(self) -> None:
        """See `Index.close`."""
        with self._changing:
            self._graphs = {}
            self._store.close()


def _joined(batches: Iterable[tuple[Rows, Vectors]], dim: int) -> tuple[Rows, Vectors]:
    """Rows (n,) and vectors (n, dim) of all batches."""
    parts = list(batches)
    rows = [rows for rows, _ in parts] or [np.zeros(0, np.int64)]
    return np.concatenate(rows), np.concatenate([vectors for _, vectors in parts] or [np.zeros((0, dim), np.float32)])
