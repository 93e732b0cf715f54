"""The scripts beside `uniecs bench`: verdicts of compare.py, the statistics and the protocol of peers.py, the rest."""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def scripts() -> Iterator[SimpleNamespace]:
    """The scripts, which import each other by their bare names."""
    before = set(sys.modules)
    sys.path[:0] = [str(BENCHMARKS), str(BENCHMARKS / "gpu")]
    try:
        names = ("compare", "instructions", "peers", "peer_workers", "h200")
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    finally:
        del sys.path[:2]
        for name in set(sys.modules) - before:
            if str(BENCHMARKS) in str(getattr(sys.modules[name], "__file__", "")):
                del sys.modules[name]


def bench_file(path: Path, p50: float, interval: tuple[float, float] | None, per_s: float = 100.0) -> Path:
    measured = {
        "key": "batch / text / fp32",
        "stage": "batch",
        "ms": {"p50": p50},
        "p50_interval_ms": interval,
        "per_s": per_s,
        "per_s_interval": None if interval is None else [per_s * 0.9, per_s / 0.9],
    }
    path.write_text(json.dumps({"format": "uniecs-bench", "measurements": [measured], "git_commit": str(path)}))
    return path


@pytest.mark.parametrize(
    ("old", "new", "verdicts"),
    [
        ((10.0, (9.5, 10.5), 100.0), (10.6, (10.1, 11.1), 100.0), ["same", "same"]),
        ((10.0, (9.9, 10.1), 100.0), (11.0, (10.9, 11.1), 100.0), ["slower", "same"]),
        ((10.0, (9.9, 10.1), 100.0), (9.0, (8.9, 9.1), 100.0), ["faster", "same"]),
        ((10.0, (9.9, 10.1), 100.0), (10.0, (9.9, 10.1), 150.0), ["faster", "same"]),
        ((10.0, (9.9, 10.1), 100.0), (10.0, (9.9, 10.1), 50.0), ["slower", "same"]),
        ((10.0, None, 100.0), (20.0, (19.0, 21.0), 50.0), ["no interval", "no interval"]),
    ],
)
def test_verdicts(scripts: SimpleNamespace, tmp_path: Path, old: Any, new: Any, verdicts: list[str]) -> None:
    files = [bench_file(tmp_path / name, *each) for name, each in (("old", old), ("new", new))]
    changes = scripts.compare.compare(*(json.loads(path.read_text()) for path in files))
    assert [each.verdict for each in changes] == verdicts
    assert scripts.compare.main([str(path) for path in files]) == 0


def test_a_machine_that_changed_is_told(scripts: SimpleNamespace, tmp_path: Path, capsys: Any) -> None:
    files = [bench_file(tmp_path / name, p50, (p50 * 0.99, p50 * 1.01)) for name, p50 in (("old", 10.0), ("new", 12.0))]
    assert scripts.compare.main([str(path) for path in files]) == 0
    assert "floor" not in capsys.readouterr().out
    for path in files:
        path.write_text(path.read_text().replace("batch / text / fp32", "floor / matmul 2048 / fp32"))
    assert scripts.compare.main([str(path) for path in files]) == 0
    assert "(floor) changed too, by 1.20" in capsys.readouterr().out


def test_what_runs_are_not_alike_in_is_told(scripts: SimpleNamespace, tmp_path: Path, capsys: Any) -> None:
    one = bench_file(tmp_path / "one", 1.0, (0.9, 1.1))
    kept = json.loads(one.read_text())
    other = {"backend": "onnxruntime", "device": "cuda", "main_precision": "bf16", "index": "shop.uniecs"}
    other |= {"settings": {"rounds": 2}, "model": "base", "rounds": 2}
    (tmp_path / "two").write_text(json.dumps({**kept, **other}))
    assert scripts.compare.main([str(one), str(tmp_path / "two")]) == 0
    out = capsys.readouterr().out
    assert all(f"not alike in {key}: None -> {value}\n" in out for key, value in other.items())


def test_metrics_that_one_run_lacks(scripts: SimpleNamespace) -> None:
    def counts(**paths: int) -> dict[str, Any]:
        return {
            "format": "uniecs-instructions",
            "paths": {name: {"instructions": count} for name, count in paths.items()},
        }

    changes = scripts.compare.compare(counts(a=1000, b=1000, c=1, e=1000), counts(a=1009, b=1011, d=1, e=900))
    assert {each.name.split(",")[0]: each.verdict for each in changes} == {
        "a": "same",
        "b": "slower",
        "c": "only old",
        "d": "only new",
        "e": "faster",
    }
    assert changes[0].verdict == "slower" and changes[0].ratio == pytest.approx(1.011)


