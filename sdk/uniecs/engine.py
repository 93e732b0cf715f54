"""SearchEngine: products in, hits out. It ties the encoder, one index a view, and the folder that keeps
them.

Two locks: `_writing` lets one change at a time through, from its first check to its last row; `_state` is
held for the moments in which rows are read or changed. Embedding happens outside both, so searches go on
during an `add`.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self, TypeAlias, overload

import numpy as np

from uniecs.catalog import Product, Rejected, check_where_keys, compile_where, read_catalog
from uniecs.errors import ImageError, IndexFileError, InputError, ModelMismatchError, UniecsError
from uniecs.index import Rows, VectorIndex, Vectors, check_vectors
from uniecs.index_folder import (
    BundleReference,
    IndexConfig,
    Manifest,
    empty_indexes,
    read_contents,
    read_manifest,
    write_contents,
)
from uniecs.query_cache import QueryCache

if TYPE_CHECKING:
    from uniecs.encoder import Encoder
    from uniecs.preprocess import ImageSource

Where: TypeAlias = Mapping[str, object]

QUERY_CACHE = 1024  # embeddings of queries kept: about a megabyte
# Products embedded together: bounds the memory that their decoded images take.
CHUNK = 64
# The modalities that a view embeds: (text, image).
VIEW_INPUTS = {"multimodal": (True, True), "image": (False, True), "text": (True, False)}


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
    """A product found; `score` is the cosine similarity, `product.image` the path where the image had one."""

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

    Changes live in memory until `save()`: what was not saved is lost on `close()`. As a context manager it
    saves on leaving, unless an exception passes through. One process writes an index at a time.
    """

    def __init__(
        self,
        path: Path,
        encoder: Encoder,
        manifest: Manifest,
        products: list[Product | None],
        indexes: dict[str, VectorIndex],
        cache: QueryCache,
    ) -> None:
        """Not to be called: use `create` or `open`."""
        self._path = path
        self._encoder = encoder
        self._manifest = manifest
        self._changed = manifest.generation == 0
        self._closed = False
        self._cache = cache
        self._writing = threading.Lock()
        self._state = threading.Lock()
        self._fill(products, indexes)

    def _fill(self, products: list[Product | None], indexes: dict[str, VectorIndex]) -> None:
        self._products = products
        self._indexes = indexes
        self._rows = {product.id: row for row, product in enumerate(products) if product is not None}
        self._free = [row for row, product in enumerate(products) if product is None]

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        encoder: Encoder,
        views: Sequence[str] = ("multimodal",),
        M: int = 16,
        ef_construction: int = 200,
        *,
        query_cache: int = QUERY_CACHE,
        cache_images: bool = False,
    ) -> Self:
        """A new, empty engine; the first `save()` makes the folder `path`.

        A view is an index of its own: "multimodal" holds every product by whatever it has, "image" and
        "text" the products that have that, embedded from it alone. `M` and `ef_construction` are HNSW's
        links a node and breadth of building. The embeddings of the last `query_cache` queries are kept, those with
        an image only if `cache_images`. Raises `IndexFileError` if `path` already holds something,
        `ConfigError` or `InputError` for unusable settings.
        """
        path = Path(path)
        if path.exists() and not (path.is_dir() and not any(path.iterdir())):
            raise IndexFileError(f"{path} already exists; open it with SearchEngine.open, or choose another path")
        config = IndexConfig.from_dict({"views": views, "M": M, "ef_construction": ef_construction})
        bundle = BundleReference.of(encoder.bundle.path)
        manifest = Manifest(0, encoder.model_id, encoder.embed_dim, bundle, config)
        cache = QueryCache(query_cache, images=cache_images)
        return cls(path, encoder, manifest, [], empty_indexes(manifest), cache)

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
        query_cache: int = QUERY_CACHE,
        cache_images: bool = False,
    ) -> Self:
        """Open a saved index; nothing in its folder is changed by that.

        Without an `encoder` the bundle that the index records is loaded, with device, backend, precision and
        threads as in `uniecs.load`; `query_cache` and `cache_images` as in `create`. Raises `IndexFileError` for an
        index that is missing, damaged or of a newer format, `ModelMismatchError` if its vectors are of another
        model than the encoder, `BundleError` or `BackendError` as `uniecs.load`.
        """
        path = Path(path)
        manifest = read_manifest(path)
        if encoder is None:
            from uniecs.encoder import load

            source = manifest.bundle.name or manifest.bundle.path or ""
            encoder = load(source, device=device, backend=backend, precision=precision, threads=threads)
        if (encoder.model_id, encoder.embed_dim) != (manifest.model_id, manifest.embed_dim):
            raise ModelMismatchError(
                f"{path} holds vectors of {manifest.model_id} ({manifest.embed_dim} wide), the encoder is "
                f"{encoder.model_id} ({encoder.embed_dim} wide): open it with its own model, or index anew"
            )
        cache = QueryCache(query_cache, images=cache_images)
        return cls(path, encoder, manifest, *read_contents(path, manifest), cache)

    @property
    def views(self) -> tuple[str, ...]:
        """The views of this index; the first is the one searched by default."""
        return self._manifest.config.views

    def __len__(self) -> int:
        return len(self._rows)

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
        from tqdm import tqdm

        self._check_open()
        items = enumerate(read_catalog(products))
        added, rejected = 0, list[Rejected]()
        total = len(products) if isinstance(products, Sized) and not isinstance(products, str) else None
        with tqdm(desc="update" if known else "add", total=total, unit="product", disable=None) as bar:
            while chunk := list(itertools.islice(items, CHUNK)):
                outcomes = self._embed([item for _, item in chunk], known)
                for (row, item), outcome in zip(chunk, outcomes, strict=True):
                    try:
                        self._insert(item, outcome, known)
                        added += 1
                    except UniecsError as error:
                        rejected.append(Rejected(row, item.id, error))
                bar.update(len(chunk))
        return AddReport(added, rejected)

    def _embed(self, chunk: list[Product | Rejected], known: bool) -> list[dict[str, Vectors] | UniecsError]:
        """For each item its vector (embed_dim,) in each view that takes it, or why it has none."""
        queries: list[Query] = []
        plans: list[dict[str, int] | UniecsError] = []
        for item in chunk:
            try:
                plans.append(self._plan(item, known, queries))
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

    def _plan(self, item: Product | Rejected, known: bool, queries: list[Query]) -> dict[str, int]:
        """Append to `queries` what to embed of `item`, each thing once; returns view -> place there."""
        if isinstance(item, Rejected):
            raise item.error
        self._check_known(item.id, known)
        image = _read_once(item.image)
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

    def _check_known(self, product_id: str, known: bool) -> None:
        if known and product_id not in self._rows:
            raise InputError(f"id {product_id!r} is not in the index; add it with add()")
        if not known and product_id in self._rows:
            raise InputError(f"id {product_id!r} is already in the index; replace it with update()")

    def _encode(self, queries: Sequence[Query]) -> tuple[Vectors, dict[int, UniecsError]]:
        """Unit vectors (n, embed_dim), rows of failed queries unspecified, and the errors by position."""
        if not queries:
            return np.zeros((0, self._manifest.embed_dim), np.float32), {}
        texts, images = [query.text for query in queries], [query.image for query in queries]
        result = self._encoder.encode(texts=texts, images=images, errors="return")
        good = [place for place in range(len(queries)) if place not in result.errors]
        check_vectors(result.embeddings[good], self._manifest.embed_dim)
        return result.embeddings, result.errors

    def _insert(self, item: Product | Rejected, outcome: dict[str, Vectors] | UniecsError, known: bool) -> None:
        if isinstance(outcome, UniecsError):
            raise outcome
        if isinstance(item, Rejected):
            raise item.error
        image = os.fspath(item.image) if isinstance(item.image, (str, os.PathLike)) else None
        with self._writing, self._state:
            self._check_open()
            # Again: another thread, or an earlier row of this chunk, may have changed it since.
            self._check_known(item.id, known)
            vacant = self._free[-1] if self._free else len(self._products)
            row = self._rows.get(item.id, vacant)
            for view, index in self._indexes.items():
                if view in outcome:
                    index.add(np.array([row]), outcome[view][np.newaxis])
                else:
                    index.delete(np.array([row]))
            self._products[row : row + 1] = [replace(item, image=image)]
            self._rows[item.id] = row
            if self._free and row == self._free[-1]:
                self._free.pop()
            self._changed = True

    def delete(self, ids: Iterable[str]) -> int:
        """Delete products and return how many; for unknown ids raises `InputError` and deletes none."""
        if isinstance(ids, (str, bytes)) or not isinstance(ids, Iterable):
            raise InputError(f"ids is {ids!r}; expected a list of ids")
        wanted = list(ids)
        with self._writing, self._state:
            self._check_open()
            unknown = [each for each in wanted if not (isinstance(each, str) and each in self._rows)]
            if unknown:
                raise InputError(f"{len(unknown)} of {len(wanted)} ids are not in the index, such as {unknown[0]!r}")
            rows = [self._rows.pop(each) for each in dict.fromkeys(wanted)]
            for row in rows:
                self._products[row] = None
            for index in self._indexes.values():
                index.delete(np.array(rows, np.int64))
            self._free += rows
            self._changed = self._changed or bool(rows)
        return len(rows)

    def search(
        self,
        text: str | None = None,
        image: ImageSource | None = None,
        k: int = 10,
        view: str | None = None,
        where: Where | None = None,
    ) -> list[Hit]:
        """The `k` products most similar to a text, an image or both, best first; all if there are fewer.

        `view` is one of `views`, by default the first. `where` maps attributes to a value (equal), a list
        (equal to any) or a (low, high) tuple (None is open); all must hold. Raises `TextError` or
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
        k, view = _check_k(k), self._check_view(view)
        matches = None if where is None else compile_where(where)
        queries = list(queries)
        if not all(isinstance(query, Query) for query in queries):
            raise InputError("queries has an item that is not a uniecs.Query")
        vectors, failed = self._cache.embed(queries, self._encode)
        if failed and errors == "raise":
            raise failed[min(failed)]
        hits: list[list[Hit]] = [[] for _ in queries]
        with self._state:
            self._check_open()
            rows = self._matching(where, matches)
            for place, vector in enumerate(vectors):
                if place not in failed:
                    hits[place] = self._hits(*self._indexes[view].search(vector, k, rows))
        return BatchResult(hits, failed) if errors == "return" else hits

    def similar(self, id: str, k: int = 10, view: str | None = None, where: Where | None = None) -> list[Hit]:
        """The `k` products most similar to the product `id`, itself left out; otherwise as `search`.

        Raises `InputError` for an id that is not in the index, or that has no vector in the view.
        """
        k, view = _check_k(k), self._check_view(view)
        matches = None if where is None else compile_where(where)
        with self._state:
            self._check_open()
            index, row = self._indexes[view], self._rows.get(id)
            if row is None:
                raise InputError(f"id {id!r} is not in the index")
            if row not in index:
                raise InputError(f"product {id!r} has no vector in the view {view!r}")
            (vector,) = index.vectors(np.array([row]))
            rows, scores = index.search(vector, k + 1, self._matching(where, matches))
            others = rows != row
            return self._hits(rows[others][:k], scores[others][:k])

    def _matching(self, where: Where | None, matches: Callable[[Product], bool] | None) -> Rows | None:
        """The rows whose products pass the filter; None for no filter."""
        if where is None or matches is None:
            return None
        rows = [row for row, product in enumerate(self._products) if product is not None and matches(product)]
        # A filter that names an unknown key matches nothing: only then is it worth looking for one.
        if not rows and self._rows:
            check_where_keys(where, (product for product in self._products if product is not None))
        return np.array(rows, np.int64)

    def _hits(self, rows: Rows, scores: Vectors) -> list[Hit]:
        hits = []
        for row, score in zip(rows.tolist(), scores.tolist(), strict=True):
            product = self._products[row]
            if product is not None:
                hits.append(Hit(product.id, score, product))
        return hits

    def save(self) -> None:
        """Write the index to its folder, whole or not at all; without changes it does nothing.

        Raises `IndexFileError` if the folder cannot be written, or if another engine saved it since this one
        opened it; what was saved before is then unharmed.
        """
        with self._writing:
            self._check_open()
            if self._changed:
                self._manifest = write_contents(self._path, self._manifest, self._products, self._indexes)
                self._changed = False

    def compact(self) -> None:
        """Build the graphs anew in memory, without deleted rows: faster and more exact after many changes."""
        with self._writing:
            self._check_open()
            live = np.array(sorted(self._rows.values()), np.int64)
            products = [self._products[row] for row in live.tolist()]
            indexes = empty_indexes(self._manifest)
            for view, old in self._indexes.items():
                rows = old.rows()
                indexes[view].add(np.searchsorted(live, rows), old.vectors(rows))
            with self._state:
                self._fill(products, indexes)
                self._changed = True

    def close(self) -> None:
        """Free the index; changes that were not saved are lost, and any further use raises `InputError`."""
        with self._writing, self._state:
            self._closed = True
            self._fill([], {})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and not self._closed:
            self.save()
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise InputError("the engine is closed; open the index again with SearchEngine.open")

    def _check_view(self, view: str | None) -> str:
        if view is None:
            return self.views[0]
        if view not in self.views:
            raise InputError(f"view is {view!r}; this index has {', '.join(self.views)}")
        return view


def _check_k(k: object) -> int:
    if isinstance(k, (int, np.integer)) and not isinstance(k, bool) and k >= 1:
        return int(k)
    raise InputError(f"k is {k!r}; expected an integer of at least 1")


def _read_once(image: ImageSource | None) -> ImageSource | None:
    """The bytes of a file object, which several views need; any other source as it is."""
    if image is None or not hasattr(image, "read"):
        return image
    try:
        data = image.read()
    except (OSError, ValueError) as error:
        raise ImageError(f"image file object cannot be read: {error}") from error
    if not isinstance(data, bytes):
        raise ImageError(f"image file object gave {type(data).__name__}; open the file in binary mode")
    return data
