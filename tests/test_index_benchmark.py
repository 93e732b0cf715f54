"""The sums of the index benchmark: recall, curves, masks, verdicts. No clock, and none of the other packages."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def bench() -> Iterator[SimpleNamespace]:
    """Its modules, which import each other by their bare names."""
    before = set(sys.modules)
    sys.path.insert(0, str(BENCHMARKS))
    try:
        names = ("index", "index_data", "index_engine", "index_peers", "index_report")
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    finally:
        sys.path.remove(str(BENCHMARKS))
        for name in set(sys.modules) - before:
            if str(BENCHMARKS) in str(getattr(sys.modules[name], "__file__", "")):
                del sys.modules[name]


def vectors(count: int, seed: int = 0) -> Any:
    made = np.random.default_rng(seed).standard_normal((count, 8)).astype(np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def test_recall_counts_what_the_exact_answer_has(bench: SimpleNamespace) -> None:
    data, x, queries = bench.index_data, vectors(500), vectors(20, 1)
    worst = data.worst_wanted(x, queries)
    exact = np.argsort(-(queries @ x.T), axis=1)
    assert data.recall(exact[:, :10], x, queries, worst) == 1.0
    assert data.recall(exact[:, 10:20], x, queries, worst) == 0.0
    half = exact[:, :10].copy()
    half[:, 5:] = -1
    assert data.recall(half, x, queries, worst) == 0.5
    assert data.recall(np.repeat(exact[:, :1], 10, axis=1), x, queries, worst) == pytest.approx(0.1)


def test_recall_under_a_mask(bench: SimpleNamespace) -> None:
    data, x, queries = bench.index_data, vectors(500), vectors(20, 1)
    mask = np.arange(500) % 3 == 0
    worst = data.worst_wanted(x, queries, mask)
    allowed = np.flatnonzero(mask)
    exact = allowed[np.argsort(-(queries @ x[allowed].T), axis=1)]
    assert data.recall(exact[:, :10], x, queries, worst, mask) == 1.0
    unfiltered = np.argsort(-(queries @ x.T), axis=1)[:, :10]
    assert data.recall(unfiltered, x, queries, worst, mask) < 0.6  # what the mask excludes is no hit
    few = np.arange(500) < 4  # less than ten match
    worst = data.worst_wanted(x, queries, few)
    answer = np.full((20, 10), -1)
    answer[:, :4] = np.arange(4)
    assert data.recall(answer, x, queries, worst, few) == 1.0


def test_equal_vectors_are_equally_found(bench: SimpleNamespace) -> None:
    data = bench.index_data
    x = np.repeat(vectors(1), 30, axis=0)
    worst = data.worst_wanted(x, x[:1])
    assert data.recall(np.arange(20, 30)[np.newaxis], x, x[:1], worst) == 1.0


def test_qps_between_two_settings_is_linear_in_its_logarithm(bench: SimpleNamespace) -> None:
    data = bench.index_data
    points = [data.Point(10, 0.9, 8000), data.Point(20, 0.94, 4000), data.Point(40, 0.96, 1000)]
    assert data.qps_at(points, 0.95) == pytest.approx(2000)
    assert data.qps_at(points, 0.96) == pytest.approx(1000)
    assert data.qps_at(points, 0.5) == 8000  # all are above it
    assert data.qps_at(points, 0.97) is None
    assert data.nearest_to(points, 0.97) == points[-1]
    worse = [*points, data.Point(30, 0.93, 2000)]  # slower, and finds less than another
    assert data.qps_at(worse, 0.95) == pytest.approx(2000)


def test_only_the_settings_around_a_recall_are_timed(bench: SimpleNamespace) -> None:
    tried = [(10, 0.8), (20, 0.9), (40, 0.97), (80, 0.99)]
    assert bench.index_data.around(tried, 0.95) == {20, 40}
    assert bench.index_data.around(tried, 0.5) == {10}
    assert bench.index_data.around(tried, 0.999) == {40, 80}


def test_the_best_of_those_that_have_a_value(bench: SimpleNamespace) -> None:
    assert bench.index_data.best_of({"a": 1.0, "b": None, "c": 2.0}) == ("c", 2.0)
    assert bench.index_data.best_of({"a": None}) is None


def test_masks_have_their_share_and_half_spaces_lie_together(bench: SimpleNamespace) -> None:
    x = vectors(2000)
    found = {(kind, share): mask for kind, share, mask in bench.index_data.selections(x, (0.0001, 0.1))}
    assert {key: int(mask.sum()) for key, mask in found.items()} == {
        ("random", 0.0001): 1,
        ("half space", 0.0001): 1,
        ("random", 0.1): 200,
        ("half space", 0.1): 200,
    }
    lengths = {kind: np.linalg.norm(x[found[kind, 0.1]].mean(axis=0)) for kind in ("random", "half space")}
    assert lengths["half space"] > 3 * lengths["random"]


def test_far_queries_are_nearer_to_no_product_than_to_their_own(bench: SimpleNamespace) -> None:
    data = bench.index_data.clustered(2000, 0)
    far = bench.index_data.far_queries(data.vectors, 50)
    nearest = (far @ data.vectors.T).max(axis=1)
    assert far.shape == (50, 256) and np.allclose(nearest, 2**-0.5, atol=0.1)
    assert np.allclose(np.linalg.norm(far, axis=1), 1, atol=1e-5)


def test_every_filter_has_the_recall_of_far_queries(bench: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.index, "FILTERED_QUERIES", 5)
    monkeypatch.setattr(bench.index, "SHARES", (0.1, 1.0))
    data, ours = bench.index_data.clustered(600, 10), bench.index_peers.Uniecs("float32")
    ours.add(data.vectors, 0, 1)
    lines = bench.index.filtered({ours.name: ours}, data, 1, 1)
    assert [(line["share"], line["own_far_recall"]) for line in lines] == [(0.1, 1.0)] * 2 + [(1.0, 1.0)] * 2


def test_clustered_vectors_are_units_and_the_same_each_time(bench: SimpleNamespace) -> None:
    one, other = (bench.index_data.clustered(300, 20) for _ in range(2))
    assert one.vectors.shape == (300, 256) and one.queries.shape == (20, 256)
    assert np.allclose(np.linalg.norm(one.vectors, axis=1), 1, atol=1e-5)
    assert np.array_equal(one.vectors, other.vectors)


def test_turns_change_who_is_first(bench: SimpleNamespace) -> None:
    order: list[str] = []
    turns = {name: lambda name=name: order.append(name) for name in "abc"}
    assert set(bench.index.by_turns(turns, 3, 1)) == set("abc")
    assert "".join(order) == "abcbcacab"


def test_our_graph_as_a_contender(bench: SimpleNamespace) -> None:
    data = bench.index_data.clustered(600, 10)
    ours = bench.index_peers.Uniecs("float32")
    ours.add(data.vectors[:200], 0, 1)
    ours.add(data.vectors[200:], 200, 1)
    worst = bench.index_data.worst_wanted(data.vectors, data.queries)
    for ef in (0, 64):
        assert bench.index_data.recall(ours.search(data.queries, ef, 1), data.vectors, data.queries, worst) > 0.95
    mask = np.arange(600) % 7 == 0
    worst = bench.index_data.worst_wanted(data.vectors, data.queries, mask)
    for ef in (0, 64):
        found = ours.filtered(mask)(data.queries, ef, 1)
        assert bench.index_data.recall(found, data.vectors, data.queries, worst, mask) > 0.95
    assert ours.bytes() > 600 * 256 * 4


def test_embeddings_are_looked_up_by_number(bench: SimpleNamespace) -> None:
    data = bench.index_data.clustered(20, 5)
    encoder = bench.index_engine.GivenVectors(data.vectors, data.queries)
    title = bench.index_engine.product(7).title
    found = encoder.encode([title, "query 3"], [None, None], errors="return").embeddings
    assert np.array_equal(found, np.stack([data.vectors[7], data.queries[3]]))


def test_goals_are_ratios_of_the_same_run(bench: SimpleNamespace) -> None:
    def line(ours: float, faiss: float) -> dict[str, Any]:
        at = {"uniecs float32": (0.95, ours), "faiss": (0.95, faiss)}
        return {
            "kind": "random",
            "share": 0.1,
            "own": {"recall": 0.94, "qps": ours},
            "at_0.95": {name: {"recall": recall, "qps": qps} for name, (recall, qps) in at.items()},
            "at_own": {"faiss": {"recall": 0.94, "qps": faiss / 2}},
            "trial": {"faiss": {"recall": 0.99, "qps": faiss / 4}},
            "all_threads_qps": {"uniecs float32": ours, "faiss": faiss / 8},
        }

    report = {"sets": {"some": {"filtered": [line(200.0, 100.0)]}}, "add": {"per_s": {"engine, full": 4000.0}}}
    verdicts = {goal.what: (goal.value, goal.met()) for goal in bench.index.goals(report)}
    assert verdicts["some: random 10.00%, recall@10 of our plan"] == (0.94, False)
    assert verdicts["some: random 10.00%, QPS of our plan to faiss's of recall 0.950"] == (2.0, True)
    assert verdicts["some: random 10.00%, QPS of our plan to faiss's of our recall (0.940)"] == (4.0, True)
    assert verdicts["some: random 10.00%, QPS of our plan to faiss's at ef 128 (0.990)"] == (8.0, True)
    what = "some: random 10.00%, with all threads, QPS of our plan to faiss's at ef 128"
    assert verdicts[what] == (16.0, True)
    assert verdicts["durable add, products a second: engine, full"] == (4000.0, False)
    assert not any("hnswlib" in what for what in verdicts)
