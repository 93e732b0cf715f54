"""Retrieval evaluation: nine tasks {image, text, both} x {image, text, both}, Recall@k, two plain baselines.

A pair is two similar products. The trigger of a pair is the query, the recall side of all pairs is the
set of candidates, and the partner is the one right answer (the M-BEER benchmark of the UniECS paper). A
query that is on the recall side too is no candidate of its own: it would find itself.
"""

from __future__ import annotations

import csv
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from uniecs.catalog import Product, Rejected, read_catalog
from uniecs.errors import CatalogError, InputError, MissingExtraError, UniecsError
from uniecs.preprocess import open_image
from uniecs.progress import progress_bar

if TYPE_CHECKING:
    from PIL.Image import Image

    from uniecs.preprocess import ImageSource

Floats = npt.NDArray[np.floating[Any]]
Columns = npt.NDArray[np.int64]
Recalls = dict[int, float]
Pairs = Sequence[tuple[str, str]]

KS = (1, 5, 10)
VIEWS: Mapping[str, str] = {"t": "text", "v": "image", "vt": "multimodal"}
TASKS: Mapping[str, tuple[str, str]] = {
    f"{query}>{candidate}": (VIEWS[query], VIEWS[candidate]) for query in VIEWS for candidate in VIEWS
}
"""Name of a task -> (view of the query, view of the candidates); "t>v" finds images by text."""

PAIR_COLUMNS = ["trigger_id", "recall_id"]
RAW_PIXELS = (12, 16)
"""Width and height, in px, of the raw-pixel baseline's thumbnails."""
_CHUNK = 256
ROUNDING = 1e-6
"""More than float32 sums of products of unit vectors differ by, where the vectors are equal: their order differs."""


