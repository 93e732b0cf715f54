"""Searches beside changes, in one process: each answer is one that was right at some moment of the call."""

from __future__ import annotations

import random
import runpy
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from uniecs.catalog import Product
from uniecs.engine import SearchEngine
from uniecs.errors import InputError
from uniecs.filter_sets import FilterSets
from uniecs.filters import OneOf, matches, parse_where

SHOP = runpy.run_path(str(Path(__file__).with_name("index_shop.py")))
product, fake, WHERES, WORDS = (SHOP[name] for name in ("product", "fake", "WHERES", "WORDS"))
TOLERANCE: float = SHOP["TOLERANCE"]
QUERIES = [*WORDS, "v1 red", "v2 hat", "v3"]
FOR_EVER = float("inf")


@pytest.fixture(autouse=True)
def hectic() -> Iterator[None]:
    """Threads change places often."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-4)
    yield
    sys.setswitchinterval(before)


@dataclass
class Version:
    """A version of a product, and when the calls that made it and ended it began and returned."""

    product: Product
    born: tuple[float, float]
    gone: tuple[float, float] = (FOR_EVER, FOR_EVER)


@dataclass(frozen=True)
class Answer:
    """What a search gave: (id, version, score) of each hit."""

    began: float
    ended: float
    text: str
    where: dict[str, Any] | None
    k: int
    hits: list[tuple[str, int, float]]


class Writer:
    """Changes products, and keeps a history of them. An id that was deleted never comes again."""

    def __init__(self, engine: SearchEngine, size: int, seed: int) -> None:
        self.engine, self.size, self.draw = engine, size, random.Random(seed)
        self.history: list[Version] = []
        self.now: dict[str, Version] = {}
        self.version = 0
        while len(self.now) < size:
            self.put(engine.add, [f"{self.version}-{number}" for number in range(min(64, size))])

    def put(self, call: Callable[[Any], Any], ids: list[str]) -> None:
        self.version += 1
        products = [product(id, self.version) for id in ids]
        began = time.perf_counter()
        assert call(products).added == len(ids)
        span = began, time.perf_counter()
        for each in products:
            if each.id in self.now:
                self.now[each.id].gone = span
            self.now[each.id] = Version(each, span)
            self.history.append(self.now[each.id])

    def change(self) -> None:
        ids = self.draw.sample(sorted(self.now), self.draw.choice([1, 5, 60]))
        kind = self.draw.choice(["add", "update", "update", "update", "delete", "save", "compact"])
        if kind == "update":
            self.put(self.engine.update, ids)
        elif kind in ("add", "delete") and len(self.now) <= self.size:
            self.put(self.engine.add, [f"{self.version}+{number}" for number in range(len(ids))])
        elif kind in ("add", "delete"):
            began = time.perf_counter()
            self.engine.delete(ids)
            for id in ids:
                self.now.pop(id).gone = began, time.perf_counter()
        elif kind == "save" or self.draw.random() < 0.3:
            getattr(self.engine, kind)()


def search_for_ever(engine: SearchEngine, stop: threading.Event, seed: int) -> list[Answer]:
    draw, answers = random.Random(seed), list[Answer]()
    while not stop.is_set():
        text, k = draw.choice(QUERIES), draw.choice([1, 10, 40])
        # Some filters were never asked for before: their sets of rows are made beside the changes.
        where = draw.choice([None, *WHERES, {"price": (draw.randrange(60), draw.randrange(60, 99))}])
        began = time.perf_counter()
        hits = engine.search(text=text, k=k, where=where)
        ended = time.perf_counter()
        found = [(hit.id, int(str(hit.product.attributes["version"])), hit.score) for hit in hits]
        answers.append(Answer(began, ended, text, where, k, found))
    return answers


class Check:
    """The history of all products in arrays, to hold answers against."""

    def __init__(self, history: list[Version]) -> None:
        self.place = {(v.product.id, v.product.attributes["version"]): n for n, v in enumerate(history)}
        self.passed: dict[str, Any] = {}
        self.attributes = [v.product.attributes for v in history]
        numbers = {id: n for n, id in enumerate(dict.fromkeys(v.product.id for v in history))}
        self.number = np.array([numbers[v.product.id] for v in history])
        self.born_from, self.born_to = (np.array([v.born[end] for v in history]) for end in (0, 1))
        self.gone_from, self.gone_to = (np.array([v.gone[end] for v in history]) for end in (0, 1))
        self.first, self.last = np.full(len(numbers), FOR_EVER), np.zeros(len(numbers))
        np.minimum.at(self.first, self.number, self.born_to)
        np.maximum.at(self.last, self.number, self.gone_from)
        titles = [v.product.title for v in history]
        self.vectors = fake().encode(titles, [None] * len(titles), errors="return").embeddings
        queries = fake().encode(QUERIES, [None] * len(QUERIES), errors="return").embeddings
        self.scores = dict(zip(QUERIES, queries @ self.vectors.T, strict=True))

    def passing(self, where: dict[str, Any] | None) -> Any:
        """Whether each version matches."""
        key = repr(where)
        if key not in self.passed:
            wanted = parse_where(where or {})
            self.passed[key] = np.array([matches(wanted, each) for each in self.attributes])
        return self.passed[key]

    def answer(self, answer: Answer, exact: bool) -> None:
        """Asserts that it is right; with `exact`, or where few match, that it lacks nothing better."""
        ids = [id for id, _, _ in answer.hits]
        assert len(set(ids)) == len(ids) <= answer.k, answer
        passes = self.passing(answer.where)
        possible = (self.born_from <= answer.ended) & (self.gone_to >= answer.began)
        scores = self.scores[answer.text]
        for id, version, score in answer.hits:
            place = self.place[id, version]
            assert possible[place] and passes[place], (id, version, answer)
            assert abs(scores[place] - score) < TOLERANCE, (id, version, answer)
        # Ids that were there all the time, each with the least that any version of it could have scored.
        least = np.full(len(self.first), FOR_EVER)
        at = np.flatnonzero(possible)
        np.minimum.at(least, self.number[at], np.where(passes, scores, -FOR_EVER)[at])
        least[(self.first > answer.began) | (self.last < answer.ended)] = -FOR_EVER
        assert len(ids) >= min(answer.k, np.sum(least > -FOR_EVER)), answer
        if exact or np.sum(passes & possible) < 1500:  # as the planner compares them all
            bar = answer.hits[-1][2] if len(ids) == answer.k else -2.0
            missing = set(np.flatnonzero(least > bar + TOLERANCE).tolist())
            missing -= {int(self.number[self.place[id, version]]) for id, version, _ in answer.hits}
            assert not missing, (missing, bar, answer)


def run(folder: Path, storage: str, size: int, seconds: float, threads: int = 4, seed: int = 0) -> str:
    """Search and change for so long; returns what happened, in words."""
    engine = SearchEngine.create(folder, fake(), views=("text",), storage=storage, durability="batch")
    writer = Writer(engine, size, seed)
    stop, until, changes = threading.Event(), time.monotonic() + seconds, 0
    with ThreadPoolExecutor(threads) as pool:
        searching = [pool.submit(search_for_ever, engine, stop, seed + 1 + n) for n in range(threads)]
        try:
            while time.monotonic() < until and not any(each.done() for each in searching):
                writer.change()
                changes += 1
        finally:
            stop.set()
        answers = [answer for each in searching for answer in each.result()]
    check = Check(writer.history)
    for answer in answers:
        check.answer(answer, exact=size < 2000)
    report = engine.verify(100)
    assert report["recall_at_10"]["text"] >= 0.95 and len(engine) == len(writer.now)
    engine.close()
    return (
        f"{storage}, {size} products: {len(answers)} searches beside {changes} changes ({len(check.number)} versions)"
    )


@pytest.mark.parametrize(("storage", "size"), [("float32", 300), ("int8", 300), ("float32", 2600)])
def test_each_answer_is_one_that_was_right(tmp_path: Path, storage: str, size: int) -> None:
    print(run(tmp_path / "i", storage, size, seconds=4))


def test_the_check_can_fail() -> None:
    history = [Version(product(str(n), 1), (0.0, 1.0)) for n in range(20)]
    check = Check(history)
    order = np.argsort(-check.scores["v3"])
    hits = [(str(n), 1, float(check.scores["v3"][n])) for n in order[:5]]
    check.answer(Answer(2, 3, "v3", None, 5, hits), exact=True)
    for wrong in (
        hits[1:],
        hits[:4],
        [hits[0], *hits[:4]],
        [*hits[:4], (str(order[9]), 1, float(check.scores["v3"][9]))],
    ):
        with pytest.raises(AssertionError):
            check.answer(Answer(2, 3, "v3", None, 5, wrong), exact=True)
    history[order[0]].gone = (1.2, 1.4)
    with pytest.raises(AssertionError):
        Check(history).answer(Answer(2, 3, "v3", None, 5, hits), exact=True)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[SearchEngine]:
    """100 products, of which those of kind x are all alike."""
    engine = SearchEngine.create(tmp_path / "i", fake(), views=("text",))
    engine.add([Product(str(n), f"shirt {n}", None, {"kind": "xy"[n % 2], "n": n}) for n in range(100)])
    yield engine
    engine.close()


def test_a_filter_first_asked_for_between_store_and_graph(
    engine: SearchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rows are those of the store: it must not be used for the graph of before."""
    index: Any = engine._index
    stored, go_on, show = threading.Event(), threading.Event(), index._show

    def slow(*arguments: Any) -> None:
        stored.set()
        go_on.wait(30)
        show(*arguments)

    monkeypatch.setattr(index, "_show", slow)
    with ThreadPoolExecutor(2) as pool:
        changing = pool.submit(engine.update, [Product(str(n), f"shirt {n}", None, {"n": n}) for n in range(50)])
        assert stored.wait(30)
        searching = pool.submit(engine.search, text="shirt", k=100, where={"n": (0, None)})
        time.sleep(0.05)
        go_on.set()
        assert len(searching.result(30)) == 100 and changing.result(30).added == 50


