"""Tables and plots of what `index.py` measured.

python benchmarks/index_report.py benchmarks/results/index*.json --docs docs
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

COLOURS = {
    "uniecs float32": "#d62728",
    "uniecs float16": "#ff9896",
    "uniecs int8": "#e377c2",
    "hnswlib": "#1f77b4",
    "faiss": "#2ca02c",
    "usearch": "#7f7f7f",
}
FLOAT32 = "uniecs float32"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value: float | None, digits: int = 2) -> str:
    """With thousands apart; a dash for none."""
    return "-" if value is None else f"{value:,.{digits}f}"


def search_table(sets: Mapping[str, Any]) -> str:
    """QPS at each recall, and ours to the best of the others."""
    rows = []
    for name, figures in sets.items():
        for threads, search in figures.get("search", {}).items():
            for recall, qps in search["qps_at"].items():
                peers = {peer: value for peer, value in qps.items() if not peer.startswith("uniecs") and value}
                ratio = qps[FLOAT32] / max(peers.values()) if peers and qps[FLOAT32] else None
                cells = [number(qps.get(each), 0) for each in COLOURS]
                rows.append([name, threads, recall, *cells, number(ratio)])
    return table(["vectors", "threads", "recall@10", *COLOURS, "float32 to the best peer"], rows)


def build_table(sets: Mapping[str, Any]) -> str:
    """Time to hnswlib's and bytes a vector; recall and QPS of the default breadth on one thread."""
    rows = []
    for name, figures in sets.items():
        for each, built in figures.get("build", {}).items():
            own = figures.get("search", {}).get("1", {}).get("own_ef", {}).get(each)
            found = ["-", "-"] if own is None else [number(own["recall"], 4), number(own["qps"], 0)]
            rows.append(
                [
                    name,
                    each,
                    number(built["cpu_seconds_to_hnswlib"]),
                    number(built["bytes"] / figures["vectors"], 0),
                    *found,
                ]
            )
    head = [
        "vectors",
        "index",
        "CPU time of building to hnswlib's",
        "bytes a vector",
        "recall@10 by its own ef",
        "QPS, one thread",
    ]
    return table(head, rows)


def filter_table(sets: Mapping[str, Any]) -> str:
    """Our plan, and QPS of all at a recall of 0.95, or with their best recall in brackets."""
    rows = []
    for name, figures in sets.items():
        for line in figures.get("filtered", []):
            own, cells = line["own"], []
            for each in (FLOAT32, "faiss", "hnswlib"):
                at = line["at_0.95"].get(each)
                cells.append("-" if at is None else f"{number(at['qps'], 0)} ({at['recall']:.3f})")
            plan, far = f"{line['plan']['strategy']}, {own['recall']:.3f}", number(line.get("own_far_recall"), 3)
            rows.append([name, line["kind"], f"{line['share']:.2%}", plan, far, number(own["qps"], 0), *cells])
    head = [
        "vectors",
        "matching",
        "share",
        "our plan, its recall",
        "its recall far from all products",
        "its QPS",
        "uniecs at 0.95",
        "faiss",
        "hnswlib, callback",
    ]
    return table(head, rows)


def whole_table(sets: Mapping[str, Any]) -> str:
    """The index folder, and searches beside changes."""
    rows = []
    for name, figures in sets.items():
        if "folder" not in figures:
            continue
        folder, over, beside = figures["folder"], figures["overhead"], figures["beside"]
        rows += [
            [
                name,
                "open, s: files cached, not cached",
                f"{folder['open_s']['cached']:.2f}, {folder['open_s']['not cached']:.2f}",
            ],
            [name, "build the graph from the store, s", f"{folder['rebuild_s']:.1f}"],
            [
                name,
                "engine.search beyond the graph's time, us: products cached, not cached",
                f"{over['beyond_us, products cached']:.0f}, {over['beyond_us, products not cached']:.0f}",
            ],
        ]
        for threads, times in beside.items():
            what = f"p50, p99 during a bulk add to idle, {threads}"
            rows.append([name, what, f"{times['p50_us_ratio']:.2f}, {times['p99_us_ratio']:.2f}"])
    return table(["vectors", "what", "figure"], rows)


