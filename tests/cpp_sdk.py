"""The shared library of the C++ SDK as a program in another language sees it, through ctypes."""

from __future__ import annotations

import ctypes
import json
import os
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from uniecs.catalog import Product as PythonProduct

OK, INPUT, IMAGE, TEXT, FILTER, BUNDLE, INDEX_FILE, MODEL_MISMATCH, BACKEND = range(9)
Pair = tuple[str | None, bytes | None]
Left = tuple[int, str, int, str]  # row, id, status, message


class Item(ctypes.Structure):
    _fields_ = (
        ("text", ctypes.c_char_p),
        ("image_path", ctypes.c_char_p),
        ("image_data", ctypes.c_char_p),
        ("image_bytes", ctypes.c_size_t),
    )


class Product(ctypes.Structure):
    _fields_ = (
        ("id", ctypes.c_char_p),
        ("title", ctypes.c_char_p),
        *Item._fields_[1:],
        ("attributes", ctypes.c_char_p),
    )


class Hit(ctypes.Structure):
    _fields_ = (
        ("id", ctypes.c_char_p),
        ("score", ctypes.c_float),
        ("title", ctypes.c_char_p),
        ("image_path", ctypes.c_char_p),
        ("attributes", ctypes.c_char_p),
    )


class Rejection(ctypes.Structure):
    _fields_ = (
        ("row", ctypes.c_size_t),
        ("id", ctypes.c_char_p),
        ("status", ctypes.c_int),
        ("message", ctypes.c_char_p),
    )


WARNING = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_void_p)


class OpenOptions(ctypes.Structure):
    _fields_ = (("durability", ctypes.c_char_p), ("warning", WARNING), ("warning_data", ctypes.c_void_p))


class IndexConfig(ctypes.Structure):
    _fields_ = (
        ("views", ctypes.c_char_p),
        ("M", ctypes.c_uint32),
        ("ef_construction", ctypes.c_uint32),
        ("storage", ctypes.c_char_p),
    )


RETURNS: dict[str, Any] = {
    "error_message": ctypes.c_char_p,
    "encoder_embed_dim": ctypes.c_size_t,
    **{f"encoder_{name}": ctypes.c_char_p for name in ("model_id", "bundle", "backend", "device", "precision")},
    "encoder_free": None,
    "engine_free": None,
    "engine_views": ctypes.c_char_p,
    "hits_queries": ctypes.c_size_t,
    "hits_message": ctypes.c_char_p,
    "hits_count": ctypes.c_size_t,
    "hits_at": ctypes.POINTER(Hit),
    "hits_json": ctypes.c_char_p,
    "hits_free": None,
    "report_added": ctypes.c_size_t,
    "report_rejected": ctypes.c_size_t,
    "report_at": ctypes.POINTER(Rejection),
    "report_free": None,
}


