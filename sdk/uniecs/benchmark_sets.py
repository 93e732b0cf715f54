"""Public retrieval benchmarks in their own file layouts: M-BEER's pairs, FashionIQ, Fashion200K.

Each reader gives `RetrievalTask`s for `evaluate_tasks`, or products and pairs for the nine tasks. Nothing is
downloaded: what is missing is a `CatalogError` that says where it comes from.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from uniecs.catalog import Product, read_catalog, read_records
from uniecs.errors import CatalogError, TextError
from uniecs.evaluation import ROUNDING, PairEncoder, check_view, embed_all
from uniecs.preprocess import check_text

if TYPE_CHECKING:
    from uniecs.preprocess import ImageSource

KS = (1, 5, 10, 50)
QUERY_COLUMNS = ("query", "product_id")
PAIR_COLUMNS = ("trigger_text", "trigger_image", "recall_text", "recall_image")
FASHIONIQ_CATEGORIES = ("dress", "shirt", "toptee")
FASHION200K_CATEGORIES = ("dress", "jacket", "pants", "skirt", "top")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
FASHIONIQ_SOURCE = "https://github.com/XiaoxiaoGuo/fashion-iq"
FASHION200K_SOURCE = "https://github.com/xthan/fashion-200k"


@dataclass(frozen=True)
class Item:
    """What is embedded: a text, an image, or both."""

    text: str | None = None
    image: ImageSource | None = None


@dataclass(frozen=True)
class RetrievalTask:
    """Queries, candidates, and for each query the positions of the candidates that answer it."""

    name: str
    queries: tuple[Item, ...]
    candidates: tuple[Item, ...]
    answers: tuple[frozenset[int], ...]


def read_pair_set(path: str | Path) -> tuple[dict[str, Product], list[tuple[str, str]]]:
    """Products and pairs of a file in M-BEER's layout (as `uniecs pairs` writes it), for `evaluate_pairs`.

    A .parquet, .jsonl or .csv with the columns trigger_text, trigger_image, recall_text, recall_image. With
    trigger_id and recall_id rows of one product are one candidate; without them each side of a row is a product
    of its own. Raises `CatalogError` for a file or row that cannot be used.
    """
    products: dict[str, Product] = {}
    pairs = []
    for row, record in enumerate(read_records(Path(path), PAIR_COLUMNS)):
        one, two = read_pair(record, row, Path(path))
        products.setdefault(one.id, one)
        products.setdefault(two.id, two)
        pairs.append((one.id, two.id))
    if not pairs:
        raise CatalogError(f"{path} has no rows; expected the columns {', '.join(PAIR_COLUMNS)}")
    return products, pairs


def read_pair(record: object, row: int, path: Path) -> tuple[Product, Product]:
    """The two products of row number `row` of the file `path` in M-BEER's layout; raises `CatalogError`."""
    if not isinstance(record, dict):
        raise CatalogError(f"row {row} of {path} cannot be read: {record}")
    missing = [name for name in PAIR_COLUMNS if not record.get(name)]
    if missing:
        raise CatalogError(f"row {row} of {path} has no {missing[0]}; expected {', '.join(PAIR_COLUMNS)}")
    folder = path.absolute().parent
    sides = []
    for side in ("trigger", "recall"):
        identity = _written(record.get(f"{side}_id")) or f"{side}-{row}"
        image = _located(record[f"{side}_image"], folder)
        (item,) = read_catalog([{"id": identity, "title": record[f"{side}_text"], "image": image}])
        if not isinstance(item, Product):
            raise CatalogError(f"row {row} of {path} cannot be used: {item.error}")
        if item.title is None or item.image is None:
            lacks = "text" if item.title is None else "image"
            raise CatalogError(f"row {row} of {path} has no {side}_{lacks}; expected {', '.join(PAIR_COLUMNS)}")
        sides.append(item)
    if sides[0].id == sides[1].id:
        raise CatalogError(f"row {row} of {path} pairs {sides[0].id!r} with itself; expected two different ids")
    return sides[0], sides[1]


def _written(value: object) -> str:
    """A value as its file gives it, "" for none: 0 is a value."""
    return "" if value is None else str(value)


def _located(image: Any, folder: Path) -> Any:
    """An image as `read_catalog` takes it, a path made relative to the file's folder."""
    if isinstance(image, dict) and image.get("bytes") is None:
        image = image.get("path")
    return str(folder / image) if isinstance(image, str) and image.strip() else image


