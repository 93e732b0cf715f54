"""Vectors of one view to nearest rows: an hnswlib graph beside the float32 vectors it was built from.

Cosine similarity is the inner product of unit vectors. A row is the caller's int label of a vector, from 0
and dense: the engine numbers its products so. Nothing here locks: hnswlib does not support a search during
an add, and the engine keeps them apart.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from uniecs.errors import IndexFileError, InputError

Rows: TypeAlias = npt.NDArray[np.int64]
Vectors: TypeAlias = npt.NDArray[np.float32]

UNIT_TOLERANCE = 1e-3
# Breadth of a graph search; the recall it gives is held by tests.
MIN_EF = 128
# Up to this many filtered rows the exact scan is as fast as the graph, and always complete.
EXACT_ROWS = 20_000
BLOCK_ROWS = 16_384


def check_vectors(vectors: npt.ArrayLike, dim: int) -> Vectors:
    """Return `vectors` as float32 (n, dim); raises `InputError` unless each is finite and of unit L2 norm."""
    array = np.asarray(vectors, np.float32)
    if array.ndim != 2 or array.shape[1] != dim:
        raise InputError(f"vectors have the shape {array.shape}; expected (n, {dim})")
    norms = np.linalg.norm(array, axis=1)
    wrong = np.flatnonzero(~(np.abs(norms - 1) <= UNIT_TOLERANCE))
    if len(wrong):
        raise InputError(f"vector {wrong[0]} has the L2 norm {norms[wrong[0]]}; expected finite numbers of norm 1")
    return array


class VectorIndex:
    """The vectors of one view, by row; searched approximately, or exactly where that is better."""

    def __init__(self, dim: int, M: int, ef_construction: int) -> None:
        """Width of the vectors, links a node of the graph, breadth of its building."""
        import hnswlib

        self.dim = dim
        self._vectors: Vectors = np.zeros((0, dim), np.float32)
        self._live = np.zeros(0, np.bool_)
        self._count = 0
        self._graph: Any = hnswlib.Index(space="ip", dim=dim)
        self._graph.init_index(max_elements=1024, M=M, ef_construction=ef_construction)

    def __len__(self) -> int:
        return self._count

    def __contains__(self, row: int) -> bool:
        return row < len(self._live) and bool(self._live[row])

    def rows(self) -> Rows:
        """The rows that hold a vector, ascending."""
        return np.flatnonzero(self._live)

    def vectors(self, rows: Rows) -> Vectors:
        """The vectors (n, dim) of `rows`, each of which must hold one."""
        return self._vectors[rows]

    def add(self, rows: Rows, vectors: npt.ArrayLike) -> None:
        """Put unit `vectors` (n, dim) at `rows`, in place of what is there; raises as `check_vectors`."""
        checked = check_vectors(vectors, self.dim)
        if not len(rows):
            return
        self._grow(int(np.max(rows)) + 1)
        # One thread: the graph is then a function of the order of adding, the same on every machine.
        self._graph.add_items(checked, rows, num_threads=1)
        self._vectors[rows] = checked
        self._count += int(np.count_nonzero(~self._live[np.unique(rows)]))
        self._live[rows] = True

    def delete(self, rows: Rows) -> None:
        """Forget the vectors of `rows`; rows without one are left as they are."""
        for row in np.unique(rows).tolist():
            if row in self:
                self._graph.mark_deleted(row)
                self._live[row] = False
                self._count -= 1

    def search(self, query: Vectors, k: int, rows: Rows | None = None) -> tuple[Rows, Vectors]:
        """The `k` nearest rows to a unit `query` (dim,), best first, and their cosine similarities.

        `rows` restricts the answer to distinct rows. Fewer than `k` come back only if no more qualify. Ties
        go to the lower row. Raises `InputError` for a query of another width or not of unit norm.
        """
        query = check_vectors(np.atleast_2d(query), self.dim)[0]
        if rows is not None:
            rows = rows[rows < len(self._live)]
            rows = rows[self._live[rows]]
        k = min(k, self._count if rows is None else len(rows))
        found = self._search_graph(query, k, rows)
        return self._search_rows(query, k, self.rows() if rows is None else rows) if found is None else found

    def _search_graph(self, query: Vectors, k: int, rows: Rows | None) -> tuple[Rows, Vectors] | None:
        """None where the exact scan is better, or where the graph reaches too few rows."""
        fetch = k
        if rows is not None:
            if len(rows) <= EXACT_ROWS:
                return None
            fetch = 2 * k * self._count // len(rows)
        if 2 * fetch >= self._count:
            return None
        self._graph.set_ef(max(MIN_EF, 2 * fetch))
        try:
            labels, _ = self._graph.knn_query(query, k=fetch, num_threads=1)
        except RuntimeError:
            # hnswlib's only report of fewer than `fetch` reachable rows
            return None
        found = labels[0].astype(np.int64)
        if rows is not None:
            found = found[np.isin(found, rows)]
        return None if len(found) < k else self._search_rows(query, k, found)

    def _search_rows(self, query: Vectors, k: int, rows: Rows) -> tuple[Rows, Vectors]:
        """Exact, in blocks: the memory does not grow with the number of rows times their width."""
        blocks = (rows[start : start + BLOCK_ROWS] for start in range(0, len(rows), BLOCK_ROWS))
        scores = np.concatenate([np.zeros(0, np.float32), *(self._vectors[block] @ query for block in blocks)])
        if k < len(rows):
            # Everything that ties with the k-th stays, for the order below to decide.
            enough = scores >= np.partition(scores, -k)[-k] if k else np.zeros(len(rows), np.bool_)
            rows, scores = rows[enough], scores[enough]
        order = np.lexsort((rows, -scores))[:k]
        return rows[order], scores[order]

    def _grow(self, rows: int) -> None:
        if rows > len(self._live):
            capacity = max(rows, 2 * len(self._live), 1024)
            added = capacity - len(self._live)
            self._vectors = np.concatenate([self._vectors, np.zeros((added, self.dim), np.float32)])
            self._live = np.concatenate([self._live, np.zeros(added, np.bool_)])
        if len(self._live) > self._graph.get_max_elements():
            self._graph.resize_index(len(self._live))

    def save(self, vectors: Path, graph: Path) -> None:
        """Write the two files of docs/index-format.md; raises `IndexFileError` if the disk does not take
        them.
        """
        from safetensors.numpy import save

        rows = self.rows()
        try:
            vectors.write_bytes(save({"rows": rows, "vectors": self._vectors[rows]}))
            self._graph.save_index(str(graph))
            # hnswlib does not notice a full disk
            complete = graph.stat().st_size == self._graph.index_file_size()
        except (OSError, RuntimeError) as error:
            raise IndexFileError(f"{vectors.parent} cannot be written: {error}") from error
        if not complete:
            raise IndexFileError(f"{graph} was not written whole; is the disk full?")

    @classmethod
    def load(cls, vectors: Path, graph: Path, dim: int, M: int, ef_construction: int, rows: int) -> VectorIndex:
        """Read what `save` wrote, for rows below `rows`; raises `IndexFileError` for what does not fit.

        hnswlib trusts its file: call this only after the checksums of both files were verified.
        """
        import hnswlib
        from safetensors import SafetensorError
        from safetensors.numpy import load

        index = cls(dim, M, ef_construction)
        try:
            tensors = load(vectors.read_bytes())
            labels, values = tensors["rows"], tensors["vectors"]
            if labels.dtype != np.int64 or labels.shape != (len(values),) or values.dtype != np.float32:
                raise IndexFileError(f"{vectors} holds {labels.dtype} {labels.shape} rows and {values.dtype} vectors")
            if np.any(np.diff(labels, prepend=-1, append=rows) < 1):
                raise IndexFileError(f"{vectors} has rows that do not ascend from 0 to below {rows}")
            index._graph = hnswlib.Index(space="ip", dim=dim)
            index._graph.load_index(str(graph))
            if not set(labels.tolist()) <= set(index._graph.get_ids_list()):
                raise IndexFileError(f"{graph} does not hold the rows of {vectors}")
            index._grow(rows)
            index._vectors[labels] = check_vectors(values, dim)
        except (OSError, RuntimeError, SafetensorError, KeyError, InputError) as error:
            raise IndexFileError(f"{vectors} and {graph.name} cannot be read: {error}") from error
        index._live[labels] = True
        index._count = len(labels)
        return index
