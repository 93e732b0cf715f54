"""Filters on attributes: `where` parsed into a small tree, and what each node of it means.

`matches` is the definition. Whatever answers filters faster (an index of attributes, another database) must agree
with it: `entries` breaks a product's attributes into the values that such an index keeps.

A number equals numbers, and strings that read as it, as a .csv has them (what Python's `float` reads, but not nan): 1
equals 1.0, "1" and "1.0", but not True. From 2**53 on it equals no string: `float` reads different ones as it, such as
codes of 17 digits. A string equals a string, a boolean a boolean. Numbers compare exactly, but an
integer beyond 64 bits counts as the nearest float64. Of an attribute that is a list any one value may match. An
attribute that is missing, None or an empty list is absent.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np

from uniecs.catalog import Attribute, Scalar, as_scalar
from uniecs.errors import FilterError

# Kinds of values that `entries` keeps apart; their numbers are part of the index format (docs/index-format.md).
BOOLEAN, NUMBER, STRING, READ_NUMBER = range(4)

MAX_DEPTH = 64


@dataclass(frozen=True, eq=False)
class OneOf:
    """Some value of the attribute `key` equals one of `values`; None among them: or the product lacks the attribute."""

    key: str
    values: tuple[Scalar | None, ...]

    @cached_property
    def choices(self) -> frozenset[object]:
        """The values in a form that keeps True apart from 1."""
        return frozenset(map(_typed, self.values))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OneOf) and (self.key, self.choices) == (other.key, other.choices)

    def __hash__(self) -> int:
        return hash((self.key, self.choices))


@dataclass(frozen=True)
class Between:
    """Some value of the attribute `key` lies between `low` and `high`, both included; one of them may be None: open.

    Two numbers also take strings that read as numbers. Two strings go by code points, and take strings only.
    """

    key: str
    low: int | float | str | None
    high: int | float | str | None


@dataclass(frozen=True)
class And:
    """All of `parts` match; of none: everything does."""

    parts: tuple[Filter, ...]


@dataclass(frozen=True)
class Or:
    """At least one of `parts` matches; of none: nothing does."""

    parts: tuple[Filter, ...]


@dataclass(frozen=True)
class Not:
    """`part` does not match."""

    part: Filter


Filter: TypeAlias = OneOf | Between | And | Or | Not


def parse_where(where: object) -> Filter:
    """The filter that a `where` mapping describes; raises `FilterError` for one that cannot be used.

    All entries must hold. An attribute's name maps to a scalar (equal; None: absent), a list or set (equal to any), or
    a (low, high) tuple (between them, both included; None is open). "$and" and "$or" map to a list of such mappings
    ("$or" to at least one), "$not" to one.
    """
    return _parse(where, "where", 0)


def _parse(where: object, name: str, depth: int) -> Filter:
    if depth > MAX_DEPTH:
        raise FilterError(f"where is nested more than {MAX_DEPTH} deep; expected less")
    if not isinstance(where, Mapping):
        raise FilterError(f"{name} is of type {type(where).__name__}; expected a mapping of attributes to values")
    parts: list[Filter] = []
    for key, wanted in where.items():
        if key in ("$and", "$or"):
            parts.append(_parse_parts(key, wanted, depth))
        elif key == "$not":
            parts.append(Not(_parse(wanted, "where['$not']", depth + 1)))
        elif isinstance(key, str) and key:
            parts.append(_range(key, wanted) if isinstance(wanted, tuple) else _one_of(key, wanted))
        else:
            raise FilterError(f"{name} has the key {key!r}; expected the name of an attribute, '$and', '$or' or '$not'")
    return parts[0] if len(parts) == 1 else And(tuple(parts))


def _parse_parts(key: str, wanted: object, depth: int) -> Filter:
    if not isinstance(wanted, (list, tuple)):
        raise FilterError(f"where[{key!r}] is of type {type(wanted).__name__}; expected a list of mappings")
    if not wanted and key == "$or":
        raise FilterError("where['$or'] is an empty list; expected at least one mapping")
    parts = tuple(_parse(each, f"an entry of where[{key!r}]", depth + 1) for each in wanted)
    return And(parts) if key == "$and" else Or(parts)


def _one_of(key: str, wanted: object) -> OneOf:
    if isinstance(wanted, (set, frozenset)) or (isinstance(wanted, np.ndarray) and wanted.ndim):
        wanted = list(wanted)
    if not isinstance(wanted, list):
        wanted = [wanted]
    if not wanted:
        raise FilterError(f"where[{key!r}] is an empty list; expected at least one value")
    values = [None if each is None else _scalar(key, each) for each in wanted]
    return OneOf(key, tuple({_typed(value): value for value in values}.values()))


def _range(key: str, bounds: Sequence[object]) -> Between:
    if len(bounds) != 2:
        raise FilterError(f"where[{key!r}] is {bounds!r}; a tuple is a (low, high) range; a list is a set of values")
    low, high = (None if bound is None else _scalar(key, bound) for bound in bounds)
    kinds = {isinstance(bound, str) for bound in (low, high) if bound is not None}
    if len(kinds) != 1 or isinstance(low, bool) or isinstance(high, bool):
        raise FilterError(f"where[{key!r}] is {bounds!r}; expected two numbers or two strings, one of them may be None")
    if not (low is None or high is None or low <= high):  # type: ignore[operator]
        raise FilterError(f"where[{key!r}] is {bounds!r}; low is above high")
    return Between(key, low, high)


def _scalar(key: str, value: object) -> Scalar:
    value = as_scalar(value[()] if isinstance(value, np.ndarray) and value.ndim == 0 else value)
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise FilterError(f"where[{key!r}] is {value!r}, which is not valid Unicode: {error}") from error
        return value
    if isinstance(value, (bool, int)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise FilterError(
        f"where[{key!r}] is {value!r}; expected a string, number, boolean, None, list of them, or (low, high) tuple"
    )


def matches(filter: Filter, attributes: Mapping[str, Attribute]) -> bool:
    """Whether a product of these attributes passes the filter."""
    match filter:
        case OneOf(key):
            values = list[Scalar | None](_values(attributes.get(key)))
            return any(_chosen(filter.choices, value) for value in values or [None])
        case Between(key):
            return any(_inside(filter, value) for value in _values(attributes.get(key)))
        case And(parts):
            return all(matches(part, attributes) for part in parts)
        case Or(parts):
            return any(matches(part, attributes) for part in parts)
        case Not(part):
            return not matches(part, attributes)


def filter_keys(filter: Filter) -> set[str]:
    """The attributes that a filter names."""
    match filter:
        case OneOf(key) | Between(key):
            return {key}
        case And(parts) | Or(parts):
            return set().union(*map(filter_keys, parts))
        case Not(part):
            return filter_keys(part)


def check_keys(filter: Filter, known: Iterable[str]) -> None:
    """Raise `FilterError`, listing the `known` attributes, if the filter names another one."""
    known = set(known)
    unknown = sorted(filter_keys(filter) - known)
    if unknown:
        raise FilterError(f"where has the unknown key {unknown[0]!r}; known keys: {', '.join(sorted(known)) or 'none'}")


def entries(attributes: Mapping[str, Attribute]) -> set[tuple[str, int, str | int | float]]:
    """What an index keeps of a product: its distinct (key, kind, value).

    A boolean is (key, BOOLEAN, 0 or 1), a number (key, NUMBER, it), a string (key, STRING, it) and, where it reads as
    a number, (key, READ_NUMBER, that) too. Integers fit 64 bits; a float may be infinite, but is not nan.
    """
    found = set[tuple[str, int, str | int | float]]()
    for key, attribute in attributes.items():
        for value in _values(attribute):
            if isinstance(value, bool):
                found.add((key, BOOLEAN, int(value)))
            elif isinstance(value, str):
                found.add((key, STRING, value))
                number = read_number(value)
                if number is not None:
                    found.add((key, READ_NUMBER, number))
            else:
                found.add((key, NUMBER, within_64_bits(value)))
    return found


def read_number(text: str) -> float | None:
    """The number that a string reads as, if any; "nan" is none."""
    try:
        number = float(text)
    except ValueError:
        return None
    return None if math.isnan(number) else number


def equals_strings(number: int | float) -> bool:
    """Whether a number equals the strings that read as it: below 2**53 no two whole numbers read as one."""
    return -(2**53) < number < 2**53


def within_64_bits(number: int | float) -> int | float:
    """The number itself; for an integer beyond 64 bits the nearest float64, which may be infinite."""
    if isinstance(number, float) or -(2**63) <= number < 2**63:
        return number
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf


def _values(attribute: Attribute) -> Iterator[Scalar]:
    """The values of an attribute; none if it is absent."""
    for value in attribute if isinstance(attribute, (list, tuple)) else [attribute]:
        if value is not None:
            yield value


def _typed(value: Scalar | None) -> object:
    """Equal for values that are equal in a filter; True and 1 are not."""
    if isinstance(value, (int, float)):
        return isinstance(value, bool), within_64_bits(value)
    return value


def _chosen(choices: frozenset[object], value: Scalar | None) -> bool:
    if _typed(value) in choices:
        return True
    number = read_number(value) if isinstance(value, str) else None
    return number is not None and equals_strings(number) and _typed(number) in choices


def _inside(bounds: Between, value: Scalar) -> bool:
    low, high = bounds.low, bounds.high
    if isinstance(low, str) or isinstance(high, str):
        if not isinstance(value, str):
            return False
        return (low is None or value >= str(low)) and (high is None or value <= str(high))
    if isinstance(value, bool):
        return False
    number = read_number(value) if isinstance(value, str) else within_64_bits(value)
    if number is None:
        return False
    return (low is None or number >= within_64_bits(low)) and (high is None or number <= within_64_bits(high))
