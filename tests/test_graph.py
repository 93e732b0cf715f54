"""The native core: what it finds against NumPy, what it forgets, and snapshots that are as they were written."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from uniecs._core import Graph, RowSet, SnapshotError

Rows = npt.NDArray[np.uint64]
Vectors = npt.NDArray[np.float32]
NONE: Rows = np.zeros(0, np.uint64)
DIM = 48


def unit(n: int, seed: int = 0, dim: int = DIM) -> Vectors:
    """Vectors in clusters, as a catalogue's are."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(20, dim))
    vectors = centres[random.integers(20, size=n)] + 0.8 * random.normal(size=(n, dim))
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def drawn(n: int, queries: int) -> tuple[Vectors, Vectors]:
    """Vectors, and queries of the same clusters."""
    vectors = unit(n + queries)
    return vectors[:n], vectors[n:]


def filled(vectors: Vectors, storage: str = "float32", threads: int = 2, first: int = 1) -> Graph:
    graph = Graph(vectors.shape[1], 16, 100, storage)
    graph.apply(NONE, np.arange(first, first + len(vectors), dtype=np.uint64), vectors, threads)
    return graph


def nearest(queries: Vectors, vectors: Vectors, rows: Rows, k: int) -> Rows:
    order = np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, :k]
    return rows[order]


def recall(found: Rows, true: Rows) -> float:
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found.tolist(), true.tolist(), strict=True)]))


@pytest.mark.parametrize("storage", ["float32", "float16", "int8"])
@pytest.mark.parametrize("strategy", ["graph", "exact"])
def test_it_finds_what_numpy_finds(storage: str, strategy: str) -> None:
    vectors, queries = drawn(4000, 50)
    graph = filled(vectors, storage)
    rows, scores, plan = graph.search(queries, 10, strategy=strategy)
    assert plan["strategy"] == strategy
    true = nearest(queries, vectors, np.arange(1, 4001, dtype=np.uint64), 10)
    assert recall(rows, true) >= (0.93 if storage == "int8" else 0.99)
    exact = np.take_along_axis(queries @ vectors.T, rows.astype(np.int64) - 1, axis=1)
    np.testing.assert_allclose(scores, exact, atol={"float32": 1e-6, "float16": 2e-3, "int8": 0.02}[storage])
    assert (np.diff(scores) <= 0).all()
    swapped, _, _ = graph.search(queries[::-1].copy(), 10)
    assert recall(swapped, true) < 0.5


@pytest.mark.parametrize("storage", ["float32", "float16", "int8"])
@pytest.mark.parametrize("first", [1, 2000])
def test_vectors_that_hardly_differ_are_told_apart(storage: str, first: int, tmp_path: Path) -> None:
    """As those of a model that has learnt little, in a graph that was filled as a whole or from one on, then loaded."""
    random = np.random.default_rng(0)
    wide = 1 + 0.005 * random.normal(size=(2050, 8)) @ random.normal(size=(8, 64))
    vectors = np.asarray(wide / np.linalg.norm(wide, axis=1, keepdims=True), np.float32)
    graph = filled(vectors[:first], storage)
    graph.apply(NONE, np.arange(first + 1, 2001, dtype=np.uint64), vectors[first:2000], 2)
    queries, rows = vectors[2000:], np.arange(1, 2001, dtype=np.uint64)
    assert (queries @ vectors.T).min() > 0.998
    graph.save(str(tmp_path / "g"), "m", 1, 2000)
    for each in (graph, Graph.load(str(tmp_path / "g"), 64, 16, 100, storage, "m")[0]):
        found = each.search(queries, 20, strategy="graph")[0]
        assert recall(found, nearest(queries, vectors[:2000], rows, 20)) >= 0.98


