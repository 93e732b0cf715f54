"""Scaling by calculation: cores, memory, disk and GPUs for a catalogue and its queries, from measured results."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from uniecs.bench.plots import p50
from uniecs.bench.run import Results
from uniecs.bench.samples import Measurement
from uniecs.bench.scenarios import KINDS, USUAL_PX, USUAL_TOKENS
from uniecs.errors import InputError

LOAD = 0.6
"""Share of what was reached at most that is asked of a machine: beyond, queries wait for each other."""
FILLED = 0.8
"""Share of a machine's memory that graphs may take."""
STEPS = {
    "text": (f"text, {USUAL_TOKENS} tokens",),
    "image": (f"JPEG, {USUAL_PX} px",),
    "both": (f"text, {USUAL_TOKENS} tokens", f"JPEG, {USUAL_PX} px"),
}


@dataclass(frozen=True)
class Demand:
    """Products, queries a second, the shares of kinds of query (they add up to 1), and how graphs keep vectors."""

    products: float
    qps: float
    mix: Mapping[str, float]
    storage: str = "float32"

    def __post_init__(self) -> None:
        if not (0 < self.products < 1e15 and 0 < self.qps < 1e12):
            raise InputError(f"{self.products:g} products, {self.qps:g} queries a second; expected more than none")
        if not set(self.mix) <= set(KINDS) or any(not 0 <= share <= 1 for share in self.mix.values()):
            raise InputError(f"the mix is {dict(self.mix)}; expected shares of {', '.join(KINDS)}")
        if not math.isclose(sum(self.mix.values()), 1, abs_tol=1e-6):
            raise InputError(f"the shares of the mix add up to {sum(self.mix.values()):g}; expected 1")


@dataclass(frozen=True)
class Need:
    """One thing that is needed: a number, its unit, and the formula in words and in numbers."""

    name: str
    value: float
    unit: str
    formula: str
    numbers: str


@dataclass(frozen=True)
class Measured:
    """What a plan takes from results: seconds of a core, bytes of a product; `gpu_s` are seconds of a GPU by kind."""

    encode_core_s: Mapping[str, float]
    search_core_s: float
    searched_products: int
    graph_bytes: float
    disk_bytes: float
    model_bytes: float
    machine_bytes: float
    catalogue_core_s: float
    gpu_s: Mapping[str, float]


def read_measured(results: Results, storage: str) -> Measured:
    """What was measured; raises `InputError` naming the stage that is missing."""
    about, cores = results.about, results.about["machine"]["usable_cores"]
    sizes = about.get("bytes_per_product") or {}
    models = [each.figures()["rss_bytes"] or 0 for each in results.of("cold start") if each.case.precision]
    prepared = {each.case.what: p50(each) / 1e3 for each in results.of("preprocess")}
    main, on_gpu = about["main_precision"], about["device"] == "cuda"
    lacking = [stage for stage in ("closed loop", "search", "batch") if not results.of(stage)]
    lacking += [] if models else ["cold start"]
    lacking += ["preprocess"] if on_gpu and not prepared.keys() >= {*STEPS["both"]} else []
    lacking += [] if f"graph {storage}" in sizes and "store" in sizes else ["hnsw"]
    if lacking:
        raise InputError(f"the results lack the stage {lacking[0]!r}: run `uniecs bench` with all stages")
    search_s = _search_s(results, storage)
    best = {kind: _best(results, "batch", kind, main) for kind in KINDS}
    if on_gpu:  # the cores prepare, the GPU embeds
        core_s = {kind: sum(prepared[step] for step in STEPS[kind]) for kind in KINDS}
    else:
        core_s = {kind: max(cores / _best(results, "closed loop", kind, main) - search_s, 0.0) for kind in KINDS}
    return Measured(
        core_s,
        search_s,
        about["searched_products"],
        sizes[f"graph {storage}"],
        sizes["store"] + sizes[f"graph {storage}"],
        max(models),
        about["machine"]["memory_bytes"] or 0,
        0.0 if on_gpu else cores / best["both"],
        {kind: 1 / best[kind] for kind in KINDS} if on_gpu else {},
    )


def _search_s(results: Results, storage: str) -> float:
    """Of one query in a graph that keeps its vectors so: the small ones are searched several times as long."""
    for each in results.of("search"):
        if each.case.batch == 1 and each.case.what.endswith(f"{storage}, no filter"):
            return p50(each) / 1e3
    raise InputError(f"the results have no search in {storage}: run `uniecs bench` with all stages and without --index")


