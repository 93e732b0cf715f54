"""A run of the benchmark: rounds over all cases, and the results as one JSON document."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from uniecs.bench import scenarios
from uniecs.bench.loops import MOST, closed_loop, open_loop, poisson
from uniecs.bench.machine import describe_machine, git_commit, gpu_state, load_average, versions
from uniecs.bench.operations import Floor, count_work, floor_of
from uniecs.bench.quality import compare_precisions
from uniecs.bench.samples import Measurement, Round, median
from uniecs.bench.scenarios import QUICK, STAGES, Bench, Effort, Task, graph_of, graph_shapes
from uniecs.bundle import Bundle
from uniecs.errors import InputError, UniecsError
from uniecs.progress import progress_bar

FORMAT, FORMAT_VERSION = "uniecs-bench", 1
EVERY_STAGE = (*STAGES, "open", "quality")
USUAL_STAGES = tuple(each for each in EVERY_STAGE if each != "compare")
WARM_CALLS = 2
PATIENCE = 2
"""Times the seconds in which queries arrive; an open loop that has not begun them all by then is overloaded."""


@dataclass
class Results:
    """What was measured so far; `about` is what it was measured on, `error` what ended it early (not written)."""

    about: dict[str, Any]
    measurements: dict[str, Measurement] = field(default_factory=dict)
    quality: list[dict[str, Any]] = field(default_factory=list)
    graphs: list[dict[str, Any]] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    complete: bool = False
    error: UniecsError | OSError | None = None

    def of(self, stage: str) -> list[Measurement]:
        """The measurements of a stage, by its name in `Case`."""
        return [each for each in self.measurements.values() if each.case.stage == stage]

    def caveats(self) -> list[str]:
        """Why the figures are not for use, or not all there."""
        quick = dataclasses.asdict(QUICK).items() <= self.about.get("settings", {}).items()
        found = ["measured with --quick: these figures are not for use"] if quick else []
        return found if self.complete else [*found, "the run was interrupted: rounds are missing"]

    def to_dict(self) -> dict[str, Any]:
        """The document that is written; JSON types."""
        parts = {"graphs": self.graphs, "quality": self.quality, "failed": self.failed, "complete": self.complete}
        measured = [each.to_dict() for each in self.measurements.values()]
        return {"format": FORMAT, "format_version": FORMAT_VERSION, **self.about, **parts, "measurements": measured}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """What `to_dict` gave; raises `InputError` for anything else, or a newer version."""
        if not isinstance(data, dict) or data.get("format") != FORMAT or data.get("format_version") != FORMAT_VERSION:
            raise InputError(f"these are no results of `uniecs bench` of format version {FORMAT_VERSION}")
        rest = dict(data)
        try:
            measured = [Measurement.from_dict(each) for each in rest.pop("measurements")]
            parts = {name: rest.pop(name) for name in ("graphs", "quality", "failed", "complete")}
        except (KeyError, TypeError) as error:
            raise InputError(f"the results lack {error}; write them anew") from error
        about = {name: value for name, value in rest.items() if name not in ("format", "format_version")}
        return cls(about, {each.case.key: each for each in measured}, **parts)

    def write(self, path: Path) -> None:
        """Write the document whole or not at all."""
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n", encoding="utf-8")
        partial.replace(path)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Raise one `InputError`, which names the file, for whatever in it is lacking, damaged or something else."""
    try:
        yield
    except KeyError as error:
        raise InputError(f"{path} lacks {error}") from error
    except (ValueError, TypeError, AttributeError, IndexError, ArithmeticError, RecursionError) as error:
        raise InputError(f"{path}: {error}") from error  # `InputError` is a ValueError too


def read_results(path: Path) -> Results:
    """Read what `Results.write` wrote; raises `InputError` or `OSError`."""
    with reading(path):
        return Results.from_dict(json.loads(path.read_text("utf-8")))


@dataclass(frozen=True)
class Plan:
    """What a run is asked to do; `rates` are arrivals a second of the open loop, none for shares of the closed one."""

    bundle: Bundle
    index: Path | None = None
    effort: Effort = field(default_factory=Effort)
    stages: Sequence[str] = USUAL_STAGES
    rates: Sequence[float] = ()
    backend: str = "auto"
    device: str = "auto"
    precision: str = "auto"


def measure(plan: Plan) -> Results:
    """Run the plan; an interrupt or an error ends it, and what was measured is returned with `complete` False.

    Raises `UniecsError` or `OSError` if nothing was measured before an error, as with an index that is missing or of
    another model; a case that fails stands in `failed`, and the others go on.
    """
    results = Results(_about(plan))
    started = time.time()
    runtime = {"backend": plan.backend, "device": plan.device, "precision": plan.precision}
    with tempfile.TemporaryDirectory(prefix="uniecs-bench-") as folder:
        bench = Bench(plan.bundle, plan.effort, Path(folder), plan.index, runtime)
        try:
            engine = next(iter(bench.encoders.values()))
            results.about |= {"backend": engine.backend, "device": engine.device, "main_precision": bench.main}
            if plan.index is not None:
                bench.engine(bench.main)  # one that does not fit is refused before anything is measured
            if {"hnsw", "search"} <= set(plan.stages):
                results.about |= {"bytes_per_product": scenarios.bytes_per_product(bench)}
                results.about |= {"searched_products": len(bench.index)}
            _all_rounds(bench, plan, results)
            if "quality" in plan.stages:
                results.quality += compare_precisions(bench)
            results.complete = True
        except KeyboardInterrupt:
            pass
        except (UniecsError, OSError) as error:
            if not results.measurements:
                raise
            results.error = error
        finally:
            bench.close()
        results.graphs += graph_fractions(plan.bundle, results)
        results.about |= {"left_out": bench.left_out, "seconds": round(time.time() - started, 1)}
    results.about["load_average"].append(load_average())
    return results