@pytest.mark.parametrize("kind", ["clusters", "one place", "an outlier", "a narrow cone", "tiny"])
def test_an_exact_search_is_exact(kind: str) -> None:
    """Though it compares int8 codes first: what their error leaves open is scored by the vectors."""
    made = unit(4050).astype(np.float64)
    if kind == "one place":  # further apart than twins, and half of them nearer than codes tell apart
        made[::2] = made[0] + 0.01 * made[::2]
    elif kind == "an outlier":
        made[7] *= 60
    elif kind == "a narrow cone":
        made = made[0] + 1e-3 * made
    elif kind == "tiny":
        made *= 1e-6
    vectors, queries = made[:4000].astype(np.float32), made[4000:].astype(np.float32)
    graph = filled(vectors)
    true = queries.astype(np.float64) @ vectors.astype(np.float64).T
    rounding = 1e-6 * np.linalg.norm(made, axis=1).max() * np.linalg.norm(queries, axis=1, keepdims=True)
    for k in (1, 10, 300):
        rows, scores, _ = graph.search(queries, k, strategy="exact")
        found = np.take_along_axis(true, rows.astype(np.int64) - 1, axis=1)
        assert (np.abs(found + np.sort(-true, axis=1)[:, :k]) <= rounding).all()
        assert (np.abs(scores - found) <= rounding).all()


def test_one_thread_and_many_give_one_answer_a_query() -> None:
    graph, queries = filled(unit(3000)), unit(40, 1)
    alone = [graph.search(query[np.newaxis], 7) for query in queries]
    rows, scores, _ = graph.search(queries, 7, threads=4)
    np.testing.assert_array_equal(rows, np.concatenate([each[0] for each in alone]))
    np.testing.assert_array_equal(scores, np.concatenate([each[1] for each in alone]))


def test_equal_scores_go_by_row_and_k_may_exceed_what_there_is() -> None:
    vectors = np.repeat(unit(1), 30, axis=0)
    graph = filled(vectors)
    for strategy in ("exact", None):
        rows, _, _ = graph.search(vectors[:1], 5, strategy=strategy)
        assert rows.tolist() == [[1, 2, 3, 4, 5]]
    assert graph.search(vectors[:1], 1000)[0].shape == (1, 30)
    assert Graph(DIM, 16, 100, "float32").search(unit(2), 3)[0].shape == (2, 0)


