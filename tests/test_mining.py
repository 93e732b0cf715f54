"""Pairs from interaction logs: sessions, thresholds, at most one pair a product, splits that do not leak."""

from __future__ import annotations

import csv
import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pyarrow = pytest.importorskip("pyarrow", reason="pairs are written as .parquet")
import pyarrow.parquet as parquet  # noqa: E402

from uniecs.catalog import Product  # noqa: E402
from uniecs.errors import CatalogError, ConfigError, ImageError, InputError, UniecsError  # noqa: E402
from uniecs.trainer.mining import (  # noqa: E402
    MinedPairs,
    MiningSettings,
    co_clicks,
    format_report,
    leak_groups,
    mine,
    read_clicks,
    refuse_existing,
    split,
    write_pairs,
)

SETTINGS = MiningSettings(val=0.0, test=0.0)


class Angles:
    """Embeds "name 30" and b"name 30" as the unit vector at 30 degrees; "bad" cannot be embedded."""

    embed_dim, model_id, backend, device, precision = 2, "angles", "fake", "cpu", "fp32"

    def encode(self, texts: Any = None, images: Any = None, *, errors: Any = "raise") -> Any:
        items = [each.decode() if isinstance(each, bytes) else each for each in texts or images]
        failed: dict[int, UniecsError] = {i: ImageError("bad") for i, each in enumerate(items) if "bad" in each}
        degrees = np.radians([0.0 if "bad" in each else float(each.split()[-1]) for each in items])
        vectors = np.stack([np.cos(degrees), np.sin(degrees)], axis=1).astype(np.float32)
        return type("Result", (), {"embeddings": vectors, "errors": failed})()


def catalogue(*names: str, image: str = "photo 0", title: str = "title 0") -> dict[str, Product]:
    return {name: Product(name, f"{name} {title}", image.encode()) for name in names}


def log(path: Path, *rows: tuple[str, str, object]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("user", "item", "time"), *rows])
    return path


def mined(tmp_path: Path, products: dict[str, Product], *rows: tuple[str, str, object], **options: Any) -> MinedPairs:
    clicks = read_clicks(log(tmp_path / "log.csv", *rows))
    return mine(clicks, products, Angles(), Angles(), replace(SETTINGS, **options))


def test_a_pause_or_another_user_ends_a_session(tmp_path: Path) -> None:
    rows = [("u", "a", 0), ("u", "b", 1700), ("u", "c", 1700 + 1801), ("w", "d", 10), ("w", "a", 20)]
    found = co_clicks(read_clicks(log(tmp_path / "log.csv", *rows)), SETTINGS)
    assert dict(found) == {("a", "b"): 1, ("d", "a"): 1}


def test_co_clicks_are_counted_once_a_session_and_ordered_by_the_first_click(tmp_path: Path) -> None:
    rows = [("u", "b", 0), ("u", "a", 1), ("u", "b", 2), ("w", "b", 0), ("w", "a", 5), ("x", "a", 0), ("x", "b", 9)]
    found = co_clicks(read_clicks(log(tmp_path / "log.csv", *rows)), SETTINGS)
    assert dict(found) == {("b", "a"): 3}


def test_clicks_further_apart_than_the_window_are_no_pair(tmp_path: Path) -> None:
    clicks = read_clicks(log(tmp_path / "log.csv", *(("u", item, i) for i, item in enumerate("abcd"))))
    assert set(co_clicks(clicks, replace(SETTINGS, window=1))) == {("a", "b"), ("b", "c"), ("c", "d")}
    assert len(co_clicks(clicks, SETTINGS)) == 6


@pytest.mark.parametrize(
    ("two", "reason"),
    [
        (Product("b", "title 41", b"photo 41"), None),
        (Product("b", "title 0", b"photo 42"), "dropped: the images are not similar"),
        (Product("b", "title 42", b"photo 0"), "dropped: the texts are not similar"),
        (Product("b", "title 0", None), "dropped: a product lacks its title or image"),
        (Product("b", None, b"photo 0"), "dropped: a product lacks its title or image"),
        (Product("c", "title 0", b"photo 0"), "dropped: a product is not in the catalogue"),
        (Product("b", "title 0", b"bad"), "dropped: an image or a title cannot be read"),
    ],
)
def test_both_similarities_must_reach_their_thresholds(tmp_path: Path, two: Product, reason: str | None) -> None:
    products = {"a": Product("a", "title 0", b"photo 0"), two.id: two}  # cos 41 degrees = 0.7547, cos 42 = 0.7431
    result = mined(tmp_path, products, ("u", "a", 0), ("u", "b", 1))
    assert result.splits["train"] == ([] if reason else [("a", "b")])
    assert {what: n for what, n in result.report.items() if what.startswith("dropped")} == (
        {reason: 1} if reason else {}
    )


