"""What a place must do that keeps products with their vectors: a folder on this machine, or a Milvus server."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from uniecs.catalog import Product
from uniecs.errors import InputError
from uniecs.filters import Filter
from uniecs.index_folder import BundleReference, IndexConfig

Vectors: TypeAlias = npt.NDArray[np.float32]
Found: TypeAlias = tuple[Product, float]

UNIT_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class Embedded:
    """Products with their vectors, view -> (embed_dim,), and what these are of; `count` is their number if known."""

    model_id: str
    views: tuple[str, ...]
    items: Iterable[tuple[Product, Mapping[str, Vectors]]]
    count: int | None = None


def check_vectors(vectors: npt.ArrayLike, dim: int) -> Vectors:
    """Return `vectors` as float32 (n, dim); raises `InputError` unless each is finite and of unit L2 norm."""
    array = np.asarray(vectors, np.float32)
    if array.ndim != 2 or array.shape[1] != dim:
        raise InputError(f"vectors have the shape {array.shape}; expected (n, {dim})")
    norms = np.linalg.norm(array, axis=1)
    wrong = np.flatnonzero(~(np.abs(norms - 1) <= UNIT_TOLERANCE))
    if len(wrong):
        raise InputError(f"vector {wrong[0]} has the L2 norm {norms[wrong[0]]}; expected finite numbers of norm 1")
    return array


class Index(Protocol):
    """Products, their attributes, and a unit vector (embed_dim,) float32 in each view that holds them; thread-safe.

    One change at a time: whoever calls `put`, `delete`, `save` or `compact` keeps them apart. Searches go on beside
    them, and see a change whole or not at all. Raises `IndexFileError` where the place cannot be read or written.
    """

    @property
    def config(self) -> IndexConfig:
        """Views, and the parameters of the graphs."""

    @property
    def model_id(self) -> str:
        """The model of the vectors."""

    @property
    def embed_dim(self) -> int:
        """Their width."""

    @property
    def bundle(self) -> BundleReference:
        """Where the encoder came from."""

    def __len__(self) -> int:
        """Products held."""

    def known(self, ids: Sequence[str]) -> set[str]:
        """Those of `ids` that it holds."""

    def check(self, product: Product) -> None:
        """Raise `InputError` for a product that `put` could not hold; it has an id, and a path or None as its image."""

    def put(self, items: Sequence[tuple[Product, Mapping[str, Vectors]]]) -> None:
        """Add products of distinct ids, or replace them whole, with their vector in each view that takes them.

        All or none. On return they are durable, and searches find them.
        """

    def delete(self, ids: Sequence[str]) -> None:
        """Delete products; the ids are distinct and known. All or none, durable on return."""

    def search(self, view: str, queries: Vectors, k: int, where: Filter | None) -> list[list[Found]]:
        """For each of `queries` (n, embed_dim) the `k` most similar products that match, best first, with their
        cosine similarity.
        """

    def explain(self, view: str, query: Vectors, k: int, where: Filter | None) -> dict[str, Any]:
        """How `search` answers one `query` (embed_dim,)."""

    def vector(self, id: str, view: str) -> Vectors:
        """A product's vector (embed_dim,); raises `InputError` for an unknown id, or one with none in the view."""

    def attribute_keys(self) -> set[str]:
        """Every attribute that some product has."""

    def save(self) -> None:
        """Write what makes the next opening fast; no data depends on it."""

    def compact(self) -> None:
        """Give back the space of deleted and replaced products."""

    def stats(self) -> dict[str, Any]:
        """Products, bytes by part, and the parameters of the graphs."""

    def verify(self, sample: int) -> dict[str, Any]:
        """Check what is stored, and compare searches for `sample` of the vectors with exact ones: a report.

        Raises `IndexFileError` for damage.
        """

    def close(self) -> None:
        """Free it; a second time does nothing."""