@pytest.mark.parametrize("share", [0.0001, 0.001, 0.01, 0.1, 0.3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("kind", ["strewn", "half"])
def test_filters_keep_the_recall_at_every_selectivity(share: float, kind: str) -> None:
    vectors, queries = drawn(20_000, 60)
    graph = filled(vectors)
    random = np.random.default_rng(2)
    key = random.random(20_000) if kind == "strewn" else vectors @ random.normal(size=DIM)
    rows = np.flatnonzero(key <= np.quantile(key, share)).astype(np.uint64) + 1
    allowed = RowSet(rows)
    assert len(allowed) == len(rows)
    true = nearest(queries, vectors[rows.astype(np.int64) - 1], rows, 10)
    found, _, plan = graph.search(queries, 10, allowed)
    assert plan["strategy"] == ("exact" if share < 0.2 else "filtered graph")
    assert set(found.ravel().tolist()) <= set(rows.tolist())
    assert recall(found, true) >= 0.95


def test_a_harder_catalogue_gets_a_broader_walk(tmp_path: Path) -> None:
    random = np.random.default_rng(4)
    spread = random.normal(size=(20_100, DIM)).astype(np.float32)  # no clusters: hard to find one's way in
    spread /= np.linalg.norm(spread, axis=1, keepdims=True)
    vectors, queries = spread[:20_000], spread[20_000:]
    graph = filled(unit(20_000))
    before = graph.search(queries[:1], 10)[2]["ef"]
    rows = np.arange(20_001, 40_001, dtype=np.uint64)
    graph.apply(graph.rows(), rows, vectors, 2)
    graph.save(str(tmp_path / "graph"), "model", 1, 40_000)
    for each in (graph, Graph.load(str(tmp_path / "graph"), DIM, 16, 100, "float32", "model")[0]):
        found, _, plan = each.search(queries, 10)
        assert plan["ef"] > before or plan["strategy"] == "exact"
        assert recall(found, nearest(queries, vectors, rows, 10)) >= 0.95
        for share in (0.6, 1.0):
            for key in (random.random(20_000), vectors @ random.normal(size=DIM)):
                some = key <= np.quantile(key, share)
                found, _, _ = each.search(queries, 10, RowSet(rows[some]))
                assert recall(found, nearest(queries, vectors[some], rows[some], 10)) >= 0.95


def test_filters_that_leave_a_few_of_each_cluster() -> None:
    """The ten nearest lie in several clusters then, which takes more than strewn vectors do.

    A filter may let through many rows that the graph does not have: those of products without a photo.
    """
    random = np.random.default_rng(0)
    vectors = random.standard_normal((1200, 64))[random.integers(1200, size=12_100)]
    vectors += 0.6 * random.standard_normal(vectors.shape)
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    queries, vectors = vectors[12_000:], vectors[:12_000]
    graph = Graph(64, 16, 100, "float32")
    graph.apply(NONE, np.arange(8, 96_001, 8, dtype=np.uint64), vectors, 2)
    others = np.array([row for row in range(1, 96_000) if row % 8], np.uint64)
    for share in (0.5, 0.3, 0.2):
        chosen = np.sort(random.choice(12_000, int(12_000 * share), replace=False))
        true = nearest(queries, vectors[chosen], 8 * (chosen.astype(np.uint64) + 1), 10)
        for more in (NONE, others):
            rows = RowSet(np.concatenate([8 * (chosen.astype(np.uint64) + 1), more]))
            found, _, plan = graph.search(queries, 10, rows, len(rows))
            assert recall(found, true) >= 0.97
            assert plan["matching"] == len(chosen)


def alike(groups: int, each: int, others: int, apart: float) -> tuple[Vectors, Vectors]:
    """Groups of vectors at one place, one group after the other, then others; and queries."""
    random = np.random.default_rng(5)
    vectors = unit(groups + others + 50)
    vectors, queries = np.concatenate([np.repeat(vectors[:groups], each, 0), vectors[groups:-50]]), vectors[-50:]
    vectors = vectors + np.float32(apart / DIM**0.5) * random.normal(size=vectors.shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True), queries


@pytest.mark.parametrize("storage", ["float32", "float16", "int8"])
@pytest.mark.parametrize("apart", [0.0, 0.01])
@pytest.mark.parametrize("groups", [10, 400])
def test_vectors_at_one_place_do_not_hide_the_others(storage: str, apart: float, groups: int) -> None:
    vectors, queries = alike(groups, 4000 // groups, 4000, apart)
    graph = filled(vectors, storage)
    own = np.stack(
        [vector for row in range(1, 8001) if (vector := graph.vector(row)) is not None]
    )  # as stored: what is found, not how exactly
    for share, ef in ((None, 64), (0.5, 48), (0.1, 48)):
        rows = np.arange(1, 8001, round(1 / (share or 1)), dtype=np.uint64)
        allowed, strategy = (RowSet(rows), "filtered graph") if share else (None, "graph")
        found, _, _ = graph.search(queries, 10, allowed, ef=ef, strategy=strategy)
        scores = queries @ own.T
        tenth = np.sort(scores[:, rows.astype(np.int64) - 1], axis=1)[:, -10]
        hit = np.take_along_axis(scores, found.astype(np.int64) - 1, axis=1) >= tenth[:, np.newaxis] - 1e-3
        assert hit.mean() >= 0.95
        assert all(len(set(each)) == 10 for each in found.tolist())


def test_twins_live_on_when_the_first_of_them_goes(tmp_path: Path) -> None:
    place = unit(1)
    graph = filled(np.concatenate([np.repeat(place, 300, 0), unit(700, 1)]))

    def twins(graph: Graph, k: int, allowed: RowSet | None = None) -> list[int]:
        strategy = "filtered graph" if allowed else "graph"
        return [int(row) for row in graph.search(place, k, allowed, ef=64, strategy=strategy)[0][0]]

    twin = RowSet(np.array([250], np.uint64))
    for first, last, left in ((1, 10, range(11, 301)), (11, 239, range(240, 301)), (301, 900, range(240, 301))):
        graph.apply(np.arange(first, last + 1, dtype=np.uint64), NONE, np.zeros((0, DIM), np.float32), 2)
        graph.save(str(tmp_path / "graph"), "m", 1, 1000)
        again, _, _ = Graph.load(str(tmp_path / "graph"), DIM, 16, 100, "float32", "m")
        for each in (graph, again):
            assert twins(each, len(left)) == list(left)
            assert twins(each, 1, twin) == [250]
        graph.repair(2)
        assert twins(graph, len(left)) == list(left)
    more = np.arange(1001, 1401, dtype=np.uint64)  # in places that are free again
    graph.apply(NONE, more, np.repeat(place, 400, 0), 2)
    assert twins(graph, 461) == [*range(240, 301), *more.tolist()]


def test_a_twin_replaced_over_and_over_is_found_once() -> None:
    place = unit(1)
    graph = filled(np.concatenate([np.repeat(place, 20, 0), unit(3000, 1)]))
    for row in range(10_000, 11_500):
        old = 5 if row == 10_000 else row - 1
        graph.apply(np.array([old], np.uint64), np.array([row], np.uint64), place, 1)
        if row % 100 == 0:
            found = graph.search(place, 20, ef=32, strategy="graph")[0][0].tolist()
            assert found == [each for each in range(1, 21) if each != 5] + [row]


def test_the_planner_goes_from_exact_to_the_graph() -> None:
    graph = filled(unit(20_000))
    chosen = [
        graph.search(unit(1, 1), 10, RowSet(np.arange(1, 20_001, step, dtype=np.uint64)))[2]["strategy"]
        for step in (1000, 10, 1)
    ]
    assert chosen == ["exact", "exact", "filtered graph"]
    assert graph.search(unit(1, 1), 10)[2]["strategy"] == "graph"


def test_a_search_ends_early_unless_its_breadth_is_given() -> None:
    """And finds the nearest all the same; where those that it meets first are removed ones, it goes on."""
    vectors, queries = drawn(8000, 100)
    graph, rows = filled(vectors), np.arange(1, 8001, dtype=np.uint64)
    gone = np.unique(nearest(queries, vectors, rows, 20))
    left = np.setdiff1d(rows, gone)
    for removed, there in ((NONE, rows), (gone, left)):
        graph.apply(removed, NONE, np.zeros((0, DIM), np.float32), 1)
        compared = np.zeros(2)
        for k in (1, 10, 20, 40):
            true = nearest(queries, vectors[there.astype(np.int64) - 1], there, k)
            found = [graph.search(query[np.newaxis], k) for query in queries]
            assert {plan["strategy"] for _, _, plan in found} == {"graph"}
            assert recall(np.concatenate([each[0] for each in found]), true) >= 0.96
            whole = [
                graph.search(query[np.newaxis], k, ef=plan["ef"])
                for query, (_, _, plan) in zip(queries, found, strict=True)
            ]
            compared += [sum(plan["compared"] for _, _, plan in each) for each in (found, whole)]
        # Of a breadth of 48 some .98 is compared.
        assert compared[0] < 0.99 * compared[1] if removed is NONE else compared[0] <= compared[1]


def test_a_search_ends_where_all_the_rest_is_far_off() -> None:
    """A group of 30 holds the ten nearest: what is beyond it is not looked at, unless the breadth is given."""
    vectors, _ = alike(650, 30, 500, 0.2)
    graph, queries, rows = filled(vectors), vectors[::601], np.arange(1, 20_001, dtype=np.uint64)
    found = [graph.search(query[np.newaxis], 10) for query in queries]
    whole = [graph.search(query[np.newaxis], 10, ef=128) for query in queries]
    assert recall(np.concatenate([each[0] for each in found]), nearest(queries, vectors, rows, 10)) == 1
    own, given = (sum(plan["compared"] for _, _, plan in each) for each in (found, whole))
    assert own < 0.5 * given  # .73 without this


def test_queries_as_close_as_products_need_less() -> None:
    """Queries that strayed set the breadth; one that finds products as near as they are to each other stops before."""
    random = np.random.default_rng(0)
    centres = random.standard_normal((1000, 32))
    vectors = centres[random.integers(1000, size=20_200)] + 0.6 * random.standard_normal((20_200, 32))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[20_100:] += random.standard_normal((100, 32)) / 32**0.5
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    graph = filled(vectors[:20_000], threads=1)
    rows = np.sort(random.choice(20_000, 18_000, replace=False)).astype(np.uint64)
    compared = []
    for queries in (vectors[20_000:20_100], vectors[20_100:]):
        found = [graph.search(query[np.newaxis], 10, RowSet(rows + 1)) for query in queries]
        assert {plan["strategy"] for _, _, plan in found} == {"filtered graph"}
        true = nearest(queries, vectors[rows.astype(np.int64)], rows + 1, 10)
        assert recall(np.concatenate([each[0] for each in found]), true) >= 0.95
        compared.append(sum(plan["compared"] for _, _, plan in found))
    assert compared[0] < 0.48 * compared[1]  # .53 without this


def test_removed_rows_do_not_end_a_search() -> None:
    """Of a group of 30 five are left: the others of the ten nearest are far beyond it."""
    vectors, _ = alike(650, 30, 500, 0.2)
    graph, queries = filled(vectors), vectors[:3000:30]
    groups = np.arange(1, 3001, dtype=np.uint64).reshape(100, 30)
    graph.apply(groups[:, 5:].ravel(), NONE, np.zeros((0, DIM), np.float32), 2)
    own, whole = graph.search(queries, 10)[0], graph.search(queries, 10, ef=128)[0]
    assert recall(own, whole) >= 0.99


def test_removed_rows_never_come_back() -> None:
    vectors = unit(2000)
    graph = filled(vectors)
    gone = np.arange(1, 2001, 3, dtype=np.uint64)
    graph.apply(gone, NONE, np.zeros((0, DIM), np.float32), 2)
    for strategy in ("graph", "exact", None):
        rows, _, _ = graph.search(vectors, 5, strategy=strategy)
        assert not np.isin(rows, gone).any()
    assert len(graph) == 2000 - len(gone) and 1 not in graph and 2 in graph
    np.testing.assert_array_equal(graph.rows(), np.setdiff1d(np.arange(1, 2001, dtype=np.uint64), gone))
    assert graph.vector(1) is None
    np.testing.assert_array_equal(graph.vector(2), vectors[1])
    graph.apply(graph.rows(), NONE, np.zeros((0, DIM), np.float32), 1)
    assert len(graph) == 0 and graph.search(vectors[:1], 3)[0].shape == (1, 0)
    graph.repair(1)
    graph.apply(NONE, np.array([5000], np.uint64), vectors[:1], 1)
    assert graph.search(vectors[:1], 3)[0].tolist() == [[5000]]


def test_ten_times_replaced_is_as_good_as_new() -> None:
    """Recall after replacing every product ten times is within a point of a fresh build, and the space is reused."""
    count = 3000
    every, queries = drawn(11 * count, 200)
    graph, current = filled(every[:count]), np.arange(1, count + 1, dtype=np.uint64)
    for generation in range(1, 11):
        vectors = every[generation * count : (generation + 1) * count]
        for some in np.array_split(np.random.default_rng(generation).permutation(count), 40):
            new = current[some] + np.uint64(count)
            graph.apply(current[some], new, vectors[some], 2)
            current[some] = new
    fresh = Graph(DIM, 16, 100, "float32")
    fresh.apply(NONE, current, vectors, 2)
    true = nearest(queries, vectors, current, 10)
    found, of_fresh = (each.search(queries, 10, strategy="graph")[0] for each in (graph, fresh))
    assert recall(found, true) >= recall(of_fresh, true) - 0.01
    stats = graph.stats()
    assert stats["live"] == count and stats["removed"] + stats["free"] < 0.6 * count


@pytest.mark.parametrize("storage", ["float16", "int8"])
def test_smaller_storage_is_smaller(storage: str) -> None:
    full, small = (filled(unit(500, dim=256), each).stats()["vector_bytes"] for each in ("float32", storage))
    assert small <= full * (1 / 3 if storage == "int8" else 0.51)


def test_bad_changes_change_nothing() -> None:
    graph = filled(unit(10))
    one = unit(1, 5)
    for removed, rows, vectors in (
        ([11], [], one[:0]),
        ([1, 1], [], one[:0]),
        ([], [0], one),
        ([], [1], one),
        ([], [20, 20], np.repeat(one, 2, axis=0)),
        ([], [20], one * np.nan),
        ([], [20], one[:, :-1].copy()),
        ([], [2**40], one),
    ):
        with pytest.raises(ValueError, match=r"row|components|finite"):
            graph.apply(np.array(removed, np.uint64), np.array(rows, np.uint64), vectors, 1)
        assert len(graph) == 10 and 20 not in graph
    for arguments, message in (
        ((unit(1, dim=3), 5), "components"),
        ((one, 0), "k is 0"),
        ((one[0], 5), r"expected \(n, dim\)"),
    ):
        with pytest.raises(ValueError, match=message):
            graph.search(*arguments)
    with pytest.raises(ValueError, match="strategy"):
        graph.search(one, 5, strategy="magic")
    for dim, M, ef, storage in ((0, 16, 100, "float32"), (4, 1, 100, "float32"), (4, 16, 2, "int8"), (4, 16, 100, "x")):
        with pytest.raises(ValueError, match=r"dim|M|ef_construction|storage"):
            Graph(dim, M, ef, storage)


@pytest.mark.parametrize("storage", ["float32", "int8"])
def test_a_snapshot_is_what_was_saved(tmp_path: Path, storage: str) -> None:
    vectors = unit(1500)
    graph = filled(vectors, storage)
    graph.apply(np.arange(1, 1500, 7, dtype=np.uint64), NONE, np.zeros((0, DIM), np.float32), 1)
    path = tmp_path / "g.hnsw"
    graph.save(str(path), "model", 9, 1600)
    again, sequence, last_row = Graph.load(str(path), DIM, 16, 100, storage, "model")
    assert (sequence, last_row) == (9, 1600)
    queries = unit(30, 1)
    for a, b in zip(graph.search(queries, 10)[:2], again.search(queries, 10)[:2], strict=True):
        np.testing.assert_array_equal(a, b)
    again.repair(2)
    again.apply(NONE, np.array([1601], np.uint64), queries[:1], 1)
    assert again.search(queries[:1], 1)[0].tolist() == [[1601]]
    assert [each.name for each in tmp_path.iterdir()] == ["g.hnsw"]
    for dim, M, ef, kind, model in (
        (DIM + 1, 16, 100, storage, "model"),
        (DIM, 8, 100, storage, "model"),
        (DIM, 16, 100, "float16", "model"),
        (DIM, 16, 100, storage, "other"),
    ):
        with pytest.raises(SnapshotError):
            Graph.load(str(path), dim, M, ef, kind, model)


def test_a_damaged_snapshot_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "g.hnsw"
    filled(unit(40, dim=8)).save(str(path), "m", 1, 40)
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    damaged = [whole[:end] for end in {0, 5, len(whole) // 2, len(whole) - 1}] + [whole + b"x"]
    for place in random.integers(0, len(whole), 300).tolist():
        damaged.append(whole[:place] + bytes([whole[place] ^ (1 << int(random.integers(8)))]) + whole[place + 1 :])
    for data in damaged:
        path.write_bytes(data)
        with pytest.raises(SnapshotError):
            Graph.load(str(path), 8, 16, 100, "float32", "m")
    with pytest.raises(SnapshotError, match="cannot be read"):
        Graph.load(str(tmp_path / "none"), 8, 16, 100, "float32", "m")


def test_a_catalogue_of_two_opposite_places_is_loaded(tmp_path: Path) -> None:
    """Their squared distance is rounded to a little more than 4, which was taken for damage."""
    signs = np.where(np.arange(2500) % 2, np.float32(1), np.float32(-1))
    path = str(tmp_path / "g.hnsw")
    for first in range(1, 40, 3):  # other layers
        graph = Graph(DIM, 16, 20, "float32")
        rows = np.arange(first, first + 2500, dtype=np.uint64)
        graph.apply(NONE, rows, signs[:, None] * unit(1, seed=first), 1)
        graph.save(path, "m", 1, 3000)
        assert len(Graph.load(path, DIM, 16, 20, "float32", "m")[0]) == 2500


def test_a_snapshot_that_cannot_be_written_leaves_the_old(tmp_path: Path) -> None:
    graph = filled(unit(10))
    path = tmp_path / "none" / "g.hnsw"
    with pytest.raises(RuntimeError, match="cannot be written"):
        graph.save(str(path), "m", 1, 10)
    if Path("/dev/full").exists():
        (tmp_path / f"g.hnsw.{os.getpid()}.tmp").symlink_to("/dev/full")
        (tmp_path / "g.hnsw").write_bytes(b"old")
        with pytest.raises(RuntimeError, match="No space left"):
            graph.save(str(tmp_path / "g.hnsw"), "m", 1, 10)
        assert (tmp_path / "g.hnsw").read_bytes() == b"old"


def test_row_sets_are_sets() -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        a, b = (random.integers(1, 300, random.integers(0, 200)).astype(np.uint64) for _ in range(2))
        x, y = RowSet(a), RowSet(b)
        assert x.rows().tolist() == sorted(set(a.tolist())) and len(x) == len(set(a.tolist()))
        assert (x & y).rows().tolist() == sorted(set(a.tolist()) & set(b.tolist()))
        assert (x | y).rows().tolist() == sorted(set(a.tolist()) | set(b.tolist()))
        last = int(random.integers(1, 400))
        assert x.complement(last).rows().tolist() == sorted(set(range(1, last + 1)) - set(a.tolist()))
        x.insert(100_000)
        assert 100_000 in x and 99_999 not in x and len(x) == len(set(a.tolist())) + 1


def test_searches_beside_changes_see_whole_changes() -> None:
    """Each row's vector is replaced by its own negative, all in one change: a search never sees both, or neither."""
    vectors = unit(200)
    graph = filled(vectors)
    stop, wrong = threading.Event(), list[Any]()

    def search() -> None:
        while not stop.is_set():
            rows = graph.search(vectors[:1], 200, strategy="exact")[0][0]
            generations = {int(row - 1) // 200 for row in rows}
            if len(rows) != 200 or len(generations) != 1:
                wrong.append(rows)

    threads = [threading.Thread(target=search) for _ in range(3)]
    for each in threads:
        each.start()
    for generation in range(1, 60):
        old = np.arange((generation - 1) * 200 + 1, generation * 200 + 1, dtype=np.uint64)
        graph.apply(old, old + np.uint64(200), -vectors if generation % 2 else vectors, 1)
    stop.set()
    for each in threads:
        each.join()
    assert not wrong


@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_the_stress_test_is_clean_under_sanitizers(sanitized_build: Callable[[str], Path], sanitizer: str) -> None:
    folder = sanitized_build(sanitizer)
    # ThreadSanitizer is slow, and sees in a few rounds what it would see in many.
    few, many = (
        [["graph_stress", "6"], ["bert_encoder_test", "2"]],
        [["graph_stress"], ["bert_encoder_test"], ["distance_test"]],
    )
    for program, *rounds in [*(few if sanitizer == "thread" else many), ["item_fusion_test"]]:
        done = subprocess.run([folder / program, *rounds], capture_output=True, text=True, check=False)
        if "unexpected memory mapping" in done.stderr:
            pytest.skip("this kernel's address layout is not known to ThreadSanitizer")
        assert done.returncode == 0, done.stdout + done.stderr[-4000:]


SCARCE = """
import resource, numpy as np
from uniecs._core import Graph
vectors = np.random.default_rng(0).normal(size=(400, 16)).astype(np.float32)
vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
graph = Graph(16, 8, 40, "float32")
graph.apply(np.zeros(0, np.uint64), np.arange(1, 401, dtype=np.uint64), vectors, 1)
alone = graph.search(vectors, 5)[0]
used = 1024 * int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmSize")))
resource.setrlimit(resource.RLIMIT_AS, (used + (20 << 20), -1))
assert (graph.search(vectors, 5, threads=64)[0] == alone).all()
print("all found")
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="limits a process's address space as Linux does")
def test_too_few_threads_to_be_had_end_no_process() -> None:
    """Of 64 stacks of 8 MB the limit has room for two at most."""
    done = subprocess.run([sys.executable, "-c", SCARCE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "all found\n"), done.stderr
