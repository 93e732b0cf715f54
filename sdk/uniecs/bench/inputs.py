"""What is embedded and searched: texts of an exact length, photos, clustered vectors; the same at each call."""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from uniecs.catalog import Product
from uniecs.errors import InputError
from uniecs.filters import Filter, OneOf
from uniecs.index_folder import BundleReference, IndexConfig, Storage
from uniecs.local_index import LocalIndex

if TYPE_CHECKING:
    from uniecs.bundle import Bundle
    from uniecs.preprocess import Tokenizer

Vectors: TypeAlias = npt.NDArray[np.float32]

WORDS = ("red", "blue", "green", "cotton", "shirt", "dress", "shoes", "watch", "women", "men", "black", "white")
FILL = 2048
VIEW = "multimodal"
QUERIES, NOISE = 256, 0.5
FILTER_SHARE = 0.1


def texts(tokenizer: Tokenizer, tokens: int, count: int) -> list[str]:
    """`count` texts of `tokens` tokens each, special ones included, most of them different."""
    made = []
    for number in range(count):
        random, words = np.random.default_rng((tokens, number)), list[str]()
        # Most words are one token; a word that is several may lead past the length, and "a" never does.
        while (length := len(tokenizer.encode([" ".join(words) or "a"])[0])) < tokens or not words:
            words.append(str(random.choice(WORDS)))
            if len(tokenizer.encode([" ".join(words)])[0]) > tokens:
                words[-1] = "a"
            elif length >= tokens:
                break
        made.append(" ".join(words))
    return made


def photo(width_px: int, seed: int) -> bytes:
    """A JPEG of quality 90, `width_px` wide and 4/3 as high, of a photo's smoothness and noise."""
    from PIL import Image

    random, size = np.random.default_rng(seed), (width_px, width_px * 4 // 3)
    coarse = Image.fromarray(random.integers(0, 256, (32, 24, 3), dtype=np.uint8))
    picture = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), np.int16)
    # One tile of noise, repeated: of a large photo the noise would take longer than the JPEG.
    tile = random.normal(0, 6, (256, 256, 3)).astype(np.int16)
    noise = np.tile(tile, (-(-size[1] // 256), -(-size[0] // 256), 1))[: size[1], : size[0]]
    file = io.BytesIO()
    Image.fromarray((picture + noise).clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def clustered(count: int, queries: int, dim: int, seed: int = 0) -> tuple[Vectors, Vectors]:
    """Unit vectors around a hundredth as many random centres, noise of 0.8 beside centres of 1 a component; others
    like them to search with.
    """
    random = np.random.default_rng(seed)
    centres = random.standard_normal((max(8, count // 100), dim), dtype=np.float32)
    made = random.standard_normal((count + queries, dim), dtype=np.float32)
    made *= 0.8
    for rows in np.array_split(made, max(1, len(made) // 10_000)):
        rows += centres[random.integers(len(centres), size=len(rows))]
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return made[:count], made[count:]


def strayed(vectors: Vectors, noise: float) -> Vectors:
    """Unit vectors beside these (n, dim), each with noise of `noise` times its length: queries are not products."""
    random = np.random.default_rng(17)  # not the seed of `clustered`: its centres would come back as the noise
    made: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    made += random.standard_normal(vectors.shape, dtype=np.float32) * np.float32(noise / vectors.shape[1] ** 0.5)
    made /= np.linalg.norm(made, axis=1, keepdims=True)
    return made


def own_queries(index: LocalIndex) -> Vectors:
    """Some of an index's own vectors, with noise, to search its first view; raises `InputError` if it has none."""
    return strayed(index._store.vectors(index.config.views[0], _sample(index))[1], NOISE)


def own_filter(index: LocalIndex) -> dict[str, Filter]:
    """The value of an attribute that is nearest to `FILTER_SHARE` in a sample, by a name; none without attributes."""
    products = index._store.products(_sample(index)).values()
    named = [pair for each in products for pair in each.attributes.items()]
    counts = Counter((key, value) for key, value in named if isinstance(value, (str, int, float)))
    if not counts:
        return {}
    wanted = FILTER_SHARE * len(products)
    key, value = min(counts, key=lambda pair: (abs(math.log(counts[pair] / wanted)), repr(pair)))
    return {f"{key}={value}, some {counts[key, value] / len(products):.0%}": OneOf(key, (value,))}


def _sample(index: LocalIndex) -> list[int]:
    rows = index._graphs[index.config.views[0]].rows()
    if not len(rows):
        raise InputError(f"the index has no vectors in the view {index.config.views[0]}; add products to it first")
    chosen = np.random.default_rng(0).choice(rows, min(QUERIES, len(rows)), replace=False)
    return [int(row) for row in np.sort(chosen)]


def drawn_index(folder: Path, bundle: Bundle, vectors: Vectors, storage: Storage = "float32") -> None:
    """An index in `folder` with a product for each of `vectors` (n, D), as if `bundle` had embedded it."""
    reference, config = BundleReference.of(bundle.path), IndexConfig(storage=storage)
    index = LocalIndex.create(folder, bundle.model_id, bundle.embed_dim, reference, config, "batch")
    try:
        for items in _products(vectors):
            index.put(items)
        index.save()
    finally:
        index.close()


def _products(vectors: Vectors) -> Iterator[list[tuple[Product, dict[str, Vectors]]]]:
    for start in range(0, len(vectors), FILL):
        rows = range(start, min(start + FILL, len(vectors)))
        yield [(_product(row), {VIEW: vectors[row]}) for row in rows]


def _product(number: int) -> Product:
    colour, brand = WORDS[number % 3], f"brand {number % 97}"
    attributes: dict[str, Any] = {"colour": colour, "brand": brand, "price": number % 200}
    return Product(f"sku-{number}", f"{colour} shirt {number}", None, attributes)
