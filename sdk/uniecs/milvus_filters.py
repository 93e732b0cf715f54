"""`where` filters as Milvus expressions that agree with `filters.matches`, exactly and in every version of Milvus.

Milvus compares JSON values by rules of its own (numbers of mixed types, missing paths under `not`, escapes in strings),
which differ between versions and from ours. So a product carries two derived fields, and expressions use only them:

- `terms`, an array of digests: one for each value, one for the number that a text reads as, and one for each attribute
  that says how many values it has which a range can hold, numbers and texts apart (or, without any, that it is there);
- `ranges`, JSON: the digest of an attribute -> those values in a text form whose byte order is theirs.

Nothing that a user wrote stands in an expression, only digests and digits: there is nothing to escape, and nothing to
inject. Each comparison stands behind a term that says its path exists, so that no expression
is ever "unknown", and `not` is the plain complement.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal

from uniecs.catalog import Attribute, Scalar
from uniecs.errors import FilterError, InputError
from uniecs.filters import (
    NUMBER,
    READ_NUMBER,
    And,
    Between,
    Filter,
    Not,
    OneOf,
    Or,
    entries,
    equals_strings,
    within_64_bits,
)

# Text ranges look at this much of a value, and take no longer bounds: so they stay exact, and `ranges` small.
PREFIX_BYTES = 64
# Values of one attribute that a range looks at: rounded up to a power of two, of which few occur in a catalogue.
MAX_VALUES = 1024
# What an expression holds without asking whether any product has that many values.
USUAL_VALUES = 4
_COUNTS = [1 << power for power in range(MAX_VALUES.bit_length())]
NOTHING, EVERYTHING = 'key == ""', 'key != ""'

_NUMBERS, _TEXTS = "n", "s"


@dataclass(frozen=True, slots=True)
class FilterFields:
    """The derived fields of one product."""

    terms: list[str]
    ranges: dict[str, list[str]]


def filter_fields(attributes: Mapping[str, Attribute]) -> FilterFields:
    """What a product of these attributes stores to be found by filters.

    Raises `InputError` for an attribute with more than 1024 different values.
    """
    terms = set[str]()
    ranges: dict[str, set[str]] = {}
    for key, kind, value in entries(attributes):
        if kind != READ_NUMBER:
            terms.add(_equal(key, kind, value))
        elif not isinstance(value, str) and equals_strings(value):
            terms.add(_equal(key, NUMBER, value))
        if isinstance(value, str):
            ranges.setdefault(_path(_TEXTS, key), set()).add(text_key(value))
        elif kind in (NUMBER, READ_NUMBER):
            ranges.setdefault(_path(_NUMBERS, key), set()).add(number_key(value))
        else:
            terms.add(_boolean(key))
    for path, values in ranges.items():
        if len(values) > MAX_VALUES:
            raise InputError(f"an attribute has {len(values)} different values; Milvus takes up to {MAX_VALUES}")
        terms.add(_count(path, _padded(len(values))))
    return FilterFields(sorted(terms), {path: _pad(sorted(values)) for path, values in ranges.items()})


def expression(filter: Filter, any_has: Callable[[Iterable[str]], bool]) -> str:
    """The Milvus expression of a filter.

    `any_has` tells whether some product has one of the given terms: it is asked how many values an attribute has at
    most, for ranges only. Raises `FilterError` for a text range with a bound of more than 64 bytes.
    """
    match filter:
        case OneOf():
            return _one_of(filter)
        case Between():
            return _between(filter, any_has)
        case And(parts):
            return _joined(" and ", [expression(part, any_has) for part in parts], EVERYTHING)
        case Or(parts):
            return _joined(" or ", [expression(part, any_has) for part in parts], NOTHING)
        case Not(part):
            return f"(not {expression(part, any_has)})"


def _joined(operator: str, parts: list[str], of_none: str) -> str:
    return f"({operator.join(parts)})" if parts else f"({of_none})"


def _one_of(filter: OneOf) -> str:
    parts = []
    values = [value for value in filter.values if value is not None]
    if values:
        parts.append(has_any(dict.fromkeys(_equal_to(filter.key, value) for value in values)))
    if len(values) < len(filter.values):
        parts.append(f"(not {has_any(_present(filter.key))})")
    return _joined(" or ", parts, NOTHING)


def _between(filter: Between, any_has: Callable[[Iterable[str]], bool]) -> str:
    is_text = isinstance(filter.low, str) or isinstance(filter.high, str)
    path = _path(_TEXTS if is_text else _NUMBERS, filter.key)
    low, high = (None if bound is None else _bound(filter.key, bound) for bound in (filter.low, filter.high))
    return _joined(" or ", [_inside(path, count, low, high) for count in _counts(path, any_has)], NOTHING)


def _inside(path: str, count: int, low: str | None, high: str | None) -> str:
    """Products with `count` values of which one lies between the keys `low` and `high`."""
    ranges = []
    for place in range(count):
        value = f'ranges["{path}"][{place}]'
        sides = [f'{value} >= "{low}"'] if low is not None else []
        sides += [f'{value} <= "{high}"'] if high is not None else []
        ranges.append(_joined(" and ", sides, EVERYTHING))
    return f"({has_any([_count(path, count)])} and {_joined(' or ', ranges, NOTHING)})"


def _counts(path: str, any_has: Callable[[Iterable[str]], bool]) -> list[int]:
    """The padded numbers of values under `path` that may occur."""
    usual = [count for count in _COUNTS if count <= USUAL_VALUES]
    rare = _COUNTS[len(usual) :]
    if not any_has(_count(path, count) for count in rare):
        return usual
    return usual + [count for count in rare if any_has([_count(path, count)])]


def _bound(key: str, bound: int | float | str) -> str:
    if not isinstance(bound, str):
        return number_key(within_64_bits(bound))
    if len(bound.encode()) > PREFIX_BYTES:
        raise FilterError(f"where[{key!r}] has a bound of {len(bound.encode())} bytes; Milvus takes {PREFIX_BYTES}")
    return text_key(bound)


def number_key(number: int | float) -> str:
    """Decimal digits (and "~") whose byte order is that of the numbers, for integers and floats alike; not for nan."""
    if math.isinf(number):
        return "4" if number > 0 else "0"
    if number == 0:
        return "2"
    # Of a float the shortest digits that read as it: their order, also among integers, is that of the exact values.
    exact = int(number) if number == int(number) else Decimal(repr(float(number)))
    _, digits, exponent = Decimal(exact).as_tuple()
    text = "".join(map(str, digits))
    size = f"{len(text) + int(exponent) + 5000:04}" + text.rstrip("0")
    return "3" + size if number > 0 else "1" + size.translate(_COMPLEMENT) + "~"


_COMPLEMENT = str.maketrans("0123456789", "9876543210")


def text_key(text: str) -> str:
    """Base-32 digits (and "~") whose byte order is the code points' order, as far as 64 bytes tell texts apart."""
    data = text.encode()
    digits = base64.b32hexencode(data[:PREFIX_BYTES]).decode().rstrip("=")
    return digits + ("~" if len(data) > PREFIX_BYTES else "")


