"""The command line: `uniecs COMMAND`; each command loads its room on use.

Results go to stdout, progress and notes to stderr. Exit status: 0 fine, 1 failed (one line, "uniecs: error:
..."), 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uniecs import __version__
from uniecs.errors import BackendError, CatalogError, MissingExtraError, ParityError, UniecsError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from uniecs.catalog import Product, Rejected
    from uniecs.encoder import Encoder
    from uniecs.evaluation import PairEncoder
    from uniecs.export.verify import VerifyReport

INTERRUPTED = 130
SHOWN_REJECTIONS = 20
ENCODER = "packaged name, or folder of a bundle, checkpoint, run, CLIP, BLIP or sentence-transformers model"
_EMBED_CHUNK = 256
_NUMBER = re.compile(r"[-+]?([0-9]{1,18}(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]{1,2})?")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; argparse exits with 2 by itself on wrong usage."""
    args = build_parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int] = args.command
    try:
        status = command(args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)
    except BrokenPipeError:  # the reader (head, less) left: no more output, and none at interpreter exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (UniecsError, OSError) as error:
        return _fail(f"error: {error}", 1)
    return status


def _fail(message: str, status: int) -> int:
    print("uniecs: " + " ".join(message.split()), file=sys.stderr)
    return status


def build_parser() -> argparse.ArgumentParser:
    """The whole command line as one argparse parser."""
    parser = argparse.ArgumentParser(prog="uniecs", description="Find products by words, a photo or both.")
    parser.add_argument("--version", action="version", version=f"uniecs {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    as_json = argparse.ArgumentParser(add_help=False)
    as_json.add_argument("--json", action="store_true", help="print one JSON document on stdout")
    where = argparse.ArgumentParser(add_help=False)
    where.add_argument("--backend", choices=("auto", "openvino", "onnxruntime", "tensorrt"), default="auto")
    where.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    where.add_argument("--precision", choices=("auto", "fp32", "bf16", "fp16", "int8"), default="auto")
    _add_search_commands(commands, as_json, where)
    _add_model_commands(commands, as_json, where)
    return parser


def _add_search_commands(commands: Any, as_json: argparse.ArgumentParser, where: argparse.ArgumentParser) -> None:
    """demo, index, search, embed, doctor."""
    demo = _add(commands, "demo", _demo, "build a catalogue, index it, search it, write a contact sheet")
    demo.add_argument("--catalog", type=Path, help="your own products instead of the drawn ones")
    demo.add_argument("--out", type=Path, default=Path("demo-output"), help="folder to write (demo-output)")
    demo.add_argument("--model", default="mini", help="packaged name or bundle folder (mini)")

    index = _add(commands, "index", _index, "a catalogue of products into a new index", as_json, where)
    index.add_argument("catalog", type=Path, help=".csv, .jsonl or .parquet: id, title, image, attributes")
    index.add_argument("--out", type=_place, required=True, help="the index to create: a folder, or a URL of Milvus")
    index.add_argument("--model", default="mini", help="packaged name or bundle folder (mini)")
    index.add_argument("--views", type=_views, default=("multimodal",), help="any of multimodal,image,text")

    copy = _add(commands, "copy", _copy, "an index folder into Milvus; what is there already is left", as_json)
    copy.add_argument("index", type=Path)
    copy.add_argument("url", help="milvus://HOST[:PORT]/[DB/]COLLECTION (docs/scaling.md)")

    search = _add(commands, "search", _search, "search an index by text, image or both", as_json, where)
    search.add_argument("index", type=_place, help="a folder, or a URL of Milvus")
    search.add_argument("--text")
    search.add_argument("--image", type=Path)
    search.add_argument("-k", type=int, default=10, help="number of hits (10)")
    search.add_argument("--view", help="the view to search (the index's first)")
    search.add_argument(
        "--where",
        type=parse_condition,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="filter: key=value, key=a,b or key=low..high with open ends; repeat for more, all must hold",
    )
    search.set_defaults(parser=search)

    embed = _add(commands, "embed", _embed, "embed a catalogue into arrays or sharded Parquet", as_json, where)
    embed.add_argument("catalog", type=Path, help="a file; for a folder of vectors also a folder or pattern of files")
    embed.add_argument("--out", type=Path, required=True, help="the .npz file, or the folder of vectors, to write")
    embed.add_argument("--model", default="mini", help="packaged name or bundle folder (mini)")
    embed.add_argument("--views", type=_views, default=("multimodal",), help="with a folder: of multimodal,image,text")
    embed.add_argument("--ray", metavar="ADDRESS", help="with a folder: embed on this Ray cluster; auto, local")
    embed.set_defaults(parser=embed)

    _add(commands, "doctor", _doctor, "what is installed, what works, what would be chosen and why", as_json)


def _add_model_commands(commands: Any, as_json: argparse.ArgumentParser, where: argparse.ArgumentParser) -> None:
    """train, sweep, pairs, eval, export, quantize, build, verify."""
    train = _add(commands, "train", _train, "train a model")
    train.add_argument("--config", type=Path, required=True, help="TOML file")
    train.add_argument("--resume", action="store_true", help="go on from the run's last checkpoint")

    sweep = _add(commands, "sweep", _sweep, "train the variants of a sweep that have no result yet, and compare them")
    sweep.add_argument("config", type=Path, help="TOML file")
    sweep.add_argument("--report", type=Path, help="Markdown file to write the table to")

    pairs = _add(commands, "pairs", _pairs, "pairs of similar products from an interaction log", as_json)
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

    evaluate = _add(commands, "eval", _eval, "nine retrieval tasks and the plain baselines", as_json, where)
    evaluate.add_argument("models", nargs="+", metavar="model", help=f"{ENCODER}; several for one table of all")
    evaluate.add_argument("--catalog", type=Path, help="with --pairs or --queries: your own products")
    evaluate.add_argument("--pairs", type=Path, help="CSV with the header trigger_id,recall_id")
    evaluate.add_argument("--queries", type=Path, help="query,product_id rows: words to products, in place of --pairs")
    evaluate.add_argument("--benchmark", choices=("pairs", "fashioniq", "fashion200k"), help="with --data, instead")
    evaluate.add_argument("--data", type=Path, help="the benchmark's folder, or for pairs its file")
    evaluate.add_argument("--split", help="of fashioniq (val) or fashion200k (test)")
    evaluate.set_defaults(parser=evaluate)

    export = _add(commands, "export", _export, "a checkpoint into a bundle of three ONNX graphs")
    export.add_argument("checkpoint", type=Path)
    export.add_argument("--out", type=Path, required=True, help="the bundle folder to create")
    export.add_argument("--catalog", type=Path, help="with --pairs: the evaluation recorded in the manifest")
    export.add_argument("--pairs", type=Path)
    export.set_defaults(parser=export)

    quantize = _add(commands, "quantize", _quantize, "a bundle into one with an int8 variant, if it loses no recall")
    quantize.add_argument("bundle", help="packaged name or bundle folder")
    quantize.add_argument("--out", type=Path, required=True, help="the bundle folder to create")
    quantize.add_argument("--calibration", type=Path, required=True, help="products to set the int8 ranges on")
    quantize.add_argument("--catalog", type=Path, required=True, help="other products, to judge recall on")
    quantize.add_argument("--pairs", type=Path, required=True, help="CSV with the header trigger_id,recall_id")

    build = _add(commands, "build", _build, "TensorRT engines of a bundle for this GPU, kept in a cache", as_json)
    build.add_argument("bundle", help="packaged name or bundle folder")
    build.add_argument("--cache", type=Path, help="in place of $UNIECS_CACHE or ~/.cache/uniecs")

    verify = _add(commands, "verify", _verify, "every backend present against the golden vectors", as_json)
    verify.add_argument("bundle", help="packaged name or bundle folder")


def _add(
    commands: Any,
    name: str,
    command: Callable[[argparse.Namespace], int],
    does: str,
    *parents: argparse.ArgumentParser,
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=does, description=does, parents=parents)
    parser.set_defaults(command=command)
    return parser


def _place(text: str) -> Path | str:
    """An index folder, or a URL of Milvus as it is."""
    from uniecs.milvus_connection import is_milvus_url

    return text if is_milvus_url(text) else Path(text)


def _views(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def parse_condition(text: str) -> tuple[str, Any]:
    """One `--where` argument as a (key, value) of `SearchEngine.search(where=...)`.

    `low..high` with numeric ends, one of them optional, is a range. Anything else is a list separated by
    commas (CSV quoting protects a comma). An entry that reads as a number or as true/false matches both the
    number or boolean and the text as written, so that `year=2010` finds 2010 and "2010".
    """
    key, equals, value = text.partition("=")
    if not (key and equals and value):
        raise argparse.ArgumentTypeError(f"{text!r}; expected key=value, key=a,b or key=low..high")
    low, dots, high = value.partition("..")
    if dots and (low or high):
        ends = [_number(end) if end else None for end in (low, high)]
        if all(end is not None or not text for end, text in zip(ends, (low, high), strict=True)):
            return key, tuple(ends)
    entries: list[Any] = []
    for entry in next(csv.reader([value])):
        typed = {"true": True, "false": False}.get(entry, _number(entry))
        entries += [entry] if typed is None else [typed, entry]
    return key, entries if len(entries) > 1 else entries[0]


def _number(text: str) -> int | float | None:
    if not _NUMBER.fullmatch(text):
        return None
    return int(text) if text.lstrip("+-").isdigit() else float(text)


@contextmanager
def _needs(command: str, extra: str) -> Iterator[None]:
    """Say which extra to install when a package other than uniecs itself is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "uniecs":
            raise
        raise MissingExtraError(f"uniecs {command} needs {error.name}: pip install 'uniecs[{extra}]'") from error


def _load(args: argparse.Namespace) -> Encoder:
    from uniecs.encoder import load

    return load(args.model, device=args.device, backend=args.backend, precision=args.precision)


def _print_json(document: object) -> None:
    print(json.dumps(document, ensure_ascii=False, indent=2, default=str))


def _rejections(rejected: Sequence[Rejected]) -> list[dict[str, Any]]:
    return [{"row": each.row, "id": each.id, "reason": str(each.error)} for each in rejected]


def _note_rejected(rejected: Sequence[Rejected]) -> None:
    """Print the first rejected rows with their reasons to stderr, then a count of the others."""
    for each in rejected[:SHOWN_REJECTIONS]:
        print(f"rejected row {each.row} (id {each.id}): {each.error}", file=sys.stderr)
    if len(rejected) > SHOWN_REJECTIONS:
        print(f"and {len(rejected) - SHOWN_REJECTIONS} more rejected rows", file=sys.stderr)


def _demo(args: argparse.Namespace) -> int:
    from uniecs.demo import print_report, run

    print_report(run(args.out, args.catalog, args.model))
    return 0


def _index(args: argparse.Namespace) -> int:
    from uniecs.engine import SearchEngine

    encoder = _load(args)
    engine = SearchEngine.create(args.out, encoder, views=args.views)
    try:
        report = engine.add(args.catalog)
        engine.save()
    finally:
        added = len(engine)
        engine.close()
        if not added and isinstance(args.out, Path):
            shutil.rmtree(args.out)
    if args.json:
        summary = {"index": str(args.out), "model_id": encoder.model_id, "views": args.views}
        _print_json({**summary, "added": report.added, "rejected": _rejections(report.rejected)})
    else:
        _note_rejected(report.rejected)
        print(f"{args.out}: {report.added} products added, {len(report.rejected)} rows rejected")
    return 0 if report.added else 1


def _copy(args: argparse.Namespace) -> int:
    from uniecs.copying import copy_index, store_items
    from uniecs.index_migration import migrate
    from uniecs.milvus_index import MilvusIndex
    from uniecs.store import Store

    migrate(args.index)
    store = Store.open(args.index)
    try:
        target = MilvusIndex.ensure(args.url, store.model_id, store.embed_dim, store.bundle, store.config)
        try:
            report = copy_index(store_items(store), target, store.count())
        finally:
            target.close()
    finally:
        store.close()
    if args.json:
        _print_json({"index": str(args.index), "copied": report.copied, "unchanged": report.unchanged})
    else:
        print(f"{args.url}: {report.copied} products copied, {report.unchanged} were there already")
    return 0


def _search(args: argparse.Namespace) -> int:
    if args.text is None and args.image is None:
        args.parser.error("give --text, --image or both")
    where = dict(args.where)
    if len(where) < len(args.where):
        args.parser.error("--where names a key twice; write key=a,b for either value")
    from uniecs.engine import SearchEngine

    runtime = {"device": args.device, "backend": args.backend, "precision": args.precision}
    with SearchEngine.open(args.index, **runtime) as engine:
        hits = engine.search(text=args.text, image=args.image, k=args.k, view=args.view, where=where or None)
    if args.json:
        _print_json({"hits": [{"id": hit.id, "score": hit.score, **_describe(hit.product)} for hit in hits]})
    else:
        for rank, hit in enumerate(hits, start=1):
            print(f"{rank:3d}  {hit.score:.4f}  {hit.id}  {hit.product.title or ''}".rstrip())
        if not hits:
            print("no hits")
    return 0


def _describe(product: Product) -> dict[str, Any]:
    return {"title": product.title, "attributes": dict(product.attributes)}


def _embed(args: argparse.Namespace) -> int:
    if args.out.suffix != ".npz":
        return _embed_shards(args)
    if args.ray is not None or args.views != ("multimodal",):
        args.parser.error("--ray and --views are for a folder of vectors: give an --out that does not end in .npz")
    import numpy as np

    encoder = _load(args)
    rejected: list[Rejected] = []
    ids: list[str] = []
    parts = [np.empty((0, encoder.embed_dim), dtype=np.float32)]
    for chunk_ids, embeddings in _embedded(encoder, args.catalog, rejected):
        ids += chunk_ids
        parts.append(embeddings)
    rejected.sort(key=lambda each: each.row)
    if ids:
        partial = args.out.with_name(args.out.name + ".partial")
        with partial.open("wb") as file:
            np.savez(file, ids=np.array(ids, dtype=np.str_), embeddings=np.concatenate(parts))
        partial.replace(args.out)
    if args.json:
        summary = {"out": str(args.out) if ids else None, "model_id": encoder.model_id}
        _print_json({**summary, "embedded": len(ids), "rejected": _rejections(rejected)})
    else:
        _note_rejected(rejected)
        print(f"{args.out}: {len(ids)} products embedded, {len(rejected)} rows rejected")
    return 0 if ids else 1


def _embed_shards(args: argparse.Namespace) -> int:
    from functools import partial

    from uniecs.bulk_embed import embed_catalog, load_encoder
    from uniecs.bundle import locate_bundle, open_bundle
    from uniecs.vector_shards import BulkJob

    folder = locate_bundle(args.model)
    bundle = open_bundle(folder)
    job = BulkJob(str(args.out.absolute()), bundle.model_id, bundle.embed_dim, args.views)
    load = partial(load_encoder, str(folder), args.device, args.backend, args.precision)
    report = embed_catalog(args.catalog, job, load, ray=args.ray, device=args.device)
    if args.json:
        _print_json({"out": job.out, "model_id": job.model_id, **asdict(report)})
    else:
        print(
            f"{args.out}: {report.embedded} of {report.rows} rows embedded, {report.rejected} rejected, in "
            f"{report.shards} shards, of which {report.skipped} were there"
        )
    return 0 if report.embedded else 1


def _embedded(
    encoder: Encoder, catalog: Path, rejected: list[Rejected]
) -> Iterator[tuple[list[str], npt.NDArray[np.float32]]]:
    """Yield ids and embeddings chunk by chunk; rows that fail are appended to `rejected`."""
    from tqdm import tqdm

    from uniecs.catalog import Rejected, read_catalog

    seen: set[str] = set()
    rows = tqdm(enumerate(read_catalog(catalog)), desc="embed", unit="row", disable=None)
    while batch := list(itertools.islice(rows, _EMBED_CHUNK)):
        good: list[tuple[int, Product]] = []
        for row, item in batch:
            if isinstance(item, Rejected):
                rejected.append(item)
            elif item.id in seen:
                rejected.append(Rejected(row, item.id, CatalogError(f"the id {item.id!r} appears twice")))
            else:
                seen.add(item.id)
                good.append((row, item))
        result = encoder.encode([each.title for _, each in good], [each.image for _, each in good], errors="return")
        rejected += [Rejected(good[i][0], good[i][1].id, error) for i, error in result.errors.items()]
        kept = [i for i in range(len(good)) if i not in result.errors]
        yield [good[i][1].id for i in kept], result.embeddings[kept]


def _train(args: argparse.Namespace) -> int:
    with _needs("train", "train"):
        from uniecs.trainer.loop import train
        from uniecs.trainer.settings import load_train_config

        folder = train(load_train_config(args.config), resume=args.resume)
    print(f"trained: {folder}")
    return 0


def _sweep(args: argparse.Namespace) -> int:
    with _needs("sweep", "train"):
        from uniecs.trainer.sweep import load_sweep, markdown_report, run_sweep

        sweep = load_sweep(args.config)
        report = markdown_report(sweep, run_sweep(sweep))
    if args.report:
        args.report.write_text(report, encoding="utf-8")
    print(report, end="")
    return 0


def _pairs(args: argparse.Namespace) -> int:
    from uniecs.evaluation import read_products

    with _needs("pairs", "train"):
        from uniecs.trainer import mining

        keys = ("min_image_similarity", "min_text_similarity", "session_minutes", "val", "test", "seed")
        settings = mining.MiningSettings(**{key: getattr(args, key) for key in keys})
        mining.refuse_existing(args.out)
        clicks = mining.read_clicks(args.log)
        products, rejected = read_products(args.catalog)
        image_encoder, text_encoder = (_encoder_of("pairs", each) for each in (args.image_encoder, args.text_encoder))
        mined = mining.mine(clicks, products, image_encoder, text_encoder, settings)
        mining.write_pairs(args.out, mined, products)
    if args.json:
        _print_json({"out": str(args.out), **mined.report, "rejected": _rejections(rejected)})
    else:
        _note_rejected(rejected)
        print(mining.format_report(mined))
    return 0 if any(mined.splits.values()) else 1


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
    with _needs(command, "train"):
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
        _print_json(reports if len(reports) > 1 else reports[0])
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
        _print_json(reports if len(reports) > 1 else reports[0])
    return 0


def _export(args: argparse.Namespace) -> int:
    if (args.catalog is None) != (args.pairs is None):
        args.parser.error("--catalog and --pairs go together")
    with _needs("export", "export"):
        from uniecs.export.bundle_export import export_bundle
        from uniecs.export.verify import verify_bundle

        bundle = export_bundle(args.checkpoint, args.out, catalog=args.catalog, pairs=args.pairs)
        report = verify_bundle(bundle.path)
    print(report.table())
    return _verdict(report)


def _build(args: argparse.Namespace) -> int:
    from uniecs.bundle import locate_bundle, open_bundle

    with _needs("build", "tensorrt"):
        from uniecs.export.tensorrt_build import build_engines

        machine, engines = build_engines(open_bundle(locate_bundle(args.bundle)), args.cache)
    if args.json:
        _print_json({**asdict(machine), "engines": [each.to_dict() for each in engines]})
        return 0
    print(f"TensorRT {machine.tensorrt}, {machine.gpu}, driver {machine.driver}")
    for each in engines:
        how = "kept" if each.cached else f"built in {each.seconds:.0f} s"
        print(f"  {each.graph:14}{each.size_bytes / 1e6:8.1f} MB  {how}  {each.path}")
    return 0


def _quantize(args: argparse.Namespace) -> int:
    from uniecs.bundle import locate_bundle, open_bundle
    from uniecs.durable import refuse_existing

    with _needs("quantize", "export"):
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
        _print_json(report.to_dict())
    else:
        print(report.table())
    return _verdict(report)


def _verdict(report: VerifyReport) -> int:
    """0, or `ParityError` after the table has been printed."""
    if not report.ok:
        failed = sum(not row.ok for row in report.rows)
        raise ParityError(f"{failed} of {len(report.rows)} checks of {report.path} failed; export it again")
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from uniecs.doctor import examine, format_report

    report = examine()
    if args.json:
        _print_json(report)
    else:
        print(format_report(report))
    return 0 if report["default"]["works"] else 1
