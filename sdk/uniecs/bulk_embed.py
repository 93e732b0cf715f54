"""Embedding catalogues of any size into sharded Parquet, in one process or on a Ray cluster (docs/scaling.md).

Whatever dies, a second run embeds the shards that are missing (`vector_shards`). Both drivers run the same
`embed_shard`: where it ran does not show in the files.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from uniecs import errors
from uniecs.catalog import Product, Rejected
from uniecs.errors import BackendError, CatalogError, InputError, MissingExtraError, ModelMismatchError, UniecsError
from uniecs.index import Vectors
from uniecs.index_folder import VIEW_INPUTS
from uniecs.progress import progress_bar
from uniecs.vector_shards import (
    BulkJob,
    Shard,
    ShardReport,
    checked,
    claimed,
    finished,
    partials,
    plan_shards,
    tried,
    writing,
)

if TYPE_CHECKING:
    from uniecs.encoder import Encoder

# Called in each process that embeds, with the CPU threads it may use (None: all).
LoadEncoder: TypeAlias = "Callable[[int | None], Encoder]"

BATCH = 256
CPUS_PER_WORKER = 4
RETRIES = 5  # of one shard whose worker died


@dataclass(frozen=True, slots=True)
class BulkReport:
    """The sums over all shards; `skipped` of them were there already."""

    shards: int
    skipped: int
    rows: int
    embedded: int
    rejected: int


def load_encoder(bundle: str, device: str, backend: str, precision: str, threads: int | None) -> Encoder:
    """`uniecs.load`, in the form of a `LoadEncoder` once all but `threads` are given."""
    from uniecs.encoder import load

    return load(bundle, device=device, backend=backend, precision=precision, threads=threads)


def embed_catalog(
    catalog: str | os.PathLike[str], job: BulkJob, load: LoadEncoder, *, ray: str | None = None, device: str = "auto"
) -> BulkReport:
    """Embed what is missing of a catalogue into `job.out`, with a progress bar, and check that no row is lost.

    `ray` is the address of a cluster ("auto" for the one of this machine, "local" to start one here); without it
    all runs in this process. On a cluster each worker takes a GPU, if there are any and `device` is not "cpu", or four
    CPUs (fewer where no machine has as many); a shard whose worker dies is tried again up to five times. Raises
    `CatalogError` for a catalogue or shard that cannot be read or lost rows, `ModelMismatchError` or `InputError` if
    `job.out` holds vectors of another model, other views or another catalogue, or another run writes there,
    `MissingExtraError` without pyarrow or Ray, `BackendError` if the cluster fails.
    """
    shards = plan_shards(catalog, job.out)
    with claimed(Path(job.out), job, shards):
        left = [shard for shard in shards if finished(shard, job) is None]
        reports = _here(left, job, load) if ray is None else _on_ray(left, job, load, ray, device)
        known = [shard.rows for shard in left]
        total = None if None in known else sum(rows for rows in known if rows is not None)
        with progress_bar(desc="embed", total=total, unit="row") as bar:
            for report in reports:
                bar.update(report.rows)
        sums = [checked(shard, job) for shard in shards]
    columns = [[each.rows for each in sums], [each.embedded for each in sums], [each.rejected for each in sums]]
    return BulkReport(len(shards), len(shards) - len(left), *map(sum, columns))


def embed_shard(shard: Shard, job: BulkJob, encoder: Encoder) -> ShardReport:
    """Embed one shard into its file and, where rows are rejected, another in the folder rejected/.

    Raises `ModelMismatchError` for an encoder of another model than the job's, `CatalogError` for rows that cannot be
    read.
    """
    if (encoder.model_id, encoder.embed_dim) != (job.model_id, job.embed_dim):
        raise ModelMismatchError(f"the encoder is {encoder.model_id}; expected {job.model_id}, of {job.out}")
    seen = set[str]()
    source = enumerate(shard.read(), shard.first_row)
    with writing(shard, job) as writer:
        while batch := list(itertools.islice(source, BATCH)):
            for row, item, outcome in embed_rows(batch, encoder, job.views, seen):
                if isinstance(outcome, UniecsError):
                    writer.reject(row, item.id, outcome)
                elif item.id is not None:
                    writer.add(item.id, outcome)
    return writer.report


def embed_rows(
    batch: Sequence[tuple[int, Product | Rejected]], encoder: Encoder, views: Sequence[str], seen: set[str]
) -> Iterator[tuple[int, Product | Rejected, dict[str, Vectors] | UniecsError]]:
    """For each row, in order, its vectors by view, or why it has none; `seen` are the ids embedded so far."""
    good = [(row, item) for row, item in batch if isinstance(item, Product) and item.id not in seen]
    vectors = product_vectors(encoder, [product for _, product in good], views)
    outcomes = dict(zip((row for row, _ in good), vectors, strict=True))
    for row, item in batch:
        if isinstance(item, Rejected):
            yield row, item, item.error
        elif item.id in seen:
            yield row, item, CatalogError(f"the id {item.id!r} appears twice")
        else:
            if isinstance(outcomes[row], dict):
                seen.add(item.id)
            yield row, item, outcomes[row]


def product_vectors(
    encoder: Encoder, products: Sequence[Product], views: Sequence[str]
) -> list[dict[str, Vectors] | UniecsError]:
    """For each product its vector (D,) in each view that takes it, or why it has none; each thing is embedded once."""
    items: list[tuple[str | None, Any]] = []
    plans: list[dict[str, int]] = []
    for product in products:
        places: dict[tuple[bool, bool], int] = {}
        plan: dict[str, int] = {}
        for view in views:
            takes_text, takes_image = VIEW_INPUTS[view]
            kind = (takes_text and product.title is not None, takes_image and product.image is not None)
            if any(kind):
                if kind not in places:
                    places[kind] = len(items)
                    items.append((product.title if kind[0] else None, product.image if kind[1] else None))
                plan[view] = places[kind]
        plans.append(plan)
    if not items:
        return [_nothing(product, views) for product in products]
    result = encoder.encode([text for text, _ in items], [image for _, image in items], errors="return")
    outcomes: list[dict[str, Vectors] | UniecsError] = []
    for product, plan in zip(products, plans, strict=True):
        failed = [result.errors[place] for place in plan.values() if place in result.errors]
        vectors = {view: result.embeddings[place] for view, place in plan.items()}
        outcomes.append(failed[0] if failed else vectors or _nothing(product, views))
    return outcomes


def _nothing(product: Product, views: Sequence[str]) -> InputError:
    return InputError(f"product {product.id!r} has nothing to embed for the views {', '.join(views)}")


def _here(left: Sequence[Shard], job: BulkJob, load: LoadEncoder) -> Iterator[ShardReport]:
    if left:
        encoder = load(None)
        for shard in left:
            yield embed_shard(shard, job, encoder)


class _Worker:
    """Embeds shards in a process of a Ray cluster, with an encoder that is loaded once.

    It answers with a report, or with the error that it met: Ray would keep only the text of what it raises.
    """

    def __init__(self, job: BulkJob, load: LoadEncoder, threads: int, retries: int) -> None:
        self._job, self._load, self._threads, self._retries = job, load, threads, retries
        self._encoder: Encoder | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        facts = json.loads(row["shard"])
        groups = facts.pop("groups")
        shard = Shard(**facts, groups=None if groups is None else tuple(groups))
        try:
            return {"report": json.dumps(asdict(self._embed(shard))), "error": None}
        except UniecsError as error:
            return {"report": None, "error": json.dumps([type(error).__name__, str(error)])}

    def _embed(self, shard: Shard) -> ShardReport:
        died = partials(shard, self._job)
        if died > self._retries:  # Ray itself would go on for ever
            raise BackendError(f"{died} workers died at {shard.path} from row {shard.first_row} on: out of memory?")
        if self._encoder is None:
            with tried(shard, self._job):
                self._encoder = self._load(self._threads)
        # A worker that died after the rename had its shard finished.
        return finished(shard, self._job) or embed_shard(shard, self._job, self._encoder)


def _on_ray(left: Sequence[Shard], job: BulkJob, load: LoadEncoder, address: str, device: str) -> Iterator[ShardReport]:
    """The shards through a pool of workers of Ray Data, which replaces the ones that die and repeats their shards."""
    if not left:
        return
    with _cluster(address) as ray:
        gpus = int(ray.cluster_resources().get("GPU", 0)) if device != "cpu" else 0
        threads, workers = _worker_size(ray.nodes())
        rows = [{"shard": json.dumps(asdict(shard))} for shard in left]
        done = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            _Worker,
            fn_constructor_args=(job, load, threads, RETRIES),
            compute=ray.data.ActorPoolStrategy(size=min(len(left), gpus or workers)),
            **({"num_gpus": 1} if gpus else {"num_cpus": threads}),
        )
        try:
            for row in done.iter_rows():
                if row["error"] is not None:
                    name, message = json.loads(row["error"])
                    raise getattr(errors, name)(message)
                yield ShardReport(**json.loads(row["report"]))
        except ray.exceptions.RayError as error:
            raise BackendError(f"the Ray cluster at {address!r} failed: {error}") from error


def _worker_size(nodes: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """CPUs of a worker, as many as some machine has, and how many such workers the machines hold."""
    cpus = [int(node["Resources"].get("CPU", 0)) for node in nodes if node["Alive"]]
    threads = min(CPUS_PER_WORKER, max([1, *cpus]))
    return threads, max(1, sum(each // threads for each in cpus))


@contextmanager
def _cluster(address: str, **settings: Any) -> Iterator[Any]:
    """Ray, connected to the cluster for the block, unless the program already is; `settings` are of `ray.init`."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address == "local":
        # Its only way, read at its import, to a cluster that other machines cannot reach.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    try:
        import ray
        import ray.data
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"--ray needs {error.name}: pip install 'uniecs[ray]'") from error
    ours = not ray.is_initialized()
    if ours:
        _connect(ray, address, settings)
    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        yield ray
    finally:
        if ours:
            ray.shutdown()


def _connect(ray: Any, address: str, settings: Mapping[str, Any]) -> None:
    if address == "local":
        if ray.util.get_node_ip_address() != "127.0.0.1":
            raise BackendError("Ray was imported before and would listen on all networks; start a cluster, give 'auto'")
        settings = {"include_dashboard": False, **settings}
    try:
        ray.init(address=address, log_to_driver=False, **settings)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise BackendError(f"no Ray cluster at {address!r}: {error}") from error
