"""The index in Milvus, against milvus-lite: filters agree with `filters.matches`, nothing is lost, errors are ours."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import numpy as np
import pytest

from uniecs import milvus_connection
from uniecs.catalog import Product
from uniecs.copying import CopyReport, copy_index, store_items
from uniecs.errors import ConfigError, FilterError, IndexFileError, InputError, ModelMismatchError
from uniecs.filters import And, Filter, Or, matches, parse_where
from uniecs.index import Embedded, Vectors
from uniecs.index_folder import BundleReference, IndexConfig
from uniecs.milvus_connection import Address
from uniecs.milvus_filters import MAX_VALUES, filter_fields, number_key, text_key
from uniecs.milvus_index import MAX_BYTES, MilvusIndex, content_digest
from uniecs.store import Store

DIM = 16
BUNDLE = BundleReference(name="mini")
CONFIG = IndexConfig(views=("multimodal", "image"))
pytestmark = pytest.mark.usefixtures("milvus")
NASTY = ['"', "'", "\\", '\\"', '" or key != "', "') or (1 == 1", "a\nb", "\t", "é", "衣", "\U0001f457", "%", "x" * 100]


def create(milvus_url: str, config: IndexConfig = CONFIG) -> MilvusIndex:
    return MilvusIndex.create(milvus_url, "fake-1", DIM, BUNDLE, config)


def unit(seed: int) -> Vectors:
    vector = np.random.default_rng(seed).standard_normal(DIM).astype(np.float32)
    return vector / np.linalg.norm(vector)


def item(product_id: str, seed: int, views: tuple[str, ...] = ("multimodal", "image"), **attributes: Any) -> Any:
    return Product(product_id, f"title {seed}", None, attributes), {view: unit(seed) for view in views}


def ids(hits: list[tuple[Product, float]]) -> list[str]:
    return [product.id for product, _ in hits]


def values() -> list[Any]:
    numbers = [0, -0.0, 1, 1.0, -1, 1.5, -2.5, 0.1, 1e22, 2**53, 2**53 + 1, 2**63 - 1, -(2**63), 1e-300]
    strings = ["", "1", "1.0", " 2 ", "1_0", "inf", "-inf", "nan", "a", "b", "A", "aa", "Zebra", *NASTY]
    strings += [str(number) for number in (2**53 - 1, 2**53, 2**53 + 1)]
    return [*numbers, 2**53 - 1, True, False, *strings, "p" * 64, "p" * 64 + "q", "p" * 63]


def catalogue(count: int, seed: int) -> list[Product]:
    draw = random.Random(seed)
    products = []
    for number in range(count):
        attributes: dict[str, Any] = {}
        for key in ("a", "b", 'c"] or ["'):
            kind = draw.random()
            if kind < 0.5:
                attributes[key] = draw.choice(values())
            elif kind < 0.8:
                attributes[key] = draw.sample(values(), draw.randint(1, 9))
        products.append(Product(f"p{number}", "t", None, attributes))
    return products


def filters(count: int, seed: int) -> Iterator[dict[str, Any]]:
    draw = random.Random(seed)

    def leaf() -> dict[str, Any]:
        key = draw.choice(["a", "b", 'c"] or ["', "unknown"])
        kind = draw.random()
        if kind < 0.35:
            return {key: draw.choice([*values(), None])}
        if kind < 0.5:
            return {key: draw.sample([*values(), None], draw.randint(1, 4))}
        texts = [each for each in values() if isinstance(each, str) and len(each.encode()) <= 64]
        numbers = [each for each in values() if isinstance(each, (int, float)) and not isinstance(each, bool)]
        low, high = sorted(draw.choices(draw.choice([texts, numbers]), k=2))
        return {key: draw.choice([(low, high), (low, None), (None, high)])}

    def tree(depth: int) -> dict[str, Any]:
        kind = draw.random()
        if depth == 0 or kind < 0.4:
            return leaf()
        if kind < 0.6:
            return {"$not": tree(depth - 1)}
        parts = [tree(depth - 1) for _ in range(draw.randint(1, 3))]
        return {draw.choice(["$and", "$or"]): parts}

    return (tree(2) for _ in range(count))


@pytest.fixture(scope="module")
def filtered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[MilvusIndex, list[Product]]]:
    products = catalogue(120, seed=0)
    index = create(f"milvus-lite://{tmp_path_factory.mktemp('filters')}/shop.db/products", IndexConfig())
    index.put([(product, {"multimodal": unit(row)}) for row, product in enumerate(products)])
    yield index, products
    index.close()


def answers(index: MilvusIndex, filter: Filter) -> list[str]:
    return sorted(ids(index.search("multimodal", unit(0)[np.newaxis], 1000, filter)[0]))


@pytest.mark.parametrize("seed", range(4))
def test_filters_agree_with_their_definition(filtered: tuple[MilvusIndex, list[Product]], seed: int) -> None:
    index, products = filtered
    sizes = set()
    for where in filters(40, seed):
        filter = parse_where(where)
        expected = sorted(product.id for product in products if matches(filter, product.attributes))
        assert answers(index, filter) == expected, where
        sizes.add(len(expected))
    assert len(sizes) > 10  # neither all nor none each time


@pytest.mark.parametrize(
    "where",
    [
        {"a": 1},
        {"a": "1"},
        {"a": True},
        {"a": [True, 1, None]},
        {"a": None},
        {"$not": {"a": None}},
        {"a": (0, 1)},
        {"a": (None, -1)},
        {"$not": {"a": (0, 2**53)}},
        {"a": (2**53 + 1, None)},
        {"a": (10**400 // 1, None)},
        {"a": ("", None)},
        {"a": ("p" * 64, "p" * 64)},
        {"a": ("p" * 64, None)},
        {"$or": [{"a": "a"}, {"b": (1, 2)}]},
        {"$and": []},
        {},
    ],
)
def test_single_filters(filtered: tuple[MilvusIndex, list[Product]], where: dict[str, Any]) -> None:
    index, products = filtered
    filter = parse_where(where)
    assert answers(index, filter) == sorted(each.id for each in products if matches(filter, each.attributes))


def test_empty_and_or(filtered: tuple[MilvusIndex, list[Product]]) -> None:
    assert len(answers(filtered[0], And(()))) == len(filtered[1])
    assert answers(filtered[0], Or(())) == []


def test_nothing_of_a_filter_stands_in_the_expression(filtered: tuple[MilvusIndex, list[Product]]) -> None:
    for text in NASTY:
        for where in ({text: text}, {text: (text[:60], None)}, {"$not": {"a": [text, None]}}):
            written = filtered[0].explain("multimodal", unit(0), 10, parse_where(where))["expression"]
            assert re.fullmatch(r"""[A-Za-z0-9_\-(), \[\]"=<>!~]+""", written), written
            strings = re.findall('"([^"]*)"', written)
            assert all(re.fullmatch(r"[A-Za-z0-9_~-]*", each) for each in strings), written
            assert "xxx" not in written