def test_embeddings_that_are_not_finite_are_similar_to_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="angles gives embeddings that are not finite"):
        mined(tmp_path, catalogue("a", "b", title="title nan"), ("u", "a", 0), ("u", "b", 1))


def test_a_product_is_in_its_best_pair_only(tmp_path: Path) -> None:
    products = catalogue("a", "b", "c", "d") | {"b": Product("b", "b 20", b"photo 0")}
    rows = [("u", "a", 0), ("u", "b", 1), ("w", "a", 0), ("w", "c", 1), ("x", "b", 0), ("x", "d", 1)]
    result = mined(tmp_path, products, *rows)  # a-c and a-b, b-d: one session each; a-c is more similar
    assert result.splits["train"] == [("a", "c"), ("b", "d")]
    assert result.report["dropped: a product is in a better pair"] == 1
    twice = mined(tmp_path, products, *rows, ("y", "a", 0), ("y", "b", 1))  # now a-b has two sessions
    assert twice.splits["train"] == [("a", "b")]


def test_the_order_of_the_rows_does_not_matter(tmp_path: Path) -> None:
    names = [f"p{i:02}" for i in range(30)]
    products = {
        name: Product(name, f"{name} {i % 7 * 6}", f"photo {i % 5 * 9}".encode()) for i, name in enumerate(names)
    }
    shuffle = random.Random(0)
    rows: list[tuple[str, str, object]] = [
        (f"u{shuffle.randrange(12)}", shuffle.choice(names), shuffle.randrange(40) * 600) for _ in range(300)
    ]
    first = mined(tmp_path, products, *rows, val=0.2, test=0.2)
    shuffle.shuffle(rows)
    assert mined(tmp_path, products, *rows, val=0.2, test=0.2) == first
    pairs = [pair for each in first.splits.values() for pair in each]
    members = [product for pair in pairs for product in pair]
    assert len(pairs) > 5
    assert len(members) == len(set(members))


def test_connected_groups_and_equal_titles_stay_in_one_split() -> None:
    chains = [(f"g{group:03}-{i}", f"g{group:03}-{i + 1}") for group in range(300) for i in (0, 1)]
    titles = {f"g{group:03}-0": f"twin of {group // 2}" for group in range(300)}
    groups = leak_groups(chains, titles)
    assert len(set(groups.values())) == 150
    splits = split(chains, groups, MiningSettings(val=0.2, test=0.1))
    sides = {name: {groups[one] for one, _ in pairs} for name, pairs in splits.items()}
    assert not sides["train"] & sides["val"] and not sides["train"] & sides["test"] and not sides["val"] & sides["test"]
    assert sum(map(len, splits.values())) == 600
    assert 0.1 < len(sides["val"]) / 150 < 0.3
    assert splits != split(chains, groups, MiningSettings(val=0.2, test=0.1, seed=1))


def test_times_are_seconds_or_iso(tmp_path: Path) -> None:
    rows = [
        ("u", "a", "2026-01-01T10:00:00"), ("u", "b", "2026-01-01T11:10:00+01:00"), ("u", "c", 1767262200),
        ("u", "d", "yesterday"), ("u", "e", "nan"), ("", "f", 0), ("u", "", 0),
    ]  # fmt: skip
    clicks = read_clicks(log(tmp_path / "log.csv", *rows))
    assert clicks.seconds.tolist() == [1767261600.0, 1767262200.0, 1767262200.0]
    assert dict(clicks.dropped) == {"rows whose time cannot be read": 2, "rows without a user or an item": 2}
    table = pyarrow.table({"user": [1, 1], "item": ["a", "b"], "time": pyarrow.array([0, 5], pyarrow.timestamp("s"))})
    parquet.write_table(table, tmp_path / "log.parquet")
    assert read_clicks(tmp_path / "log.parquet").seconds.tolist() == [0.0, 5.0]


