"""The report: one page that parses, needs nothing else, and holds every plot; the sums of its axes."""

from __future__ import annotations

import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from uniecs import cli
from uniecs.bench import charts, machine, plots
from uniecs.bench.charts import Axis, Bar, Series
from uniecs.bench.report import write_report
from uniecs.bench.run import Results
from uniecs.bench.samples import Case, Measurement, Round
from uniecs.bench.scenarios import KINDS
from uniecs.errors import InputError

VOID = {"meta", "br", "line", "circle", "rect", "path"}
POINTS = [{"ef": 10, "recall": 0.9, "qps": 9000.0}, {"ef": 64, "recall": 0.99, "qps": 2000.0}]


class Page(HTMLParser):
    """Tags in their order, and whether each is closed by its own."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.tags, self.links, self.captions = list[str](), list[str](), list[str](), list[str]()
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "figcaption":
            self.captions.append(data)


def full_results() -> Results:
    """A run with a few samples of every case that a plot shows."""
    about = {
        "machine": machine.describe_machine(),
        "versions": {"uniecs": "1"},
        "git_commit": "abc",
        "bundle": {"name": "<b>&", "model_id": "mini-1"},
        "settings": {"rounds": 1},
        "started": "now",
        "load_average": [1.0, None],
        "left_out": {"fp16": "not here"},
        "backend": "openvino",
        "device": "cpu",
        "main_precision": "fp32",
    }
    cases = [Case("preprocess", "text, 16 tokens"), Case("preprocess", "JPEG, 1000 px"), Case("search", "9, no filter")]
    for precision in ("fp32", "bf16"):
        cases += [Case("end to end", kind, precision) for kind in KINDS]
        graphs = ("text_encoder", "image_encoder", "fusion", "fusion of a text", "fusion of an image")
        cases += [Case("graph", graph, precision) for graph in graphs]
        cases += [Case("batch", kind, precision, batch) for kind in KINDS for batch in (1, 2, 4)]
    cases += [Case("closed loop", kind, "fp32", concurrency=count) for kind in KINDS for count in (1, 8)]
    cases += [Case("open loop", kind, "fp32", concurrency=16, rate=rate) for kind in KINDS for rate in (5.0, 9.0)]
    cases += [Case("threads", "text", "fp32", 1, count) for count in (1, 2)]
    cases += [Case("hnsw", "9 vectors", ef=ef) for ef in (0, 10, 64)]
    made = {}
    for number, case in enumerate(cases):
        ms = np.random.default_rng(number).gamma(2.0, 3.0, 50).astype(np.float32)
        extra = {"recall": 0.9 + 0.001 * number} if case.stage == "hnsw" else {}
        made[case.key] = Measurement(case, [Round(ms, float(ms.sum()) / 1e3, 0.1, 10**8)], extra)
    line = {"graph": "fusion", "precision": "fp32", "bound": "memory", "fraction": 0.7, "operations": 1, "bytes": 1}
    graphs_ = [{**line, "batch": batch, "p50_ms": 1, "compute_ms": 1, "memory_ms": 1} for batch in (1, 32)]
    quality = {"precision": "bf16", "kind": "text", "products": 9, "cosine_mean": 1, "cosine_min": 1, "recall_at_10": 1}
    return Results(about, made, [quality], graphs_, {}, True)


def index_results(points: dict[str, Any]) -> dict[str, Any]:
    return {"sets": {"some vectors": {"search": {"1": {"points": points}}}}}


@pytest.fixture
def page(tmp_path: Path) -> tuple[str, Page]:
    full_results().write(tmp_path / "run.json")
    (tmp_path / "index.json").write_text(json.dumps(index_results({"uniecs float32": POINTS, "faiss": POINTS})))
    row = {"work": "text query", "peer": "slow <one>", "ms": 4.0, "ours_ms": 2.0, "ratio": 2.0}
    rows = [
        {**row, "ratio_interval": [1.8, 2.2]},
        {"work": "text query", "peer": "absent", "note": "cannot be imported"},
    ]
    (tmp_path / "peers.json").write_text(json.dumps({"format": "uniecs-peers", "rows": rows}))
    sources = [str(tmp_path / name) for name in ("run.json", "index.json", "peers.json")]
    assert cli.main(["bench", "report", *sources, "--out", str(tmp_path / "sub" / "r.html")]) == 0
    text = (tmp_path / "sub" / "r.html").read_text("utf-8")
    return text, Page(text)


def test_the_page_parses_and_needs_nothing_else(page: tuple[str, Page]) -> None:
    text, parsed = page
    assert parsed.open == [] and parsed.links == []
    assert not {"script", "link", "img", "iframe", "object"} & set(parsed.tags)
    assert not re.search(r"https?:|@import|url\(", text)
    assert "prefers-color-scheme: dark" in text
    assert "&lt;b&gt;&amp;" in text and "slow &lt;one&gt;" in text
    assert "not measured: fp16: not here" in text and "cannot be imported" in text


def test_every_plot_is_there(page: tuple[str, Page]) -> None:
    captions = page[1].captions
    wanted = [f"{name}{kind}" for name in ("A query by ", "Latency of a query by ", "Batches: ") for kind in KINDS]
    wanted += ["Closed loop", "Open loop", "Threads", "The graph, 9 vectors", "text query"]
    wanted += ["Share of the floor, batch 1", "Share of the floor, batch 32", "some vectors"]
    assert sorted(captions) == sorted(wanted)


def test_the_drawings_are_xml_without_bad_numbers(page: tuple[str, Page]) -> None:
    drawings = re.findall(r"<svg.*?</svg>", page[0], re.DOTALL)
    assert len(drawings) == len(page[1].captions)
    for drawing in drawings:
        tree = ElementTree.fromstring(drawing)
        assert "nan" not in drawing and "inf" not in drawing.replace("information", "")
        width, height = (float(each) for each in tree.attrib["viewBox"].split()[2:])
        for dot in tree.iter("circle"):
            assert 0 <= float(dot.attrib["cx"]) <= width and 0 <= float(dot.attrib["cy"]) <= height
        assert tree.find(".//path") is not None or tree.find(".//rect") is not None


def test_a_run_that_was_interrupted_says_so(tmp_path: Path) -> None:
    results = full_results()
    results.complete = False
    results.write(tmp_path / "a.json")
    write_report([tmp_path / "a.json"], tmp_path / "a.html")
    text = (tmp_path / "a.html").read_text("utf-8")
    assert "the run was interrupted" in text


def test_names_that_are_no_text_are_written_escaped(tmp_path: Path) -> None:
    results = full_results()
    results.about["versions"] = {"uniecs": "\udce9<script>"}
    source = tmp_path / os.fsdecode(b"caf\xe9.json")
    results.write(source)
    write_report([source], tmp_path / "a.html")
    text = (tmp_path / "a.html").read_text("utf-8")
    assert r"caf\udce9.json" in text and r"uniecs \udce9&lt;script&gt;" in text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("no", "Expecting value"),
        ("[]", "no results"),
        ("{}", "no results"),
        ('{"format": "other"}', "no results"),
        ('{"format": "uniecs-peers"}', "lacks 'rows'"),
        ('{"format": "uniecs-peers", "rows": []}', "nothing that can be drawn"),
        ('{"sets": {"some": 1}}', "no attribute"),
        (json.dumps(index_results({})), "nothing that can be drawn"),
        (json.dumps({**full_results().to_dict(), "machine": {}}), "lacks 'memory_bytes'"),
        (json.dumps({**full_results().to_dict(), "measurements": [], "quality": []}), "nothing that can be drawn"),
    ],
)
def test_files_of_something_else_and_parts_of_files_are_refused(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match=rf"a\.json.* {why}"):
        write_report([tmp_path / "a.json"], tmp_path / "a.html")
    assert not (tmp_path / "a.html").exists()


def test_two_files_of_one_name_are_both_drawn_and_neither_is_overwritten(tmp_path: Path) -> None:
    sources = [tmp_path / name / "index.json" for name in "ab"]
    for path in sources:
        path.parent.mkdir()
        path.write_text(json.dumps(index_results({"faiss": POINTS})))
    write_report(sources, tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text("utf-8")
    assert Page(text).captions == ["some vectors"] * 2 and all(str(path) in text for path in sources)
    with pytest.raises(InputError, match="one of the results"):
        write_report(sources, tmp_path / "b" / ".." / "a" / "index.json")
    assert json.loads(sources[0].read_text("utf-8"))


def test_ticks() -> None:
    assert charts.linear_ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert charts.linear_ticks(0, 0.9) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])
    assert charts.log_ticks(1, 100) == [1, 2, 5, 10, 20, 50, 100]
    assert charts.log_ticks(0.5, 100_000) == [1, 10, 100, 1000, 10_000, 100_000]
    assert charts.log_ticks(3.9, 8.8) == [4, 5, 6, 7, 8]  # not 5 alone
    assert [charts.number(each) for each in (0.1234, 12.34, 1234.0, 12340.0, 2.5e6)] == [
        "0.123",
        "12.3",
        "1,234",
        "12.3k",
        "2.5M",
    ]


def test_places_of_points() -> None:
    chart = charts.line_chart(
        "t", Axis("x", low=0, high=10), Axis("y", low=0, high=10), [Series("s", [(0, 0), (10, 10)])]
    )
    dots = ElementTree.fromstring(re.findall(r"<svg.*</svg>", chart)[0]).findall("circle")
    places = [(float(dot.attrib["cx"]), float(dot.attrib["cy"])) for dot in dots]
    left, bottom = charts.LEFT, charts.HEIGHT - charts.BOTTOM
    assert places == [(left, bottom), (charts.WIDTH - charts.RIGHT, charts.TOP)]
    assert charts.line_chart("t", Axis("x"), Axis("y"), [Series("s", [])]) == ""
    bars = charts.bar_chart("t", [Bar("a", [("p", 1, 0), ("q", 3, 1)], "4")], "ms")
    boxes = ElementTree.fromstring(re.findall(r"<svg.*</svg>", bars)[0]).findall("rect")
    assert float(boxes[1].attrib["width"]) == pytest.approx(3 * float(boxes[0].attrib["width"]), abs=0.2)


def test_a_graph_s_floor_stands_where_the_graph_would_end() -> None:
    found = full_results()
    found.graphs[:] = [
        {"graph": "text_encoder", "precision": "fp32", "batch": 1, "compute_ms": 2.0, "memory_ms": 3.0},
        {"graph": "text_encoder", "precision": "fp32", "batch": 32, "compute_ms": 9.0, "memory_ms": 9.0},
        {"graph": "fusion of a text", "precision": "fp32", "batch": 1, "compute_ms": 0.5, "memory_ms": 0.1},
    ]
    (_, (bar, *others), _), *_ = plots.breakdown(found)
    sizes = {name: size for name, size, _ in bar.parts}
    before = sizes["tokeniser"], sizes["tokeniser"] + sizes["text encoder"]
    floors = [("text encoder at its floor", before[0] + 3.0), ("fusion at its floor", before[1] + 0.5)]
    assert bar.floors == [(name, pytest.approx(at)) for name, at in floors]
    assert not any(each.floors for each in others)  # of bf16 there are none
    assert 'class="floor"' in charts.bar_chart("t", [bar], "ms")
