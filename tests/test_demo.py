"""The demo: what it draws, the sheet it writes, and the whole run through the real search engine."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from uniecs import demo
from uniecs.contact_sheet import Sheet, SheetHit, SheetRow, write_html, write_png
from uniecs.drawn_catalog import PAINTERS, DrawnProduct, draw, drawn_products, varied
from uniecs.encoder import EncodeResult
from uniecs.errors import CatalogError, InputError, UniecsError
from uniecs.preprocess import open_image

DIM = 256


class PixelsAndWords:
    """An encoder without a model: hashed words beside small raw pixels, so that like finds like."""

    embed_dim, model_id = DIM, "fake-0123456789abcdef"
    backend, device, precision = "none", "cpu", "fp32"

    def __init__(self, folder: Path) -> None:
        self.bundle = SimpleNamespace(path=folder)

    def encode(
        self, texts: Sequence[str | None], images: Sequence[Any], *, errors: str = "raise", batch_size: int = 32
    ) -> EncodeResult:
        rows, failed = np.full((len(texts), DIM), np.nan, np.float32), dict[int, UniecsError]()
        for i, (text, image) in enumerate(zip(texts, images, strict=True)):
            try:
                vector = np.concatenate([_words(text), _pixels(image)])
                rows[i] = vector / np.linalg.norm(vector)
            except UniecsError as error:
                failed[i] = error
        return EncodeResult(rows, failed)


def _words(text: str | None) -> np.ndarray:
    vector = np.zeros(64)
    for word in re.findall(r"\w+", (text or "").lower()):
        vector[hashlib.sha256(word.encode()).digest()[0] % 64] += 1
    return vector / max(np.linalg.norm(vector), 1e-9)


def _pixels(image: Any) -> np.ndarray:
    if image is None:
        return np.zeros(192)
    vector = np.asarray(open_image(image).resize((8, 8)), np.float64).ravel() - 255.001
    return vector / np.linalg.norm(vector)


def run_demo(out: Path, catalog: Path | None = None) -> demo.DemoResult:
    return demo.run(out, catalog, "fake", load=lambda name: PixelsAndWords(out))


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> demo.DemoResult:
    return run_demo(tmp_path_factory.mktemp("demo") / "out")


def one_of_each() -> list[DrawnProduct]:
    return list({product.look.article: product for product in drawn_products()}.values())


def test_catalogue_is_the_same_on_every_call() -> None:
    assert drawn_products() == drawn_products()


def test_every_article_is_drawn_the_same_twice_and_is_not_blank() -> None:
    products = one_of_each()
    assert {product.look.article for product in products} == set(PAINTERS)
    for product in products:
        first = draw(product.look)
        assert first.size == (240, 320) and first.mode == "RGB"
        assert first.tobytes() == draw(product.look).tobytes()
        drawn = (np.abs(np.asarray(first, int) - np.asarray(product.look.background)).max(axis=2) > 24).mean()
        assert drawn > 0.08, product.title


def test_products_are_distinct_and_complete() -> None:
    products = drawn_products()
    assert 280 <= len(products) <= 340
    assert len({product.id for product in products}) == len(products)
    wanted = {"article_type", "category", "colour", "gender", "brand", "pattern", "price"}
    for product in products:
        assert set(product.attributes) == wanted
        assert str(product.attributes["brand"]) in product.title
        assert str(product.attributes["colour"]) in product.title
        price = product.attributes["price"]
        assert isinstance(price, int) and 100 <= price < 10_000
    looks = [(p.look.article, *(p.attributes[key] for key in ("colour", "gender", "pattern"))) for p in products]
    assert len(set(looks)) > 0.9 * len(looks)


def test_colour_in_the_title_is_the_colour_drawn() -> None:
    for name, channel in (("Red", 0), ("Green", 1), ("Blue", 2)):
        wanted = {"colour": name, "pattern": "Solid"}.items()
        product = next(each for each in drawn_products() if wanted <= each.attributes.items())
        pixels = np.asarray(draw(replace(product.look, zoom=1.0)), int)
        cloth = pixels[pixels.max(axis=2) - pixels.min(axis=2) > 60]
        assert cloth.mean(axis=0).argmax() == channel


def test_a_varied_photo_differs_from_the_catalogues() -> None:
    product = drawn_products()[0]
    assert varied(product).tobytes() != draw(product.look).tobytes()
    assert varied(product).tobytes() == varied(product).tobytes()


def test_demo_runs_on_the_drawn_catalogue(result: demo.DemoResult, capsys: pytest.CaptureFixture[str]) -> None:
    assert result.products == len(drawn_products()) and result.rejected == ()
    kinds = [query.kind for query in result.queries]
    assert {"text", "image", "image + text"} == set(kinds) and len(kinds) == len(result.hits) == 12
    assert all(len(hits) == demo.HITS for hits in result.hits)
    by_query = dict(zip((query.text for query in result.queries), result.hits, strict=True))
    for hit in by_query["casual shirt"]:
        assert hit.product.attributes["gender"] == "Women"
        price = hit.product.attributes["price"]
        assert isinstance(price, int) and price <= 1200
    assert all(answer.encode_ms > 0 and answer.search_ms > 0 for answer in result.answers)
    demo.print_report(result)
    printed = capsys.readouterr().out
    assert "red dress for women" in printed and "index the products" in printed and str(result.png) in printed


def test_query_photos_are_not_in_the_catalogue(result: demo.DemoResult) -> None:
    photos = {path.read_bytes() for path in (result.png.parent / "photos").glob("*.png")}
    queries = [query.image for query in result.queries if query.image is not None]
    assert len(queries) == 7
    for image in queries:
        assert isinstance(image, Path) and image.read_bytes() not in photos


def test_index_of_the_demo_opens_again(result: demo.DemoResult) -> None:
    from uniecs.engine import SearchEngine

    encoder: Any = PixelsAndWords(result.index.parent)
    with SearchEngine.open(result.index, encoder) as engine:
        assert len(engine) == result.products


def test_sheet_of_the_demo_is_whole(result: demo.DemoResult) -> None:
    with Image.open(result.png) as picture:
        picture.load()
        assert picture.width > 1000 and picture.height > 12 * 200
    page = result.html.read_text(encoding="utf-8")
    assert page.count("<section>") == 12 and page.count("<li>") == 12 * demo.HITS
    assert set(re.findall(r'(?:src|href)="(.{11})', page)) == {"data:image/"}
    assert "http" not in page and "url(" not in page and "<script" not in page
    assert "no picture" not in page


def test_titles_are_escaped_and_missing_pictures_are_said(tmp_path: Path) -> None:
    nasty = '<script>alert("x")</script> & "quotes"'
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not a picture")
    row = SheetRow("text", nasty, None, nasty, [SheetHit(nasty, 0.5, broken), SheetHit("漢" * 500, 1.0, None)])
    sheet = Sheet(nasty, nasty, [row, SheetRow("image", None, broken, "", [])])
    write_html(sheet, tmp_path / "sheet.html")
    write_png(sheet, tmp_path / "sheet.png")
    page = (tmp_path / "sheet.html").read_text(encoding="utf-8")
    assert "<script" not in page and "&lt;script&gt;" in page and page.count("no picture") == 3
    with Image.open(tmp_path / "sheet.png") as picture:
        picture.load()


def test_demo_runs_on_ones_own_catalogue_and_reports_its_bad_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    products = one_of_each()
    catalog = tmp_path / "mine.csv"
    with catalog.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "title", "image", "gender"])
        for product in products:
            draw(product.look).save(tmp_path / f"{product.id}.png")
            rows.writerow([product.id, product.title, f"{product.id}.png", product.attributes["gender"]])
        rows.writerow(["lost", "A photo that is not there", "lost.png", "Men"])
        rows.writerow([products[0].id, "The same id again", "", "Men"])
        rows.writerow(["empty", "", "", "Men"])
    result = run_demo(tmp_path / "out", catalog)
    assert result.products == len(products)
    assert {each.row for each in result.rejected} == {len(products), len(products) + 1, len(products) + 2}
    assert [query.kind for query in result.queries] == ["text"] * 3 + ["image"] * 3 + ["image + text"] * 3 + ["text"]
    for query, hits in zip(result.queries, result.hits, strict=True):
        assert hits[0].id in query.about
    demo.print_report(result)
    assert "3 rows rejected" in capsys.readouterr().out


def test_a_catalogue_without_usable_products_is_refused(tmp_path: Path) -> None:
    catalog = tmp_path / "mine.jsonl"
    catalog.write_text(json.dumps({"id": "1"}) + "\n")
    with pytest.raises(CatalogError, match="no product that can be indexed"):
        run_demo(tmp_path / "out", catalog)


def test_demo_replaces_its_own_index_and_no_other(tmp_path: Path) -> None:
    catalog = tmp_path / "mine.jsonl"
    catalog.write_text(json.dumps({"id": "1", "title": "red dress", "gender": "Women"}) + "\n")
    out = tmp_path / "out"
    assert run_demo(out, catalog).products == run_demo(out, catalog).products == 1
    (out / demo.MARK).unlink()
    with pytest.raises(InputError, match="not made by uniecs demo"):
        run_demo(out, catalog)
    foreign = tmp_path / "foreign"
    (foreign / "demo.uniecs").mkdir(parents=True)
    (foreign / "demo.uniecs" / "precious").write_text("keep")
    with pytest.raises(InputError, match="choose another --out"):
        run_demo(foreign, catalog)
    assert (foreign / "demo.uniecs" / "precious").read_text() == "keep"
