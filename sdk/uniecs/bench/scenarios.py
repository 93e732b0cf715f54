"""What is measured: for each stage a table of cases and the call of each; nothing here looks at a clock."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from uniecs.backends.base import PRECISIONS, create_backend
from uniecs.backends.threads import usable_cpus
from uniecs.bench import floor
from uniecs.bench.inputs import QUERIES, Vectors, clustered, drawn_index, own_filter, own_queries, photo, texts
from uniecs.bench.loops import Call
from uniecs.bench.plain_engines import ENGINES, plain_encoder
from uniecs.bench.samples import Case
from uniecs.bundle import GRAPHS, Bundle
from uniecs.config import Preprocessing
from uniecs.encoder import Encoder
from uniecs.engine import SearchEngine
from uniecs.errors import BackendError, BundleError, MissingExtraError
from uniecs.filters import Filter, parse_where
from uniecs.index_folder import IndexConfig, Storage
from uniecs.local_index import SAME_SCORE, LocalIndex
from uniecs.preprocess import Tokenizer, pixel_values

if TYPE_CHECKING:
    from uniecs._core import Graph

TEXT_TOKENS, USUAL_TOKENS = (8, 16, 64), 16
PHOTOS_PX, USUAL_PX, SMALL_PX = (224, 1000, 4000), 1000, 224
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
GRAPH_BATCHES = (1, 32)
CONCURRENCY = (1, 2, 4, 8)
EFS = (0, 10, 16, 32, 64, 128, 256)
"""Breadths of the graph's search; 0 is its own choice."""
KINDS = ("text", "image", "both")
FUSIONS = {"fusion of a text": {"image_length": 1}, "fusion of an image": {"text_length": 1}}
"""How `Encoder` runs fusion where a modality is absent: one zero token stands for it."""
FILTERS: Mapping[str, Mapping[str, object]] = {"1 in 3": {"colour": "red"}, "1 in 100": {"price": (10, 11)}}
"""Of drawn products."""
LOAD_SHARES = (0.3, 0.5, 0.7, 0.8, 0.9)
"""Of what the closed loop reached: the open loop's rates where none were given."""
OPEN_WORKERS = 16
SMALL_STORAGES: tuple[Storage, ...] = ("float16", "int8")
"""Beside float32, which a drawn index has."""
VARIETY = 8
"""Different texts and photos that take turns."""
K = 10


@dataclass(frozen=True)
class Effort:
    """How much is measured: rounds, seconds of a case in a round, the largest batch, vectors of the index."""

    rounds: int = 5
    slice_s: float = 1.0
    loop_s: float = 5.0
    batch: int = 256
    vectors: int = 20_000
    product_size: int = 2048
    memory_bytes: int = 1 << 28
    compared: int = 256


QUICK = Effort(3, 0.03, 0.2, 32, 1_000, 512, 1 << 25, 24)


@dataclass(frozen=True)
class Task:
    """A case and how it is measured: `call` by a loop of the case's concurrency and rate, or by what `told` tells.

    That is seconds and resident bytes. `extra` as in `Measurement`.
    """

    case: Case
    call: Call
    told: Callable[[int], tuple[float, int | None]] | None = None
    extra: Mapping[str, float] = field(default_factory=dict)


