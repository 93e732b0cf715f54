"""Pairs of similar products from interaction logs (`uniecs pairs`): co-clicks in a session, similar in both modalities.

The paper's rule: two products that a user looked at in one session are a pair when both their images and their texts
have a similarity above 0.75; each product is in at most one pair. Everything here is a function of its arguments:
equal logs give equal pairs, whatever the order of their rows.
"""

from __future__ import annotations

import csv
import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from uniecs.catalog import Product, read_records
from uniecs.config import StrictConfig
from uniecs.durable import can_be_made
from uniecs.errors import CatalogError, ConfigError
from uniecs.evaluation import PairEncoder, embed_all
from uniecs.trainer.pairs import connected

COLUMNS = ("user", "item", "time")
CHUNK = 256


@dataclass(frozen=True)
class MiningSettings(StrictConfig):
    """When clicks belong together, when products are similar, and how the pairs are split.

    A session ends after `session_minutes` without a click of its user; each of its products, in the order of their
    first clicks, is paired with the `window` before it. `val` and `test` are shares of the groups of connected
    products.
    """

    session_minutes: float = 30.0
    window: int = 10
    min_image_similarity: float = 0.75
    min_text_similarity: float = 0.75
    val: float = 0.05
    test: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.session_minutes > 0 or self.window < 1:
            raise ConfigError(f"session_minutes and window must be positive; got {self}")
        if not all(-1 <= each <= 1 for each in (self.min_image_similarity, self.min_text_similarity)):
            raise ConfigError(f"similarities are cosines, from -1 to 1; got {self}")
        if not (self.val >= 0 and self.test >= 0 and self.val + self.test < 1):
            raise ConfigError(f"val and test are shares that leave some for training; got {self.val} and {self.test}")


@dataclass(frozen=True)
class MinedPairs:
    """Pairs (trigger id, recall id) of each split, and how many of what were dropped for which reason."""

    splits: Mapping[str, Sequence[tuple[str, str]]]
    report: Mapping[str, int]


@dataclass
class Clicks:
    """A log as columns: codes of users and items, seconds, the items' ids by code, and the rows left out."""

    users: npt.NDArray[np.int64]
    items: npt.NDArray[np.int64]
    seconds: npt.NDArray[np.float64]
    ids: Sequence[str]
    dropped: Counter[str] = field(default_factory=Counter)


def read_clicks(path: Path) -> Clicks:
    """Read a .csv, .jsonl or .parquet log: user, item, time (seconds, or ISO 8601; UTC without a zone).

    Rows with an empty or unreadable value are counted and left out. Raises `CatalogError` for an unusable file.
    """
    users: dict[str, int] = {}
    items: dict[str, int] = {}
    rows: list[tuple[int, int]] = []
    seconds: list[float] = []
    dropped: Counter[str] = Counter()
    for record in read_records(path, COLUMNS):
        if not isinstance(record, Mapping):
            dropped["rows that cannot be read"] += 1
            continue
        user, item, moment = _text(record.get("user")), _text(record.get("item")), _seconds(record.get("time"))
        if not user or not item:
            dropped["rows without a user or an item"] += 1
        elif moment is None:
            dropped["rows whose time cannot be read"] += 1
        else:
            rows.append((users.setdefault(user, len(users)), items.setdefault(item, len(items))))
            seconds.append(moment)
    if not rows:
        raise CatalogError(f"{path} has no usable row of {','.join(COLUMNS)}")
    codes = np.array(rows, np.int64)
    # Codes in the order of the ids, not of the rows: they settle clicks of one second.
    ids = sorted(items)
    rank = np.empty(len(ids), np.int64)
    rank[[items[each] for each in ids]] = np.arange(len(ids))
    return Clicks(codes[:, 0], rank[codes[:, 1]], np.array(seconds), ids, dropped)