class PairEncoder(Protocol):
    """What evaluation asks of an encoder; `uniecs.Encoder` is one."""

    @property
    def embed_dim(self) -> int: ...
    @property
    def model_id(self) -> str: ...
    @property
    def backend(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def precision(self) -> str: ...
    @property
    def views(self) -> Collection[str]:
        """Which of text, image and multimodal it embeds."""
        ...

    def encode(self, texts: Any = None, images: Any = None, *, errors: Any = "raise") -> Any: ...


def check_view(encoder: PairEncoder, text: bool, image: bool) -> None:
    """Raise `InputError` unless `encoder` embeds items that have a text, an image or both."""
    view = "multimodal" if text and image else "text" if text else "image"
    if view not in encoder.views:
        raise InputError(f"{encoder.model_id} embeds {', '.join(encoder.views)} only; the {view} view was asked for")


def recall_at_k(scores: Floats, target: npt.ArrayLike, ks: Sequence[int] = KS) -> Recalls:
    """Share of queries whose target is among the k best candidates.

    `scores` (Q, C) floats, higher is better; `target` (Q,) integers, the column of each query's answer.
    Ties are counted pessimistically: every other candidate that scores as much as the target stands
    before it, so that a constant score earns nothing. Raises `InputError` on other shapes, no query,
    a target outside the columns, or scores that are not finite.
    """
    return _shares(_ahead(scores, np.asarray(target)), ks)


def _ahead(scores: Floats, answers: npt.NDArray[Any], slack: float = 0.0) -> Columns:
    """How many other candidates stand before the answer of each query; raises what `recall_at_k` raises.

    Those that score less than the answer by up to `slack` do so, too.
    """
    if scores.ndim != 2 or answers.shape != scores.shape[:1] or not scores.size:
        raise InputError(f"scores {scores.shape} and target {answers.shape}; expected (Q, C) and (Q,), not empty")
    if answers.dtype.kind not in "iu" or answers.min() < 0 or answers.max() >= scores.shape[1]:
        raise InputError(f"target must be integers from 0 to {scores.shape[1] - 1}, the columns of scores")
    if not np.isfinite(scores).all():
        raise InputError("scores hold NaN or infinite values; expected finite numbers")
    own = np.take_along_axis(scores, answers[:, None], axis=1)
    ahead: Columns = (scores >= own - slack).sum(axis=1) - 1
    return ahead


def _shares(ahead: Columns, ks: Sequence[int] = KS) -> Recalls:
    return {k: float((ahead < k).mean()) for k in ks}


def read_pairs(path: str | Path) -> list[tuple[str, str]]:
    """Read a CSV with the header `trigger_id,recall_id`; `CatalogError` names the file and the fault."""
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.reader(file, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CatalogError(f"cannot read the pairs file {path}: {error}") from error
    if not rows or rows[0] != PAIR_COLUMNS:
        got = ",".join(rows[0]) if rows else "an empty file"
        raise CatalogError(f"pairs file {path} has the header {got!r}; expected {','.join(PAIR_COLUMNS)!r}")
    pairs = []
    for number, row in enumerate(rows[1:], start=1):
        if not row:
            continue
        if len(row) != 2 or not all(row) or row[0] == row[1]:
            raise CatalogError(f"pair {number} of {path} is {','.join(row)!r}; expected two different ids")
        pairs.append((row[0], row[1]))
    if not pairs:
        raise CatalogError(f"pairs file {path} has no pairs below its header")
    return pairs


def read_products(catalog: str | Path) -> tuple[dict[str, Product], list[Rejected]]:
    """Readable products of a catalogue by id, and the rejected rows; a repeated id keeps its first row."""
    products: dict[str, Product] = {}
    rejected = []
    for row, item in enumerate(read_catalog(catalog)):
        if isinstance(item, Rejected):
            rejected.append(item)
        elif item.id in products:
            error = CatalogError(f"id {item.id!r} appears a second time; the first row is kept")
            rejected.append(Rejected(row, item.id, error))
        else:
            products[item.id] = item
    return products, rejected


def read_held_out(catalog: str | Path, pairs: str | Path) -> tuple[dict[str, Product], list[tuple[str, str]]]:
    """The products and pairs of two files, for an evaluation that comes later: what it would refuse raises now.

    Raises `CatalogError` for a file, a pair, or a photo of the pairs that cannot be used.
    """
    products, _ = read_products(catalog)
    listed = read_pairs(pairs)
    queries, candidates, *_ = _sides(products, listed)
    for each in dict.fromkeys([*queries, *candidates]):
        _photo(products[each])
    return products, listed


def evaluate(encoder: PairEncoder, catalog: str | Path, pairs: str | Path) -> dict[str, Any]:
    """Nine tasks and the baselines on a catalogue file and a pairs file, as one dictionary of JSON types.

    Keys: pairs, products (readable ones in the catalogue), candidates, model_id, backend, device, precision,
    tasks {"t>v": {"1": share, ...}}, baselines {"tfidf": {"t>t": ...}, "raw_pixels": {"v>v": ...}}. The tasks are
    those of the encoder's views.
    Raises `CatalogError` on unusable files, and what `evaluate_pairs` and `baselines` raise.
    """
    products, _ = read_products(catalog)
    return evaluate_products(encoder, products, read_pairs(pairs))


def evaluate_products(encoder: PairEncoder, products: Mapping[str, Product], pairs: Pairs) -> dict[str, Any]:
    """As `evaluate`, for products and pairs that were read already."""
    return evaluate_models([encoder], products, pairs)[0]


def evaluate_models(
    encoders: Sequence[PairEncoder], products: Mapping[str, Product], pairs: Pairs
) -> list[dict[str, Any]]:
    """A report as `evaluate` gives for each of several encoders; the baselines are computed once."""
    plain = {name: _json_keys(figures) for name, figures in baselines(products, pairs).items()}
    return [_report(encoder, products, pairs, plain) for encoder in encoders]


def _report(
    encoder: PairEncoder, products: Mapping[str, Product], pairs: Pairs, plain: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "pairs": len(pairs),
        "products": len(products),
        "candidates": len({recall for _, recall in pairs}),
        "model_id": encoder.model_id,
        "backend": encoder.backend,
        "device": encoder.device,
        "precision": encoder.precision,
        "tasks": _json_keys(evaluate_pairs(encoder, products, pairs)),
        "baselines": plain,
    }


def evaluate_pairs(encoder: PairEncoder, products: Mapping[str, Product], pairs: Pairs) -> dict[str, Recalls]:
    """Recall@1/5/10 of the nine `TASKS`, or of those whose views `encoder` embeds.

    Each product of the pairs is embedded three times: by its image, its title and both. The candidates are
    the distinct recall-side products, but never the query itself. Raises `CatalogError` naming a product that is
    not in `products`, lacks a title or an image, or cannot be embedded: figures over other pairs would not be
    comparable.
    """
    queries, candidates, target, own = _sides(products, pairs)
    ids = sorted({*queries, *candidates})
    row = {each: i for i, each in enumerate(ids)}
    views = {
        view: _embed(encoder, [products[each] for each in ids], view)
        for view in VIEWS.values()
        if view in encoder.views
    }
    left, right = [row[each] for each in queries], [row[each] for each in candidates]
    return {
        task: _recalls(views[query][left], views[candidate][right].T, target, own)
        for task, (query, candidate) in TASKS.items()
        if query in views and candidate in views
    }


def baselines(products: Mapping[str, Product], pairs: Pairs) -> dict[str, dict[str, Recalls]]:
    """What there is without a model: title TF-IDF for text to text, 12x16 raw pixels for image to image.

    TF-IDF is fitted on all titles of `products`; a photo becomes 12x16 RGB values (bicubic), less their own
    mean; both are compared by cosine. Raises `CatalogError` like `evaluate_pairs` and where no title has a word of two
    letters, and `MissingExtraError` without scikit-learn.
    """
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
    except ModuleNotFoundError as error:
        raise MissingExtraError("the title TF-IDF baseline needs scikit-learn: pip install 'uniecs[train]'") from error
    queries, candidates, target, own = _sides(products, pairs)
    try:
        vectorizer = TfidfVectorizer().fit([each.title for each in products.values() if each.title])
    except ValueError as error:
        raise CatalogError("no title has a word of two letters or more, which the TF-IDF baseline counts") from error
    left, right = (vectorizer.transform([products[i].title for i in side]) for side in (queries, candidates))
    ids = sorted({*queries, *candidates})
    row = {each: i for i, each in enumerate(ids)}
    pixels = _raw_pixels([products[each] for each in ids])
    seen, shown = (pixels[[row[i] for i in side]] for side in (queries, candidates))
    return {
        "tfidf": {"t>t": _recalls(left, right.T.tocsr(), target, own)},
        "raw_pixels": {"v>v": _recalls(seen, shown.T, target, own)},
    }


def format_table(report: Mapping[str, Any]) -> str:
    """An `evaluate` report as an aligned plain-text table: rows tasks and baselines, columns R@1 R@5 R@10."""
    rows = [(task, report["tasks"][task]) for task in TASKS if task in report["tasks"]]
    for name, figures in report["baselines"].items():
        rows += [(f"{task} {name}", recalls) for task, recalls in figures.items()]
    width = max(len(label) for label, _ in rows)
    head = f"{report['model_id']} on {report['backend']} ({report['device']}, {report['precision']}): "
    lines = [head + f"{report['pairs']} pairs, {report['candidates']} candidates"]
    lines.append("task".ljust(width) + "".join(f"R@{k}".rjust(8) for k in KS))
    lines += [label.ljust(width) + "".join(f"{recalls[str(k)]:8.3f}" for k in KS) for label, recalls in rows]
    lines.append("t = text, v = image, vt = both; query>candidates")
    return "\n".join(lines)


def format_comparison(reports: Sequence[Mapping[str, Any]]) -> str:
    """`evaluate` reports of several models on the same pairs as a Markdown table: a row each, cells R@1/R@5/R@10."""
    lines = [
        f"{reports[0]['pairs']} pairs, {reports[0]['candidates']} candidates; R@1/R@5/R@10",
        "",
        "| | " + " | ".join(TASKS) + " |",
        "|---|" + "---|" * len(TASKS),
    ]
    rows = [(report["model_id"], report["tasks"]) for report in reports] + list(reports[0]["baselines"].items())
    for name, tasks in rows:
        cells = ["/".join(f"{tasks[task][str(k)]:.3f}" for k in KS) if task in tasks else "" for task in TASKS]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _sides(products: Mapping[str, Product], pairs: Pairs) -> tuple[list[str], list[str], Columns, Columns]:
    """Query ids, distinct candidate ids, the column of each query's answer, and each query's own column, -1 where it is
    no candidate; every product is complete."""
    if not pairs:
        raise CatalogError("no pairs to evaluate; expected at least one")
    for each in (name for pair in pairs for name in pair):
        if each not in products:
            raise CatalogError(f"the pairs name the product {each!r}, which is not among the readable products")
        lacking = [field for field in ("title", "image") if getattr(products[each], field) is None]
        if lacking:
            raise CatalogError(f"product {each!r} of the pairs has no {lacking[0]}; the nine tasks need both")
    candidates = list(dict.fromkeys(recall for _, recall in pairs))
    column = {each: i for i, each in enumerate(candidates)}
    queries = [trigger for trigger, _ in pairs]
    target = np.array([column[recall] for _, recall in pairs])
    own = np.array([column.get(each, -1) for each in queries])
    return queries, candidates, target, own


def _recalls(queries: Any, candidates: Any, target: Columns, own: Columns) -> Recalls:
    """`recall_at_k` of the scores `queries` @ `candidates` of unit vectors, with the columns `own` below all others.

    Equal candidates are a tie, though rounding may part their scores.

    The queries come in blocks: scores of all with all candidates would take terabytes for a million pairs.
    """
    ahead = []
    for rows in np.array_split(np.arange(len(target)), -(-len(target) // _CHUNK)):
        product = queries[rows] @ candidates
        scores = product if isinstance(product, np.ndarray) else product.toarray()
        meets = np.flatnonzero(own[rows] >= 0)
        scores[meets, own[rows][meets]] = np.finfo(scores.dtype).min
        ahead.append(_ahead(scores, target[rows], ROUNDING))
    return _shares(np.concatenate(ahead))


def embed_all(
    encoder: PairEncoder, texts: Sequence[Any] | None, images: Sequence[Any] | None, what: str
) -> tuple[npt.NDArray[np.float32], dict[int, UniecsError]]:
    """(n, embed_dim) float32 embeddings and the errors by position, in chunks so that a terminal sees progress.

    Raises `InputError` if the embedding of an item without an error holds NaN or infinite values.
    """
    count = len(texts if texts is not None else images or ())
    embeddings = np.empty((count, encoder.embed_dim), dtype=np.float32)
    errors: dict[int, UniecsError] = {}
    for start in progress_bar(range(0, count, _CHUNK), desc=what, unit="chunk", leave=False):
        rows = slice(start, start + _CHUNK)
        sides = (None if side is None else side[rows] for side in (texts, images))
        result = encoder.encode(*sides, errors="return")
        if not np.isfinite(np.delete(result.embeddings, list(result.errors), axis=0)).all():
            raise InputError(f"{encoder.model_id} gives embeddings that are not finite ({what}): check its weights")
        embeddings[rows] = result.embeddings
        errors.update({start + place: error for place, error in result.errors.items()})
    return embeddings, errors


def _embed(encoder: PairEncoder, products: Sequence[Product], view: str) -> npt.NDArray[np.float32]:
    """(n, embed_dim) float32 embeddings of one view; raises `CatalogError` for what cannot be embedded."""
    embeddings, errors = embed_all(
        encoder,
        None if view == "image" else [each.title for each in products],
        None if view == "text" else [each.image for each in products],
        view,
    )
    if errors:
        first = min(errors)
        raise _unusable(products[first], errors[first])
    return embeddings


def _raw_pixels(products: Sequence[Product]) -> Floats:
    """(n, 576) unit vectors of RGB thumbnails less their own mean; a photo of one grey becomes zeros."""
    thumbnails = [np.asarray(_photo(each).resize(RAW_PIXELS), dtype=np.float64).ravel() for each in products]
    pixels: Floats = np.stack(thumbnails)
    pixels -= pixels.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(pixels, axis=1, keepdims=True)
    return pixels / np.where(norms > 0, norms, 1.0)


def _photo(product: Product) -> Image:
    try:
        return open_image(cast("ImageSource", product.image))  # `_sides` has seen that it is there
    except UniecsError as error:
        raise _unusable(product, error) from error


def _unusable(product: Product, error: UniecsError) -> CatalogError:
    return CatalogError(f"product {product.id!r} of the pairs cannot be used: {error}")


def _json_keys(figures: Mapping[str, Recalls]) -> dict[str, dict[str, float]]:
    return {task: {str(k): value for k, value in recalls.items()} for task, recalls in figures.items()}