class Bench:
    """A bundle's encoders in the precisions asked for, an index, and the inputs; what is not there is made on use."""

    def __init__(
        self, bundle: Bundle, effort: Effort, folder: Path, index: Path | None, runtime: Mapping[str, str]
    ) -> None:
        """`folder` is for what is made; `runtime` is backend, device and precision as in `uniecs.load`."""
        self.bundle, self.effort, self.runtime = bundle, effort, runtime
        self.left_out: dict[str, str] = {}
        self.folder, self._index, self._made = folder, index, dict[Any, Any]()
        self.threads = usable_cpus()
        self.tokenizer = Tokenizer(bundle.tokenizer_json(), bundle.preprocessing.max_tokens)

    @functools.cached_property
    def encoders(self) -> dict[str, Encoder]:
        """By precision: fp32 first, then what the engine has; of a given --precision fp32 and that, or its error."""
        asked, found = self.runtime["precision"], {}
        for precision in dict.fromkeys(PRECISIONS if asked == "auto" else ("fp32", asked)):
            with contextlib.nullcontext() if precision == asked else self.may_lack(precision):
                encoder = self.encoder(precision)
                encoder.encode(texts=["red kurta"])  # a precision that cannot be compiled is left out as well
                found[precision] = encoder
        if not found:
            raise BackendError(f"nothing to measure: {'; '.join(self.left_out.values())}")
        return found

    @contextlib.contextmanager
    def may_lack(self, what: str) -> Iterator[None]:
        """Note what is not available here in `left_out`, and go on."""
        try:
            yield
        except (BackendError, BundleError, MissingExtraError) as error:
            self.left_out[what] = str(error)

    def _once(self, key: tuple[object, ...], make: Callable[[], Any]) -> Any:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def encoder(self, precision: str, threads: int | None = None) -> Encoder:
        """One encoder; raises what `uniecs.load` raises."""
        backend, device = self.runtime["backend"], self.runtime["device"]

        def make() -> Encoder:
            return Encoder(self.bundle, create_backend(self.bundle, backend, device, precision, threads), threads)

        made: Encoder = self._once(("encoder", precision, threads), make)
        return made

    @property
    def main(self) -> str:
        """The precision of loops and scaling: the one asked for, or what "auto" stands for."""
        asked = self.runtime["precision"]
        return asked if asked in self.encoders else next(iter(self.encoders))

    def texts(self, tokens: int) -> list[str]:
        """`VARIETY` texts, as long as the model takes them."""
        length = min(tokens, self.bundle.preprocessing.max_tokens)
        made: list[str] = self._once(("texts", length), lambda: texts(self.tokenizer, length, VARIETY))
        return made

    def photos(self, width_px: int) -> list[bytes]:
        """`VARIETY` JPEGs; of large ones two."""
        count = VARIETY if width_px <= USUAL_PX else 2
        made: list[bytes] = self._once(("photos", width_px), lambda: [photo(width_px, seed) for seed in range(count)])
        return made

    def items(self, kind: str, batch: int, number: int, tokens: int, px: int) -> Any:
        """Arguments of `Encoder.encode`: a batch that differs from call to call."""
        words, pictures = self.texts(tokens), self.photos(px) if kind != "text" else []
        given: dict[str, Any] = {}
        if kind != "image":
            given["texts"] = [words[(number + place) % len(words)] for place in range(batch)]
        if kind != "text":
            given["images"] = [pictures[(number + place) % len(pictures)] for place in range(batch)]
        return given

    @functools.cached_property
    def vectors(self) -> tuple[Vectors, Vectors]:
        """Clustered vectors, and others to search with."""
        return clustered(self.effort.vectors, QUERIES, self.bundle.embed_dim)

    @functools.cached_property
    def queries(self) -> Vectors:
        """To search the index with: like the drawn products, or some of the index's own vectors, with noise."""
        return self.vectors[1] if self.drawn else own_queries(self.index)

    @property
    def drawn(self) -> bool:
        """Whether the index is one of drawn products."""
        return self._index is None

    @functools.cached_property
    def index_folder(self) -> Path:
        """The index asked for, or one of drawn products."""
        if self._index is not None:
            return self._index
        return self._draw("float32")

    def _draw(self, storage: Storage) -> Path:
        folder = self.folder / f"drawn-{storage}.uniecs"
        drawn_index(folder, self.bundle, self.vectors[0], storage)
        return folder

    def engine(self, precision: str) -> SearchEngine:
        """The index behind an encoder; embeddings of queries are not kept."""

        def make() -> SearchEngine:
            return SearchEngine.open(self.index_folder, self.encoders[precision], query_cache=0)

        made: SearchEngine = self._once(("engine", precision), make)
        return made

    @property
    def index(self) -> LocalIndex:
        """The same index without an encoder."""
        made: LocalIndex = self._once(("index",), lambda: LocalIndex.open(self.index_folder, "full"))
        return made

    @property
    def graph(self) -> Graph:
        """The native graph of the index's first view."""
        return self.index._graphs[self.index.config.views[0]]

    def index_in(self, storage: Storage) -> LocalIndex:
        """An index of the drawn products whose graph keeps its vectors so."""
        made: LocalIndex = self._once(("index", storage), lambda: LocalIndex.open(self._draw(storage), "full"))
        return made

    def close(self) -> None:
        """Free the indexes."""
        for key, made in self._made.items():
            if key[0] in ("engine", "index"):
                made.close()


