"""The nine tasks, Recall@k and the plain baselines, on small catalogues whose answers are known."""

from __future__ import annotations

import io
import json
import os
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from uniecs import evaluation
from uniecs.catalog import Product
from uniecs.errors import CatalogError, ImageError, InputError

TITLES = ["red kurta", "blue denim jeans", "black leather shoe", "golden watch"]


def photo(index: int, side: int = 24) -> bytes:
    """A PNG of noise that only `index` decides."""
    pixels = np.random.default_rng(index).integers(0, 256, (side, side, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def shop() -> tuple[dict[str, Product], list[tuple[str, str]]]:
    """Four pairs of products with the same title words and the same photo."""
    products, pairs = {}, []
    for i, title in enumerate(TITLES):
        products[f"a{i}"] = Product(f"a{i}", title, photo(i))
        products[f"b{i}"] = Product(f"b{i}", f"{title} new", photo(i))
        pairs.append((f"a{i}", f"b{i}"))
    return products, pairs


class FakeEncoder:
    """Text knows the product, images know nothing (one constant vector), both equals text."""

    embed_dim, model_id, backend, device, precision = 4, "fake-0", "none", "cpu", "fp32"
    views = ("text", "image", "multimodal")

    def __init__(self, fails_on: bytes | None = None) -> None:
        self.fails_on = fails_on

    def encode(self, texts: Any = None, images: Any = None, *, errors: str = "raise") -> Any:
        count = len(texts if texts is not None else images)
        embeddings = np.full((count, 4), 0.5, dtype=np.float32)
        for i, text in enumerate(texts or []):
            embeddings[i] = np.eye(4, dtype=np.float32)[TITLES.index(text.removesuffix(" new"))]
        failed = {i: ImageError("damaged") for i, each in enumerate(images or []) if each == self.fails_on}
        return SimpleNamespace(embeddings=embeddings, errors=failed)


def test_the_nine_tasks_are_all_combinations() -> None:
    assert sorted(evaluation.TASKS) == sorted(["t>v", "t>t", "t>vt", "v>t", "v>v", "v>vt", "vt>t", "vt>v", "vt>vt"])
    assert evaluation.TASKS["v>vt"] == ("image", "multimodal")


def test_recall_counts_ranks() -> None:
    scores = np.array([[0.9, 0.5, 0.1], [0.9, 0.5, 0.1], [0.9, 0.5, 0.1]])
    assert evaluation.recall_at_k(scores, [0, 1, 2], ks=(1, 2, 3)) == {1: 1 / 3, 2: 2 / 3, 3: 1.0}


def test_ties_stand_before_the_target() -> None:
    assert evaluation.recall_at_k(np.zeros((2, 3)), [0, 2], ks=(1, 2, 3)) == {1: 0.0, 2: 0.0, 3: 1.0}


@pytest.mark.parametrize(
    ("scores", "target"),
    [
        (np.zeros((2, 3)), [0]),
        (np.zeros(3), [0, 1, 2]),
        (np.zeros((0, 3)), []),
        (np.zeros((1, 3)), [3]),
        (np.zeros((1, 3)), [-1]),
        (np.zeros((1, 3)), [0.0]),
        (np.array([[np.nan, 0.0]]), [0]),
        (np.array([[np.inf, 0.0]]), [1]),
    ],
)
def test_recall_refuses_what_it_cannot_rank(scores: Any, target: Any) -> None:
    with pytest.raises(InputError):
        evaluation.recall_at_k(scores, target)


def test_evaluate_pairs_uses_each_view() -> None:
    figures = evaluation.evaluate_pairs(FakeEncoder(), *shop())
    assert list(figures) == list(evaluation.TASKS)
    for task in ("t>t", "t>vt", "vt>t", "vt>vt"):
        assert figures[task] == {1: 1.0, 5: 1.0, 10: 1.0}
    for task in ("t>v", "v>t", "v>v", "v>vt", "vt>v"):  # a constant vector ties with every candidate
        assert figures[task] == {1: 0.0, 5: 1.0, 10: 1.0}


def test_a_shared_candidate_counts_once() -> None:
    products, pairs = shop()
    pairs.append(("a1", "b0"))
    figures = evaluation.evaluate_pairs(FakeEncoder(), products, pairs)
    assert figures["t>t"][1] == 4 / 5  # only the added, wrong pair misses; b0 does not tie with itself


def test_a_query_does_not_find_itself() -> None:
    products, pairs = shop()
    both_ways = [*pairs, *((recall, trigger) for trigger, recall in pairs)]
    assert evaluation.evaluate_pairs(FakeEncoder(), products, both_ways)["t>t"][1] == 1.0
    chain = [*pairs, ("b0", "a1")]  # a wrong answer stays wrong
    assert evaluation.evaluate_pairs(FakeEncoder(), products, chain)["t>t"][1] == 4 / 5
    pytest.importorskip("sklearn", reason="the TF-IDF baseline needs scikit-learn")
    figures = evaluation.baselines(products, both_ways)
    assert figures["tfidf"]["t>t"][1] == figures["raw_pixels"]["v>v"][1] == 1.0


def test_equal_candidates_tie_whatever_rounding_makes_of_their_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.random.default_rng(0).standard_normal((67, 100)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    products = {f"{side}{i}": Product(f"{side}{i}", "t", b"") for side in "abc" for i in range(len(vectors))}
    pairs = [(f"a{i}", f"{side}{i}") for side in "bc" for i in range(len(vectors))]
    monkeypatch.setattr(evaluation, "_embed", lambda _, items, __: vectors[[int(each.id[1:]) for each in items]])
    figures = evaluation.evaluate_pairs(FakeEncoder(), products, pairs)
    assert all(recalls[1] == 0 and recalls[5] == 1 for recalls in figures.values())


def test_blocks_of_queries_give_the_figures_of_the_plain_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    products = {f"p{i}": Product(f"p{i}", f"w{i % 7} w{i % 5}", photo(i)) for i in range(60)}
    pairs = [(f"p{i}", f"p{i + step}") for step, count in ((1, 59), (-7, 33)) for i in range(9, count)]  # in chains
    vectors = np.random.default_rng(0).integers(-2, 3, (60, 3)).cumsum(axis=0)  # whole numbers: products are exact
    candidates = list(dict.fromkeys(recall for _, recall in pairs))
    left, right = ([int(each[1:]) for each in side] for side in ([one for one, _ in pairs], candidates))
    target = [[candidates.index(recall)] for _, recall in pairs]
    scores = (vectors[left] @ vectors[right].T).astype(np.float32)
    scores[np.array(left)[:, None] == np.array(right)] = np.finfo(np.float32).min
    plain = evaluation.recall_at_k(scores, np.ravel(target))
    assert 0 < plain[1] < plain[10] < 1
    assert ((scores == np.take_along_axis(scores, np.array(target), axis=1)).sum(axis=1) > 1).any()  # ties

    encoder = FakeEncoder()
    encoder.views = ("text",)
    floats = vectors.astype(np.float32)
    monkeypatch.setattr(evaluation, "_embed", lambda _, items, __: floats[[int(each.id[1:]) for each in items]])
    for chunk in (1, 4, len(pairs) - 1, len(pairs), 7):
        monkeypatch.setattr(evaluation, "_CHUNK", chunk)
        assert evaluation.evaluate_pairs(encoder, products, pairs) == {"t>t": plain}
    pytest.importorskip("sklearn", reason="the TF-IDF baseline needs scikit-learn")
    blocks = evaluation.baselines(products, pairs)
    monkeypatch.setattr(evaluation, "_CHUNK", 1000)
    assert evaluation.baselines(products, pairs) == blocks


def test_memory_does_not_grow_with_the_square_of_the_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    products = {f"p{i}": Product(f"p{i}", "a title", b"") for i in range(6000)}
    pairs = [(f"p{i}", f"p{i + 3000}") for i in range(3000)]
    monkeypatch.setattr(evaluation, "_embed", lambda _, items, __: np.ones((len(items), 4), np.float32))
    tracemalloc.start()
    try:
        evaluation.evaluate_pairs(FakeEncoder(), products, pairs)
        assert tracemalloc.get_traced_memory()[1] < 3000 * 3000 * 4 / 2
    finally:
        tracemalloc.stop()


def test_an_incomplete_product_is_named() -> None:
    products, pairs = shop()
    for incomplete, lacking in ((Product("b2", None, photo(9)), "title"), (Product("b2", "x", None), "image")):
        with pytest.raises(CatalogError, match=rf"'b2'.*no {lacking}"):
            evaluation.evaluate_pairs(FakeEncoder(), {**products, "b2": incomplete}, pairs)


def test_unknown_and_damaged_products_are_named() -> None:
    products, pairs = shop()
    with pytest.raises(CatalogError, match="'ghost'"):
        evaluation.evaluate_pairs(FakeEncoder(), products, [*pairs, ("a0", "ghost")])
    products["b3"] = Product("b3", "golden watch", b"not an image")
    with pytest.raises(CatalogError, match=r"'b3'.*damaged"):
        evaluation.evaluate_pairs(FakeEncoder(fails_on=b"not an image"), products, pairs)
    pytest.importorskip("sklearn", reason="the TF-IDF baseline needs scikit-learn")
    with pytest.raises(CatalogError, match="'b3'"):
        evaluation.baselines(products, pairs)


def test_baselines_find_equal_words_and_equal_photos() -> None:
    pytest.importorskip("sklearn", reason="the TF-IDF baseline needs scikit-learn")
    products, pairs = shop()
    perfect = {1: 1.0, 5: 1.0, 10: 1.0}
    assert evaluation.baselines(products, pairs) == {
        "tfidf": {"t>t": perfect},
        "raw_pixels": {"v>v": perfect},
    }
    swapped = [("a0", "b1"), ("a1", "b0"), *pairs[2:]]
    figures = evaluation.baselines(products, swapped)
    assert figures["tfidf"]["t>t"][1] == figures["raw_pixels"]["v>v"][1] == 0.5


def test_titles_without_a_word_are_named() -> None:
    products = {name: Product(name, "x", photo(i)) for i, name in enumerate("ab")}
    with pytest.raises(CatalogError, match="no title has a word"):
        evaluation.baselines(products, [("a", "b")])


def test_read_pairs(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("trigger_id,recall_id\na0,b0\n\na1,b1\n", encoding="utf-8-sig")
    assert evaluation.read_pairs(path) == [("a0", "b0"), ("a1", "b1")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty file"),
        (b"query,answer\na,b\n", "query,answer"),
        (b"trigger_id,recall_id\n", "no pairs"),
        (b"trigger_id,recall_id\na0\n", "pair 1"),
        (b"trigger_id,recall_id\na0,a1\na2,\n", "pair 2"),
        (b"trigger_id,recall_id\na0,a0\n", "two different ids"),
        (b"trigger_id,recall_id\n\xff\xfe,b\n", "cannot read"),
    ],
)
def test_read_pairs_names_the_fault(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "pairs.csv"
    path.write_bytes(content)
    with pytest.raises(CatalogError, match=message):
        evaluation.read_pairs(path)
    with pytest.raises(CatalogError, match="missing"):
        evaluation.read_pairs(tmp_path / "missing.csv")


def written_shop(folder: Path) -> tuple[Path, Path]:
    """The shop as a .jsonl catalogue with image files, and its pairs file."""
    products, pairs = shop()
    rows = []
    for product in products.values():
        (folder / f"{product.id}.png").write_bytes(photo(int(product.id[1:])))
        rows.append(json.dumps({"id": product.id, "title": product.title, "image": f"{product.id}.png"}))
    (folder / "shop.jsonl").write_text("\n".join([*rows, rows[0], '{"id": "empty"}']) + "\n", encoding="utf-8")
    lines = ["trigger_id,recall_id", *(",".join(pair) for pair in pairs)]
    (folder / "pairs.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "shop.jsonl", folder / "pairs.csv"


def test_read_products_keeps_the_first_of_a_repeated_id(tmp_path: Path) -> None:
    products, rejected = evaluation.read_products(written_shop(tmp_path)[0])
    assert len(products) == 8
    assert sorted(str(each.id) for each in rejected) == ["a0", "empty"]


def test_the_report_survives_json_and_makes_a_table(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="the TF-IDF baseline needs scikit-learn")
    report = evaluation.evaluate(FakeEncoder(), *written_shop(tmp_path))
    assert json.loads(json.dumps(report)) == report
    assert (report["pairs"], report["products"], report["candidates"]) == (4, 8, 4)
    lines = evaluation.format_table(report).splitlines()
    assert len(lines) == 14
    assert lines[1].split() == ["task", "R@1", "R@5", "R@10"]
    rows = {line[:16].strip(): line.split()[-3:] for line in lines[2:13]}
    assert rows["v>v"] == ["0.000", "1.000", "1.000"]
    assert rows["v>v raw_pixels"] == ["1.000", "1.000", "1.000"]
    assert len({len(line) for line in lines[1:13]}) == 1


def test_baselines_on_the_real_validation_pairs() -> None:
    shared = Path(os.environ.get("UNIECS_SHARED", Path(__file__).parents[2] / "shared")) / "data" / "myntra"
    if not shared.is_dir():
        pytest.skip("the development data (../shared or UNIECS_SHARED) is not on this machine")
    pytest.importorskip("pyarrow", reason="reading parquet needs pyarrow")
    pytest.importorskip("sklearn", reason="the TF-IDF baseline needs scikit-learn")
    products, rejected = evaluation.read_products(shared / "val.parquet")
    figures = evaluation.baselines(products, evaluation.read_pairs(shared / "val_pairs.csv"))
    assert (len(products), rejected) == (3391, [])
    assert list(figures["tfidf"]["t>t"].values()) == pytest.approx([0.74, 0.98, 1.00], abs=0.015)
    assert list(figures["raw_pixels"]["v>v"].values()) == pytest.approx([0.23, 0.43, 0.55], abs=0.015)
