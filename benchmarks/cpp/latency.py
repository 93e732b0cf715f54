"""A search from string or JPEG to hits, in C++ and in Python: the same bundle, the same index, by turns.

    cmake -S sdk/cpp -B build -DUNIECS_SDK=ON -DUNIECS_BENCHMARKS=ON ...      # docs/cpp.md
    python benchmarks/cpp/latency.py --program build/latency [--bundle mini --bundle FOLDER] [--out FILE.json]

Each language has a process of its own, and both answer the same queries, one after the other, in an order that changes
each round; what they find is compared. Queries are a text of 16 tokens, a JPEG of 750 x 1000 px, and both; Python's
cache of queries is off. `engine` is what is spent in OpenVINO's runs, with their tensors, and in what the core computes
of few tokens: in C++ the calls of an infer request, of `BertEncoder` and of `ItemFusion`, in Python `Backend.run`,
which makes those calls; `outside` is the rest. Of it, `pixels` is from JPEG to pixel_values, and `graph` the search of
the index core, the same code in both; `own` is what remains. Times `cpu` are those of the thread that searches on its
CPU: other processes lengthen them little. p99 of 300 rounds is the third slowest. Needs a machine that does nothing
else.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from encode import Goal

KINDS = ("text", "image", "both")
SIDES = ("c++", "python")
TOKENS, TEXTS, PHOTO_WIDTH_PX, PHOTOS = 16, 64, 750, 8
PAUSE_S = 0.01  # what one side's threads may spin after its turn is not the other's time
WARM_UP = 5
PARTS = ("engine", "outside", "pixels", "graph", "own")
SCORE_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Spent:
    """Milliseconds by the clock, and of the searching thread on a CPU."""

    wall: float
    cpu: float

    def __sub__(self, other: Spent) -> Spent:
        return Spent(self.wall - other.wall, self.cpu - other.cpu)


@dataclass(frozen=True)
class Answer:
    """One search: the time of it whole, and of its parts; and what was found."""

    whole: Spent
    engine: Spent
    pixels: Spent
    graph: Spent
    hits: dict[str, float]

    @property
    def outside(self) -> Spent:
        """What is not the engine."""
        return self.whole - self.engine

    @property
    def own(self) -> Spent:
        """What is neither the engine nor the decoding nor the index core."""
        return self.outside - self.pixels - self.graph


class Side:
    """A process that answers a line TEXT<TAB>PATH with a line of times and hits."""

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        pipes: tuple[Any, Any] = self._process.stdin, self._process.stdout
        self._input, self._output = pipes
        if self._line() != "ready":
            raise RuntimeError(f"{command[0]} did not start")

    def _line(self) -> str:
        return str(self._output.readline()).rstrip("\n")

    def ask(self, text: str, path: str) -> Answer:
        """Search; either may be empty."""
        self._input.write(f"{text}\t{path}\n")
        self._input.flush()
        if not (line := self._line()):
            raise RuntimeError("a process ended before its answer")
        words = line.split()
        ms = [int(word) / 1e6 for word in words[:8]]
        scores = dict(word.rsplit("=", 1) for word in words[8:])
        whole, engine, pixels, graph = (Spent(*ms[at : at + 2]) for at in range(0, 8, 2))
        return Answer(whole, engine, pixels, graph, {id: float(score) for id, score in scores.items()})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.communicate()


class Timer:
    """Adds up the nanoseconds within calls of the functions that it wraps."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, timed."""

        def timed(*arguments: Any, **named: Any) -> Any:
            wall, cpu = time.perf_counter_ns(), time.thread_time_ns()
            try:
                return function(*arguments, **named)
            finally:
                self.cpu += time.thread_time_ns() - cpu
                self.wall += time.perf_counter_ns() - wall

        return timed


def serve(bundle: str, index: str, threads: int) -> None:
    """Python's side."""
    import uniecs
    import uniecs.encoder
    from uniecs._core import Graph

    encoder = uniecs.load(bundle, threads=threads, precision="fp32", backend="openvino")
    whole, engine, pixels, graph = timers = tuple(Timer() for _ in range(4))
    backend: Any = encoder._backend
    backend.run = engine.around(backend.run)
    module: Any = uniecs.encoder
    module.pixel_values = pixels.around(module.pixel_values)
    core: Any = Graph
    core.search = graph.around(core.search)
    search = whole.around(uniecs.SearchEngine.open(index, encoder, query_cache=0).search)
    photos: dict[str, bytes] = {"": b""}
    print("ready", flush=True)
    for line in sys.stdin:
        text, path = line.rstrip("\n").split("\t")
        if path not in photos:
            photos[path] = Path(path).read_bytes()
        for each in timers:
            each.wall = each.cpu = 0
        hits = search(text or None, photos[path] or None)
        times = (f"{each.wall} {each.cpu}" for each in timers)
        print(*times, *(f"{hit.id}={hit.score:.6f}" for hit in hits), flush=True)


def queries(texts: Sequence[str], photos: Sequence[str]) -> Iterator[dict[str, tuple[str, str]]]:
    """For each round a text and a path of each kind."""
    for text, photo in zip(itertools.cycle(texts), itertools.cycle(photos), strict=False):
        yield {"text": (text, ""), "image": ("", photo), "both": (text, photo)}


def same(answers: Mapping[str, Answer]) -> bool:
    """Whether both found the same products, with the same scores but for rounding."""
    found, expected = (answers[side].hits for side in SIDES)
    return found.keys() == expected.keys() and all(abs(found[id] - expected[id]) <= SCORE_TOLERANCE for id in found)