def cold(bench: Bench) -> Iterator[Task]:
    """Fresh processes: to `import uniecs`, and to the first embedding, with graphs compiled before and without."""
    runtime = {**bench.runtime, "precision": bench.main}
    first = f"uniecs.load({str(bench.bundle.path)!r}, **{runtime!r}).encode(texts=['red kurta'])"
    cache = bench.folder / "cache"
    for what, does, cached in (
        ("import uniecs", "", ""),
        ("first text, graphs compiled before", first, str(cache)),
        ("first text, nothing compiled", first, ""),
    ):
        run = functools.partial(_fresh_process, does, cached)
        if cached:
            run(0)  # fills the cache
        yield Task(Case("cold start", what, bench.main if does else None), run, told=run)


def _fresh_process(does: str, cache: str, number: int) -> tuple[float, int | None]:
    """Seconds from the start of a process to the end of what it does, and what it then has resident."""
    told = "from uniecs.bench.machine import resident_bytes as r; print(json.dumps([end, r()]))"
    program = f"import json, time, uniecs\n{does}\nend = time.time()\n{told}"
    environment = {**os.environ, "UNIECS_CACHE": cache}
    begun = time.time()
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BackendError(f"a fresh process failed: {done.stderr.strip()[-500:]}")
    end, resident = json.loads(done.stdout)
    return end - begun, resident


def preprocessing(bench: Bench) -> Iterator[Task]:
    """Text to token ids, JPEG to pixel values; on one thread."""
    p = bench.bundle.preprocessing
    for tokens in TEXT_TOKENS:
        words = bench.texts(tokens)
        yield Task(Case("preprocess", f"text, {tokens} tokens", threads=1), _tokenizing(bench.tokenizer, words))
    for px in PHOTOS_PX:
        photos = bench.photos(px)
        yield Task(Case("preprocess", f"JPEG, {px} px", threads=1), _decoding(photos, p))


def _tokenizing(tokenizer: Tokenizer, words: Sequence[str]) -> Call:
    return lambda number: tokenizer.encode([words[number % len(words)]])


def _decoding(photos: Sequence[bytes], preprocessing: Preprocessing) -> Call:
    return lambda number: pixel_values(photos[number % len(photos)], preprocessing)


def graph_shapes(bundle: Bundle, what: str, batch: int) -> dict[str, tuple[int, ...]]:
    """Input shapes of a graph by its name, or one of `FUSIONS`: a text of 16 tokens, a whole image."""
    outputs = bundle.manifest["graphs"]["image_encoder"]["outputs"]["image_tokens"]["shape"]
    axes = {"batch": batch, "text_length": min(USUAL_TOKENS, bundle.preprocessing.max_tokens)}
    axes |= {"image_length": int(outputs[1]), **FUSIONS.get(what, {})}
    ports = bundle.manifest["graphs"][graph_of(what)]["inputs"]
    return {n: tuple(axes[s] if isinstance(s, str) else int(s) for s in port["shape"]) for n, port in ports.items()}


def graph_of(what: str) -> str:
    """The graph of a case of the stage "graph"."""
    return what.partition(" ")[0]


def graph_inputs(bundle: Bundle, what: str, batch: int) -> dict[str, Any]:
    """Random tensors of `graph_shapes`; every token counts, both modalities are there."""
    random, found = np.random.default_rng(0), dict[str, Any]()
    for name, shape in graph_shapes(bundle, what, batch).items():
        if name == "input_ids":
            found[name] = random.integers(1000, 2000, shape) % bundle.manifest["model"]["text"]["vocab_size"]
        elif name == "modality_indicator":
            found[name] = np.ones(shape, np.float32)
        elif name.endswith("mask"):
            found[name] = np.ones(shape, np.int64)
        else:
            found[name] = random.standard_normal(shape, dtype=np.float32)
    return found


def graphs(bench: Bench) -> Iterator[Task]:
    """Each graph alone; fusion of both modalities, and of one at batch 1."""
    for what in (*GRAPHS, *FUSIONS):
        for batch in GRAPH_BATCHES if what in GRAPHS else (1,):
            given = graph_inputs(bench.bundle, what, batch)
            for precision, encoder in bench.encoders.items():
                yield Task(Case("graph", what, precision, batch), _running(encoder, graph_of(what), given))


