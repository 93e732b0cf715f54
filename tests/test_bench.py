"""`uniecs bench`: percentiles, loops by a clock of the test, counted work, results, an interrupt; no real times."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from uniecs import cli
from uniecs.backends.openvino import has_precision, make_core
from uniecs.bench import floor, inputs, loops, machine, operations, quality, run, samples, scenarios, tables
from uniecs.bench.loops import Clock, closed_loop, open_loop, poisson
from uniecs.bench.samples import Case, Measurement, Round, interval, pack, percentiles, unpack
from uniecs.bundle import Bundle, locate_bundle, open_bundle
from uniecs.errors import BackendError, IndexFileError, InputError, ModelMismatchError

TINY = scenarios.Effort(2, 0.001, 0.02, 2, 300, 64, 1 << 16, 12)


class FakeClock:
    """Seconds that pass only when somebody waits or works."""

    def __init__(self) -> None:
        self.time = 100.0

    def now(self) -> float:
        return self.time

    def wait(self, stop: threading.Event, seconds: float) -> bool:
        assert seconds > 0
        self.time += seconds
        return stop.is_set()


def test_percentiles_are_samples() -> None:
    ms = np.arange(1, 101, dtype=np.float32)
    np.random.default_rng(0).shuffle(ms)
    assert percentiles(ms) == {"p50": 50, "p95": 95, "p99": 99, "max": 100}
    assert percentiles(np.array([7], np.float32)) == {"p50": 7, "p95": 7, "p99": 7, "max": 7}


def test_interval_by_hand() -> None:
    # Logarithms 0 and 1: mean 0.5, deviation 1/sqrt(2), half = 12.71 / sqrt(2) / sqrt(2).
    low, high = interval([1.0, float(np.e)]) or (0, 0)
    assert (np.log(low), np.log(high)) == pytest.approx((0.5 - 12.71 / 2, 0.5 + 12.71 / 2))
    assert interval([3.0]) is None
    assert interval([3.0, 3.0, 3.0]) == pytest.approx((3.0, 3.0))


def test_samples_survive_packing_and_damage_is_seen() -> None:
    ms = np.random.default_rng(0).random(1000).astype(np.float32)
    assert np.array_equal(unpack(pack(ms)), ms)
    for bad in ("", "!", pack(ms)[:-8], "AAAA"):
        with pytest.raises(InputError):
            unpack(bad)


def test_closed_loop_counts_and_stops() -> None:
    clock, numbers = FakeClock(), list[int]()

    def call(number: int) -> None:
        numbers.append(number)
        clock.time += 0.5

    done = closed_loop(call, 2.0, clock=Clock(clock.now, clock.wait))
    assert numbers == [0, 1, 2, 3] and done.ms.tolist() == [500] * 4 and done.wall_s == 2.0
    assert len(closed_loop(call, 100.0, most=3, clock=Clock(clock.now)).ms) == 3
    assert len(closed_loop(call, 0.0, clock=Clock(clock.now)).ms) == 1  # at least one


def test_closed_loop_of_several_threads() -> None:
    numbers = list[int]()
    done = closed_loop(numbers.append, 100.0, most=40, concurrency=4)
    assert sorted(numbers) == list(range(40)) and len(done.ms) == 40


def test_open_loop_counts_from_the_arrival() -> None:
    """One worker, calls of 1 s: what arrives meanwhile has waited, and its latency says so."""
    clock = FakeClock()

    def call(number: int) -> None:
        clock.time += 1.0

    done = open_loop(call, [0.0, 0.25, 0.5, 5.0], 1, clock=Clock(clock.now, clock.wait))
    assert done.ms.tolist() == pytest.approx([1000, 1750, 2500, 1000])
    assert done.wall_s == pytest.approx(6.0)
    # A loop that counts from the call itself would have seen 1000 each time.
    assert percentiles(done.ms)["max"] == pytest.approx(2500)


def test_an_open_loop_that_is_asked_for_too_much_ends_and_says_so() -> None:
    """Ten arrivals a second, one answer: after 5 s what still waits is given up, in the results and the table."""
    clock = FakeClock()

    def call(number: int) -> None:
        clock.time += 1.0

    arrivals = [number / 10 for number in range(20)]
    done = open_loop(call, arrivals, 1, seconds=5.0, clock=Clock(clock.now, clock.wait))
    assert (len(done.ms), done.given_up) == (5, 15) and done.wall_s == pytest.approx(5.0)
    made = Measurement(Case("open loop", "text", rate=10.0), [done])
    again = Measurement.from_dict(json.loads(json.dumps(made.to_dict())))
    assert again.to_dict()["overloaded"] and "overloaded" in tables.stage_table("open loop", [again]).lines[0][0]
    even = open_loop(call, arrivals[:2], 1, seconds=5.0, clock=Clock(clock.now, clock.wait))
    assert even.given_up == 0 and not Measurement(made.case, [even]).figures()["overloaded"]


def test_open_loop_raises_what_a_worker_raised() -> None:
    def call(number: int) -> None:
        raise BackendError("no")

    for workers in (1, 3):
        with pytest.raises(BackendError, match="no"):
            open_loop(call, [0.0] * 5, workers)


@pytest.mark.parametrize("kind", ["closed", "open"])
def test_an_interrupt_waits_for_the_calls_under_way_and_for_no_arrival(kind: str) -> None:
    """A thread left in native code would end the process by SIGABRT at its exit."""

    def call(number: int) -> None:
        if number == 0:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        time.sleep(0.2)

    # A shell that starts its jobs in the background has them ignore the signal.
    kept = signal.signal(signal.SIGINT, signal.default_int_handler)
    before, begun = threading.enumerate(), time.perf_counter()
    try:
        with pytest.raises(KeyboardInterrupt):
            if kind == "closed":
                closed_loop(call, 5.0, concurrency=3)
            else:
                open_loop(call, [0.0, 0.0, 5.0], 3)  # the third never comes
    finally:
        signal.signal(signal.SIGINT, kept)
    assert threading.enumerate() == before and time.perf_counter() - begun < 3


def test_poisson_arrivals() -> None:
    arrivals = poisson(200.0, 50.0, 0)
    assert np.array_equal(arrivals, poisson(200.0, 50.0, 0)) and not np.array_equal(arrivals, poisson(200.0, 50.0, 1))
    assert (np.diff(arrivals) > 0).all() and arrivals[-1] < 50
    assert len(arrivals) == pytest.approx(10_000, rel=0.05)
    gaps = np.diff(arrivals)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)  # exponential
    assert poisson(0.001, 1.0, 0).tolist() == [1.0]  # at least one, and no wait of minutes for it


def test_an_open_loop_is_bounded_at_any_rate() -> None:
    """A million arrivals a second for 5 s: some 4,000 are made, and given up after twice their time."""
    task = scenarios.Task(Case("open loop", "text", concurrency=2, rate=1e6), lambda number: time.sleep(0.01))
    done = run.measure_once(task, scenarios.Effort(slice_s=0.001), 0)
    assert 3_700 < len(done.ms) + done.given_up < 4_300 and done.wall_s < 3 and done.given_up


def measurement(stage: str = "encode", seconds: float = 1.0, **case: Any) -> Measurement:
    rounds = [Round(np.array([1, 2, 3], np.float32) * number, seconds, 0.5, 10**8 + number) for number in (1, 2)]
    return Measurement(Case(stage, "text", "fp32", **case), rounds)


def test_figures_by_hand() -> None:
    figures = measurement(batch=4).figures()
    assert figures["calls"] == 6 and figures["ms"]["max"] == 6 and figures["ms"]["p50"] == 2
    assert figures["per_s"] == 6 * 4 / 2 and figures["cpu_ms"] == pytest.approx(1000 / 6)
    assert figures["rss_bytes"] == 10**8 + 2
    low, high = figures["p50_interval_ms"]
    assert low < 2 < 4 < high  # the medians of the rounds are 2 and 4


def results() -> run.Results:
    about = {
        "machine": machine.describe_machine(),
        "versions": {"uniecs": "1"},
        "git_commit": None,
        "bundle": {"name": "mini", "model_id": "mini-1"},
        "settings": {"rounds": 2},
        "started": "now",
        "load_average": [1.0, 2.0],
        "left_out": {},
        "backend": "openvino",
        "device": "cpu",
        "main_precision": "fp32",
    }
    made = [measurement(), measurement("open loop", rate=20.0), measurement("hnsw", ef=10)]
    made[2].extra["recall"] = 0.95
    return run.Results(about, {each.case.key: each for each in made}, complete=True)


def test_results_survive_a_file(tmp_path: Path) -> None:
    before = results()
    before.write(tmp_path / "a.json")
    after = run.read_results(tmp_path / "a.json")
    assert after.to_dict() == before.to_dict()
    assert list(tmp_path.iterdir()) == [tmp_path / "a.json"]
    assert after.measurements["hnsw / text / fp32 / ef 10"].extra == {"recall": 0.95}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "uniecs-bench", "format_version": 2}'])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match=r"a\.json"):
        run.read_results(tmp_path / "a.json")


def test_a_damaged_measurement_is_refused() -> None:
    document = results().to_dict()
    document["measurements"][0]["rounds"][0]["ms"] = "?"
    with pytest.raises(InputError, match="damaged"):
        run.Results.from_dict(document)
    del document["measurements"][0]["rounds"]
    with pytest.raises(InputError, match="rounds"):
        run.Results.from_dict(document)


def test_keys_tell_cases_apart() -> None:
    cases = [Case("threads", "text", "fp32", threads=count, batch=batch) for count in (1, 2, None) for batch in (1, 32)]
    assert len({each.key for each in cases}) == 6
    assert Case("hnsw", "a", ef=0).key == "hnsw / a / ef 0"
    assert Case("open loop", "text", "bf16", concurrency=16, rate=20.0).key.endswith("concurrency 16 / rate 20.0")


def test_counted_work_of_a_small_graph(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="writing a graph needs onnx")
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    weights = {
        "table": random.random((100, 6), np.float32),
        "w": random.random((6, 5), np.float32),
        "g": random.random((7, 5), np.float32),
        "k": random.random((4, 1, 3, 3), np.float32),
    }
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["x"]),  # (B, 3, 6)
        helper.make_node("MatMul", ["x", "w"], ["y"]),  # (B, 3, 5)
        helper.make_node("Transpose", ["y"], ["t"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["y", "t"], ["s"]),  # (B, 3, 3)
        helper.make_node("Unsqueeze", ["s", "one"], ["i"]),  # (B, 1, 3, 3)
        helper.make_node("Conv", ["i", "k"], ["c"]),  # (B, 4, 1, 1)
        helper.make_node("ReduceMax", ["y"], ["m"], keepdims=0, axes=[1]),  # (B, 5)
        helper.make_node("Gemm", ["m", "g"], ["z"], transB=1),  # (B, 7)
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", 3])],
        [
            helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", 7]),
            helper.make_tensor_value_info("c", TensorProto.FLOAT, ["batch", 4, 1, 1]),
        ],
        [
            *(numpy_helper.from_array(array, name) for name, array in weights.items()),
            numpy_helper.from_array(np.array([1]), "one"),
        ],
    )
    path = tmp_path / "small.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    for batch in (1, 2):
        work = operations.count_work(path, {"ids": (batch, 3)})
        by_hand = 2 * (3 * 5 * 6 + 3 * 3 * 5 + 4 * 9 + 7 * 5)
        assert work.operations == batch * by_hand
        assert work.weights == batch * 3 * 6 + 6 * 5 + 7 * 5 + 4 * 9  # of the table the rows that are looked up
        assert work.ports == batch * (3 + 7 + 4)
        assert work.bytes("fp32") == 2 * work.bytes("bf16") == 4 * work.bytes("int8")


def test_counted_work_of_mini_is_its_architecture() -> None:
    """The text encoder of mini: 3 layers, 384 wide, 4 times as wide within, and a projection to 256."""
    bundle, tokens, d = open_bundle(locate_bundle("mini")), 16, 384
    work = operations.count_work(bundle.graph_path("text_encoder"), scenarios.graph_shapes(bundle, "text_encoder", 1))
    by_hand = 3 * (2 * tokens * 12 * d * d + 2 * 2 * tokens * tokens * d) + 2 * tokens * d * 256
    assert work.operations == by_hand


def test_floor_is_the_larger_term() -> None:
    work = operations.Work(operations=10**9, weights=10**6, ports=0)
    floor = operations.floor_of(work, "fp32", 1e11, 1e9)
    assert (floor.compute_ms, floor.memory_ms, floor.ms, floor.bound) == (10.0, 4.0, 10.0, "compute")
    assert operations.floor_of(work, "fp32", 1e12, 1e9).bound == "memory"


def test_fractions_use_the_rates_of_the_same_run() -> None:
    bundle, found = open_bundle(locate_bundle("mini")), results()

    def add(case: Case, ms: float, **extra: float) -> None:
        found.measurements[case.key] = Measurement(case, [Round(np.array([ms], np.float32), 1, 1, 1)], extra)

    add(Case("floor", "matmul", "fp32"), 10.0, operations=1e9)  # 1e11 a second
    add(Case("floor", "memory read"), 1.0, bytes=1e7)  # 1e10 a second
    add(Case("graph", "text_encoder", "fp32"), 4.0)
    add(Case("graph", "text_encoder", "int8"), 4.0)  # its rate was not measured
    (line,) = run.graph_fractions(bundle, found)
    assert line["compute_ms"] == pytest.approx(line["operations"] / 1e11 * 1e3)
    assert line["fraction"] == pytest.approx(max(line["compute_ms"], line["memory_ms"]) / 4.0)
    assert tables.graph_table([line]) is not None


def test_overlap() -> None:
    exact = np.array([[1, 2], [3, 4]])
    assert quality.overlap(np.array([[2, 1], [3, 9]]), exact) == 0.75
    assert quality.overlap(np.array([[0, 0], [0, 0]]), exact) == 0.0


def test_rates_and_threads() -> None:
    assert scenarios.open_rates(163.9) == [49.0, 82.0, 110.0, 130.0, 150.0]
    assert scenarios.thread_counts(1) == [1]
    assert scenarios.thread_counts(6) == [1, 2, 4, 6]


def mini(stages: tuple[str, ...], **options: Any) -> run.Plan:
    return run.Plan(open_bundle(locate_bundle("mini")), effort=TINY, stages=stages, precision="fp32", **options)


def test_an_interrupt_keeps_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    measure_once, calls = run.measure_once, list[str]()

    def interrupted(task: Any, effort: Any, turn: int) -> Round:
        if len(calls) == 4:
            raise KeyboardInterrupt
        calls.append(task.case.key)
        return measure_once(task, effort, turn)

    monkeypatch.setattr(run, "measure_once", interrupted)
    found = run.measure(mini(("preprocess", "quality")))
    assert list(found.measurements) == calls and len(calls) == 4
    assert not found.complete and not found.quality
    assert run.Results.from_dict(json.loads(json.dumps(found.to_dict()))).complete is False


def test_an_interrupt_before_anything_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenarios.Bench, "encoders", property(lambda bench: (_ for _ in ()).throw(KeyboardInterrupt)))
    found = run.measure(mini(("preprocess",)))
    assert not found.complete and not found.measurements
    found.write(tmp_path / "r.json")
    assert tables.all_tables(run.read_results(tmp_path / "r.json")) == []


def test_a_case_that_fails_is_told_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizing = scenarios._tokenizing

    def broken(tokenizer: Any, words: Any) -> Any:
        def call(number: int) -> object:
            raise BackendError("out of profile")

        return call if len(words[0]) < 60 else tokenizing(tokenizer, words)

    monkeypatch.setattr(scenarios, "_tokenizing", broken)
    found = run.measure(mini(("preprocess",)))
    assert found.failed["preprocess / text, 8 tokens / threads 1"] == "out of profile"
    assert "preprocess / text, 64 tokens / threads 1" in found.measurements and found.complete


@pytest.fixture
def no_encoders(monkeypatch: pytest.MonkeyPatch) -> None:
    """For stages that run none, and checks before any stage."""
    encoder = SimpleNamespace(model_id="mini-1", embed_dim=256, backend="openvino", device="cpu")
    monkeypatch.setattr(scenarios.Bench, "encoders", {"fp32": encoder})


def test_an_index_that_does_not_fit_is_refused_first(
    tmp_path: Path, no_encoders: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "_all_rounds", lambda *given: pytest.fail("it measures first"))
    with pytest.raises(IndexFileError, match="missing"):
        run.measure(mini(("search",), index=tmp_path / "missing"))
    reference = SimpleNamespace(path=tmp_path, model_id="other-1", embed_dim=256)
    inputs.drawn_index(tmp_path / "other", cast(Bundle, reference), inputs.clustered(10, 1, 256)[0])
    with pytest.raises(ModelMismatchError, match="other-1"):
        run.measure(mini(("end",), index=tmp_path / "other"))


def own_index(folder: Path, products: int) -> Path:
    """Of `mini`, its vectors in no cluster: unlike those that are drawn."""
    bundle = open_bundle(locate_bundle("mini"))
    made = np.random.default_rng(7).standard_normal((products, 256), dtype=np.float32)
    inputs.drawn_index(folder, bundle, made / np.linalg.norm(made, axis=1, keepdims=True), "int8")
    return folder


def test_an_index_of_ones_own_is_what_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenarios, "clustered", lambda *given: pytest.fail("its queries are not the index's own"))
    bench = scenarios.Bench(open_bundle(locate_bundle("mini")), TINY, tmp_path, own_index(tmp_path / "own", 400), {})
    try:
        own = bench.graph.search(bench.queries, 1)[1]
        assert ((own > 0.8) & (own < 0.95)).all()  # each query lies near a product, and is none
        walks = list(scenarios.hnsw(bench))
        assert [each.case.what for each in walks] == ["400 vectors"] * len(scenarios.EFS)
        recalls = [each.extra["recall"] for each in walks]
        assert recalls[1] < recalls[-1] == 1.0
        names = [each.case.what for each in scenarios.search(bench)]
        assert names[:2] == ["400 products, int8, no filter"] * 2
        ((name, where),) = inputs.own_filter(bench.index).items()
        assert names[2:] == [f"400 products, int8, {name} match"] and "colour=" in name
        for hits in bench.index.search(bench.index.config.views[0], bench.queries[:3], 5, where):
            assert len({hit.attributes["colour"] for hit, _ in hits}) == 1
    finally:
        bench.close()


def test_an_index_without_products_is_told(tmp_path: Path) -> None:
    bench = scenarios.Bench(open_bundle(locate_bundle("mini")), TINY, tmp_path, own_index(tmp_path / "own", 0), {})
    try:
        with pytest.raises(InputError, match="no vectors"):
            next(scenarios.search(bench))
    finally:
        bench.close()


def test_a_precision_that_is_not_here_is_an_error_if_it_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def encoder(bench: scenarios.Bench, precision: str) -> Any:
        if precision != "fp32":
            raise BackendError(f"no {precision} here")
        return SimpleNamespace(encode=lambda texts: None)

    def bench(precision: str) -> scenarios.Bench:
        runtime = {"backend": "auto", "device": "auto", "precision": precision}
        return scenarios.Bench(open_bundle(locate_bundle("mini")), TINY, tmp_path, None, runtime)

    monkeypatch.setattr(scenarios.Bench, "encoder", encoder)
    with pytest.raises(BackendError, match="no bf16 here"):
        bench("bf16").encoders  # noqa: B018 (made on use)
    assert list(bench("auto").encoders) == list(bench("fp32").encoders) == ["fp32"]


def test_an_error_late_in_a_run_keeps_what_was_measured(
    tmp_path: Path, no_encoders: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rounds = iter([measurement().rounds[0]] * 3)

    def disk_full(*given: Any) -> Round:
        for each in rounds:
            return each
        raise OSError("disk full")

    monkeypatch.setattr(run, "measure_once", disk_full)
    argv = ["bench", "mini", "--quick", "--stages", "preprocess", "--out", str(tmp_path / "new" / "r.json")]
    assert cli.main(argv) == 1
    assert capsys.readouterr().err.endswith("uniecs: error: disk full\n")
    found = run.read_results(tmp_path / "new" / "r.json")
    assert len(found.measurements) == 3 and not found.complete
    (tmp_path / "new" / "r.json").unlink()
    assert cli.main(argv) == 1  # nothing was measured, and nothing is written
    assert not list((tmp_path / "new").iterdir())


@pytest.mark.parametrize("out", ["", "file/r.json"])
def test_a_place_that_cannot_be_written_is_refused_first(
    tmp_path: Path, out: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "measure", lambda plan: pytest.fail("it measures first"))
    (tmp_path / "file").touch()
    assert cli.main(["bench", "mini", "--out", str(tmp_path / out)]) == 1
    assert capsys.readouterr().err.startswith("uniecs: error: ")


def test_every_stage_on_mini(tmp_path: Path) -> None:
    """All that is measured in one run, as little of each as there can be; every round has every case."""
    pytest.importorskip("onnxruntime", reason="the stage compare needs onnxruntime")
    found = run.measure(mini(tuple(each for each in run.EVERY_STAGE if each != "cold"), rates=(400.0,)))
    assert found.complete and not found.failed
    core = make_core()
    lacking = [each for each in floor.PRECISIONS if not has_precision(core, each)]
    assert set(found.about["left_out"]) == {f"floor {each}" for each in lacking}
    assert {len(each.rounds) for each in found.measurements.values()} == {2}
    stages = sorted({each.case.stage for each in found.measurements.values()})
    assert {"floor", "cold", "end", "closed", "open", "quality"} < set(run.EVERY_STAGE)
    assert len(stages) == len(run.EVERY_STAGE) - 2 and {"end to end", "closed loop", "open loop"} < set(stages)
    assert {each.case.rate for each in found.of("open loop")} == {400.0}
    assert all(each["fraction"] > 0 for each in found.graphs) and len(found.graphs) == 8
    searched = {each.case.what.split(", ")[1] for each in found.of("search") if each.case.what.endswith("no filter")}
    assert searched == {"float32", "float16", "int8"}
    recalls = {each.case.ef: each.extra["recall"] for each in found.of("hnsw")}
    assert recalls[10] < recalls[256] and recalls[256] > 0.99
    found.write(tmp_path / "r.json")
    text = "\n".join(tables.as_text(each) for each in tables.all_tables(run.read_results(tmp_path / "r.json")))
    assert {each.case.what for each in found.of("compare")} > {"text, openvino as it comes"}
    sizes = found.about["bytes_per_product"]
    assert sizes["graph float32"] > sizes["graph float16"] > sizes["graph int8"] > 256 and sizes["store"] > 1024
    for words in ("end to end", "Graphs against the floor", "clients 8", "arrivals a second 400", "recall@10"):
        assert words in text


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out.json"
    argv = ["bench", "mini", "--quick", "--stages", "cold,preprocess", "--precision", "fp32", "--out", str(out)]
    monkeypatch.setattr(scenarios, "QUICK", TINY)
    assert cli.main(argv) == 0
    found = run.read_results(out)
    assert found.about["bundle"]["model_id"].startswith("mini-")
    assert found.about["machine"]["cores"] >= 1 and "openvino" in found.about["versions"]
    cold = {each.case.what: percentiles(each.ms)["p50"] for each in found.of("cold start")}
    assert cold["first text, nothing compiled"] > cold["import uniecs"]
    assert "JPEG, 4000 px" in capsys.readouterr().out
    monkeypatch.setattr(run, "_all_rounds", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
    assert cli.main(argv) == 130
    assert "interrupted" in capsys.readouterr().err
    assert run.read_results(out).complete is False


@pytest.mark.parametrize(
    "argv",
    [
        ["bench"],
        ["bench", "mini", "other.json"],
        ["bench", "report"],
        ["bench", "mini", "--stages", "nonsense"],
        ["bench", "mini", "--rates", "10,no"],
        ["bench", "mini", "--rates", "0"],
        ["bench", "mini", "--stages", "open"],
    ],
)
def test_wrong_usage(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(argv)
    assert exit_.value.code == 2
    assert capsys.readouterr().err


def test_what_the_machine_is() -> None:
    about = machine.describe_machine()
    assert about["cpu"] and about["usable_cores"] <= about["cores"]
    if sys.platform == "linux":
        assert 1e6 < (machine.resident_bytes() or 0) < about["memory_bytes"]
    assert samples.EXTRAS and loops.CLOCK.now() > 0
    assert all(set(each) <= set(machine.GPU_FIELDS) for each in machine.gpu_state())
