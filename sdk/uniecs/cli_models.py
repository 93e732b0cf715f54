"""The commands on models: train, sweep, average, pairs, eval, export, quantize, build, verify."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uniecs.cli_io import add_command, check_writable, needs, note_rejected, print_json, rejections
from uniecs.errors import BackendError, CatalogError, ParityError

if TYPE_CHECKING:
    from uniecs.evaluation import PairEncoder
    from uniecs.export.verify import VerifyReport

ENCODER = "packaged name, or folder of a bundle, checkpoint, run, CLIP, BLIP or sentence-transformers model"


def add_commands(commands: Any, as_json: argparse.ArgumentParser, where: argparse.ArgumentParser) -> None:
    """train, sweep, average, pairs, eval, export, quantize, build, verify."""
    train = add_command(commands, "train", _train, "train a model")
    train.add_argument("--config", type=Path, required=True, help="TOML file")
    train.add_argument("--resume", action="store_true", help="go on from the run's last checkpoint")

    sweep = add_command(commands, "sweep", _sweep, "train a sweep's variants that have no result yet, and compare all")
    sweep.add_argument("config", type=Path, help="TOML file")
    sweep.add_argument("--report", type=Path, help="Markdown file to write the table to")

    average = add_command(commands, "average", _average, "a checkpoint with the mean of the weights of several")
    average.add_argument("checkpoints", nargs="+", type=Path, metavar="checkpoint", help="runs from the same start")
    average.add_argument("--out", type=Path, required=True, help="the checkpoint folder to create")

    pairs = add_command(commands, "pairs", _pairs, "pairs of similar products from an interaction log", as_json)
    pairs.add_argument("log", type=Path, help=".csv, .jsonl or .parquet with the columns user, item, time")
    pairs.add_argument("--catalog", type=Path, required=True, help="the products that the log names")
    pairs.add_argument("--out", type=Path, required=True, help="the folder to create")
    for side in ("image", "text"):
        pairs.add_argument(f"--{side}-encoder", default="mini", help=f"{ENCODER} (mini)")
        pairs.add_argument(f"--min-{side}-similarity", type=float, default=0.75, help="cosine (0.75)")
    pairs.add_argument("--session-minutes", type=float, default=30.0, help="a longer pause ends a session (30)")
    for name in ("val", "test"):
        pairs.add_argument(f"--{name}", type=float, default=0.05, help=f"share of the groups in {name} (0.05)")
    pairs.add_argument("--seed", type=int, default=0, help="of the split (0)")

    evaluate = add_command(commands, "eval", _eval, "nine retrieval tasks and the plain baselines", as_json, where)
    evaluate.add_argument("models", nargs="+", metavar="model", help=f"{ENCODER}; several for one table of all")
    evaluate.add_argument("--catalog", type=Path, help="with --pairs or --queries: your own products")
    evaluate.add_argument("--pairs", type=Path, help="CSV with the header trigger_id,recall_id")
    evaluate.add_argument("--queries", type=Path, help="query,product_id rows: words to products, in place of --pairs")
    evaluate.add_argument("--benchmark", choices=("pairs", "fashioniq", "fashion200k"), help="with --data, instead")
    evaluate.add_argument("--data", type=Path, help="the benchmark's folder, or for pairs its file")
    evaluate.add_argument("--split", help="of fashioniq (val) or fashion200k (test)")
    evaluate.set_defaults(parser=evaluate)

    export = add_command(commands, "export", _export, "a checkpoint into a bundle of three ONNX graphs")
    export.add_argument("checkpoint", type=Path)
    export.add_argument("--out", type=Path, required=True, help="the bundle folder to create")
    export.add_argument("--catalog", type=Path, help="with --pairs: the evaluation recorded in the manifest")
    export.add_argument("--pairs", type=Path)
    export.set_defaults(parser=export)

    quantize = add_command(commands, "quantize", _quantize, "a bundle with an int8 variant, if it loses no recall")
    quantize.add_argument("bundle", help="packaged name or bundle folder")
    quantize.add_argument("--out", type=Path, required=True, help="the bundle folder to create")
    quantize.add_argument("--calibration", type=Path, required=True, help="products to set the int8 ranges on")
    quantize.add_argument("--catalog", type=Path, required=True, help="other products, to judge recall on")
    quantize.add_argument("--pairs", type=Path, required=True, help="CSV with the header trigger_id,recall_id")

    build = add_command(commands, "build", _build, "TensorRT engines of a bundle for this GPU, cached", as_json)
    build.add_argument("bundle", help="packaged name or bundle folder")
    build.add_argument("--cache", type=Path, help="in place of $UNIECS_CACHE or ~/.cache/uniecs")

    verify = add_command(commands, "verify", _verify, "every backend present against the golden vectors", as_json)
    verify.add_argument("bundle", help="packaged name or bundle folder")


def _train(args: argparse.Namespace) -> int:
    with needs("train", "train"):
        from uniecs.trainer.loop import train
        from uniecs.trainer.settings import load_train_config

        folder = train(load_train_config(args.config), resume=args.resume)
    print(f"trained: {folder}")
    return 0


def _sweep(args: argparse.Namespace) -> int:
    with needs("sweep", "train"):
        from uniecs.trainer.sweep import load_sweep, markdown_report, run_sweep

        if args.report:
            check_writable(args.report)
        sweep = load_sweep(args.config)
        report = markdown_report(sweep, run_sweep(sweep))
    if args.report:
        args.report.write_text(report, encoding="utf-8")
    print(report, end="")
    return 0


def _average(args: argparse.Namespace) -> int:
    with needs("average", "train"):
        from uniecs.trainer.checkpoint import average_checkpoints

        average_checkpoints(args.checkpoints, args.out)
    print(f"wrote {args.out}")
    return 0


def _pairs(args: argparse.Namespace) -> int:
    from uniecs.evaluation import read_products

    with needs("pairs", "train"):
        from uniecs.trainer import mining

        keys = ("min_image_similarity", "min_text_similarity", "session_minutes", "val", "test", "seed")
        settings = mining.MiningSettings(**{key: getattr(args, key) for key in keys})
        mining.refuse_existing(args.out)
        clicks = mining.read_clicks(args.log)
        products, rejected = read_products(args.catalog)
        image_encoder, text_encoder = (_encoder_of("pairs", each) for each in (args.image_encoder, args.text_encoder))
        mined = mining.mine(clicks, products, image_encoder, text_encoder, settings)
        found = bool(mined.splits["train"])
        if found:
            mining.write_pairs(args.out, mined, products)
    if args.json:
        print_json({"out": str(args.out) if found else None, **mined.report, "rejected": rejections(rejected)})
    else:
        note_rejected(rejected)
        print(mining.format_report(mined))
    if not found:
        kind = "to train on" if any(mined.splits.values()) else "of similar products"
        raise CatalogError(f"{args.log} gives no pair {kind}; nothing is written to {args.out}")
    for name in ("val", "test"):
        if getattr(args, name) > 0 and not mined.splits[name]:
            print(f"no pair fell to {name}: its share of the groups of products is too small", file=sys.stderr)
    return 0


def _encoder_of(
    command: str, name_or_path: str, *, backend: str = "auto", device: str = "auto", precision: str = "auto"
) -> PairEncoder:
    """The encoder of a bundle, of a checkpoint or training run of ours, or of another model's folder.

    backend, device and precision choose what runs a bundle; the others run in torch, and raise `BackendError` for
    anything but "auto".
    """
    from uniecs.bundle import MANIFEST, packaged_names
    from uniecs.encoder import load

    folder = Path(name_or_path)
    ours = (folder / "checkpoint.json").is_file() or (folder / "checkpoints").is_dir()
    foreign = (folder / "modules.json").is_file() or (folder / "config.json").is_file()
    if name_or_path in packaged_names() or (folder / MANIFEST).is_file() or not (ours or foreign):
        return load(name_or_path, device=device, backend=backend, precision=precision)
    runtime = {"--backend": backend, "--device": device, "--precision": precision}
    if given := " ".join(f"{option} {value}" for option, value in runtime.items() if value != "auto"):
        raise BackendError(f"{given} is for bundles; {folder} is a checkpoint, which runs in torch on the CPU in fp32")
    with needs(command, "train"):
        from uniecs.trainer.checkpoint import load_checkpoint
        from uniecs.trainer.embedder import TorchEncoder
        from uniecs.trainer.foreign import load_foreign

        if not ours:
            return load_foreign(folder)
        checkpoint = load_checkpoint(folder)
        return TorchEncoder(checkpoint.model, checkpoint.tokenizer_json)


def _encoders_to_evaluate(args: argparse.Namespace) -> list[PairEncoder]:
    """All of them before the first is used: a wrong name costs no evaluation."""
    runtime = {"backend": args.backend, "device": args.device, "precision": args.precision}
    return [_encoder_of("eval", model, **runtime) for model in args.models]


def _eval(args: argparse.Namespace) -> int:
    from uniecs import evaluation

    given = [name for name in ("catalog", "pairs", "queries", "benchmark", "data") if getattr(args, name) is not None]
    if given not in (["catalog", "pairs"], ["catalog", "queries"], ["benchmark", "data"]):
        args.parser.error("give --catalog and --pairs or --queries, or --benchmark and --data")
    if args.split and args.benchmark not in ("fashioniq", "fashion200k"):
        args.parser.error("--split is of fashioniq and fashion200k")
    if args.queries or args.benchmark in ("fashioniq", "fashion200k"):
        return _eval_tasks(args)
    encoders = _encoders_to_evaluate(args)
    if args.benchmark == "pairs":
        from uniecs.benchmark_sets import read_pair_set

        products, pairs = read_pair_set(args.data)
    else:
        products, pairs = evaluation.read_products(args.catalog)[0], evaluation.read_pairs(args.pairs)
    reports = evaluation.evaluate_models(encoders, products, pairs)
    if args.json:
        print_json(reports if len(reports) > 1 else reports[0])
    else:
        print(evaluation.format_comparison(reports) if len(reports) > 1 else evaluation.format_table(reports[0]))
    return 0


def _eval_tasks(args: argparse.Namespace) -> int:
    from uniecs import benchmark_sets as sets
    from uniecs.evaluation import read_products

    encoders = _encoders_to_evaluate(args)
    if args.queries:
        tasks = sets.query_tasks(read_products(args.catalog)[0], sets.read_queries(args.queries))
    else:
        reader = sets.read_fashioniq if args.benchmark == "fashioniq" else sets.read_fashion200k
        tasks = reader(args.data, args.split) if args.split else reader(args.data)
    name = args.benchmark or "queries"
    reports = []
    for encoder in encoders:
        figures = sets.evaluate_tasks(encoder, tasks)
        engine = {"model_id": encoder.model_id, "backend": encoder.backend, "precision": encoder.precision}
        reports.append({"benchmark": name, **engine, "tasks": figures})
        if not args.json:
            print(sets.format_tasks(figures, f"{name}: {encoder!r}"))
    if args.json:
        print_json(reports if len(reports) > 1 else reports[0])
    return 0


def _export(args: argparse.Namespace) -> int:
    if (args.catalog is None) != (args.pairs is None):
        args.parser.error("--catalog and --pairs go together")
    with needs("export", "export"):
        from uniecs.export.bundle_export import export_bundle
        from uniecs.export.verify import verify_bundle

        bundle = export_bundle(args.checkpoint, args.out, catalog=args.catalog, pairs=args.pairs)
        report = verify_bundle(bundle.path)
    print(report.table())
    return _verdict(report)


def _build(args: argparse.Namespace) -> int:
    from uniecs.bundle import locate_bundle, open_bundle

    with needs("build", "tensorrt"):
        from uniecs.export.tensorrt_build import build_engines

        machine, engines = build_engines(open_bundle(locate_bundle(args.bundle)), args.cache)
    if args.json:
        print_json({**asdict(machine), "engines": [each.to_dict() for each in engines]})
        return 0
    print(f"TensorRT {machine.tensorrt}, {machine.gpu}, driver {machine.driver}")
    for each in engines:
        how = "kept" if each.cached else f"built in {each.seconds:.0f} s"
        print(f"  {each.graph:14}{each.size_bytes / 1e6:8.1f} MB  {how}  {each.path}")
    return 0


def _quantize(args: argparse.Namespace) -> int:
    from uniecs.bundle import locate_bundle, open_bundle
    from uniecs.durable import refuse_existing

    with needs("quantize", "export"):
        from uniecs.export.quantize import try_int8

        refuse_existing(args.out)
        bundle = open_bundle(locate_bundle(args.bundle))
        trial = try_int8(bundle, args.calibration, args.catalog, args.pairs)
    print(trial.table())
    trial.write(args.out)
    return 0


def _verify(args: argparse.Namespace) -> int:
    from uniecs.bundle import locate_bundle
    from uniecs.export.verify import verify_bundle

    report = verify_bundle(locate_bundle(args.bundle))
    if args.json:
        print_json(report.to_dict())
    else:
        print(report.table())
    return _verdict(report)


def _verdict(report: VerifyReport) -> int:
    """0, or `ParityError` after the table has been printed."""
    if not report.ok:
        failed = sum(not row.ok for row in report.rows)
        raise ParityError(f"{failed} of {len(report.rows)} checks of {report.path} failed; export it again")
    return 0
