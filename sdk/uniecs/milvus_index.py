"""An index in a Milvus collection: the one to move to when one machine is not enough (docs/scaling.md).

A product is one row: `key` (a digest of its id: ids of any length and any characters are then safe in expressions), its
id, title, image and attributes, the derived fields of `milvus_filters`, `shape` (a digest of its attributes' names),
`content` (a digest of all of it), and for each view a vector and a flag that says whether the product has one. (Milvus
learned vectors that may be null only in version 3.0; a zero vector behind a false flag works in all.) The metric is the
inner product, which of unit vectors is the cosine. What the index was made with stands in the collection's properties.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import numpy as np

from uniecs.catalog import Product
from uniecs.config import StrictConfig
from uniecs.errors import ConfigError, IndexFileError, InputError, ModelMismatchError
from uniecs.filters import Filter
from uniecs.index import Vectors, check_vectors
from uniecs.index_folder import BundleReference, IndexConfig
from uniecs.milvus_connection import Address, Connection, connect
from uniecs.milvus_filters import EVERYTHING, digest, expression, filter_fields, has_any

T = TypeVar("T")

PROPERTY = "uniecs.index"  # the collection property that says what the collection is
MIN_EF = 128
# Milvus's own limits: bytes of a string or JSON field, elements of an array, results of one request.
MAX_BYTES, MAX_TERMS, MAX_RESULTS = 65_535, 4096, 16_384
# Small enough for every message size that servers are set up with.
REQUEST_BYTES, REQUEST_KEYS, REQUEST_HITS = 8 << 20, 1000, 2000
DIGEST = 24  # characters, at most
SAME_SCORE = 1e-5  # sums of Milvus and of NumPy differ by less
PRODUCT_FIELDS = ["id", "title", "image", "attributes"]
DERIVED_FIELDS = ["terms", "ranges", "shape", "content"]


@dataclass(frozen=True)
class MilvusManifest(StrictConfig):
    """The collection property: what the index was made with."""

    model_id: str
    embed_dim: int
    bundle: BundleReference
    config: IndexConfig
    format: Literal["uniecs-milvus"] = "uniecs-milvus"
    format_version: Literal[1] = 1


class MilvusIndex:
    """Products and their vectors in a Milvus collection; thread-safe, and many processes may write at once.

    Every read is of consistency level Strong: it sees all writes acknowledged before it, by whichever client. A write
    is acknowledged once it is in Milvus's log, which is as durable as that log was set up; milvus-lite hands it to the
    operating system, so there it survives the process, not a power cut. `put` and `delete` are one request up to
    8 MiB and 1000 products, which is atomic for each shard of the collection; more go in several: after an error part
    may be there, and repeating the call completes it.
    """

    def __init__(self, connection: Connection, manifest: MilvusManifest) -> None:
        """Not to be called: use `create` or `open`."""
        self._connection = connection
        self._manifest = manifest
        self._writing = threading.Lock()  # milvus-lite takes one writer at a time
        self._closed = False

    @classmethod
    def create(cls, url: str, model_id: str, embed_dim: int, bundle: BundleReference, config: IndexConfig) -> Self:
        """A new, empty collection at a URL of `uniecs.milvus_connection`.

        Raises `InputError` for another URL, `IndexFileError` if there is such a collection, `BackendError` if the
        server cannot be reached, `MissingExtraError` without pymilvus, `ConfigError` for another storage than float32.
        """
        if config.storage != "float32":
            raise ConfigError(f"storage is {config.storage!r}; Milvus keeps float32 here")
        manifest = MilvusManifest(model_id, embed_dim, bundle, config)
        connection = connect(Address.parse(url))
        try:
            if connection.call("has_collection"):
                raise IndexFileError(f"{url} already exists; open it with SearchEngine.open, or choose another name")
            _create_collection(connection, manifest)
            _index_and_load(connection, manifest)
        except BaseException:
            connection.close()
            raise
        return cls(connection, manifest)

    @classmethod
    def ensure(cls, url: str, model_id: str, embed_dim: int, bundle: BundleReference, config: IndexConfig) -> Self:
        """`open` for a collection that is there, `create` otherwise; the graphs are Milvus's, in float32."""
        connection = connect(Address.parse(url))
        try:
            there = connection.call("has_collection")
        finally:
            connection.close()
        if there:
            return cls.open(url, model_id)
        return cls.create(url, model_id, embed_dim, bundle, replace(config, storage="float32"))

    @classmethod
    def open(cls, url: str, model_id: str | None = None) -> Self:
        """The index in an existing collection, loaded for searching, and completed if `create` was cut off.

        Raises `InputError`, `BackendError` and `MissingExtraError` as `create`, `IndexFileError` for a collection that
        is missing, not of uniecs or of a newer format, `ModelMismatchError` if `model_id` is given and another.
        """
        address = Address.parse(url)
        missing = IndexFileError(f"{url} does not exist; SearchEngine.create makes it")
        if address.lite and not Path(address.uri).exists():
            raise missing  # milvus-lite would make it
        connection = connect(address)
        try:
            if not connection.call("has_collection"):
                raise missing
            manifest = _read_manifest(connection)
            if model_id not in (None, manifest.model_id):
                raise ModelMismatchError(
                    f"{url} holds vectors of {manifest.model_id}, not of {model_id}: open it with its own model"
                )
            _index_and_load(connection, manifest)
        except BaseException:
            connection.close()
            raise
        return cls(connection, manifest)

    @staticmethod
    def drop(url: str) -> None:
        """Delete a collection with all that it holds; raises `InputError`, `BackendError`, `MissingExtraError`."""
        connection = connect(Address.parse(url))
        try:
            connection.call("drop_collection")
        finally:
            connection.close()

    @property
    def config(self) -> IndexConfig:
        """Views and graph parameters."""
        return self._manifest.config

    @property
    def model_id(self) -> str:
        """The model of the vectors."""
        return self._manifest.model_id

    @property
    def embed_dim(self) -> int:
        """Width of the vectors."""
        return self._manifest.embed_dim

    @property
    def bundle(self) -> BundleReference:
        """Where the model is."""
        return self._manifest.bundle

    def __len__(self) -> int:
        return self._count("")

    def known(self, ids: Sequence[str]) -> set[str]:
        """Those of `ids` that the index holds."""
        return set(self.contents(ids))

    def contents(self, ids: Sequence[str]) -> dict[str, str]:
        """For those of `ids` that the index holds the digest of what it holds; see `content_digest`."""
        found: dict[str, str] = {}
        for some in _slices(list(dict.fromkeys(ids)), REQUEST_KEYS):
            rows = self._query(_keys_in(some), ["id", "content"], len(some))
            found |= {row["id"]: row["content"] for row in rows}
        return found

    def check(self, product: Product) -> None:
        """See `Index.check`: for what Milvus cannot hold (see `put`)."""
        self._row(product, {})

    def put(self, items: Sequence[tuple[Product, Mapping[str, Vectors]]]) -> None:
        """Add products with a unit vector (embed_dim,) in each of their views, or replace them whole.

        Raises `InputError`, before anything is written, for what Milvus cannot hold: a string or the attributes beyond
        65,535 bytes, an integer beyond 64 bits, more than 4096 values; and for an id that comes twice, an unknown view
        or vectors that do not fit.
        """
        if len({product.id for product, _ in items}) < len(items):
            raise InputError("an id comes twice among the products; expected each once")
        rows = [self._row(product, vectors) for product, vectors in items]
        with self._writing:
            for some in _slices_of_bytes(rows, 4 * self.embed_dim * len(self.config.views)):
                self._call("upsert", data=some)

    def _row(self, product: Product, vectors: Mapping[str, Vectors]) -> dict[str, Any]:
        if unknown := set(vectors) - set(self.config.views):
            raise InputError(f"product {product.id!r} has a vector in the unknown view {min(unknown)!r}")
        try:
            fields = filter_fields(product.attributes)
        except InputError as error:
            raise InputError(f"product {product.id!r}: {error}") from error
        row: dict[str, Any] = {
            "key": _key(product.id),
            "id": product.id,
            "title": product.title,
            "image": _image(product),
            "attributes": dict(product.attributes),
            "shape": digest(*sorted(product.attributes)),
            "content": content_digest(product, vectors),
            "terms": fields.terms,
            "ranges": fields.ranges,
        }
        _check_row(product.id, row)
        for view in self.config.views:
            row[f"has_{view}"] = view in vectors
            vector = vectors.get(view)
            zeros = np.zeros(self.embed_dim, np.float32)
            row[f"{view}_vector"] = zeros if vector is None else check_vectors(vector[np.newaxis], self.embed_dim)[0]
        return row

    def delete(self, ids: Sequence[str]) -> None:
        """Delete products, all of which must be known; raises `InputError` otherwise, and deletes none."""
        with self._writing:
            known = self.known(ids)
            if unknown := [each for each in ids if each not in known]:
                raise InputError(f"{len(unknown)} of {len(ids)} ids are not in the index, such as {unknown[0]!r}")
            for some in _slices(list(ids), REQUEST_KEYS):
                self._call("delete", ids=[_key(each) for each in some])

    def search(self, view: str, queries: Vectors, k: int, where: Filter | None) -> list[list[tuple[Product, float]]]:
        """For each unit query (n, embed_dim) the `k` most similar products that have the view, best first.

        Raises `InputError` for an unknown view, unusable queries or a `k` above 16384, `FilterError` for a filter that
        Milvus cannot answer.
        """
        queries = check_vectors(queries, self.embed_dim)
        if k > MAX_RESULTS:
            raise InputError(f"k is {k}; Milvus gives up to {MAX_RESULTS}")
        filter = self._expression(view, where)
        found: list[list[tuple[Product, float]]] = []
        for some in _slices(list(queries), max(1, REQUEST_HITS // k)):
            hits = self._call(
                "search",
                data=some,
                anns_field=f"{view}_vector",
                filter=filter,
                limit=k,
                output_fields=PRODUCT_FIELDS,
                search_params=_search_params(k),
                consistency_level="Strong",
            )
            found += [[(_product(hit["entity"]), float(hit["distance"])) for hit in each] for each in hits]
        return found

    def vector(self, id: str, view: str) -> Vectors:
        """The vector (embed_dim,) of a product; raises `InputError` if the id is unknown or has none in the view."""
        self._check_view(view)
        rows = self._query(_keys_in([id]), [f"has_{view}", f"{view}_vector"], 1)
        if not rows:
            raise InputError(f"id {id!r} is not in the index")
        if not rows[0][f"has_{view}"]:
            raise InputError(f"product {id!r} has no vector in the view {view!r}")
        return np.asarray(rows[0][f"{view}_vector"], np.float32)

    def attribute_keys(self) -> set[str]:
        """The names of all attributes that some product has.

        One query for each thousand products, at most, that differ in the attributes which they have; for a shop whose
        products come in a few dozen such shapes, two or three queries.
        """
        keys, shapes = set[str](), set[str]()
        while True:
            others = f"shape not in {json.dumps(sorted(shapes))}" if shapes else EVERYTHING
            rows = self._query(others, ["shape", "attributes"], REQUEST_KEYS)
            if not rows:
                return keys
            keys.update(key for row in rows for key in row["attributes"])
            shapes.update(row["shape"] for row in rows)

    def explain(self, view: str, query: Vectors, k: int, where: Filter | None) -> dict[str, Any]:
        """How a search is answered, whatever the query: the expression, and the breadth of the graph search."""
        return {
            "index": "milvus",
            "collection": self._connection.address.url,
            "expression": self._expression(view, where),
            "consistency": "Strong",
            **_search_params(k)["params"],
        }

    def save(self) -> None:
        """Have Milvus seal what it holds in memory into segments: writes are durable without it."""
        with self._writing:
            self._call("flush")

    def compact(self) -> None:
        """Ask Milvus to merge segments and drop deleted rows; it does so in the background."""
        with self._writing:
            self._call("compact")

    def stats(self) -> dict[str, Any]:
        """Products, vectors of each view and their bytes as float32 (replicas and graph links not counted)."""
        vectors = {view: self._count(f"has_{view} == true") for view in self.config.views}
        return {
            "index": "milvus",
            "collection": self._connection.address.url,
            "server": self._connection.server_version(),
            "products": len(self),
            "vectors": vectors,
            "vector_bytes": 4 * self.embed_dim * len(vectors) * len(self),
            "M": self.config.M,
            "ef_construction": self.config.ef_construction,
        }

    def verify(self, sample: int) -> dict[str, Any]:
        """See `Index.verify`: of up to `sample` products, 16384 at most, every derived field must be that of the
        attributes and vectors, and searches for them are compared with exact ones, for which every vector is read once.

        The recall@10 of a view with none to compare is 1.0.
        """
        sample = min(sample, MAX_RESULTS)
        vectors = [name for view in self.config.views for name in (f"has_{view}", f"{view}_vector")]
        rows = self._query(EVERYTHING, [*PRODUCT_FIELDS, *DERIVED_FIELDS, *vectors], sample)
        if damaged := sorted(row["id"] for row in rows if self._is_damaged(row)):
            raise IndexFileError(
                f"{self._connection.address.url} is damaged: {len(damaged)} of {len(rows)} products, such as "
                f"{damaged[0]!r}, have other derived fields than they should; update them"
            )
        recalls = {}
        for view in self.config.views:
            fields = [*PRODUCT_FIELDS, f"{view}_vector"]
            flag = f"has_{view} == true"
            chosen = self._query(flag, fields, sample)
            queries = np.array([row[f"{view}_vector"] for row in chosen], np.float32).reshape(-1, self.embed_dim)
            exact = self._best_scores(view, queries, 10)
            found = self.search(view, queries, 10, None) if len(queries) else []
            lines = zip(found, exact.tolist(), strict=True)
            # By scores: products that are alike may stand for each other.
            right = sum(score > best[-1] - SAME_SCORE for line, best in lines for _, score in line)
            recalls[view] = right / exact.size if exact.size else 1.0
        return {"store": "ok", "recall_at_10": recalls}

    def _is_damaged(self, row: Mapping[str, Any]) -> bool:
        """Whether a whole row is not the one that `put` makes of its product and vectors."""
        views = [view for view in self.config.views if row[f"has_{view}"]]
        try:
            expected = self._row(_product(row), {view: np.array(row[f"{view}_vector"], np.float32) for view in views})
        except InputError:
            return True
        return any(row[name] != expected[name] for name in DERIVED_FIELDS)

    def _best_scores(self, view: str, queries: Vectors, k: int) -> Vectors:
        """The `k` best for each of `queries`, over all vectors, of which a block is held at a time."""
        best = np.empty((len(queries), 0), np.float32)
        for rows in self._blocks(f"has_{view} == true", [f"{view}_vector"]):
            block = np.array([row[f"{view}_vector"] for row in rows], np.float32)
            best = -np.sort(-np.hstack([best, queries @ block.T]), axis=1)[:, :k]
        return best

    def _blocks(self, filter: str, fields: list[str]) -> Iterator[list[dict[str, Any]]]:
        """All rows of a filter, a thousand at a time."""
        iterator = self._call(
            "query_iterator", filter=filter, output_fields=fields, batch_size=REQUEST_KEYS, consistency_level="Strong"
        )
        while rows := self._connection.retry("query_iterator", iterator.next):
            yield rows
        iterator.close()

    def close(self) -> None:
        """Disconnect; any further use raises `InputError`."""
        if not self._closed:
            self._closed = True
            self._connection.close()

    def _expression(self, view: str, where: Filter | None) -> str:
        self._check_view(view)
        flag = f"has_{view} == true"
        return flag if where is None else f"{flag} and {expression(where, self._any_has)}"

    def _any_has(self, terms: Iterable[str]) -> bool:
        return bool(self._query(has_any(terms), ["key"], 1))

    def _check_view(self, view: str) -> None:
        if view not in self.config.views:
            raise InputError(f"view is {view!r}; this index has {', '.join(self.config.views)}")

    def _count(self, filter: str) -> int:
        (row,) = self._call("query", filter=filter, output_fields=["count(*)"], consistency_level="Strong")
        return int(row["count(*)"])

    def _query(self, filter: str, fields: list[str], limit: int) -> list[dict[str, Any]]:
        return list(self._call("query", filter=filter, output_fields=fields, limit=limit, consistency_level="Strong"))

    def _call(self, method: str, **arguments: Any) -> Any:
        if self._closed:
            raise InputError("the index is closed; open it again")
        return self._connection.call(method, **arguments)


def content_digest(product: Product, vectors: Mapping[str, Vectors]) -> str:
    """Of a product with its vectors: equal for what `put` would store equally."""
    parts = {view: np.ascontiguousarray(vector, np.float32).tobytes().hex() for view, vector in vectors.items()}
    attributes = sorted(product.attributes.items())
    return digest(product.id, product.title, _image(product), attributes, sorted(parts.items()))


def _create_collection(connection: Connection, manifest: MilvusManifest) -> None:
    from pymilvus import DataType

    schema = connection.schema()
    schema.add_field("key", DataType.VARCHAR, max_length=DIGEST, is_primary=True)
    schema.add_field("id", DataType.VARCHAR, max_length=MAX_BYTES)
    for name in ("title", "image"):
        schema.add_field(name, DataType.VARCHAR, max_length=MAX_BYTES, nullable=True)
    for name in ("shape", "content"):
        schema.add_field(name, DataType.VARCHAR, max_length=DIGEST)
    for name in ("attributes", "ranges"):
        schema.add_field(name, DataType.JSON)
    schema.add_field("terms", DataType.ARRAY, element_type=DataType.VARCHAR, max_capacity=MAX_TERMS, max_length=DIGEST)
    for view in manifest.config.views:
        schema.add_field(f"has_{view}", DataType.BOOL)
        schema.add_field(f"{view}_vector", DataType.FLOAT_VECTOR, dim=manifest.embed_dim)
    properties = {PROPERTY: json.dumps(manifest.to_dict())}
    connection.call("create_collection", schema=schema, consistency_level="Strong", properties=properties)


def _index_and_load(connection: Connection, manifest: MilvusManifest) -> None:
    """Index the fields that are not yet: a collection and its indexes are not made in one step."""
    indexes: dict[str, dict[str, Any]] = {"shape": {"index_type": "INVERTED"}}
    if not connection.address.lite:  # milvus-lite scans arrays, and refuses to index them
        indexes["terms"] = {"index_type": "INVERTED"}
    graph = {"M": manifest.config.M, "efConstruction": manifest.config.ef_construction}
    for view in manifest.config.views:
        indexes[f"{view}_vector"] = {"index_type": "HNSW", "metric_type": "IP", "params": graph}
    params = connection.index_params()
    for field, options in indexes.items():
        if not connection.call("list_indexes", field_name=field):
            params.add_index(field, **options)
    if len(params):
        connection.call("create_index", index_params=params)
    connection.call("load_collection")


def _read_manifest(connection: Connection) -> MilvusManifest:
    url = connection.address.url
    text = connection.call("describe_collection").get("properties", {}).get(PROPERTY)
    if text is None:
        raise IndexFileError(f"{url} is a collection, but not of uniecs: it has no property {PROPERTY}")
    try:
        data = json.loads(text)
        version = data.get("format_version")
        if isinstance(version, int) and version > 1:
            raise IndexFileError(f"{url} has format version {version}; this uniecs reads up to 1: upgrade uniecs")
        return MilvusManifest.from_dict(data)
    except (ValueError, AttributeError, ConfigError) as error:
        raise IndexFileError(f"{url} has a damaged property {PROPERTY}: {error}") from error


def _check_row(product_id: str, row: Mapping[str, Any]) -> None:
    """Raise `InputError` for what Milvus would refuse, or its client would change."""
    for value in row["attributes"].values():
        for each in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(each, int) and not -(2**63) <= each < 2**63:
                raise InputError(f"product {product_id!r} has the integer {each}; Milvus takes up to 64 bits")
    if len(row["terms"]) > MAX_TERMS:
        raise InputError(f"product {product_id!r} has too many attribute values; Milvus takes about {MAX_TERMS}")
    for name in ("id", "title", "image", "attributes", "ranges"):
        size = _bytes(row[name])
        if size > MAX_BYTES:
            raise InputError(f"product {product_id!r} has {name} of {size} bytes; Milvus takes up to {MAX_BYTES}")


def _image(product: Product) -> str | None:
    """The path of its image, which is all that an index keeps of one."""
    return os.fspath(product.image) if isinstance(product.image, (str, os.PathLike)) else None


def _bytes(value: object) -> int:
    return len((value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)).encode())


def _search_params(k: int) -> dict[str, Any]:
    return {"metric_type": "IP", "params": {"ef": max(MIN_EF, 2 * k)}}


def _key(product_id: str) -> str:
    return digest("id", product_id, size=18)


def _keys_in(ids: Iterable[str]) -> str:
    return f"key in {json.dumps([_key(each) for each in ids])}"


def _product(row: Mapping[str, Any]) -> Product:
    return Product(row["id"], row["title"], row["image"], row["attributes"])


def _slices(items: list[T], size: int) -> Iterator[list[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _slices_of_bytes(rows: list[dict[str, Any]], vector_bytes: int) -> Iterator[list[dict[str, Any]]]:
    """Rows for one request each: at most `REQUEST_KEYS`, and about `REQUEST_BYTES`."""
    some: list[dict[str, Any]] = []
    total = 0
    for row in rows:
        size = vector_bytes + sum(_bytes(row[name]) for name in (*PRODUCT_FIELDS, "terms", "ranges"))
        if some and (len(some) == REQUEST_KEYS or total + size > REQUEST_BYTES):
            yield some
            some, total = [], 0
        some.append(row)
        total += size
    if some:
        yield some
