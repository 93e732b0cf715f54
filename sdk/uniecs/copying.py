"""Copying an index into another place: from one machine's folder into Milvus."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

from uniecs.catalog import Rejected
from uniecs.errors import InputError, ModelMismatchError
from uniecs.index import Embedded, Vectors
from uniecs.milvus_index import MilvusIndex, content_digest
from uniecs.progress import progress_bar
from uniecs.store import Item, Store

BATCH = 500


@dataclass(frozen=True, slots=True)
class CopyReport:
    """How many products were written, how many were there already, equal in everything, and what Milvus cannot hold."""

    copied: int
    unchanged: int
    rejected: list[Rejected] = field(default_factory=list)


def store_items(store: Store) -> Embedded:
    """The products of a store with their vectors, in the order of their rows, in bounded memory.

    Each batch of 2048 is of the moment it is read.
    """
    return Embedded(store.model_id, tuple(store.config.views), _items(store), store.count())


def _items(store: Store) -> Iterator[Item]:
    for products in store.products_after(0):
        with store.snapshot():
            # One that was removed since has no vectors any more; what replaced it has a higher row.
            rows_now = store.rows_of(product.id for product in products.values())
            vectors: dict[int, dict[str, Vectors]] = {
                row: {} for row, product in products.items() if rows_now.get(product.id) == row
            }
            for view in store.config.views:
                rows, found = store.vectors(view, vectors)
                for row, vector in zip(rows.tolist(), found, strict=True):
                    vectors[row][view] = vector
        yield from ((products[row], each) for row, each in vectors.items())


def copy_index(source: Embedded, target: MilvusIndex) -> CopyReport:
    """Write products with their vectors into `target`, with a progress bar.

    What `target` holds already, equal in everything, is not sent again: a copy that was interrupted is repeated, and
    goes on where it stopped. Of products of one id the later one wins. Products that `target` has beyond the source
    stay. What Milvus cannot hold (see `MilvusIndex.put`) is reported as rejected, by its place in the source. Raises
    `ModelMismatchError` for vectors of another model, `InputError` for other views than the target's, before anything
    is written, and as `MilvusIndex.put`; batches written before that stay.
    """
    _check_alike(source, target)
    copied, unchanged, rejected = 0, 0, list[Rejected]()
    items = enumerate(source.items)
    with progress_bar(desc="copy", total=source.count, unit="product") as bar:
        while some := list(itertools.islice(items, BATCH)):
            batch = {item[0].id: (row, item) for row, item in some}
            there = target.contents(list(batch))
            new = [(row, item) for row, item in batch.values() if there.get(item[0].id) != content_digest(*item)]
            refused = _refused(new, target)
            target.put([item for row, item in new if row not in refused])
            rejected += refused.values()
            copied += len(new) - len(refused)
            unchanged += len(batch) - len(new)
            bar.update(len(some))
    return CopyReport(copied, unchanged, rejected)


def _check_alike(source: Embedded, target: MilvusIndex) -> None:
    if source.model_id != target.model_id:
        raise ModelMismatchError(f"the vectors are of {source.model_id}; the index there has {target.model_id}")
    if set(source.views) != set(target.config.views):
        have, want = ", ".join(source.views), ", ".join(target.config.views)
        raise InputError(f"the vectors are of the views {have}; the index there has {want}: copy into a new one")


def _refused(rows: list[tuple[int, Item]], target: MilvusIndex) -> dict[int, Rejected]:
    """By their rows, the products that the target cannot hold."""
    refused = {}
    for row, (product, _) in rows:
        try:
            target.check(product)
        except InputError as error:
            refused[row] = Rejected(row, product.id, error)
    return refused