def digest(*parts: object, size: int = 12) -> str:
    """BLAKE2b of JSON values, `size` bytes of it, in letters, digits, "-" and "_": 4 for each 3 bytes."""
    data = hashlib.blake2b(json.dumps(parts).encode(), digest_size=size).digest()
    return base64.urlsafe_b64encode(data).decode()


def has_any(terms: Iterable[str]) -> str:
    """The expression for the products with one of some terms."""
    return f"array_contains_any(terms, {json.dumps(list(terms))})"


def _boolean(key: str) -> str:
    return digest("boolean", key)


def _present(key: str) -> list[str]:
    """All terms of which a product with the attribute has one."""
    return [_boolean(key), *(_count(_path(kind, key), count) for kind in (_NUMBERS, _TEXTS) for count in _COUNTS)]


def _equal(key: str, kind: int, value: str | int | float) -> str:
    return digest("equal", key, kind, value if isinstance(value, str) else number_key(value))


def _equal_to(key: str, value: Scalar) -> str:
    ((_, kind, typed),) = (each for each in entries({key: value}) if each[1] != READ_NUMBER)
    return _equal(key, kind, typed)


def _path(kind: str, key: str) -> str:
    return kind + digest(key)


def _count(path: str, count: int) -> str:
    return digest("count", path, count)


def _padded(count: int) -> int:
    return 1 << (count - 1).bit_length()


def _pad(values: list[str]) -> list[str]:
    """The last value repeated up to a power of two: a range finds the same."""
    return values + values[-1:] * (_padded(len(values)) - len(values))
