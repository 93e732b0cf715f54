r"""Search, filters, building, opening and changes of the index beside other packages: is it as fast as it should be?

    python benchmarks/index.py --parts search filter sets --out benchmarks/results/index.json
    python benchmarks/index.py --parts engine add --size mini 100000 1000000 --rounds 4 \
        --out benchmarks/results/index-engine.json
    python benchmarks/index.py --parts search filter --size 1000000 --rounds 3 \
        --out benchmarks/results/index-1000000.json
    python benchmarks/index_report.py benchmarks/results/index*.json         # tables, and plots into docs/

--size names the sets of vectors: "mini" (real products, where ../shared/data is) or a number of clustered ones. All of
one figure take turns, so that a slow moment of the machine meets all; times are medians, and what counts is ratios of
them. What one thread does is timed by its CPU time, which other processes do not lengthen, the rest by the clock. A
peer that is not installed is left out. Needs `uniecs[bench,peers]`, a machine that does nothing else, and
for a million vectors 10 GB of memory, 5 GB of disk and an hour for `search` and `filter`, 10 minutes for `engine`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
from encode import Goal
from index_data import (
    PRODUCTS,
    Dataset,
    K,
    Mask,
    Point,
    around,
    best_of,
    datasets,
    far_queries,
    nearest_to,
    qps_at,
    recall,
    selections,
    worst_wanted,
)
from index_engine import (
    GivenVectors,
    adding,
    beside_changes,
    fill,
    near,
    opening,
    overhead,
    product,
    rescoring,
    row_sets,
)
from index_peers import EF_CONSTRUCTION, PACKAGES, PEERS, Hnswlib, M, Uniecs, peers

from uniecs._core import instructions
from uniecs.bench.machine import describe_machine, versions_of
from uniecs.encoder import Encoder
from uniecs.engine import SearchEngine

EFS = (10, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
SHARES = (0.0001, 0.001, 0.01, 0.1, 0.5, 0.9, 1.0)
RECALLS = (0.95, 0.99)
ENOUGH = 0.995  # of recall: larger ef are left out
TENTHS = 10
QUERIES = 1000
FILTERED_QUERIES = 200
CALLBACK_QUERIES = 20  # hnswlib's callback is slow
CALLBACK_SHARE = 0.01  # where less matches it walks through most of the graph
TRIAL_EF = 128  # of the peers' filtered searches that the goals were set by
PRODUCTS_BESIDE = 200_000  # to add while others search: more than a run gets to
FLOAT32 = "uniecs float32"
FILTERING: Sequence[str] = ("faiss", "hnswlib")  # the peers that can filter from Python
Key = TypeVar("Key")


def by_turns(turns: Mapping[Key, Callable[[], object]], rounds: int, threads: int) -> dict[Key, float]:
    """Median seconds of each, the first to go another one in each round: CPU time if it is one thread's."""
    clock = time.thread_time if threads == 1 else time.perf_counter
    names, seconds = list(turns), {name: list[float]() for name in turns}
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = clock()
            turns[name]()
            seconds[name].append(clock() - start)
    return {name: float(np.median(each)) for name, each in seconds.items()}


def build(contenders: Mapping[str, Any], data: Dataset, threads: int) -> dict[str, Any]:
    """Seconds of each, in tenths by turns, and bytes; its ratio to hnswlib's is the median of the tenths'.

    By the clock, and by the CPU time of all threads.
    """
    clocks: dict[str, Callable[[], float]] = {"seconds": time.perf_counter, "cpu_seconds": time.process_time}
    taken: dict[str, dict[str, list[float]]] = {name: {clock: [] for clock in clocks} for name in contenders}
    names = list(contenders)
    bounds = np.linspace(0, len(data.vectors), TENTHS + 1).astype(int).tolist()
    for turn, (first, last) in enumerate(itertools.pairwise(bounds)):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = {clock: now() for clock, now in clocks.items()}
            contenders[name].add(data.vectors[first:last], first, threads)
            for clock, now in clocks.items():
                taken[name][clock].append(now() - start[clock])
    found: dict[str, Any] = {}
    for name, times in taken.items():
        found[name] = {clock: sum(each) for clock, each in times.items()} | {"bytes": contenders[name].bytes()}
        for clock, each in times.items():
            base = taken.get(Hnswlib.name, {}).get(clock)
            found[name][f"{clock}_to_hnswlib"] = float(np.median(np.divide(each, base))) if base else None
    return found


