"""Peers side by side in one run: each in a process of its own, by turns in rounds, on as many threads.

    python benchmarks/peers.py --out benchmarks/results/peers.json [--model base] [--rounds 30] [--threads 2]
    uniecs bench report benchmarks/results/peers.json

--model is a packaged name (mini), a bundle folder, or "base": random weights, exported once to --base (minutes, 0.8
GB). Each peer embeds the same texts and photos as its documentation shows, with weights of the same
sizes, and is set up as it recommends; what is not alike stands in the notes. Each round gives every peer one turn, in
another order, after two rounds of warm-up. A figure is the median over rounds, its spread the quartiles; a ratio is the
geometric mean of the rounds' ratios of the peer to ours, its interval (95 %) Student's t on their logarithms, which
fewer than three rounds have not. A peer that cannot be imported is a row that says why. All workers stay loaded: expect
some 16 GB with base (an estimate).

Needs `uniecs[train,export,bench,peers]`, and for the peers that are no part of it, each in a folder of its own:

    pip install --no-deps --target CLIP open_clip_torch torchvision timm ftfy wcwidth   # torch 2.13: torchvision<0.29
    pip install --no-deps --target OPTIMUM optimum optimum-intel optimum-onnx "sentence-transformers<6" \\
        "transformers>=4.57,<4.58" "huggingface_hub<1" "tokenizers>=0.22,<0.23"   # optimum-onnx refuses newer ones
    ... --site open_clip=CLIP "sentence-transformers, ONNX=OPTIMUM" "sentence-transformers, OpenVINO=OPTIMUM" \\
        "optimum, ONNX Runtime=OPTIMUM"

fastembed itself is not run: its session options are, on our graphs. A machine that does nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import numpy as np

from uniecs.bench.samples import interval

FORMAT = "uniecs-peers"
WARM_ROUNDS = 2
LEAST_ROUNDS = 3
CALLS, TURN_S = 5, 0.5
"""Calls of a turn at most, and seconds after which no further one begins."""
OURS = "uniecs "
PAUSE_S = 0.01  # what a peer's threads may spin after its turn is not the next one's time


class Worker:
    """A peer in its own process: a line of JSON each way."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self.name = name
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 (closed in `close`)
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._log}
        # Out of reach of a ctrl-C in the terminal, which is for the one that asks.
        self._process = subprocess.Popen(command, text=True, env=dict(environment), start_new_session=True, **pipes)
        self.about = self._read()

    def turn(self, work: str) -> float:
        """Seconds of a call of a kind of work; raises `RuntimeError` if the peer fails."""
        if self._process.stdin is None:
            raise RuntimeError("the worker has no standard input")
        self._process.stdin.write(json.dumps({"work": work}) + "\n")
        self._process.stdin.flush()
        answer = self._read()
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return float(answer["seconds"])

    def close(self) -> None:
        """End the process."""
        for pipe in (self._process.stdin, self._process.stdout, self._log):
            with contextlib.suppress(BrokenPipeError):  # it ended before
                if pipe is not None:
                    pipe.close()
        self._process.wait(60)

    def _read(self) -> dict[str, Any]:
        line = self._process.stdout.readline() if self._process.stdout is not None else ""
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        self._log.seek(0)
        said = " ".join(self._log.read().split())[-300:]
        return {"error": f"its process ended: {said}", "versions": {}}


def serve(name: str, bundle_path: str, threads: int) -> None:
    """The worker's side: load, tell what there is, then do what is asked for. Only answers go to the real stdout."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print

    def tell(answer: Mapping[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    from peer_workers import PEERS

    from uniecs.bench.machine import versions_of

    make, packages = PEERS[name]
    try:
        from uniecs.bundle import open_bundle

        works = make(open_bundle(bundle_path), threads)
    except Exception as error:  # noqa: BLE001 (whatever a foreign package raises is this row's text)
        tell({"error": f"{type(error).__name__}: {error}"[:300], "versions": versions_of(packages)})
        return
    tell({"works": list(works.calls), "notes": dict(works.notes), "versions": versions_of(packages)})
    for line in sys.stdin:
        try:
            tell({"seconds": turn_of(works.calls[json.loads(line)["work"]])})
        except Exception as error:  # noqa: BLE001 (as above)
            tell({"error": f"{type(error).__name__}: {error}"[:300]})


def turn_of(call: Callable[[], object]) -> float:
    """Seconds of a call: the median of up to `CALLS`, after one that fetches from memory what others have displaced."""
    taken = list[float]()
    while len(taken) <= CALLS and sum(taken) < TURN_S:
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return float(np.median(taken[1:] or taken))


def rounds_of(workers: Mapping[str, Worker], rounds: int) -> tuple[dict[str, dict[str, list[float]]], dict[str, str]]:
    """Work -> peer -> seconds of each round, and why peers gave up; the first to go is another in each round."""
    from tqdm import tqdm

    failed = dict[str, str]()
    works = list(dict.fromkeys(work for each in workers.values() for work in each.about["works"]))
    seconds: dict[str, dict[str, list[float]]] = {
        work: {name: [] for name, each in workers.items() if work in each.about["works"]} for work in works
    }
    whole = 0
    # ctrl-C keeps the rounds that are whole.
    with contextlib.suppress(KeyboardInterrupt):
        for turn in tqdm(range(rounds + WARM_ROUNDS), desc="rounds", disable=None):
            for work, taken in seconds.items():
                for name in _rotated([each for each in taken if each not in failed], turn):
                    time.sleep(PAUSE_S)
                    try:
                        spent = workers[name].turn(work)
                    except RuntimeError as error:
                        failed[name] = str(error)
                        continue
                    if turn >= WARM_ROUNDS:
                        taken[name].append(spent)
            whole = max(0, turn + 1 - WARM_ROUNDS)
    return {work: {name: each[:whole] for name, each in taken.items()} for work, taken in seconds.items()}, failed


def _rotated(names: list[str], turn: int) -> list[str]:
    start = turn % max(1, len(names))
    return names[start:] + names[:start]


def ratio(peer: Sequence[float], ours: Sequence[float]) -> tuple[float, tuple[float, float] | None]:
    """Geometric mean of the rounds' ratios of the peer to ours, and its 95 % interval; None of a few rounds."""
    rounds = [one / other for one, other in zip(peer, ours, strict=True)]
    return geometric_mean(rounds), interval(rounds) if len(rounds) >= LEAST_ROUNDS else None


