"""Shopper's queries derived from a catalogue's attributes, for the two-tower recipe on real products.

    python benchmarks/attribute_queries.py CATALOG --columns colour gender article_type --out queries.csv

Writes query,product_id rows: the query is the values of some of the columns in lower case, one or more of them left out
at random but for the last, so that queries are of different breadth ("navy blue men shirts", "blue shirts", "shirts").
Every product gets `--each` queries. The same arguments give the same file.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import uniecs
from uniecs.evaluation import read_products


def derive(products: Sequence[uniecs.Product], columns: Sequence[str], each: int, seed: int) -> list[tuple[str, str]]:
    """Distinct (query, product id) rows; products that lack one of `columns` give none."""
    random = np.random.default_rng(seed)
    rows: dict[tuple[str, str], None] = {}
    for product in products:
        values = [product.attributes.get(column) for column in columns]
        if any(value is None for value in values):
            continue
        for _ in range(each):
            kept = random.random(len(columns)) < 0.7
            kept[-1] = True
            words = [str(value).lower() for value, keep in zip(values, kept.tolist(), strict=True) if keep]
            rows[" ".join(words), product.id] = None
    return list(rows)


def main() -> None:
    """Write the file and say how many rows and distinct queries it has."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("catalog", type=Path)
    parser.add_argument("--columns", nargs="+", required=True, help="attributes, the indispensable one last")
    parser.add_argument("--each", type=int, default=2, help="queries of each product (2)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="the .csv to write")
    options = parser.parse_args()
    try:
        write(options)
    except (uniecs.UniecsError, OSError) as error:
        raise SystemExit(f"attribute_queries: error: {error}") from error


def write(options: argparse.Namespace) -> None:
    """Derive the queries and write them."""
    products, _ = read_products(options.catalog)
    complete = [product for product in products.values() if product.title and product.image is not None]
    rows = derive(complete, options.columns, options.each, options.seed)
    if not rows:
        raise SystemExit(f"no product of {options.catalog} has all of {', '.join(options.columns)}")
    with options.out.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("query", "product_id"), *rows])
    print(f"{options.out}: {len(rows)} rows, {len({query for query, _ in rows})} distinct queries")


if __name__ == "__main__":
    main()
