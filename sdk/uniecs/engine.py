"""SearchEngine: products in, hits out. It ties the encoder to the index that keeps the products and their vectors."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set, Sized
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias, TypeVar, overload

import numpy as np

from uniecs.catalog import Product, Rejected, read_catalog
from uniecs.engine_input import absolute_folder, check_durability, check_encoder, check_k, image_path, read_once
from uniecs.errors import BundleError, FilterError, InputError, ModelMismatchError, UniecsError
from uniecs.filters import Filter, filter_keys, parse_where
from uniecs.index import Found, Index, Vectors, check_vectors
from uniecs.index_folder import VIEW_INPUTS, BundleReference, IndexConfig
from uniecs.local_index import LocalIndex
from uniecs.milvus_connection import is_milvus_url
from uniecs.pacing import paced
from uniecs.progress import progress_bar
from uniecs.query_cache import QueryCache

if TYPE_CHECKING:
    from uniecs.encoder import Encoder
    from uniecs.preprocess import ImageSource

Where: TypeAlias = Mapping[str, object]
Item = TypeVar("Item")

QUERY_CACHE = 1024  # embeddings of queries kept: about a megabyte
# Products of one change, which waits for the disk once; images given as arrays are held for so many.
CHUNK = 128


@dataclass(frozen=True, slots=True)
class Query:
    """What to search for: a text, an image, or both; raises `InputError` for neither."""

    text: str | None = None
    image: ImageSource | None = None

    def __post_init__(self) -> None:
        if self.text is None and self.image is None:
            raise InputError("query has neither a text nor an image; expected at least one")


@dataclass(frozen=True, slots=True)
class Hit:
    """A product found; `score` is the cosine similarity, `product.image` the path where the image had one.

    Other searches share the product: copy its attributes before you change them.
    """

    id: str
    score: float
    product: Product


@dataclass(frozen=True, slots=True)
class AddReport:
    """What an `add` or `update` did: how many products went in, and which rows were left out and why."""

    added: int
    rejected: list[Rejected]


@dataclass(frozen=True, slots=True)
class BatchResult:
    """`search_batch(errors="return")`: the hits of each query, empty for those in `errors` (by position)."""

    hits: list[list[Hit]]
    errors: dict[int, UniecsError]


class SearchEngine:
    """A searchable catalogue of products; made by `create` or `open`, safe to share between threads.

    What `add`, `update` and `delete` did is durable when they return. `save` only makes the next opening fast; as a
    context manager the engine saves on leaving, unless an exception passes through. One process writes an index at a
    time, any number read it.
    """

    def __init__(self, index: Index, encoder: Encoder, cache: QueryCache) -> None:
        """Not to be called: use `create` or `open`."""
        self._index = index
        self._encoder = encoder
        self._cache = cache
        self._closed = False
        self._changed = False
        self._keys: frozenset[str] = frozenset()  # attributes met so far: a filter on another is probably a slip
        self._process = os.getpid()
        self._writing = threading.Lock()

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        encoder: Encoder,
        views: Sequence[str] = ("multimodal",),
        M: int = 16,
        ef_construction: int = 200,
        *,
        storage: str = "float32",
        durability: str = "full",
        query_cache: int = QUERY_CACHE,
        cache_images: bool = False,
    ) -> Self:
        """A new, empty engine in the folder `path`, or in Milvus: milvus://HOST[:PORT]/COLLECTION (docs/scaling.md).

        A view is an index of its own: "multimodal" holds every product by whatever it has, "image" and
        "text" the products that have that, embedded from it alone. `M` and `ef_construction` are HNSW's
        links a node and breadth of building. `storage` is how the graph keeps its vectors: "float32", with int8
        codes beside them that searches compare first, or "float16" or "int8" alone, which take a half or a third of the
        memory and score what they find anew from the store, more slowly.
        `durability="full"` brings each batch of a change to the disk before it returns; "batch" leaves that to the
        operating system: a killed process still loses nothing, a power cut may cost the last changes. The embeddings
        of the last `query_cache` queries are kept, those with an image only if `cache_images`. Raises `IndexFileError`
        if `path` already holds something or cannot be written, `ConfigError` or `InputError` for unusable settings.
        """
        check_encoder(encoder)
        config = IndexConfig.from_dict({"views": views, "M": M, "ef_construction": ef_construction, "storage": storage})
        cache = QueryCache(query_cache, images=cache_images)
        made_for = (encoder.model_id, encoder.embed_dim, BundleReference.of(encoder.bundle.path), config)
        durability = check_durability(durability)
        index: Index
        if is_milvus_url(path):
            from uniecs.milvus_index import MilvusIndex

            index = MilvusIndex.create(str(path), *made_for)
        else:
            index = LocalIndex.create(absolute_folder(path), *made_for, durability)
        return cls(index, encoder, cache)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        encoder: Encoder | None = None,
        *,
        device: str = "auto",
        backend: str = "auto",
        precision: str = "auto",
        threads: int | None = None,
        durability: str = "full",
        query_cache: int = QUERY_CACHE,
        cache_images: bool = False,
    ) -> Self:
        """Open an index; the first change makes this process its writer.

        Without an `encoder` the bundle that the index records is loaded, with device, backend, precision and
        threads as in `uniecs.load`; the rest as in `create`. An index of format version 1 is rewritten as version 2.
        Raises `IndexFileError` for an index that is missing, damaged or of a newer format, `ModelMismatchError` if its
        vectors are of another model than the encoder, `BundleError` or `BackendError` as `uniecs.load`, `InputError`
        for unusable settings.
        """
        if encoder is not None:
            check_encoder(encoder)
        cache = QueryCache(query_cache, images=cache_images)
        durability = check_durability(durability)
        index: Index
        if is_milvus_url(path):
            from uniecs.milvus_index import MilvusIndex

            index = MilvusIndex.open(str(path), None if encoder is None else encoder.model_id)
        else:
            index = LocalIndex.open(absolute_folder(path), durability)
        try:
            if encoder is None:
                from uniecs.encoder import load

                source = index.bundle.name or index.bundle.path or ""
                try:
                    encoder = load(source, device=device, backend=backend, precision=precision, threads=threads)
                except BundleError as error:
                    raise BundleError(
                        f"{error}; {path} records this bundle: where it lies elsewhere now, pass "
                        "encoder=uniecs.load(...), on the command line --model"
                    ) from error
            if (encoder.model_id, encoder.embed_dim) != (index.model_id, index.embed_dim):
                raise ModelMismatchError(
                    f"{path} holds vectors of {index.model_id} ({index.embed_dim} wide), the encoder is "
                    f"{encoder.model_id} ({encoder.embed_dim} wide): open it with its own model, or index anew"
                )
        except BaseException:
            index.close()
            raise
        return cls(index, encoder, cache)

    @property
    def views(self) -> tuple[str, ...]:
        """The views of this index; the first is the one searched by default."""
        return self._index.config.views

    def __len__(self) -> int:
        self._check_open()
        return len(self._index)

    def add(self, products: object) -> AddReport:
        """Embed and index new products, streamed from anything that `read_catalog` takes.

        A row that cannot be used (no id, a known id, no modality that any view of the index holds, an image
        or text that cannot be read) is reported as rejected and the others go on. Raises `CatalogError`,
        `InputError` or `MissingExtraError` as `read_catalog`; rows read before that stay.
        """
        return self._put(products, known=False)

    def update(self, products: object) -> AddReport:
        """As `add`, but each product replaces the one of its id whole; an unknown id is a rejected row."""
        return self._put(products, known=True)

    def _put(self, products: object, *, known: bool) -> AddReport:
        self._check_open()
        items = enumerate(paced(read_catalog(products)))
        added, rejected = 0, list[Rejected]()
        total = len(products) if isinstance(products, Sized) and not isinstance(products, str) else None
        with progress_bar(desc="update" if known else "add", total=total, unit="product") as bar:
            for chunk in _chunks(items, CHUNK):
                outcomes = self._embed([item for _, item in chunk], known)
                errors = self._insert([item for _, item in chunk], outcomes, known)
                rejected += [
                    Rejected(row, item.id, error)
                    for (row, item), error in zip(chunk, errors, strict=True)
                    if error is not None
                ]
                added += errors.count(None)
                bar.update(len(chunk))
        return AddReport(added, rejected)

    def _embed(self, chunk: list[Product | Rejected], known: bool) -> list[dict[str, Vectors] | UniecsError]:
        """For each item its vector (embed_dim,) in each view that takes it, or why it has none."""
        queries: list[Query] = []
        plans: list[dict[str, int] | UniecsError] = []
        held = self._index.known([item.id for item in chunk if isinstance(item, Product)])
        for item in paced(chunk):
            try:
                plans.append(self._plan(item, known, held, queries))
            except UniecsError as error:
                plans.append(error)
        vectors, errors = self._encode(queries)
        outcomes: list[dict[str, Vectors] | UniecsError] = []
        for plan in plans:
            if isinstance(plan, UniecsError):
                outcomes.append(plan)
            elif failed := [errors[place] for place in plan.values() if place in errors]:
                outcomes.append(failed[0])
            else:
                outcomes.append({view: vectors[place] for view, place in plan.items()})
        return outcomes

    def _plan(self, item: Product | Rejected, known: bool, held: set[str], queries: list[Query]) -> dict[str, int]:
        """Append to `queries` what to embed of `item`, each thing once; returns view -> place there."""
        if isinstance(item, Rejected):
            raise item.error
        _check_known(item.id, known, held)
        image = read_once(item.image)
        plan: dict[str, int] = {}
        places: dict[tuple[bool, bool], int] = {}
        for view in self.views:
            takes_text, takes_image = VIEW_INPUTS[view]
            kind = (takes_text and item.title is not None, takes_image and image is not None)
            if any(kind):
                if kind not in places:
                    places[kind] = len(queries)
                    queries.append(Query(item.title if kind[0] else None, image if kind[1] else None))
                plan[view] = places[kind]
        if not plan:
            raise InputError(f"product {item.id!r} has nothing to embed for the views {', '.join(self.views)}")
        return plan

    def _encode(self, queries: Sequence[Query]) -> tuple[Vectors, dict[int, UniecsError]]:
        """Unit vectors (n, embed_dim), rows of failed queries unspecified, and the errors by position."""
        if not queries:
            return np.zeros((0, self._index.embed_dim), np.float32), {}
        texts, images = [query.text for query in queries], [query.image for query in queries]
        result = self._encoder.encode(texts=texts, images=images, errors="return")
        good = [place for place in range(len(queries)) if place not in result.errors]
        check_vectors(result.embeddings[good], self._index.embed_dim)
        return result.embeddings, result.errors

    def _insert(
        self, chunk: Sequence[Product | Rejected], outcomes: Sequence[dict[str, Vectors] | UniecsError], known: bool
    ) -> list[UniecsError | None]:
        """Put what can be put, all in one change; for each item why it was left out, or None."""
        errors: list[UniecsError | None] = []
        items: dict[str, tuple[Product, dict[str, Vectors]]] = {}
        with self._change():
            # Again: another thread may have changed it since.
            held = self._index.known([item.id for item in chunk if isinstance(item, Product)])
            for item, outcome in zip(paced(chunk), outcomes, strict=True):
                try:
                    if isinstance(outcome, UniecsError):
                        raise outcome
                    if isinstance(item, Rejected):
                        raise item.error
                    _check_known(item.id, known, held | items.keys())
                    product = replace(item, image=image_path(item.image))
                    self._index.check(product)
                    items[item.id] = product, outcome
                    errors.append(None)
                except UniecsError as error:
                    errors.append(error)
            if items:
                self._index.put(list(items.values()))
                self._changed = True
        return errors

    def delete(self, ids: Iterable[str]) -> int:
        """Delete products and return how many; for unknown ids raises `InputError` and deletes none."""
        if isinstance(ids, (str, bytes)) or not isinstance(ids, Iterable):
            raise InputError(f"ids is {ids!r}; expected a list of ids")
        wanted = list(ids)
        for each in wanted:
            if not isinstance(each, str):
                raise InputError(f"ids has {each!r}; expected strings")
        with self._change():
            held = self._index.known(wanted)
            unknown = [each for each in wanted if each not in held]
            if unknown:
                raise InputError(f"{len(unknown)} of {len(wanted)} ids are not in the index, such as {unknown[0]!r}")
            distinct = list(dict.fromkeys(wanted))
            if distinct:
                self._index.delete(distinct)
                self._changed = True
        return len(distinct)

    def search(
        self,
        text: str | None = None,
        image: ImageSource | None = None,
        k: int = 10,
        view: str | None = None,
        where: Where | None = None,
    ) -> list[Hit]:
        """The `k` products most similar to a text, an image or both, best first; all if there are fewer.

        `view` is one of `views`, by default the first. `where` maps attributes to a value (equal; None: absent), a list
        (equal to any) or a (low, high) tuple (None is open); all must hold. A number also matches text that reads as
        it. Its keys "$and" and "$or" take lists of such filters, "$not" takes one. Raises `TextError` or
        `ImageError` for a query that cannot be read, `FilterError` for an unknown key or an unusable value,
        `InputError` for a query of nothing, a `k` below 1 or an unknown view.
        """
        return self.search_batch([Query(text, image)], k, view, where)[0]

    @overload
    def search_batch(
        self, queries: Iterable[Query], k: int = 10, view: str | None = None, where: Where | None = None
    ) -> list[list[Hit]]: ...

    @overload
    def search_batch(
        self,
        queries: Iterable[Query],
        k: int = 10,
        view: str | None = None,
        where: Where | None = None,
        *,
        errors: Literal["return"],
    ) -> BatchResult: ...

    def search_batch(
        self,
        queries: Iterable[Query],
        k: int = 10,
        view: str | None = None,
        where: Where | None = None,
        *,
        errors: Literal["raise", "return"] = "raise",
    ) -> list[list[Hit]] | BatchResult:
        """As `search`, for many queries embedded together: the hits of each, in their order.

        With `errors="return"` queries that cannot be read do not raise: a `BatchResult` has their errors.
        """
        self._check_open()
        if errors not in ("raise", "return"):
            raise InputError(f"errors is {errors!r}; expected 'raise' or 'return'")
        k, view = check_k(k), self._check_view(view)
        matching = self._check_where(where)
        if isinstance(queries, Query) or not isinstance(queries, Iterable):
            raise InputError(f"queries is of type {type(queries).__name__}; expected a list of uniecs.Query")
        queries = list(queries)
        for place, query in enumerate(queries):
            if not isinstance(query, Query):
                raise InputError(f"queries[{place}] is {query!r}; expected a uniecs.Query, such as Query('red kurta')")
        vectors, failed = self._cache.embed(queries, self._encode)
        if failed and errors == "raise":
            raise failed[min(failed)]
        good = [place for place in range(len(queries)) if place not in failed]
        hits: list[list[Hit]] = [[] for _ in queries]
        if good:
            found = self._index.search(view, vectors[good] if failed else vectors, k, matching)
            for place, each in zip(good, found, strict=True):
                hits[place] = _hits(each)
        return BatchResult(hits, failed) if errors == "return" else hits

    def similar(self, id: str, k: int = 10, view: str | None = None, where: Where | None = None) -> list[Hit]:
        """The `k` products most similar to the product `id`, itself left out; otherwise as `search`.

        Raises `InputError` for an id that is not in the index, or that has no vector in the view.
        """
        self._check_open()
        k, view = check_k(k), self._check_view(view)
        matching = self._check_where(where)
        if not isinstance(id, str):
            raise InputError(f"id is {id!r}; expected a string")
        found = self._index.search(view, self._index.vector(id, view)[np.newaxis], k + 1, matching)
        return _hits(each for each in found[0] if each[0].id != id)[:k]

    def explain(
        self,
        text: str | None = None,
        image: ImageSource | None = None,
        k: int = 10,
        view: str | None = None,
        where: Where | None = None,
    ) -> dict[str, Any]:
        """Search as `search` does, and say how it went: a JSON object for people, not a stable interface.

        view, products, hits, encode_ms, search_ms, and of an index in a folder: strategy ("graph", "filtered graph" or
        "exact"), ef (0 for exact), matching (rows that the filter lets through), compared (vectors that were compared
        with the query).
        """
        self._check_open()
        k, view = check_k(k), self._check_view(view)
        matching = self._check_where(where)
        start = time.perf_counter()
        vectors, failed = self._encode([Query(text, image)])
        if failed:
            raise failed[0]
        encoded = time.perf_counter()
        found = self._index.search(view, vectors, k, matching)
        times = {"encode_ms": (encoded - start) * 1e3, "search_ms": (time.perf_counter() - encoded) * 1e3}
        how = self._index.explain(view, vectors[0], k, matching)
        return {"view": view, "products": len(self._index), "hits": len(found[0]), **times, **how}

    def _check_where(self, where: Where | None) -> Filter | None:
        """The filter of `where`; raises `FilterError` for one that is not usable, or names a key no product has."""
        if where is None:
            return None
        parsed = parse_where(where)
        if filter_keys(parsed) <= self._keys or not len(self._index):
            return parsed
        self._keys = frozenset(self._index.attribute_keys())
        unknown = sorted(filter_keys(parsed) - self._keys)
        if unknown:
            known = ", ".join(sorted(self._keys)) or "none"
            raise FilterError(f"where has the unknown key {unknown[0]!r}; known keys: {known}")
        return parsed

    def stats(self) -> dict[str, Any]:
        """Products, bytes by part, deleted nodes, parameters of the graphs, and the sequence number of the last
        change: a JSON object.
        """
        self._check_open()
        return self._index.stats()

    def verify(self, sample: int = 1000) -> dict[str, Any]:
        """Check every checksum, and compare the search for `sample` of the products with an exact one.

        Returns {"store": "ok", "recall_at_10": {view: share}}. Raises `IndexFileError` for what is damaged.
        """
        if type(sample) is not int or sample < 1:
            raise InputError(f"sample is {sample!r}; expected a positive int")
        with self._change():
            return self._index.verify(sample)

    def save(self) -> None:
        """Write the graphs as they are, so that the next opening need not build them; no data depends on it.

        Raises `IndexFileError` if the folder cannot be written, or another process is its writer.
        """
        with self._change():
            self._index.save()

    def compact(self) -> None:
        """Build the graphs anew, without deleted and replaced products: as good as new after many changes.

        Searches and changes go on meanwhile.
        """
        self._check_open()
        self._index.compact()
        self._changed = True

    def close(self) -> None:
        """Free the index, and let another process write it; any further use raises `InputError`."""
        if self._process != os.getpid():
            self._closed = True  # what it has open is the parent's
            return
        with self._writing:
            if not self._closed:
                self._closed = True
                self._index.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and self._changed and not self._closed:
                self.save()
        finally:
            self.close()

    @contextmanager
    def _change(self) -> Iterator[None]:
        """One at a time."""
        self._check_open()  # first: in a process forked meanwhile nobody gives the lock back
        with self._writing:
            self._check_open()
            yield

    def _check_open(self) -> None:
        if self._closed:
            raise InputError("the engine is closed; open the index again with SearchEngine.open")
        if self._process != os.getpid():
            raise InputError("the engine was opened before this process was forked; open the index again in it")

    def _check_view(self, view: str | None) -> str:
        if view is None:
            return self.views[0]
        if view not in self.views:
            raise InputError(f"view is {view!r}; this index has {', '.join(self.views)}")
        return view


def _chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of `size` items, the last one shorter; also where `items` breaks off, before it raises."""
    chunk: list[Item] = []
    try:
        for item in items:
            chunk.append(item)
            if len(chunk) == size:
                full, chunk = chunk, []
                yield full
    finally:
        if chunk:
            yield chunk


def _check_known(product_id: str, known: bool, held: Set[str]) -> None:
    if known and product_id not in held:
        raise InputError(f"id {product_id!r} is not in the index; add it with add()")
    if not known and product_id in held:
        raise InputError(f"id {product_id!r} is already in the index; replace it with update()")


def _hits(found: Iterable[Found]) -> list[Hit]:
    return [Hit(product.id, score, product) for product, score in found]
