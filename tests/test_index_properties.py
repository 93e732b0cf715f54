"""Random changes, searches and reopenings of a SearchEngine, and of another that follows it, against a dictionary."""

from __future__ import annotations

import logging
import runpy
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("hypothesis", reason="property tests need hypothesis")

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from uniecs import local_index
from uniecs.catalog import Product
from uniecs.engine import SearchEngine
from uniecs.errors import FilterError, InputError
from uniecs.filters import filter_keys, matches, parse_where

FAKES = runpy.run_path(str(Path(__file__).with_name("fake_encoder.py")))
fake, picture = FAKES["fake"], FAKES["picture"]
VIEWS = ("multimodal", "text")
TOLERANCE = 1e-5
PICTURES = {colour: picture(colour) for colour in ("red", "green", "blue")}

# The same examples in each run; raise max_examples and drop derandomize to search for new ones.
ANY = {"deadline": None, "derandomize": True, "database": None, "suppress_health_check": list(HealthCheck)}
IDS = st.sampled_from([f"p{number}" for number in range(8)])
MANY = [f"m{number}" for number in range(40)]
KEYS = st.sampled_from(["a", "b", "c"])
SCALARS = st.sampled_from([True, False, 0, 1, 2, 2.5, "x", "y", "1"])
ATTRIBUTES = st.dictionaries(KEYS, SCALARS | st.lists(SCALARS, min_size=1, max_size=2), max_size=2)
TITLES = st.lists(st.sampled_from(["red", "blue", "shirt", "shoe", "big", "old"]), min_size=1, max_size=3).map(" ".join)
PRODUCTS = st.builds(Product, IDS, st.none() | TITLES, st.none() | st.sampled_from([*PICTURES.values()]), ATTRIBUTES)
RANGES = st.sampled_from([(0, 1), (None, 2), (1, None), ("x", None)])
LEAVES = st.dictionaries(
    KEYS, SCALARS | st.none() | RANGES | st.lists(SCALARS | st.none(), min_size=1, max_size=2), max_size=2
)
WHERES = st.none() | st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.fixed_dictionaries({"$not": inner}),
        st.fixed_dictionaries({"$or": st.lists(inner, min_size=1, max_size=2)}),
        st.fixed_dictionaries({"$and": st.lists(inner, max_size=2)}),
    ),
    max_leaves=3,
)
SEARCHES = {"view": st.sampled_from(VIEWS), "k": st.sampled_from([1, 3, 10, 100]), "where": WHERES}


def vectors_of(product: Product) -> dict[str, Any]:
    """The vector in each view that takes it."""
    title, image = product.title, product.image
    takes = {"multimodal": (title, image), "text": (title, None)}
    views = [view for view, given in takes.items() if given != (None, None)]
    texts, images = [takes[view][0] for view in views], [takes[view][1] for view in views]
    return dict(zip(views, fake().encode(texts, images, errors="return").embeddings, strict=True))


