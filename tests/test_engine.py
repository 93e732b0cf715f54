"""The search engine over a fake encoder: products in, hits out, whatever comes in."""

from __future__ import annotations

import io
import os
import runpy
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from uniecs import engine as engine_module
from uniecs.catalog import Product
from uniecs.encoder import Encoder
from uniecs.engine import AddReport, BatchResult, Query, SearchEngine
from uniecs.errors import (
    BundleError,
    CatalogError,
    ConfigError,
    FilterError,
    ImageError,
    IndexFileError,
    InputError,
    TextError,
    UniecsError,
)

FAKES = runpy.run_path(str(Path(__file__).with_name("fake_encoder.py")))
fake: Callable[..., Encoder] = FAKES["fake"]
filled: Callable[..., SearchEngine] = FAKES["filled"]
FakeEncoder, shop, picture, ids = FAKES["FakeEncoder"], FAKES["shop"], FAKES["picture"], FAKES["ids"]


@pytest.fixture
def engine(tmp_path: Path) -> SearchEngine:
    return filled(tmp_path / "shop.uniecs", ("multimodal", "image", "text"))


def test_search_by_text_by_image_and_by_both(engine: SearchEngine) -> None:
    (hit,) = engine.search(text="red shoe", k=1)
    assert (hit.id, hit.product) == ("3", shop()[2])
    assert hit.score == pytest.approx(1, abs=1e-6)
    assert ids(engine.search(image=picture("blue"), k=1)) == ["4"]
    assert ids(engine.search(text="bag", image=picture("green"), k=1)) == ["5"]
    scores = [hit.score for hit in engine.search(text="shirt")]
    assert len(scores) == 5 and scores == sorted(scores, reverse=True)


def test_views_hold_what_they_embed(engine: SearchEngine) -> None:
    assert engine.views == ("multimodal", "image", "text")
    assert sorted(ids(engine.search(text="shirt", view="image"))) == ["1", "2", "4", "5"]
    assert sorted(ids(engine.search(text="shirt", view="text"))) == ["1", "2", "3", "5"]
    assert engine.search(image=picture("green"), view="image")[0].score == pytest.approx(1, abs=1e-6)
    with pytest.raises(InputError, match="multimodal, image, text"):
        engine.search(text="x", view="title")


def test_each_input_is_embedded_once(tmp_path: Path) -> None:
    encoder = FakeEncoder()
    engine = SearchEngine.create(tmp_path / "i", cast(Encoder, encoder), views=("multimodal", "text"))
    engine.add([Product("1", "red"), Product("2", "red", picture("red"))])
    assert encoder.items == 3


def test_file_objects_serve_every_view(tmp_path: Path) -> None:
    engine = filled(tmp_path / "i", ("multimodal", "image"), [Product("1", "x", io.BytesIO(picture("red")))])
    assert len(engine.search(text="x", view="image")) == len(engine.search(text="x")) == 1


def test_batch(engine: SearchEngine) -> None:
    queries = [Query("red shoe"), Query(image=picture("blue")), Query("bag", picture("green"))]
    assert [ids(hits) for hits in engine.search_batch(queries, k=1)] == [["3"], ["4"], ["5"]]
    assert engine.search_batch([]) == []


def test_bad_query_of_a_batch_leaves_the_others_unharmed(engine: SearchEngine) -> None:
    queries = [Query("red shoe"), Query(""), Query(image=b"not an image"), Query(image=picture("blue"))]
    result = engine.search_batch(queries, k=1, errors="return")
    assert isinstance(result, BatchResult)
    assert [ids(hits) for hits in result.hits] == [["3"], [], [], ["4"]]
    assert {place: type(error) for place, error in result.errors.items()} == {1: TextError, 2: ImageError}
    with pytest.raises(TextError):
        engine.search_batch(queries)


