"""What a `where` filter means, and which filters are refused."""

from __future__ import annotations

import math
from datetime import date
from decimal import Decimal
from typing import Any

import numpy as np
import pytest

from uniecs.errors import FilterError
from uniecs.filters import (
    BOOLEAN,
    NUMBER,
    READ_NUMBER,
    STRING,
    And,
    Between,
    Not,
    OneOf,
    Or,
    check_keys,
    entries,
    filter_keys,
    matches,
    parse_where,
)

ATTRIBUTES: dict[str, Any] = {
    "gender": "Women",
    "price": 40,
    "year": "2012",
    "sale": True,
    "sizes": ["S", "M"],
    "none": None,
    "empty": [],
    "big": 2**80,
    "long": 2**53 + 1,
    "day": "2024-01-02",
    "code": "106141411234567904",
    "last": str(2**53 - 1),
}


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({}, True),
        ({"gender": "Women"}, True),
        ({"gender": "women"}, False),
        ({"gender": "Women", "price": 41}, False),
        ({"gender": ["Men", "Women"]}, True),
        ({"gender": {"Men", "Boys"}}, False),
        ({"price": 40.0}, True),
        ({"price": "40"}, False),
        ({"price": np.int64(40)}, True),
        ({"price": np.array([1, 40])}, True),
        ({"price": (40, 40)}, True),
        ({"price": (None, 39.9)}, False),
        ({"price": (39.9, None)}, True),
        ({"year": 2012}, True),
        ({"year": [1, 2012.0]}, True),
        ({"year": 2013}, False),
        ({"year": "2012.0"}, False),  # a text matches text as it is
        ({"year": (2011, 2013)}, True),
        ({"year": (2013, None)}, False),
        ({"gender": (0, 9)}, False),
        ({"gender": ("W", None)}, True),
        ({"gender": (None, "Women")}, True),
        ({"price": ("0", "9")}, False),
        ({"sale": True}, True),
        ({"sale": 1}, False),
        ({"sale": (0, 2)}, False),
        ({"sizes": "M"}, True),
        ({"sizes": ["L", "S"]}, True),
        ({"sizes": "L"}, False),
        ({"sizes": ("N", None)}, True),
        ({"none": "x"}, False),
        ({"absent": "x"}, False),
        ({"absent": (0, None)}, False),
        # None: the product lacks the attribute
        ({"absent": None}, True),
        ({"none": None, "empty": None}, True),
        ({"gender": None}, False),
        ({"gender": [None, "Women"], "absent": [None, "x"]}, True),
        ({"gender": [None, "Men"]}, False),
        # exact numbers up to 64 bits, float64 beyond
        ({"long": 2.0**53}, False),
        ({"long": (2.0**53, None)}, True),
        ({"long": (None, 2.0**53)}, False),
        ({"big": 2**80 + 1}, True),
        # text that a float64 does not tell from others
        ({"code": 106141411234567904}, False),
        ({"code": "106141411234567904"}, True),
        ({"code": (106141411234567000, None)}, True),
        ({"last": 2**53 - 1}, True),
        ({"big": (2.0**80, 10**400)}, True),
        ({"big": (2**81, None)}, False),
        # and, or, not
        ({"$and": []}, True),
        ({"$and": [{"price": 40}, {"price": (0, 39)}]}, False),
        ({"$and": ({"price": 40}, {"price": (0, 40)})}, True),
        ({"$or": [{"price": 41}, {"gender": "Women"}]}, True),
        ({"$or": [{"price": 41}, {"gender": "Men"}]}, False),
        ({"$or": [{"price": 41}], "gender": "Women"}, False),
        ({"$not": {"price": 41}}, True),
        ({"$not": {}}, False),
        ({"$not": {"sizes": "M"}}, False),  # the plain complement: some size is M
        ({"$not": {"absent": (0, None)}}, True),
        ({"$not": {"$or": [{"price": 41}, {"$not": {"sale": True}}]}}, True),
        ({"price": Decimal(str(ATTRIBUTES["price"]))}, True),
        ({"price": np.array(ATTRIBUTES["price"])}, True),
        ({"day": date(2024, 1, 2)}, True),
        ({"day": (np.datetime64("2024-01-01"), date(2024, 1, 3))}, True),
    ],
)
def test_matches(where: dict[str, Any], expected: bool) -> None:
    assert matches(parse_where(where), ATTRIBUTES) is expected
    assert matches(parse_where({"$not": where}), ATTRIBUTES) is not expected


