"""What the report draws: figures of a run as lines and bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from uniecs.bench.charts import Axis, Bar, Series, line_chart
from uniecs.bench.run import Results
from uniecs.bench.samples import Measurement, median
from uniecs.bench.scenarios import KINDS, USUAL_PX, USUAL_TOKENS
from uniecs.bench.tables import GOAL, OVERLOADED, figure

BarChart: TypeAlias = tuple[str, list[Bar], str]
"""Title, bars and label of `bar_chart`."""
COLOUR = {"fp32": 0, "bf16": 1, "int8": 2, "fp16": 3}
KIND_COLOUR = {"text": 0, "image": 1, "both": 2}
PEER_COLOUR = {"uniecs float32": 0, "uniecs float16": 5, "uniecs int8": 3, "hnswlib": 1, "faiss": 2, "usearch": 4}
STEPS: Mapping[str, Sequence[tuple[str, str, str]]] = {
    "text": (
        ("preprocess", f"text, {USUAL_TOKENS} tokens", "tokeniser"),
        ("graph", "text_encoder", "text encoder"),
        ("graph", "fusion of a text", "fusion"),
    ),
    "image": (
        ("preprocess", f"JPEG, {USUAL_PX} px", "decode and resize"),
        ("graph", "image_encoder", "image encoder"),
        ("graph", "fusion of an image", "fusion"),
    ),
    "both": (
        ("preprocess", f"text, {USUAL_TOKENS} tokens", "tokeniser"),
        ("preprocess", f"JPEG, {USUAL_PX} px", "decode and resize"),
        ("graph", "text_encoder", "text encoder"),
        ("graph", "image_encoder", "image encoder"),
        ("graph", "fusion", "fusion"),
    ),
}
"""Stages of a query: stage and case that measured it, and its name in the plot."""
STEP_COLOUR = {"tokeniser": 4, "decode and resize": 3, "text encoder": 0, "image encoder": 1, "fusion": 2, "index": 5}


def p50(each: Measurement) -> float:
    """Median in ms."""
    return median(each.ms)


def breakdown(results: Results) -> list[BarChart]:
    """Bars of stages for each kind of query and precision: the whole query as a mark, where a graph's floor ends."""
    of_one = [each for each in results.graphs if each["batch"] == 1]
    floors = {(each["graph"], each["precision"]): max(each["compute_ms"], each["memory_ms"]) for each in of_one}
    alone = {(each.case.stage, each.case.what, each.case.precision): p50(each) for each in _single(results)}
    search = [p50(each) for each in results.of("search") if each.case.batch == 1 and "no filter" in each.case.what]
    charts = []
    for kind in KINDS:
        bars = []
        for each in results.of("end to end"):
            if each.case.what != kind:
                continue
            precision = each.case.precision
            parts, least = list[tuple[str, float, int]](), list[tuple[str, float]]()
            for stage, what, name in STEPS[kind]:
                spent = alone.get((stage, what, precision if stage == "graph" else None))
                if spent is None:
                    continue
                if stage == "graph" and (what, precision) in floors:
                    before = sum(size for _, size, _ in parts)
                    least.append((f"{name} at its floor", before + floors[what, precision]))
                parts.append((name, spent, STEP_COLOUR[name]))
            parts += [("index", search[0], STEP_COLOUR["index"])] if search else []
            whole = p50(each)
            bars.append(Bar(precision or "", parts, f"{figure(whole)} ms", [("whole query", whole)], least))
        charts.append((f"A query by {kind}", bars, "ms; dashed: where a graph at its floor would end"))
    return charts


def _single(results: Results) -> list[Measurement]:
    return [each for stage in ("preprocess", "graph") for each in results.of(stage) if each.case.batch == 1]


def distributions(results: Results) -> list[str]:
    """Share of queries answered within a time, for each kind of query."""
    charts = []
    for kind in KINDS:
        series = [
            Series(each.case.precision or "", _cumulative(each), COLOUR.get(each.case.precision or "", 7), dots=False)
            for each in results.of("end to end")
            if each.case.what == kind
        ]
        y = Axis("share of queries", ticks=(0, 0.25, 0.5, 0.75, 0.95, 1), low=0, high=1)
        charts.append(line_chart(f"Latency of a query by {kind}", Axis("ms", log=True), y, series))
    return charts


def _cumulative(each: Measurement) -> list[tuple[float, float]]:
    """At most 200 points of the distribution, the extremes included."""
    ms = np.sort(each.ms)
    places = np.unique(np.linspace(0, len(ms) - 1, min(len(ms), 200)).astype(int))
    return [(float(ms[place]), (place + 1) / len(ms)) for place in places]


def loops(results: Results) -> list[str]:
    """Latency by queries a second: closed loops, and open ones."""
    charts = []
    for name, stage in (("Closed loop", "closed loop"), ("Open loop", "open loop")):
        series = []
        for kind in KINDS:
            found = [each for each in results.of(stage) if each.case.what == kind]
            for quantile, dashed in (("p50", False), ("p99", True)):
                points = [(each.figures()["per_s"], each.figures()["ms"][quantile]) for each in found]
                notes = [
                    f"{_setting(each)}: {figure(x)} a second, {figure(y)} ms"
                    for each, (x, y) in zip(found, points, strict=True)
                ]
                series.append(Series(f"{kind}, {quantile}", points, KIND_COLOUR[kind], notes, dashed))
        x = Axis("queries a second that were answered", log=True)
        charts.append(line_chart(name, x, Axis("ms", log=True), series))
    return charts


