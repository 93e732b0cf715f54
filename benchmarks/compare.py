"""Two runs side by side: what has changed beyond what either run says of itself.

    python benchmarks/compare.py OLD.json NEW.json [--all]

Takes files of `uniecs bench`, of benchmarks/peers.py and of benchmarks/instructions.py, two of a kind. A figure is
called faster or slower if the ratio of the two lies outside the interval of ratios that the two intervals give (95 %,
from the spread between rounds; the half widths added as squares, on a logarithmic scale). With a hundred figures some
five are outside by chance. Where the machine's floor changed too, a line says so. Counts (of instructions, of vectors
compared) have no interval: a change of more than 1 % is told. Exit status: 0 whatever has changed, 2 for files that
cannot be compared.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COUNTS, COUNT_TOLERANCE = ("instructions", "compared"), 0.01
RUNTIME = ("backend", "device", "main_precision", "threads", "counter")
ABOUT = ("machine", "versions", "git_commit", "bundle", "model", "index", *RUNTIME, "settings", "rounds")


@dataclass(frozen=True)
class Metric:
    """A figure with its 95 % interval; `lower` says which way is better."""

    name: str
    value: float
    interval: tuple[float, float] | None
    lower: bool = True


@dataclass(frozen=True)
class Change:
    """A metric in two runs; None where a run lacks it."""

    name: str
    old: float | None
    new: float | None
    verdict: str

    @property
    def ratio(self) -> float | None:
        """New over old."""
        return self.new / self.old if self.old and self.new else None

    def line(self) -> str:
        """For people."""
        cells = ["-" if each is None else f"{each:.4g}" for each in (self.old, self.new, self.ratio)]
        return f"{self.verdict:12}{cells[0]:>12}{cells[1]:>12}{cells[2]:>9}  {self.name}"


def metrics(report: Mapping[str, Any]) -> Iterator[Metric]:
    """Every figure of a run; raises `KeyError` or `TypeError` for a file of another kind."""
    kind = report.get("format")
    if kind == "uniecs-bench":
        for each in report["measurements"]:
            yield Metric(f"{each['key']}, p50 ms", each["ms"]["p50"], _pair(each["p50_interval_ms"]))
            if each["stage"] in ("closed loop", "batch"):
                yield Metric(f"{each['key']}, per s", each["per_s"], _pair(each["per_s_interval"]), lower=False)
    elif kind == "uniecs-peers":
        for row in report["rows"]:
            if row.get("ratio"):
                name = f"{row['work']}, {row['peer']}: its time over ours"
                yield Metric(name, row["ratio"], _pair(row["ratio_interval"]), lower=False)
    elif kind == "uniecs-instructions":
        for path, each in report["paths"].items():
            yield from (Metric(f"{path}, {what}", each[what], None) for what in COUNTS if what in each)
    else:
        raise KeyError("format")


def _pair(interval: Sequence[float] | None) -> tuple[float, float] | None:
    return None if interval is None else (interval[0], interval[1])


def verdict(old: Metric, new: Metric) -> str:
    """ "faster", "slower", "same", or "no interval" where a run has a single round."""
    change = math.log(new.value / old.value)
    better = (change < 0) == old.lower
    if old.name.endswith(COUNTS):
        return "same" if abs(change) <= COUNT_TOLERANCE else ("faster" if better else "slower")
    if old.interval is None or new.interval is None:
        return "no interval"
    half = math.hypot(*(math.log(each[1] / each[0]) / 2 for each in (old.interval, new.interval)))
    return "same" if abs(change) <= half else ("faster" if better else "slower")


def compare(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    """Every metric of either run: slower ones first, by ratio, then faster ones, then the others."""
    before, after = ({each.name: each for each in metrics(report)} for report in (old, new))
    found = []
    for name in dict.fromkeys([*before, *after]):
        one, other = before.get(name), after.get(name)
        if one is None or other is None:
            said = "only new" if one is None else "only old"
            found.append(Change(name, one and one.value, other and other.value, said))
        else:
            found.append(Change(name, one.value, other.value, verdict(one, other)))
    order = {"slower": 0, "faster": 1, "same": 2, "no interval": 3, "only old": 4, "only new": 5}
    return sorted(found, key=lambda each: (order[each.verdict], -abs(math.log(each.ratio)) if each.ratio else 0))


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What the runs were not alike in besides."""
    return [f"{key}: {old.get(key)} -> {new.get(key)}" for key in ABOUT if old.get(key) != new.get(key)]


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no figure")


def read(path: Path) -> dict[str, Any]:
    """A file of results; raises `ValueError` or `OSError`."""
    report = json.loads(path.read_text("utf-8"), parse_constant=_refuse)
    if not isinstance(report, dict):
        raise ValueError("not a JSON object")
    return report


def main(argv: Sequence[str] | None = None) -> int:
    """Print the comparison; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--all", action="store_true", help="what has not changed as well")
    options = parser.parse_args(argv)
    try:
        old, new = read(options.old), read(options.new)
        if old.get("format") != new.get("format"):
            raise ValueError(f"one is of {old.get('format')}, the other of {new.get('format')}")
        changes = compare(old, new)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        print(f"these files cannot be compared: {error!r}", file=sys.stderr)
        return 2
    for each in differences(old, new):
        print(f"not alike in {each}")
    shown = [each for each in changes if options.all or each.verdict != "same"]
    print(f"{'':12}{'old':>12}{'new':>12}{'ratio':>9}")
    print("\n".join(each.line() for each in shown))
    if moved := [each for each in changes if each.name.startswith("floor / ") and each.verdict in ("slower", "faster")]:
        ratios = ", ".join(f"{each.ratio:.2f}" for each in moved)
        print(f"the machine's own rates (floor) changed too, by {ratios}: the rest says little about the code")
    said = [each.verdict for each in changes]
    counts = ", ".join(f"{said.count(each)} {each}" for each in dict.fromkeys(said))
    print(f"{len(changes)} figures: {counts}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
