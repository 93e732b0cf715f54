"""The peers' tables and the pictures of docs/performance.md, from the files that it names.

    python benchmarks/performance_report.py [--results benchmarks/results] [--docs docs]

Prints one Markdown table for each file of benchmarks/peers.py, every row of it, lost ones first; with --docs it draws
performance-stages.png and performance-floor.png from bench-base.json, performance-peers.png from peers.json. The
plots are those of `uniecs bench report`. Needs `uniecs[bench]`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pictures import save

from uniecs.bench.charts import Bar
from uniecs.bench.plots import BarChart, breakdown, fractions, peer_ratios
from uniecs.bench.run import read_results

HERE = Path(__file__).resolve().parent
PEERS = ("peers", "peers-mini", "avx2-peers", "avx2-peers-mini")
CONTENDERS = ("fp32", "bf16", "int8", "index")
COLOURS = ("#2f6bd8", "#d9622b", "#1f9268", "#8a4fc7", "#b8860b", "#0e8fa8", "#c2326f", "#7a8494")
"""Of the report, where it is light."""


def peers_table(report: Mapping[str, Any]) -> str:
    """A row for each kind of work and peer, with its time over each of ours; by the least, so that lost ones lead."""
    ratios: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    for row in report["rows"]:
        if row.get("ratio"):
            work, _, ours = row["work"].removesuffix(")").partition(" (uniecs ")
            ratios.setdefault((work, row["peer"]), {})[ours] = row
    ours = [each for each in CONTENDERS if any(each in cells for cells in ratios.values())]
    lines = [["work", "peer", *(f"its time over ours, {each}" for each in ours)], ["---"] * (2 + len(ours))]
    for (work, peer), cells in sorted(ratios.items(), key=lambda each: min(row["ratio"] for row in each[1].values())):
        lines.append([work, peer, *(cell(cells.get(each)) for each in ours)])
    gone = [f"not measured: {row['peer']}: {row['note']}" for row in report["rows"] if not row.get("ratio")]
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), *(f"\n{each}" for each in gone)])


def cell(row: Mapping[str, Any] | None) -> str:
    """A ratio with its interval, bold if it is a lost one."""
    if row is None:
        return ""
    shown = number(row["ratio"]) if row["ratio"] >= 1 else f"**{number(row['ratio'])}**"
    return f"{shown} [{', '.join(map(number, row['ratio_interval'] or ()))}]"


def number(value: float) -> str:
    """As the documents write it: of 1 three digits, without a leading 0."""
    return f"{value:.2f}".removeprefix("0") if value < 10 else f"{value:.1f}"


def draw(charts: Sequence[BarChart], path: Path) -> None:
    """Bars in two columns, as the report has them."""
    pairs = [charts[place : place + 2] for place in range(0, len(charts), 2)]
    heights = [1.1 + 0.27 * max(len(bars) for _, bars, _ in pair) for pair in pairs]
    figure = Figure(figsize=(11, sum(heights)), layout="constrained")
    panels = figure.subplots(len(pairs), 2, squeeze=False, gridspec_kw={"height_ratios": heights})
    named = dict[str, Any]()
    for place, panel in enumerate(panels.flat):
        if place < len(charts):
            rows = max(len(bars) for _, bars, _ in pairs[place // 2])
            named |= draw_bars(panel, *charts[place], rows)
        else:
            panel.axis("off")
    if len(named) > 1:
        figure.legend(list(named.values()), list(named), fontsize=8, frameon=False, loc="outside lower center", ncols=6)
    save(figure, path)


def draw_bars(panel: Axes, title: str, bars: Sequence[Bar], label: str, rows: int) -> dict[str, Any]:
    """One chart, with room for so many rows; what was drawn of each part that has a name, for the legend."""
    named = dict[str, Any]()
    for place, bar in enumerate(bars):
        start = 0.0
        for name, size, colour in bar.parts:
            named[name] = panel.barh(place, size, 0.66, left=start, color=COLOURS[colour])
            start += size
        for style, marks in (("-", bar.marks), ((0, (2, 1.2)), bar.floors)):
            for _, at in marks:
                panel.plot([at, at], [place - 0.44, place + 0.44], color="#1a1d23", linestyle=style, linewidth=1.4)
        end = max(start, *(at for _, at in (*bar.marks, *bar.floors)), 0.0)
        panel.annotate(f" {bar.text}", (end, place), va="center", xytext=(3, 0), textcoords="offset points", fontsize=8)
    panel.set_yticks(range(len(bars)), [bar.name for bar in bars], fontsize=8)
    panel.set_xlim(0, panel.get_xlim()[1] * 1.12)
    panel.tick_params(axis="x", labelsize=8)
    panel.set_ylim(rows - 0.5, -0.6)
    panel.set_title(title, fontsize=10, fontweight="bold", loc="left")
    panel.set_xlabel(label, fontsize=8)
    panel.spines[["top", "right"]].set_visible(False)
    return {name: drawn for name, drawn in named.items() if name}


def pictures(results: Path) -> Iterator[tuple[str, Sequence[BarChart]]]:
    """Name and charts of each."""
    measured = read_results(results / "bench-base.json")
    yield "performance-stages.png", breakdown(measured)
    yield "performance-floor.png", fractions(measured)
    rows = json.loads((results / "peers.json").read_text("utf-8"))["rows"]
    yield "performance-peers.png", peer_ratios(rows)


def main() -> None:
    """Print the tables; draw into --docs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--docs", type=Path)
    options = parser.parse_args()
    for name in PEERS:
        report = json.loads((options.results / f"{name}.json").read_text("utf-8"))
        print(f"{name}.json\n\n{peers_table(report)}\n")
    for name, charts in pictures(options.results) if options.docs else ():
        draw(charts, options.docs / name)


if __name__ == "__main__":
    main()
