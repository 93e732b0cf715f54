"""All GPU figures in one call of under ten minutes: the gate kernel, the network in torch, `uniecs bench` on the GPU.

    python benchmarks/gpu/h200.py --out FOLDER [--bundle FOLDER]

NOT YET RUN ON A GPU. Each part is a process with a limit of its own, whose output and results go into FOLDER; one
that fails or finds a package missing is a line of summary.json, and the others go on. nvidia-smi is asked for power,
clocks and temperature every second; nothing is set. `uniecs bench` takes a few stages in one precision, in full rounds
(none of --quick, whose figures are not for use); its times are the clock's, to the result on the CPU. --bundle "none"
leaves out what needs ONNX Runtime on CUDA or TensorRT. Needs `uniecs[train,kernels]`, nvcc; for the bundle's parts
onnxruntime-gpu or TensorRT.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
LIMIT_S = 570.0
UNIECS = (sys.executable, "-c", "import sys; from uniecs.cli import main; sys.exit(main())")
STAGES = "graph,encode"  # some 80 s in five rounds


@dataclass(frozen=True)
class Part:
    """A command, and the seconds that it may take at most."""

    name: str
    command: tuple[str, ...]
    limit_s: float


@dataclass(frozen=True)
class Outcome:
    """What became of a part."""

    name: str
    status: str
    seconds: float
    tail: str


def parts(out: Path, bundle: str) -> list[Part]:
    """In their order: what matters most comes first, for the last may be cut."""
    found = [
        Part("model", (sys.executable, str(HERE / "model.py"), "--out", str(out / "model.json")), 180),
        Part(
            "gate",
            (sys.executable, str(HERE.parent / "gate_kernel.py"), "--rounds", "10", "--out", str(out / "gate.json")),
            180,
        ),
    ]
    if bundle == "none":
        return found
    bench = (*UNIECS, "bench", bundle, "--stages", STAGES, "--device", "cuda")
    found.append(Part("build", (*UNIECS, "build", bundle), 120))
    for engine, precision in (("tensorrt", "fp16"), ("onnxruntime", "fp32")):
        command = (*bench, "--backend", engine, "--precision", precision, "--out", str(out / f"bench-{engine}.json"))
        found.append(Part(engine, command, 120))
    return found


def run(part: Part, out: Path, limit_s: float) -> Outcome:
    """Run a part to its end or its limit; its output goes to FOLDER/NAME.log."""
    log, start = out / f"{part.name}.log", time.monotonic()
    try:
        with log.open("w") as file:
            done = subprocess.run(part.command, stdout=file, stderr=file, timeout=limit_s, check=False)
        status = "fine" if done.returncode == 0 else f"exit status {done.returncode}"
    except subprocess.TimeoutExpired:
        status = f"cut off after {limit_s:.0f} s"
    return Outcome(part.name, status, round(time.monotonic() - start, 1), log.read_text(errors="replace")[-500:])


def watch(states: list[dict[str, Any]], stop: threading.Event) -> None:
    """Note the GPU's state every second."""
    from uniecs.bench.machine import gpu_state

    start = time.monotonic()
    while not stop.wait(1.0):
        states.append({"s": round(time.monotonic() - start, 1), "gpus": gpu_state()})


def run_all(found: Sequence[Part], out: Path, limit_s: float = LIMIT_S) -> dict[str, Any]:
    """Run the parts within `limit_s` in all; the summary."""
    states, stop, outcomes = list[dict[str, Any]](), threading.Event(), list[Outcome]()
    watcher = threading.Thread(target=watch, args=(states, stop), daemon=True)
    watcher.start()
    end = time.monotonic() + limit_s
    for part in found:
        left = end - time.monotonic()
        if left < 10:
            outcomes.append(Outcome(part.name, "not started: no time left", 0.0, ""))
            continue
        outcomes.append(run(part, out, min(left, part.limit_s)))
        print(f"{part.name}: {outcomes[-1].status}, {outcomes[-1].seconds} s", flush=True)
    stop.set()
    watcher.join()
    return {"format": "uniecs-gpu", "parts": [asdict(each) for each in outcomes], "gpu": states}


def main() -> None:
    """Run all parts and write FOLDER/summary.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--bundle", default="none", help="packaged name or bundle folder (none)")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    summary = run_all(parts(options.out, options.bundle), options.out)
    (options.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
