"""Pairs of similar products, and their order: batches that are a function of the seed and the step.

`CatalogPairs` pairs the products of a catalogue in memory; `PairFiles` (pair_files.py) streams pairs from files.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count, islice
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from uniecs.catalog import Product, read_catalog
from uniecs.errors import InputError, TrainingError
from uniecs.preprocess import open_image

Member = TypeVar("Member", int, str)
Item = TypeVar("Item")
Pair = tuple[Product, Product]


class PairStream(Protocol):
    """Where the pairs of a run come from."""

    def batches(self, batch_pairs: int, seed: int, start: int) -> Iterator[Sequence[Pair]]:
        """The batches of steps `start`, `start` + 1, ... without end, each of at most `batch_pairs` pairs.

        A step's batch depends on the arguments `batch_pairs` and `seed` alone, not on `start`.
        """

    def described(self) -> dict[str, int]:
        """How much there is, for the checkpoint's provenance."""


def fill_gaps(items: Sequence[Item | None], what: str) -> list[Item]:
    """Each None is replaced by the next item (round the end); raises `TrainingError` "no pair of a batch `what`"."""
    filled = list(items)
    for place in reversed(range(-len(items), len(items))):
        if filled[place] is None:
            filled[place] = filled[(place + 1) % len(items)]
    whole = [each for each in filled if each is not None]
    if len(whole) < len(items) or not items:
        raise TrainingError(f"no pair of a batch {what}")
    return whole


def from_step(start: int, batches_of: Callable[[int], Sequence[Item]]) -> Iterator[Item]:
    """The batches of step `start` and on, without end; `batches_of` gives those of an epoch."""
    return islice(chain.from_iterable(map(batches_of, count())), start, None)


