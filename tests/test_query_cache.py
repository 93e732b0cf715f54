"""Queries known from before are not embedded again; what is kept can neither be changed nor grow."""

from __future__ import annotations

import io
import runpy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from uniecs.engine import Query, SearchEngine
from uniecs.errors import ImageError, InputError, TextError
from uniecs.query_cache import MAX_TEXT_CHARS, QueryCache

FAKES = runpy.run_path(str(Path(__file__).with_name("fake_encoder.py")))
FakeEncoder, picture, shop = FAKES["FakeEncoder"], FAKES["picture"], FAKES["shop"]


class Counted:
    """An `encode` of queries that notes what it was asked for; "bad" fails."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def __call__(self, queries: Any) -> Any:
        self.asked += [(query.text, query.image) for query in queries]
        errors = {place: TextError("bad") for place, query in enumerate(queries) if query.text == "bad"}
        rows = [[float(len(query.text or "")), 0 if query.image is None else 1] for query in queries]
        return np.array(rows, np.float32).reshape(len(queries), 2), errors


def texts(*values: str) -> list[Query]:
    return [Query(value) for value in values]


def test_a_known_query_is_not_embedded_again() -> None:
    cache, encode = QueryCache(10), Counted()
    first, _ = cache.embed(texts("red", "blue"), encode)
    again, errors = cache.embed(texts("blue", "green", "red"), encode)
    assert [text for text, _ in encode.asked] == ["red", "blue", "green"]
    np.testing.assert_array_equal(again, [[4, 0], [5, 0], [3, 0]])
    np.testing.assert_array_equal(first, [[3, 0], [4, 0]])
    assert errors == {}
    assert cache.embed([], encode)[0].shape == (0, 2)


def test_errors_keep_their_places_and_are_not_remembered() -> None:
    cache, encode = QueryCache(10), Counted()
    cache.embed(texts("red"), encode)
    for _ in range(2):
        rows, errors = cache.embed(texts("blue", "red", "bad"), encode)
        assert list(errors) == [2]
        np.testing.assert_array_equal(rows[:2], [[4, 0], [3, 0]])
    assert [text for text, _ in encode.asked] == ["red", "blue", "bad", "bad"]


def test_rows_belong_to_the_caller() -> None:
    cache, encode = QueryCache(10), Counted()
    for _ in range(3):
        rows, _ = cache.embed(texts("red"), encode)
        np.testing.assert_array_equal(rows, [[3, 0]])
        rows[:] = np.nan
    assert len(encode.asked) == 1


def test_the_query_used_longest_ago_is_forgotten() -> None:
    cache, encode = QueryCache(2), Counted()
    for text in ("a", "bb", "a", "ccc", "a", "bb"):
        cache.embed(texts(text), encode)
        assert len(cache) <= 2
    assert [text for text, _ in encode.asked] == ["a", "bb", "ccc", "bb"]


def test_images_are_kept_only_on_request_and_by_content(tmp_path: Path) -> None:
    red, path = picture("red"), tmp_path / "a.png"
    path.write_bytes(red)
    pixels = np.zeros((4, 4, 3), np.uint8)
    sources: list[Any] = [red, path, str(path), bytearray(red), pixels, pixels.copy()]
    for images, asked in ((False, 6), (True, 2)):
        cache, encode = QueryCache(10, images=images), Counted()
        for source in sources:
            cache.embed([Query(image=source)], encode)
        assert len(encode.asked) == asked
    path.write_bytes(picture("blue"))
    for other in (Query(image=path), Query("red", red), Query(image=pixels[:2]), Query(image=pixels + 1)):
        cache.embed([other], encode)
    assert len(encode.asked) == 6
    for never in (io.BytesIO(red), tmp_path / "missing.png", "\0"):
        cache.embed([Query(image=never)] * 2, encode)
    assert len(encode.asked) == 12


def test_what_is_no_usual_query_is_not_kept() -> None:
    cache, encode = QueryCache(10), Counted()
    odd: list[Any] = ["x" * (MAX_TEXT_CHARS + 1)]
    for text in odd * 2:
        cache.embed(texts(text), encode)
    assert (len(cache), len(encode.asked)) == (0, 2)
    for entries in (-1, 1.5, True, None):
        with pytest.raises(InputError, match="query_cache"):
            QueryCache(entries)  # type: ignore[arg-type]


def test_many_threads_share_it() -> None:
    cache, encode = QueryCache(7), Counted()
    words = ["x" * (1 + i % 20) for i in range(2000)]
    with ThreadPoolExecutor(8) as pool:
        rows = list(pool.map(lambda word: cache.embed(texts(word), encode)[0][0, 0], words))
    assert rows == [len(word) for word in words]
    assert len(cache) == 7


def test_the_engine_embeds_a_query_once_and_products_always(tmp_path: Path) -> None:
    for options, embedded in (({}, 3), ({"cache_images": True}, 2), ({"query_cache": 0}, 4)):
        encoder: Any = FakeEncoder()
        engine = SearchEngine.create(tmp_path / f"shop-{embedded}", encoder, **options)
        engine.add(shop())
        before = encoder.items
        found = [(engine.search(text="red shirt"), engine.search(text="red shirt", image=picture("red"))) for _ in "ab"]
        assert found[0] == found[1]
        assert encoder.items == before + embedded
        engine.update(shop()[:1])
        assert encoder.items == before + embedded + 1


def test_a_bad_query_is_an_error_each_time(tmp_path: Path) -> None:
    encoder: Any = FakeEncoder()
    engine = SearchEngine.create(tmp_path / "shop", encoder, cache_images=True)
    engine.add(shop())
    for _ in range(2):
        with pytest.raises(TextError):
            engine.search(text=" ")
        with pytest.raises(ImageError):
            engine.search(image=b"no image")
        result = engine.search_batch([Query("red"), Query(image=tmp_path / "none.png")], errors="return")
        assert list(result.errors) == [1]
    engine.save()
    engine.close()
    with pytest.raises(InputError, match="query_cache"):
        SearchEngine.open(tmp_path / "shop", encoder, query_cache=-1)
