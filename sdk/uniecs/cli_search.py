"""The commands on catalogues and indexes: demo, index, copy, search, embed, doctor."""

from __future__ import annotations

import argparse
import csv
import itertools
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uniecs.cli_io import add_command, check_writable, load_encoder, note_rejected, print_json, rejections, views
from uniecs.errors import CatalogError, InputError, UniecsError

if TYPE_CHECKING:
    from uniecs.catalog import Product
    from uniecs.encoder import Encoder
    from uniecs.index import Vectors

_EMBED_CHUNK = 256
_NUMBER = re.compile(r"[-+]?([0-9]{1,19}(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]{1,2})?")


def add_commands(commands: Any, as_json: argparse.ArgumentParser, where: argparse.ArgumentParser) -> None:
    """demo, index, search, embed, doctor."""
    demo = add_command(commands, "demo", _demo, "build a catalogue, index it, search it, write a contact sheet")
    demo.add_argument("--catalog", type=Path, help="your own products instead of the drawn ones")
    demo.add_argument("--out", type=Path, default=Path("demo-output"), help="folder to write (demo-output)")
    demo.add_argument("--model", default="mini", help="packaged name or bundle folder (mini)")

    index = add_command(commands, "index", _index, "a catalogue of products into a new index", as_json, where)
    index.add_argument("catalog", type=Path, help=".csv, .jsonl or .parquet: id, title, image, attributes")
    index.add_argument("--out", type=_place, required=True, help="the index to create: a folder, or a URL of Milvus")
    index.add_argument("--model", default="mini", help="packaged name or bundle folder (mini)")
    index.add_argument("--views", type=views, default=("multimodal",), help="any of multimodal,image,text")

    copy = add_command(commands, "copy", _copy, "an index folder into Milvus; what is there already is left", as_json)
    copy.add_argument("index", type=Path)
    copy.add_argument("url", help="milvus://HOST[:PORT]/[DB/]COLLECTION (docs/scaling.md)")

    search = add_command(commands, "search", _search, "search an index by text, image or both", as_json, where)
    search.add_argument("index", type=_place, help="a folder, or a URL of Milvus")
    search.add_argument("--text")
    search.add_argument("--image", type=Path)
    search.add_argument("--model", help="packaged name or bundle folder (the one that the index records)")
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

    embed = add_command(commands, "embed", _embed, "embed a catalogue into arrays or sharded Parquet", as_json, where)
    embed.add_argument("catalog", type=Path, help="a file; for a folder of vectors also a folder or pattern of files")
    embed.add_argument("--out", type=Path, required=True, help="the .npz file, or the folder of vectors, to write")
    embed.add_argument("--model", default="mini", help="packaged name or bundle folder (mini)")
    embed.add_argument("--views", type=views, default=("multimodal",), help="with a folder: of multimodal,image,text")
    embed.add_argument("--ray", metavar="ADDRESS", help="with a folder: embed on this Ray cluster; auto, local")
    embed.set_defaults(parser=embed)

    add_command(commands, "doctor", _doctor, "what is installed, what works, what would be chosen and why", as_json)


def _place(text: str) -> Path | str:
    """An index folder, or a URL of Milvus as it is."""
    from uniecs.milvus_connection import is_milvus_url

    return text if is_milvus_url(text) else Path(text)


def parse_condition(text: str) -> tuple[str, Any]:
    """One `--where` argument as a (key, value) of `SearchEngine.search(where=...)`.

    `low..high` with numeric ends, one of them optional, is a range. Anything else is a list separated by commas (CSV
    quoting protects a comma, and a blank before a value). An entry that reads as a number or as true/false matches both
    the number or boolean and the text as written, so that `year=2010` finds 2010 and "2010".
    """
    key, _, value = text.partition("=")
    try:
        written = next(csv.reader([value], skipinitialspace=True))
    except csv.Error:  # a line break that no quotes protect
        written = []
    if not (key and written):
        raise argparse.ArgumentTypeError(f"{text!r}; expected key=value, key=a,b or key=low..high")
    low, dots, high = (each.strip() for each in value.partition(".."))
    if dots and (low or high):
        ends = [_number(end) if end else None for end in (low, high)]
        if all(end is not None or not text for end, text in zip(ends, (low, high), strict=True)):
            return key, tuple(ends)
    entries: list[Any] = []
    for entry in written:
        typed = {"true": True, "false": False}.get(entry, _number(entry))
        entries += [entry] if typed is None else [typed, entry]
    return key, entries if len(entries) > 1 else entries[0]


def _number(text: str) -> int | float | None:
    if not _NUMBER.fullmatch(text):
        return None
    if not text.lstrip("+-").isdigit():
        return float(text)
    number = int(text)
    return number if -(2**63) <= number < 2**63 else None  # beyond, filters take numbers near it, too


def _demo(args: argparse.Namespace) -> int:
    from uniecs.demo import print_report, run

    print_report(run(args.out, args.catalog, args.model))
    return 0