def test_long_lists_and_bounds(milvus_url: str) -> None:
    index = create(milvus_url)
    index.put([item("many", 1, sizes=list(range(0, 200, 2))), item("few", 2, sizes=[1, 101, 3])])
    for low, high in ((100, 100), (101, 101), (198, 300), (199, 300), (-5, -1)):
        filter = parse_where({"sizes": (low, high)})
        expected = [
            name
            for name, found in (("few", {1, 101, 3}), ("many", set(range(0, 200, 2))))
            if any(low <= each <= high for each in found)
        ]
        assert answers(index, filter) == expected
    with pytest.raises(FilterError, match="64"):
        index.search("multimodal", unit(1)[np.newaxis], 1, parse_where({"sizes": ("x" * 65, None)}))
    with pytest.raises(InputError, match=f"'x'.*{MAX_VALUES}"):
        index.put([item("x", 1, sizes=list(range(MAX_VALUES + 1)))])
    index.close()


def test_number_and_text_keys_keep_the_order() -> None:
    numbers = [each for each in values() if isinstance(each, (int, float))] + [math.inf, -math.inf, 5e-324, -1e300, 99]
    for a in numbers:
        for b in numbers:
            assert (a < b, a == b) == (number_key(a) < number_key(b), number_key(a) == number_key(b)), (a, b)
    texts = [each for each in values() if isinstance(each, str) and len(each.encode()) <= 64]
    for a in texts:
        for b in texts:
            assert (a < b) == (text_key(a) < text_key(b)), (a, b)