@pytest.mark.parametrize(
    ("query", "error"),
    [
        ({}, InputError),
        ({"text": ""}, TextError),
        ({"text": 5}, TextError),
        ({"text": "\ud800"}, TextError),
        ({"image": "none.jpg"}, ImageError),
        ({"image": picture("red")[:40]}, ImageError),
        ({"image": np.full((2, 2, 3), np.nan)}, ImageError),
        ({"text": "good", "image": b"bad"}, ImageError),
        ({"text": "x", "k": 0}, InputError),
        ({"text": "x", "k": -1}, InputError),
        ({"text": "x", "k": 1.0}, InputError),
        ({"text": "x", "k": True}, InputError),
        ({"text": "x", "k": None}, InputError),
        ({"text": "x", "where": {"color": "red"}}, FilterError),
        ({"text": "x", "where": {"price": []}}, FilterError),
        ({"text": "x", "where": {"$not": {"color": "red"}}}, FilterError),
        ({"text": "x", "where": {"color": None}}, FilterError),
        ({"text": "x", "where": "price"}, FilterError),
    ],
)
def test_unusable_query(engine: SearchEngine, query: dict[str, Any], error: type[UniecsError]) -> None:
    with pytest.raises(error):
        engine.search(**query)
    assert ids(engine.search(text="red shoe", k=1)) == ["3"]


def test_batch_of_something_else(engine: SearchEngine) -> None:
    with pytest.raises(InputError, match=r"queries\[1\] is 'red shoe'; expected a uniecs\.Query"):
        engine.search_batch(cast(Any, [Query("red shoe"), "red shoe"]))
    for queries in (Query("red shoe"), None):
        with pytest.raises(InputError, match=r"expected a list of uniecs\.Query"):
            engine.search_batch(cast(Any, queries))


def test_long_and_foreign_texts(engine: SearchEngine) -> None:
    for text in ("浴衣 👘", "a\0b", "word " * 20_000):
        assert len(engine.search(text=text)) == 5


def test_k_above_the_size_returns_all(engine: SearchEngine) -> None:
    assert len(engine.search(text="x", k=2**64)) == 5 == len(engine.similar("1", k=2**64 - 1)) + 1
    assert len(engine.search(text="x", k=10**12)) == len(engine.search(text="x", k=cast(int, np.int64(6)))) == 5


def test_where(engine: SearchEngine) -> None:
    assert sorted(ids(engine.search(text="x", where={"gender": "Women"}))) == ["2", "3", "4"]
    assert ids(engine.search(text="red shoe", k=1, where={"gender": "Men", "price": (None, 10)})) == ["1"]
    assert ids(engine.search(text="x", where={"sizes": "S"})) == ["4"]
    assert engine.search(text="x", where={"gender": "Men", "price": (11, None)}) == []
    assert len(engine.search(text="x", where={})) == 5
    with pytest.raises(FilterError, match="known keys: gender, price, sizes"):
        engine.search(text="x", where={"color": "red"})


def test_similar(engine: SearchEngine) -> None:
    assert ids(engine.similar("2", k=2)) == ["5", "1"]
    assert sorted(ids(engine.similar("2"))) == ["1", "3", "4", "5"]
    assert ids(engine.similar("2", where={"gender": "Women"}, k=1, view="text")) == ["3"]
    assert ids(engine.similar("1", view="image", k=1)) != ["1"]
    for unusable in ({"id": "9"}, {"id": "4", "view": "text"}, {"id": "1", "k": 0}, {"id": "1", "view": "x"}):
        with pytest.raises(InputError):
            engine.similar(**cast(Any, unusable))


