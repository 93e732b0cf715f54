"""The parts of `index.py` about the whole: an index folder, its engine, durable changes, searches beside them."""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
from index_data import DIM, Dataset, Vectors
from store import drawn, put_all

from uniecs.catalog import Product
from uniecs.database import Durability
from uniecs.encoder import Encoder, EncodeResult
from uniecs.engine import CHUNK, SearchEngine
from uniecs.index_folder import BundleReference, IndexConfig
from uniecs.local_index import LocalIndex
from uniecs.store import Store

VIEW = "multimodal"
MODEL = "given"
BATCH = CHUNK
FILL = 2048
ADDED = 10_000
CALLS = 1000
BLOCK_S = 2.0  # searches go on so long, before the other case has its turn


class GivenVectors:
    """An encoder that looks its embeddings up by the number at the end of a text: of a product, or a "query"."""

    model_id, embed_dim, bundle = MODEL, DIM, SimpleNamespace(path=Path("/given"))

    def __init__(self, products: Vectors, queries: Vectors) -> None:
        self._products, self._queries, self.seconds = products, queries, 0.0

    def encode(self, texts: Iterable[str], images: Iterable[Any], *, errors: str) -> EncodeResult:
        """As `Encoder.encode`; its time is added to `seconds`."""
        start = time.perf_counter()
        found = np.stack([self._vector(text) for text in texts])
        self.seconds += time.perf_counter() - start
        return EncodeResult(found, {})

    def _vector(self, text: str) -> Vectors:
        number = int(text.rsplit(" ", 1)[1])
        among = self._queries if text.startswith("query") else self._products
        vector: Vectors = among[number % len(among)]
        return vector


def product(number: int) -> Product:
    """As `store.drawn`, without an image: the fake encoder opens none."""
    made = drawn(number)
    return Product(made.id, made.title, None, made.attributes)


def near(vectors: Vectors, count: int, seed: int = 9) -> Vectors:
    """New vectors, each near one of `vectors`."""
    random = np.random.default_rng(seed)
    made = vectors[random.integers(len(vectors), size=count)]
    made = made + np.float32(0.03) * random.standard_normal(made.shape, dtype=np.float32)
    return np.asarray(made / np.linalg.norm(made, axis=1, keepdims=True), np.float32)


def fill(folder: Path, vectors: Vectors) -> Store:
    """A new store of one product for each vector, rows from 1 in their order; no graph yet."""
    store = Store.create(
        folder,
        model_id=MODEL,
        embed_dim=DIM,
        bundle=BundleReference(path="/given"),
        config=IndexConfig(),
        durability="batch",
    )
    for start in range(0, len(vectors), FILL):
        numbers = range(start, min(start + FILL, len(vectors)))
        store.put([(product(number), {VIEW: vectors[number]}) for number in numbers])
    store.checkpoint()
    return store


def rescoring(folder: Path, store: Store) -> Any:
    """`LocalIndex`'s own second scoring, by the store's vectors, without graphs of its own."""
    index = LocalIndex(folder, store)

    def rescore(queries: Vectors, rows: Any) -> Any:
        return index._rescored(VIEW, queries, rows, 10)[0]

    return rescore