def test_clicks_without_a_user_are_not_one_users(tmp_path: Path) -> None:
    users = pyarrow.array([7.0, math.nan, math.nan, None], from_pandas=False)
    table = pyarrow.table({"user": users, "item": ["a", "b", "c", "d"], "time": [0, 1, 2, 3]})
    parquet.write_table(table, tmp_path / "log.parquet")
    clicks = read_clicks(tmp_path / "log.parquet")
    assert (len(clicks.users), dict(clicks.dropped)) == (1, {"rows without a user or an item": 3})


def test_unusable_logs_and_settings(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="does not exist"):
        read_clicks(tmp_path / "missing.csv")
    (tmp_path / "bad.csv").write_text("user,product,time\n1,2,3\n")
    with pytest.raises(CatalogError, match="has no column 'item'"):
        read_clicks(tmp_path / "bad.csv")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(CatalogError, match="cannot be read"):
        read_clicks(tmp_path / "bad.parquet")
    with pytest.raises(CatalogError, match="no usable row"):
        read_clicks(log(tmp_path / "empty.csv"))
    for bad in (
        {"val": 0.6, "test": 0.4},
        {"session_minutes": 0},
        {"val": math.nan},
        {"session_minutes": math.nan},
        {"min_text_similarity": 2.0},
        {"window": 0},
    ):
        with pytest.raises(ConfigError):
            MiningSettings(**bad)  # type: ignore[arg-type]


def test_the_benchmarks_layout_is_written(tmp_path: Path) -> None:
    products = catalogue("a", "b")
    result = mined(tmp_path, products, ("u", "a", 0), ("u", "b", 1))
    write_pairs(tmp_path / "out", result, products)
    assert (tmp_path / "out" / "train_pairs.csv").read_text().split() == ["trigger_id,recall_id", "a,b"]
    (row,) = parquet.read_table(tmp_path / "out" / "train.parquet").to_pylist()
    assert row == {
        "trigger_id": "a", "trigger_text": "a title 0", "trigger_image": {"bytes": b"photo 0", "path": None},
        "recall_id": "b", "recall_text": "b title 0", "recall_image": {"bytes": b"photo 0", "path": None},
    }  # fmt: skip
    assert parquet.read_table(tmp_path / "out" / "val.parquet").num_rows == 0
    with pytest.raises(CatalogError, match="already holds"):
        write_pairs(tmp_path / "out", result, products)
    assert "train pairs" in format_report(result)


def test_a_folder_that_cannot_be_made_is_told_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from uniecs.cli import main

    (tmp_path / "file").touch()
    out = tmp_path / "file" / "new" / "out"
    assert main(["pairs", "no-such-log.csv", "--catalog", "no-such-catalogue.csv", "--out", str(out)]) == 1
    assert f"{out} cannot be written" in capsys.readouterr().err
    refuse_existing(tmp_path / "new" / "out")  # which can be made


def test_the_command_line_mines_with_a_checkpoint_and_a_bundle(
    tmp_path: Path, tiny_checkpoint: Path, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    from uniecs.cli import main

    Image.new("RGB", (24, 32), "red").save(tmp_path / "red.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "red.png").read_bytes()[:40])
    (tmp_path / "p.csv").write_text("id,title,image\na,red shirt,red.png\nb,red shirt,red.png\nc,red shirt,cut.png\n")
    rows = log(tmp_path / "log.csv", ("u", "a", 0), ("u", "b", 1), ("u", "c", 2))
    command = ["pairs", str(rows), "--catalog", str(tmp_path / "p.csv"), "--out", str(tmp_path / "out")]
    encoders = ["--image-encoder", str(tiny_checkpoint), "--text-encoder", str(tiny_bundle)]
    alone = log(tmp_path / "alone.csv", ("u", "a", 0), ("w", "b", 1))
    assert main(["pairs", str(alone), *command[2:], *encoders]) == 1
    told = capsys.readouterr()
    assert "co-clicked pairs             0" in told.out
    assert told.err.startswith("uniecs: error:") and "alone.csv gives no pair" in told.err
    assert not (tmp_path / "out").exists()
    assert main([*command, *encoders, "--val", "0.9", "--test", "0.09"]) == 1
    assert "gives no pair to train on" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*command, *encoders, "--json", "--val", "0", "--test", "0.0001"]) == 0
    told = capsys.readouterr()
    report = json.loads(told.out)
    assert report["train pairs"] == 1
    assert "no pair fell to test" in told.err and "fell to val" not in told.err
    assert report["dropped: an image or a title cannot be read"] == 2
    assert main([*command, *encoders]) == 1  # the folder is there
