"""Vectors of a catalogue in sharded Parquet: which rows make a shard, and its two files.

A shard is a run of row groups of a .parquet file, or a whole .csv or .jsonl file. It becomes one file of vectors (id,
and for each view a list of D float32 or null), written beside its name and renamed once it is complete and on the disk,
with what it was made from in its footer; rejected rows are in a file of the same name in rejected/, which is there
before. So a shard is there or not, and is never there twice.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from uniecs.catalog import Product, Rejected, read_catalog, read_row_groups
from uniecs.durable import sync
from uniecs.errors import (
    CatalogError,
    ConfigError,
    IndexFileError,
    InputError,
    MissingExtraError,
    ModelMismatchError,
    UniecsError,
)
from uniecs.index import Embedded, Vectors
from uniecs.index_folder import VIEW_INPUTS
from uniecs.writer_lock import WriterLock

MANIFEST, REJECTED, FOOTER = "manifest.json", "rejected", b"uniecs.shard"
SUFFIXES = (".parquet", ".jsonl", ".csv")
SHARD_ROWS = 50_000
ROW_GROUP = 8192
STEM_BYTES = 185


@dataclass(frozen=True)
class BulkJob:
    """What all shards have in common; `out` is the folder of the vectors, seen at one path by all machines."""

    out: str
    model_id: str
    embed_dim: int
    views: tuple[str, ...] = ("multimodal",)

    def __post_init__(self) -> None:
        if not self.views or not set(self.views) <= set(VIEW_INPUTS) or len(set(self.views)) < len(self.views):
            raise ConfigError(f"views is {self.views!r}; expected some of {', '.join(VIEW_INPUTS)}, each once")
        try:
            self.out.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"out is {self.out!r}, which is not UTF-8; expected a folder whose path is") from error

    def manifest(self) -> dict[str, Any]:
        """The contents of manifest.json."""
        facts = {"model_id": self.model_id, "embed_dim": self.embed_dim, "views": list(self.views)}
        return {"format": "uniecs-vectors", "format_version": 1, **facts}


@dataclass(frozen=True)
class Shard:
    """Some rows of a catalogue file: row groups `groups[0]` to below `groups[1]` of a .parquet file, or the whole file.

    `source` is the file's path within the catalogue, `rows` their number where it is known before reading.
    """

    path: str
    source: str
    fingerprint: str
    groups: tuple[int, int] | None = None
    first_row: int = 0
    rows: int | None = None

    @property
    def name(self) -> str:
        """The name of its file of vectors."""
        where = hashlib.sha256(self.source.encode()).hexdigest()[:8]
        # So long that the file that becomes it, whose name is longer, has one of 255 bytes, the most that disks take.
        stem = Path(self.source).stem.encode()[:STEM_BYTES].decode(errors="ignore")
        return f"{stem}-{where}-{self.first_row:010}.parquet"

    def read(self) -> Iterator[Product | Rejected]:
        """Its rows, one item each."""
        if self.groups is None:
            return read_catalog(self.path)
        return read_row_groups(Path(self.path), range(*self.groups), self.first_row)


@dataclass(frozen=True, slots=True)
class ShardReport:
    """How many rows of a shard were read, embedded and rejected."""

    name: str
    rows: int
    embedded: int
    rejected: int


def plan_shards(catalog: str | os.PathLike[str], out: str | os.PathLike[str]) -> list[Shard]:
    """The shards of a catalogue: a file, a folder of files, or a pattern such as "parts/*.parquet".

    Files whose names begin with a dot or an underscore are left out, unless the pattern's last part does too, and so
    are the files of vectors in `out`.

    Raises `CatalogError` for a catalogue that is missing, empty, or has a file that cannot be read.
    """
    path = Path(catalog).absolute()
    parts = path.parts
    pattern = next((place for place, part in enumerate(parts) if set(part) & set("*?[")), None)
    if pattern is not None and not path.exists():
        root = Path(*parts[:pattern])
        found = root.glob("/".join(parts[pattern:]))
        files = [each for each in found if each.is_file() and (_hidden(path) or not _hidden(each))]
    elif path.is_dir():
        root = path
        files = [each for each in path.rglob("*") if each.suffix.lower() in SUFFIXES and not _hidden(each)]
    else:
        root, files = path.parent, [path]
    vectors = Path(out).resolve()
    files = [each for each in files if not _is_output(each, vectors)]
    if not files:
        raise CatalogError(f"{path} has no .parquet, .jsonl or .csv file")
    return [shard for each in sorted(files) for shard in _shards_of(each, each.relative_to(root).as_posix())]


def _hidden(path: Path) -> bool:
    """Whether a file is one that others leave out, being half written or of their own."""
    return path.name[0] in "._"


def _is_output(path: Path, out: Path) -> bool:
    """Whether a file may be one that a run writes into `out`, which may lie in the catalogue's folder."""
    return path.suffix == ".parquet" and path.parent.resolve() in (out, out / REJECTED)