def _running(encoder: Encoder, graph: str, given: Mapping[str, Any]) -> Call:
    return lambda number: encoder._backend.run(graph, given)


def encode(bench: Bench) -> Iterator[Task]:
    """A query to its embedding: by modality, length and size."""
    sizes: list[tuple[str, str, int, int]] = []
    sizes += [("text", f"text, {tokens} tokens", tokens, USUAL_PX) for tokens in TEXT_TOKENS]
    sizes += [("image", f"image, {px} px", USUAL_TOKENS, px) for px in PHOTOS_PX]
    sizes += [("both", f"both, {USUAL_TOKENS} tokens, {USUAL_PX} px", USUAL_TOKENS, USUAL_PX)]
    for kind, what, tokens, px in sizes:
        for precision, encoder in bench.encoders.items():
            call = _encoding(bench, encoder, kind, tokens=tokens, px=px)
            yield Task(Case("encode", what, precision), call)


def batches(bench: Bench) -> Iterator[Task]:
    """Many items at once, as one batch."""
    for kind in KINDS:
        for batch in (each for each in BATCHES if each <= bench.effort.batch):
            for precision, encoder in bench.encoders.items():
                yield Task(Case("batch", kind, precision, batch), _encoding(bench, encoder, kind, batch))


def _encoding(
    bench: Bench, encoder: Encoder, kind: str, batch: int = 1, tokens: int = USUAL_TOKENS, px: int = SMALL_PX
) -> Call:
    return lambda number: encoder.encode(**bench.items(kind, batch, number, tokens, px), batch_size=batch)


def thread_counts(most: int) -> list[int]:
    """1, 2, 4 and so on, and `most`."""
    return sorted({most, *(2**power for power in range(most.bit_length()) if 2**power <= most)})


def threads(bench: Bench) -> Iterator[Task]:
    """1 to all threads."""
    if next(iter(bench.encoders.values())).device != "cpu":
        return
    for kind in ("text", "image"):
        for batch in GRAPH_BATCHES:
            for count in thread_counts(bench.threads):
                encoder = bench.encoder(bench.main, count)
                yield Task(Case("threads", kind, bench.main, batch, count), _encoding(bench, encoder, kind, batch))


def graph_of_vectors(vectors: Vectors, storage: str, threads: int) -> Graph:
    """A graph as an index builds it; rows from 1."""
    from uniecs._core import Graph

    config = IndexConfig()
    graph = Graph(vectors.shape[1], config.M, config.ef_construction, storage)
    graph.apply(np.zeros(0, np.uint64), np.arange(1, len(vectors) + 1, dtype=np.uint64), vectors, threads)
    return graph


def bytes_per_product(bench: Bench) -> dict[str, float]:
    """Of the graph in each storage, and of the store on the disk: of a drawn index, or of the one asked for."""
    some = bench.vectors[0][:2000]
    found = {}
    for storage in ("float32", *SMALL_STORAGES):
        stats = graph_of_vectors(some, storage, bench.threads).stats()
        found[f"graph {storage}"] = sum(stats[f"{part}_bytes"] for part in ("vector", "link", "other")) / len(some)
    found["store"] = (bench.index_folder / "store.sqlite").stat().st_size / max(1, len(bench.index))
    return found


def hnsw(bench: Bench) -> Iterator[Task]:
    """The index's native graph alone, one query a call on one thread, and its recall at 10: equal vectors are alike."""
    graph, queries = bench.graph, bench.queries
    least = graph.search(queries, K, strategy="exact", threads=bench.threads)[1][:, -1:] - SAME_SCORE
    for ef in EFS:
        how: dict[str, Any] = {"ef": ef, "strategy": "graph"} if ef else {}
        scores = graph.search(queries, K, **how, threads=bench.threads)[1]
        case = Case("hnsw", f"{len(graph):,} vectors", threads=1, ef=ef)
        yield Task(case, _walking(graph, queries, how), extra={"recall": float((scores >= least).mean())})


def _walking(graph: Graph, queries: Vectors, how: Mapping[str, Any]) -> Call:
    return lambda number: graph.search(queries[number % len(queries)][np.newaxis], K, **how)


