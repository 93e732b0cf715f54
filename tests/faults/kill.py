"""kill -9 at random moments while a SearchEngine adds, updates, deletes, saves, compacts and opens.

    python tests/faults/kill.py [--kills 300] [--seed 0] [--folder /a/real/disk]

After each kill the index must open, hold every acknowledged write, and the one under way whole or not at all; searches
and filters must agree with a search by hand over the store's vectors. Prints what was killed where; fails with an
AssertionError.
"""

from __future__ import annotations

import argparse
import random
import runpy
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from uniecs.catalog import Product
from uniecs.engine import SearchEngine

SHOP = runpy.run_path(str(Path(__file__).parents[1] / "index_shop.py"))
product, fake, check_index, VIEWS = (SHOP[name] for name in ("product", "fake", "check_index", "VIEWS"))
KINDS = ("open", "add", "update", "delete", "save", "compact")
MOST = 64  # products of one operation: what the engine brings in by one change
STORAGES = ("float32", "int8")


def work(folder: Path, seed: int, version: int, size: int) -> None:
    """The process that is killed: says what it is about to do, and when that has returned, for ever."""

    def say(*words: object) -> None:
        print(*words, flush=True)

    draw = random.Random(seed)
    say("open")
    engine = SearchEngine.open(folder, fake())
    held = [hit.id for hit in engine.search(text="red", k=len(engine) + 1)] if len(engine) else []
    say("done")
    while True:
        version += 1
        kind = draw.choice(KINDS[1:])
        count = draw.randrange(1, MOST + 1)
        if kind == "add" and len(held) > 1.1 * size:
            kind = "delete"
        if kind in ("update", "delete") and len(held) < 0.9 * size:
            kind = "add"
        if kind == "add":
            chosen = [f"{version}-{number}" for number in range(count)]
        else:
            chosen = draw.sample(held, count) if kind in ("update", "delete") else []
        say(kind, *(f"{id}={-1 if kind == 'delete' else version}" for id in chosen))
        if kind in ("add", "update"):
            put: Any = getattr(engine, kind)
            assert put([product(id, version) for id in chosen]).added == count
        elif kind == "delete":
            assert engine.delete(chosen) == count
        else:
            getattr(engine, kind)()
        gone = set(chosen) if kind == "delete" else set()
        held = [id for id in held if id not in gone] + (chosen if kind == "add" else [])
        say("done")


class Killer:
    """Kills workers in one index folder, and keeps what they had acknowledged."""

    def __init__(self, folder: Path, storage: str, size: int, draw: random.Random) -> None:
        self.folder, self.size, self.draw = folder, size, draw
        self.model = {f"0-{number}": 0 for number in range(size)}  # id -> version
        self.killed: Counter[str] = Counter()
        self.kept: Counter[str] = Counter()
        self.seconds = dict.fromkeys(KINDS, 0.05)  # what an operation takes, about
        self.version = self.operations = 0
        with SearchEngine.create(folder, fake(), views=VIEWS, storage=storage) as engine:
            engine.add([product(id, 0) for id in self.model])

    def kill(self, kind: str) -> None:
        """Start a worker, and kill it somewhere in an operation of this kind, or just after it."""
        command = [sys.executable, __file__, "--work", str(self.folder), "--size", str(self.size)]
        command += ["--seed", str(self.draw.randrange(2**32)), "--version", str(self.version)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            under_way = dict[str, int]()
            doing, began, left = "start", time.perf_counter(), 1 if kind == "open" else self.draw.randrange(1, 4)
            for line in process.stdout:
                doing, under_way = self._heard(line, doing, under_way, began)
                began = time.perf_counter()
                left -= doing == kind
                if left == 0:
                    time.sleep(self.draw.uniform(0, 1.2) * self.seconds[kind])
                    process.kill()
                    break
            for line in process.stdout:
                if line.endswith("\n"):
                    doing, under_way = self._heard(line, doing, under_way, None)
        assert process.returncode == -9, process.returncode
        self.killed[doing] += 1
        self._check(doing, under_way)

    def _heard(
        self, line: str, doing: str, under_way: dict[str, int], began: float | None
    ) -> tuple[str, dict[str, int]]:
        if line != "done\n":
            kind, *changed = line.split()
            self.version += 1
            return kind, {id: int(version) for id, version in (each.split("=") for each in changed)}
        self.operations += 1
        if began is not None:
            self.seconds[doing] += 0.2 * (time.perf_counter() - began - self.seconds[doing])
        self.model = _changed(self.model, under_way)
        return "between", {}

    def _check(self, doing: str, under_way: dict[str, int]) -> None:
        with SearchEngine.open(self.folder, fake()) as engine:
            truth = check_index(engine, self.folder, self.draw)
            found = {id: each.attributes["version"] for id, each in truth.products.items()}
            after = _changed(self.model, under_way)
            assert found in (self.model, after), f"lost or half-written after a kill in {doing}"
            self.kept[doing] += under_way != {} and found == after
            self.model = found
            expected: dict[str, Product] = {id: product(id, version) for id, version in found.items()}
            assert truth.products == expected
            if sum(self.killed.values()) % 10 == 0:
                report = engine.verify(100)
                assert report["store"] == "ok" and min(report["recall_at_10"].values()) >= 0.95, report
        temporary = [each.name for each in self.folder.iterdir() if each.name.endswith(".tmp")]
        assert len(temporary) <= len(VIEWS), temporary  # the next save removes them


def _changed(model: dict[str, int], changes: dict[str, int]) -> dict[str, int]:
    """-1 is the version of what is deleted."""
    return {id: version for id, version in (model | changes).items() if version >= 0}


def run(kills: int, seed: int, parent: Path | None, size: int) -> str:
    """Kill so many workers; returns what happened, in words."""
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        killers = [Killer(Path(folder) / storage, storage, size, draw) for storage in STORAGES]
        for number in range(kills):
            killers[number % len(killers)].kill(KINDS[number // len(killers) % len(KINDS)])
    killed = sum((each.killed for each in killers), Counter[str]())
    kept = sum((each.kept for each in killers), Counter[str]())
    where = ", ".join(f"{killed[kind]} in {kind} (done all the same: {kept[kind]})" for kind in sorted(killed))
    operations = sum(each.operations for each in killers)
    return f"{kills} kills: {where}; {operations} acknowledged operations, none lost, nothing half-written"


def main() -> None:
    """Kill, or be killed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where the index is made; by default the temporary folder")
    parser.add_argument("--size", type=int, default=2500, help="products, about")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--version", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        work(given.work, given.seed, given.version, given.size)
    else:
        print(run(given.kills, given.seed, given.folder, given.size))


if __name__ == "__main__":
    main()