def _shards_of(path: Path, source: str) -> Iterator[Shard]:
    if path.suffix.lower() not in SUFFIXES:
        raise CatalogError(f"{path} ends in {path.suffix!r}; expected one of {', '.join(SUFFIXES)}")
    try:
        source.encode()
        fingerprint = _fingerprint(path)
    except UnicodeEncodeError as error:
        raise CatalogError(f"{str(path)!r} has a name that is not UTF-8; rename it") from error
    except OSError as error:
        raise CatalogError(f"{path} cannot be read: {error}") from error
    if path.suffix.lower() != ".parquet":
        yield Shard(str(path), source, fingerprint)
        return
    sizes = _row_groups(path)
    first = first_row = 0
    while first < len(sizes):
        last, rows = first, 0
        while last < len(sizes) and (not rows or rows + sizes[last] <= SHARD_ROWS):  # none empty but the last
            rows += sizes[last]
            last += 1
        yield Shard(str(path), source, fingerprint, (first, last), first_row, rows)
        first, first_row = last, first_row + rows


def _row_groups(path: Path) -> list[int]:
    """The rows of each row group of a .parquet file."""
    pa, parquet = _arrow()
    try:
        footer = parquet.read_metadata(path)
    except (OSError, pa.ArrowException, UnicodeEncodeError) as error:
        raise CatalogError(f"{path} cannot be read: {error}") from error
    return [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]


def _fingerprint(path: Path) -> str:
    """Of all that is in a file: a title may change and leave its size, its beginning and its end as they were."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


@contextmanager
def claimed(out: Path, job: BulkJob, shards: Sequence[Shard]) -> Iterator[None]:
    """`out` as the folder of this job, and of no other run while the block lasts; refuses one of another job."""
    (out / REJECTED).mkdir(parents=True, exist_ok=True)
    lock = WriterLock(out)
    try:
        lock.acquire()
    except IndexFileError as error:
        raise InputError(str(error)) from error
    try:
        _claim(out, job, shards)
        _remove_partials(out)
        yield
        _remove_partials(out)
    finally:
        lock.release()


def _claim(out: Path, job: BulkJob, shards: Sequence[Shard]) -> None:
    wanted = job.manifest()
    manifest = out / MANIFEST
    if not manifest.exists():
        if stray := sorted(out.glob("*.parquet")):
            raise InputError(f"{out} holds {stray[0].name} but no {MANIFEST}; choose another --out")
        with _replacing(manifest) as partial:
            partial.write_text(json.dumps(wanted, indent=2), encoding="utf-8")
    try:
        found = json.loads(manifest.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{manifest} is damaged: {error}") from error
    if found != wanted:
        raise ModelMismatchError(f"{manifest} says {found}; expected {wanted}: choose another --out")
    _refuse_others(out, shards)


def _refuse_others(out: Path, shards: Sequence[Shard]) -> None:
    foreign = {each.name for each in out.glob("*.parquet")} - {shard.name for shard in shards}
    if foreign:
        raise InputError(f"{out} holds {min(foreign)}, which is of no file of this catalogue; choose another folder")


@contextmanager
def tried(shard: Shard, job: BulkJob) -> Iterator[None]:
    """For what comes before writing: if the process dies in the block, `partials` counts that as a writer's death."""
    mark = _partial(Path(job.out) / shard.name)
    mark.touch()
    try:
        yield
    finally:
        mark.unlink(missing_ok=True)


def partials(shard: Shard, job: BulkJob) -> int:
    """How many writers of the shard's vectors died in this run, or are at work."""
    return len(list(Path(job.out).glob(f".{glob.escape(shard.name)}.*.partial")))


def _remove_partials(out: Path) -> None:
    """Remove what writers that died left; for when no other is at work."""
    for folder in (out, out / REJECTED):
        for partial in folder.glob(".*.partial"):
            partial.unlink(missing_ok=True)


