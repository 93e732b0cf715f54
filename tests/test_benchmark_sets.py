"""The public benchmarks' own file layouts, on the real annotation files where they are, with drawn images."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from uniecs import benchmark_sets
from uniecs.benchmark_sets import (
    FASHION200K_CATEGORIES,
    FASHIONIQ_CATEGORIES,
    Item,
    RetrievalTask,
    evaluate_tasks,
    format_tasks,
    read_fashion200k,
    read_fashioniq,
    read_pair_set,
    read_queries,
)
from uniecs.errors import CatalogError, ImageError, InputError
from uniecs.evaluation import evaluate_pairs

SHARED = Path(os.environ.get("UNIECS_SHARED", Path(__file__).resolve().parents[2] / "shared")) / "data"


class Numbers:
    """Embeds an item by the sum of the numbers in its text and its image's name, as a unit vector at that angle."""

    embed_dim, model_id, backend, device, precision = 2, "numbers", "fake", "cpu", "fp32"
    views = ("text", "image", "multimodal")

    def encode(self, texts: Any = None, images: Any = None, *, errors: Any = "raise") -> Any:
        rows = max(len(texts or ()), len(images or ()))
        angles = np.zeros(rows)
        failed = {}
        for row in range(rows):
            names = ([texts[row]] if texts else []) + ([Path(images[row]).stem] if images else [])
            angles[row] = np.radians(sum(float(name.split()[-1]) for name in names if "bad" not in name))
            if any("bad" in name for name in names):
                failed[row] = ImageError("bad")
        vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
        return type("Result", (), {"embeddings": vectors, "errors": failed})()


def task(queries: list[str], candidates: list[str], answers: list[set[int]]) -> RetrievalTask:
    sides = [tuple(Item(text=each) for each in side) for side in (queries, candidates)]
    return RetrievalTask("t", sides[0], sides[1], tuple(map(frozenset, answers)))


def test_recall_counts_the_best_of_several_answers() -> None:
    found = evaluate_tasks(Numbers(), [task(["0", "0"], ["1", "2", "3", "40"], [{1, 3}, {3}])])["t"]
    assert found == {"1": 0.0, "5": 1.0, "10": 1.0, "50": 1.0}
    assert evaluate_tasks(Numbers(), [task(["0"], ["5", "7"], [{0}])])["t"]["1"] == 1.0
    assert "R@50" in format_tasks({"t": found}, "head")


def test_ties_count_against_the_answer() -> None:
    same = task(["0"], ["9"] * 8, [{0}])
    assert evaluate_tasks(Numbers(), [same])["t"] == {"1": 0.0, "5": 0.0, "10": 1.0, "50": 1.0}
    assert evaluate_tasks(Numbers(), [task(["0"], ["9", "9"], [{0, 1}])])["t"]["1"] == 1.0


