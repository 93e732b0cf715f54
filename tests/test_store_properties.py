"""Random products, filters and changes: the store compared with a dictionary, its SQL with `matches`."""

from __future__ import annotations

import runpy
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("hypothesis", reason="property tests need hypothesis")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from uniecs.catalog import Product
from uniecs.errors import FilterError, InputError
from uniecs.filters import Between, OneOf, entries, matches, parse_where
from uniecs.store import Store

SHOP = runpy.run_path(str(Path(__file__).with_name("store_shop.py")))
make, item, contents, expected = (SHOP[name] for name in ("make", "item", "contents", "expected"))

# The same examples in each run; raise max_examples and drop derandomize to search for new ones.
ANY = {"deadline": None, "derandomize": True, "database": None, "suppress_health_check": list(HealthCheck)}
SETTINGS = settings(max_examples=60, **ANY)
KEYS = st.sampled_from(["a", "b", "ключ"])
NUMBERS = (
    st.integers(-2, 2)
    | st.sampled_from(
        [2**53 - 1, 2**53, 2**53 + 1, 2.0**53, 2**63 - 1, 2**63, 2.0**63, -(2**63), 2**64 + 1, 10**400, -0.0, 0.5]
    )
    | st.floats(allow_nan=False, allow_infinity=False)
)
TEXTS = st.sampled_from(
    ["1", "1.0", "-2", "nan", "inf", " 2 ", "1_0", "x", "X", "", "\0", "a\0b", "é", "z", "￿", "𝄞"]
    + [str(number) for number in (2**53 - 1, 2**53, 2**53 + 1, 2**63)]
) | st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
SCALARS = st.booleans() | NUMBERS | TEXTS
ATTRIBUTES = st.dictionaries(KEYS, st.none() | SCALARS | st.lists(SCALARS | st.none(), max_size=4), max_size=3)
RANGES = st.tuples(st.none() | NUMBERS, st.none() | NUMBERS) | st.tuples(st.none() | TEXTS, st.none() | TEXTS)
WHERE = st.dictionaries(
    KEYS, SCALARS | st.none() | RANGES | st.lists(SCALARS | st.none(), min_size=1, max_size=3), max_size=1
)


@contextmanager
def new_store() -> Iterator[Store]:
    with tempfile.TemporaryDirectory() as folder:
        store = make(Path(folder) / "i", durability="batch")
        try:
            yield store
        finally:
            store.close()


@SETTINGS
@given(st.lists(ATTRIBUTES, max_size=12), st.lists(WHERE, max_size=12))
def test_predicates_in_sql_are_those_of_matches(shop: list[Any], filters: list[dict[str, Any]]) -> None:
    with new_store() as store:
        store.put([item(str(number), attributes=each) for number, each in enumerate(shop)])
        for where in filters:
            try:
                predicate = parse_where(where)
            except FilterError:
                continue  # low above high
            if isinstance(predicate, (OneOf, Between)):
                wanted = [row for row, each in enumerate(shop, start=1) if matches(predicate, each)]
                assert store.rows_matching(predicate).tolist() == wanted, (predicate, shop)
        assert store.verify() == []


def test_the_comparison_can_fail() -> None:
    with new_store() as store:
        store.put([item("a", attributes={"a": 1}), item("b", attributes={"a": True})])
        assert store.rows_matching(OneOf("a", (1,))).tolist() == [1]
        assert matches(OneOf("a", (1,)), {"a": True}) is False
        assert entries({"a": True}) != entries({"a": 1})


@SETTINGS
@given(ATTRIBUTES, st.text(min_size=1), st.none() | st.text(), st.none() | st.text())
def test_products_come_back_as_they_went_in(attributes: Any, id: str, title: str | None, image: str | None) -> None:
    with new_store() as store:
        product = Product(id, title, image, attributes)
        try:
            store.put([(product, {})])
        except InputError:
            assert any("\ud800" <= character <= "\udfff" for character in id)
            return
        (found,) = store.products([1]).values()
        assert repr(found) == repr(product)  # keeps 1, 1.0 and True apart
        store._cache.clear()
        assert repr(store.products([1])) == repr({1: product}) and store.verify() == []


class Changes(RuleBasedStateMachine):
    """Random changes, against a dictionary; rows only ascend."""

    ids = st.sampled_from([f"p{number}" for number in range(6)])

    @initialize()
    def begin(self) -> None:
        self.temporary = tempfile.TemporaryDirectory()
        self.folder = Path(self.temporary.name) / "i"
        self.store = make(self.folder, durability="batch")
        self.model: dict[str, Any] = {}
        self.rows: dict[str, int] = {}
        self.sequence = self.highest = self.version = self.kept_from = 0
        self.gone: dict[int, int] = {}

    @rule(ids=st.sets(ids, min_size=1), views=st.sampled_from([("multimodal", "text"), ("text",), ()]))
    def put(self, ids: set[str], views: tuple[str, ...]) -> None:
        self.version += 1
        items = [item(id, self.version, views=views) for id in sorted(ids)]
        sequence, rows, old = self.store.put(items)
        assert sequence == self.sequence + 1
        assert rows.tolist() == list(range(self.highest + 1, self.highest + 1 + len(items)))
        assert old.tolist() == sorted(self.rows[id] for id in ids if id in self.rows)
        self.sequence, self.highest = sequence, int(rows[-1])
        self.gone |= dict.fromkeys(old.tolist(), sequence)
        self.model |= expected(items)
        self.rows |= dict(zip(sorted(ids), rows.tolist(), strict=True))

    @rule(ids=st.sets(ids, min_size=1))
    def delete(self, ids: set[str]) -> None:
        if not ids <= self.model.keys():
            with pytest.raises(InputError):
                self.store.delete(sorted(ids))
            return
        sequence, rows = self.store.delete(sorted(ids))
        assert sequence == self.sequence + 1 and rows.tolist() == sorted(self.rows[id] for id in ids)
        self.sequence = sequence
        self.gone |= dict.fromkeys(rows.tolist(), sequence)
        for id in ids:
            del self.model[id], self.rows[id]

    @rule(back=st.integers(0, 5))
    def purge(self, back: int) -> None:
        self.kept_from = max(self.kept_from, self.sequence - back)
        self.store.purge_deleted(max(0, self.sequence - back))

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = Store.open(self.folder, "batch")

    @rule()
    def checkpoint(self) -> None:
        self.store.checkpoint()

    @invariant()
    def the_same(self) -> None:
        if not hasattr(self, "store"):
            return
        assert contents(self.store) == self.model and self.store.count() == len(self.model)
        assert self.store.rows_of([*self.rows, "x"]) == self.rows and self.store.sequence == self.sequence
        assert self.store.products(range(self.highest + 2)).keys() == set(self.rows.values())
        since = sorted(row for row, sequence in self.gone.items() if sequence > self.kept_from)
        assert self.store.deleted_after(self.kept_from).tolist() == since
        assert self.store.purged == self.kept_from

    def teardown(self) -> None:
        if hasattr(self, "store"):
            assert self.store.verify() == []
            self.store.close()
            self.temporary.cleanup()


Changes.TestCase.settings = settings(max_examples=20, stateful_step_count=20, **ANY)
TestChanges = Changes.TestCase
