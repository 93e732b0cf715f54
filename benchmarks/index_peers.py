"""What `index.py` compares: the native graph in its three storages, and the HNSW graphs of three other packages.

Each is built with the same M and ef_construction over the same vectors, searches by inner product with the given
breadth and threads, and answers with places of vectors, (n, up to K) int64, -1 for none.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from index_data import DIM, K, Mask, Vectors

from uniecs._core import Graph, RowSet
from uniecs.local_index import MIN_RESCORED, RESCORED

M, EF_CONSTRUCTION = 16, 200
FETCHED = max(MIN_RESCORED, RESCORED * K)  # of a graph that is scored anew
Places: TypeAlias = npt.NDArray[np.int64]
Rescore: TypeAlias = Callable[[Vectors, npt.NDArray[np.uint64]], npt.NDArray[np.uint64]]


class Contender(Protocol):
    """An index to be; places are given in ascending order, from 0."""

    name: str

    def add(self, vectors: Vectors, first: int, threads: int) -> None:
        """Vectors (n, DIM) of the places from `first` on."""

    def search(self, queries: Vectors, ef: int, threads: int) -> Places:
        """The K nearest of each query."""

    def filtered(self, mask: Mask) -> Callable[[Vectors, int, int], Places]:
        """`search`, of what the mask lets through; whatever can be prepared for it is prepared by then."""

    def bytes(self) -> int:
        """What the index holds: counted by itself, or the size of its file."""


class Uniecs:
    """Our graph; ef 0 is its own plan, any other the walk through the graph with that. Rows are places plus one."""

    def __init__(self, storage: str, rescore: Rescore | None = None) -> None:
        self.name = f"uniecs {storage}"
        self.graph = Graph(DIM, M, EF_CONSTRUCTION, storage)
        self._rescore = rescore

    def add(self, vectors: Vectors, first: int, threads: int) -> None:
        rows = np.arange(first + 1, first + 1 + len(vectors), dtype=np.uint64)
        self.graph.apply(np.zeros(0, np.uint64), rows, vectors, threads)

    def search(self, queries: Vectors, ef: int, threads: int) -> Places:
        if self._rescore is None:
            found = self.graph.search(queries, K, ef=ef, strategy="graph" if ef else None, threads=threads)[0]
        else:
            rows = self.graph.search(queries, FETCHED, ef=ef, strategy="graph" if ef else None, threads=threads)[0]
            found = self._rescore(queries, rows)
        return found.astype(np.int64) - 1

    def filtered(self, mask: Mask) -> Callable[[Vectors, int, int], Places]:
        rows = RowSet(np.flatnonzero(mask).astype(np.uint64) + 1)
        count = len(rows)

        def search(queries: Vectors, ef: int, threads: int) -> Places:
            how = {"ef": ef, "strategy": "filtered graph" if ef else None, "threads": threads}
            found = self.graph.search(queries, K, filter=rows, matching=count, **how)[0]
            return found.astype(np.int64) - 1

        return search

    def plan(self, mask: Mask, query: Vectors) -> dict[str, Any]:
        """How a filtered search of one query (1, DIM) goes."""
        return dict(self.graph.search(query, K, filter=RowSet(np.flatnonzero(mask).astype(np.uint64) + 1))[2])

    def bytes(self) -> int:
        stats = self.graph.stats()
        return stats["vector_bytes"] + stats["link_bytes"] + stats["other_bytes"]


class Hnswlib:
    """hnswlib's own package; from PyPI it is compiled for the instructions of this very machine."""

    name = "hnswlib"

    def __init__(self, count: int) -> None:
        import hnswlib

        self._index = hnswlib.Index(space="ip", dim=DIM)
        self._index.init_index(max_elements=count, M=M, ef_construction=EF_CONSTRUCTION)

    def add(self, vectors: Vectors, first: int, threads: int) -> None:
        self._index.add_items(vectors, np.arange(first, first + len(vectors)), num_threads=threads)

    def search(self, queries: Vectors, ef: int, threads: int) -> Places:
        self._index.set_ef(ef)
        return np.asarray(self._index.knn_query(queries, k=K, num_threads=threads)[0]).astype(np.int64)

    def filtered(self, mask: Mask) -> Callable[[Vectors, int, int], Places]:
        passes = mask.tolist().__getitem__  # the fastest callback that Python has for it
        wanted = min(K, int(mask.sum()))

        def search(queries: Vectors, ef: int, threads: int) -> Places:
            self._index.set_ef(ef)
            places = np.full((len(queries), K), -1, np.int64)
            for query, line in zip(queries, places, strict=True):
                try:  # more than one thread would only wait for Python's lock
                    found = self._index.knn_query(query[np.newaxis], k=wanted, num_threads=1, filter=passes)[0]
                except RuntimeError:  # it found fewer than that, and then gives none
                    continue
                line[:wanted] = found[0]
            return places

        return search

    def bytes(self) -> int:
        return file_bytes(lambda path: self._index.save_index(path))


