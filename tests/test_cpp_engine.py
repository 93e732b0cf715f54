"""SearchEngine of the C++ SDK, through its C interface: Python's folders and Python's hits."""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import random
import runpy
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

import uniecs
from uniecs.bundle import packaged_bundle
from uniecs.catalog import Product
from uniecs.drawn_catalog import drawn_products, write_catalog
from uniecs.engine import Query, SearchEngine

cpp = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("cpp_sdk.py"))))
VIEWS = ("multimodal", "text")


WHERES: list[dict[str, Any]] = [
    {"price": (20, 60)},
    {"colour": ["red", "blue"], "new": True},
    {"sizes": "M"},
    {"sizes": (38.5, 45)},
    {"$not": {"colour": "black"}},
    {"$or": [{"price": (None, 15)}, {"$not": {"new": True}}, {"sizes": None}]},
    {"$and": [{"colour": [None, "grey"]}, {"price": (10.5, None)}]},
    {"colour": ("b", "green")},
    {},
]


def test_hits_are_pythons_on_the_demo_catalogue(cpp_sdk: Any, tmp_path: Path) -> None:
    """500 queries by text, photo and both, a third with a filter: the same ids, the same scores."""
    mini = uniecs.load("mini", threads=1)
    catalogue = write_catalog(tmp_path, drawn_products())
    rows = [json.loads(line) for line in catalogue.read_text("utf-8").splitlines()]
    with SearchEngine.create(tmp_path / "demo.uniecs", mini) as engine:
        assert not engine.add(catalogue).rejected
    draw = random.Random(0)
    titles = [row["title"] for row in rows]
    photos = [photo(tmp_path / row["image"], draw) for row in rows[:90]]
    queries: list[tuple[str | None, bytes | None]] = [
        *((" ".join(draw.sample(draw.choice(titles).split(), 2)), None) for _ in range(260)),
        *((None, each) for each in photos),
        *((draw.choice(titles), draw.choice(photos)) for _ in range(150)),
    ]
    assert len(queries) == 500
    wheres = [
        {"gender": "Women", "price": (None, 1500)},
        {"$or": [{"colour": ["Red", "Blue"]}, {"$not": {"category": "Apparel"}}]},
    ]
    cpp_encoder = cpp_sdk.load(packaged_bundle("mini"))
    fast = cpp_sdk.open(tmp_path / "demo.uniecs", cpp_encoder)
    slow = SearchEngine.open(tmp_path / "demo.uniecs", mini)
    differing, found_first = [], []
    for place, (text, image) in enumerate(queries):
        where = None if place % 3 else wheres[place % 2]
        found = fast.search(text, image, where=cpp.where_in_json(where))
        found_first.append(found)
        if not cpp.same(found, cpp.pairs_of(slow.search(text, image, where=where))):
            differing.append((text, where))
    assert differing == []
    assert not any(cpp.same(a, b) for a, b in itertools.pairwise(found_first[::7]))  # the comparison can fail
    assert fast.warnings == []
    similar = fast.similar(rows[5]["id"], k=5)
    assert cpp.same(similar, cpp.pairs_of(slow.similar(rows[5]["id"], k=5))) and len(similar) == 5
    slow.close()
    fast.free()
    cpp_sdk.c.uniecs_encoder_free(cpp_encoder)


def photo(path: Path, draw: random.Random) -> bytes:
    """The bytes of a file, or of its picture in a mirror."""
    if draw.random() < 0.5:
        return path.read_bytes()
    mirrored = path.with_suffix(".mirrored.png")
    with Image.open(path) as image:
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(mirrored)
    return mirrored.read_bytes()


