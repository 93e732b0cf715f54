"""Texts and photos to embeddings: groups items by modality, runs only the graphs that a batch needs."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias, overload

import numpy as np
import numpy.typing as npt

from uniecs.backends.base import Backend, create_backend
from uniecs.backends.threads import ThreadBudget, process_budget
from uniecs.bundle import Bundle, locate_bundle, open_bundle
from uniecs.errors import InputError, ParityError, UniecsError
from uniecs.preprocess import ImageSource, Tokenizer, check_text, pixel_values

FloatArray: TypeAlias = npt.NDArray[np.float32]

# Texts are sorted by length within this many batches: enough to make padding small, few enough to bound
# memory.
WINDOW_BATCHES = 16
# Texts are padded to a multiple of this: engines prepare for each new length anew, and keep what they prepared.
TEXT_STEP = 4


@dataclass(frozen=True)
class EncodeResult:
    """Embeddings (n, D) float32, and by position the error of each item that has none (its row is NaN)."""

    embeddings: FloatArray
    errors: dict[int, UniecsError]


@dataclass(frozen=True)
class _Item:
    position: int
    ids: list[int] | None
    image: ImageSource | None


@dataclass(frozen=True)
class _Batch:
    """Items of one kind; `errors` gives for each image what is wrong with it or None, once its `pixels` are filled."""

    items: Sequence[_Item]
    pixels: FloatArray | None
    errors: Iterator[InputError | None]


def load(
    name_or_path: str | os.PathLike[str] = "mini",
    *,
    device: str = "auto",
    backend: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
) -> Encoder:
    """The encoder of a packaged bundle (by name) or of a bundle folder (by path).

    device: auto, cpu, cuda; backend: auto, openvino, onnxruntime, tensorrt; precision: auto, fp32, bf16, fp16 (of
    tensorrt), int8 (of a bundle with an int8 variant); threads: CPU threads of this encoder, None for all that the
    process may use, shared by all such encoders. Raises `BundleError` for an unknown, damaged or newer bundle,
    `BackendError` or `MissingExtraError` for what is not available here.
    """
    bundle = open_bundle(locate_bundle(name_or_path))
    return Encoder(bundle, create_backend(bundle, backend, device, precision, threads), threads)


class Encoder:
    """Embeds products and queries of any modality; thread-safe."""

    def __init__(self, bundle: Bundle, backend: Backend, threads: int | None = None) -> None:
        """`threads` as in `load`. Raises `BundleError` if the bundle's tokenizer cannot be read."""
        self.bundle = bundle
        self._backend = backend
        self._budget = process_budget() if threads is None else ThreadBudget(threads)
        # A GPU's run occupies the thread that waits for it.
        self._run_threads = self._budget.threads if backend.device == "cpu" else 1
        self._preprocessing = bundle.preprocessing
        self._tokenizer = Tokenizer(bundle.tokenizer_json(), self._preprocessing.max_tokens)

    @property
    def embed_dim(self) -> int:
        """D, the length of an embedding."""
        return self.bundle.embed_dim

    @property
    def model_id(self) -> str:
        """Identifies the model: embeddings of one model_id are comparable."""
        return self.bundle.model_id

    @property
    def backend(self) -> str:
        """Name of the engine, such as "openvino"."""
        return self._backend.name

    @property
    def device(self) -> str:
        """ "cpu" or "cuda"."""
        return self._backend.device

    @property
    def precision(self) -> str:
        """ "fp32", "bf16", "fp16" or "int8"."""
        return self._backend.precision

    @property
    def views(self) -> tuple[str, ...]:
        """What it embeds: text, image, and multimodal (both)."""
        return ("text", "image", "multimodal")

    def __repr__(self) -> str:
        return f"Encoder({self.model_id!r}, {self.backend}, {self.device}, {self.precision})"

    @overload
    def encode(
        self,
        texts: Iterable[str | None] | None = None,
        images: Iterable[ImageSource | None] | None = None,
        *,
        errors: Literal["raise"] = "raise",
        batch_size: int = 32,
    ) -> FloatArray: ...

    @overload
    def encode(
        self,
        texts: Iterable[str | None] | None = None,
        images: Iterable[ImageSource | None] | None = None,
        *,
        errors: Literal["return"],
        batch_size: int = 32,
    ) -> EncodeResult: ...

    def encode(
        self,
        texts: Iterable[str | None] | None = None,
        images: Iterable[ImageSource | None] | None = None,
        *,
        errors: Literal["raise", "return"] = "raise",
        batch_size: int = 32,
    ) -> FloatArray | EncodeResult:
        """Embed n items, each a text, an image or both: (n, embed_dim) float32 in input order, unit L2 norm.

        `texts` and `images` run in parallel; None is an absent side, of one item or of all. While a batch of
        `batch_size` runs, the images of the next are decoded, and no further ones. errors="raise" raises the error
        of the first bad item, its position in the message; errors="return" gives an `EncodeResult`. A bad image
        beside a good text is that item's error. Raises `InputError` for arguments that cannot be paired up,
        `BackendError` and `ParityError` when the engine fails, `BundleError` if a graph that is read on its first use
        has changed since the bundle was loaded.
        """
        if errors not in ("raise", "return"):
            raise InputError(f"errors is {errors!r}; expected 'raise' or 'return'")
        if type(batch_size) is not int or batch_size < 1:
            raise InputError(f"batch_size is {batch_size!r}; expected a positive int")
        pairs = _pair(texts, images)
        embeddings = np.full((len(pairs), self.embed_dim), np.nan, np.float32)
        failed: dict[int, UniecsError] = {}
        window = batch_size * WINDOW_BATCHES
        for start in range(0, len(pairs), window):
            self._encode_window(pairs[start : start + window], start, batch_size, embeddings, failed)
            if failed and errors == "raise":
                first = min(failed)
                raise type(failed[first])(f"item {first}: {failed[first]}") from failed[first]
        return EncodeResult(embeddings, dict(sorted(failed.items()))) if errors == "return" else embeddings

    def _encode_window(
        self,
        pairs: Sequence[tuple[Any, Any]],
        start: int,
        batch_size: int,
        embeddings: FloatArray,
        failed: dict[int, UniecsError],
    ) -> None:
        """Fill `embeddings` and `failed` for the items from position `start` on."""
        groups: dict[tuple[bool, bool], list[_Item]] = {}
        for item in self._tokenized(pairs, start, failed):
            groups.setdefault((item.ids is not None, item.image is not None), []).append(item)
        for group in groups.values():
            group.sort(key=lambda item: len(item.ids or ()))
        batches = [
            group[first : first + batch_size] for group in groups.values() for first in range(0, len(group), batch_size)
        ]
        workers = min(self._budget.threads, sum(item.image is not None for group in groups.values() for item in group))
        if workers < 2:
            for items in batches:
                self._run(self._prepared(items, partial(map, self._fill)), embeddings, failed)
            return
        with ThreadPoolExecutor(workers, "uniecs-decode") as pool:
            ahead: deque[_Batch] = deque()
            for items in batches:
                ahead.append(self._prepared(items, partial(pool.map, self._fill_within_budget)))
                if len(ahead) == 2:
                    self._run(ahead.popleft(), embeddings, failed)
            self._run(ahead.popleft(), embeddings, failed)

    def _tokenized(self, pairs: Sequence[tuple[Any, Any]], start: int, failed: dict[int, UniecsError]) -> list[_Item]:
        """The usable items of a window, their texts as token ids."""
        good: list[tuple[int, str | None, ImageSource | None]] = []
        for position, (text, image) in enumerate(pairs, start):
            try:
                if text is None and image is None:
                    raise InputError("the item has neither text nor image; expected at least one")
                good.append((position, None if text is None else check_text(text), image))
            except InputError as error:
                failed[position] = error
        ids = iter(self._tokenizer.encode([text for _, text, _ in good if text is not None]))
        return [_Item(position, None if text is None else next(ids), image) for position, text, image in good]

    def _prepared(self, items: Sequence[_Item], fill: Callable[..., Iterator[InputError | None]]) -> _Batch:
        """A batch of items of one kind, into whose pixels `fill` decodes their images."""
        images = [item.image for item in items if item.image is not None]
        if not images:
            return _Batch(items, None, iter(()))
        p = self._preprocessing
        pixels = np.empty((len(images), 3, p.height_px, p.width_px), np.float32)
        return _Batch(items, pixels, fill(images, pixels))

    def _fill(self, image: ImageSource, pixels: FloatArray) -> InputError | None:
        """Decode `image` to `pixels` (3, H, W)."""
        try:
            pixel_values(image, self._preprocessing, pixels)
        except InputError as error:
            return error
        return None

    def _fill_within_budget(self, image: ImageSource, pixels: FloatArray) -> InputError | None:
        with self._budget.decode():
            return self._fill(image, pixels)

    def _padded_length(self, tokens: int) -> int:
        return min(-(-tokens // TEXT_STEP) * TEXT_STEP, self._preprocessing.max_tokens)

    def _run(self, batch: _Batch, embeddings: FloatArray, failed: dict[int, UniecsError]) -> None:
        """Embed a batch; an item whose image failed leaves it."""
        items, pixels, errors = batch.items, batch.pixels, list(batch.errors)
        if any(errors):
            failed |= {item.position: error for item, error in zip(items, errors, strict=True) if error is not None}
            good = [place for place, error in enumerate(errors) if error is None]
            if not good:
                return
            items, pixels = [items[place] for place in good], None if pixels is None else pixels[good]
        ids = [item.ids for item in items if item.ids is not None]
        tokens = self._tokenizer.pad(ids, self._padded_length(max(map(len, ids)))) if ids else None
        with self._budget.run(self._run_threads):
            rows = embed(self._backend, self.embed_dim, pixels, tokens)
        embeddings[[item.position for item in items]] = rows


def embed(
    backend: Backend,
    embed_dim: int,
    pixel_values: FloatArray | None,
    tokens: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]] | None,
) -> FloatArray:
    """`Backend.embed`, checked: (B, D) float32, D = `embed_dim`.

    Raises `ParityError` for an output of the wrong shape or not finite.
    """
    batch = len(pixel_values if pixel_values is not None else tokens[0] if tokens is not None else ())
    embedding = backend.embed(pixel_values, tokens)
    if embedding.shape != (batch, embed_dim) or not np.isfinite(embedding).all():
        bad = "values that are not finite" if embedding.shape == (batch, embed_dim) else f"shape {embedding.shape}"
        raise ParityError(
            f"{backend.name} ({backend.device}, {backend.precision}) gave an embedding with {bad}; expected "
            f"finite ({batch}, {embed_dim}): check the bundle with `uniecs verify`"
        )
    return embedding.astype(np.float32, copy=False)


def _pair(texts: object, images: object) -> list[tuple[Any, Any]]:
    """Both sides as one list of (text or None, image or None)."""
    if texts is None and images is None:
        raise InputError("neither texts nor images were given; expected a list of either or of both")
    text_list = None if texts is None else _listed("texts", texts)
    image_list = None if images is None else _listed("images", images)
    if text_list is None:
        return [(None, image) for image in image_list or ()]
    if image_list is None:
        return [(text, None) for text in text_list]
    if len(text_list) != len(image_list):
        raise InputError(
            f"{len(text_list)} texts and {len(image_list)} images; expected as many, None where one is absent"
        )
    return list(zip(text_list, image_list, strict=True))


def _listed(what: str, values: object) -> list[Any]:
    """`values` as a list; a single item in place of a list, or an unordered set, is an `InputError`."""
    single = isinstance(values, (str, bytes, bytearray, os.PathLike, Mapping, Set)) or hasattr(values, "read")
    if isinstance(values, np.ndarray):
        single = values.ndim != 1 if what == "texts" else values.ndim not in (1, 4)
    if single or not isinstance(values, Iterable):
        raise InputError(f"{what} is of type {type(values).__name__}; expected a list, such as [{what[:-1]}]")
    return list(values)
