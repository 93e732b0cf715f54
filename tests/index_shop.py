"""Products that follow from an id and a version, and the comparison of an engine with a search by hand; for the fault
tests of the index.
"""

from __future__ import annotations

import random
import runpy
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from uniecs.catalog import Product
from uniecs.engine import SearchEngine
from uniecs.filters import filter_keys, matches, parse_where
from uniecs.store import Store

FAKES = runpy.run_path(str(Path(__file__).with_name("fake_encoder.py")))
fake = FAKES["fake"]
VIEWS = ("multimodal", "text")
WORDS = [f"{colour} {kind}" for colour in ("red", "green", "blue", "black") for kind in ("shirt", "shoe", "bag", "hat")]
WHERES: list[dict[str, Any]] = [
    {"price": (20, 60)},
    {"kind": ["a", "c"], "new": True},
    {"sizes": "M"},
    {"$not": {"kind": "b"}},
    {"$or": [{"price": (None, 15)}, {"$not": {"new": True}}, {"sizes": None}]},
    {"kind": [None, "d"]},
    {},
]
TOLERANCE = 2e-5  # of scores: the same sum in another order


def product(id: str, version: int) -> Product:
    """The same in every process."""
    draw = random.Random(f"{id} {version}")
    attributes: dict[str, Any] = {"version": version, "price": draw.randrange(100), "new": draw.random() < 0.3}
    if draw.random() < 0.8:
        attributes["kind"] = draw.choice("abcd")
    if sizes := draw.sample(["S", "M", "L"], draw.randrange(3)):
        attributes["sizes"] = sizes
    return Product(id, f"{draw.choice(WORDS)} {draw.choice(WORDS)} {id} v{version}", None, attributes)


class Truth:
    """Products with their vectors in each view, and the answers that follow from them."""

    def __init__(self, products: Mapping[str, Product], vectors: Mapping[str, tuple[Sequence[str], Any]]) -> None:
        self.products = products
        self.vectors = vectors

    @classmethod
    def of_store(cls, folder: Path) -> Truth:
        """What the store in `folder` holds."""
        store, products, ids = Store.open(folder), dict[str, Product](), dict[int, str]()
        vectors: dict[str, tuple[Sequence[str], Any]] = {}
        with store.snapshot():
            for batch in store.products_after(0):
                products |= {each.id: each for each in batch.values()}
                ids |= {row: each.id for row, each in batch.items()}
            for view in store.config.views:
                read = list(store.vectors_after(view, 0))
                stacked = [rows for _, rows in read] or [np.zeros((0, store.embed_dim), np.float32)]
                vectors[view] = [ids[row] for rows, _ in read for row in rows.tolist()], np.concatenate(stacked)
        store.close()
        return cls(products, vectors)

    @classmethod
    def of_products(cls, products: Iterable[Product]) -> Truth:
        """Products that have a title and nothing else to embed."""
        products = list(products)
        titles = [each.title for each in products]
        vectors = fake().encode(titles, [None] * len(titles), errors="return").embeddings
        ids = [each.id for each in products]
        return cls({each.id: each for each in products}, dict.fromkeys(VIEWS, (ids, vectors)))

    def keys(self) -> set[str]:
        """The attributes that some product has."""
        return {
            key for each in self.products.values() for key, value in each.attributes.items() if value not in ([], None)
        }

    def scores(self, query: Any, view: str, where: Mapping[str, object] | None = None) -> dict[str, float]:
        """id -> cosine similarity, of all that match."""
        ids, vectors = self.vectors[view]
        wanted = parse_where(where or {})
        scored = zip(ids, (vectors @ query).tolist(), strict=True)
        return {id: score for id, score in scored if matches(wanted, self.products[id].attributes)}

    def check(
        self,
        engine: SearchEngine,
        text: str,
        view: str,
        k: int = 10,
        where: Mapping[str, object] | None = None,
        *,
        all_found: bool = True,
    ) -> float:
        """The recall of a search; asserts that what it gives is right, and with `all_found` that nothing is missing."""
        query = fake().encode([text], [None], errors="return").embeddings[0]
        if where is not None and not (filter_keys(parse_where(where)) <= self.keys()):
            return 1.0  # the engine refuses an attribute that no product has
        truth = self.scores(query, view, where)
        hits = engine.search(text=text, view=view, k=k, where=where)
        about = (text, view, k, where, engine.stats())
        assert len(hits) == min(k, len(truth)), (len(hits), len(truth), about)
        assert len({hit.id for hit in hits}) == len(hits), about
        for hit in hits:
            assert hit.product == self.products[hit.id], (hit, about)
            assert abs(hit.score - truth[hit.id]) < TOLERANCE, (hit, truth[hit.id], about)
        found = np.array([hit.score for hit in hits])
        best = -np.sort(-np.array(list(truth.values())))[: len(found)]
        assert np.all(np.diff(found) <= 0), about
        right = np.abs(found - best) < TOLERANCE
        if all_found:
            assert np.all(right), (found, best, about)
        return float(np.mean(np.isin(np.round(found, 4), np.round(best, 4)))) if len(found) else 1.0


def check_index(engine: SearchEngine, folder: Path, draw: random.Random) -> Truth:
    """Searches of every view, with and without filters, agree with the store; the whole ranking of one among them."""
    truth = Truth.of_store(folder)
    assert len(engine) == len(truth.products)
    for view in engine.views:
        recalls = []
        for _ in range(4):
            text = f"{draw.choice(WORDS)} v{draw.randrange(100)}"
            recalls.append(truth.check(engine, text, view, draw.choice([1, 10, 30]), all_found=False))
        assert np.mean(recalls) >= 0.9, (view, recalls)
        for where in draw.sample(WHERES, 3):
            truth.check(engine, draw.choice(WORDS), view, 20, where)
        truth.check(engine, draw.choice(WORDS), view, len(truth.products) + 1, draw.choice([None, *WHERES]))
    return truth