def unfiltered(contenders: Mapping[str, Any], data: Dataset, threads: Sequence[int], rounds: int) -> dict[str, Any]:
    """Recall and QPS of each by ef and threads, and QPS at `RECALLS`; ef 0 is our own choice."""
    worst = worst_wanted(data.vectors, data.queries)
    points: dict[int, dict[str, list[Point]]] = {count: {name: [] for name in contenders} for count in threads}
    own: dict[int, dict[str, Point]] = {count: {} for count in threads}
    for ef in (0, *EFS):
        those = {name: each for name, each in contenders.items() if ef or isinstance(each, Uniecs)}
        found = {
            name: recall(each.search(data.queries, ef, threads[-1]), data.vectors, data.queries, worst)
            for name, each in those.items()
        }
        for count in threads:
            turns = {
                name: lambda each=each, ef=ef, count=count: each.search(data.queries, ef, count)
                for name, each in those.items()
            }
            for name, seconds in by_turns(turns, rounds, count).items():
                point = Point(ef, found[name], len(data.queries) / seconds)
                if ef:
                    points[count][name].append(point)
                else:
                    own[count][name] = point
        print(f"  ef {ef}: " + ", ".join(f"{name} {value:.4f}" for name, value in found.items()), flush=True)
        if ef and min(found.values()) >= ENOUGH:
            break
    return {
        str(count): {
            "points": {name: [asdict(point) for point in each] for name, each in points[count].items()},
            "own_ef": {name: asdict(point) for name, point in own[count].items()},
            "qps_at": {
                str(wanted): {name: qps_at(each, wanted) for name, each in points[count].items()} for wanted in RECALLS
            },
        }
        for count in threads
    }


def filtered(contenders: Mapping[str, Any], data: Dataset, threads: int, rounds: int) -> list[dict[str, Any]]:
    """One thread: ours by its own plan, and QPS of all at a recall of 0.95 and at the one that our plan reached; with
    `threads` our plan and the peers' at `TRIAL_EF`. Our plan's recall for queries far from all products, too.
    """
    lines = []
    far = far_queries(data.vectors, FILTERED_QUERIES)
    for kind, share, mask in selections(data.vectors, SHARES):
        those = {name: each for name, each in contenders.items() if name != Hnswlib.name or share >= CALLBACK_SHARE}
        line = one_filter(those, data, kind, share, mask, rounds)
        line["all_threads_qps"] = with_threads(those, data, mask, threads, rounds)
        found, worst = contenders[FLOAT32].filtered(mask)(far, 0, threads), worst_wanted(data.vectors, far, mask)
        lines.append(line | {"own_far_recall": recall(found, data.vectors, far, worst, mask)})
    return lines


def with_threads(
    contenders: Mapping[str, Any], data: Dataset, mask: Mask, threads: int, rounds: int
) -> dict[str, float]:
    """QPS by the clock: ours by its own plan, the peers' at `TRIAL_EF`; hnswlib's callback can use only one."""
    counts = {name: CALLBACK_QUERIES if name == Hnswlib.name else FILTERED_QUERIES for name in contenders}
    turns: dict[str, Callable[[], object]] = {}
    for name, each in contenders.items():
        search, some, ef = each.filtered(mask), data.queries[: counts[name]], 0 if name == FLOAT32 else TRIAL_EF
        turns[name] = lambda search=search, some=some, ef=ef: search(some, ef, threads)
    return {name: counts[name] / taken for name, taken in by_turns(turns, rounds, threads).items()}


