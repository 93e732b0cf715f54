"""The vectors that `index.py` searches, the exact answers, and the sums that need neither index nor clock."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from uniecs.bench import inputs

Vectors: TypeAlias = npt.NDArray[np.float32]  # (n, dim), unit rows
Mask: TypeAlias = npt.NDArray[np.bool_]  # (n,)

DIM = 256
K = 10
PRODUCTS = Path(__file__).resolve().parents[1] / "../shared/data/myntra"
CACHE = Path(__file__).resolve().parents[1] / "runs/index-benchmark"
BLOCK = 100  # queries compared with all vectors at once
TIE = 1e-5  # vectors this near to the tenth count as found: products with one photo and title are equal


@dataclass(frozen=True)
class Dataset:
    """Vectors, and queries that are none of them."""

    name: str
    vectors: Vectors
    queries: Vectors


@dataclass(frozen=True)
class Point:
    """One setting of one contender."""

    ef: int
    recall: float
    qps: float


def clustered(count: int, queries: int, seed: int = 0) -> Dataset:
    """Clustered vectors of `DIM`."""
    return Dataset(f"clustered {count:,}", *inputs.clustered(count, queries, DIM, seed))


def far_queries(vectors: Vectors, count: int) -> Vectors:
    """Vectors of a set with noise of their own length, far from all of it."""
    some = np.random.default_rng(2).choice(len(vectors), min(count, len(vectors)), replace=False)
    return inputs.strayed(vectors[some], noise=1.0)


def real(folder: Path, queries: int) -> Dataset | None:
    """The training products of `folder` by `mini`, multimodal, and titles of held-out ones; None where there are none.

    Embedded once (minutes), then kept in runs/.
    """
    if not (folder / "train.parquet").is_file():
        return None
    import uniecs

    encoder = uniecs.load("mini")
    path = CACHE / f"mini-{encoder.model_id.replace(':', '-')[:40]}.npz"
    if not path.is_file():
        import pyarrow.parquet as parquet

        table = parquet.read_table(folder / "train.parquet", columns=["title", "image"])
        vectors = [
            encoder.encode(
                texts=[title.as_py() for title in batch["title"]],
                images=[io.BytesIO(image.as_py()["bytes"]) for image in batch["image"]],
            )
            for batch in table.to_batches(max_chunksize=256)
        ]
        titles = parquet.read_table(folder / "val.parquet", columns=["title"])["title"].to_pylist()
        asked = encoder.encode(texts=list(dict.fromkeys(titles)))
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, vectors=np.concatenate(vectors), queries=asked)
    kept = np.load(path)
    some = np.random.default_rng(0).permutation(len(kept["queries"]))[:queries]
    return Dataset("mini, real products", kept["vectors"], kept["queries"][some])


def datasets(sizes: Sequence[str], queries: int, products: Path) -> Iterator[Dataset]:
    """One for each of `sizes`: "mini", or the number of clustered vectors."""
    for size in sizes:
        found = real(products, queries) if size == "mini" else clustered(int(size), queries)
        if found is None:
            print(f"left out: mini, for {products} is not there", flush=True)
        else:
            yield found


def selections(vectors: Vectors, shares: Sequence[float], seed: int = 5) -> Iterator[tuple[str, float, Mask]]:
    """Masks with a share of the rows: any of them, and those that lie furthest in one random direction."""
    random = np.random.default_rng(seed)
    along = vectors @ random.standard_normal(vectors.shape[1], dtype=np.float32)
    for share in shares:
        count = max(1, round(share * len(vectors)))
        mask = np.zeros(len(vectors), np.bool_)
        mask[random.choice(len(vectors), count, replace=False)] = True
        yield "random", share, mask
        mask = np.zeros(len(vectors), np.bool_)
        mask[np.argpartition(-along, count - 1)[:count]] = True
        yield "half space", share, mask


def worst_wanted(vectors: Vectors, queries: Vectors, mask: Mask | None = None) -> npt.NDArray[np.float32]:
    """For each query the similarity (n,) of the exact K-th, or last, of the vectors that the mask lets through."""
    passing = vectors if mask is None or mask.all() else vectors[mask]
    worst = []
    for start in range(0, len(queries), BLOCK):
        scores = queries[start : start + BLOCK] @ passing.T
        worst.append(np.partition(scores, max(0, len(passing) - K), axis=1)[:, max(0, len(passing) - K)])
    return np.concatenate(worst)


def recall(
    found: npt.NDArray[np.int64],
    vectors: Vectors,
    queries: Vectors,
    worst: npt.NDArray[np.float32],
    mask: Mask | None = None,
) -> float:
    """Share of the exact K that `found` (n, any; places of vectors, -1 for none) has; ties with the K-th count.

    What comes twice counts once, what the mask excludes never.
    """
    wanted = min(K, len(vectors) if mask is None else int(mask.sum()))
    hits = 0
    for query, places, least in zip(queries, found, worst, strict=True):
        places = np.unique(places[places >= 0])
        if mask is not None:
            places = places[mask[places]]
        hits += min(wanted, int((vectors[places] @ query >= least - TIE).sum()))
    return hits / (wanted * len(queries))


def qps_at(points: Sequence[Point], wanted: float) -> float | None:
    """QPS at a recall: log QPS taken as linear in recall between the two settings around it.

    The fastest setting where all are above, None where none reaches it. Slower settings of no more recall are no part
    of the curve.
    """
    found = nearest_to(points, wanted)
    return found.qps if found.recall >= wanted else None


def nearest_to(points: Sequence[Point], wanted: float) -> Point:
    """As `qps_at`, with the recall: that of the best setting where none reaches `wanted`. `ef` is of the upper one."""
    curve: list[Point] = []
    for point in sorted(points, key=lambda each: (-each.qps, -each.recall)):
        if not curve or point.recall > curve[-1].recall:
            curve.append(point)
    above = next((place for place, point in enumerate(curve) if point.recall >= wanted), len(curve) - 1)
    high = curve[above]
    if above == 0 or high.recall < wanted:
        return high
    low = curve[above - 1]
    share = (wanted - low.recall) / (high.recall - low.recall)
    return Point(high.ef, wanted, float(low.qps * (high.qps / low.qps) ** share))


def around(tried: Sequence[tuple[int, float]], wanted: float) -> set[int]:
    """Of (ef, recall), ef ascending, the ef on both sides of a recall; the last where none reaches it."""
    above = next((place for place, (_, reached) in enumerate(tried) if reached >= wanted), len(tried) - 1)
    return {ef for ef, _ in tried[max(0, above - 1) : above + 1]}


def best_of(values: dict[str, float | None]) -> tuple[str, float] | None:
    """The name and value of the greatest; None if there is none."""
    there = {name: value for name, value in values.items() if value is not None}
    return max(there.items(), key=lambda each: each[1]) if there else None