def measure(sides: Mapping[str, Side], texts: Sequence[str], photos: Sequence[str], rounds: int) -> dict[str, Any]:
    """For each kind of query the figures of both sides."""
    answers: dict[str, dict[str, list[Answer]]] = {kind: {side: [] for side in SIDES} for kind in KINDS}
    different = 0
    for turn, asked in enumerate(itertools.islice(queries(texts, photos), rounds + WARM_UP)):
        for kind in KINDS:
            given = {}
            for side in SIDES[:: 1 if turn % 2 else -1]:
                time.sleep(PAUSE_S)
                given[side] = sides[side].ask(*asked[kind])
            if not same(given):
                different += 1
            if turn >= WARM_UP:
                for side in SIDES:
                    answers[kind][side].append(given[side])
    return {"different_hits": different} | {
        kind: {side: figures(each) for side, each in of_kind.items()} for kind, of_kind in answers.items()
    }


def figures(answers: Sequence[Answer]) -> dict[str, float]:
    """Medians and the 99th percentile in milliseconds, and the share of a search that is outside the engine."""
    whole = [each.whole.wall for each in answers]
    found = {
        "p50_ms": float(np.median(whole)),
        "p99_ms": float(np.percentile(whole, 99)),
        "outside_p99_ms": float(np.percentile([each.outside.wall for each in answers], 99)),
        "outside_share": float(np.median([each.outside.wall / each.whole.wall for each in answers])),
    }
    for part in PARTS:
        spent = [getattr(each, part) for each in answers]
        found[f"{part}_p50_ms"] = float(np.median([each.wall for each in spent]))
        found[f"{part}_cpu_p50_ms"] = float(np.median([each.cpu for each in spent]))
    return found


def goals(results: Mapping[str, Mapping[str, Any]]) -> list[Goal]:
    """Those of issue 6, and what was measured for them."""
    found = []
    for setting, measured in results.items():
        if setting.startswith("base"):
            share = measured["text"]["c++"]["outside_share"]
            found.append(Goal(f"{setting}: share of a text query outside the engine", share, 0.02, at_most=True))
        for kind in KINDS:
            for part in ("outside", "own"):
                fast, slow = (measured[kind][side][f"{part}_p50_ms"] for side in SIDES)
                found.append(Goal(f"{setting}: {part}, {kind}, against Python's", fast / slow, 0.5, at_most=True))
        found.append(Goal(f"{setting}: queries with other hits", measured["different_hits"], 0, at_most=True))
    return found


def show(setting: str, measured: Mapping[str, Any]) -> None:
    """Print the figures of one setting."""
    columns = ["p50", "p99", *(f"{part}_p50" for part in PARTS), "outside_cpu_p50", "own_cpu_p50"]
    heads = " ".join(f"{each.removesuffix('_p50') or each:>11}" for each in columns)
    print(f"\n{setting}, ms\n{'':17} {heads}  outside's share")
    for kind, side in itertools.product(KINDS, SIDES):
        each = measured[kind][side]
        times = " ".join(f"{each[f'{name}_ms']:11.3f}" for name in columns)
        print(f"  {kind:6} {side:8} {times}  {each['outside_share']:8.2%}", flush=True)


def main() -> None:
    """Measure, print, and write --out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", type=Path, help="the C++ program `latency`")
    parser.add_argument("--bundle", action="append", help="mini, or a bundle folder, any number; default mini")
    parser.add_argument("--products", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--serve", nargs=3, metavar=("BUNDLE", "INDEX", "THREADS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        bundle, index, threads = options.serve
        serve(bundle, index, int(threads))
        return
    if options.program is None:
        parser.error("--program is needed")

    from uniecs.bench.machine import describe_machine, git_commit, load_average, versions
    from uniecs.bundle import locate_bundle, open_bundle

    load_before = load_average()
    results = {}
    for opened in map(open_bundle, map(locate_bundle, options.bundle or ["mini"])):
        for count in (1, 2):
            with tempfile.TemporaryDirectory() as folder:
                setting = f"{opened.manifest['name']}, {count} thread{'s'[: count - 1]}"
                results[setting] = of_bundle(opened, Path(folder), count, options)
            show(setting, results[setting])
    reached = goals(results)
    print("\n" + "\n".join(goal.line() for goal in reached))
    if options.out:
        report = {
            "machine": describe_machine(),
            "versions": versions(),
            "commit": git_commit(),
            "load_before_and_after": [load_before, load_average()],
            "products": options.products,
            "rounds": options.rounds,
            "results": results,
            "goals": [{**asdict(goal), "met": goal.met()} for goal in reached],
        }
        options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def of_bundle(bundle: Any, folder: Path, threads: int, options: argparse.Namespace) -> dict[str, Any]:
    """The figures of one bundle at a number of threads of the engine; `folder` is for the index and the photos."""
    from uniecs.bench import inputs
    from uniecs.preprocess import Tokenizer

    index = folder / "shop.uniecs"
    inputs.drawn_index(index, bundle, inputs.clustered(options.products, 0, bundle.embed_dim)[0])
    texts = inputs.texts(Tokenizer(bundle.tokenizer_json(), 64), TOKENS, TEXTS)
    photos = [folder / f"{seed}.jpg" for seed in range(PHOTOS)]
    for seed, path in enumerate(photos):
        path.write_bytes(inputs.photo(PHOTO_WIDTH_PX, seed))
    given = (str(bundle.path), str(index), str(threads))
    python = [sys.executable, str(Path(__file__).resolve()), "--serve", *given]
    with Side([str(options.program), *given]) as fast, Side(python) as slow:
        return measure(dict(zip(SIDES, (fast, slow), strict=True)), texts, list(map(str, photos)), options.rounds)


if __name__ == "__main__":
    main()