def one_filter(
    contenders: Mapping[str, Any], data: Dataset, kind: str, share: float, mask: Mask, rounds: int
) -> dict[str, Any]:
    """For one mask; where a contender cannot reach a recall, its best stands there. Peers at `TRIAL_EF` too."""
    worst = worst_wanted(data.vectors, data.queries[:FILTERED_QUERIES], mask)
    turns: dict[tuple[str, int], Callable[[], object]] = {}
    tried: dict[str, dict[int, float]] = {name: {} for name in contenders}

    def attempt(name: str, search: Callable[..., Any], ef: int) -> float:
        some = data.queries[: CALLBACK_QUERIES if name == Hnswlib.name else FILTERED_QUERIES]
        turns[name, ef] = lambda: search(some, ef, 1)
        return recall(search(some, ef, 1), data.vectors, some, worst[: len(some)], mask)

    searches = {name: each.filtered(mask) for name, each in contenders.items()}
    own = attempt(FLOAT32, searches[FLOAT32], 0)
    plan = contenders[FLOAT32].plan(mask, data.queries[:1])
    for name, search in searches.items():
        # Where our plan compares all that match, it is all there is to know: a walk would visit most of the graph.
        for ef in () if name == FLOAT32 and plan["strategy"] == "exact" else EFS:
            tried[name][ef] = attempt(name, search, ef)
            if tried[name][ef] >= (RECALLS[0] if name == Hnswlib.name else max(own, RECALLS[0])):
                break
    timed = {
        name: around(list(each.items()), RECALLS[0]) | around(list(each.items()), own) for name, each in tried.items()
    }
    others = [name for name in contenders if name != FLOAT32]
    for name in others:
        if TRIAL_EF not in tried[name]:
            tried[name][TRIAL_EF] = attempt(name, searches[name], TRIAL_EF)
        timed[name].add(TRIAL_EF)
    kept = {key: run for key, run in turns.items() if key == (FLOAT32, 0) or key[1] in timed[key[0]]}
    seconds = by_turns(kept, rounds, 1)
    count = {name: CALLBACK_QUERIES if name == Hnswlib.name else FILTERED_QUERIES for name in contenders}
    points = {
        name: [Point(ef, tried[name][ef], count[name] / seconds[name, ef]) for ef in efs] for name, efs in timed.items()
    }
    own_point = Point(0, own, FILTERED_QUERIES / seconds[FLOAT32, 0])
    points[FLOAT32].append(own_point)
    line = {
        "kind": kind,
        "share": share,
        "matching": int(mask.sum()),
        "plan": plan,
        "own": asdict(own_point),
        "at_0.95": {name: asdict(nearest_to(each, RECALLS[0])) for name, each in points.items()},
        "at_own": {name: asdict(nearest_to(each, own)) for name, each in points.items()},
        "trial": {name: asdict(point) for name in others for point in points[name] if point.ef == TRIAL_EF},
    }
    shown = [f"own plan {own:.3f} {line['own']['qps']:.0f}/s ({line['plan']['strategy']})"]
    shown += [f"{name} {each['recall']:.3f} {each['qps']:.0f}/s" for name, each in line["at_0.95"].items()]
    print(f"  {kind} {share:.2%}: " + ", ".join(shown), flush=True)
    return line


