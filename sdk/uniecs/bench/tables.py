"""Results as rows of text: what the terminal prints, and what the report shows as tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from uniecs.bench.run import Results
from uniecs.bench.samples import Measurement

HEAD = ("", "p50 ms", "±", "p95", "p99", "max", "per s", "CPU ms", "MB")
GOAL = 0.7
"""Of the floor's larger term, which a graph should reach at batch 32."""
OVERLOADED = ", overloaded"
"""Of an open loop that fell ever farther behind: its latency says how long it ran."""


@dataclass(frozen=True)
class Table:
    """A heading, the names of the columns, and lines; the first column is text, the others figures."""

    title: str
    head: Sequence[str]
    lines: Sequence[Sequence[str]]


def figure(value: float | None, digits: int = 3) -> str:
    """So many digits, thousands apart; a dash for none."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"


def spread(interval: Sequence[float] | None, value: float) -> str:
    """Half of an interval as a share of the value."""
    return "-" if interval is None or not value else f"{(interval[1] - interval[0]) / 2 / value:.0%}"


def name_of(each: Measurement) -> str:
    """A case within its stage."""
    case = each.case
    parts = [case.what, case.precision or ""]
    parts += [f"{label} {value:g}" for label, value in _settings(each) if value is not None]
    return ", ".join(part for part in parts if part)


def _settings(each: Measurement) -> list[tuple[str, float | None]]:
    case = each.case
    many = case.concurrency if case.concurrency > 1 and case.rate is None else None
    return [
        ("batch", case.batch if case.batch > 1 else None),
        ("threads", case.threads if case.stage == "threads" else None),
        ("clients", many),
        ("arrivals a second", case.rate),
        ("ef", case.ef),
    ]


def stage_table(stage: str, measured: Sequence[Measurement]) -> Table:
    """The cases of one stage; with a recall where they have one."""
    recalls = any("recall" in each.extra for each in measured)
    lines = []
    for each in measured:
        found = each.figures()
        ms, rss = found["ms"], found["rss_bytes"]
        cells = [
            name_of(each) + (OVERLOADED if found["overloaded"] else ""),
            figure(ms["p50"]),
            spread(found["p50_interval_ms"], ms["p50"]),
        ]
        cells += [figure(ms[name]) for name in ("p95", "p99", "max")] + [
            figure(found["per_s"]),
            figure(found["cpu_ms"]),
        ]
        cells += [figure(None if rss is None else rss / 1e6)]
        lines.append(cells + ([f"{each.extra['recall']:.4f}"] if recalls else []))
    return Table(stage, [*HEAD, "recall@10"] if recalls else HEAD, lines)


def machine_table(results: Results) -> Table | None:
    """The floor's rates."""
    lines = []
    for each in results.of("floor"):
        per_call = each.extra.get("operations", each.extra.get("bytes", 0.0))
        rate = per_call / each.figures()["ms"]["p50"] / 1e6
        unit = "Gop/s" if "operations" in each.extra else "GB/s"
        lines.append([f"{each.case.what} {each.case.precision or ''}".strip(), figure(rate), unit])
    return Table("This machine at best", ("", "rate", ""), lines) if lines else None


def graph_table(graphs: Sequence[dict[str, Any]]) -> Table | None:
    """The share of the floor that each graph reaches."""
    head = ("", "p50 ms", "compute ms", "memory ms", "bound", "Gop", "MB", "of the floor")
    lines = [
        [
            f"{each['graph']}, {each['precision']}, batch {each['batch']}",
            figure(each["p50_ms"]),
            figure(each["compute_ms"]),
            figure(each["memory_ms"]),
            each["bound"],
            figure(each["operations"] / 1e9),
            figure(each["bytes"] / 1e6),
            f"{each['fraction']:.0%}",
        ]
        for each in graphs
    ]
    return Table(f"Graphs against the floor (goal {GOAL:.0%} at batch 32)", head, lines) if lines else None


def quality_table(quality: Sequence[dict[str, Any]]) -> Table | None:
    """Cosine and recall of each precision against fp32."""
    lines = [
        [
            f"{each['precision']}, {each['kind']}",
            f"{each['cosine_mean']:.5f}",
            f"{each['cosine_min']:.5f}",
            f"{each['recall_at_10']:.4f}",
        ]
        for each in quality
    ]
    products = quality[0]["products"] if quality else 0
    head = ("", "mean cosine", "least cosine", "recall of fp32's 10 nearest")
    return Table(f"Precisions against fp32, {products} drawn products", head, lines) if lines else None


def all_tables(results: Results) -> list[Table]:
    """Every table of a run, in its order."""
    stages = dict.fromkeys(each.case.stage for each in results.measurements.values() if each.case.stage != "floor")
    found = [machine_table(results), graph_table(results.graphs), quality_table(results.quality)]
    return [*(stage_table(stage, results.of(stage)) for stage in stages), *(each for each in found if each)]


def as_text(table: Table) -> str:
    """Columns side by side."""
    rows = [list(table.head), *map(list, table.lines)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(table.head))]
    lines = [
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join([table.title, *(f"  {line.rstrip()}" for line in lines)])