class Failed(Exception):
    """A status that is not OK, and its message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status, self.message = status, message


def items(pairs: Sequence[tuple[str | None, Any]]) -> Any:
    """An array of `Item`, of texts and of images: bytes, a path, or (path, bytes or None)."""
    return (Item * len(pairs))(*(_item(None if text is None else text.encode(), image) for text, image in pairs))


def _item(text: bytes | None, image: Any) -> Item:
    if isinstance(image, tuple):
        path, data = image
        return Item(text, os.fsencode(path), data, len(data or b""))
    if isinstance(image, bytes):
        return Item(text, None, image, len(image))
    return Item(text, None if image is None else bytes(image), None, 0)


class Sdk:
    """The library; `call` raises `Failed`."""

    Failed = Failed  # of this one module: tests each run it anew

    def __init__(self, library: Path) -> None:
        self.c = ctypes.CDLL(str(library))
        for name, returned in RETURNS.items():
            getattr(self.c, f"uniecs_{name}").restype = returned

    def call(self, name: str, *arguments: Any) -> None:
        status = getattr(self.c, f"uniecs_{name}")(*arguments)
        if status != OK:
            raise Failed(status, self.message())

    def message(self) -> str:
        return str(self.c.uniecs_error_message().decode())

    def load(
        self, bundle: Path, precision: bytes = b"fp32", threads: int = 1, backend: bytes = b"openvino"
    ) -> ctypes.c_void_p:
        encoder = ctypes.c_void_p()
        self.call("encoder_load", str(bundle).encode(), backend, precision, threads, ctypes.byref(encoder))
        return encoder

    def encode(self, encoder: ctypes.c_void_p, pairs: Sequence[Pair]) -> tuple[int, npt.NDArray[np.float32]]:
        out = np.zeros((len(pairs), self.c.uniecs_encoder_embed_dim(encoder)), np.float32)
        count, batch_size = ctypes.c_size_t(len(pairs)), ctypes.c_size_t(0)
        return self.c.uniecs_encoder_encode(encoder, items(pairs), count, batch_size, out.ctypes, None), out

    def encode_good(
        self, encoder: ctypes.c_void_p, given: Any, batch_size: int = 0
    ) -> tuple[npt.NDArray[np.float32], int, list[Left]]:
        """Pairs or `items`: embeddings, how many there are, and of those that were left out what `report` gives."""
        out = np.zeros((len(given), self.c.uniecs_encoder_embed_dim(encoder)), np.float32)
        report = ctypes.c_void_p()
        sizes = (ctypes.c_size_t(len(given)), ctypes.c_size_t(batch_size))
        array = given if isinstance(given, ctypes.Array) else items(given)
        self.call("encoder_encode", encoder, array, *sizes, out.ctypes, ctypes.byref(report))
        return out, *self.report(report)

    def report(self, report: ctypes.c_void_p) -> tuple[int, list[Left]]:
        """How many things were taken, and (row, id, status, message) of the others; frees it."""
        c = self.c
        places = map(ctypes.c_size_t, range(c.uniecs_report_rejected(report)))
        rejected = [c.uniecs_report_at(report, place).contents for place in places]
        left = [(each.row, each.id.decode(), each.status, each.message.decode()) for each in rejected]
        added = c.uniecs_report_added(report)
        c.uniecs_report_free(report)
        return added, left

    def open(self, folder: Path, encoder: ctypes.c_void_p, durability: bytes | None = None) -> Engine:
        return Engine(self, folder, encoder, None, durability)

    def create(self, folder: Path, encoder: ctypes.c_void_p, **config: Any) -> Engine:
        return Engine(self, folder, encoder, IndexConfig(**config), None)


Found = list[tuple[str, float]]


class Engine:
    """A `SearchEngine` of the library; `warnings` are those that it gave."""

    def __init__(
        self, sdk: Sdk, folder: Path, encoder: ctypes.c_void_p, config: IndexConfig | None, durability: bytes | None
    ) -> None:
        self._sdk = sdk
        self._handle = ctypes.c_void_p()
        self.warnings: list[str] = []
        self._warning = WARNING(lambda message, _: self.warnings.append(message.decode()))
        options = OpenOptions(durability, self._warning, None)
        made_with = () if config is None else (ctypes.byref(config),)
        name = "engine_open" if config is None else "engine_create"
        sdk.call(name, bytes(folder), encoder, *made_with, ctypes.byref(options), ctypes.byref(self._handle))

    def __len__(self) -> int:
        size = ctypes.c_size_t()
        self._sdk.call("engine_size", self._handle, ctypes.byref(size))
        return size.value

    def put(self, name: str, products: Sequence[Mapping[str, Any]]) -> tuple[int, list[Left]]:
        """`add` or `update` products of id, title, image and attributes: how many, and (row, id, status, message)."""
        given = (Product * len(products))()
        for place, product in enumerate(products):
            item = _item(None, product.get("image"))
            attributes = product.get("attributes", {})
            text = attributes if isinstance(attributes, str) else json.dumps(attributes, ensure_ascii=False)
            title = None if product.get("title") is None else product["title"].encode()
            id = None if product["id"] is None else product["id"].encode()
            given[place] = Product(id, title, item.image_path, item.image_data, item.image_bytes, text.encode())
        report = ctypes.c_void_p()
        count = ctypes.c_size_t(len(products))
        self._sdk.call(f"engine_{name}", self._handle, given, count, ctypes.byref(report))
        return self._sdk.report(report)

    @property
    def views(self) -> list[str]:
        return str(self._sdk.c.uniecs_engine_views(self._handle).decode()).split(",")

    def remove(self, ids: Sequence[str]) -> int:
        given, removed = (ctypes.c_char_p * len(ids))(*(id.encode() for id in ids)), ctypes.c_size_t()
        self._sdk.call("engine_remove", self._handle, given, ctypes.c_size_t(len(ids)), ctypes.byref(removed))
        return removed.value

    def search(self, text: str | None = None, image: bytes | Path | None = None, **options: Any) -> Found:
        return [(hit["id"], hit["score"]) for hit in self.hits("search", items([(text, image)]), **options)]

    def similar(self, id: str, **options: Any) -> Found:
        return [(hit["id"], hit["score"]) for hit in self.hits("similar", id.encode(), **options)]

    def hits(self, name: str, query: Any, **options: Any) -> list[dict[str, Any]]:
        """The whole hits of `search` or `similar`."""
        return self._asked(name, (query,), **options)[0][2]

    def search_batch(
        self, pairs: Sequence[tuple[str | None, Any]], **options: Any
    ) -> list[tuple[int, str, list[dict[str, Any]]]]:
        """For each query its status, message and hits."""
        return self._asked("search_batch", (items(pairs), ctypes.c_size_t(len(pairs))), **options)

    def _asked(
        self,
        name: str,
        query: tuple[Any, ...],
        k: int = 10,
        view: str | None = None,
        where: Any = None,
    ) -> list[tuple[int, str, list[dict[str, Any]]]]:
        text = where if where is None or isinstance(where, str) else json.dumps(where)
        c, hits = self._sdk.c, ctypes.c_void_p()
        filters = (None if each is None else each.encode() for each in (view, text))
        self._sdk.call(f"engine_{name}", self._handle, *query, ctypes.c_size_t(k), *filters, ctypes.byref(hits))
        answers = []
        for place in map(ctypes.c_size_t, range(c.uniecs_hits_queries(hits))):
            some = range(c.uniecs_hits_count(hits, place))
            read = [_read(c.uniecs_hits_at(hits, place, ctypes.c_size_t(i)).contents) for i in some]
            status = c.uniecs_hits_status(hits, place)
            assert in_json(c.uniecs_hits_json(hits, place)) == read
            answers.append((status, c.uniecs_hits_message(hits, place).decode(), read))
        c.uniecs_hits_free(hits)
        return answers

    def save(self) -> None:
        self._sdk.call("engine_save", self._handle)

    def close(self) -> None:
        self._sdk.call("engine_close", self._handle)

    def free(self) -> None:
        self._sdk.c.uniecs_engine_free(self._handle)
        self._handle = ctypes.c_void_p()


def in_json(text: bytes) -> list[dict[str, Any]]:
    """What `_read` makes of the same hits."""
    hits = json.loads(text)
    for hit in hits:
        hit["score"] = float(np.float32(hit["score"]))
        hit["image"] = hit["image"] and os.fsencode(hit["image"])
    return hits


def _read(hit: Hit) -> dict[str, Any]:
    return {
        "id": hit.id.decode(),
        "score": hit.score,
        "title": None if hit.title is None else hit.title.decode(),
        "image": hit.image_path,
        "attributes": json.loads(hit.attributes),
    }


# Products, and what Python finds


def where_in_json(where: Any) -> Any:
    """A `where` of Python as C++ takes it: ranges are spelled out."""
    if isinstance(where, tuple):
        return {"$between": list(where)}
    if isinstance(where, Mapping):
        return {key: where_in_json(value) for key, value in where.items()}
    return [where_in_json(each) for each in where] if isinstance(where, list) else where


def shop(n: int, seed: int = 0) -> list[dict[str, Any]]:
    """Products with a title and attributes of every kind."""
    draw = random.Random(seed)
    colours, kinds = ("red", "blue", "black", "green", "white", "grey"), ("shirt", "dress", "shoes", "bag", "watch")
    made = []
    for number in range(n):
        attributes: dict[str, Any] = {"price": draw.randrange(100), "new": draw.random() < 0.3}
        if draw.random() < 0.8:
            attributes["colour"] = draw.choice(colours)
        if sizes := draw.sample(["S", "M", "L", 38, 40.5, "42"], draw.randrange(4)):
            attributes["sizes"] = sizes
        title = f"{draw.choice(colours)} {draw.choice(kinds)} {draw.choice(colours)} {number}"
        made.append({"id": f"p{number}", "title": title, "attributes": attributes})
    return made


def as_products(rows: Sequence[Mapping[str, Any]]) -> list[PythonProduct]:
    return [PythonProduct(row["id"], row["title"], None, row["attributes"]) for row in rows]


def pairs_of(hits: Sequence[Any]) -> list[tuple[str, float]]:
    return [(hit.id, hit.score) for hit in hits]


def same(found: Sequence[tuple[str, float]], expected: Sequence[tuple[str, float]]) -> bool:
    ids = [id for id, _ in found] == [id for id, _ in expected]
    return ids and all(abs(a - b) < 1e-6 for (_, a), (_, b) in zip(found, expected, strict=True))