def _text(value: object) -> str:
    """What a cell says; "" for one that is empty (None, or NaN as pandas has it)."""
    return "" if value is None or value != value else str(value).strip()


def _seconds(value: object) -> float | None:
    """Seconds since 1970, or None for what is no time; digits alone are seconds, not a date."""
    try:
        seconds = float(_text(value))
        return seconds if math.isfinite(seconds) else None
    except ValueError:
        pass
    try:
        moment = value if isinstance(value, datetime) else datetime.fromisoformat(_text(value))
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


def co_clicks(clicks: Clicks, settings: MiningSettings) -> Counter[tuple[str, str]]:
    """In how many sessions each two items were clicked together; the key's first item was clicked first there.

    Where sessions differ in the order, the more frequent one is the key (the smaller id first if they are equal).
    """
    order = np.lexsort((clicks.items, clicks.seconds, clicks.users))
    users, items, seconds = clicks.users[order], clicks.items[order], clicks.seconds[order]
    starts = np.flatnonzero((np.diff(users) != 0) | (np.diff(seconds) > settings.session_minutes * 60)) + 1
    ordered: Counter[tuple[int, int]] = Counter()
    for session in np.split(items, starts):
        distinct = list(dict.fromkeys(session.tolist()))
        ordered.update(
            (earlier, later)
            for place, later in enumerate(distinct)
            for earlier in distinct[max(0, place - settings.window) : place]
        )
    found: Counter[tuple[str, str]] = Counter()
    for (one, two), count in ordered.items():
        back = ordered.get((two, one), 0)
        if (count, clicks.ids[two]) > (back, clicks.ids[one]):
            found[clicks.ids[one], clicks.ids[two]] = count + back
    return found


def mine(
    clicks: Clicks,
    products: Mapping[str, Product],
    image_encoder: PairEncoder,
    text_encoder: PairEncoder,
    settings: MiningSettings,
) -> MinedPairs:
    """Pairs of `products` from a log; `image_encoder` embeds their images, `text_encoder` their titles.

    Of the co-clicked products those stay whose similarities reach both thresholds. Where a product could be in several
    pairs, the pair of the most sessions wins, then the most similar one. Products that are connected by such pairs, or
    that share a title, go to one split. Raises `InputError` for embeddings that are not finite.
    """
    counts = co_clicks(clicks, settings)
    report = Counter({"clicks": len(clicks.items), "co-clicked pairs": len(counts), **clicks.dropped})
    candidates = []
    for pair in sorted(counts):
        known = [products.get(each) for each in pair]
        if None in known:
            report["dropped: a product is not in the catalogue"] += 1
        elif any(each is None or each.title is None or each.image is None for each in known):
            report["dropped: a product lacks its title or image"] += 1
        else:
            candidates.append(pair)
    ids = sorted({each for pair in candidates for each in pair})
    place = {each: i for i, each in enumerate(ids)}
    images, bad_images = embed_all(image_encoder, None, [products[each].image for each in ids], "images")
    texts, bad_texts = embed_all(text_encoder, [products[each].title for each in ids], None, "texts")
    kept: list[tuple[float, float, str, str]] = []
    for one, two in candidates:
        a, b = place[one], place[two]
        if {a, b} & (bad_images.keys() | bad_texts.keys()):
            report["dropped: an image or a title cannot be read"] += 1
            continue
        image, text = float(images[a] @ images[b]), float(texts[a] @ texts[b])
        if not image >= settings.min_image_similarity:
            report["dropped: the images are not similar"] += 1
        elif not text >= settings.min_text_similarity:
            report["dropped: the texts are not similar"] += 1
        else:
            kept.append((-counts[one, two], -(image + text), one, two))
    matched, used = [], set[str]()
    for *_, one, two in sorted(kept):
        if used & {one, two}:
            report["dropped: a product is in a better pair"] += 1
        else:
            used |= {one, two}
            matched.append((one, two))
    titles = {each: str(products[each].title).casefold() for each in used}
    groups = leak_groups([(one, two) for *_, one, two in kept], titles)
    splits = split(sorted(matched), groups, settings)
    report.update({f"{name} pairs": len(pairs) for name, pairs in splits.items()})
    return MinedPairs(splits, dict(report))