def read_fashioniq(folder: str | Path, split: str = "val") -> list[RetrievalTask]:
    """Composed retrieval, one task a category: an image and its two captions to the image they describe.

    Reads captions/cap.CATEGORY.SPLIT.json and image_splits/split.CATEGORY.SPLIT.json as published, and
    images/ASIN.png (or .jpg). The captions are joined by " and "; candidates are all images of the split. Raises
    `CatalogError` for missing or unusable files; the test split is published without its targets.
    """
    root = Path(folder)
    tasks = []
    for category in FASHIONIQ_CATEGORIES:
        names = _json_list(root / "image_splits" / f"split.{category}.{split}.json", FASHIONIQ_SOURCE)
        captions_file = root / "captions" / f"cap.{category}.{split}.json"
        entries = _json_list(captions_file, FASHIONIQ_SOURCE)
        if not all(isinstance(each, dict) and {"candidate", "captions", "target"} <= each.keys() for each in entries):
            raise CatalogError(f"{captions_file} has entries without a target; only train and val are published whole")
        for each in entries:
            _check_captions(each["captions"], captions_file)
        position = {name: place for place, name in enumerate(dict.fromkeys(map(str, names)))}
        unknown = [each["target"] for each in entries if each["target"] not in position]
        if unknown:
            raise CatalogError(f"{captions_file} names the target {unknown[0]!r}, which is not in the split")
        wanted = {*position, *(each["candidate"] for each in entries)}
        hint = f"download the URLs of {root}/image_url/asin2url.{category}.txt ({FASHIONIQ_SOURCE})"
        images = _images(root / "images", wanted, hint)
        tasks.append(
            RetrievalTask(
                f"{category} vt>v",
                tuple(Item(" and ".join(each["captions"]), images[each["candidate"]]) for each in entries),
                tuple(Item(image=images[name]) for name in position),
                tuple(frozenset({position[each["target"]]}) for each in entries),
            )
        )
    return tasks


def _check_captions(captions: object, path: Path) -> None:
    if not isinstance(captions, list) or not captions or not all(isinstance(each, str) for each in captions):
        raise CatalogError(f"{path} has the captions {captions!r:.80}; expected a list of strings")


def _json_list(path: Path, source: str) -> list[Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CatalogError(f"{path} is missing ({error}); get it from {source}") from error
    except ValueError as error:
        raise CatalogError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, list) or not content:
        raise CatalogError(f"{path} is not a list of entries; get it anew from {source}")
    return content


def _images(folder: Path, names: Iterable[str], hint: str) -> dict[str, str]:
    """The path of each name's image; `CatalogError` with the number of missing ones and where they come from."""
    present = {each.stem: each for each in folder.glob("*") if each.suffix.lower() in IMAGE_SUFFIXES}
    missing = sorted(name for name in names if name not in present)
    if missing:
        raise CatalogError(f"{folder} lacks {len(missing)} images, such as {missing[0]}.png: {hint}")
    return {name: str(present[name]) for name in names}


def read_fashion200k(folder: str | Path, split: str = "test") -> list[RetrievalTask]:
    """Text to image and image to text over all categories of Fashion200K.

    Reads labels/CATEGORY_SPLIT_detect_all.txt as published (path, detection score, description, separated by tabs) and
    the images at those paths below `folder` (women/...). An answer of a description is any image that has it; an
    image's answer is its description. Raises `CatalogError` for missing or unusable files.
    """
    root = Path(folder)
    rows = [row for category in FASHION200K_CATEGORIES for row in _labels(root, category, split)]
    missing = [path for path, _ in rows if not (root / path).is_file()]
    if missing:
        raise CatalogError(
            f"{root} lacks {len(missing)} of {len(rows)} images, such as {missing[0]}: unpack women.tar.gz of "
            f"{FASHION200K_SOURCE} there"
        )
    descriptions = {text: place for place, text in enumerate(dict.fromkeys(text for _, text in rows))}
    images = tuple(Item(image=str(root / path)) for path, _ in rows)
    texts = tuple(Item(text=text) for text in descriptions)
    with_text: list[set[int]] = [set() for _ in descriptions]
    for place, (_, text) in enumerate(rows):
        with_text[descriptions[text]].add(place)
    return [
        RetrievalTask("t>v", texts, images, tuple(map(frozenset, with_text))),
        RetrievalTask("v>t", images, texts, tuple(frozenset({descriptions[text]}) for _, text in rows)),
    ]


