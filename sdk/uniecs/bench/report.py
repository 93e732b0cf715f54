"""The report: one HTML page with every plot drawn into it, which needs no other file and no network."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from uniecs.bench import plots
from uniecs.bench.charts import bar_chart, line_chart
from uniecs.bench.run import FORMAT, Results, reading
from uniecs.bench.tables import Table, all_tables, figure, graph_table, machine_table, quality_table
from uniecs.errors import InputError

STYLE = """
:root { color-scheme: light dark; --ink: #1a1d23; --muted: #646c7a; --page: #fbfbfc; --card: #fff; --rule: #e4e7ec;
  --grid: #eceef2; --c0: #2f6bd8; --c1: #d9622b; --c2: #1f9268; --c3: #8a4fc7; --c4: #b8860b; --c5: #0e8fa8;
  --c6: #c2326f; --c7: #7a8494; }
@media (prefers-color-scheme: dark) { :root { --ink: #e7e9ee; --muted: #98a1b0; --page: #121419; --card: #1a1d24;
  --rule: #2b303a; --grid: #262b34; --c0: #7aa9f7; --c1: #f29a6b; --c2: #5fcaa0; --c3: #bb92ee; --c4: #e0b84c;
  --c5: #57c7dd; --c6: #ee80ad; --c7: #9aa5b5; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 2.5rem clamp(1rem, 4vw, 3rem) 5rem; background: var(--page);
  color: var(--ink); font: 15px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 1.9rem; letter-spacing: -.02em; margin: 0; line-height: 1.2; }
h2 { font-size: 1.2rem; letter-spacing: -.01em; margin: 3rem 0 .25rem; padding-top: 1.5rem;
  border-top: 1px solid var(--rule); }
article + article { margin-top: 5rem; }
p { margin: .25rem 0 0; max-width: 46rem; } .muted, header p { color: var(--muted); }
.warn { color: var(--c1); font-weight: 600; }
.tiles { display: grid; gap: .9rem; grid-template-columns: repeat(auto-fit, minmax(10.5rem, 1fr)); margin-top: 1.5rem; }
.tile { background: var(--card); border: 1px solid var(--rule); border-radius: 12px; padding: .9rem 1.1rem; }
.tile b { display: block; font-size: 1.55rem; letter-spacing: -.02em; font-variant-numeric: tabular-nums; }
.tile span { color: var(--muted); font-size: .8rem; }
.plots { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(26rem, 100%), 1fr));
  margin-top: 1.1rem; }
figure { margin: 0; background: var(--card); border: 1px solid var(--rule); border-radius: 12px;
  padding: 1rem 1rem .8rem; }
figcaption { font-weight: 600; font-size: .9rem; margin-bottom: .4rem; }
svg { display: block; width: 100%; height: auto; font: 11px system-ui, sans-serif; }
svg text { fill: var(--muted); } svg .name, svg .value { fill: var(--ink); } svg .label { font-size: 11.5px; }
.grid { stroke: var(--grid); } .line { fill: none; stroke-width: 2; stroke-linejoin: round; }
.mark, .floor { stroke: var(--ink); stroke-width: 2; } .floor { stroke-dasharray: 3 2; }
.dot { stroke: var(--card); stroke-width: 1.2; }
.legend { display: flex; flex-wrap: wrap; gap: .15rem 1rem; font-size: .78rem; color: var(--muted); margin-top: .4rem; }
.key { display: inline-block; width: .8rem; height: .8rem; border-radius: 3px; margin-right: .4rem;
  vertical-align: -1px; }
.key.dashed { height: 0; border-top: 2px dashed; border-radius: 0; vertical-align: 3px; background: none !important; }
COLOURS
.scroll { overflow-x: auto; margin-top: 1rem; } table { border-collapse: collapse; font-size: .84rem; width: 100%; }
th, td { padding: .32rem .7rem; text-align: right; border-bottom: 1px solid var(--rule); white-space: nowrap;
  font-variant-numeric: tabular-nums; } th { color: var(--muted); font-weight: 500; }
th:first-child, td:first-child { text-align: left; padding-left: 0; } caption { text-align: left; font-weight: 600;
  padding-bottom: .3rem; } tbody tr:hover { background: var(--grid); }