def test_add_update_delete_reopen(milvus_url: str) -> None:
    with_image = [item(str(n), n, price=n, tags=["x", "y"], sale=n % 2 == 0) for n in range(20)]
    index = create(milvus_url)
    assert (len(index), index.known(["1", "2"]), index.attribute_keys()) == (0, set(), set())
    index.put([*with_image, item("text only", 50, ("multimodal",), colour="red")])
    assert len(index) == 21
    assert index.known(["1", "text only", 'no"\\', "1"]) == {"1", "text only"}
    assert index.attribute_keys() == {"price", "tags", "sale", "colour"}
    for seed in (3, 50):
        (hits,) = index.search("multimodal", unit(seed)[np.newaxis], 3, None)
        assert hits[0][0].id == (str(seed) if seed < 50 else "text only")
        assert hits[0][1] == pytest.approx(1, abs=1e-5)
    assert hits[0][0] == Product("text only", "title 50", None, {"colour": "red"})
    assert "text only" not in ids(index.search("image", unit(50)[np.newaxis], 100, None)[0])
    assert len(index.search("image", unit(50)[np.newaxis], 100, None)[0]) == 20

    index.put([(Product("3", None, "b.jpg", {"price": 7.0}), {"image": unit(99)})])
    assert len(index) == 21
    (hits,) = index.search("image", unit(99)[np.newaxis], 1, None)
    assert hits[0][0] == Product("3", None, "b.jpg", {"price": 7.0})
    assert "3" not in ids(index.search("multimodal", unit(3)[np.newaxis], 100, None)[0])
    with pytest.raises(InputError, match="no vector"):
        index.vector("3", "multimodal")
    with pytest.raises(InputError, match="'4a' is not"):
        index.vector("4a", "image")
    np.testing.assert_array_equal(index.vector("4", "image"), unit(4))

    with pytest.raises(InputError, match="'missing'"):
        index.delete(["4", "missing"])
    assert index.known(["4"]) == {"4"}
    index.delete(["4", "5"])
    assert (len(index), index.known(["4", "5", "6"])) == (19, {"6"})
    index.save()
    index.close()
    with pytest.raises(InputError, match="closed"):
        len(index)

    index = MilvusIndex.open(milvus_url, "fake-1")
    assert (index.model_id, index.embed_dim, index.bundle, index.config) == ("fake-1", DIM, BUNDLE, CONFIG)
    assert len(index) == 19
    assert "4" not in ids(index.search("multimodal", unit(4)[np.newaxis], 100, None)[0])
    assert ids(index.search("multimodal", np.stack([unit(6), unit(7)]), 1, None)[1]) == ["7"]
    index.compact()
    stats = index.stats()
    assert (stats["products"], stats["vectors"]) == (19, {"multimodal": 18, "image": 18})
    assert index.verify(sample=10) == {"store": "ok", "recall_at_10": {"multimodal": 1.0, "image": 1.0}}
    index.close()


@pytest.mark.parametrize(
    "field, value",
    [
        ("terms", []),
        ("ranges", {}),
        ("shape", "x"),
        ("content", "x"),
        ("title", "other"),
        ("attributes", {"price": 3}),
        ("has_image", False),
        ("image_vector", unit(3)),
        ("image_vector", 2 * unit(2)),
    ],
)
def test_verify_finds_damage(milvus_url: str, field: str, value: Any) -> None:
    index = create(milvus_url)
    items = [item(str(n), n, price=n) for n in range(5)]
    index.put(items)
    index._call("upsert", data=[{**index._row(*items[2]), field: value}])
    with pytest.raises(IndexFileError, match=r"1 of 5 products, such as '2', .*update"):
        index.verify(sample=1000)
    index.put(items)
    assert index.verify(sample=1000)["store"] == "ok"
    index.close()