class Engines(RuleBasedStateMachine):
    """`writer` is changed; `reader` only follows it, as another process would."""

    @initialize(storage=st.sampled_from(["float32", "int8"]))
    def begin(self, storage: str) -> None:
        self.temporary = tempfile.TemporaryDirectory()
        self.folder = Path(self.temporary.name) / "i"
        self.model: dict[str, tuple[Product, dict[str, Any]]] = {}
        self.old: dict[Path, bytes] = {}  # snapshots of before
        self.version = 0
        self.refresh_s, local_index.REFRESH_S = local_index.REFRESH_S, 0.0
        self.disabled, logging.getLogger("uniecs").disabled = logging.getLogger("uniecs").disabled, True
        self.writer = SearchEngine.create(self.folder, fake(), VIEWS, storage=storage, durability="batch")
        self.reader = SearchEngine.open(self.folder, fake())

    def expect(self, products: list[Product], known: bool) -> set[int]:
        """Note what goes in; returns the places of the others."""
        rejected = set()
        seen = set[str]()
        for place, product in enumerate(products):
            vectors = vectors_of(product)
            if not vectors or product.id in seen or (product.id in self.model) != known:
                rejected.add(place)
            else:
                if not known:
                    seen.add(product.id)
                self.model[product.id] = Product(product.id, product.title, None, product.attributes), vectors
        return rejected

    @rule(products=st.lists(PRODUCTS, min_size=1, max_size=4, unique_by=lambda product: product.id))
    def add(self, products: list[Product]) -> None:
        expected = self.expect(products, known=False)
        assert {each.row for each in self.writer.add(products).rejected} == expected

    @rule(products=st.lists(PRODUCTS, min_size=1, max_size=4, unique_by=lambda product: product.id))
    def update(self, products: list[Product]) -> None:
        expected = self.expect(products, known=True)
        assert {each.row for each in self.writer.update(products).rejected} == expected

    @rule()
    def replace_many(self) -> None:
        """So many that the graph is repaired, and places are used again."""
        self.version += 1
        for known in (False, True):
            products = [
                Product(id, f"big {id} v{self.version}", None, {"a": self.version % 3})
                for id in MANY
                if (id in self.model) == known
            ]
            self.expect(products, known)
            assert (self.writer.update if known else self.writer.add)(products).added == len(products)

    @rule(ids=st.lists(IDS, min_size=1, max_size=4))
    def delete(self, ids: list[str]) -> None:
        if not set(ids) <= self.model.keys():
            with pytest.raises(InputError, match="not in the index"):
                self.writer.delete(ids)
            return
        assert self.writer.delete(ids) == len(set(ids))
        for id in set(ids):
            del self.model[id]

    @rule()
    def delete_many(self) -> None:
        ids = [id for id in MANY[::2] if id in self.model]
        assert self.writer.delete(ids) == len(ids)
        for id in ids:
            del self.model[id]

    @rule(text=TITLES, **SEARCHES)
    def search(self, text: str, view: str, k: int, where: Any) -> None:
        query = fake().encode([text], [None], errors="return").embeddings[0]
        for engine in (self.writer, self.reader):
            try:
                hits = engine.search(text=text, k=k, view=view, where=where)
            except FilterError as error:
                self.must_be_unknown(error, where)
            else:
                self.compare(hits, query, view, k, where)

    @rule(id=IDS, **SEARCHES)
    def similar(self, id: str, view: str, k: int, where: Any) -> None:
        for engine in (self.writer, self.reader):
            try:
                hits = engine.similar(id, k=k, view=view, where=where)
            except FilterError as error:
                self.must_be_unknown(error, where)
            except InputError:
                assert id not in self.model or view not in self.model[id][1]
            else:
                self.compare(hits, self.model[id][1][view], view, k, where, without=id)

    def must_be_unknown(self, error: FilterError, where: Any) -> None:
        keys = {key for product, _ in self.model.values() for key in product.attributes}
        assert "unknown key" in str(error) and not filter_keys(parse_where(where)) <= keys

    def compare(self, hits: Any, query: Any, view: str, k: int, where: Any, without: str | None = None) -> None:
        wanted = parse_where(where or {})
        scores = {
            id: float(vectors[view] @ query)
            for id, (product, vectors) in self.model.items()
            if view in vectors and id != without and matches(wanted, product.attributes)
        }
        best = sorted(scores.values(), reverse=True)[:k]
        found = [hit.score for hit in hits]
        assert len(hits) == len(best) == len({hit.id for hit in hits})
        np.testing.assert_allclose(found, best, atol=TOLERANCE)
        assert found == sorted(found, reverse=True)
        for hit in hits:
            assert hit.product == self.model[hit.id][0] and abs(hit.score - scores[hit.id]) < TOLERANCE

    @rule()
    def save(self) -> None:
        self.writer.save()

    @rule()
    def keep_snapshots(self) -> None:
        self.old = {path: path.read_bytes() for path in self.folder.glob("*.hnsw")}

    @rule()
    def compact(self) -> None:
        self.writer.compact()

    @rule(snapshots=st.sampled_from(["as they are", "old", "none"]))
    def reopen(self, snapshots: str) -> None:
        self.writer.close()
        if snapshots == "old":
            for path, data in self.old.items():
                path.write_bytes(data)
        elif snapshots == "none":
            for path in self.folder.glob("*.hnsw"):
                path.unlink()
        self.writer = SearchEngine.open(self.folder, fake(), durability="batch")

    @rule()
    def change_places(self) -> None:
        """The reader becomes the writer."""
        self.writer.close()
        self.writer, self.reader = self.reader, SearchEngine.open(self.folder, fake())

    @invariant()
    def as_many(self) -> None:
        if hasattr(self, "writer"):
            assert len(self.writer) == len(self.reader) == len(self.model)

    def teardown(self) -> None:
        if not hasattr(self, "writer"):
            return
        for engine in (self.writer, self.reader):
            assert engine.verify(50) == {"store": "ok", "recall_at_10": dict.fromkeys(VIEWS, 1.0)}
            engine.close()
        self.temporary.cleanup()
        local_index.REFRESH_S = self.refresh_s
        logging.getLogger("uniecs").disabled = self.disabled


Engines.TestCase.settings = settings(max_examples=25, stateful_step_count=25, **ANY)
TestEngines = Engines.TestCase
