"""The pictures of benchmarks/pictures.py: what they compute, and that they are written."""

from __future__ import annotations

import json
import runpy
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import uniecs
from uniecs.catalog import Product
from uniecs.errors import InputError

for module in ("matplotlib", "sklearn", "tensorboard"):
    pytest.importorskip(module, reason="the pictures need uniecs[bench]")

ROOT = Path(__file__).resolve().parents[1]
pictures = SimpleNamespace(**runpy.run_path(str(ROOT / "benchmarks" / "pictures.py")))
FAKES = runpy.run_path(str(Path(__file__).with_name("fake_encoder.py")))
NAMES = ("v2t", "pml", "pdc", "plc", "v2v", "t2t")
TASKS = ("t>v", "v>t")
VIEWS = ("image", "text", "multimodal")


def unit(rows: Any) -> Any:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def noise(seed: int, products: int = 40, dim: int = 16) -> Any:
    return np.random.default_rng(seed).standard_normal((products, dim))


def write_catalog(folder: Path, products: int) -> Path:
    rows = []
    for i, colour in zip(range(products), cycle(FAKES["COLOURS"])):
        (folder / f"{i}.png").write_bytes(FAKES["picture"](colour))
        rows.append(json.dumps({"id": str(i), "title": f"{colour} shirt number {i}", "image": f"{i}.png"}) + "\n")
    path = folder / "catalog.jsonl"
    path.write_text("".join(rows), "utf-8")
    return path