@pytest.mark.parametrize("storage", ["float32", "float16", "int8"])
def test_folders_go_both_ways(cpp_sdk: Any, cpp_encoder: Any, tiny_encoder: Any, tmp_path: Path, storage: str) -> None:
    """Written in C++, sound and searched alike in Python, changed there, and back again."""
    folder, rows = tmp_path / "shop.uniecs", cpp.shop(150)
    made = cpp_sdk.create(
        folder, cpp_encoder, views=b"multimodal,text", storage=storage.encode(), M=12, ef_construction=60
    )
    assert made.put("add", rows[:100]) == (100, [])
    assert made.put("update", [*rows[:5], {**rows[99], "title": "red red dress"}]) == (6, [])
    assert made.remove([rows[7]["id"], rows[8]["id"], rows[7]["id"]]) == 2
    made.save()
    made.free()

    SearchEngine.open(folder).close()  # it says where its bundle is
    engine = SearchEngine.open(folder, tiny_encoder)
    assert engine.verify()["store"] == "ok"
    assert (engine.views, len(engine)) == (VIEWS, 98)
    fast = cpp_sdk.open(folder, cpp_encoder)
    compare(fast, engine)
    assert engine.similar("p99", k=1)[0].product.attributes == engine.search("red red dress", k=2)[1].product.attributes
    assert not engine.add(cpp.as_products(rows[100:])).rejected
    engine.update(cpp.as_products(cpp.shop(3, seed=5)))
    engine.delete(["p20"])
    engine.save()
    engine.close()

    time.sleep(1.05)  # the reader looks once a second
    assert len(fast) == 147
    fast.search("red dress")
    again = cpp_sdk.open(folder, cpp_encoder)
    with SearchEngine.open(folder, tiny_encoder) as engine:
        compare(fast, engine)
        compare(again, engine)
        compare_similar(again, engine)
    assert again.warnings == fast.warnings == []
    engine = SearchEngine.open(folder, tiny_encoder)
    assert again.put("add", [{"id": "new", "title": "white watch"}]) == (1, [])
    again.remove(["p30"])
    time.sleep(1.05)
    assert engine.search("white watch", k=1)[0].id == "new"  # Python follows too
    assert "p30" not in {hit.id for hit in engine.search("white watch", k=200)}
    again.free()
    fast.free()
    assert engine.verify()["store"] == "ok"
    engine.close()