def _about(plan: Plan) -> dict[str, Any]:
    return {
        "machine": describe_machine(),
        "versions": versions(),
        "git_commit": git_commit(),
        "bundle": {"name": plan.bundle.manifest["name"], "model_id": plan.bundle.model_id},
        "backend": plan.backend,  # until they are chosen
        "device": plan.device,
        "main_precision": plan.precision,
        "index": None if plan.index is None else str(plan.index),
        "settings": {**dataclasses.asdict(plan.effort), "stages": list(plan.stages), "rates": list(plan.rates)},
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "load_average": [load_average()],
        "gpu": [],
    }


def _all_rounds(bench: Bench, plan: Plan, results: Results) -> None:
    """All cases once in each round, so that a slow hour of the machine is in the spread of every case alike."""
    tasks = list[Task]()
    for turn in range(plan.effort.rounds):
        source = _tasks(bench, plan, results) if turn == 0 else iter(tasks)
        label = f"round {turn + 1} of {plan.effort.rounds}"
        with progress_bar(source, desc=label, total=len(tasks) or None, unit="case") as bar:
            for task in bar:
                if turn == 0:
                    tasks.append(task)
                bar.set_postfix_str(task.case.key[:60])
                _one_round(task, plan.effort, turn, results)
        if bench.encoders[bench.main].device == "cuda":
            results.about["gpu"].append(gpu_state())


def _tasks(bench: Bench, plan: Plan, results: Results) -> Iterator[Task]:
    for name, stage in STAGES.items():
        if name in plan.stages:
            yield from stage(bench)
    if "open" in plan.stages:
        yield from scenarios.opened(bench, lambda kind: plan.rates or _reached(results, kind))


def _reached(results: Results, kind: str) -> list[float]:
    """Rates for the open loop, from the best of the closed loops of the first round."""
    rates = [each.figures()["per_s"] for each in results.of("closed loop") if each.case.what == kind]
    return scenarios.open_rates(max(rates)) if rates else []


def _one_round(task: Task, effort: Effort, turn: int, results: Results) -> None:
    key = task.case.key
    if key in results.failed:
        return
    try:
        taken = measure_once(task, effort, turn)
    except UniecsError as error:
        results.failed[key] = str(error)
        return
    made = results.measurements.setdefault(key, Measurement(task.case, extra=dict(task.extra)))
    made.rounds.append(taken)


def measure_once(task: Task, effort: Effort, turn: int) -> Round:
    """One round of one case, warmed up; a call longer than its slice is warmed up in the first round only."""
    case = task.case
    if task.told is not None:
        start = time.perf_counter()
        seconds, resident = task.told(turn)
        return Round(np.array([seconds], np.float32) * 1e3, time.perf_counter() - start, None, resident)
    warm = closed_loop(task.call, 0.0) if turn == 0 else None
    if warm is None or warm.wall_s < effort.slice_s:
        closed_loop(task.call, effort.slice_s / 4, most=WARM_CALLS)
    if case.rate is not None:
        asked_s = min(effort.loop_s, MOST / case.rate)
        arrivals = poisson(case.rate, asked_s, turn).tolist()
        return open_loop(task.call, arrivals, case.concurrency, seconds=PATIENCE * asked_s)
    seconds = effort.loop_s if case.stage == "closed loop" else effort.slice_s
    return closed_loop(task.call, seconds, concurrency=case.concurrency)


def graph_fractions(bundle: Bundle, results: Results) -> list[dict[str, Any]]:
    """For each graph that was measured on the CPU: its work, its floor on this machine, and the share of it reached."""
    speed = {each.case.precision: each.extra["operations"] / _p50_s(each) for each in results.of("floor") if _is(each)}
    reading = [each.extra["bytes"] / _p50_s(each) for each in results.of("floor") if each.case.what == "memory read"]
    found = []
    for each in results.of("graph"):
        case, precision = each.case, each.case.precision or ""
        if results.about["device"] != "cpu" or not reading or precision not in speed:
            continue
        work = count_work(bundle.graph_path(graph_of(case.what)), graph_shapes(bundle, case.what, case.batch))
        least: Floor = floor_of(work, precision, speed[precision], reading[0])
        found.append(
            {
                "graph": case.what,
                "precision": precision,
                "batch": case.batch,
                **dataclasses.asdict(work),
                "bytes": work.bytes(precision),
                "compute_ms": least.compute_ms,
                "memory_ms": least.memory_ms,
                "bound": least.bound,
                "p50_ms": _p50_s(each) * 1e3,
                "fraction": least.ms / (_p50_s(each) * 1e3),
            }
        )
    return found


def _is(each: Measurement) -> bool:
    return "operations" in each.extra


def _p50_s(each: Measurement) -> float:
    return median(each.ms) / 1e3