def forget_pages(folder: Path) -> None:
    """Have the system forget the files' contents, as far as nobody has them open."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def opening(folder: Path, encoder: GivenVectors, rounds: int) -> dict[str, Any]:
    """Seconds: to make the graph from the store, to write its snapshot, and to open with it, files cached or not."""
    start = time.perf_counter()
    engine = SearchEngine.open(folder, cast(Encoder, encoder), durability="batch")
    rebuilt = time.perf_counter() - start
    start = time.perf_counter()
    engine.save()
    saved = time.perf_counter() - start
    engine.close()
    taken: dict[str, list[float]] = {"cached": [], "not cached": []}
    for _ in range(rounds):
        for name, seconds in taken.items():
            if name == "not cached":
                forget_pages(folder)
            start = time.perf_counter()
            engine = SearchEngine.open(folder, cast(Encoder, encoder))
            seconds.append(time.perf_counter() - start)
            engine.close()
    snapshot = (folder / f"graph-{VIEW}.hnsw").stat().st_size
    store_bytes = (folder / "store.sqlite").stat().st_size
    return {
        "rebuild_s": rebuilt,
        "save_s": saved,
        "open_s": {name: statistics.median(seconds) for name, seconds in taken.items()},
        "snapshot_bytes": snapshot,
        "store_bytes": store_bytes,
    }


def overhead(engine: SearchEngine, queries: Vectors) -> dict[str, float]:
    """Median microseconds of `engine.search` beyond the graph's own search of the same query, embedded before.

    The products found are in the store's cache, or read from the file. The graph is searched before and after, and the
    mean of both taken off: each search finds the graph's memory a little warmer than the one before.
    """
    index = cast(LocalIndex, engine._index)
    graph, store = index._graphs[VIEW], index._store
    beyond: dict[str, list[float]] = {"cached": [], "not cached": []}
    alone: list[float] = []

    def seconds(search: Callable[..., object], *arguments: Any) -> float:
        start = time.perf_counter()
        search(*arguments)
        return time.perf_counter() - start

    for call in range(CALLS):
        text, query = f"query {call % len(queries)}", queries[call % len(queries)][np.newaxis]
        for name, times in beyond.items():
            engine.search(text)
            before = seconds(graph.search, query, 10)
            if name == "not cached":
                store._cache.clear()
            whole, after = seconds(engine.search, text), seconds(graph.search, query, 10)
            times.append(whole - (before + after) / 2)
            alone += [before, after]
    return {
        "graph_us": statistics.median(alone) * 1e6,
        **{f"beyond_us, products {name}": statistics.median(times) * 1e6 for name, times in beyond.items()},
    }


def searched(engine: SearchEngine, queries: int, threads: int, seconds: float) -> list[float]:
    """Seconds of each search of `threads` threads that search without a pause."""
    end, taken = time.perf_counter() + seconds, list[list[float]]()

    def search(thread: int, times: list[float]) -> None:
        call = thread
        while (start := time.perf_counter()) < end:
            engine.search(f"query {call % queries}")
            times.append(time.perf_counter() - start)
            call += 7

    running = []
    for thread in range(threads):
        taken.append([])
        running.append(threading.Thread(target=search, args=(thread, taken[-1])))
        running[-1].start()
    for each in running:
        each.join()
    return [seconds for times in taken for seconds in times]


def beside_changes(engine: SearchEngine, queries: int, products: Iterator[Product], rounds: int) -> dict[str, Any]:
    """Search times idle and during a bulk add by another thread, by turns; ratios are medians over rounds.

    The products are made beforehand: to make them would be the adding thread's share of Python. Raises `RuntimeError`
    if they do not last: what is then measured is no bulk add.
    """
    for query in range(queries):
        engine.search(f"query {query}")  # embeds it
    found: dict[str, Any] = {}
    for threads in (1, 2):
        figures: dict[str, list[dict[str, float]]] = {"idle": [], "adding": []}
        added, adding_s = 0, 0.0
        for _ in range(rounds):
            figures["idle"].append(spread(searched(engine, queries, threads, BLOCK_S)))
            stop, count = threading.Event(), [0]

            def add(stop: threading.Event = stop, count: list[int] = count) -> None:
                while not stop.is_set():
                    count[0] += engine.add(list(islice(products, 5 * BATCH))).added

            adder = threading.Thread(target=add)
            start = time.perf_counter()
            adder.start()
            figures["adding"].append(spread(searched(engine, queries, threads, BLOCK_S)))
            stop.set()
            adder.join()
            if next(products, None) is None:
                raise RuntimeError("the products to add beside searches have run out")
            added, adding_s = added + count[0], adding_s + time.perf_counter() - start
        found[f"{threads} searching"] = {
            **{
                state: {key: statistics.median(each[key] for each in of) for key in of[0]}
                for state, of in figures.items()
            },
            **{
                f"{key}_ratio": statistics.median(
                    busy[key] / idle[key] for idle, busy in zip(figures["idle"], figures["adding"], strict=True)
                )
                for key in ("p50_us", "p99_us")
            },
            "added_per_s": added / adding_s,
        }
    return found


def spread(seconds: list[float]) -> dict[str, float]:
    """p50 and p99 in microseconds, and how many a second."""
    return {
        **{f"p{q}_us": float(np.percentile(seconds, q)) * 1e6 for q in (50, 99)},
        "per_s": len(seconds) / BLOCK_S,
    }


def adding(folder: Path, data: Dataset, rounds: int) -> dict[str, Any]:
    """Durable products a second, by turns: of `Store.put`, and of the whole `SearchEngine.add` but the encoder's time.

    Where that goes: the store's share and the graph's, of the last round.
    """
    kinds: tuple[Durability, ...] = ("full", "batch")
    rates: dict[str, list[float]] = {f"{what}, {kind}": [] for kind in kinds for what in ("store", "engine")}
    shares: dict[str, float] = {}
    for turn in range(rounds):
        for kind in kinds:
            place = folder / f"{turn}-{kind}"
            bundle = BundleReference(path="/given")
            store = Store.create(
                place / "store", model_id=MODEL, embed_dim=DIM, bundle=bundle, config=IndexConfig(), durability=kind
            )
            rates[f"store, {kind}"].append(put_all(store, ADDED, BATCH))
            store.close()
            encoder = GivenVectors(data.vectors, data.queries)
            engine = SearchEngine.create(place / "engine", cast(Encoder, encoder), durability=kind)
            products = [product(number) for number in range(ADDED)]
            index = cast(LocalIndex, engine._index)
            timed = Timed(index._store, "put"), Timed(index, "_show")
            start = time.perf_counter()
            engine.add(products)
            spent = time.perf_counter() - start - encoder.seconds
            rates[f"engine, {kind}"].append(ADDED / spent)
            shares |= {
                f"{name}, {kind}": each.seconds / spent for name, each in zip(("store", "graph"), timed, strict=True)
            }
            engine.close()
    return {"per_s": {name: statistics.median(each) for name, each in rates.items()}, "share": shares}


class Timed:
    """Adds up the time in a method of an object."""

    def __init__(self, of: object, method: str) -> None:
        self.seconds, inner = 0.0, getattr(of, method)

        def run(*given: Any, **named: Any) -> Any:
            start = time.perf_counter()
            try:
                return inner(*given, **named)
            finally:
                self.seconds += time.perf_counter() - start

        setattr(of, method, run)


def row_sets(rows: int, rounds: int) -> dict[str, dict[str, dict[str, float]]]:
    """Median microseconds of set operations on two random sets, by share of the rows, operation and structure."""
    from uniecs._core import RowSet

    random = np.random.default_rng(0)
    found: dict[str, dict[str, dict[str, float]]] = {}
    for share in (0.01, 0.1, 0.5):
        masks = [random.random(rows + 1) < share for _ in range(2)]
        for mask in masks:
            mask[0] = False
        places = [np.flatnonzero(mask) for mask in masks]
        a, b = (RowSet(each.astype(np.uint64)) for each in places)
        words = -(-(rows + 1) // 64) * 64
        p, q = (np.packbits(np.pad(mask, (0, words - rows - 1)), bitorder="little").view(np.uint64) for mask in masks)
        turns: dict[str, dict[str, Any]] = {
            "and": {"RowSet": lambda a=a, b=b: a & b, "NumPy bits": lambda p=p, q=q: p & q},
            "or": {"RowSet": lambda a=a, b=b: a | b, "NumPy bits": lambda p=p, q=q: p | q},
            "not": {"RowSet": lambda a=a: a.complement(rows), "NumPy bits": lambda p=p: ~p},
            "count": {"RowSet": lambda a=a: len(a), "NumPy bits": lambda p=p: int(np.bitwise_count(p).sum())},
        }
        try:
            from pyroaring import BitMap
        except ImportError as error:
            print(f"  left out: pyroaring: {error}", flush=True)
        else:
            x, y = (BitMap(each.astype(np.uint32)) for each in places)
            turns["and"]["pyroaring"] = lambda x=x, y=y: x & y
            turns["or"]["pyroaring"] = lambda x=x, y=y: x | y
            turns["not"]["pyroaring"] = lambda x=x: x.flip(1, rows + 1)
            turns["count"]["pyroaring"] = lambda x=x: len(x)
        found[f"{share:.0%}"] = {operation: by_turns_us(each, rounds) for operation, each in turns.items()}
    return found


def by_turns_us(turns: dict[str, Any], rounds: int) -> dict[str, float]:
    """Median microseconds of each by turns, ten calls a turn."""
    taken: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(10 * rounds):
        for name, run in turns.items():
            start = time.perf_counter()
            for _ in range(10):
                run()
            taken[name].append((time.perf_counter() - start) / 10)
    return {name: statistics.median(each) * 1e6 for name, each in taken.items()}