def test_add_reports_what_it_rejects_and_goes_on(tmp_path: Path) -> None:
    products: list[Any] = [
        {"id": "1", "title": "red shirt"},
        {"id": "2", "title": "good title", "image": b"not an image"},
        {"id": "3", "image": str(tmp_path / "none.jpg")},
        {"id": "4", "title": "x" * 1_000_001},
        {"id": "1", "title": "again"},
        {"title": "no id"},
        {"id": "7"},
        {"id": "8", "title": 5},
        {"id": "9", "title": "x", "image": np.full((4, 4, 3), np.nan)},
        {"id": "10", "title": "x", "image": picture("red")[:50]},
        {"id": "11", "title": "x", "image": io.StringIO("text")},
        {"id": "12", "title": "red bag", "image": picture("red")},
    ]
    engine = SearchEngine.create(tmp_path / "i", fake())
    report = engine.add(products)
    assert isinstance(report, AddReport) and report.added == len(engine) == 2
    assert [each.row for each in report.rejected] == list(range(1, 11))
    assert [type(each.error) for each in report.rejected] == [
        *(ImageError, ImageError, TextError, InputError, InputError, InputError, TextError),
        *(ImageError, ImageError, ImageError),
    ]
    assert [each.id for each in report.rejected[:5]] == ["2", "3", "4", "1", None]
    assert "already in the index" in str(report.rejected[3].error)
    assert ids(engine.search(text="red bag", image=picture("red"), k=1)) == ["12"]
    # the frames of a traceback would keep the pictures of its whole chunk
    assert all(each.error.__traceback__ is None for each in report.rejected)


def test_product_that_no_view_holds(tmp_path: Path) -> None:
    engine = SearchEngine.create(tmp_path / "i", fake(), views=("image",))
    report = engine.add([Product("1", "words only"), Product("2", None, picture("red"))])
    assert report.added == 1 and "views image" in str(report.rejected[0].error)


def test_image_is_not_opened_for_a_text_view(tmp_path: Path) -> None:
    engine = filled(tmp_path / "i", ("text",), [Product("1", "x", tmp_path / "none.jpg")])
    assert engine.search(text="x")[0].product.image == str(tmp_path / "none.jpg")


def test_known_ids_are_not_embedded_again(tmp_path: Path) -> None:
    encoder = FakeEncoder()
    engine = SearchEngine.create(tmp_path / "i", cast(Encoder, encoder))
    engine.add(shop())
    before = encoder.items
    assert engine.add(shop()).added == 0 and encoder.items == before


def test_catalogue_is_streamed_in_chunks(tmp_path: Path) -> None:
    engine = SearchEngine.create(tmp_path / "i", fake())
    seen: list[int] = []

    def products() -> Iterator[Product]:
        for number in range(300):
            seen.append(len(engine))
            yield Product(str(number), f"shirt {number}")

    assert engine.add(products()) == AddReport(300, [])
    assert seen[engine_module.CHUNK] == engine_module.CHUNK and seen[299] == 256


def test_what_was_read_before_a_source_broke_off_stays(tmp_path: Path) -> None:
    def products() -> Iterator[Product]:
        for number in range(engine_module.CHUNK + 100):
            yield Product(str(number), f"shirt {number}")
        raise CatalogError("the file ends here")

    engine = SearchEngine.create(tmp_path / "i", fake())
    with pytest.raises(CatalogError, match="ends here"):
        engine.add(products())
    assert len(engine) == engine_module.CHUNK + 100


def test_the_lock_is_given_back_when_leaving_fails(tmp_path: Path) -> None:
    with pytest.raises(IndexFileError), SearchEngine.create(tmp_path / "i", fake()) as engine:
        engine.add(shop())
        (tmp_path / "i" / "graph-multimodal.hnsw").mkdir()
    (tmp_path / "i" / "graph-multimodal.hnsw").rmdir()
    with SearchEngine.open(tmp_path / "i", fake()) as other:
        assert other.delete(["1"]) == 1
        with SearchEngine.open(tmp_path / "i", fake()) as reader:  # it changed nothing: there is nothing to save
            with pytest.raises(IndexFileError, match="being written"):
                reader.delete(["2"])
            other.delete(["3"])


def test_a_relative_path_stays_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with SearchEngine.create("i", fake()) as engine:
        monkeypatch.chdir("/")
        engine.add(shop())
    assert (tmp_path / "i" / "graph-multimodal.hnsw").is_file()