details { margin-top: 1rem; } summary { cursor: pointer; color: var(--c0); }
"""
COLOURS = "".join(
    f".line.c{n} {{ stroke: var(--c{n}); }} .dot.c{n}, .bar.c{n} {{ fill: var(--c{n}); }} "
    f".key.c{n} {{ background: var(--c{n}); border-color: var(--c{n}); }}\n"
    for n in range(8)
)


def write_report(sources: Sequence[Path], out: Path) -> None:
    """Write the page of some results: of `uniecs bench`, benchmarks/index.py and benchmarks/peers.py, in their order.

    Raises `InputError` for a file that is none of these or has nothing to draw, or if `out` is one of them; `OSError`.
    """
    if out.resolve() in [each.resolve() for each in sources]:
        raise InputError(f"{out} is one of the results; choose another file for the report")
    body = "".join(_shown(path) for path in sources)
    out.parent.mkdir(parents=True, exist_ok=True)
    page = _page("What uniecs costs", body)
    out.write_text(page, encoding="utf-8", errors="backslashreplace")  # a name may hold bytes that are no UTF-8


def _shown(path: Path) -> str:
    """What a file of results has on the page."""
    with reading(path):
        data = json.loads(path.read_text("utf-8"))
        kind = data.get("format") if isinstance(data, dict) else None
        if kind == FORMAT:
            shown = _run(str(path), Results.from_dict(data))
        elif kind == "uniecs-peers":
            shown = _peers(str(path), data)
        elif isinstance(data, dict) and isinstance(data.get("sets"), dict):
            shown = _index(str(path), data["sets"])
        else:
            raise InputError("it holds no results that a report can show; see `uniecs bench --help`")
        if not shown:
            raise InputError("it holds nothing that can be drawn")
    return shown


def _page(title: str, body: str) -> str:
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE.replace('COLOURS', COLOURS)}</style>\n</head>\n<body>\n"
        f"{body}\n</body>\n</html>\n"
    )


def _run(name: str, results: Results) -> str:
    """All sections of one run of `uniecs bench`; nothing of one without a figure."""
    if not (results.measurements or results.quality):
        return ""
    about = results.about
    machine, bundle = about["machine"], about["bundle"]
    memory = "" if machine["memory_bytes"] is None else f", {machine['memory_bytes'] / 2**30:.0f} GiB"
    lines = [
        f"{machine['cpu']}, {machine['usable_cores']} of {machine['cores']} cores{memory}; {machine['os']}",
        f"{bundle['model_id']} on {about['backend']} ({about['device']}); "
        + ", ".join(f"{package} {version}" for package, version in about["versions"].items()),
        f"commit {about['git_commit'] or 'unknown'}, {about['started']}, {about['settings']['rounds']} rounds; "
        f"load average before and after {' and '.join(figure(each) for each in about['load_average'])}; {name}",
    ]
    head = f"<header><h1>{html.escape(bundle['name'])}: what a query costs</h1>"
    head += "".join(f"<p>{html.escape(line)}</p>" for line in lines)
    head += "".join(f'<p class="warn">{each}</p>' for each in results.caveats())
    head += "</header>" + _tiles(results)
    floors = [machine_table(results), graph_table(results.graphs)]
    sections = [
        _section("Where the time goes", BREAKDOWN, [bar_chart(*each) for each in plots.breakdown(results)]),
        _section("Latency", LATENCY, plots.distributions(results)),
        _section("Throughput against latency", LOOPS, plots.loops(results)),
        _section("Scaling", SCALING, plots.scaling(results)),
        _section("Recall against speed", RECALL, plots.recall_by_qps(results)),
        _section("Against the floor", FLOOR, [bar_chart(*each) for each in plots.fractions(results)], floors),
        _section("Precision", QUALITY, [], [quality_table(results.quality)]),
    ]
    stages = "".join(_table(table) for table in all_tables(results))
    missing = [f"{what}: {why}" for what, why in {**about["left_out"], **results.failed}.items()]
    notes = "".join(f"<p class='muted'>not measured: {html.escape(each)}</p>" for each in missing)
    everything = f"<h2>All figures</h2><details><summary>tables of every case</summary>{stages}</details>{notes}"
    return f"<article>{head}{''.join(sections)}{everything}</article>"


NAMES = {"text": "query by text", "image": "query by image", "both": "query by image and text"}
BREAKDOWN = (
    "Stages measured one by one, at their medians, beside the whole query (the black mark) and where each graph would "
    "end if it took its floor's time (dashed). A query of a text passes tokeniser, text encoder and fusion; of an "
    "image decoding, image encoder and fusion."
)
LATENCY = "Share of queries that were answered within a time, from the query to its hits. One client, no pause."
LOOPS = (
    "Closed: so many clients wait for their answers before they ask again. Open: queries arrive at random at a fixed "
    "rate, and latency runs from the arrival, so that waiting counts."
)
SCALING = "Items a second by batch and by threads; the dashed line is what perfect scaling would give."
RECALL = "The native graph on one thread: recall of the ten nearest against queries a second, by breadth of search."
FLOOR = (
    "The floor of a graph is the larger of its operations over the machine's rate in a large matrix product and its "
    "bytes (weights, inputs and outputs, once) over its bandwidth; a model that stays in the caches may beat that."
)
QUALITY = "Embeddings of drawn products against those of fp32, and the share of fp32's ten nearest that are found."


def _tiles(results: Results) -> str:
    main = results.about["main_precision"]
    tiles = []
    for each in results.of("end to end"):
        if each.case.precision == main:
            ms = each.figures()["ms"]
            tiles.append((f"{figure(ms['p50'])} ms", f"{NAMES[each.case.what]}, {main}; p99 {figure(ms['p99'])} ms"))
    closed = [(each.figures()["per_s"], each.case.what) for each in results.of("closed loop")]
    if closed:
        tiles.append((figure(max(closed)[0]), f"a second at most: {NAMES[max(closed)[1]]}"))
    resident = max((each.figures()["rss_bytes"] or 0 for each in results.measurements.values()), default=0)
    if resident:
        tiles.append((f"{resident / 1e6:,.0f} MB", "resident at most, all precisions loaded"))
    shown = "".join(f'<div class="tile"><b>{value}</b><span>{html.escape(what)}</span></div>' for value, what in tiles)
    return f'<div class="tiles">{shown}</div>' if tiles else ""


def _section(title: str, text: str, figures: Sequence[str], tables: Sequence[Table | None] = ()) -> str:
    shown = [each for each in figures if each]
    found = [_table(each) for each in tables if each]
    if not shown and not found:
        return ""
    plotted = f'<div class="plots">{"".join(shown)}</div>' if shown else ""
    return f"<section><h2>{title}</h2><p class='muted'>{text}</p>{plotted}{''.join(found)}</section>"


def _table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in table.head)
    rows = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in line) + "</tr>" for line in table.lines)
    return (
        f'<div class="scroll"><table><caption>{html.escape(table.title)}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _index(name: str, sets: Mapping[str, Any]) -> str:
    charts = [line_chart(*chart) for chart in plots.index_recall(sets)]
    text = f"Same vectors, M and ef_construction for all, one thread, by turns ({html.escape(name)})."
    return _section("Search beside other packages", text, charts)


def _peers(name: str, data: Mapping[str, Any]) -> str:
    """Ratios of benchmarks/peers.py, lost rows first."""
    rows = sorted(data["rows"], key=lambda row: row["ratio"] if row.get("ratio") else float("inf"))
    charts = [bar_chart(*chart) for chart in plots.peer_ratios(rows)]
    lines = [
        [
            f"{row['work']}: {row['peer']}",
            figure(row.get("ms")),
            figure(row.get("ours_ms")),
            figure(row.get("ratio")),
            "-" if not row.get("ratio_interval") else " to ".join(figure(each) for each in row["ratio_interval"]),
            row.get("note", ""),
        ]
        for row in rows
    ]
    head = ("", "peer ms", "uniecs ms", "ratio", "95 % interval", "")
    text = f"Each peer in a process of its own, in rounds; a ratio above 1 is in our favour ({html.escape(name)})."
    table = Table("Rows, lost ones first", head, lines) if lines else None
    return _section("Beside other packages", text, charts, [table])
