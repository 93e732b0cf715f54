"""Copying an index into another place: from one machine's folder into Milvus."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from uniecs.index import Vectors
from uniecs.milvus_index import MilvusIndex, content_digest
from uniecs.store import Item, Store

BATCH = 500


@dataclass(frozen=True, slots=True)
class CopyReport:
    """How many products were written, and how many were there already, equal in everything."""

    copied: int
    unchanged: int


def store_items(store: Store) -> Iterator[Item]:
    """The products of a store with their vectors, in the order of their rows, in bounded memory.

    Each batch of 2048 is of the moment it is read.
    """
    for products in store.products_after(0):
        vectors: dict[int, dict[str, Vectors]] = {row: {} for row in products}
        for view in store.config.views:
            rows, found = store.vectors(view, products)
            for row, vector in zip(rows.tolist(), found, strict=True):
                vectors[row][view] = vector
        yield from ((product, vectors[row]) for row, product in products.items())


def copy_index(source: Iterable[Item], target: MilvusIndex, total: int | None = None) -> CopyReport:
    """Write products with their vectors, view -> (embed_dim,), into `target`, with a progress bar.

    What `target` holds already, equal in everything, is not sent again: a copy that was interrupted is repeated, and
    goes on where it stopped. Of products of one id the later one wins. Products that `target` has beyond the source
    stay. `total` is for the progress bar. Raises as `MilvusIndex.put`; batches written before that stay.
    """
    from tqdm import tqdm

    copied = unchanged = 0
    items = iter(source)
    with tqdm(desc="copy", total=total, unit="product", disable=None) as bar:
        while some := list(itertools.islice(items, BATCH)):
            batch = list({product.id: (product, vectors) for product, vectors in some}.values())
            there = target.contents([product.id for product, _ in batch])
            new = [item for item in batch if there.get(item[0].id) != content_digest(*item)]
            target.put(new)
            copied += len(new)
            unchanged += len(batch) - len(new)
            bar.update(len(some))
    return CopyReport(copied, unchanged)
