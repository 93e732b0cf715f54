"""The commands on speed: bench, plan."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uniecs.cli_io import add_command, check_writable, print_json
from uniecs.errors import InputError

if TYPE_CHECKING:
    from uniecs.bench.run import Results

INTERRUPTED = 130
REPORT = "report"
OUT = {REPORT: Path("bench-report.html")}


def add_commands(commands: Any, as_json: argparse.ArgumentParser, where: argparse.ArgumentParser) -> None:
    """bench, plan."""
    bench = add_command(commands, "bench", _bench, "latency and throughput by stage; `bench report` draws them", where)
    bench.add_argument("bundle", help="packaged name or bundle folder; or `report`, for a page of results")
    bench.add_argument(
        "results", type=Path, nargs="*", help="of `report`: JSON files that `bench` or benchmarks/ wrote"
    )
    bench.add_argument("--index", type=Path, help="an index of the bundle to search (one of drawn products)")
    bench.add_argument("--out", type=Path, help="file to write (bench-MODEL_ID.json, or bench-report.html)")
    bench.add_argument("--quick", action="store_true", help="a minute or two, to see that it works; not for figures")
    bench.add_argument("--compare", action="store_true", help="the installed engines as they come as well")
    bench.add_argument("--stages", type=_stages, help="some of them, separated by commas")
    bench.add_argument("--rates", type=_rates, default=(), help="arrivals a second of the open loop: 10,20,50")
    bench.set_defaults(parser=bench)

    plan = add_command(commands, "plan", _plan, "cores, memory, disk and GPUs for a catalogue, by calculation", as_json)
    plan.add_argument("--products", type=float, required=True, help="how many, such as 100e6")
    plan.add_argument("--qps", type=float, required=True, help="queries a second")
    plan.add_argument("--mix", type=_mix, required=True, help="shares of queries: text=0.7,image=0.2,both=0.1")
    plan.add_argument("--results", type=Path, required=True, help="what `uniecs bench` measured on such a machine")
    plan.add_argument("--storage", choices=("float32", "float16", "int8"), default="float32", help="of the graphs")


def _mix(text: str) -> dict[str, float]:
    try:
        shares = [(kind, float(share)) for kind, share in (each.split("=") for each in text.split(","))]
        if len(dict(shares)) < len(shares):
            raise ValueError("a kind stands twice")
        return dict(shares)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}; expected shares such as text=0.7,image=0.3") from error


def _plan(args: argparse.Namespace) -> int:
    from uniecs.bench.plan import Demand, as_text, needs, read_measured
    from uniecs.bench.run import read_results, reading

    demand = Demand(args.products, args.qps, args.mix, args.storage)
    if not args.results.is_file():
        raise InputError(f"{args.results} is no file; `uniecs bench MODEL --out FILE` writes it")
    results = read_results(args.results)
    with reading(args.results):
        found = needs(demand, read_measured(results, args.storage))
        text = as_text(demand, found, results)
    if args.json:
        about = {"results": str(args.results), "caveats": results.caveats()}
        print_json({"demand": asdict(demand), **about, "needs": [asdict(each) for each in found]})
    else:
        print(text)
    return 0


def _stages(text: str) -> tuple[str, ...]:
    from uniecs.bench.run import EVERY_STAGE

    stages = tuple(text.split(","))
    if unknown := set(stages) - set(EVERY_STAGE):
        raise argparse.ArgumentTypeError(f"no stage {', '.join(sorted(unknown))}; there are {', '.join(EVERY_STAGE)}")
    return stages


def _rates(text: str) -> tuple[float, ...]:
    try:
        rates = tuple(float(each) for each in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}; expected numbers, separated by commas") from error
    if not all(0 < each < 1e6 for each in rates):
        raise argparse.ArgumentTypeError(f"{text!r}; expected arrivals a second above 0")
    return rates


def _bench(args: argparse.Namespace) -> int:
    if args.bundle == REPORT:
        if not args.results:
            args.parser.error("bench report needs files of results")
        from uniecs.bench.report import write_report

        out = args.out or OUT[REPORT]
        write_report(args.results, out)
        print(f"{out}: {len(args.results)} results")
        return 0
    if args.results:
        args.parser.error(f"unexpected {args.results[0]}; `uniecs bench report FILE...` makes a page of results")
    from uniecs.bench.run import USUAL_STAGES, Plan, measure
    from uniecs.bench.scenarios import QUICK, Effort
    from uniecs.bundle import locate_bundle, open_bundle

    bundle = open_bundle(locate_bundle(args.bundle))
    effort, stages = QUICK if args.quick else Effort(), args.stages or USUAL_STAGES
    stages += ("compare",) if args.compare else ()
    if "open" in stages and "closed" not in stages and not args.rates:
        args.parser.error("the stage open takes its rates from the stage closed: add that, or give --rates")
    runtime = {"backend": args.backend, "device": args.device, "precision": args.precision}
    out = args.out or Path(f"bench-{bundle.model_id}.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    check_writable(out)
    results = measure(Plan(bundle, args.index, effort, stages, args.rates, **runtime))
    results.write(out)
    _print(results)
    print(f"\n{out}: {len(results.measurements)} cases; `uniecs bench report {out}` draws them")
    if results.error is not None:
        raise results.error
    if not results.complete:
        print("uniecs: interrupted: what was measured until then is kept", file=sys.stderr)
        return INTERRUPTED
    return 0


def _print(results: Results) -> None:
    from uniecs.bench.tables import all_tables, as_text

    for table in all_tables(results):
        print(f"{as_text(table)}\n")
    for what, why in {**results.about["left_out"], **results.failed}.items():
        print(f"not measured: {what}: {why}")