def test_equal_candidates_tie_whatever_rounding_makes_of_their_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.random.default_rng(0).standard_normal((257, 256)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    monkeypatch.setattr(benchmark_sets, "_embed", lambda _, items, __: vectors[[int(each.text) for each in items]])
    names = [str(each) for each in range(len(vectors))]
    figures = evaluate_tasks(Numbers(), [task(names, [*names, *names], [{place} for place in range(len(names))])])["t"]
    assert (figures["1"], figures["5"]) == (0.0, 1.0)


def test_an_item_that_cannot_be_embedded_is_named() -> None:
    with pytest.raises(CatalogError, match="bad 3"):
        evaluate_tasks(Numbers(), [task(["0"], ["1", "bad 3"], [{0}])])


def test_a_model_that_gives_nan_has_no_recall() -> None:
    with pytest.raises(InputError, match="numbers gives embeddings that are not finite"):
        evaluate_tasks(Numbers(), [task(["0"], ["1", "nan"], [{0}])])


# --- M-BEER's layout


def test_a_pair_set_gives_the_nine_tasks(tmp_path: Path) -> None:
    rows = [
        {"trigger_text": f"a {i}", "trigger_image": f"{i}.png", "recall_text": f"b {i}", "recall_image": f"{i}.png"}
        for i in range(0, 60, 10)
    ]
    path = tmp_path / "test.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    products, pairs = read_pair_set(path)
    assert len(products) == 12
    assert products["trigger-2"].image == str(tmp_path / "20.png")
    figures = evaluate_pairs(Numbers(), products, pairs)
    assert {task for task, recalls in figures.items() if recalls[1] == 1.0} == {"t>t", "t>v", "v>t", "v>v", "vt>vt"}
    csv_rows = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
    (tmp_path / "test.csv").write_text("\n".join(csv_rows))
    assert read_pair_set(tmp_path / "test.csv") == (products, pairs)


def test_ids_make_rows_of_one_product_one_candidate(tmp_path: Path) -> None:
    row = {"trigger_text": "a", "trigger_image": "a.png", "recall_text": "b", "recall_image": "b.png", "recall_id": "b"}
    (tmp_path / "p.jsonl").write_text("\n".join(json.dumps(row | {"trigger_id": name}) for name in ("x", "y")))
    products, pairs = read_pair_set(tmp_path / "p.jsonl")
    assert pairs == [("x", "b"), ("y", "b")]
    assert sorted(products) == ["b", "x", "y"]


def test_an_id_may_be_0_and_no_product_is_its_own_partner(tmp_path: Path) -> None:
    row = {"trigger_text": "a", "trigger_image": "a.png", "recall_text": "b", "recall_image": "b.png"}
    ids = [(0, 1), (2, 0), (None, "")]
    rows = [json.dumps(row | {"trigger_id": one, "recall_id": two}) for one, two in ids]
    (tmp_path / "p.jsonl").write_text("\n".join(rows))
    pairs = read_pair_set(tmp_path / "p.jsonl")[1]
    assert pairs == [("0", "1"), ("2", "0"), ("trigger-2", "recall-2")]
    (tmp_path / "p.jsonl").write_text("\n".join([*rows, json.dumps(row | {"trigger_id": 7, "recall_id": "7"})]))
    with pytest.raises(CatalogError, match=r"row 3 of .* pairs '7' with itself; expected two different ids"):
        read_pair_set(tmp_path / "p.jsonl")
    (tmp_path / "q.jsonl").write_text('{"query": 501, "product_id": 0}\n{"query": "a", "product_id": null}\n')
    with pytest.raises(CatalogError, match="row 1 of"):
        read_queries(tmp_path / "q.jsonl")
    (tmp_path / "q.jsonl").write_text('{"query": 501, "product_id": 0}\n')
    assert read_queries(tmp_path / "q.jsonl") == [("501", "0")]


def test_unusable_pair_sets(tmp_path: Path) -> None:
    for text, match in {
        "": "has no rows",
        '{"trigger_text": "a"}': "row 0 of .* has no trigger_image",
        "{": "cannot",
    }.items():
        (tmp_path / "p.jsonl").write_text(text)
        with pytest.raises(CatalogError, match=match):
            read_pair_set(tmp_path / "p.jsonl")
    with pytest.raises(CatalogError, match="does not exist"):
        read_pair_set(tmp_path / "missing.jsonl")


# --- FashionIQ


@pytest.fixture
def fashioniq(tmp_path: Path) -> Path:
    for category in FASHIONIQ_CATEGORIES:
        for folder in ("captions", "image_splits", "images"):
            (tmp_path / folder).mkdir(exist_ok=True)
        names = [f"{category} {angle}" for angle in (0, 10, 20, 30)]
        entries = [{"candidate": names[1], "target": names[3], "captions": ["is longer", "more 20"]}]
        (tmp_path / "captions" / f"cap.{category}.val.json").write_text(json.dumps(entries))
        (tmp_path / "image_splits" / f"split.{category}.val.json").write_text(json.dumps(names))
        for name in names:
            Image.new("RGB", (4, 4)).save(tmp_path / "images" / f"{name}.png")
    return tmp_path


def test_fashioniq_composes_an_image_and_its_captions(fashioniq: Path) -> None:
    tasks = read_fashioniq(fashioniq)
    assert [each.name for each in tasks] == ["dress vt>v", "shirt vt>v", "toptee vt>v"]
    assert tasks[0].queries == (Item("is longer and more 20", str(fashioniq / "images" / "dress 10.png")),)
    assert len(tasks[0].candidates) == 4
    assert evaluate_tasks(Numbers(), tasks)["dress vt>v"]["1"] == 1.0  # 10 + 20 degrees


def test_fashioniq_counts_an_image_that_is_listed_twice_once(fashioniq: Path) -> None:
    names = [f"dress {angle}" for angle in (0, 0, 10, 20, 30)]
    (fashioniq / "image_splits" / "split.dress.val.json").write_text(json.dumps(names))
    (task, *_) = read_fashioniq(fashioniq)
    assert [task.candidates[place].image for place in task.answers[0]] == [str(fashioniq / "images" / "dress 30.png")]
    assert len(task.candidates) == 4


@pytest.mark.parametrize("captions", ["is longer", [], None, ["is longer", 20]])
def test_fashioniq_refuses_captions_that_are_no_list_of_strings(fashioniq: Path, captions: object) -> None:
    entry = {"candidate": "dress 10", "target": "dress 30", "captions": captions}
    (fashioniq / "captions" / "cap.dress.val.json").write_text(json.dumps([entry]))
    with pytest.raises(CatalogError, match=r"cap\.dress\.val\.json has the captions .*; expected a list of strings"):
        read_fashioniq(fashioniq)


def test_fashioniq_says_what_is_missing_and_where_it_is(fashioniq: Path) -> None:
    (fashioniq / "images" / "shirt 20.png").unlink()
    with pytest.raises(CatalogError, match=r"lacks 1 images, such as shirt 20\.png.*asin2url\.shirt\.txt.*github"):
        read_fashioniq(fashioniq)
    with pytest.raises(CatalogError, match=r"train\.json is missing.*github"):
        read_fashioniq(fashioniq, "train")
    (fashioniq / "captions" / "cap.dress.val.json").write_text('[{"candidate": "dress 0", "captions": ["a", "b"]}]')
    with pytest.raises(CatalogError, match="without a target"):
        read_fashioniq(fashioniq)


@pytest.mark.skipif(not (SHARED / "fashioniq").is_dir(), reason=f"FashionIQ's annotations are not at {SHARED}")
def test_the_real_annotations_of_fashioniq(tmp_path: Path) -> None:
    for folder in ("captions", "image_splits"):
        shutil.copytree(SHARED / "fashioniq" / folder, tmp_path / folder)
    (tmp_path / "images").mkdir()
    for category in FASHIONIQ_CATEGORIES:
        for name in json.loads((tmp_path / "image_splits" / f"split.{category}.val.json").read_text()):
            (tmp_path / "images" / f"{name}.jpg").touch()
    tasks = read_fashioniq(tmp_path)
    assert [(len(each.queries), len(each.candidates)) for each in tasks] == [(2017, 3817), (2038, 6346), (1961, 5373)]
    with pytest.raises(CatalogError, match="without a target"):
        read_fashioniq(tmp_path, "test")


# --- Fashion200K


@pytest.fixture
def fashion200k(tmp_path: Path) -> Path:
    (tmp_path / "labels").mkdir()
    (tmp_path / "women").mkdir()
    for number, category in enumerate(FASHION200K_CATEGORIES):
        lines = []
        for place in range(2):
            path = f"women/{category} {number * 20 + place}.jpeg"
            Image.new("RGB", (4, 4)).save(tmp_path / path)
            lines.append(f"{path}\t0.9\tred {category} {number * 20}")
        (tmp_path / "labels" / f"{category}_test_detect_all.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_fashion200k_finds_images_by_text_and_texts_by_image(fashion200k: Path) -> None:
    to_image, to_text = read_fashion200k(fashion200k)
    assert (len(to_image.queries), len(to_image.candidates), len(to_text.candidates)) == (5, 10, 5)
    assert to_image.answers[1] == {2, 3}
    assert to_text.answers[3] == {1}
    figures = evaluate_tasks(Numbers(), [to_image, to_text])
    assert figures["t>v"]["1"] == figures["v>t"]["1"] == 1.0


def test_a_description_may_hold_other_line_ends(fashion200k: Path) -> None:
    path = fashion200k / "labels" / "dress_test_detect_all.txt"
    path.write_bytes("women/dress 0.jpeg\t1\tcaf\u0085 dress\u2028 0\r\nwomen/dress 1.jpeg\t1\tred 0\r\n".encode())
    assert [each.text for each in read_fashion200k(fashion200k)[0].queries[:2]] == ["caf\u0085 dress\u2028 0", "red 0"]


def test_fashion200k_says_what_is_missing_and_where_it_is(fashion200k: Path) -> None:
    (fashion200k / "women" / "dress 0.jpeg").unlink()
    with pytest.raises(CatalogError, match=r"lacks 1 of 10 images, such as women/dress 0\.jpeg: unpack women\.tar\.gz"):
        read_fashion200k(fashion200k)
    with pytest.raises(CatalogError, match=r"train_detect_all\.txt cannot be read.*github"):
        read_fashion200k(fashion200k, "train")
    for line in ("no tabs", "../../etc/passwd\t1\ta text", "/etc/passwd\t1\ta text"):
        (fashion200k / "labels" / "dress_test_detect_all.txt").write_text(line)
        with pytest.raises(CatalogError, match="line 1 is"):
            read_fashion200k(fashion200k)


@pytest.mark.skipif(not (SHARED / "fashion200k").is_dir(), reason=f"Fashion200K's labels are not at {SHARED}")
def test_the_real_labels_of_fashion200k(tmp_path: Path) -> None:
    shutil.copytree(SHARED / "fashion200k" / "labels_rebuilt", tmp_path / "labels")
    rows = 0
    for file in (tmp_path / "labels").glob("*_test_*"):
        for line in file.read_text().splitlines():
            path = tmp_path / line.split("\t")[0]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            rows += 1
    to_image, to_text = read_fashion200k(tmp_path)
    assert len(to_image.candidates) == len(to_text.queries) == rows > 500
    assert 300 < len(to_image.queries) <= rows


def test_the_command_line_evaluates_benchmarks(
    fashion200k: Path, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from uniecs.cli import main

    command = ["eval", str(tiny_bundle), "--benchmark", "fashion200k", "--data", str(fashion200k)]
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tasks"].keys() == {"t>v", "v>t"}
    assert main(command) == 0
    assert "fashion200k" in capsys.readouterr().out
    for wrong in (command[:4], [*command, "--catalog", "x"], ["eval", "mini"]):
        with pytest.raises(SystemExit) as stopped:
            main(wrong)
        assert stopped.value.code == 2