def test_a_graph_is_swapped_only_once_it_is_whole(engine: SearchEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    index: Any = engine._index
    built, catch_up, seen = index._built, index._catch_up, list[str]()

    def build(*arguments: Any) -> Any:
        made = built(*arguments)
        engine.add([Product("new", "zebra")])
        return made

    def watched(*arguments: Any, **options: Any) -> Any:
        seen.append(engine.search(text="zebra", k=1)[0].id)
        return catch_up(*arguments, **options)

    monkeypatch.setattr(index, "_built", build)
    monkeypatch.setattr(index, "_catch_up", watched)
    engine.compact()
    assert seen == ["new"] and engine.search(text="zebra", k=1)[0].id == "new"


def test_a_change_cut_off_after_the_graph_took_it(engine: SearchEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    index: Any = engine._index
    show = index._show

    def cut_off(*arguments: Any) -> None:
        reached = dict(index._reached)
        show(*arguments)
        index._reached = reached
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(index, "_show", cut_off)
        with pytest.raises(KeyboardInterrupt):
            engine.add([Product("z", "zebra")])
    engine.add([Product("y", "yak")])
    assert [engine.search(text=text, k=1)[0].id for text in ("zebra", "yak")] == ["z", "y"]


def test_similar_to_a_product_that_is_replaced_meanwhile(engine: SearchEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    store: Any = engine._index._store  # type: ignore[attr-defined]
    row_of = store.row_of

    def replaced(id: str) -> int | None:
        row: int | None = row_of(id)
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(engine.update, [Product(id, f"shirt {id}", None, {"n": 0})]).result(30).added == 1
        return row

    monkeypatch.setattr(store, "row_of", replaced)
    assert len(engine.similar("7", k=5)) == 5


def test_closed_while_it_is_searched(engine: SearchEngine) -> None:
    def search() -> int:
        for n in range(1_000_000):
            try:
                assert len(engine.search(text="shirt", k=3, where={"kind": "x"} if n % 2 else None)) == 3
            except InputError as error:
                assert "closed" in str(error)
                return n
        raise AssertionError("it was never closed")

    with ThreadPoolExecutor(4) as pool:
        searching = [pool.submit(search) for _ in range(4)]
        time.sleep(0.1)
        engine.close()
        assert all(each.result(30) >= 0 for each in searching)


def test_a_set_of_rows_made_before_all_were_forgotten_is_not_kept() -> None:
    asked = []

    def rows_matching(predicate: object) -> Any:
        asked.append(predicate)
        if len(asked) == 1:
            sets.forget(2)  # what is returned is of before
            return np.array([1], np.int64)
        return np.array([1, 2], np.int64)

    sets = FilterSets(rows_matching)
    assert sets.find(OneOf("a", (1,)))[1] == 1
    assert sets.find(OneOf("a", (1,)))[1] == sets.find(OneOf("a", (1,)))[1] == len(asked) == 2
