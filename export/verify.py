"""Parity of every backend present with the golden vectors of a bundle. Needs no torch."""

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
from uniecs.preprocess import Tokenizer, pixel_values

Floats = npt.NDArray[np.float32]
Arrays = Mapping[str, npt.NDArray[Any]]

COSINE_LIMITS: Mapping[str, float] = {"fp32": 1 - 1e-6, "bf16": 0.9995}
COMBINATIONS = (("openvino", "fp32"), ("openvino", "bf16"), ("onnxruntime", "fp32"))
END_TO_END, ONE_BY_ONE = "end to end", "one by one"


@dataclass(frozen=True)
class Agreement:
    """How far two stacks of vectors are apart: the worst of all rows, a row being a whole vector."""

    min_cosine: float
    max_abs_error: float
    max_norm_error: float

    def within(self, precision: str) -> bool:
        """Whether the cosine holds the limit, and the length of every vector is as true as its direction."""
        limit = COSINE_LIMITS[precision]
        return self.min_cosine >= limit and self.max_norm_error <= norm_limit(precision)


def norm_limit(precision: str) -> float:
    """Largest |length ratio - 1|: the relative error that, sideways, would just reach the cosine limit."""
    return math.sqrt(2 * (1 - COSINE_LIMITS[precision]))


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


@dataclass(frozen=True)
class VerifyRow:
    """One check: `limit` is the least cosine allowed; preprocessing must be equal bit by bit (limit 1)."""

    backend: str
    precision: str
    check: str
    min_cosine: float
    max_abs_error: float
    max_norm_error: float
    limit: float
    ok: bool

    def to_dict(self) -> dict[str, Any]:
        """JSON types; an infinite error becomes null."""
        return {k: None if v == math.inf else v for k, v in asdict(self).items()}


@dataclass(frozen=True)
class VerifyReport:
    """All checks of a bundle; `skipped` says which precisions this machine lacks, and why."""

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
        lines.append(f"{'backend':14}{'prec.':7}{'check':15}{'1 - cosine':>12}{'limit':>10}{'abs error':>12}")
        for row in self.rows:
            numbers = f"{1 - row.min_cosine:12.2e}{1 - row.limit:10.1e}{row.max_abs_error:12.2e}"
            verdict = "ok" if row.ok else "FAILED"
            lines.append(f"{row.backend:14}{row.precision:7}{row.check:15}{numbers}  {verdict}")
        lines += [f"skipped: {each}" for each in self.skipped]
        return "\n".join(lines)


def verify_bundle(path: Path | str) -> VerifyReport:
    """Compare every backend present on the CPU with the golden vectors of the bundle at `path`.

    Preprocessing must reproduce `pixel_values` and `input_ids` exactly; each graph, fed with golden inputs,
    and the whole encoder, fed with the raw pictures and texts, must reach the cosine of `COSINE_LIMITS` on
    every vector, but for the text tokens of padding, which nothing reads. Raises `BundleError` for a damaged
    bundle and `BackendError` if no backend is installed or a graph cannot run.
    """
    bundle = open_bundle(path)
    golden = _golden(bundle)
    checks: list[VerifyRow] = []
    skipped = []
    for backend, precision in COMBINATIONS:
        try:
            runner = create_backend(bundle, backend, device="cpu", precision=precision)
        except (BackendError, MissingExtraError) as error:
            skipped.append(f"{backend} {precision}: {error}")
            continue
        checks += _verify_encoder(bundle, runner, golden)
        checks += _verify_graphs(runner, golden)
    if not checks:
        raise BackendError(f"no backend to verify {bundle.path} with: {'; '.join(skipped)}")
    rows = [*_verify_preprocessing(bundle, golden), *checks]
    return VerifyReport(bundle.path, bundle.model_id, tuple(rows), tuple(skipped))


def _golden(bundle: Bundle) -> Arrays:
    golden, texts = bundle.golden(), _texts(bundle)
    has_text = [[text is not None] for text in texts]
    if not texts or not np.array_equal(golden["modality_indicator"][:, 1:] != 0, has_text):
        raise BundleError(f"the golden modality_indicator of {bundle.path} does not fit the manifest's texts")
    return golden


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
    return VerifyRow("preprocess", "exact", check, **asdict(found), limit=1.0, ok=equal)


def _verify_graphs(runner: Backend, golden: Arrays) -> list[VerifyRow]:
    """Each graph on golden inputs, so that a fault shows in its own graph."""
    feeds = {
        "image_tokens": ("image_encoder", {"pixel_values": golden["pixel_values"]}),
        "text_tokens": ("text_encoder", {name: golden[name] for name in ("input_ids", "attention_mask")}),
        "embedding": (
            "fusion",
            {
                "image_tokens": golden["image_tokens"],
                "text_tokens": golden["text_tokens"],
                "text_mask": golden["attention_mask"],
                "modality_indicator": golden["modality_indicator"],
            },
        ),
    }
    rows = []
    for output, (graph, feed) in feeds.items():
        actual, expected = runner.run(graph, feed), golden[output]
        # Padding is masked wherever its tokens are read: they must be numbers, not the same ones.
        if graph == "text_encoder" and actual.shape == expected.shape and np.isfinite(actual).all():
            present = golden["attention_mask"] != 0
            actual, expected = actual[present], expected[present]
        rows.append(_row(runner, graph, actual, expected))
    return rows


def _verify_encoder(bundle: Bundle, runner: Backend, golden: Arrays) -> Iterator[VerifyRow]:
    """From raw pictures and texts: one item a call, texts first, as an engine may meet them; then all at once."""
    encoder, expected = Encoder(bundle, runner), golden["embedding"]
    has_image = golden["modality_indicator"][:, 0] != 0
    images = [image if present else None for image, present in zip(golden["images"], has_image, strict=True)]
    items = list(zip(_texts(bundle), images, strict=True))
    single = np.full_like(expected, np.nan)
    for i in np.argsort(has_image, kind="stable"):
        single[i] = _encoded(encoder, [items[i]])
    yield _row(runner, ONE_BY_ONE, single, expected)
    yield _row(runner, END_TO_END, _encoded(encoder, items), expected)


def _encoded(encoder: Encoder, items: Sequence[tuple[str | None, Any]]) -> Floats:
    try:
        return encoder.encode(texts=[text for text, _ in items], images=[image for _, image in items])
    except ParityError:
        # The encoder hands out no NaN; here that is a failed check like the others.
        return np.full((len(items), encoder.embed_dim), np.nan, np.float32)


def _row(runner: Backend, check: str, actual: Floats, expected: Floats) -> VerifyRow:
    found, precision = compare(actual, expected), runner.precision
    ok = found.within(precision)
    return VerifyRow(runner.name, precision, check, **asdict(found), limit=COSINE_LIMITS[precision], ok=ok)