def row_sets_table(report: Mapping[str, Any]) -> str:
    """Microseconds of set operations."""
    rows = [
        [share, operation, *(number(each.get(name), 1) for name in ("RowSet", "NumPy bits", "pyroaring"))]
        for share, operations in report.get("row_sets_us", {}).items()
        for operation, each in operations.items()
    ]
    return table(["share", "operation", "RowSet", "NumPy bits", "pyroaring"], rows)


def draw_recall(sets: Mapping[str, Any], path: Path) -> None:
    """Recall against QPS on one thread, one panel for each set."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    there = {name: figures for name, figures in sets.items() if "search" in figures}
    figure, panels = plt.subplots(1, len(there), figsize=(5 * len(there), 4), squeeze=False, layout="constrained")
    for panel, (name, figures) in zip(panels[0], there.items(), strict=True):
        for each, points in figures["search"]["1"]["points"].items():
            recalls, qps = [p["recall"] for p in points], [p["qps"] for p in points]
            panel.plot(recalls, qps, marker="o", markersize=3, label=each, color=COLOURS[each])
        panel.set(title=name, xlabel="recall@10", yscale="log", xlim=(0.87, 1.002))
        panel.grid(alpha=0.3, which="both")
    panels[0][0].set_ylabel("queries a second, one thread")
    panels[0][-1].legend(fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def draw_filtered(sets: Mapping[str, Any], path: Path) -> None:
    """QPS by share of matching rows; hollow where a recall of 0.95 was not reached."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    there = {name: figures["filtered"] for name, figures in sets.items() if "filtered" in figures}
    size = (5 * len(there), 7.5)
    figure, panels = plt.subplots(2, len(there), figsize=size, squeeze=False, sharex=True, layout="constrained")
    for column, (name, lines) in enumerate(there.items()):
        for row, kind in enumerate(("random", "half space")):
            panel = panels[row][column]
            some = [line for line in lines if line["kind"] == kind]
            curves = {"uniecs, own plan": ("own", "#d62728"), "faiss": ("faiss", COLOURS["faiss"])}
            curves["hnswlib, callback"] = ("hnswlib", COLOURS["hnswlib"])
            for label, (key, colour) in curves.items():
                points = [(line["share"], line["own"] if key == "own" else line["at_0.95"].get(key)) for line in some]
                points = [(share, point) for share, point in points if point]
                panel.plot([share for share, _ in points], [p["qps"] for _, p in points], color=colour, label=label)
                for share, point in points:
                    face = colour if point["recall"] >= 0.95 else "white"
                    panel.plot([share], [point["qps"]], marker="o", color=colour, markerfacecolor=face, markersize=5)
            panel.set(title=f"{name}, {kind}", xscale="log", yscale="log")
            panel.grid(alpha=0.3, which="both")
            if row:
                panel.set_xlabel("share of rows that match")
        panels[0][column].set_ylabel("queries a second, one thread")
    panels[0][-1].legend(fontsize=8, title="hollow: recall@10 below 0.95", title_fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    """Print the tables; draw into --docs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reports", type=Path, nargs="+")
    parser.add_argument("--docs", type=Path)
    options = parser.parse_args()
    reports = [json.loads(path.read_text(encoding="utf-8")) for path in options.reports]
    sets: dict[str, Any] = {}
    for report in reports:
        for name, figures in report["sets"].items():
            sets[name] = sets.get(name, {}) | figures  # parts of one set may have been measured in several runs
    for make in (search_table, build_table, filter_table, whole_table):
        print(f"{make(sets)}\n")
    for report in reports:
        if "row_sets_us" in report:
            print(f"{row_sets_table(report)}\n")
        if "add" in report:
            print(json.dumps(report["add"], indent=1))
    if options.docs:
        draw_recall(sets, options.docs / "index-recall.png")
        draw_filtered(sets, options.docs / "index-filtered.png")


if __name__ == "__main__":
    main()
