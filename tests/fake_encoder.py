"""An encoder without a model, a small shop, and helpers, for the tests of the engine and its folder."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image

from uniecs.catalog import Product
from uniecs.encoder import Encoder, EncodeResult
from uniecs.engine import Hit, SearchEngine
from uniecs.errors import (
    UniecsError,
)
from uniecs.preprocess import check_text, open_image

DIM = 32
COLOURS = {"red": (200, 0, 0), "green": (0, 200, 0), "blue": (0, 0, 200)}


class FakeBundle:
    path = Path("/models/fake")


class FakeEncoder:
    """Words, and the colour of an image as a word, hashed to directions; an item is the unit sum of its words'."""

    def __init__(self, model_id: str = "fake-1", embed_dim: int = DIM) -> None:
        self.model_id, self.embed_dim, self.bundle = model_id, embed_dim, FakeBundle()
        self.items = 0

    def encode(self, texts: Iterable[str | None], images: Iterable[Any], *, errors: str) -> EncodeResult:
        pairs = list(zip(texts, images, strict=True))
        self.items += len(pairs)
        embeddings, failed = np.full((len(pairs), self.embed_dim), np.nan, np.float32), dict[int, UniecsError]()
        for position, (text, image) in enumerate(pairs):
            try:
                words = [] if text is None else check_text(text).lower().split()
                words += [] if image is None else [self.colour(image)]
                total = sum(self.direction(word) for word in words)
                embeddings[position] = total / np.linalg.norm(total)
            except UniecsError as error:
                failed[position] = error
        return EncodeResult(embeddings, failed)

    def direction(self, word: str) -> Any:
        seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4])
        return np.random.default_rng(seed).standard_normal(self.embed_dim)

    @staticmethod
    def colour(image: Any) -> str:
        return list(COLOURS)[int(np.asarray(open_image(image)).mean((0, 1)).argmax())]


def fake(model_id: str = "fake-1", embed_dim: int = DIM) -> Encoder:
    return cast(Encoder, FakeEncoder(model_id, embed_dim))


def picture(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), COLOURS[colour]).save(file, "PNG")
    return file.getvalue()


def shop() -> list[Product]:
    return [
        Product("1", "red shirt", picture("red"), {"gender": "Men", "price": 10}),
        Product("2", "green shirt", picture("green"), {"gender": "Women", "price": 20}),
        Product("3", "red shoe", None, {"gender": "Women", "price": 30}),
        Product("4", None, picture("blue"), {"gender": "Women", "price": 40, "sizes": ["S", "M"]}),
        Product("5", "green bag", picture("green"), {"price": 50}),
    ]


def filled(folder: Path, views: tuple[str, ...] = ("multimodal",), products: object = None) -> SearchEngine:
    engine = SearchEngine.create(folder, fake(), views=views)
    engine.add(shop() if products is None else products)
    return engine


def ids(hits: list[Hit]) -> list[str]:
    return [hit.id for hit in hits]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