def rows_of(
    seconds: Mapping[str, Mapping[str, Sequence[float]]], notes: Mapping[str, Mapping[str, str]]
) -> list[dict[str, Any]]:
    """A row for each kind of work, peer and contender of ours, lost ones first."""
    rows = []
    for work, taken in seconds.items():
        rounds = max(map(len, taken.values()))
        whole = {name: each for name, each in taken.items() if each and len(each) == rounds}
        for own in (name for name in whole if name.startswith(OURS)):
            for peer in (name for name in whole if not name.startswith(OURS)):
                found, between = ratio(whole[peer], whole[own])
                quartiles = np.percentile(whole[peer], [25, 75])
                note = "; ".join(notes[peer][key] for key in ("", work) if key in notes[peer])
                own_note = notes[own].get(work)
                rows.append(
                    {
                        "work": f"{work} ({own})",
                        "peer": peer,
                        "ms": float(np.median(whole[peer])) * 1e3,
                        "quartiles_ms": [float(each) * 1e3 for each in quartiles],
                        "ours_ms": float(np.median(whole[own])) * 1e3,
                        "ratio": found,
                        "ratio_interval": between,
                        "note": f"{note}; ours: {own_note}" if own_note else note,
                    }
                )
    return sorted(rows, key=lambda row: row["ratio"])


def start(names: Sequence[str], bundle: Path, threads: int, sites: Mapping[str, str]) -> dict[str, Worker]:
    """A worker for each name, one after the other: they load on the same cores. `sites` go before its other paths."""
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))[:threads]))
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "UNIECS_PEER_CORES": cores}
    workers = {}
    for name in names:
        command = [sys.executable, __file__, "--worker", name, "--model", str(bundle), "--threads", str(threads)]
        paths = [sites[name]] if name in sites else []
        paths += [os.environ["PYTHONPATH"]] if "PYTHONPATH" in os.environ else []
        workers[name] = Worker(name, command, {**environment, "PYTHONPATH": os.pathsep.join(paths)})
        print(f"  {name}: {workers[name].about.get('error', 'ready')}", flush=True)
    return workers


def locate(options: argparse.Namespace) -> Path:
    """The bundle's folder; `base` is exported if need be."""
    from uniecs.bundle import locate_bundle

    if options.model != "base":
        return locate_bundle(options.model)
    from encode_peers import base_bundle

    folder: Path = base_bundle(options.base).path
    return folder


def main() -> None:
    """Measure, print, and write --out; with --worker be one of the peers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="base")
    parser.add_argument("--base", type=Path, default=Path(tempfile.gettempdir()) / "uniecs-base-random")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="+", help="names of peers; ours are always there")
    parser.add_argument("--site", nargs="+", default=[], metavar="PEER=FOLDER", help="packages of one peer alone")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        os.sched_setaffinity(0, map(int, os.environ["UNIECS_PEER_CORES"].split(",")))
        serve(options.worker, options.model, options.threads)
        return
    from peer_workers import PEERS

    from uniecs.bench.machine import describe_machine, git_commit

    load_before = os.getloadavg()[0]
    names = [name for name in PEERS if not options.only or name in options.only or name.startswith(OURS)]
    bundle = locate(options)
    workers = start(names, bundle, options.threads, dict(each.split("=", 1) for each in options.site))
    ready = {name: each for name, each in workers.items() if "error" not in each.about}
    try:
        seconds, failed = rounds_of(ready, options.rounds)
    finally:
        for each in workers.values():
            each.close()
    notes = {name: each.about["notes"] for name, each in ready.items()}
    absent = {**{name: each.about["error"] for name, each in workers.items() if name not in ready}, **failed}
    rows = rows_of(seconds, notes)
    rows += [{"work": "not measured", "peer": name, "note": why} for name, why in absent.items()]
    for row in rows:
        print(line(row))
    if options.out:
        report = {
            "format": FORMAT,
            "machine": describe_machine(),
            "git_commit": git_commit(),
            "python": platform.python_version(),
            "model": bundle.name,
            "threads": options.threads,
            "rounds": max((len(each) for taken in seconds.values() for each in taken.values()), default=0),
            "load_before_and_after": [load_before, os.getloadavg()[0]],
            "versions": {name: each.about["versions"] for name, each in workers.items()},
            "rows": rows,
            "seconds": seconds,
        }
        options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def line(row: Mapping[str, Any]) -> str:
    """For people."""
    if not row.get("ratio"):
        return f"{row['work']:38} {row['peer']:34} {row['note']}"
    between = ", ".join(f"{each:.2f}" for each in row["ratio_interval"] or ())
    ratios = f"{row['ratio']:6.2f}x [{between}]"
    return f"{row['work']:38} {row['peer']:34} {row['ms']:10.2f} ms {row['ours_ms']:10.2f} ms {ratios}  {row['note']}"


if __name__ == "__main__":
    main()