def _setting(each: Measurement) -> str:
    case, overloaded = each.case, OVERLOADED if each.figures()["overloaded"] else ""
    return f"{case.concurrency} clients" if case.rate is None else f"{case.rate:g} arrivals a second{overloaded}"


def scaling(results: Results) -> list[str]:
    """Items a second by batch, for each kind, and by threads."""
    charts = []
    for kind in KINDS:
        series = []
        for precision, colour in COLOUR.items():
            found = [each for each in results.of("batch") if (each.case.what, each.case.precision) == (kind, precision)]
            series.append(Series(precision, [(each.case.batch, each.figures()["per_s"]) for each in found], colour))
        x = Axis("batch", log=True, ticks=(1, 2, 4, 8, 16, 32, 64, 128, 256)[: _most_batches(results)])
        charts.append(line_chart(f"Batches: {kind}", x, Axis("items a second", low=0), series))
    measured = results.of("threads")
    series = []
    for place, (kind, batch) in enumerate(dict.fromkeys((each.case.what, each.case.batch) for each in measured)):
        found = [each for each in measured if (each.case.what, each.case.batch) == (kind, batch)]
        points = [(float(each.case.threads or 1), each.figures()["per_s"]) for each in found]
        series.append(Series(f"{kind}, batch {batch}", points, place))
        perfect = [(count, points[0][1] * count / points[0][0]) for count, _ in points]
        series.append(Series(f"{kind}, batch {batch}, perfect", perfect, place, dashed=True, dots=False))
    counts = sorted({float(each.case.threads or 1) for each in measured})
    charts.append(
        line_chart("Threads", Axis("threads", log=True, ticks=counts), Axis("items a second", log=True), series)
    )
    return charts


def _most_batches(results: Results) -> int:
    return max((each.case.batch.bit_length() for each in results.of("batch")), default=1)


def recall_by_qps(results: Results) -> list[str]:
    """The sweep of the graph's breadth."""
    found = [each for each in results.of("hnsw") if "recall" in each.extra]
    sweep = sorted((each for each in found if each.case.ef), key=lambda each: each.case.ef or 0)
    own = [each for each in found if each.case.ef == 0]
    series = [_recall_series("by ef", sweep, 0), _recall_series("its own choice", own, 1)]
    low = min((each.extra["recall"] for each in found), default=0.0)
    x = Axis("recall@10", low=max(0.0, low - 0.02), high=1.002)
    return (
        [line_chart(f"The graph, {found[0].case.what}", x, Axis("queries a second", log=True), series)] if found else []
    )


def _recall_series(name: str, measured: Sequence[Measurement], colour: int) -> Series:
    points = [(each.extra["recall"], each.figures()["per_s"]) for each in measured]
    return Series(name, points, colour, [f"ef {each.case.ef}: {each.extra['recall']:.4f}" for each in measured])


def fractions(results: Results) -> list[BarChart]:
    """Bars of the share of the floor, for each batch, with the goal at batch 32."""
    charts = []
    for batch in sorted({each["batch"] for each in results.graphs}):
        bars = [
            Bar(
                f"{each['graph']}, {each['precision']}",
                [("", each["fraction"], COLOUR.get(each["precision"], 7))],
                f"{each['fraction']:.0%}, {each['bound']}",
                [("goal", GOAL)] if batch == 32 else (),
            )
            for each in results.graphs
            if each["batch"] == batch
        ]
        charts.append((f"Share of the floor, batch {batch}", bars, "floor over time"))
    return charts


def index_recall(sets: Mapping[str, Any]) -> list[tuple[str, Axis, Axis, list[Series]]]:
    """Charts of benchmarks/index.py: recall against queries a second on one thread, for each set of vectors."""
    charts = []
    for name, figures in sets.items():
        points = figures.get("search", {}).get("1", {}).get("points", {})
        series = [
            Series(
                each,
                [(point["recall"], point["qps"]) for point in found],
                PEER_COLOUR.get(each, 7),
                [f"ef {point['ef']}: {point['recall']:.4f}, {figure(point['qps'])} a second" for point in found],
            )
            for each, found in points.items()
        ]
        charts.append((name, Axis("recall@10", low=0.87, high=1.002), Axis("queries a second", log=True), series))
    return charts


def peer_ratios(rows: Sequence[Mapping[str, Any]]) -> list[BarChart]:
    """For each kind of work the time of each peer over ours, with its interval as marks."""
    charts = []
    for work in dict.fromkeys(row["work"] for row in rows):
        bars = [
            Bar(
                row["peer"],
                [("", row["ratio"], 0 if row["ratio"] >= 1 else 1)],
                f"{figure(row['ratio'])}x",
                [("95 % interval", each) for each in row["ratio_interval"] or ()],
            )
            for row in rows
            if row["work"] == work and row.get("ratio")
        ]
        charts.append((work, bars, "the peer's time over ours"))
    return charts
