"""Speed of the store alone, without graph and encoder: durable puts, reads, filters, opening, the full check.

    python benchmarks/store.py --products 100000 --durability full --batch 64 --folder /var/tmp/bench-store

Products are drawn: a title, five attributes of 2 to 20,000 values, one unit vector of 256. Prints one JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from uniecs.catalog import Product
from uniecs.filters import Between, OneOf
from uniecs.index_folder import BundleReference, IndexConfig
from uniecs.store import Store

DIM = 256
READS = 1000


def drawn(number: int) -> Product:
    """The same product for the same number."""
    draw = random.Random(number)
    colour = f"colour {draw.randrange(46)}"
    attributes: dict[str, Any] = {
        "gender": draw.choice(["Men", "Women"]),
        "colour": colour,
        "brand": f"brand {draw.randrange(500)}",
        "price": round(draw.random() * 200, 2),
        "year": 2005 + number % 15,
    }
    return Product(f"sku-{number}", f"{colour} cotton kurta {number}", f"images/{number}.jpg", attributes)


def put_all(store: Store, products: int, batch: int) -> float:
    """Products a second, the drawing left out."""
    vectors = np.random.default_rng(0).standard_normal((4096, DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    spent = 0.0
    for start in range(0, products, batch):
        numbers = range(start, min(start + batch, products))
        items = [(drawn(number), {"multimodal": vectors[number % 4096]}) for number in numbers]
        before = time.perf_counter()
        store.put(items)
        spent += time.perf_counter() - before
    return products / spent


def percentiles_us(call: Callable[[], object]) -> dict[str, float]:
    """p50 and p99 of many calls, in microseconds."""
    times = []
    for _ in range(READS):
        before = time.perf_counter()
        call()
        times.append(time.perf_counter() - before)
    return {f"p{q}_us": round(float(np.percentile(times, q)) * 1e6, 1) for q in (50, 99)}


def seconds(call: Callable[[], object]) -> float:
    before = time.perf_counter()
    call()
    return time.perf_counter() - before


def measure(folder: Path, products: int, durability: Any, batch: int) -> dict[str, Any]:
    """Makes the store in `folder` and measures it."""
    config = IndexConfig()
    store = Store.create(
        folder,
        model_id="drawn",
        embed_dim=DIM,
        bundle=BundleReference(name="mini"),
        config=config,
        durability=durability,
    )
    found: dict[str, Any] = {"products": products, "durability": durability, "batch": batch}
    found["put_per_s"] = round(put_all(store, products, batch))
    store.close()
    found["bytes_per_product"] = round((folder / "store.sqlite").stat().st_size / products)
    found["open_ms"] = round(1e3 * seconds(lambda: Store.open(folder).close()), 2)
    store = Store.open(folder, durability)
    draw = random.Random(1)
    some = range(1, 11)
    found["products_10_cold"] = percentiles_us(lambda: store.products(draw.sample(range(1, products + 1), 10)))
    found["products_10_warm"] = percentiles_us(lambda: store.products(some))
    found["vectors_10"] = percentiles_us(lambda: store.vectors("multimodal", draw.sample(range(1, products + 1), 10)))
    found["row_of"] = percentiles_us(lambda: store.row_of(f"sku-{draw.randrange(products)}"))
    for predicate in (OneOf("gender", ("Men",)), OneOf("colour", ("colour 3",)), Between("price", 10, 20)):
        times = [seconds(lambda predicate=predicate: store.rows_matching(predicate)) for _ in range(5)]
        rows = len(store.rows_matching(predicate))
        found[f"filter_{predicate.key}"] = {"rows": rows, "ms": round(1e3 * min(times), 2)}
    found["vectors_after_per_s"] = round(products / seconds(lambda: list(store.vectors_after("multimodal", 0))))
    found["verify_per_s"] = round(products / seconds(store.verify))
    updates = [[(drawn(number), {}) for number in draw.sample(range(products), batch)] for _ in range(50)]
    found["update_per_s"] = round(50 * batch / sum(seconds(lambda items=items: store.put(items)) for items in updates))
    store.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--products", type=int, default=100_000)
    parser.add_argument("--durability", choices=("full", "batch"), default="full")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--folder", type=Path, required=True, help="made for this, and removed after it")
    args = parser.parse_args()
    if args.folder.exists():
        sys.exit(f"{args.folder} exists")
    try:
        print(json.dumps(measure(args.folder, args.products, args.durability, args.batch), indent=2))
    finally:
        shutil.rmtree(args.folder, ignore_errors=True)


if __name__ == "__main__":
    main()
