"""Instructions of the pure-CPU paths: to tokenise a text, to preprocess a photo, to search the index.

    python benchmarks/instructions.py [--out FILE.json]
    python benchmarks/compare.py benchmarks/results/instructions.json FILE.json

Counts hardly depend on what else the machine does, so that CI can print them; nothing fails on them. A path runs in a
process of its own, once with few calls and once with more: the difference is the calls' alone, without start-up.
Counted by `perf stat` where the kernel lets it, else by valgrind (apt install valgrind), which has no AVX-512: the
paths then run their AVX2 code. Needs the SDK alone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

CALLS = {"tokenise": (20, 120), "preprocess": (1, 4), "search": (20, 120)}
"""Path -> calls of the short and of the long run."""
EVENT = "instructions:u"
FORMAT = "uniecs-instructions"
VECTORS, QUERIES, DIM = 500, 64, 256
COUNTED = {"perf": re.compile(r"^(\d+),", re.MULTILINE), "valgrind": re.compile(r"Collected\s*:\s*(\d+)")}


def tokenise() -> Callable[[int], object]:
    """A text of 16 words by the native tokenizer."""
    import uniecs
    from uniecs._core import Tokenizer

    bundle = Path(uniecs.__file__).resolve().parent / "bundles" / "mini"
    tokenizer = Tokenizer((bundle / "tokenizer.json").read_bytes(), 64)
    words = ("red", "blue", "women", "unforgettable", "cotton", "t-shirt", "schöne", "kurta")
    texts = [" ".join(words[(place + number) % 8] for place in range(16)) for number in range(8)]
    return lambda number: tokenizer.encode_batch([texts[number % 8]])


def preprocess() -> Callable[[int], object]:
    """A decoded photo of 750 x 1000 px to pixel values of 224 x 224, natively."""
    import numpy as np

    from uniecs._core import pixel_values

    photo = np.random.default_rng(0).integers(0, 256, (1000, 750, 3), dtype=np.uint8)
    out = np.empty((3, 224, 224), np.float32)
    half = (0.5, 0.5, 0.5)
    return lambda number: pixel_values(photo, out, half, half)


def search() -> Callable[[int], Any]:
    """The ten nearest at a given breadth: what a walk compares is alike, however the graph would choose it."""
    import numpy as np

    from uniecs._core import Graph

    vectors = np.random.default_rng(0).standard_normal((VECTORS + QUERIES, DIM), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    graph = Graph(DIM, 8, 32, "float32")
    rows = np.arange(1, VECTORS + 1, dtype=np.uint64)
    graph.apply(np.zeros(0, np.uint64), rows, vectors[:VECTORS], 1)
    return lambda number: graph.search(vectors[VECTORS + number % QUERIES][np.newaxis], 10, ef=64, strategy="graph")


PATHS: dict[str, Callable[[], Callable[[int], object]]] = {
    "tokenise": tokenise,
    "preprocess": preprocess,
    "search": search,
}


def drive(path: str, calls: int) -> None:
    """What the counted process does."""
    call = PATHS[path]()
    for number in range(calls):
        call(number)


def counter() -> str | None:
    """ "perf" if it counts here, else "valgrind" if there is one."""
    if shutil.which("perf"):
        done = subprocess.run(["perf", "stat", "-x,", "-e", EVENT, "true"], capture_output=True, text=True, check=False)
        if done.returncode == 0 and done.stderr.split(",")[0].strip().isdigit():
            return "perf"
    return "valgrind" if shutil.which("valgrind") else None


def count(how: str, path: str, calls: int) -> int:
    """Instructions of one process that makes so many calls."""
    program = [sys.executable, "-s", __file__, "--drive", path, "--calls", str(calls)]
    # Nothing that differs from run to run: neither hashes, nor threads, nor byte code that is written.
    environment = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1", "OPENBLAS_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        perf = ["perf", "stat", "-x,", "-e", EVENT, "-o", str(out), "--"]
        command = perf if how == "perf" else ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}"]
        done = subprocess.run([*command, *program], capture_output=True, text=True, env=environment, check=False)
        told = COUNTED[how].search(out.read_text("utf-8") if how == "perf" and out.exists() else done.stderr)
    if done.returncode or told is None:
        raise SystemExit(f"{' '.join(command[:3])} ... failed:\n{done.stderr[-2000:]}")
    return int(told[1])


def measure(how: str) -> dict[str, Any]:
    """Instructions of one call of each path; of a search the vectors it compares, too."""
    found: dict[str, Any] = {}
    runs = [(path, calls) for path, both in CALLS.items() for calls in both]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        counted = dict(zip(runs, pool.map(lambda run: count(how, *run), runs), strict=True))
    for path, (few, many) in CALLS.items():
        short, long = counted[path, few], counted[path, many]
        found[path] = {"instructions": round((long - short) / (many - few)), "start_up": short}
        print(f"{path:12}{found[path]['instructions']:>14,} instructions a call ({how})", flush=True)
    call = search()
    found["search"]["compared"] = sum(call(number)[2]["compared"] for number in range(QUERIES)) / QUERIES
    return found


def main() -> None:
    """Count, print, and write --out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--drive", choices=PATHS, help=argparse.SUPPRESS)
    parser.add_argument("--calls", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.drive:
        drive(options.drive, options.calls)
        return
    how = counter()
    if how is None:
        raise SystemExit(
            "neither perf can count here nor is there valgrind (apt install valgrind): nothing was counted"
        )
    report = {"format": FORMAT, "counter": how, "machine": platform.machine(), "paths": measure(how)}
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
