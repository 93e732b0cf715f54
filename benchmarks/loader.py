"""The training loader on streamed pair files: its memory over a million rows, its speed against the model's appetite.

    python benchmarks/loader.py memory [--rows 1000000] [--out FILE.json]
    python benchmarks/loader.py speed [MODEL ...] [--rounds 20] [--out FILE.json]

`memory` writes synthetic pairs (12x16 px photos, a title of eight words) as Parquet files and streams one epoch of them
through the trainer's own loader: resident memory at every twentieth of the way. `speed` times batches of photos of the
model's own size and steps of the model in turn: samples/s of the loader over samples/s of the step. Needs
`uniecs[train,bench]`.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow
import torch
from PIL import Image
from pyarrow import parquet
from tqdm import tqdm

from uniecs.bench.machine import describe_machine
from uniecs.bundle import locate_bundle
from uniecs.catalog import Product
from uniecs.config import MODELS, ModelConfig
from uniecs.preprocess import Tokenizer, read_tokenizer
from uniecs.trainer.data import Batch, batches
from uniecs.trainer.distributed import World
from uniecs.trainer.loop import auto_precision, fast_attention
from uniecs.trainer.mining import pair_record, pair_schema
from uniecs.trainer.model import UniECS
from uniecs.trainer.pair_files import PairFiles
from uniecs.trainer.settings import AugmentSettings
from uniecs.trainer.step import Stepper

ALONE = World(0, 1, torch.device("cpu"))
ROWS_PER_FILE, ROWS_PER_GROUP, SHUFFLE = 100_000, 1024, 8192
PHOTOS = 512
WORDS = ("red", "blue", "cotton", "leather", "women", "men", "striped", "shirt", "shoes", "bag", "watch", "dress")


def photos(width_px: int, height_px: int) -> list[bytes]:
    """Smooth random pictures as JPEG, so that their files are about as large as those of real photos."""
    random, made = np.random.default_rng(0), []
    for _ in range(PHOTOS):
        small = Image.fromarray(random.integers(0, 256, (12, 9, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        small.resize((width_px, height_px), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=85)
        made.append(buffer.getvalue())
    return made


def write_pairs(folder: Path, rows: int, width_px: int, height_px: int) -> None:
    """Pair files of `rows` rows in the layout of `uniecs pairs`, one row group at a time."""
    made, random = photos(width_px, height_px), np.random.default_rng(1)
    writer = None
    for start in range(0, rows, ROWS_PER_GROUP):
        if start // ROWS_PER_FILE != (start - ROWS_PER_GROUP) // ROWS_PER_FILE or writer is None:
            if writer:
                writer.close()
            writer = parquet.ParquetWriter(folder / f"pairs-{start // ROWS_PER_FILE:05d}.parquet", pair_schema())
        group = [
            pair_record(product(made, random, f"trigger-{row}"), product(made, random, f"recall-{row}"))
            for row in range(start, min(start + ROWS_PER_GROUP, rows))
        ]
        writer.write_table(pyarrow.Table.from_pylist(group, pair_schema()))
    if writer:
        writer.close()


def product(made: list[bytes], random: np.random.Generator, name: str) -> Product:
    """One with a random photo of `made` and a title of eight words."""
    return Product(name, " ".join(random.choice(WORDS, 8)), made[int(random.integers(len(made)))])


def loader(folder: Path, config: ModelConfig, batch_pairs: int, stop: int) -> Iterator[Batch]:
    """The trainer's own batches of the files in `folder`."""
    tokenizer = Tokenizer(read_tokenizer(locate_bundle("mini")), config.preprocessing.max_tokens)
    pairs = PairFiles(str(folder / "*.parquet"), SHUFFLE)
    settings = AugmentSettings(token_dropout=0.15)
    return batches(pairs, tokenizer, config, settings, batch_pairs=batch_pairs, seed=0, start=0, stop=stop, world=ALONE)


def memory(rows: int) -> dict[str, Any]:
    """Resident memory in MiB at every twentieth of one epoch over `rows` synthetic pairs."""
    batch_pairs, points = 512, 20
    steps = rows // batch_pairs
    if steps < points:
        raise SystemExit(f"--rows is {rows}; expected at least {points * batch_pairs}")
    process, resident = psutil.Process(), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # Another process, whose memory is not this one's.
        writer = multiprocessing.get_context("spawn").Process(target=write_pairs, args=(folder, rows, 12, 16))
        writer.start()
        writer.join()
        size = sum(each.stat().st_size for each in folder.iterdir())
        made = loader(folder, MODELS["tiny"], batch_pairs, steps)
        for step, _ in enumerate(tqdm(made, total=steps, unit="batch"), 1):
            if step % (steps // points) == 0:
                resident.append(round(process.memory_info().rss / 2**20, 1))
    return {"rows": rows, "shuffle_pairs": SHUFFLE, "files_mib": round(size / 2**20), "resident_mib": resident}


def speed(name: str, rounds: int) -> dict[str, Any]:
    """Medians of a batch of the loader and of a step of the model on it, timed in turn."""
    config = MODELS[name]
    batch_pairs = 64 if name != "base" else 4
    p = config.preprocessing
    model = UniECS(config).train()
    stepper = Stepper(model, ALONE, precision=auto_precision(ALONE.device), grad_at="embeddings", micro_products=None)
    weights = torch.ones(6)
    seconds: dict[str, list[float]] = {"load": [], "step": []}
    with tempfile.TemporaryDirectory() as folder, fast_attention(model):
        write_pairs(Path(folder), 2 * ROWS_PER_GROUP, p.width_px, p.height_px)
        for turn in range(rounds + 2):
            start = time.perf_counter()
            some = list(loader(Path(folder), config, batch_pairs, 4))
            loaded = time.perf_counter()
            stepper.backward(some[0], weights)
            model.zero_grad()
            if turn >= 2:
                seconds["load"].append((loaded - start) / len(some))
                seconds["step"].append(time.perf_counter() - loaded)
    medians = {what: float(np.median(each)) for what, each in seconds.items()}
    ratio = medians["step"] / medians["load"]
    return {"model": name, "batch_pairs": batch_pairs, "loader_over_step": round(ratio, 2), "median_s": medians}


def main() -> None:
    """Print the figures; write them to --out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("memory", "speed"))
    parser.add_argument("models", nargs="*", default=["mini", "base"])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    report: Any
    if options.what == "memory":
        report = memory(options.rows)
        after = report["resident_mib"][1:]
        print(f"{report['rows']} pairs, {report['files_mib']} MiB of files")
        print(f"resident MiB from a tenth of the way on: {min(after)} to {max(after)}; at the end {after[-1]}")
    else:
        report = {"machine": describe_machine(), "torch": torch.__version__, "rounds": options.rounds}
        report["models"] = [speed(name, options.rounds) for name in options.models]
        for each in report["models"]:
            print(f"{each['model']}: the loader gives {each['loader_over_step']} times what a training step takes")
    if options.out:
        options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