def test_a_process_may_go_to_another_folder(
    cpp_sdk: Any, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relative paths are those of the folder that it was in at the time, also in what the index says of its bundle."""
    monkeypatch.chdir(tiny_bundle.parent)
    encoder = cpp_sdk.load(Path(tiny_bundle.name))
    monkeypatch.chdir(tmp_path)
    for place, call in enumerate((cpp_sdk.create, cpp_sdk.open)):
        engine = call(Path("a.uniecs"), encoder)
        monkeypatch.chdir("/")
        assert engine.put("add", cpp.shop(6)[3 * place :][:3]) == (3, [])
        engine.save()
        engine.free()
        monkeypatch.chdir(tmp_path)
    cpp_sdk.c.uniecs_encoder_free(encoder)
    with SearchEngine.open("a.uniecs") as engine:
        assert len(engine) == 6 and len(engine.search("red dress")) == 6


def compare(fast: Any, engine: SearchEngine) -> None:
    for place, where in enumerate([None, *WHERES]):
        for text, view in itertools.product(("red dress", "black leather bag 42"), VIEWS):
            k = (3, 10, 200)[place % 3]
            expected = cpp.pairs_of(engine.search(text, k=k, view=view, where=where))
            found = fast.search(text, k=k, view=view, where=cpp.where_in_json(where))
            assert cpp.same(found, expected), (text, view, where, found, expected)
            assert found


def compare_similar(fast: Any, engine: SearchEngine) -> None:
    for id in ("p3", "p120"):
        assert cpp.same(fast.similar(id, k=7, view="text"), cpp.pairs_of(engine.similar(id, k=7, view="text")))


def test_python_batches_too(cpp_sdk: Any, cpp_encoder: Any, tiny_encoder: Any, tmp_path: Path) -> None:
    with SearchEngine.create(tmp_path / "a.uniecs", tiny_encoder) as engine:
        engine.add(cpp.as_products(cpp.shop(40)))
        texts = [row["title"] for row in cpp.shop(20, seed=9)]
        expected = [cpp.pairs_of(hits) for hits in engine.search_batch([Query(text) for text in texts], k=4)]
    fast = cpp_sdk.open(tmp_path / "a.uniecs", cpp_encoder)
    answers = fast.search_batch([(text, None) for text in texts], k=4)
    found = [[(hit["id"], hit["score"]) for hit in hits] for _, _, hits in answers]
    assert all(cpp.same(a, b) for a, b in zip(found, expected, strict=True))
    fast.free()


def test_a_search_beside_a_writer_of_python(cpp_sdk: Any, cpp_encoder: Any, tiny_encoder: Any, tmp_path: Path) -> None:
    """Threads search in C++ while Python replaces every product: each is found once, in a whole version."""
    folder = tmp_path / "a.uniecs"
    writer = SearchEngine.create(folder, tiny_encoder, durability="batch")

    def version(number: int) -> list[Product]:
        return [Product(each.id, each.title, None, {"version": number}) for each in cpp.as_products(cpp.shop(50))]

    writer.add(version(0))
    writer.save()
    reader = cpp_sdk.open(folder, cpp_encoder)
    wrong: list[Any] = []
    stop = threading.Event()

    def run() -> None:
        last = 0
        while not stop.is_set():
            try:
                hits = reader.hits(
                    "search", cpp.items([("red dress", None)]), k=100, where={"version": {"$between": [0, None]}}
                )
            except Exception as error:  # noqa: BLE001  a thread's
                wrong.append(error)
                return
            versions = {hit["attributes"]["version"] for hit in hits}
            if len(hits) != 50 or len({hit["id"] for hit in hits}) != 50 or len(versions) != 1 or min(versions) < last:
                wrong.append((len(hits), versions, last))
            last = max(versions, default=0)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for each in threads:
        each.start()
    for number in range(1, 12):
        writer.update(version(number))
        time.sleep(0.25)
    stop.set()
    for each in threads:
        each.join()
    assert wrong == []
    time.sleep(1.05)
    reader.search("red")
    assert {hit["attributes"]["version"] for hit in reader.hits("search", cpp.items([("red", None)]))} == {11}
    writer.close()
    reader.free()


def test_products_that_cannot_be_used_are_reported(cpp_sdk: Any, cpp_encoder: Any, tmp_path: Path) -> None:
    engine = cpp_sdk.create(tmp_path / "a.uniecs", cpp_encoder, views=b"text,image")
    assert engine.views == ["text", "image"]
    good, _ = cpp.shop(2)
    bad: list[tuple[dict[str, Any], int, str]] = [
        ({"id": " ", "title": "x"}, cpp.INPUT, "the id is blank"),
        ({"id": "a"}, cpp.INPUT, "neither a title nor an image"),
        ({"id": "b", "title": "\t"}, cpp.INPUT, "neither a title nor an image"),
        ({"id": "b2", "image": b""}, cpp.IMAGE, ""),
        ({"id": "c", "image": b"none"}, cpp.IMAGE, ""),
        ({"id": "c2", "title": "x", "image": (tmp_path, b"none")}, cpp.INPUT, "both image_path and image_data"),
        ({"id": None, "title": "x"}, cpp.INPUT, "the id of a product is NULL"),
        ({"id": "d", "title": "x", "image": tmp_path / "none.jpg"}, cpp.IMAGE, "none.jpg"),
        ({"id": "d2", "title": "x", "image": tmp_path}, cpp.IMAGE, str(tmp_path)),
        ({"id": "d3", "title": "x", "image": Path("/proc/self/mem")}, cpp.IMAGE, "/proc/self/mem"),
        ({"id": "e", "title": "x", "attributes": "[1]"}, cpp.INPUT, "not a JSON object"),
        ({"id": "f", "title": "x", "attributes": '{"a": 1e999}'}, cpp.INPUT, "beyond a double"),
        ({"id": "g", "title": "x", "attributes": '{"a": {"b": 1}}'}, cpp.INPUT, 'attribute "a" is an object'),
        ({"id": "h", "title": "x", "attributes": '{"a": [[1]]}'}, cpp.INPUT, 'attribute "a" is an array'),
        ({"id": "i", "title": "x", "attributes": '{"": 1}'}, cpp.INPUT, "empty name"),
        ({"id": "j", "title": "x", "attributes": '{"a": "\\ud800"}'}, cpp.INPUT, "lone surrogate"),
        ({"id": good["id"], "title": "x"}, cpp.INPUT, "already in the index"),
    ]
    added, rejected = engine.put("add", [good, *(product for product, _, _ in bad)])
    assert added == 1 and len(engine) == 1
    assert [(row, id) for row, id, _, _ in rejected] == [
        (i + 1, product["id"] or "") for i, (product, _, _) in enumerate(bad)
    ]
    for (_, status, message), (_, _, found_status, found_message) in zip(bad, rejected, strict=True):
        assert (found_status, message in found_message) == (status, True), found_message
    added, rejected = engine.put("update", [{"id": "none", "title": "x"}, good])
    assert added == 1 and "not in the index" in rejected[0][3]
    with pytest.raises(cpp_sdk.Failed, match=r"1 of 2 ids are not in the index, such as 'none'"):
        engine.remove([good["id"], "none"])
    assert len(engine) == 1
    engine.free()


def test_blank_titles_and_paths_are_none(cpp_sdk: Any, cpp_encoder: Any, tiny_encoder: Any, tmp_path: Path) -> None:
    rows = [
        {"id": "a", "title": "red bag", "image": " \t"},
        {"id": "b", "title": "blue bag", "image": ""},
        {"id": "c", "title": " ", "image": "\n"},
    ]
    with SearchEngine.create(tmp_path / "python.uniecs", tiny_encoder) as python:
        (rejected,) = python.add(rows).rejected
        expected = [(hit.id, hit.product.image) for hit in python.search("red bag")]
    engine = cpp_sdk.create(tmp_path / "a.uniecs", cpp_encoder)
    report = engine.put("add", [{**row, "image": (row["image"], None)} for row in rows])
    assert report == (2, [(rejected.row, rejected.id, cpp.INPUT, str(rejected.error))])
    found = engine.hits("search", cpp.items([("red bag", None)]))
    assert [(hit["id"], hit["image"]) for hit in found] == expected == [("a", None), ("b", None)]
    engine.free()


def test_what_a_failed_call_makes_is_null(cpp_sdk: Any, cpp_encoder: Any, tmp_path: Path) -> None:
    """Whatever stood there before; and NULL in place of what is needed is a status, not a crash."""
    engine = ctypes.c_void_p()
    path, none, zero, one = bytes(tmp_path / "a.uniecs"), None, ctypes.c_size_t(0), ctypes.c_size_t(1)
    assert cpp_sdk.c.uniecs_engine_create(path, cpp_encoder, none, none, ctypes.byref(engine)) == cpp.OK
    query = (cpp.Item * 1)(cpp.Item(b"red", None, None, 0))
    tail = (one, none, none)
    for name, *arguments in (
        ("encoder_load", none, b"openvino", b"fp32", ctypes.c_uint(1)),
        ("encoder_encode", none, query, one, zero, none),
        ("encoder_encode", cpp_encoder, none, one, zero, none),
        ("engine_create", none, cpp_encoder, none, none),
        ("engine_create", path, none, none, none),
        ("engine_open", none, cpp_encoder, none),
        ("engine_open", path, none, none),
        ("engine_add", none, none, zero),
        ("engine_add", engine, none, one),
        ("engine_update", engine, none, one),
        ("engine_remove", none, none, zero),
        ("engine_remove", engine, none, one),
        ("engine_search", none, query, *tail),
        ("engine_search", engine, none, *tail),
        ("engine_search_batch", none, query, one, *tail),
        ("engine_search_batch", engine, none, one, *tail),
        ("engine_similar", none, b"a", *tail),
        ("engine_similar", engine, none, *tail),
        ("engine_size", none),
        ("engine_save", none),
        ("engine_close", none),
    ):
        made = ctypes.c_void_p(1)
        out = [] if name in ("engine_save", "engine_close") else [ctypes.byref(made)]
        assert getattr(cpp_sdk.c, f"uniecs_{name}")(*arguments, *out) == cpp.INPUT, name
        assert " is NULL" in cpp_sdk.message()
        assert not made or name in ("engine_size", "engine_save", "engine_close"), name
    assert cpp_sdk.c.uniecs_engine_close(engine) == cpp_sdk.c.uniecs_engine_close(engine) == cpp.OK
    hits = ctypes.c_void_p(1)
    assert cpp_sdk.c.uniecs_engine_search(engine, query, *tail, ctypes.byref(hits)) == cpp.INPUT
    assert "closed" in cpp_sdk.message() and not hits and cpp_sdk.c.uniecs_engine_views(engine) == b"multimodal"
    cpp_sdk.c.uniecs_engine_free(engine)


def test_queries_that_cannot_be_answered(cpp_sdk: Any, cpp_encoder: Any, tmp_path: Path) -> None:
    engine = cpp_sdk.create(tmp_path / "a.uniecs", cpp_encoder)
    engine.put("add", cpp.shop(4))
    deep: Any = {"price": 1}
    for _ in range(70):
        deep = {"$and": [deep]}
    for options, status, message in (
        ({"k": 0}, cpp.INPUT, "k is 0"),
        ({"view": "text"}, cpp.INPUT, "view is 'text'; this index has multimodal"),
        ({"where": "{"}, cpp.FILTER, "no JSON"),
        ({"where": []}, cpp.FILTER, "an array; expected an object"),
        ({"where": {"nothing": 1}}, cpp.FILTER, "unknown key 'nothing'; known keys: colour, new, price, sizes"),
        ({"where": {"price": {"$between": [5, 1]}}}, cpp.FILTER, "low is above high"),
        ({"where": {"price": {"$between": [None, None]}}}, cpp.FILTER, "needs two numbers"),
        ({"where": {"price": {"$between": [1, "2"]}}}, cpp.FILTER, "needs two numbers"),
        ({"where": {"price": {"$between": [True, None]}}}, cpp.FILTER, "needs two numbers"),
        ({"where": {"price": {"low": 1}}}, cpp.FILTER, "has an object"),
        ({"where": {"price": []}}, cpp.FILTER, "empty array"),
        ({"where": {"$or": []}}, cpp.FILTER, "empty array"),
        ({"where": {"": 1}}, cpp.FILTER, "empty key"),
        ({"where": deep}, cpp.FILTER, "nested more than 64"),
    ):
        with pytest.raises(cpp_sdk.Failed) as error:
            engine.search("red", **options)
        assert error.value.status == status and message in error.value.message, error.value
    for query, status in (((None, None), cpp.INPUT), ((" ", None), cpp.TEXT), ((None, b"x"), cpp.IMAGE)):
        with pytest.raises(cpp_sdk.Failed) as error:
            engine.search(*query)
        assert error.value.status == status
    with pytest.raises(cpp_sdk.Failed, match="id 'none' is not in the index"):
        engine.similar("none")
    queries = [("red", None), (" ", None), (None, b"x"), ("red", (tmp_path, b"x")), ("blue", None)]
    answers = engine.search_batch(queries, k=2)
    statuses = [cpp.OK, cpp.TEXT, cpp.IMAGE, cpp.INPUT, cpp.OK]
    assert [(status, len(hits)) for status, _, hits in answers] == [(each, 0 if each else 2) for each in statuses]
    assert [bool(message) for _, message, _ in answers] == [False, True, True, True, False]
    assert engine.search_batch([]) == []
    engine.free()


@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_the_stress_test_is_clean_under_sanitizers(
    sanitized_build: Callable[[str], Path], tmp_path: Path, sanitizer: str
) -> None:
    program = sanitized_build(sanitizer) / "engine_stress"
    if not program.exists():
        pytest.skip("libsqlite3-dev is not installed")
    environment = os.environ | {"UBSAN_OPTIONS": "halt_on_error=1"}
    done = subprocess.run([program], capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("this kernel's address layout is not known to ThreadSanitizer")
    assert (done.returncode, done.stderr) == (0, "")