def test_a_folder_whose_path_is_not_utf8_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    with pytest.raises(InputError, match="is not UTF-8; expected a folder whose path is"):
        SearchEngine.create(folder, fake())
    with pytest.raises(InputError, match="is not UTF-8"):
        SearchEngine.open(folder, fake())
    assert not folder.exists()


def test_progress_without_a_stderr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)  # as in a service, and in pythonw
    engine = SearchEngine.create(tmp_path / "i", fake())
    assert engine.add(shop()).added == len(shop())
    engine.close()
    with SearchEngine.open(tmp_path / "i", fake()) as again:  # its graph is built anew
        assert len(again.search(text="red")) == len(shop())


def test_paths_of_images_stay_where_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(picture("blue"))
    monkeypatch.chdir(tmp_path)
    images: list[Any] = ["a.png", Path("a.png"), str(tmp_path / "a.png")]
    products = [{"id": str(number), "image": image} for number, image in enumerate(images)]
    with filled(tmp_path / "i", products=products) as engine:
        hits = engine.search(image=picture("blue"))
        assert [hit.product.image for hit in hits] == [str(tmp_path / "a.png")] * 3
    address = "https://shop.example/a.png"  # the view of texts opens no image
    with filled(tmp_path / "t", ("text",), [Product("1", "blue", address)]) as engine:
        assert engine.search(text="blue")[0].product.image == address


def test_an_encoder_is_no_name(tmp_path: Path) -> None:
    filled(tmp_path / "i").close()
    for name in ("mini", tmp_path, 5):
        with pytest.raises(InputError, match=r"encoder is .*; expected an Encoder, such as uniecs\.load"):
            SearchEngine.create(tmp_path / "new", cast(Any, name))
        with pytest.raises(InputError, match=r"encoder is .*; expected an Encoder, such as uniecs\.load"):
            SearchEngine.open(tmp_path / "i", cast(Any, name))
    assert not (tmp_path / "new").exists()


def test_a_bundle_that_was_moved_is_to_be_given(tmp_path: Path) -> None:
    filled(tmp_path / "i").close()
    with pytest.raises(BundleError, match=r"/models/fake.*i records this bundle.*encoder=uniecs\.load.*--model"):
        SearchEngine.open(tmp_path / "i")
    assert len(SearchEngine.open(tmp_path / "i", fake())) == 5


def test_ids_are_strings(tmp_path: Path) -> None:
    with filled(tmp_path / "i") as engine, pytest.raises(InputError, match="ids has 1; expected strings"):
        engine.delete(cast(Any, ["2", 1]))
    assert len(SearchEngine.open(tmp_path / "i", fake())) == 5


def test_catalogue_file(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture("blue"))
    (tmp_path / "shop.csv").write_text(
        "id,title,image,year\n1,blue shoe,a.png,2012\n2,bag,none.png,2013\n3,hat,,2014\n"
    )
    engine = SearchEngine.create(tmp_path / "i", fake())
    report = engine.add(tmp_path / "shop.csv")
    assert report.added == 2 and [each.id for each in report.rejected] == ["2"]
    (hit,) = engine.search(image=picture("blue"), k=1, where={"year": (None, 2013)})
    assert hit.product == Product("1", "blue shoe", str(tmp_path / "a.png"), {"year": "2012"})
    with pytest.raises(CatalogError):
        engine.add(tmp_path / "none.csv")
    assert len(engine) == 2


def test_update(engine: SearchEngine) -> None:
    report = engine.update([Product("1", "blue hat"), Product("99", "x"), Product("2", "y", b"bad image")])
    assert report.added == 1 and [each.id for each in report.rejected] == ["99", "2"]
    assert "not in the index" in str(report.rejected[0].error)
    assert len(engine) == 5
    hit = engine.search(text="blue hat", k=1)[0]
    assert (hit.id, hit.product, round(hit.score, 5)) == ("1", Product("1", "blue hat"), 1)
    assert "1" not in ids(engine.search(text="x", view="image"))
    assert engine.search(text="green shirt", view="text")[0].id == "2"


