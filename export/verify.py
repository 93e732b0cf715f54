"""The parity ladder: every engine and precision present against torch in float32. Needs no torch.

The first rung is the golden vectors, made by torch at export; each further one is an engine in a precision. What is
allowed stands in `uniecs.export.tolerances`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from uniecs.backends.base import Backend, create_backend
from uniecs.bundle import Bundle, open_bundle
from uniecs.encoder import Encoder
from uniecs.errors import BackendError, BundleError, MissingExtraError, ParityError
from uniecs.export.golden import golden_set
from uniecs.export.tolerances import TOLERANCES
from uniecs.preprocess import Tokenizer, pixel_values

Floats = npt.NDArray[np.float32]
Arrays = Mapping[str, npt.NDArray[Any]]

RUNGS = (
    ("openvino", "cpu", "fp32"),
    ("onnxruntime", "cpu", "fp32"),
    ("openvino", "cpu", "bf16"),
    ("openvino", "cpu", "int8"),
    ("onnxruntime", "cuda", "fp32"),
    ("tensorrt", "cuda", "fp16"),
)
"""Backend, device and precision; the neighbours of later rungs are compared with those of the first one present."""
END_TO_END, ONE_BY_ONE = "end to end", "one by one"
BATCH, PADDING, MODALITY = "batch mates", "padding", "absent side"
EXTREMES, OVERLAP = "extreme inputs", "overlap@10"
NEIGHBOURS = 10


@dataclass(frozen=True)
class Agreement:
    """How far two stacks of vectors are apart: the worst of all rows, a row being a whole vector."""

    min_cosine: float
    max_abs_error: float
    max_norm_error: float

    def within(self, precision: str) -> bool:
        """Whether the cosine holds the limit, and the length of every vector is as true as its direction."""
        tolerance = TOLERANCES[precision]
        return self.min_cosine >= tolerance.cosine and self.max_norm_error <= tolerance.length


def compare(actual: Floats, expected: Floats) -> Agreement:
    """Compare (..., D) arrays by rows in float64; NaN, infinities and other shapes agree with nothing."""
    if actual.shape != expected.shape or not (np.isfinite(actual).all() and np.isfinite(expected).all()):
        return Agreement(-1.0, math.inf, math.inf)
    a, b = (each.reshape(-1, each.shape[-1]).astype(np.float64) for each in (actual, expected))
    lengths = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    if not (lengths[0].all() and lengths[1].all()):
        return Agreement(0.0, float(np.abs(a - b).max()), 1.0)
    # Clipped: a cosine of two equal vectors may come out as 1 + 1e-16.
    cosine = np.minimum(np.einsum("nd,nd->n", a, b) / (lengths[0] * lengths[1]), 1.0)
    norm_error = np.abs(lengths[0] / lengths[1] - 1)
    return Agreement(float(cosine.min()), float(np.abs(a - b).max()), float(norm_error.max()))


def tokens_read(actual: Floats, expected: Floats, mask: npt.NDArray[Any]) -> tuple[Floats, Floats]:
    """The text tokens of both but for padding: masked wherever it is read, it must be numbers, not the same ones.

    Where `actual` has another shape or is not finite, both as they are: they agree with nothing.
    """
    if actual.shape != expected.shape or not np.isfinite(actual).all():
        return actual, expected
    return actual[mask != 0], expected[mask != 0]


@dataclass(frozen=True)
class VerifyRow:
    """One check: `loss` is 1 - the least cosine, or 1 - the overlap of neighbours, and may be `limit` at most.

    `max_abs_error` and `max_norm_error` are those of the vectors, 0 for an overlap.
    """

    backend: str
    device: str
    precision: str
    check: str
    loss: float
    limit: float
    max_abs_error: float
    max_norm_error: float
    ok: bool

    def to_dict(self) -> dict[str, Any]:
        """JSON types; an infinite error becomes null."""
        return {k: None if v == math.inf else v for k, v in asdict(self).items()}


@dataclass(frozen=True)
class VerifyReport:
    """All checks of a bundle; `skipped` says which rungs this machine lacks, and why."""

    path: Path
    model_id: str
    rows: tuple[VerifyRow, ...]
    skipped: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether every check holds."""
        return all(row.ok for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        return {
            "bundle": str(self.path),
            "model_id": self.model_id,
            "ok": self.ok,
            "rows": [row.to_dict() for row in self.rows],
            "skipped": list(self.skipped),
        }

    def table(self) -> str:
        """An aligned plain-text table, one check a line."""
        lines = [f"{self.model_id}: {'every check holds' if self.ok else 'NOT the model it was exported from'}"]
        lines.append(f"{'backend':13}{'device':8}{'prec.':7}{'check':16}{'loss':>10}{'limit':>10}{'abs error':>11}")
        for row in self.rows:
            numbers = f"{row.loss:10.2e}{row.limit:10.1e}{row.max_abs_error:11.2e}"
            verdict = "ok" if row.ok else "FAILED"
            lines.append(f"{row.backend:13}{row.device:8}{row.precision:7}{row.check:16}{numbers}  {verdict}")
        lines += [f"skipped: {each}" for each in self.skipped]
        return "\n".join(lines)


def verify_bundle(path: Path | str) -> VerifyReport:
    """Compare every backend present with the golden vectors of the bundle at `path`.

    Preprocessing must reproduce `pixel_values` and `input_ids` exactly. For each of `RUNGS`: each graph, fed with
    golden inputs; the whole encoder, fed with the raw pictures and texts; the same items among other batch mates, with
    other padding, with anything in the buffer of an absent side; inputs at the ends of their range; and the ten nearest
    neighbours of each product of a set. Raises `BundleError` for a damaged bundle and `BackendError` if no backend is
    installed or a graph cannot run.
    """
    bundle = open_bundle(path)
    golden = _golden(bundle)
    rows = _verify_preprocessing(bundle, golden)
    skipped: list[str] = []
    first: Floats | None = None
    for backend, device, precision in RUNGS:
        try:
            runner = create_backend(bundle, backend, device=device, precision=precision)
        except (BackendError, MissingExtraError) as error:
            skipped.append(f"{backend} {device} {precision}: {error}")
            continue
        encoder = Encoder(bundle, runner)
        rows += _verify_encoder(encoder, runner, golden)
        rows += _verify_graphs(runner, golden)
        rows += _verify_invariance(runner, golden)
        rows.append(_verify_extremes(encoder, runner))
        found = _neighbours(encoder)
        first = found if first is None else first
        rows.append(_overlap_row(runner, found, first))
    if first is None:
        raise BackendError(f"no backend to verify {bundle.path} with: {'; '.join(skipped)}")
    return VerifyReport(bundle.path, bundle.model_id, tuple(rows), tuple(skipped))


def _golden(bundle: Bundle) -> Arrays:
    """The golden tensors, and `has_image`, `has_text` (G,) bool."""
    golden, texts = bundle.golden(), _texts(bundle)
    has_image, has_text = (golden["modality_indicator"] != 0).T
    if not texts or not np.array_equal(has_text, [text is not None for text in texts]):
        raise BundleError(f"the golden modality_indicator of {bundle.path} does not fit the manifest's texts")
    return {**golden, "has_image": has_image, "has_text": has_text}


def _texts(bundle: Bundle) -> list[str | None]:
    return list(bundle.manifest["golden"]["texts"])


def _verify_preprocessing(bundle: Bundle, golden: Arrays) -> list[VerifyRow]:
    """Pictures to pixel_values and texts to input_ids, equal bit by bit."""
    pixels = np.stack([pixel_values(image, bundle.preprocessing) for image in golden["images"]])
    tokenizer = Tokenizer(bundle.tokenizer_json(), bundle.preprocessing.max_tokens)
    ids, mask = tokenizer.pad(tokenizer.encode([text or "" for text in _texts(bundle)]))
    return [
        _exact_row("pixel_values", pixels, golden["pixel_values"]),
        _exact_row("input_ids", np.stack((ids, mask)), np.stack((golden["input_ids"], golden["attention_mask"]))),
    ]


def _exact_row(check: str, actual: npt.NDArray[Any], expected: npt.NDArray[Any]) -> VerifyRow:
    equal = np.array_equal(actual, expected)
    found = Agreement(1.0, 0.0, 0.0) if equal else compare(actual.astype(np.float32), expected.astype(np.float32))
    loss, errors = 1 - found.min_cosine, (found.max_abs_error, found.max_norm_error)
    return VerifyRow("preprocess", "cpu", "exact", check, loss, 0.0, *errors, ok=equal)


def _verify_graphs(runner: Backend, golden: Arrays) -> Iterator[VerifyRow]:
    """Each graph on golden inputs, so that a fault shows in its own graph."""
    image_tokens = runner.run("image_encoder", {"pixel_values": golden["pixel_values"]})
    yield _row(runner, "image_encoder", image_tokens, golden["image_tokens"])
    text_tokens = runner.run("text_encoder", {name: golden[name] for name in ("input_ids", "attention_mask")})
    yield _row(runner, "text_encoder", *tokens_read(text_tokens, golden["text_tokens"], golden["attention_mask"]))
    yield _row(runner, "fusion", runner.run("fusion", _fusion_feed(golden)), golden["embedding"])


def _fusion_feed(golden: Arrays) -> dict[str, npt.NDArray[Any]]:
    return {
        "image_tokens": golden["image_tokens"],
        "text_tokens": golden["text_tokens"],
        "text_mask": golden["attention_mask"],
        "modality_indicator": golden["modality_indicator"],
    }


def _verify_invariance(runner: Backend, golden: Arrays) -> Iterator[VerifyRow]:
    """What must not matter: batch mates, padding, and what lies in the buffer of an absent side."""
    feed, expected = _fusion_feed(golden), golden["embedding"]
    alone = [runner.run("fusion", {name: each[i : i + 1] for name, each in feed.items()}) for i in range(len(expected))]
    yield _row(runner, BATCH, np.concatenate(alone), expected)
    yield _row(runner, PADDING, *_trimmed(runner, golden))
    noise = np.random.default_rng(0).normal(scale=100, size=golden["image_tokens"].shape).astype(np.float32)
    image_tokens = np.where(golden["has_image"][:, None, None], golden["image_tokens"], noise)
    noise = noise[:, :1].repeat(golden["text_tokens"].shape[1], axis=1)
    text_tokens = np.where(golden["has_text"][:, None, None], golden["text_tokens"], noise)
    disturbed = runner.run("fusion", feed | {"image_tokens": image_tokens, "text_tokens": text_tokens})
    yield _row(runner, MODALITY, disturbed, expected)


def _trimmed(runner: Backend, golden: Arrays) -> tuple[Floats, Floats]:
    """The rows with text without their padding, through the text encoder and the fusion; and the golden embeddings."""
    rows = np.flatnonzero(golden["has_text"])
    found = []
    for i in rows:
        length = int(golden["attention_mask"][i].sum())
        ids, mask = golden["input_ids"][i : i + 1, :length], golden["attention_mask"][i : i + 1, :length]
        text_tokens = runner.run("text_encoder", {"input_ids": ids, "attention_mask": mask})
        feed = {name: each[i : i + 1] for name, each in _fusion_feed(golden).items()}
        found.append(runner.run("fusion", feed | {"text_tokens": text_tokens, "text_mask": mask}))
    return np.concatenate(found), golden["embedding"][rows]


def _verify_encoder(encoder: Encoder, runner: Backend, golden: Arrays) -> Iterator[VerifyRow]:
    """From raw pictures and texts: one item a call, texts first, as an engine may meet them; then all at once."""
    expected, has_image = golden["embedding"], golden["has_image"]
    images = [image if present else None for image, present in zip(golden["images"], has_image, strict=True)]
    items = list(zip(_texts(encoder.bundle), images, strict=True))
    single = np.full_like(expected, np.nan)
    for i in np.argsort(has_image, kind="stable"):
        single[i] = _encoded(encoder, [items[i]])
    yield _row(runner, ONE_BY_ONE, single, expected)
    yield _row(runner, END_TO_END, _encoded(encoder, items), expected)


def _verify_extremes(encoder: Encoder, runner: Backend) -> VerifyRow:
    """Black, white and chequered pictures, the shortest and longest texts: embeddings must be finite unit vectors."""
    chequered = (np.indices((96, 56)).sum(0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, axis=2)
    pictures = [np.zeros_like(chequered), np.full_like(chequered, 255), chequered]
    texts = [".", "! " * 1000, "\N{REPLACEMENT CHARACTER}"]
    items = [(text, None) for text in texts] + [(None, picture) for picture in pictures]
    found = _encoded(encoder, items + list(zip(texts, pictures, strict=True)))
    lengths = np.linalg.norm(found.astype(np.float64), axis=1, keepdims=True)
    # Compared with itself at unit length: NaN agrees with nothing, and a length is all that can differ.
    return _row(runner, EXTREMES, found, (found / np.where(lengths > 0, lengths, 1)).astype(np.float32))


def _neighbours(encoder: Encoder) -> npt.NDArray[Any]:
    """(3, n, 10): the nearest others of each product of the golden set by image, by text, by both; -1 where NaN."""
    titles, pictures = golden_set()
    nearest = []
    for items in ([(None, p) for p in pictures], [(t, None) for t in titles], list(zip(titles, pictures, strict=True))):
        vectors = _encoded(encoder, items)
        similarity = vectors @ vectors.T
        np.fill_diagonal(similarity, -np.inf)
        order = np.argsort(-similarity, axis=1, kind="stable")[:, :NEIGHBOURS]
        nearest.append(order if np.isfinite(vectors).all() else np.full_like(order, -1))
    return np.stack(nearest)


def _overlap_row(runner: Backend, found: npt.NDArray[Any], reference: npt.NDArray[Any]) -> VerifyRow:
    """The share of neighbours that `reference` has too: the mean over products, the worst of the three views."""
    shared = (found[..., :, None] == reference[..., None, :]) & (found[..., :, None] >= 0)
    loss = 1 - float(shared.any(-1).mean((1, 2)).min())
    limit = 1 - TOLERANCES[runner.precision].overlap
    return VerifyRow(runner.name, runner.device, runner.precision, OVERLAP, loss, limit, 0.0, 0.0, ok=loss <= limit)


def _encoded(encoder: Encoder, items: Sequence[tuple[str | None, Any]]) -> Floats:
    try:
        return encoder.encode(texts=[text for text, _ in items], images=[image for _, image in items])
    except ParityError:
        # The encoder hands out no NaN; here that is a failed check like the others.
        return np.full((len(items), encoder.embed_dim), np.nan, np.float32)


def _row(runner: Backend, check: str, actual: Floats, expected: Floats) -> VerifyRow:
    found, precision = compare(actual, expected), runner.precision
    loss, limit = 1 - found.min_cosine, 1 - TOLERANCES[precision].cosine
    errors = (found.max_abs_error, found.max_norm_error)
    return VerifyRow(runner.name, runner.device, precision, check, loss, limit, *errors, ok=found.within(precision))