def finished(shard: Shard, job: BulkJob) -> ShardReport | None:
    """The report of a shard that is complete, None for one that is missing or unreadable.

    Raises `InputError` for one that was made from other rows than those now there.
    """
    pa, parquet = _arrow()
    path = Path(job.out) / shard.name
    try:
        footer = parquet.read_metadata(path)
        made_of = json.loads(footer.metadata[FOOTER])
        report = ShardReport(**made_of.pop("report"))
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError, AttributeError):
        return None
    if made_of != _footer(shard, job):
        raise InputError(f"{path} was made from {made_of}; expected {_footer(shard, job)}: choose another --out")
    return report if footer.num_rows == report.embedded else None


def _footer(shard: Shard, job: BulkJob) -> dict[str, Any]:
    rows = {"first_row": shard.first_row, "groups": None if shard.groups is None else list(shard.groups)}
    return {"model_id": job.model_id, "source": shard.source, "fingerprint": shard.fingerprint, **rows}


def checked(shard: Shard, job: BulkJob) -> ShardReport:
    """Compare the rows of a shard with those in its files; raises `CatalogError`."""
    report = finished(shard, job)
    if report is None:
        raise CatalogError(f"{Path(job.out) / shard.name} is missing or damaged; run the command again")
    rejected = Path(job.out) / REJECTED / shard.name
    there = sum(_row_groups(rejected)) if rejected.exists() else 0
    if there != report.rejected or report.rows != report.embedded + there or shard.rows not in (None, report.rows):
        raise CatalogError(
            f"of {shard.path} from row {shard.first_row} on {report.rows} rows were read (expected: "
            f"{'all' if shard.rows is None else shard.rows}), {report.embedded} embedded and {there} rejected; remove "
            f"{shard.name} and run the command again"
        )
    return report


class ShardWriter:
    """Writes the files of one shard; `report` counts what came in."""

    def __init__(self, shard: Shard, job: BulkJob, vectors: _Rows, rejected: _Rows) -> None:
        """Not to be called: use `writing`."""
        self._shard, self._job = shard, job
        self._vectors, self._rejected = vectors, rejected
        self.report = ShardReport(shard.name, 0, 0, 0)

    def add(self, product_id: str, vectors: Mapping[str, Vectors]) -> None:
        """A product with its vector (embed_dim,) in each of its views."""
        self._vectors.add({"id": product_id, **{view: vectors.get(view) for view in self._job.views}})
        self._count(embedded=1)

    def reject(self, row: int, product_id: str | None, error: UniecsError) -> None:
        """A row that was left out: its position in the file, its id where known, the reason."""
        self._rejected.add({"row": row, "id": product_id, "error": type(error).__name__, "reason": str(error)})
        self._count(rejected=1)

    def _count(self, embedded: int = 0, rejected: int = 0) -> None:
        old = self.report
        self.report = ShardReport(old.name, old.rows + 1, old.embedded + embedded, old.rejected + rejected)


@contextmanager
def writing(shard: Shard, job: BulkJob) -> Iterator[ShardWriter]:
    """The files of a shard: there when the block ends, both or neither, unless it raises."""
    pa, parquet = _arrow()
    path = Path(job.out) / shard.name
    # The rejected rows are renamed first: a file of vectors says that all is there.
    with _replacing(path) as good, _replacing(path.parent / REJECTED / path.name) as bad:
        with (
            _Rows(parquet, good, _vector_schema(pa, job)) as vectors,
            _Rows(parquet, bad, _rejected_schema(pa)) as rest,
        ):
            writer = ShardWriter(shard, job, vectors, rest)
            yield writer
            vectors.note({FOOTER: json.dumps({**_footer(shard, job), "report": asdict(writer.report)}).encode()})
        if not writer.report.rejected:
            bad.unlink()
            (path.parent / REJECTED / path.name).unlink(missing_ok=True)  # of a run before, whose vectors are gone