@pytest.mark.parametrize("text", ["no", "[]", "{}", '{"format": "uniecs-bench"}', '{"format": "uniecs-peers"}'])
def test_files_that_cannot_be_compared(
    scripts: SimpleNamespace, tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    good = bench_file(tmp_path / "good", 1.0, (0.9, 1.1))
    (tmp_path / "bad").write_text(text)
    for files in ((good, tmp_path / "bad"), (tmp_path / "bad", good), (good, tmp_path / "absent")):
        assert scripts.compare.main([str(path) for path in files]) == 2
    assert "cannot be compared" in capsys.readouterr().err


@pytest.mark.parametrize("count", [0, 0.0, float("inf")])
def test_counts_that_cannot_be_compared(scripts: SimpleNamespace, tmp_path: Path, count: float) -> None:
    for name, value in (("old", 5), ("bad", count)):
        report = {"format": "uniecs-instructions", "paths": {"a": {"instructions": value}}}
        (tmp_path / name).write_text(json.dumps(report))
    for files in (("old", "bad"), ("bad", "old")):
        assert scripts.compare.main([str(tmp_path / name) for name in files]) == 2


def test_an_empty_interval_cannot_be_compared(scripts: SimpleNamespace, tmp_path: Path) -> None:
    row = {"work": "text", "peer": "p", "ratio": 2.0, "ratio_interval": []}
    (tmp_path / "bad").write_text(json.dumps({"format": "uniecs-peers", "rows": [row]}))
    assert scripts.compare.main([str(tmp_path / "bad")] * 2) == 2


def test_ratio_and_its_interval(scripts: SimpleNamespace) -> None:
    noise = np.random.default_rng(0).normal(1, 0.02, (2, 40))
    found, (low, high) = scripts.peers.ratio((3 * noise[0]).tolist(), noise[1].tolist())
    assert low < found < high and found == pytest.approx(3, rel=0.02) and high / low < 1.06
    found, interval = scripts.peers.ratio([2.0, 4.0, 2.0], [1.0, 2.0, 1.0])
    assert (found, *interval) == pytest.approx((2, 2, 2))  # a slow round is slow for both
    found, (low, high) = scripts.peers.ratio([1.0, 4.0, 4.0, 4.0], [1.0, 1.0, 4.0, 4.0])  # medians: 1.6
    assert low < found < high and found == pytest.approx(2**0.5)
    assert scripts.peers.ratio([2.0, 2.1], [1.0, 1.0])[1] is None


def test_an_interval_of_few_rounds_holds_the_ratio(scripts: SimpleNamespace) -> None:
    """In 95 of 100 runs; of bootstrap samples in some 75."""
    rounds = np.exp(np.random.default_rng(0).normal(0, 0.1, (400, 2, 3)))
    held = [low <= 1 <= high for low, high in (scripts.peers.ratio(*each)[1] for each in rounds)]
    assert 0.92 < np.mean(held) < 0.98


def test_rows_put_lost_ones_first(scripts: SimpleNamespace) -> None:
    seconds = {"text query": {"uniecs fp32": [2.0, 2.0], "slow": [6.0, 6.0], "fast": [1.0, 1.0], "gone": []}}
    rows = scripts.peers.rows_of(seconds, {"uniecs fp32": {}, "slow": {"": "n"}, "fast": {}})
    assert [(row["peer"], row["note"]) for row in rows] == [("fast", ""), ("slow", "n")]
    assert [row["ratio"] for row in rows] == pytest.approx([0.5, 3])
    assert rows[0]["ours_ms"] == 2000 and "uniecs fp32" in rows[0]["work"]
    assert rows[0]["ratio_interval"] is None and "0.50x []" in scripts.peers.line(rows[0])  # of two rounds


def test_the_page_has_every_row_of_the_peers_lost_ones_first(scripts: SimpleNamespace, tmp_path: Path) -> None:
    for module in ("matplotlib", "sklearn", "tensorboard"):
        pytest.importorskip(module, reason="the pictures need uniecs[bench]")
    report = importlib.import_module("performance_report")
    page = (BENCHMARKS.parent / "docs" / "performance.md").read_text("utf-8")
    for name in report.PEERS:
        assert report.peers_table(json.loads((BENCHMARKS / "results" / f"{name}.json").read_text("utf-8"))) in page
    rows = [("text (uniecs int8)", "a", 1.5), ("text (uniecs fp32)", "a", 0.5), ("text (uniecs int8)", "b", 0.999)]
    made = [{"work": w, "peer": p, "ratio": r, "ratio_interval": [r, r], "note": ""} for w, p, r in rows]
    lines = report.peers_table({"rows": [*made, {"work": "not measured", "peer": "c", "note": "gone"}]}).splitlines()
    assert lines[2:4] == [
        "| text | a | **.50** [.50, .50] | 1.50 [1.50, 1.50] |",
        "| text | b |  | **1.00** [1.00, 1.00] |",
    ]
    assert lines[-1] == "not measured: c: gone"
    bar = importlib.import_module("uniecs.bench.charts").Bar
    chart = ("t", [bar("x", [("a", 1.0, 0), ("b", 2.0, 1)], "3", [("whole", 3.5)], [("a at its floor", 0.5)])], "ms")
    report.draw([chart] * 3, tmp_path / "some.png")
    assert (tmp_path / "some.png").stat().st_size > 1000


WORKER = """
import json, sys
print(json.dumps({"works": ["text query"], "notes": {}, "versions": {}}), flush=True)
for number, line in enumerate(sys.stdin):
    answer = {"seconds": 0.5} if number < LIVES else None
    if answer is None:
        sys.exit("it broke")
    print(json.dumps(answer), flush=True)
"""


def test_a_turn_is_the_median_after_a_first_call(scripts: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first call finds what others left in the caches; one that takes its whole turn is alone."""

    def turn(*spent: float) -> float:
        clock = [0.0]
        calls = iter(spent)
        monkeypatch.setattr(scripts.peers.time, "perf_counter", lambda: clock[0])
        return float(scripts.peers.turn_of(lambda: clock.__setitem__(0, clock[0] + next(calls))))

    assert turn(0.09, 0.01, 0.02, 0.03, 0.04, 0.05) == pytest.approx(0.03)
    assert turn(0.7) == pytest.approx(0.7)
    assert turn(0.4, 0.3) == pytest.approx(0.3)


def test_workers_take_turns_and_one_that_dies_is_told(scripts: SimpleNamespace) -> None:
    lives = {"uniecs fp32": 99, "other": 4}
    workers = {
        name: scripts.peers.Worker(name, [sys.executable, "-c", f"LIVES = {count}{WORKER}"], {})
        for name, count in lives.items()
    }
    try:
        seconds, failed = scripts.peers.rounds_of(workers, 5)
    finally:
        for each in workers.values():
            each.close()
    assert seconds == {"text query": {"uniecs fp32": [0.5] * 5, "other": [0.5] * 2}}  # two rounds are warm-up
    assert list(failed) == ["other"] and "it broke" in failed["other"]
    rows = scripts.peers.rows_of(seconds, {name: {} for name in lives})
    assert rows == []  # a peer that ended before the others is no row: its rounds are not theirs


def test_an_interruption_keeps_the_rounds_that_are_whole(scripts: SimpleNamespace) -> None:
    asked: list[str] = []

    class Stopped:
        def __init__(self) -> None:
            self.about = {"works": ["a", "b"]}

        def turn(self, work: str) -> float:
            asked.append(work)
            if len(asked) == 19:
                raise KeyboardInterrupt
            return float(len(asked))

    seconds, failed = scripts.peers.rounds_of({"one": Stopped(), "two": Stopped()}, 10)
    # Four turns a round, two rounds of warm-up: two whole rounds, and a half that is dropped.
    assert seconds == {"a": {"one": [9.0, 14.0], "two": [10.0, 13.0]}, "b": {"one": [11.0, 16.0], "two": [12.0, 15.0]}}
    assert failed == {}


def test_a_peer_that_cannot_be_imported_is_told(tmp_path: Path) -> None:
    (tmp_path / "open_clip").mkdir()
    (tmp_path / "open_clip" / "__init__.py").write_text("raise ImportError('not on this machine')")
    program = (
        f"import sys; sys.path[:0] = [{str(BENCHMARKS)!r}, {str(tmp_path)!r}]; import peers, peer_workers; "
        "peer_workers.import_torchvision = lambda: ''; from uniecs.bundle import locate_bundle; "
        "peers.serve('open_clip', str(locate_bundle('mini')), 1)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "not on this machine" in json.loads(done.stdout)["error"]


def test_every_peer_has_a_factory(scripts: SimpleNamespace) -> None:
    peers = scripts.peer_workers.PEERS
    assert len(peers) == 16 and sum(name.startswith("uniecs ") for name in peers) == 4
    assert all(callable(make) and packages for make, packages in peers.values())


def test_our_worker_end_to_end(scripts: SimpleNamespace) -> None:
    from uniecs.bundle import locate_bundle

    workers = scripts.peers.start(["uniecs fp32", "ONNX Runtime, defaults"], locate_bundle("mini"), 1, {})
    try:
        for name, each in workers.items():
            if "error" in each.about:  # ONNX Runtime is an extra
                assert name != "uniecs fp32"
                continue
            assert len(each.about["works"]) == 4 and each.turn("image+text query") > 0
    finally:
        for each in workers.values():
            each.close()


@pytest.mark.parametrize("path", ["tokenise", "preprocess", "search"])
def test_what_is_counted_runs(scripts: SimpleNamespace, path: str) -> None:
    core = importlib.import_module("uniecs._core")
    if path != "search" and not hasattr(core, "Tokenizer"):
        pytest.skip("this build of uniecs._core is older than its source")
    scripts.instructions.drive(path, 2)


def test_counts_are_differences(scripts: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scripts.instructions, "count", lambda how, path, calls: 1_000_000 + 250 * calls)
    found = scripts.instructions.measure("valgrind")
    assert {each["instructions"] for each in found.values()} == {250}
    assert 0 < found["search"]["compared"] < scripts.instructions.VECTORS


def test_the_kept_counts_can_be_compared_with(scripts: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    """By .ci/run."""
    kept = BENCHMARKS / "results" / "instructions.json"
    assert set(json.loads(kept.read_text("utf-8"))["paths"]) == set(scripts.instructions.PATHS)
    assert scripts.compare.main(["--all", str(kept), str(kept)]) == 0
    out = capsys.readouterr().out
    assert "search, compared" in out and "4 figures: 4 same" in out


def test_gpu_parts_are_bounded_and_failures_told(scripts: SimpleNamespace, tmp_path: Path) -> None:
    parts = scripts.h200.parts(tmp_path, "runs/base")
    assert [each.name for each in parts] == ["model", "gate", "build", "tensorrt", "onnxruntime"]
    assert not any("--quick" in each.command for each in parts)  # whose figures are not for use
    assert scripts.h200.LIMIT_S < 600 and len(scripts.h200.parts(tmp_path, "none")) == 2
    some = [
        scripts.h200.Part("fails", (sys.executable, "-c", "raise SystemExit('no GPU')"), 30),
        scripts.h200.Part("slow", (sys.executable, "-c", "import time; time.sleep(60)"), 0.5),
        scripts.h200.Part("good", (sys.executable, "-c", "print(1)"), 30),
    ]
    summary = scripts.h200.run_all(some, tmp_path, 60)
    assert [each["status"] for each in summary["parts"]] == ["exit status 1", "cut off after 0 s", "fine"]
    assert "no GPU" in summary["parts"][0]["tail"]
    late = scripts.h200.run_all(some[2:], tmp_path, 5)
    assert "no time left" in late["parts"][0]["status"]


def test_the_gpu_script_refuses_without_a_gpu() -> None:
    torch = pytest.importorskip("torch", reason="the script needs torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    script = BENCHMARKS / "gpu" / "model.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "nothing was run" in done.stderr


def test_the_gpu_script_calls_the_network_as_the_bundle_does() -> None:
    """Its calls on the CPU, at the sizes of `tiny`, against the network called as a whole."""
    torch = pytest.importorskip("torch", reason="the script needs torch")
    from uniecs.config import MODELS
    from uniecs.trainer.model import UniECS

    sys.path[:0] = [str(BENCHMARKS), str(BENCHMARKS / "gpu")]
    try:
        model = importlib.import_module("model")
        network = UniECS(MODELS["tiny"]).eval()
        for kind in ("text", "image", "both"):
            with torch.no_grad():
                found = model.query(network, kind, 2, torch.float32, "cpu")()
            assert found.shape == (2, network.config.embed_dim)
            assert torch.allclose(found.norm(dim=1), torch.ones(2), atol=1e-5)
    finally:
        del sys.path[:2]
        for name in ("model", "gate_kernel"):
            sys.modules.pop(name, None)