def search(bench: Bench) -> Iterator[Task]:
    """The index: vectors to products, without the encoder; a drawn one also as it keeps vectors in less memory."""
    index, queries = bench.index, bench.queries
    for batch in (1, 32):
        yield _looked_up(index, queries, "no filter", None, batch)
    filters = {name: parse_where(where) for name, where in FILTERS.items()} if bench.drawn else own_filter(index)
    for name, where in filters.items():
        yield _looked_up(index, queries, f"{name} match", where, 1)
    for storage in SMALL_STORAGES if bench.drawn else ():
        yield _looked_up(bench.index_in(storage), queries, "no filter", None, 1)


def _looked_up(index: LocalIndex, vectors: Vectors, what: str, where: Filter | None, batch: int) -> Task:
    view = index.config.views[0]

    def call(number: int) -> object:
        some = np.take(vectors, range(number, number + batch), 0, mode="wrap")
        return index.search(view, some, K, where)

    return Task(Case("search", f"{len(index):,} products, {index.config.storage}, {what}", batch=batch), call)


def _query(bench: Bench, precision: str, kind: str) -> Call:
    engine = bench.engine(precision)

    def call(number: int) -> object:
        given = bench.items(kind, 1, number, USUAL_TOKENS, USUAL_PX)
        return engine.search(given.get("texts", [None])[0], given.get("images", [None])[0], K)

    return call


def end_to_end(bench: Bench) -> Iterator[Task]:
    """A query to its hits."""
    for kind in KINDS:
        for precision in bench.encoders:
            yield Task(Case("end to end", kind, precision), _query(bench, precision, kind))


def closed(bench: Bench) -> Iterator[Task]:
    """Several clients that each wait for their answer before they ask again."""
    for kind in KINDS:
        for concurrency in CONCURRENCY:
            case = Case("closed loop", kind, bench.main, concurrency=concurrency)
            yield Task(case, _query(bench, bench.main, kind))


def compare(bench: Bench) -> Iterator[Task]:
    """The same queries with the engines that are installed, as they come; beside `encode`."""
    for name in ENGINES:
        with bench.may_lack(f"{name} as it comes"):
            encoder = plain_encoder(bench.bundle, name)
            for kind in KINDS:
                call = _encoding(bench, encoder, kind, px=USUAL_PX)
                yield Task(Case("compare", f"{kind}, {name} as it comes"), call)


def open_rates(capacity: float) -> list[float]:
    """`LOAD_SHARES` of what a closed loop reached, rounded to two digits, so that runs share their rates."""
    return [float(f"{share * capacity:.2g}") for share in LOAD_SHARES]


def opened(bench: Bench, rates: Callable[[str], Sequence[float]]) -> Iterator[Task]:
    """Queries that arrive when they arrive."""
    for kind in KINDS:
        for rate in rates(kind):
            case = Case("open loop", kind, bench.main, concurrency=OPEN_WORKERS, rate=rate)
            yield Task(case, _query(bench, bench.main, kind))


def machine_floor(bench: Bench) -> Iterator[Task]:
    """The machine itself: products and memory, on all threads."""
    effort, count = bench.effort, bench.threads
    for precision in floor.PRECISIONS:
        call = floor.product(precision, effort.product_size, count)
        if call is None:
            bench.left_out[f"floor {precision}"] = f"this CPU has no {precision} arithmetic for an engine"
            continue
        operations = float(floor.product_operations(effort.product_size))
        what = f"matmul {effort.product_size}"
        yield Task(Case("floor", what, precision, threads=count), call, extra={"operations": operations})
    for what in ("read", "copy"):
        moved = float(floor.moved_bytes(what, effort.memory_bytes, count))
        call = floor.memory(what, effort.memory_bytes, count)
        yield Task(Case("floor", f"memory {what}", threads=count), call, extra={"bytes": moved})


STAGES: Mapping[str, Callable[[Bench], Iterator[Task]]] = {
    "floor": machine_floor,
    "cold": cold,
    "preprocess": preprocessing,
    "graph": graphs,
    "encode": encode,
    "batch": batches,
    "threads": threads,
    "hnsw": hnsw,
    "search": search,
    "end": end_to_end,
    "closed": closed,
    "compare": compare,
}
"""Name for --stages -> its tasks; "open" and "quality" stand beside, in run.py, and "compare" only on demand."""