def _index(args: argparse.Namespace) -> int:
    from uniecs.engine import SearchEngine

    encoder = load_encoder(args)
    engine = SearchEngine.create(args.out, encoder, views=args.views)
    try:
        report = engine.add(args.catalog)
        engine.save()
    finally:
        added = len(engine)
        engine.close()
        if not added:
            _remove_index(args.out)
    _check_rows(args.catalog, report.added + len(report.rejected))
    if args.json:
        summary = {"index": str(args.out), "model_id": encoder.model_id, "views": args.views}
        print_json({**summary, "added": report.added, "rejected": rejections(report.rejected)})
    else:
        note_rejected(report.rejected)
        print(f"{args.out}: {report.added} products added, {len(report.rejected)} rows rejected")
    return 0 if report.added else 1


def _remove_index(place: Path | str) -> None:
    if isinstance(place, Path):
        shutil.rmtree(place)
    else:
        from uniecs.milvus_index import MilvusIndex

        MilvusIndex.drop(place)


def _check_rows(catalog: Path, rows: int) -> None:
    if not rows:
        raise CatalogError(f"{catalog} has no rows")


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
            report = copy_index(store_items(store), target)
        finally:
            target.close()
    finally:
        store.close()
    if args.json:
        counts = {"copied": report.copied, "unchanged": report.unchanged}
        print_json({"index": str(args.index), **counts, "rejected": rejections(report.rejected)})
    else:
        note_rejected(report.rejected)
        counted = f"{report.copied} products copied, {report.unchanged} were there already"
        print(f"{args.url}: {counted}, {len(report.rejected)} rejected")
    return 1 if report.rejected else 0


def _search(args: argparse.Namespace) -> int:
    if args.text is None and args.image is None:
        args.parser.error("give --text, --image or both")
    where = dict(args.where)
    if len(where) < len(args.where):
        args.parser.error("--where names a key twice; write key=a,b for either value")
    from uniecs.engine import SearchEngine

    encoder = None if args.model is None else load_encoder(args)
    runtime = {"device": args.device, "backend": args.backend, "precision": args.precision}
    with SearchEngine.open(args.index, encoder, **runtime) as engine:
        hits = engine.search(text=args.text, image=args.image, k=args.k, view=args.view, where=where or None)
    if args.json:
        print_json({"hits": [{"id": hit.id, "score": hit.score, **_describe(hit.product)} for hit in hits]})
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

    from uniecs.catalog import Rejected

    check_writable(args.out)
    encoder = load_encoder(args)
    rejected: list[Rejected] = []
    vectors: dict[str, Vectors] = {}
    for row, product_id, outcome in _embedded(encoder, args.catalog):
        if isinstance(outcome, UniecsError):
            rejected.append(Rejected(row, product_id, outcome))
        elif product_id is not None:
            vectors[product_id] = outcome
    _check_rows(args.catalog, len(vectors) + len(rejected))
    if vectors:
        partial = args.out.with_name(args.out.name + ".partial")
        with partial.open("wb") as file:
            np.savez(file, ids=np.array(list(vectors)), embeddings=np.stack(list(vectors.values())))
        partial.replace(args.out)
    if args.json:
        summary = {"out": str(args.out) if vectors else None, "model_id": encoder.model_id}
        print_json({**summary, "embedded": len(vectors), "rejected": rejections(rejected)})
    else:
        note_rejected(rejected)
        print(f"{args.out}: {len(vectors)} products embedded, {len(rejected)} rows rejected")
    return 0 if vectors else 1


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
        print_json({"out": job.out, "model_id": job.model_id, **asdict(report)})
    else:
        print(
            f"{args.out}: {report.embedded} of {report.rows} rows embedded, {report.rejected} rejected, in "
            f"{report.shards} shards, of which {report.skipped} were there"
        )
    return 0 if report.embedded else 1


def _embedded(encoder: Encoder, catalog: Path) -> Iterator[tuple[int, str | None, Vectors | UniecsError]]:
    """For each row its position, its id where known, and its vector or why it has none."""
    from uniecs.bulk_embed import embed_rows
    from uniecs.catalog import read_catalog
    from uniecs.progress import progress_bar

    seen = set[str]()
    rows = progress_bar(enumerate(read_catalog(catalog)), desc="embed", unit="row")
    while batch := list(itertools.islice(rows, _EMBED_CHUNK)):
        for row, item, outcome in embed_rows(batch, encoder, ("multimodal",), seen):
            if item.id is not None and item.id.endswith("\0"):  # NumPy takes it for padding
                yield row, item.id, InputError(f"the id {item.id!r} ends in a NUL, which a .npz file cannot hold")
            else:
                yield row, item.id, outcome["multimodal"] if isinstance(outcome, dict) else outcome


def _doctor(args: argparse.Namespace) -> int:
    from uniecs.doctor import examine, format_report

    report = examine()
    if args.json:
        print_json(report)
    else:
        print(format_report(report))
    return 0 if report["default"]["works"] else 1