def _labels(root: Path, category: str, split: str) -> list[tuple[str, str]]:
    path = root / "labels" / f"{category}_{split}_detect_all.txt"
    try:
        # Not splitlines: a description may hold U+0085 and other characters that it takes for line ends.
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CatalogError(f"{path} cannot be read ({error}); get it from {FASHION200K_SOURCE}") from error
    rows = []
    for number, line in enumerate(lines, 1):
        cells = line.split("\t")
        if len(cells) != 3 or not cells[2].strip() or Path(cells[0]).is_absolute() or ".." in Path(cells[0]).parts:
            raise CatalogError(f"{path} line {number} is {line[:80]!r}; expected path, score and description")
        rows.append((cells[0], cells[2].strip()))
    return rows


def read_queries(path: str | Path) -> list[tuple[str, str]]:
    """(query, product id) rows of a .csv, .jsonl or .parquet file with the columns query and product_id.

    Raises `CatalogError` naming a row without one of them or with a query that is no text, and for a file without rows.
    """
    queries = []
    for row, record in enumerate(read_records(Path(path), QUERY_COLUMNS)):
        if not isinstance(record, dict) or not all(_written(record.get(each)).strip() for each in QUERY_COLUMNS):
            raise CatalogError(f"row {row} of {path} is {record!r:.80}; expected {' and '.join(QUERY_COLUMNS)}")
        try:
            queries.append((check_text(str(record["query"])), str(record["product_id"])))
        except TextError as error:
            raise CatalogError(f"row {row} of {path} cannot be used (is the file UTF-8?): {error}") from error
    if not queries:
        raise CatalogError(f"{path} has no rows; expected the columns {', '.join(QUERY_COLUMNS)}")
    return queries


def query_tasks(products: Mapping[str, Product], queries: Iterable[tuple[str, str]]) -> list[RetrievalTask]:
    """Words to the products that answer them, by their title, their image and both: t>t, t>v, t>vt.

    The candidates are all `products` with a title and an image; a query's answers are all products that its rows name.
    Raises `CatalogError` for a product that is not among them.
    """
    whole = {name: each for name, each in products.items() if each.title is not None and each.image is not None}
    place = {name: i for i, name in enumerate(whole)}
    answers: dict[str, set[int]] = {}
    for query, name in queries:
        if name not in place:
            raise CatalogError(f"query {query!r} names product {name!r}, which is not there with a title and an image")
        answers.setdefault(query, set()).add(place[name])
    words = tuple(Item(text=query) for query in answers)
    sides = {
        "t>t": tuple(Item(text=each.title) for each in whole.values()),
        "t>v": tuple(Item(image=each.image) for each in whole.values()),
        "t>vt": tuple(Item(each.title, each.image) for each in whole.values()),
    }
    right = tuple(map(frozenset, answers.values()))
    return [RetrievalTask(name, words, candidates, right) for name, candidates in sides.items()]


def evaluate_tasks(encoder: PairEncoder, tasks: Sequence[RetrievalTask]) -> dict[str, dict[str, float]]:
    """Recall@1/5/10/50 of each task: the share of queries with an answer among the k best candidates.

    Ties count against the answer. Raises `CatalogError` naming an item that cannot be embedded, and `InputError` if
    the encoder lacks a view that a task needs, or gives embeddings that are not finite.
    """
    for first in (side[0] for task in tasks for side in (task.queries, task.candidates)):
        check_view(encoder, first.text is not None, first.image is not None)
    report = {}
    for task in tasks:
        queries, candidates = (_embed(encoder, side, task.name) for side in (task.queries, task.candidates))
        ahead = np.empty(len(queries), np.int64)
        for row, query in enumerate(queries):
            scores = candidates @ query
            right = sorted(task.answers[row])
            # Every wrong candidate that scores as much as the best right one, but for rounding, stands before it.
            reached = scores >= scores[right].max() - ROUNDING
            ahead[row] = reached.sum() - reached[right].sum()
        report[task.name] = {str(k): float((ahead < k).mean()) for k in KS}
    return report


def _embed(encoder: PairEncoder, items: Sequence[Item], name: str) -> npt.NDArray[np.float32]:
    texts, images = [each.text for each in items], [each.image for each in items]
    embeddings, errors = embed_all(
        encoder, None if texts[0] is None else texts, None if images[0] is None else images, name
    )
    if errors:
        first = min(errors)
        raise CatalogError(f"{items[first]} of {name} cannot be used: {errors[first]}")
    return embeddings


def format_tasks(report: dict[str, dict[str, float]], head: str) -> str:
    """The figures of `evaluate_tasks` as an aligned plain-text table below a line `head`."""
    width = max(map(len, report))
    lines = [head, "task".ljust(width) + "".join(f"R@{k}".rjust(8) for k in KS)]
    lines += [name.ljust(width) + "".join(f"{row[str(k)]:8.3f}" for k in KS) for name, row in report.items()]
    return "\n".join(lines)
