"""Pairs streamed from Parquet files in the benchmark's layout: shuffled, never loaded whole, resumable at any step.

An epoch takes the row groups of all files in a random order, gathers them into windows of at least `shuffle_pairs`
rows, and shuffles the rows of each window. The rows of every row group are known from the files' footers, so that a
run that resumes reads nothing but the window that its step falls into.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from glob import glob
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet as parquet

from uniecs.benchmark_sets import PAIR_COLUMNS, read_pair
from uniecs.errors import CatalogError, TrainingError
from uniecs.trainer.pairs import Pair, fill_gaps

COLUMNS = (*PAIR_COLUMNS, "trigger_id", "recall_id")


@dataclass(frozen=True)
class RowGroup:
    """A unit of reading: row group number `index` of a file, with `rows` rows, the first of them row `first`."""

    path: Path
    index: int
    rows: int
    first: int


class PairFiles:
    """The pairs of the Parquet files that match a pattern; memory holds two windows of about `shuffle_pairs` rows."""

    def __init__(self, pattern: str, shuffle_pairs: int) -> None:
        """Reads the files' footers. Raises `CatalogError` for none, an unreadable one, or one without the columns."""
        paths = sorted(Path(each) for each in glob(pattern, recursive=True))  # noqa: PTH207 (any pattern, any root)
        if not paths:
            raise CatalogError(f"no file matches {pattern}; expected Parquet files as `uniecs pairs` writes them")
        self.shuffle_pairs = shuffle_pairs
        self.row_groups = [group for path in paths for group in _row_groups(path, shuffle_pairs)]
        self.rows = sum(group.rows for group in self.row_groups)

    def described(self) -> dict[str, int]:
        """The number of pairs."""
        return {"pairs": self.rows}

    def batches(self, batch_pairs: int, seed: int, start: int) -> Iterator[Sequence[Pair]]:
        """As `PairStream`; the rows that do not fill an epoch's last batch are left out of it.

        A row that cannot be used is named on stderr, and another of its batch stands in for it. Raises `TrainingError`
        where all rows do not fill a batch.
        """
        steps = self.rows // batch_pairs
        if steps == 0:
            raise TrainingError(f"the files hold {self.rows} pairs; a batch needs {batch_pairs}")
        for epoch in count(start // steps):
            skipped = max(0, start - epoch * steps) * batch_pairs
            rows = self._rows((seed, epoch), skipped)
            for _ in range(skipped // batch_pairs, steps):
                batch = [_pair(*next(rows)) for _ in range(batch_pairs)]
                yield fill_gaps(batch, "has rows that can be used")

    def _rows(self, seed: tuple[int, int], skipped: int) -> Iterator[tuple[RowGroup, int, Any]]:
        """The rows of one epoch in its order, without the first `skipped`: (row group, place in it, its table)."""
        windows = self._windows(np.random.default_rng(seed))
        first = 0
        while skipped >= (rows := sum(group.rows for group in windows[first])):
            skipped -= rows
            first += 1
        with ThreadPoolExecutor(1) as reader:
            ahead = reader.submit(_read, windows[first])
            for number in range(first, len(windows)):
                tables = ahead.result()
                if number + 1 < len(windows):
                    ahead = reader.submit(_read, windows[number + 1])
                ends = np.cumsum([group.rows for group in windows[number]])
                # A seed of its own: a window's order neither needs nor holds those before it.
                order = np.random.default_rng((*seed, number)).permutation(int(ends[-1]))
                for place in order[skipped:].tolist():
                    which = int(np.searchsorted(ends, place, side="right"))
                    group = windows[number][which]
                    yield group, place - int(ends[which]) + group.rows, tables[which]
                skipped = 0

    def _windows(self, random: np.random.Generator) -> list[list[RowGroup]]:
        windows: list[list[RowGroup]] = [[]]
        rows = 0
        for index in random.permutation(len(self.row_groups)).tolist():
            if rows >= self.shuffle_pairs:
                windows.append([])
                rows = 0
            windows[-1].append(self.row_groups[index])
            rows += self.row_groups[index].rows
        return windows


def _row_groups(path: Path, most: int) -> list[RowGroup]:
    try:
        with parquet.ParquetFile(path) as file:
            names, metadata = file.schema_arrow.names, file.metadata
            rows = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
    except (OSError, pyarrow.ArrowException) as error:
        raise CatalogError(f"{path} cannot be read as Parquet: {error}") from error
    missing = [each for each in PAIR_COLUMNS if each not in names]
    if missing:
        raise CatalogError(f"{path} has no column {missing[0]!r}; expected {', '.join(PAIR_COLUMNS)}")
    if max(rows, default=0) > most:
        raise CatalogError(
            f"{path} has a row group of {max(rows)} rows, more than data.shuffle_pairs = {most}, and a row group is "
            "read whole: write the file with a smaller row_group_size, or raise shuffle_pairs"
        )
    firsts = [0, *np.cumsum(rows).tolist()]
    return [RowGroup(path, index, each, firsts[index]) for index, each in enumerate(rows) if each]


def _read(window: Sequence[RowGroup]) -> list[Any]:
    """The table of each row group of a window."""
    tables = []
    for group in window:
        try:
            with parquet.ParquetFile(group.path) as file:
                kept = [each for each in COLUMNS if each in file.schema_arrow.names]
                tables.append(file.read_row_group(group.index, columns=kept, use_threads=False))
        except (OSError, pyarrow.ArrowException) as error:
            raise CatalogError(f"row group {group.index} of {group.path} cannot be read: {error}") from error
    return tables


def _pair(group: RowGroup, place: int, table: Any) -> Pair | None:
    """The pair of one row, or None, with a line on stderr, for a row that cannot be used."""
    record: object
    try:
        (record,) = table.slice(place, 1).to_pylist()
    except (ValueError, OverflowError) as error:  # not UTF-8, or a time beyond Python's
        record = error
    try:
        return read_pair(record, group.first + place, group.path)
    except CatalogError as error:
        print(f"left out: {error}", file=sys.stderr)
        return None
