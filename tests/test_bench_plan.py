"""`uniecs plan`: its arithmetic against sums by hand, what it refuses, and what it prints."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from uniecs import cli
from uniecs.bench.plan import Demand, Measured, Need, needs, read_measured
from uniecs.bench.run import Results
from uniecs.bench.samples import Case, Measurement, Round
from uniecs.bench.scenarios import QUICK, Effort
from uniecs.errors import InputError

MIX = {"text": 0.7, "image": 0.2, "both": 0.1}
MEASURED = Measured(
    encode_core_s={"text": 0.010, "image": 0.050, "both": 0.060},
    search_core_s=0.0001,
    searched_products=10_000,
    graph_bytes=1_000.0,
    disk_bytes=3_000.0,
    model_bytes=5e8,
    machine_bytes=100e9,
    catalogue_core_s=0.036,
    gpu_s={},
)


def by_name(demand: Demand, measured: Measured = MEASURED) -> dict[str, Need]:
    return {each.name: each for each in needs(demand, measured)}


def test_a_plan_by_hand() -> None:
    found = by_name(Demand(100e6, 2000, MIX))
    # 100 GB of graphs, of which a machine of 100 GB takes 80: two machines, each searched by every query.
    assert found["machines"].value == 2
    search_s = 2 * 0.0001 * math.log(50e6) / math.log(10_000)
    assert found["search of a query"].value == pytest.approx(search_s * 1e3)
    encode_s = 0.7 * 0.010 + 0.2 * 0.050 + 0.1 * 0.060
    assert found["cores"].value == pytest.approx(2000 * (encode_s + search_s) / 0.6)
    assert found["memory"].value == pytest.approx(100 + 2 * 0.5)
    assert found["disk"].value == pytest.approx(300)
    assert found["to embed the catalogue"].value == pytest.approx(100e6 * 0.036 / 3600)
    assert "GPUs" not in found
    assert "0.7 x 0.01 + 0.2 x 0.05 + 0.1 x 0.06" in found["cores"].numbers


def test_a_small_catalogue_needs_one_machine_and_no_deeper_search() -> None:
    found = by_name(Demand(5_000, 1, {"text": 1.0}))
    assert found["machines"].value == 1
    assert found["search of a query"].value == pytest.approx(0.1)
    assert found["cores"].value == pytest.approx((0.010 + 0.0001) / 0.6)


def test_gpus_come_from_gpu_figures_alone() -> None:
    measured = Measured(**{**vars(MEASURED), "gpu_s": {"text": 0.001, "image": 0.002, "both": 0.003}})
    found = by_name(Demand(100e6, 2000, MIX), measured)
    assert found["GPUs"].value == pytest.approx(2000 * (0.0007 + 0.0004 + 0.0003) / 0.6)


@pytest.mark.parametrize(
    ("products", "qps", "mix"),
    [
        (0, 1, {"text": 1.0}),
        (1, 0, {"text": 1.0}),
        (1, 1, {"text": 0.5}),
        (1, 1, {"text": 1.5, "image": -0.5}),
        (1, 1, {"words": 1.0}),
        (float("nan"), 1, {"text": 1.0}),
    ],
)
def test_demands_that_are_none(products: float, qps: float, mix: dict[str, float]) -> None:
    with pytest.raises(InputError):
        Demand(products, qps, mix)


def results(device: str = "cpu", cores: int = 4) -> Results:
    """Closed loops at 50, 20 and 10 queries a second at most; batches at 200, 100 and 80."""
    made = list[Measurement]()

    def add(case: Case, ms: float, calls_a_second: float, rss: int = 10**8) -> None:
        rounds = [Round(np.array([ms], np.float32), 1 / calls_a_second, 0.1, rss)]
        made.append(Measurement(case, rounds))

    for kind, per_s, batched in (("text", 50, 200), ("image", 20, 100), ("both", 10, 80)):
        for concurrency in (1, 8):
            add(Case("closed loop", kind, "fp32", concurrency=concurrency), 1, per_s * (0.5 if concurrency == 1 else 1))
        add(Case("batch", kind, "fp32", 32), 1, batched / 32)
        add(Case("batch", kind, "fp32", 1), 1, batched / 2)
    for storage, ms in (("float32", 0.5), ("int8", 2.0)):
        add(Case("search", f"10,000 products, {storage}, no filter"), ms, 100)
    add(Case("preprocess", "text, 16 tokens", threads=1), 0.1, 100)
    add(Case("preprocess", "JPEG, 1000 px", threads=1), 4.0, 100)
    add(Case("cold start", "first text", "fp32"), 500, 1, 4 * 10**8)
    about: dict[str, Any] = {
        "machine": {"cpu": "a CPU", "cores": cores, "usable_cores": cores, "memory_bytes": 64 * 10**9},
        "bundle": {"name": "mini", "model_id": "mini-1"},
        "started": "now",
        "backend": "openvino",
        "device": device,
        "main_precision": "fp32",
        "searched_products": 10_000,
        "bytes_per_product": {"graph float32": 1200.0, "graph int8": 450.0, "store": 1500.0},
    }
    return Results(about, {each.case.key: each for each in made}, complete=True)


def test_what_is_read_from_results() -> None:
    found = read_measured(results(), "float32")
    # Four cores at 50 a second: 0.08 s of a core for a query, the search's 0.5 ms out of it.
    assert found.encode_core_s["text"] == pytest.approx(0.08 - 0.0005)
    assert found.encode_core_s["both"] == pytest.approx(0.4 - 0.0005)
    assert found.search_core_s == pytest.approx(0.0005) and found.searched_products == 10_000
    assert (found.graph_bytes, found.disk_bytes) == (1200, 2700)
    assert found.catalogue_core_s == pytest.approx(4 / 80) and found.model_bytes == 4 * 10**8
    assert found.gpu_s == {}
    small = read_measured(results(), "int8")
    assert small.graph_bytes == 450 and small.search_core_s == pytest.approx(0.002)  # searched for longer
    gpu = read_measured(results("cuda"), "float32")
    assert gpu.gpu_s == pytest.approx({"text": 1 / 200, "image": 1 / 100, "both": 1 / 80})
    assert gpu.encode_core_s == pytest.approx({"text": 0.0001, "image": 0.004, "both": 0.0041})


@pytest.mark.parametrize("stage", ["closed loop", "search", "batch", "cold start", "preprocess"])
def test_results_that_lack_a_stage(stage: str) -> None:
    some = results("cuda" if stage == "preprocess" else "cpu")
    some.measurements = {key: each for key, each in some.measurements.items() if each.case.stage != stage}
    started = Measurement(Case("cold start", "import uniecs"), [Round(np.ones(1, np.float32), 1, 1, 1)])
    some.measurements["import"] = started  # a start that no model is in
    with pytest.raises(InputError, match=stage):
        read_measured(some, "float32")
    with pytest.raises(InputError, match="hnsw"):
        read_measured(results(), "float16")
    some = results()  # of an index of the user's own, which has one storage
    some.about["bytes_per_product"]["graph float16"] = 700.0
    with pytest.raises(InputError, match="no search in float16"):
        read_measured(some, "float16")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results().write(tmp_path / "r.json")
    argv = ["plan", "--products", "100e6", "--qps", "2000", "--mix", "text=0.7,image=0.2,both=0.1"]
    argv += ["--results", str(tmp_path / "r.json")]
    assert cli.main(argv) == 0
    out = capsys.readouterr().out
    for words in ("100,000,000 products", "cores: ", "= queries a second x (sum", "GPUs: none were measured", "a CPU"):
        assert words in out
    assert cli.main([*argv, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["demand"]["qps"] == 2000 and len(document["needs"]) == 6 and not document["caveats"]
    assert cli.main([*argv[:-1], str(tmp_path / "absent.json")]) == 1
    assert "absent.json is no file; `uniecs bench MODEL --out FILE` writes it" in capsys.readouterr().err
    odd = results()
    odd.about["machine"] = {"usable_cores": 4}
    odd.write(tmp_path / "odd.json")
    assert cli.main([*argv[:-1], str(tmp_path / "odd.json")]) == 1
    assert "odd.json lacks 'memory_bytes'" in capsys.readouterr().err
    for bad in (argv[:-2], [*argv[:6], "text", *argv[7:]], [*argv[:6], "text=0.5,text=1", *argv[7:]]):
        with pytest.raises(SystemExit) as exit_:
            cli.main(bad)
        assert exit_.value.code == 2


def test_a_plan_from_quick_results_warns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick = results()
    quick.about["settings"] = {**asdict(QUICK), "stages": []}
    quick.complete = False
    quick.write(tmp_path / "r.json")
    argv = ["plan", "--products", "1e6", "--qps", "2", "--mix", "text=1", "--results", str(tmp_path / "r.json")]
    assert cli.main(argv) == 0
    out = capsys.readouterr().out
    assert "WARNING: measured with --quick" in out and "WARNING: the run was interrupted" in out
    assert cli.main([*argv, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["caveats"]) == 2
    quick.about["settings"] = {**asdict(Effort()), "stages": []}
    assert quick.caveats() == ["the run was interrupted: rounds are missing"]