class Faiss:
    """faiss's IndexHNSWFlat."""

    name = "faiss"

    def __init__(self, count: int) -> None:
        import faiss

        self._faiss: Any = faiss
        self._index = faiss.IndexHNSWFlat(DIM, M, faiss.METRIC_INNER_PRODUCT)
        self._index.hnsw.efConstruction = EF_CONSTRUCTION

    def add(self, vectors: Vectors, first: int, threads: int) -> None:
        self._faiss.omp_set_num_threads(threads)
        self._index.add(vectors)

    def search(self, queries: Vectors, ef: int, threads: int) -> Places:
        return self._search(queries, threads, self._faiss.SearchParametersHNSW(efSearch=ef))

    def _search(self, queries: Vectors, threads: int, parameters: Any) -> Places:
        self._faiss.omp_set_num_threads(threads)
        return np.asarray(self._index.search(queries, K, params=parameters)[1])

    def filtered(self, mask: Mask) -> Callable[[Vectors, int, int], Places]:
        selector = self._faiss.IDSelectorBitmap(np.packbits(mask, bitorder="little"))

        def search(queries: Vectors, ef: int, threads: int) -> Places:
            parameters = self._faiss.SearchParametersHNSW(efSearch=ef, sel=selector)
            return self._search(queries, threads, parameters)

        return search

    def bytes(self) -> int:
        return file_bytes(lambda path: self._faiss.write_index(self._index, path))


class Usearch:
    """usearch's index of float32; it has no filter in Python."""

    name = "usearch"

    def __init__(self, count: int) -> None:
        from usearch.index import Index

        self._index = Index(ndim=DIM, metric="ip", dtype="f32", connectivity=M, expansion_add=EF_CONSTRUCTION)

    def add(self, vectors: Vectors, first: int, threads: int) -> None:
        self._index.add(np.arange(first, first + len(vectors), dtype=np.uint64), vectors, threads=threads)

    def search(self, queries: Vectors, ef: int, threads: int) -> Places:
        self._index.expansion_search = ef
        found = self._index.search(queries, K, threads=threads)
        places = np.asarray(found.keys).astype(np.int64)
        places[np.arange(K) >= np.asarray(found.counts)[:, np.newaxis]] = -1
        return places

    def bytes(self) -> int:
        return int(self._index.serialized_length)


PACKAGES = ("hnswlib", "faiss-cpu", "usearch", "pyroaring", "numpy")
PEERS: dict[str, Callable[[int], Any]] = {"hnswlib": Hnswlib, "faiss": Faiss, "usearch": Usearch}


def file_bytes(write: Callable[[str], object]) -> int:
    """The size of what `write` makes at the path it is given."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index"
        write(str(path))
        return path.stat().st_size


def peers(count: int, names: Sequence[str]) -> dict[str, Any]:
    """Those of the names that can be imported, empty; says which cannot."""
    found = {}
    for name in names:
        try:
            found[name] = PEERS[name](count)
        except ImportError as error:
            print(f"  left out: {name}: {error}", flush=True)
    return found
