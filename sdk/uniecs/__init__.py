"""Multimodal e-commerce search: find products by words, a photo or both.

    import uniecs

    encoder = uniecs.load("mini")
    engine = uniecs.SearchEngine.create("shop.uniecs", encoder)
    engine.add([{"id": "1", "title": "red cotton kurta", "image": "kurta.jpg"}])
    hits = engine.search(text="red kurta", k=10)
    print(hits[0].id, hits[0].score)

Every error is a `UniecsError`. Importing the package loads numpy and nothing heavier.
"""

from __future__ import annotations

from uniecs.catalog import Product, Rejected
from uniecs.encoder import Encoder, EncodeResult, load
from uniecs.engine import AddReport, Hit, Query, SearchEngine
from uniecs.errors import (
    BackendError,
    BundleError,
    CatalogError,
    CheckpointError,
    ConfigError,
    EngineMismatchError,
    FilterError,
    ImageError,
    IndexFileError,
    InputError,
    MissingExtraError,
    ModelMismatchError,
    ParityError,
    TextError,
    TrainingError,
    UniecsError,
)

__all__ = [
    "AddReport",
    "BackendError",
    "BundleError",
    "CatalogError",
    "CheckpointError",
    "ConfigError",
    "EncodeResult",
    "Encoder",
    "EngineMismatchError",
    "FilterError",
    "Hit",
    "ImageError",
    "IndexFileError",
    "InputError",
    "MissingExtraError",
    "ModelMismatchError",
    "ParityError",
    "Product",
    "Query",
    "Rejected",
    "SearchEngine",
    "TextError",
    "TrainingError",
    "UniecsError",
    "__version__",
    "load",
]

__version__ = "0.1.0"
