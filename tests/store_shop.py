"""Small stores and the products in them, for the tests of the store; also run as a program that writes without end."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from uniecs.catalog import Product
from uniecs.index_folder import BundleReference, IndexConfig
from uniecs.store import Store

DIM = 8
VIEWS = ("multimodal", "text")


def make(folder: Path, **options: Any) -> Store:
    """A new store of two views."""
    config = IndexConfig(views=VIEWS)
    return Store.create(
        folder, model_id="fake-1", embed_dim=DIM, bundle=BundleReference(name="mini"), config=config, **options
    )


def vector(seed: int) -> Any:
    """A unit vector (DIM,) float32."""
    values = np.random.default_rng(seed).standard_normal(DIM)
    return (values / np.linalg.norm(values)).astype(np.float32)


def item(id: str, version: int = 0, attributes: Mapping[str, Any] | None = None, views: Sequence[str] = VIEWS) -> Any:
    """A product and its vectors; its title, attributes and vectors follow from the id and the version."""
    if attributes is None:
        attributes = {"version": version, "colour": ("red", "green", "blue")[version % 3], "sizes": ["S", id]}
    seed = hash_of(id, version)
    product = Product(id, f"title {id} {version}", f"{id}.jpg", attributes)
    return product, {view: vector(seed + place) for place, view in enumerate(views)}


def hash_of(id: str, version: int) -> int:
    """The same in every process."""
    return int.from_bytes(id.encode()[:4].ljust(4, b"\0"), "little") + 1000 * version


def contents(store: Store) -> dict[str, tuple[Product, dict[str, bytes]]]:
    """Everything a store holds, by id."""
    found: dict[str, tuple[Product, dict[str, bytes]]] = {}
    with store.snapshot():
        rows: dict[int, str] = {}
        for batch in store.products_after(0):
            for row, product in batch.items():
                rows[row] = product.id
                found[product.id] = (product, {})
        for view in store.config.views:
            for labels, vectors in store.vectors_after(view, 0):
                for row, values in zip(labels.tolist(), vectors, strict=True):
                    found[rows[row]][1][view] = values.tobytes()
    return found


def expected(items: Sequence[Any]) -> dict[str, tuple[Product, dict[str, bytes]]]:
    """What `contents` gives after these were put."""
    return {product.id: (product, {view: v.tobytes() for view, v in vectors.items()}) for product, vectors in items}


def write_for_ever(folder: str) -> None:
    """Put, update and delete; a line for each change that was acknowledged: what the id's version is now (-1: gone)."""
    store = Store.open(folder)
    version = 0
    while True:
        ids = [f"p{number}" for number in range(version % 7, 40, 3)]
        if version % 5 == 4:
            gone = sorted(store.known(ids))
            store.delete(gone)
            lines = [f"{id} -1" for id in gone]
        else:
            store.put([item(id, version) for id in ids])
            lines = [f"{id} {version}" for id in ids]
        sys.stdout.write("\n".join(["begin", *lines, "end\n"]))
        sys.stdout.flush()
        version += 1


if __name__ == "__main__":
    write_for_ever(sys.argv[1])
