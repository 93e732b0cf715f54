"""The rows that match a filter, as bit sets: one kept for each predicate and up to date, combined on use."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from functools import reduce
from operator import and_, or_
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from uniecs.catalog import Product
from uniecs.filters import Between, Filter, Not, OneOf, Or, matches

if TYPE_CHECKING:
    from uniecs._core import RowSet

Predicate: TypeAlias = OneOf | Between
Rows: TypeAlias = npt.NDArray[np.int64]

MAX_PREDICATES = 256  # sets kept, each a bit for every row
MAX_FILTERS = 64


class FilterSets:
    """Bit sets of rows for filters; thread-safe.

    A set may hold rows of products deleted since, which no search returns: after many deletions `forget` it all.
    """

    def __init__(self, rows_matching: Callable[[Predicate], Rows]) -> None:
        """`rows_matching` gives the rows of all products that match, as of the moment it is called or later."""
        self._rows_matching = rows_matching
        self._lock = threading.Lock()
        self._predicates: OrderedDict[Predicate, RowSet] = OrderedDict()
        self._building: dict[Predicate, list[list[int]]] = {}
        self._combined: OrderedDict[Filter, tuple[RowSet, int]] = OrderedDict()
        self._last = 0
        self._forgotten = 0
        self.version = 0  # one more with each change: a set found before may lack rows

    def add(self, products: Iterable[tuple[int, Product]], last: int) -> None:
        """Note new products by row, of which `last` is the highest ever given."""
        products = list(products)
        with self._lock:
            self._last = last
            self.version += 1
            self._combined.clear()
            for predicate, rows in self._predicates.items():
                for row, product in products:
                    if matches(predicate, product.attributes):
                        rows.insert(row)
            for predicate, waiting in self._building.items():
                for late in waiting:
                    late.extend(row for row, product in products if matches(predicate, product.attributes))

    def forget(self, last: int) -> None:
        """Drop all sets; they are made anew on use. `last` is the highest row ever given."""
        with self._lock:
            self._last = last
            self.version += 1
            self._forgotten += 1
            self._predicates.clear()
            self._combined.clear()

    def find(self, where: Filter) -> tuple[RowSet, int]:
        """The rows that match, and how many they are."""
        with self._lock:
            if where in self._combined:
                self._combined.move_to_end(where)
                return self._combined[where]
            version, last = self.version, self._last
        rows = self._combine(where, last)
        found = rows, len(rows)
        with self._lock:
            if version == self.version:
                self._combined[where] = found
                if len(self._combined) > MAX_FILTERS:
                    self._combined.popitem(last=False)
        return found

    def _combine(self, where: Filter, last: int) -> RowSet:
        from uniecs._core import RowSet

        if isinstance(where, (OneOf, Between)):
            return self._predicate(where)
        if isinstance(where, Not):
            return self._combine(where.part, last).complement(last)
        parts = [self._combine(part, last) for part in where.parts]
        nothing = RowSet(np.zeros(0, np.uint64))
        if isinstance(where, Or):
            return reduce(or_, parts, nothing)
        return reduce(and_, parts) if parts else nothing.complement(last)

    def _predicate(self, predicate: Predicate) -> RowSet:
        from uniecs._core import RowSet

        late: list[int] = []  # rows that come while the store is asked
        with self._lock:
            if predicate in self._predicates:
                self._predicates.move_to_end(predicate)
                return self._predicates[predicate]
            self._building.setdefault(predicate, []).append(late)
            forgotten = self._forgotten
        try:
            rows = self._rows_matching(predicate)
        except BaseException:
            with self._lock:
                self._stop_waiting(predicate, late)
            raise
        with self._lock:
            self._stop_waiting(predicate, late)
            made = RowSet(np.concatenate([rows, np.array(late, np.int64)]).astype(np.uint64))
            if forgotten == self._forgotten:  # else it may be of a state before
                self._predicates[predicate] = made
                if len(self._predicates) > MAX_PREDICATES:
                    self._predicates.popitem(last=False)
        return made

    def _stop_waiting(self, predicate: Predicate, late: list[int]) -> None:
        waiting = [each for each in self._building[predicate] if each is not late]
        if waiting:
            self._building[predicate] = waiting
        else:
            del self._building[predicate]