def test_the_tree() -> None:
    assert parse_where({}) == And(())
    assert parse_where({"a": 1}) == OneOf("a", (1,))
    assert parse_where({"a": [1, 1.0, True, None, "1", 1]}).values == (1.0, True, None, "1")  # type: ignore[union-attr]
    assert parse_where({"a": (None, 5), "$not": {"b": "x"}}) == And((Between("a", None, 5), Not(OneOf("b", ("x",)))))
    assert parse_where({"$or": [{"a": 1}, {"b": None}]}) == Or((OneOf("a", (1,)), OneOf("b", (None,))))
    assert parse_where({"$price": 1}) == OneOf("$price", (1,))


def test_predicates_are_keys_of_a_cache() -> None:
    """Equal if and only if they match the same: 1 and True are equal in Python, not here."""
    assert OneOf("a", (1,)) != OneOf("a", (True,)) and OneOf("a", (0,)) != OneOf("a", (False,))
    assert OneOf("a", (1,)) != OneOf("b", (1,)) and OneOf("a", (1,)) != Between("a", 1, 1)
    assert {OneOf("a", (1, "x")): 7}[OneOf("a", ("x", 1.0))] == 7
    assert {Between("a", 1, None): 7}[Between("a", 1.0, None)] == 7


@pytest.mark.parametrize(
    "where",
    [
        None,
        "gender=Women",
        [("gender", "Women")],
        {"a": []},
        {"a": set()},
        {"a": {"b": 1}},
        {"a": ["x", ["y"]]},
        {"a": [(1, 2)]},
        {"a": math.nan},
        {"a": math.inf},
        {"a": b"x"},
        {"a": "\ud800"},
        {"a": (1,)},
        {"a": (1, 2, 3)},
        {"a": (None, None)},
        {"a": (1, "2")},
        {"a": (math.nan, 2)},
        {"a": (True, None)},
        {"a": (2, 1)},
        {"a": ("b", "a")},
        {"": 1},
        {1: 1},
        {None: 1},
        {"$or": []},
        {"$or": {"a": 1}},
        {"$or": ["a"]},
        {"$and": {"a": 1}},
        {"$and": [[{"a": 1}]]},
        {"$not": [{"a": 1}]},
        {"$not": None},
        {"$nor": [{"a": 1}]},
    ],
)
def test_unusable_where(where: object) -> None:
    with pytest.raises(FilterError, match="where"):
        parse_where(where)


def test_a_filter_that_holds_itself_is_refused() -> None:
    where: dict[str, Any] = {}
    where["$not"] = where
    with pytest.raises(FilterError, match="nested"):
        parse_where(where)


def test_keys() -> None:
    filter = parse_where({"a": 1, "$or": [{"b": (1, 2)}, {"$not": {"c": None}}], "$and": []})
    assert filter_keys(filter) == {"a", "b", "c"}
    check_keys(filter, ["a", "b", "c", "d"])
    with pytest.raises(FilterError, match="unknown key 'b'; known keys: a, c"):
        check_keys(filter, {"c", "a"})
    with pytest.raises(FilterError, match="known keys: none"):
        check_keys(filter, ())


def test_entries() -> None:
    found = entries(ATTRIBUTES)
    assert found == {
        ("gender", STRING, "Women"),
        ("price", NUMBER, 40),
        ("year", STRING, "2012"),
        ("year", READ_NUMBER, 2012.0),
        ("sale", BOOLEAN, 1),
        ("sizes", STRING, "S"),
        ("sizes", STRING, "M"),
        ("big", NUMBER, 2.0**80),
        ("long", NUMBER, 2**53 + 1),
        ("day", STRING, "2024-01-02"),
        ("code", STRING, "106141411234567904"),
        ("code", READ_NUMBER, 106141411234567904.0),
        ("last", STRING, "9007199254740991"),
        ("last", READ_NUMBER, 9007199254740991.0),
    }
    assert entries({"a": [1, 1.0, True, "1", "1.0", "nan", "inf", None], "b": -(10**400)}) == {
        ("a", NUMBER, 1),
        ("a", BOOLEAN, 1),
        ("a", STRING, "1"),
        ("a", STRING, "1.0"),
        ("a", READ_NUMBER, 1),
        ("a", STRING, "nan"),
        ("a", STRING, "inf"),
        ("a", READ_NUMBER, math.inf),
        ("b", NUMBER, -math.inf),
    }