def test_verify_measures_recall_of_products_that_are_alike(milvus_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    index = create(milvus_url)
    draw = random.Random(0)
    index.put([item(str(n), draw.randrange(3)) for n in range(90)])
    index.put([item(str(n), n, ("image",)) for n in range(100, 150)])
    assert index.verify(sample=1000)["recall_at_10"] == {"multimodal": 1.0, "image": 1.0}
    search = index.search
    monkeypatch.setattr(index, "search", lambda *asked: [line[1:5] for line in search(*asked)])
    assert index.verify(sample=1000)["recall_at_10"] == {"multimodal": 0.4, "image": pytest.approx(0.4, abs=0.01)}
    index.close()


def test_verify_asks_for_no_more_than_milvus_gives(milvus_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    index = create(milvus_url)
    index.put([item("1", 1)])
    limits: list[int] = []
    query = index._query

    def noted(filter: str, fields: list[str], limit: int) -> list[dict[str, Any]]:
        limits.append(limit)
        return query(filter, fields, limit)

    monkeypatch.setattr(index, "_query", noted)
    assert index.verify(sample=20_000)["store"] == "ok"
    assert set(limits) == {16_384}
    index.close()


def test_results_are_those_of_brute_force(milvus_url: str) -> None:
    index = create(milvus_url, IndexConfig())
    index.put([item(str(n), n, ("multimodal",), price=n) for n in range(300)])
    vectors = np.stack([unit(n) for n in range(300)])
    queries = np.stack([unit(1000 + n) for n in range(20)])
    where = parse_where({"price": (100, 199)})
    for query, hits in zip(queries, index.search("multimodal", queries, 10, where), strict=True):
        scores = vectors @ query
        best = sorted(range(100, 200), key=lambda row: -scores[row])[:10]
        assert ids(hits) == [str(row) for row in best]
        np.testing.assert_allclose([score for _, score in hits], scores[best], atol=1e-5)
    index.close()


def test_what_milvus_cannot_hold_is_refused_before_anything_is_written(milvus_url: str) -> None:
    index = create(milvus_url)
    good = item("good", 1)
    for bad, message in [
        (item("bad", 2, big=2**63), "64 bits"),
        (item("bad", 2, text="x" * MAX_BYTES), "attributes of"),
        ((replace(item("bad", 2)[0], title="é" * 40_000), {}), "title of 80000 bytes"),
        (item("bad", 2, ("text",)), "unknown view 'text'"),
        ((Product("bad", "t"), {"image": unit(1) * 2}), "norm"),
        ((Product("bad", "t"), {"image": unit(1)[:3]}), "shape"),
        (item("good", 2), "twice"),
    ]:
        with pytest.raises(InputError, match=message):
            index.put([good, bad])
    assert len(index) == 0
    with pytest.raises(InputError, match="16384"):
        index.search("image", unit(1)[np.newaxis], 20_000, None)
    with pytest.raises(InputError, match="'text'"):
        index.search("text", unit(1)[np.newaxis], 1, None)
    index.put([item("é" * 30_000, 1)])
    assert index.known(["é" * 30_000]) == {"é" * 30_000}
    index.close()


def test_many_products_go_in_several_requests(milvus_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    index = create(milvus_url, IndexConfig())
    sent: list[int] = []
    monkeypatch.setattr(index, "_call", lambda method, **arguments: sent.append(len(arguments["data"])))
    index.put([item(str(n), n, ("multimodal",), text="x" * 10_000) for n in range(1500)])
    assert sum(sent) == 1500
    assert 700 < max(sent) < 1000  # 8 MiB
    sent.clear()
    index.put([item(f"{n}{'x' * 60_000}", n, ("multimodal",)) for n in range(200)])
    assert sum(sent) == 200
    assert 100 < max(sent) < 150
    monkeypatch.undo()
    index.close()


def test_another_model_and_foreign_collections(milvus_url: str) -> None:
    create(milvus_url).close()
    with pytest.raises(IndexFileError, match="already exists"):
        create(milvus_url)
    with pytest.raises(ModelMismatchError, match="fake-1"):
        MilvusIndex.open(milvus_url, "fake-2")
    with pytest.raises(IndexFileError, match="does not exist"):
        MilvusIndex.open(milvus_url + "2")
    connection = milvus_connection.connect(Address.parse(milvus_url + "3"))
    connection._client.create_collection(connection.address.collection, dimension=4)
    with pytest.raises(IndexFileError, match="not of uniecs"):
        MilvusIndex.open(milvus_url + "3")
    manifest = json.dumps({"format_version": 2})
    connection._client.alter_collection_properties(connection.address.collection, {"uniecs.index": manifest})
    with pytest.raises(IndexFileError, match="version 2"):
        MilvusIndex.open(milvus_url + "3")
    connection._client.alter_collection_properties(connection.address.collection, {"uniecs.index": "{}"})
    with pytest.raises(IndexFileError, match="damaged"):
        MilvusIndex.open(milvus_url + "3")
    connection.close()


@pytest.mark.parametrize("step", ["create_index", "load_collection"])
def test_a_collection_that_was_cut_off_is_completed(milvus_url: str, step: str) -> None:
    from pymilvus import MilvusClient

    with pytest.MonkeyPatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(MilvusClient, step, lambda *args, **options: (_ for _ in ()).throw(KeyboardInterrupt))
        create(milvus_url)
    index = MilvusIndex.open(milvus_url)
    index.put([item("1", 1)])
    assert ids(index.search("image", unit(1)[np.newaxis], 1, None)[0]) == ["1"]
    found = {
        each: index._connection.call("describe_index", index_name=each)
        for each in index._connection.call("list_indexes")
    }
    assert sorted(found) == ["image_vector", "multimodal_vector", "shape"]
    assert (found["image_vector"]["index_type"], found["image_vector"]["metric_type"]) == ("HNSW", "IP")
    index.close()


def test_other_storage_is_refused(milvus_url: str) -> None:
    with pytest.raises(ConfigError, match="int8"):
        create(milvus_url, IndexConfig(storage="int8"))


def embedded(items: Iterable[Any], model_id: str = "fake-1", views: tuple[str, ...] = CONFIG.views) -> Embedded:
    return Embedded(model_id, views, items)


def test_copying_goes_on_where_it_stopped(milvus_url: str) -> None:
    source = [item(str(n), n, price=n) for n in range(1200)]
    target = create(milvus_url)

    def broken() -> Iterator[Any]:
        yield from source[:700]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        copy_index(embedded(broken()), target)
    assert len(target) == 500
    assert copy_index(embedded(source), target) == CopyReport(copied=700, unchanged=500)
    assert copy_index(embedded(iter(source)), target) == CopyReport(copied=0, unchanged=1200)
    changed = [*source[:5], (replace(source[5][0], title="new"), source[5][1]), (source[6][0], source[7][1])]
    assert copy_index(embedded(changed), target) == CopyReport(copied=2, unchanged=5)
    twice = [source[0], (replace(source[1][0], id="0"), source[0][1])]
    assert copy_index(embedded(twice), target) == CopyReport(1, 0)
    assert copy_index(embedded([source[1], source[0]]), target) == CopyReport(1, 1)  # the later one had won
    assert len(target) == 1200
    assert ids(target.search("image", source[7][1]["image"][np.newaxis], 2, None)[0]) in (["6", "7"], ["7", "6"])
    target.close()


def test_a_store_is_copied_whole(milvus_url: str, tmp_path: Path) -> None:
    store = Store.create(tmp_path / "shop", model_id="fake-1", embed_dim=DIM, bundle=BUNDLE, config=CONFIG)
    source = [item(f"é{n}", n, ("multimodal", "image")[n % 2 :], price=n, tags=["a", f"{n}"]) for n in range(3000)]
    store.put(source)
    store.put([item("é7", 7777, ("image",), price=7)])
    store.delete(["é8"])
    target = create(milvus_url)
    assert copy_index(store_items(store), target) == CopyReport(copied=2999, unchanged=0)
    assert copy_index(store_items(store), target) == CopyReport(copied=0, unchanged=2999)
    assert (len(target), target.known(["é8"])) == (2999, set())
    np.testing.assert_array_equal(target.vector("é7", "image"), unit(7777))
    (hits,) = target.search("multimodal", unit(10)[np.newaxis], 1, None)
    assert hits[0][0] == source[10][0]
    target.close()
    store.close()


def test_a_store_that_changes_is_copied_with_its_vectors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.create(tmp_path / "shop", model_id="fake-1", embed_dim=DIM, bundle=BUNDLE, config=CONFIG)
    store.put([item(str(n), n) for n in range(5)])
    read = store.products_after

    def changed_behind(row: int) -> Iterator[dict[int, Product]]:
        for number, batch in enumerate(read(row)):
            if number == 0:
                store.delete(["1"])
                store.put([item("2", 22)])
            yield batch

    monkeypatch.setattr(store, "products_after", changed_behind)
    copied = [(product, set(vectors)) for product, vectors in store_items(store).items]
    assert [(product.id, product.title) for product, _ in copied] == [
        *((n, f"title {n}") for n in "034"),
        ("2", "title 22"),
    ]
    assert all(views == set(CONFIG.views) for _, views in copied)
    store.close()


def test_what_milvus_cannot_hold_is_left_out_of_a_copy(milvus_url: str) -> None:
    source = [item(str(n), n, price=n) for n in range(700)]
    source[600] = item("huge", 600, text="x" * 70_000)
    target = create(milvus_url)
    report = copy_index(embedded(source), target)
    assert (report.copied, report.unchanged, len(target)) == (699, 0, 699)
    (rejected,) = report.rejected
    assert (rejected.row, rejected.id) == (600, "huge") and "attributes of" in str(rejected.error)
    assert copy_index(embedded(source), target) == CopyReport(0, 699, [ANY])
    target.close()


def test_vectors_of_another_model_or_other_views_are_not_copied(milvus_url: str) -> None:
    target = create(milvus_url)
    with pytest.raises(ModelMismatchError, match="of fake-2; the index there has fake-1"):
        copy_index(embedded([item("1", 1)], model_id="fake-2"), target)
    for views in (("image",), ("image", "multimodal", "text")):
        with pytest.raises(InputError, match=f"views {', '.join(views)}; the index there has multimodal, image"):
            copy_index(embedded([item("1", 1, ("image",))], views=views), target)
    assert copy_index(embedded([item("1", 1)], views=("image", "multimodal")), target).copied == 1
    assert len(target) == 1
    target.close()


def test_content_digest_sees_everything() -> None:
    product, vectors = item("1", 1, price=1)
    others = [
        (replace(product, id="2"), vectors),
        (replace(product, title=None), vectors),
        (replace(product, image="a.jpg"), vectors),
        (replace(product, attributes={"price": 1.0}), vectors),
        (replace(product, attributes={"price": True}), vectors),
        (product, {"image": vectors["image"]}),
        (product, {**vectors, "image": unit(2)}),
    ]
    digests = {content_digest(*each) for each in [(product, vectors), *others]}
    assert len(digests) == 8
    assert content_digest(replace(product, attributes={"b": 1, "a": 2}), {}) == content_digest(
        replace(product, attributes={"a": 2, "b": 1}), {}
    )


def test_terms_are_few() -> None:
    fields = filter_fields({"price": 10, "tags": ["a", "b"], "sale": True})
    assert len(fields.terms) == 4 + 2 + 1
    assert sum(map(len, fields.ranges.values())) == 3