def _best(results: Results, stage: str, kind: str, precision: str) -> float:
    """Items a second at most."""
    found: list[Measurement] = [e for e in results.of(stage) if (e.case.what, e.case.precision) == (kind, precision)]
    if not found:
        raise InputError(f"the results have no {stage} of {kind} in {precision}: run `uniecs bench` with all stages")
    return max(float(each.figures()["per_s"]) for each in found)


def needs(demand: Demand, measured: Measured) -> list[Need]:
    """What the demand takes, on machines like the one that was measured."""
    graphs = demand.products * measured.graph_bytes
    room = measured.machine_bytes * FILLED
    shards = max(1, math.ceil(graphs / room)) if room else 1
    in_shard = demand.products / shards
    deeper = max(1.0, math.log(max(in_shard, 2)) / math.log(max(measured.searched_products, 2)))
    search_s = shards * measured.search_core_s * deeper
    encode_s = sum(share * measured.encode_core_s[kind] for kind, share in demand.mix.items())
    cores = demand.qps * (encode_s + search_s) / LOAD
    mixed = " + ".join(f"{share:g} x {measured.encode_core_s[kind]:.3g}" for kind, share in demand.mix.items())
    per_machine = f"{demand.products:g} x {measured.graph_bytes:.0f} B = {graphs / 1e9:.4g} GB"
    found = [
        Need(
            "machines",
            shards,
            "at least, for memory alone",
            "products x graph bytes / (a machine's memory x filled), rounded up",
            f"{per_machine}; / ({measured.machine_bytes / 1e9:.4g} GB x {FILLED})",
        ),
        Need(
            "search of a query",
            search_s * 1e3,
            "ms of a core",
            "machines x measured search x log(products of a machine) / log(products searched)",
            f"{shards} x {measured.search_core_s * 1e3:.3g} ms x {deeper:.3g}",
        ),
        Need(
            "cores",
            cores,
            "cores",
            "queries a second x (sum of share x core seconds + search) / load",
            f"{demand.qps:g} x ({mixed} + {search_s:.3g}) / {LOAD}",
        ),
        Need(
            "memory",
            (graphs + shards * measured.model_bytes) / 1e9,
            "GB",
            "products x graph bytes + machines x a process with the model",
            f"{per_machine} + {shards} x {measured.model_bytes / 1e9:.3g} GB",
        ),
        Need(
            "disk",
            demand.products * measured.disk_bytes / 1e9,
            "GB",
            "products x (store + snapshot of the graph)",
            f"{demand.products:g} x {measured.disk_bytes:.0f} B",
        ),
    ]
    if measured.catalogue_core_s:
        found.append(
            Need(
                "to embed the catalogue",
                demand.products * measured.catalogue_core_s / 3600,
                "core hours",
                "products x core seconds of a product, in the best batch",
                f"{demand.products:g} x {measured.catalogue_core_s:.3g} s / 3600",
            )
        )
    if measured.gpu_s:
        gpu_s = sum(share * measured.gpu_s[kind] for kind, share in demand.mix.items())
        shares = " + ".join(f"{share:g} x {measured.gpu_s[kind]:.3g}" for kind, share in demand.mix.items())
        formula = "queries a second x sum of share x GPU seconds / load"
        found.append(Need("GPUs", demand.qps * gpu_s / LOAD, "GPUs", formula, f"{demand.qps:g} x ({shares}) / {LOAD}"))
    return found


def as_text(demand: Demand, found: list[Need], results: Results) -> str:
    """For people."""
    machine, about = results.about["machine"], results.about
    lines = [
        f"{demand.products:,.0f} products, {demand.qps:,.0f} queries a second, "
        + ", ".join(f"{kind} {share:.0%}" for kind, share in demand.mix.items()),
        f"measured: {about['bundle']['model_id']}, {about['backend']} {about['main_precision']} on {machine['cpu']}, "
        f"{machine['usable_cores']} cores, {about['started']}",
        *(f"WARNING: {each}" for each in results.caveats()),
    ]
    for each in found:
        rounded = math.ceil(each.value) if each.unit in ("cores", "GPUs") else each.value
        lines += ["", f"{each.name}: {rounded:,.6g} {each.unit}", f"  = {each.formula}", f"  = {each.numbers}"]
    if not any(each.name == "GPUs" for each in found):
        lines += ["", "GPUs: none were measured; results of a GPU (`uniecs bench --device cuda`) would tell"]
    note = "This is arithmetic, not a measurement: one copy of the data, no replicas, the queries that were measured."
    return "\n".join([*lines, "", note])
