"""Time of one query, end to end from string or picture to embedding: backends and precisions as ratios in one run.

    python benchmarks/encode.py [MODEL] [--rounds 200] [--threads 2] [--out FILE.json]

Every contender embeds the same query in turn, so that a slow moment of the machine meets all of them; the figure is
the ratio of medians to the first contender (OpenVINO fp32). Needs `uniecs[bench]`.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np

import uniecs

CONTENDERS = (("openvino", "fp32"), ("openvino", "bf16"), ("onnxruntime", "fp32"))
BATCHES = (1, 32)


def queries() -> dict[str, dict[str, list[Any]]]:
    """One query of each kind: a title of about 12 tokens, a noisy picture of 240x320 px, both."""
    picture = np.random.default_rng(0).integers(0, 256, (320, 240, 3), dtype=np.uint8)
    title = "Aster Men Navy Blue Striped Cotton Round Neck T-shirt"
    return {"text": {"texts": [title]}, "image": {"images": [picture]}, "both": {"texts": [title], "images": [picture]}}


def measure(encoders: dict[str, uniecs.Encoder], items: dict[str, list[Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each round for each contender, interleaved, after three rounds of warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in encoders}
    for turn in range(rounds + 3):
        for name, encoder in encoders.items():
            start = time.perf_counter()
            encoder.encode(**items)
            if turn >= 3:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def main() -> None:
    """Print the table; write all ratios and the raw medians to --out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="mini")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    encoders: dict[str, uniecs.Encoder] = {}
    for backend, precision in CONTENDERS:
        try:
            encoder = uniecs.load(options.model, backend=backend, precision=precision, threads=options.threads)
            encoders[f"{backend} {precision}"] = encoder
        except (uniecs.BackendError, uniecs.MissingExtraError) as error:
            print(f"left out: {backend} {precision}: {error}")
    rows = []
    for kind, query in queries().items():
        for batch in BATCHES:
            items = {side: values * batch for side, values in query.items()}
            seconds = measure(encoders, items, max(5, options.rounds // batch))
            medians = {name: float(np.median(each)) for name, each in seconds.items()}
            first = medians[next(iter(medians))]
            ratios = {name: round(value / first, 3) for name, value in medians.items()}
            rows.append({"query": kind, "batch": batch, "ratio_to_first": ratios, "median_s": medians})
            print(f"{kind:6} batch {batch:3}: " + "  ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items()))
    if options.out:
        report = {"model_id": next(iter(encoders.values())).model_id, "threads": options.threads, "rows": rows}
        report["machine"] = f"{platform.machine()} {platform.python_version()}"
        options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