def measure(data: Dataset, folder: Path, threads: int, rounds: int, parts: Sequence[str]) -> Iterator[dict[str, Any]]:
    """All figures of one set of vectors, again after each part; the index folder is made in `folder`."""
    print(f"\n{data.name}: {len(data.vectors):,} vectors, {len(data.queries):,} queries", flush=True)
    report: dict[str, Any] = {"vectors": len(data.vectors), "queries": len(data.queries)}
    store = fill(folder, data.vectors)
    if {"search", "filter"} & set(parts):
        ours, names = [Uniecs("float32")], FILTERING  # no more than is asked for: a graph of a million takes minutes
        if "search" in parts:
            rescore = rescoring(folder, store)
            ours, names = [*ours, Uniecs("float16", rescore), Uniecs("int8", rescore)], tuple(PEERS)
        contenders: dict[str, Any] = {**{each.name: each for each in ours}, **peers(len(data.vectors), names)}
        built = build(contenders, data, threads)
        if "search" in parts:
            report["build"] = built
            report["stats"] = {each.name: each.graph.stats() for each in ours}
            report["search"] = unfiltered(contenders, data, sorted({1, threads}), rounds)
            yield report
        if "filter" in parts:
            filtering = {name: contenders[name] for name in (FLOAT32, *FILTERING) if name in contenders}
            report["filtered"] = filtered(filtering, data, threads, rounds)
            yield report
        del contenders, ours
    store.close()
    if "engine" in parts:
        extra = near(data.vectors, PRODUCTS_BESIDE)
        encoder = GivenVectors(data.vectors, data.queries)
        report["folder"] = opening(folder, encoder, rounds)
        encoder = GivenVectors(np.concatenate([data.vectors, extra]), data.queries)
        with SearchEngine.open(folder, cast(Encoder, encoder)) as engine:
            report["overhead"] = overhead(engine, data.queries)
            more = [product(len(data.vectors) + number) for number in range(len(extra))]
            report["beside"] = beside_changes(engine, len(data.queries), iter(more), rounds)
        yield report


def goals(report: Mapping[str, Any]) -> list[Goal]:
    """The goals of issue 5 and what was measured for them; a peer that was left out has none."""
    found = list[Goal]()
    for name, each in report["sets"].items():
        found += search_goals(name, each) + filter_goals(name, each)
        if "folder" in each:
            cached = each["folder"]["open_s"]["cached"]
            found.append(Goal(f"{name}: s to open (of 1 M: 5)", cached, 5.0, at_most=True))
            for products in ("cached", "not cached"):
                beyond = each["overhead"][f"beyond_us, products {products}"]
                what = f"{name}: us of engine.search beyond the graph's, products {products}"
                found.append(Goal(what, beyond, 100.0, at_most=True))
            for threads, times in each["beside"].items():
                what = f"{name}: p99 during a bulk add to idle, {threads}"
                found.append(Goal(what, times["p99_us_ratio"], 3.0, at_most=True))
    for what, rate in report.get("add", {}).get("per_s", {}).items():
        found.append(Goal(f"durable add, products a second: {what}", rate, 5000.0))
    return found


def search_goals(name: str, figures: Mapping[str, Any]) -> list[Goal]:
    """Of building and searching without a filter."""
    found = list[Goal]()
    for threads, search in figures.get("search", {}).items():
        for wanted, qps in search["qps_at"].items():
            ours = qps[FLOAT32]
            best = best_of({peer: value for peer, value in qps.items() if not peer.startswith("uniecs")})
            if best and ours:
                what = f"{name}: QPS at recall {wanted}, {threads} threads, to the best peer ({best[0]})"
                found.append(Goal(what, ours / best[1], 1.0))
        own = search["own_ef"]
        found.append(Goal(f"{name}: recall@{K} by its own ef", own[FLOAT32]["recall"], 0.95))
        for storage in ("float16", "int8"):
            loss = own[FLOAT32]["recall"] - own[f"uniecs {storage}"]["recall"]
            if threads == "1":
                found.append(Goal(f"{name}: recall@{K} that {storage} loses", loss, 0.01, at_most=True))
    if "build" in figures:
        built, stats = figures["build"], figures["stats"]
        if "hnswlib" in built:
            for clock, what in {"seconds": "by the clock", "cpu_seconds": "by CPU time"}.items():
                ratio = built[FLOAT32][f"{clock}_to_hnswlib"]
                found.append(Goal(f"{name}: build time to hnswlib's, {what}", ratio, 1.05, at_most=True))
        for what in ("vector_bytes", "bytes"):
            figure = {each: built[each]["bytes"] if what == "bytes" else stats[each][what] for each in stats}
            share = figure["uniecs int8"] / figure[FLOAT32]
            what = "vectors" if what == "vector_bytes" else "whole graph"
            found.append(Goal(f"{name}: bytes of int8 to float32's, {what}", share, 1 / 3, at_most=True))
    return found