def test_delete(engine: SearchEngine) -> None:
    assert engine.delete(["1", "3", "1"]) == 2
    assert sorted(ids(engine.search(text="red shirt"))) == ["2", "4", "5"]
    assert engine.delete([]) == 0
    for unusable in (["2", "1"], ["nine"], [2], "2", 2, [["2"]]):
        with pytest.raises(InputError):
            engine.delete(cast(Any, unusable))
    assert len(engine) == 3
    assert engine.add([Product("1", "red shirt")]).added == 1
    assert ids(engine.search(text="red shirt", k=1)) == ["1"]


def test_empty_engine(tmp_path: Path) -> None:
    with SearchEngine.create(tmp_path / "i", fake()) as engine:
        assert engine.search(text="x") == [] and engine.search(text="x", where={"a": 1}) == [] and len(engine) == 0
    again = SearchEngine.open(tmp_path / "i", fake())
    assert again.search(text="x") == []


def test_compact(engine: SearchEngine, tmp_path: Path) -> None:
    engine.delete(["1", "4"])
    before = [engine.search(text="green shoe", view=view) for view in engine.views]
    engine.compact()
    assert [engine.search(text="green shoe", view=view) for view in engine.views] == before
    engine.add([Product("6", "blue tie", picture("blue"))])
    engine.save()
    assert engine.stats()["views"]["multimodal"]["live"] == 4 and engine.stats()["views"]["multimodal"]["removed"] == 0
    again = SearchEngine.open(tmp_path / "shop.uniecs", fake())
    assert ids(again.search(text="blue tie", k=1)) == ["6"] and len(again) == 4


def test_closed_engine_refuses(engine: SearchEngine) -> None:
    engine.close()
    engine.close()
    product = [Product("9", "x")]
    for use in (
        lambda: engine.search(text="x"),
        lambda: engine.similar("1"),
        lambda: engine.add(product),
        lambda: engine.update(product),
        lambda: engine.delete([]),
        engine.save,
        engine.compact,
    ):
        with pytest.raises(InputError, match="closed"):
            use()


@pytest.mark.parametrize(
    "settings",
    [
        *({"views": ()}, {"views": "image"}, {"views": ("title",)}, {"views": ("text", "text")}),
        *({"M": 1}, {"M": 2.5}, {"M": True}, {"ef_construction": 1}),
    ],
)
def test_unusable_settings(tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        SearchEngine.create(tmp_path / "i", fake(), **settings)
    assert not (tmp_path / "i").exists()


def test_many_threads_search_while_one_adds(tmp_path: Path) -> None:
    engine = filled(tmp_path / "i", ("multimodal", "text"))
    done, failures = threading.Event(), []

    def search() -> None:
        try:
            while not done.is_set():
                hits = engine.search_batch([Query("red shoe"), Query("shirt 7")], k=3, view="text")
                assert hits[0][0].id == "3" and len(hits[1]) == 3
                assert len({hit.id for hit in engine.similar("1", k=5)}) >= 4
                engine.search(text="shirt", where={"price": (None, 30)})
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=search) for _ in range(6)]
    for thread in threads:
        thread.start()
    try:
        report = engine.add(Product(f"n{number}", f"shirt {number}", None, {"price": number}) for number in range(600))
        engine.update([Product(f"n{number}", f"hat {number}") for number in range(50)])
        engine.delete([f"n{number}" for number in range(50, 100)])
        engine.save()
        engine.compact()
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert not failures and report.added == 600 and len(engine) == 555
    assert ids(engine.search(text="shirt 599", k=1)) == ["n599"]


def test_two_threads_add_the_same_catalogue(tmp_path: Path) -> None:
    engine = SearchEngine.create(tmp_path / "i", fake())
    products = [Product(str(number), f"shirt {number}") for number in range(200)]
    reports: list[AddReport] = []
    threads = [threading.Thread(target=lambda: reports.append(engine.add(products))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(report.added for report in reports) == len(engine) == 200
    assert sum(len(report.rejected) for report in reports) == 400