def leak_groups(pairs: Sequence[tuple[str, str]], titles: Mapping[str, str]) -> dict[str, str]:
    """The group of each product, named by its smallest id: what pairs or equal titles connect is one group."""
    first: dict[str, str] = {}
    for each, title in titles.items():
        first.setdefault(title, each)
    return connected([*pairs, *((first[title], each) for each, title in titles.items())])


def split(
    pairs: Sequence[tuple[str, str]], groups: Mapping[str, str], settings: MiningSettings
) -> dict[str, list[tuple[str, str]]]:
    """Whole groups to train, val and test, by a hash of the group's name: the same group falls alike in every run."""
    splits: dict[str, list[tuple[str, str]]] = {"train": [], "val": [], "test": []}
    for one, two in pairs:
        digest = hashlib.sha256(f"{settings.seed}:{groups[one]}".encode()).digest()
        place = int.from_bytes(digest[:8]) / 2**64
        name = "test" if place < settings.test else "val" if place < settings.test + settings.val else "train"
        splits[name].append((one, two))
    return splits


def refuse_existing(folder: Path) -> None:
    """Raise `CatalogError` if `folder` holds anything or could not be made: for before the work, and before writing."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CatalogError(f"{folder} already holds something; choose another folder")
    if not can_be_made(folder):
        raise CatalogError(
            f"{folder} cannot be written: its folder, or what is above it, is none or cannot be written to"
        )


def write_pairs(folder: Path, mined: MinedPairs, products: Mapping[str, Product]) -> None:
    """Write each split as NAME_pairs.csv (for `data.pairs`) and NAME.parquet in the benchmark's layout.

    Its columns: trigger_id, recall_id, trigger_text, trigger_image, recall_text, recall_image, an image as {bytes,
    path}. Raises `CatalogError` if `folder` holds anything, or cannot be written.
    """
    import pyarrow
    import pyarrow.parquet as parquet

    refuse_existing(folder)
    schema = pair_schema()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, pairs in mined.splits.items():
            with (folder / f"{name}_pairs.csv").open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([("trigger_id", "recall_id"), *pairs])
            with parquet.ParquetWriter(folder / f"{name}.parquet", schema) as writer:
                for start in range(0, len(pairs), CHUNK):
                    rows = [pair_record(products[one], products[two]) for one, two in pairs[start : start + CHUNK]]
                    writer.write_table(pyarrow.Table.from_pylist(rows, schema))
    except OSError as error:
        raise CatalogError(f"{folder} cannot be written: {error}") from error


def pair_schema() -> Any:
    """The Arrow schema of a file of pairs."""
    import pyarrow

    image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    kinds = {"id": pyarrow.string(), "text": pyarrow.string(), "image": image}
    return pyarrow.schema([(f"{side}_{kind}", kinds[kind]) for kind in kinds for side in ("trigger", "recall")])


def pair_record(trigger: Product, recall: Product) -> dict[str, object]:
    """One row of a file of pairs."""
    record: dict[str, object] = {}
    for side, product in (("trigger", trigger), ("recall", recall)):
        is_bytes = isinstance(product.image, bytes)
        record |= {
            f"{side}_id": product.id,
            f"{side}_text": product.title,
            f"{side}_image": {
                "bytes": product.image if is_bytes else None,
                "path": None if is_bytes else str(product.image),
            },
        }
    return record


def format_report(mined: MinedPairs) -> str:
    """The report as aligned lines."""
    width = max(map(len, mined.report))
    return "\n".join(f"{what.ljust(width)}  {count:>12,}" for what, count in mined.report.items())