def write_part(run: Path, first: int, last: int, value: float) -> None:
    """One event file with steps first to last, every value `value`, and validations at every tenth step."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    writer = EventFileWriter(str(run / "tensorboard"), filename_suffix="new")
    for step in range(first, last + 1):
        tags = [f"{group}/{name}" for group in ("loss", "lambda") for name in NAMES]
        tags += [f"validation_recall_at_10/{task}" for task in TASKS if step % 10 == 0]
        values = [Summary.Value(tag=tag, simple_value=value) for tag in tags]
        writer.add_event(Event(step=step, wall_time=float(step), summary=Summary(value=values)))
    writer.close()
    # The name ends with a process's time and number, which may not be in order within one test.
    (new,) = (run / "tensorboard").glob("*new")
    new.rename(new.with_name(f"events.out.tfevents.{first:010d}"))


def test_modality_mixing_of_separate_modalities_is_zero() -> None:
    centres = 10 * np.eye(3, 16)
    views = {name: unit(noise(i) * 0.1 + centres[i]) for i, name in enumerate(VIEWS)}
    assert pictures.modality_mixing(views) == dict.fromkeys(VIEWS, 0.0)


def test_modality_mixing_of_mixed_modalities_is_as_expected() -> None:
    assert pictures.expected_mixing(3) == pytest.approx(2 / 3)
    identical = dict.fromkeys(VIEWS, unit(noise(0)))
    unrelated = {name: unit(noise(i, 400)) for i, name in enumerate(VIEWS)}
    for views in (identical, unrelated):
        assert np.mean(list(pictures.modality_mixing(views).values())) == pytest.approx(2 / 3, abs=0.03)


def test_modality_mixing_tells_the_modality_that_lies_apart() -> None:
    together = unit(noise(0))
    mixing = pictures.modality_mixing({"image": unit(noise(1) * 0.1 + 5), "text": together, "multimodal": together})
    assert mixing["image"] == 0
    assert mixing["text"] == pytest.approx(0.5, abs=0.06)


def test_modality_mixing_leaves_out_the_product_itself() -> None:
    """A point's own product is nearest, then its own modality: the product's other views would count for 2 of 10."""
    views = {name: unit(np.hstack([np.eye(40), np.tile(0.5 * np.eye(3)[i], (40, 1))])) for i, name in enumerate(VIEWS)}
    assert pictures.modality_mixing(views) == dict.fromkeys(VIEWS, 0.0)


def test_the_map_is_the_same_each_time() -> None:
    views = {name: unit(noise(i)).astype(np.float32) for i, name in enumerate(VIEWS)}
    first, again = (pictures.project(views, 0) for _ in range(2))
    assert all(first[name].shape == (40, 2) for name in VIEWS)
    assert all(np.array_equal(first[name], again[name]) for name in VIEWS)
    assert len(np.unique(np.concatenate(list(first.values())), axis=0)) == 120


def test_a_product_that_fails_is_left_out_of_every_view(capsys: pytest.CaptureFixture[str]) -> None:
    products = [Product(str(i), f"shirt {i}", FAKES["picture"]("red")) for i in range(21)]
    products[3] = Product("broken", "shirt", b"no picture")
    views = pictures.embed_views(FAKES["fake"](), products)
    assert {name: rows.shape for name, rows in views.items()} == dict.fromkeys(VIEWS, (20, FAKES["DIM"]))
    assert all(np.isfinite(rows).all() for rows in views.values())
    assert "'broken'" in capsys.readouterr().err
    with pytest.raises(InputError, match="19 products could be embedded; expected at least 20"):
        pictures.embed_views(FAKES["fake"](), products[:20])


def test_tsne_writes_a_small_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(uniecs, "load", lambda model, threads: FAKES["fake"]())
    catalog, out = write_catalog(tmp_path, 24), tmp_path / "tsne.png"
    assert pictures.main(["tsne", "fake", "--catalog", str(catalog), "--products", "22", "--out", str(out)]) == 0
    assert "Modality mixing 0." in capsys.readouterr().out
    with Image.open(out) as picture:
        assert picture.size == (960, 1008)
        assert len(picture.convert("RGB").getcolors(1 << 16)) > 20
    assert 5_000 < out.stat().st_size < 300_000


def test_queries_find_others_and_never_the_product_itself(tmp_path: Path) -> None:
    products = [Product(str(i), f"{word} shirt", FAKES["picture"](word)) for i, word in enumerate(FAKES["COLOURS"])]
    products += [Product(f"{each.id}b", f"{each.title} new", each.image) for each in products]
    sheet = pictures.query_sheet(FAKES["fake"](), products, products[:3], "shop")
    assert [row.kind for row in sheet.rows] == ["text", "image", "image + text"]
    assert [(row.text is None, row.image is None) for row in sheet.rows] == [(False, True), (True, False), (False,) * 2]
    for row, product in zip(sheet.rows, products, strict=False):
        assert len(row.hits) == 5
        assert row.hits[0].title == f"{product.title} new"
        assert product.title not in [hit.title for hit in row.hits]
        scores = [hit.score for hit in row.hits]
        assert scores == sorted(scores, reverse=True)


def test_queries_writes_a_small_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uniecs, "load", lambda model, threads: FAKES["fake"]())
    catalog, out = write_catalog(tmp_path, 8), tmp_path / "queries.png"
    assert pictures.main(["queries", "fake", "--catalog", str(catalog), "--queries", "3", "--out", str(out)]) == 0
    with Image.open(out) as picture:
        assert picture.mode == "P"
        assert picture.width > 1000
    assert out.stat().st_size < 300_000


def test_a_resumed_run_is_read_as_one(tmp_path: Path) -> None:
    """The first part died at step 35, after the checkpoint of step 20 from which the second went on."""
    write_part(tmp_path, 1, 35, 1.0)
    write_part(tmp_path, 21, 28, 0.5)
    scalars = pictures.read_scalars(tmp_path)
    losses = scalars.group("loss")
    assert tuple(losses) == NAMES == tuple(scalars.group("lambda"))
    assert losses["plc"] == [(step, 1.0 if step <= 20 else 0.5) for step in range(1, 29)]
    # The validation of step 20 stays, that of step 30 belonged to what was lost.
    assert scalars.group("validation_recall_at_10") == {task: [(10, 1.0), (20, 1.0)] for task in TASKS}
    assert scalars.resumed == [21]


def test_curves_writes_a_small_picture(tmp_path: Path) -> None:
    out, heights = tmp_path / "curves.png", []
    for first, last in ((1, 8), (9, 30)):  # without a validation, then with
        write_part(tmp_path, first, last, 0.5)
        assert pictures.main(["curves", str(tmp_path), "--out", str(out)]) == 0
        with Image.open(out) as picture:
            heights.append(picture.height)
        assert 5_000 < out.stat().st_size < 300_000
    assert heights[0] < heights[1]


def test_smoothed_is_a_mean_of_neighbours() -> None:
    assert pictures.smoothed(np.array([0.0, 3.0, 6.0, 0.0]), 3) == pytest.approx([1.5, 3, 3, 3])
    assert pictures.smoothed(np.array([4.0, 2.0]), 1) == pytest.approx([4, 2])
    assert pictures.smoothed(np.array([4.0, 2.0]), 9).shape == (2,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tsne", "mini", "--catalog", "{}/catalog.jsonl"], "8 products with title and photo; expected 1000"),
        (["tsne", "mini", "--catalog", "{}/catalog.jsonl", "--products", "4"], "expected at least 20"),
        (["queries", "mini", "--catalog", "{}/catalog.jsonl", "--queries", "0"], "expected at least 1"),
        (["queries", "mini", "--catalog", "{}/none.jsonl"], "does not exist"),
        (["queries", "no-model", "--catalog", "{}/catalog.jsonl"], "no-model"),
        (["curves", "{}/none"], "expected the output folder of uniecs train"),
        (["curves", "{}"], "has logged no loss yet"),
    ],
)
def test_an_error_is_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_catalog(tmp_path, 8)
    write_part(tmp_path, 1, 0, 0.0)
    out = tmp_path / "out.png"
    assert pictures.main([*(each.format(tmp_path) for each in arguments), "--out", str(out)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("pictures: error: ") and message in error and error.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize("out", ["picture.jpg", "no/such/folder/picture.png"])
def test_a_picture_is_a_png_in_a_folder_that_exists(out: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="2"):
        pictures.main(["curves", str(tmp_path), "--out", str(tmp_path / out)])


def test_a_sweep_has_a_row_for_each_variant_and_a_ring_for_each_seed(tmp_path: Path) -> None:
    tasks = [task for panel in pictures.PANELS.values() for task in panel]
    results = [
        {"variant": variant, "seed": seed, "tasks": {task: {"10": base + seed / 10} for task in tasks}}
        for variant, base in (("whole", 0.7), ("no gate", 0.2))
        for seed in (0, 1, 2)
    ]
    figure = pictures.draw_sweep(results)
    first = figure.axes[0]
    assert [label.get_text() for label in first.get_yticklabels()] == ["no gate", "whole"]
    rings = np.concatenate([collection.get_offsets() for collection in first.collections])
    np.testing.assert_allclose(sorted(rings.tolist()), [[0.2, 0], [0.3, 0], [0.4, 0], [0.7, 1], [0.8, 1], [0.9, 1]])
    means = [line.get_xdata()[0] for line in first.lines]
    np.testing.assert_allclose(means, [0.3, 0.8])
    pictures.save(figure, tmp_path / "sweep.png")
    with Image.open(tmp_path / "sweep.png") as picture:
        assert picture.width > 1000