@dataclass(frozen=True)
class PairSource:
    """Groups of similar products, as positions in the catalogue; `edges` are the allowed pairs of each group.

    A group without edges allows every pair of its members.
    """

    groups: tuple[tuple[int, ...], ...]
    edges: tuple[tuple[tuple[int, int], ...], ...] | None = None

    def epoch(self, epoch: int, batch_pairs: int, seed: int) -> list[npt.NDArray[np.int64]]:
        """The batches of one epoch, each (N, 2) positions with N <= `batch_pairs`, a function of its arguments only.

        Each group's pairs go to different batches; a group with more pairs than there are batches gives that many.
        """
        random = np.random.default_rng((seed, epoch))
        matched = [self._match(group, random) for group in random.permutation(len(self.groups))]
        total = sum(map(len, matched))
        rounds = -(-total // batch_pairs)
        batches: list[list[tuple[int, int]]] = [[] for _ in range(rounds)]
        place = 0
        for pairs in matched:
            for pair in pairs[:rounds]:
                batches[place % rounds].append(pair)
                place += 1
        full = [np.asarray(batch, np.int64) for batch in batches if len(batch) > 1]
        if not full:
            raise TrainingError("the catalogue gives fewer than two pairs of similar products from distinct groups")
        return [full[i] for i in random.permutation(len(full))]

    def _match(self, group: int, random: np.random.Generator) -> list[tuple[int, int]]:
        """A random matching of one group: no product twice."""
        if self.edges is None:
            members = random.permutation(self.groups[group]).tolist()
            return list(zip(members[0::2], members[1::2], strict=False))
        pairs, used = [], set[int]()
        for index in random.permutation(len(self.edges[group])):
            one, two = self.edges[group][index]
            if one not in used and two not in used:
                used |= {one, two}
                pairs.append((one, two) if random.random() < 0.5 else (two, one))
        return pairs


@dataclass(frozen=True)
class CatalogPairs:
    """The pairs of products that are held in memory."""

    products: Sequence[Product]
    source: PairSource

    def batches(self, batch_pairs: int, seed: int, start: int) -> Iterator[Sequence[Pair]]:
        """As `PairStream`: every product at most once an epoch, distinct groups in a batch."""
        for pairs in from_step(start, lambda epoch: self.source.epoch(epoch, batch_pairs, seed)):
            yield [(self.products[one], self.products[two]) for one, two in pairs.tolist()]

    def largest_batch(self, batch_pairs: int, seed: int) -> int:
        """The pairs of the first epoch's largest batch: fewer than `batch_pairs` where products or groups are few."""
        return max(map(len, self.source.epoch(0, batch_pairs, seed)))

    def described(self) -> dict[str, int]:
        """The numbers of products and of their groups."""
        return {"products": len(self.products), "groups": len(self.source.groups)}


@dataclass(frozen=True)
class QueryPairs:
    """Queries and products that answer them; a query is a product that has nothing but its words."""

    products: Sequence[Product]
    queries: Sequence[tuple[str, int]]
    """(query, position of a product that answers it)"""

    def batches(self, batch_pairs: int, seed: int, start: int) -> Iterator[Sequence[Pair]]:
        """As `PairStream`: no row twice an epoch, no query and no product twice in a batch, and only full batches."""
        for rows in from_step(start, lambda epoch: self._epoch(epoch, batch_pairs, seed)):
            yield [self._pair(row) for row in rows]

    def described(self) -> dict[str, int]:
        """The numbers of products, of rows and of distinct queries."""
        distinct = len({query for query, _ in self.queries})
        return {"products": len(self.products), "query_products": len(self.queries), "queries": distinct}

    def _epoch(self, epoch: int, batch_pairs: int, seed: int) -> list[list[int]]:
        """Rows in random order, each in the first batch that has room and neither its query nor its product."""
        batches: list[list[int]] = []
        taken: list[set[str | int]] = []
        past: dict[str | int, int] = {}  # no batch before it takes the key: one with many rows is in most of them
        full = 0

        def closed(place: int, keys: Iterable[str | int]) -> bool:
            return place < len(batches) and (len(batches[place]) == batch_pairs or not taken[place].isdisjoint(keys))

        for row in np.random.default_rng((seed, epoch)).permutation(len(self.queries)).tolist():
            keys = self.queries[row]
            for key in keys:
                past[key] = max(full, past.get(key, 0))
                while closed(past[key], (key,)):
                    past[key] += 1
            place = max(past[key] for key in keys)
            while closed(place, keys):
                place += 1
            if place == len(batches):
                batches.append([])
                taken.append(set())
            batches[place].append(row)
            taken[place].update(keys)
            while full < len(batches) and len(batches[full]) == batch_pairs:
                full += 1
        whole = [batch for batch in batches if len(batch) == batch_pairs]
        if not whole:
            raise TrainingError(f"the queries do not fill a batch of {batch_pairs} without repeating one or a product")
        return whole

    def _pair(self, row: int) -> Pair:
        query, product = self.queries[row]
        return Product(f"query {row}", query), self.products[product]


def pairs_from_queries(products: Sequence[Product], queries: Iterable[tuple[str, str]]) -> QueryPairs:
    """(query, product id) rows; those of products that are not in `products` are left out."""
    positions = {product.id: i for i, product in enumerate(products)}
    known = tuple((query, positions[name]) for query, name in queries if name in positions)
    if not known:
        raise TrainingError("no row of the queries file has its product in the catalogue")
    return QueryPairs(products, known)


def read_products(catalog: Path) -> tuple[list[Product], list[str]]:
    """The products that can be trained on, and why each other row cannot.

    It lacks a title or a readable image, or repeats the id of a row before it.

    Raises `TrainingError` where none is left.
    """
    products: list[Product] = []
    rejected: list[str] = []
    seen: set[str] = set()
    for row, item in enumerate(read_catalog(catalog)):
        if not isinstance(item, Product):
            rejected.append(f"row {item.row}: {item.error}")
        elif item.title is None or item.image is None:
            rejected.append(f"row {row} ({item.id}): training needs both a title and an image")
        elif item.id in seen:
            rejected.append(f"row {row} ({item.id}): the id appears a second time; the first row is kept")
        else:
            try:
                open_image(item.image)
                products.append(item)
                seen.add(item.id)
            except InputError as error:
                rejected.append(f"row {row} ({item.id}): {error}")
    if not products:
        raise TrainingError(f"{catalog} has no product with both a title and a readable image")
    return products, rejected


def pairs_from_columns(products: Sequence[Product], columns: Sequence[str]) -> PairSource:
    """Group the products that share every one of `columns`; an empty or absent value joins no group."""
    groups: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for position, product in enumerate(products):
        key = tuple(_scalar(product.attributes.get(column)) for column in columns)
        if all(value is not None for value in key):
            groups[key].append(position)
    chosen = tuple(tuple(group) for group in groups.values() if len(group) > 1)
    if not chosen:
        known = sorted({key for product in products for key in product.attributes})
        for column in columns:
            if column not in known:
                raise TrainingError(f"group_columns has {column!r}, which no product has; they have {', '.join(known)}")
        raise TrainingError(f"no two products share a value in each of the columns {', '.join(columns)}")
    return PairSource(chosen)


def _scalar(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def pairs_from_ids(products: Sequence[Product], pairs: Iterable[tuple[str, str]]) -> PairSource:
    """Group given pairs of ids by connected components; pairs of products that are not in `products` are left out."""
    positions: Mapping[str, int] = {product.id: i for i, product in enumerate(products)}
    known = [(positions[a], positions[b]) for a, b in pairs if a in positions and b in positions and a != b]
    if not known:
        raise TrainingError("no pair of the pairs file has both of its products in the catalogue")
    group = connected(known)
    edges: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for one, two in known:
        edges[group[one]].append((one, two))
    members = tuple(tuple(sorted({i for edge in each for i in edge})) for each in edges.values())
    return PairSource(members, tuple(map(tuple, edges.values())))


def connected(pairs: Iterable[tuple[Member, Member]]) -> dict[Member, Member]:
    """The connected component of each member of `pairs`, named by its smallest member."""
    root: dict[Member, Member] = {}

    def find(each: Member) -> Member:
        while root.setdefault(each, each) != each:
            root[each] = root[root[each]]
            each = root[each]
        return each

    for one, two in pairs:
        low, high = sorted((find(one), find(two)))
        root[high] = low
    return {each: find(each) for each in list(root)}
