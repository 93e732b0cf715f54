"""The index of one view: nearest rows, exact and by the graph, through adds, replacements and deletions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from uniecs import index as index_module
from uniecs.errors import IndexFileError, InputError
from uniecs.index import VectorIndex, Vectors, check_vectors

DIM = 16


def unit(n: int, seed: int = 0, dim: int = DIM) -> Vectors:
    vectors = np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def filled(vectors: Vectors) -> VectorIndex:
    index = VectorIndex(vectors.shape[1], M=16, ef_construction=200)
    index.add(np.arange(len(vectors)), vectors)
    return index


def nearest(vectors: Vectors, query: Vectors, k: int, rows: npt.NDArray[np.int64] | None = None) -> list[int]:
    """Slow and literal: sort every allowed row by its cosine in float64."""
    allowed = range(len(vectors)) if rows is None else rows.tolist()
    return sorted(allowed, key=lambda row: (-float(vectors[row].astype(float) @ query.astype(float)), row))[:k]


def recall(index: VectorIndex, vectors: Vectors, k: int, rows: npt.NDArray[np.int64] | None = None) -> float:
    queries = unit(50, seed=9, dim=vectors.shape[1])
    found = [len(set(index.search(q, k, rows)[0].tolist()) & set(nearest(vectors, q, k, rows))) for q in queries]
    return sum(found) / (k * len(queries))


def test_search_is_exact_on_few_vectors() -> None:
    vectors = unit(15)
    index = filled(vectors)
    for query in unit(20, seed=1):
        rows, scores = index.search(query, 10)
        assert rows.tolist() == nearest(vectors, query, 10)
        np.testing.assert_allclose(scores, vectors[rows] @ query, atol=1e-6)


def test_graph_search_finds_nearly_all(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = unit(3000)
    index = filled(vectors)

    def no_scan() -> None:
        raise AssertionError("the graph was not used")

    monkeypatch.setattr(index, "rows", no_scan)
    assert recall(index, vectors, 10) >= 0.98


def test_scores_come_best_first_and_ties_by_row() -> None:
    vectors = unit(8)
    vectors[[1, 3, 6]] = vectors[6]
    rows, scores = filled(vectors).search(vectors[6], 2)
    assert rows.tolist() == [1, 3]
    assert scores == pytest.approx([1, 1], abs=1e-6)


def test_k_is_clamped_to_the_live_count() -> None:
    index = filled(unit(6))
    index.delete(np.array([2]))
    rows, _ = index.search(unit(1)[0], 10**9)
    assert sorted(rows.tolist()) == [0, 1, 3, 4, 5]
    assert VectorIndex(DIM, 16, 200).search(unit(1)[0], 5)[0].tolist() == []


def test_equal_vectors_do_not_hide_rows() -> None:
    """hnswlib reaches only part of many equal vectors, and says so by an error: the exact scan takes over."""
    index = filled(np.repeat(unit(1), 2000, axis=0))
    rows, _ = index.search(unit(1)[0], 900)
    assert len(set(rows.tolist())) == 900


def test_exact_scan_when_the_graph_cannot_return_k(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = unit(500)
    index = filled(vectors)

    class Stuck:
        def set_ef(self, ef: int) -> None:
            pass

        def knn_query(self, *args: object, **options: object) -> None:
            raise RuntimeError("Cannot return the results in a contiguous 2D array")

    monkeypatch.setattr(index, "_graph", Stuck())
    query = unit(1, seed=3)[0]
    assert index.search(query, 10)[0].tolist() == nearest(vectors, query, 10)


@pytest.mark.parametrize("exact_rows", [20_000, 10])
def test_filtered_search(monkeypatch: pytest.MonkeyPatch, exact_rows: int) -> None:
    """By the exact scan, and by the graph with what does not qualify left out."""
    monkeypatch.setattr(index_module, "EXACT_ROWS", exact_rows)
    vectors = unit(2000)
    index = filled(vectors)
    rows = np.arange(0, 2000, 3)
    assert recall(index, vectors, 10, rows) >= 0.97
    found, _ = index.search(unit(1)[0], 10, rows)
    assert len(found) == 10 and set(found.tolist()) <= set(rows.tolist())
    few = np.array([5, 7, 1999, 5000])
    assert sorted(index.search(unit(1)[0], 10, few)[0].tolist()) == [5, 7, 1999]
    assert index.search(unit(1)[0], 10, np.zeros(0, np.int64))[0].tolist() == []


def test_replace_delete_and_revive() -> None:
    vectors = unit(2000)
    index = filled(vectors)
    index.delete(np.array([4, 4, 5, 9999]))
    assert (len(index), 4 in index, 6 in index, 9999 in index) == (1998, False, True, False)
    assert 4 not in index.search(vectors[4], 20)[0].tolist()
    new = unit(2, seed=5)
    index.add(np.array([4, 6]), new)
    assert len(index) == 1999
    assert index.search(new[0], 1)[0].tolist() == [4]
    assert index.search(new[1], 1)[0].tolist() == [6]
    np.testing.assert_array_equal(index.vectors(np.array([4, 6])), new)
    assert 5 not in index.rows()


def test_recall_survives_replacing_everything() -> None:
    index = filled(unit(1000))
    for seed in (1, 2):
        vectors = unit(1000, seed=seed)
        index.delete(np.arange(0, 1000, 2))
        index.add(np.arange(1000), vectors)
    assert len(index) == 1000
    assert recall(index, vectors, 10) >= 0.95


def test_everything_deleted() -> None:
    index = filled(unit(50))
    index.delete(np.arange(50))
    assert len(index) == 0 and index.search(unit(1)[0], 5)[0].tolist() == []
    index.add(np.array([3]), unit(1))
    assert index.search(unit(1)[0], 5)[0].tolist() == [3]


def test_grows_beyond_its_first_capacity() -> None:
    vectors = unit(2500, dim=4)
    index = VectorIndex(4, 8, 50)
    for row, vector in enumerate(vectors):
        index.add(np.array([row]), vector[None])
    assert len(index) == 2500 and index.search(vectors[2499], 1)[0].tolist() == [2499]


def test_vectors_that_are_refused() -> None:
    good = unit(3)
    nan, infinite, long, short = good.copy(), good.copy(), good * 2, good * 0
    nan[1, 3], infinite[2, 0] = np.nan, np.inf
    index = filled(good)
    for bad in (nan, infinite, long, short, good[:, :8], good[0]):
        with pytest.raises(InputError):
            check_vectors(bad, DIM)
        with pytest.raises(InputError):
            index.add(np.array([0, 1, 2]), bad)
    with pytest.raises(InputError):
        index.search(nan[1], 1)
    with pytest.raises(InputError):
        index.search(good[0, :8], 1)
    assert len(index) == 3 and np.array_equal(index.vectors(np.arange(3)), good)


def saved(folder: Path, index: VectorIndex) -> tuple[Path, Path]:
    paths = folder / "v.safetensors", folder / "v.hnsw"
    index.save(*paths)
    return paths


def test_save_and_load(tmp_path: Path) -> None:
    index = filled(unit(1500))
    index.delete(np.array([7, 8]))
    again = VectorIndex.load(*saved(tmp_path, index), DIM, 16, 200, 1500)
    assert len(again) == 1498 and 7 not in again
    for query in unit(20, seed=2):
        for ours, theirs in zip(index.search(query, 10), again.search(query, 10), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    again.add(np.array([7, 1600]), unit(2, seed=8))
    assert again.search(unit(2, seed=8)[1], 1)[0].tolist() == [1600]


def test_load_of_what_does_not_fit(tmp_path: Path) -> None:
    from safetensors.numpy import save

    vectors, graph = saved(tmp_path, filled(unit(20)))
    cases: list[dict[str, npt.NDArray[np.generic]]] = [
        {"rows": np.arange(20)},
        {"rows": np.arange(20), "vectors": unit(20) * 3},
        {"rows": np.arange(20), "vectors": unit(20, dim=8)},
        {"rows": np.arange(20), "vectors": unit(20).astype(np.float64)},
        {"rows": np.arange(19), "vectors": unit(20)},
        {"rows": np.arange(20)[::-1].copy(), "vectors": unit(20)},
        {"rows": np.arange(20) - 1, "vectors": unit(20)},
        {"rows": np.arange(20) + 10**12, "vectors": unit(20)},
        {"rows": np.arange(20) + 5, "vectors": unit(20)},
    ]
    for tensors in cases:
        vectors.write_bytes(save(tensors))
        with pytest.raises(IndexFileError):
            VectorIndex.load(vectors, graph, DIM, 16, 200, 30)
    for data in (b"", b"short", b"\xff" * 100):
        vectors.write_bytes(data)
        with pytest.raises(IndexFileError):
            VectorIndex.load(vectors, graph, DIM, 16, 200, 30)
    with pytest.raises(IndexFileError):
        VectorIndex.load(vectors, tmp_path / "none.hnsw", DIM, 16, 200, 30)


def test_graph_that_the_disk_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = filled(unit(20))

    class Full:
        def save_index(self, path: str) -> None:
            Path(path).write_bytes(b"half")

        def index_file_size(self) -> int:
            return 5000

    monkeypatch.setattr(index, "_graph", Full())
    with pytest.raises(IndexFileError, match="disk full"):
        saved(tmp_path, index)