class _Rows:
    """Rows into a .parquet file, a row group at a time."""

    def __init__(self, parquet: Any, path: Path, schema: Any) -> None:
        self._schema = schema
        options = {"compression": "zstd", "use_dictionary": False, "write_page_checksum": True}
        self._writer = parquet.ParquetWriter(path, schema, **options)
        self._rows: list[dict[str, Any]] = []

    def add(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        if len(self._rows) == ROW_GROUP:
            self._flush()

    def note(self, metadata: dict[bytes, bytes]) -> None:
        self._writer.add_key_value_metadata(metadata)

    def _flush(self) -> None:
        pa, _ = _arrow()
        if self._rows:
            columns = [_column(pa, [row[field.name] for row in self._rows], field.type) for field in self._schema]
            self._writer.write_table(pa.Table.from_arrays(columns, schema=self._schema))
            self._rows = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._flush()
        self._writer.close()


def _column(pa: Any, values: list[Any], kind: Any) -> Any:
    if not pa.types.is_fixed_size_list(kind):
        return pa.array(values, kind)
    flat = np.zeros((len(values), kind.list_size), np.float32)
    for row, value in enumerate(values):
        if value is not None:
            flat[row] = value
    missing = pa.array([value is None for value in values])
    return pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), type=kind, mask=missing)


def _vector_schema(pa: Any, job: BulkJob) -> Any:
    vector = pa.list_(pa.field("element", pa.float32(), nullable=False), job.embed_dim)
    return pa.schema([pa.field("id", pa.string(), nullable=False), *(pa.field(view, vector) for view in job.views)])


def _rejected_schema(pa: Any) -> Any:
    text = pa.string()
    return pa.schema([("row", pa.int64()), ("id", text), ("error", text), ("reason", text)])


def embedded_products(catalog: str | os.PathLike[str], out: str | os.PathLike[str]) -> Embedded:
    """The products of a catalogue with their vectors in the folder that `embed_catalog` made of it, for `copy_index`.

    Raises `InputError` for a folder of another catalogue, `CatalogError` for one that is not complete.
    """
    try:
        facts = json.loads((Path(out) / MANIFEST).read_bytes())
        job = BulkJob(str(out), facts["model_id"], facts["embed_dim"], tuple(facts["views"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{out} is no folder of vectors: {error}") from error
    shards = plan_shards(catalog, out)
    _refuse_others(Path(out), shards)
    count = sum(checked(shard, job).embedded for shard in shards)
    items = (item for shard in shards for item in _products_of(shard, job))
    return Embedded(job.model_id, job.views, items, count)


def _products_of(shard: Shard, job: BulkJob) -> Iterator[tuple[Product, dict[str, Vectors]]]:
    path = Path(job.out) / shard.name
    left_out = set[int]()
    if (rejected := path.parent / REJECTED / path.name).exists():
        for batch in _batches(rejected, ["row"]):
            left_out.update(batch["row"].to_pylist())
    products = (item for row, item in enumerate(shard.read(), shard.first_row) if row not in left_out)
    for product_id, vectors in _vectors_of(path, job):
        product = next(products, None)
        if not isinstance(product, Product) or product.id != product_id:
            raise CatalogError(f"{shard.path} has no product {product_id!r} where {shard.name} has its vectors")
        yield product, vectors


def _vectors_of(path: Path, job: BulkJob) -> Iterator[tuple[str, dict[str, Vectors]]]:
    for columns in _batches(path, ["id", *job.views]):
        ids = columns.pop("id").to_pylist()
        there = {view: column.is_valid().to_numpy(zero_copy_only=False) for view, column in columns.items()}
        flat = {
            view: column.fill_null([0.0] * job.embed_dim).flatten().to_numpy().reshape(-1, job.embed_dim)
            for view, column in columns.items()
        }
        for row, each in enumerate(ids):
            yield each, {view: flat[view][row] for view in job.views if there[view][row]}


def _batches(path: Path, names: list[str]) -> Iterator[dict[str, Any]]:
    """Columns of a file that a run wrote, some rows at a time; raises `CatalogError` if they are damaged."""
    pa, parquet = _arrow()
    try:
        with parquet.ParquetFile(path, page_checksum_verification=True) as file:
            for batch in file.iter_batches(batch_size=ROW_GROUP, columns=names):
                yield {name: batch.column(name) for name in names}
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        vectors = path.parent.parent / path.name if path.parent.name == REJECTED else path
        raise CatalogError(f"{path} is damaged: {error}; remove {vectors} and embed the catalogue again") from error


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A path to write, which becomes `path` at the end of the block, flushed to the disk, if it is still there."""
    partial = _partial(path)
    try:
        yield partial
        if partial.exists():
            sync(partial)
            partial.replace(path)
            sync(path.parent)
    finally:
        with suppress(OSError):
            partial.unlink()


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")


def _arrow() -> tuple[Any, Any]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as parquet
    except ModuleNotFoundError as error:
        raise MissingExtraError("embedding into Parquet needs pyarrow: pip install 'uniecs[parquet]'") from error
    return pa, parquet