def filter_goals(name: str, figures: Mapping[str, Any]) -> list[Goal]:
    """Of filtered searches: recall at every share, speed from 1 to 50 % of random rows."""
    found = []
    for line in figures.get("filtered", []):
        where, own, at = f"{name}: {line['kind']} {line['share']:.2%}", line["own"], line["at_0.95"]
        found.append(Goal(f"{where}, recall@{K} of our plan", own["recall"], 0.95))
        if line["kind"] == "random" and line["share"] in (0.01, 0.1, 0.5):
            for peer, target in (("faiss", 1.0), ("hnswlib", 20.0)):
                if peer in at:
                    its = f"{peer}'s of recall {at[peer]['recall']:.3f}"
                    found.append(Goal(f"{where}, QPS of our plan to {its}", own["qps"] / at[peer]["qps"], target))
                    ratio = at[FLOAT32]["qps"] / at[peer]["qps"]
                    found.append(Goal(f"{where}, QPS at recall {at[FLOAT32]['recall']:.3f} to {its}", ratio, target))
                    for which, other in (("of our recall", line["at_own"]), (f"at ef {TRIAL_EF}", line["trial"])):
                        its = f"{peer}'s {which} ({other[peer]['recall']:.3f})"
                        ratio = own["qps"] / other[peer]["qps"]
                        found.append(Goal(f"{where}, QPS of our plan to {its}", ratio, target))
                    qps = line["all_threads_qps"]
                    what = f"{where}, with all threads, QPS of our plan to {peer}'s at ef {TRIAL_EF}"
                    found.append(Goal(what, qps[FLOAT32] / qps[peer], target))
    return found


def keep(report: dict[str, Any], out: Path | None) -> list[Goal]:
    """Write what was measured so far, with the goals that are known by then."""
    reached = goals(report)
    report["goals"] = [{**asdict(goal), "met": goal.met()} for goal in reached]
    if out:
        out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return reached


def main() -> None:
    """Measure, print, and write --out."""
    every = ("search", "filter", "engine", "add", "sets")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", nargs="+", default=["mini", "100000"], help="mini, or a number of clustered vectors")
    parser.add_argument("--parts", nargs="+", default=list(every), choices=every)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--products", type=Path, default=PRODUCTS, help="folder of train.parquet and val.parquet")
    parser.add_argument("--folder", type=Path, help="where index folders are made; its disk is what is measured")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    load_before = os.getloadavg()
    report: dict[str, Any] = {
        "machine": describe_machine(),
        "instructions": instructions(),
        "versions": versions_of(PACKAGES),
        "settings": {"M": M, "ef_construction": EF_CONSTRUCTION, "threads": options.threads, "rounds": options.rounds},
        "sets": {},
    }
    folder = Path(tempfile.mkdtemp(dir=options.folder, prefix="uniecs-index-"))
    try:
        for data in datasets(options.size, QUERIES, options.products):
            if {"search", "filter", "engine"} & set(options.parts):
                place = folder / str(len(data.vectors))
                for figures in measure(data, place, options.threads, options.rounds, options.parts):
                    report["sets"][data.name] = figures
                    keep(report, options.out)  # hours of work: no part is lost with a later one
            if "add" in options.parts and "add" not in report:
                report["add"] = adding(folder, data, max(3, options.rounds // 2))
        if "sets" in options.parts:
            report["row_sets_us"] = row_sets(1_000_000, options.rounds)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    report["load_before_and_after"] = [load_before[0], os.getloadavg()[0]]
    print("\n" + "\n".join(goal.line() for goal in keep(report, options.out)))


if __name__ == "__main__":
    main()
