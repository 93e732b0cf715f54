"""The whole path with the shipped `mini`: load, index, search, save, open; and its figures on real products."""

from __future__ import annotations

import io
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import uniecs
from uniecs.bundle import packaged_bundle
from uniecs.evaluation import KS, TASKS, evaluate

SHARED = Path(os.environ.get("UNIECS_SHARED", Path(__file__).resolve().parents[2] / "shared"))
MYNTRA = SHARED / "data" / "myntra"
COLOURS = {"red": (200, 20, 30), "green": (20, 140, 50), "blue": (30, 60, 200)}


@pytest.fixture(scope="module")
def encoder() -> uniecs.Encoder:
    return uniecs.load("mini", threads=2)


def photo(colour: str) -> bytes:
    """A plain T-shirt of one colour on white."""
    image = Image.new("RGB", (120, 160), "white")
    image.paste(COLOURS[colour], (35, 30, 85, 140))
    image.paste(COLOURS[colour], (10, 30, 110, 65))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def products() -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for colour in COLOURS:
        shirt = {"id": f"{colour}-shirt", "title": f"Men {colour} round neck T-shirt", "image": photo(colour)}
        watch = {"id": f"{colour}-watch", "title": f"Women {colour} dial watch"}
        rows += [shirt | {"colour": colour, "price": 10.0}, watch | {"colour": colour, "price": 90.0}]
    return rows


def test_search_by_text_by_image_and_by_both(encoder: uniecs.Encoder, tmp_path: Path) -> None:
    with uniecs.SearchEngine.create(tmp_path / "shop.uniecs", encoder, views=("multimodal", "image")) as engine:
        report = engine.add(products())
        assert (report.added, report.rejected) == (6, [])
    with uniecs.SearchEngine.open(tmp_path / "shop.uniecs") as engine:  # loads `mini` by the index's own record
        assert len(engine) == 6
        assert engine.search(text="green tshirt for men", k=1)[0].id == "green-shirt"
        assert engine.search(image=photo("red"), k=1, view="image")[0].id == "red-shirt"
        both = engine.search(text="Men blue round neck T-shirt", image=photo("blue"), k=1)[0]
        assert both.id == "blue-shirt"
        assert both.score > 0.99
        assert both.product.attributes["price"] == 10.0
        found = engine.search(text="blue watch", k=6, where={"colour": ["blue", "red"], "price": (50, None)})
        assert [hit.id for hit in found] == ["blue-watch", "red-watch"]
        assert {hit.id for hit in engine.similar("red-shirt", k=2, view="image")} == {"green-shirt", "blue-shirt"}
        assert len(engine.search(text="watch", k=50)) == 6


def test_bad_rows_do_not_harm_the_good_ones(encoder: uniecs.Encoder, tmp_path: Path) -> None:
    bad: list[dict[str, object]] = [
        {"id": "cut", "title": "Men red shirt", "image": photo("red")[:200]},
        {"id": "none", "title": "Men red shirt", "image": str(tmp_path / "missing.jpg")},
        {"id": "nothing"},
        {"id": "nan", "image": np.full((4, 4, 3), np.nan)},
        {"id": "red-shirt", "title": "twice"},
        {"id": "number", "title": 5},
    ]
    engine = uniecs.SearchEngine.create(tmp_path / "shop.uniecs", encoder)
    report = engine.add([*products()[:3], *bad, *products()[3:]])
    assert report.added == 6
    assert [(row.row, row.id) for row in report.rejected] == [
        (3, "cut"), (4, "none"), (5, "nothing"), (6, "nan"), (7, "red-shirt"), (8, "number")
    ]  # fmt: skip
    assert engine.search(text="green tshirt", k=1)[0].id == "green-shirt"


def test_unusual_texts_and_pictures_have_embeddings(encoder: uniecs.Encoder) -> None:
    texts = ["x" * 100_000, "red " * 25_000, "红色连衣裙", "👗", "a\0red\0dress", "ünïcode"]
    embeddings = encoder.encode(texts=texts)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)
    one_pixel = np.zeros((1, 1, 3), np.uint8)
    panorama = np.zeros((2, 4000, 3), np.uint8)
    embeddings = encoder.encode(images=[one_pixel, panorama])
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)


def test_an_embedding_does_not_depend_on_its_batch(encoder: uniecs.Encoder) -> None:
    texts = ["red dress", None, "blue shirt " * 20, "watch", None]
    images = [None, photo("red"), photo("green"), None, photo("blue")]
    together = encoder.encode(texts=texts, images=images)
    alone = np.concatenate([encoder.encode(texts=[t], images=[i]) for t, i in zip(texts, images, strict=True)])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_searches_go_on_while_products_are_added(encoder: uniecs.Encoder, tmp_path: Path) -> None:
    engine = uniecs.SearchEngine.create(tmp_path / "shop.uniecs", encoder)
    engine.add(products())
    done = threading.Event()

    def search() -> None:  # what it raises fails the test: pytest's warning of it is an error here
        while not done.is_set():
            assert engine.search(text="green tshirt", k=1)[0].id == "green-shirt"

    threads = [threading.Thread(target=search) for _ in range(3)]
    for thread in threads:
        thread.start()
    report = engine.add({"id": f"n{i}", "title": f"brown leather handbag {i}"} for i in range(300))
    done.set()
    for thread in threads:
        thread.join()
    assert report.added == 300
    assert len(engine) == 306


def test_another_model_is_refused(encoder: uniecs.Encoder, tmp_path: Path, tiny_bundle: Path) -> None:
    with uniecs.SearchEngine.create(tmp_path / "shop.uniecs", encoder) as engine:
        engine.add(products())
    with pytest.raises(uniecs.ModelMismatchError, match="mini-"):
        uniecs.SearchEngine.open(tmp_path / "shop.uniecs", uniecs.load(tiny_bundle))


def test_a_copy_of_the_bundle_loads_by_path(encoder: uniecs.Encoder, tmp_path: Path) -> None:
    shutil.copytree(packaged_bundle("mini"), tmp_path / "copy")
    copy = uniecs.load(tmp_path / "copy")
    assert copy.model_id == encoder.model_id
    np.testing.assert_array_equal(copy.encode(texts=["red"]), uniecs.load("mini").encode(texts=["red"]))


def test_the_bundle_is_small_and_says_where_it_comes_from(encoder: uniecs.Encoder) -> None:
    size = sum(path.stat().st_size for path in packaged_bundle("mini").iterdir())
    assert size <= 40_000_000
    manifest = encoder.bundle.manifest
    runs = manifest["provenance"]["mean_of"]
    assert [each["train_config"]["data"]["catalog"] for each in runs] == ["train.parquet"] * 3
    assert set(manifest["evaluation"]["tasks"]) == set(TASKS)


@pytest.mark.skipif(not MYNTRA.is_dir(), reason=f"the real products are not at {MYNTRA}")
def test_the_recorded_evaluation_is_reproduced_on_real_products() -> None:
    pytest.importorskip("pyarrow", reason="reading .parquet needs pyarrow")
    pytest.importorskip("sklearn", reason="the TF-IDF baseline needs scikit-learn")
    encoder = uniecs.load("mini", backend="openvino", precision="fp32")
    report = evaluate(encoder, MYNTRA / "val.parquet", MYNTRA / "val_pairs.csv")
    recorded = encoder.bundle.manifest["evaluation"]["tasks"]
    for task, recalls in report["tasks"].items():
        for k in map(str, KS):
            assert recalls[k] == pytest.approx(recorded[task][k], abs=0.005), (task, k)
