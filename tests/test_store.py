"""The store: what it keeps, how it changes, what it refuses, and threads."""

from __future__ import annotations

import json
import math
import runpy
import sqlite3
import threading
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from uniecs.catalog import Product
from uniecs.errors import FilterError, IndexFileError, InputError, UniecsError
from uniecs.filters import Between, OneOf
from uniecs.index_folder import BundleReference, IndexConfig
from uniecs.store import BATCH_ROWS, Store
from uniecs.store_format import State, write_state

SHOP = runpy.run_path(str(Path(__file__).with_name("store_shop.py")))
make, item, contents, expected, vector = (SHOP[name] for name in ("make", "item", "contents", "expected", "vector"))
DIM = SHOP["DIM"]


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make(tmp_path / "i")  # type: ignore[no-any-return]


def test_put_replace_delete(store: Store) -> None:
    assert (store.sequence, store.count(), contents(store)) == (0, 0, {})
    first = [item("a"), item("b", views=["multimodal"]), item("c", views=[])]
    sequence, rows, old = store.put(first)
    assert (sequence, rows.tolist(), old.tolist()) == (1, [1, 2, 3], []) and rows.dtype == np.int64
    assert (store.count(), store.count("multimodal"), store.count("text")) == (3, 2, 1)
    assert contents(store) == expected(first)

    second = [item("d"), item("a", 1, views=["text"])]
    sequence, rows, old = store.put(second)
    assert (sequence, rows.tolist(), old.tolist()) == (2, [4, 5], [1])
    assert (store.count(), store.count("multimodal"), store.count("text")) == (4, 2, 2)
    assert contents(store) == expected([*first[1:], *second])
    assert (store.row_of("a"), store.row_of("x")) == (5, None)
    assert store.known(["a", "x", "d", "d"]) == {"a", "d"}

    sequence, rows = store.delete(["d", "b"])
    assert (sequence, rows.tolist()) == (3, [2, 4])
    assert contents(store) == expected([first[2], second[1]])
    assert store.verify() == []


def test_rows_are_never_used_again(store: Store) -> None:
    store.put([item("a"), item("b")])
    store.delete(["b"])
    assert store.put([item("b")])[1].tolist() == [3]
    store.delete(["a", "b"])
    store.close()
    again = Store.open(store.folder)
    assert again.put([item("a")])[1].tolist() == [4]


def test_the_rows_of_a_graph_are_all_used(store: Store) -> None:
    with store._database.writing() as connection:
        write_state(connection, State(0, 2**32 - 2, 0, 0, dict.fromkeys(store.config.views, 0)))
    with pytest.raises(IndexFileError, match="has used all of its 4294967295 rows"):
        store.put([item("a"), item("b")])
    assert store.put([item("a")])[1].tolist() == [2**32 - 1] and store.count() == 1


def test_reopened(store: Store) -> None:
    items = [item("a"), item("b", 1)]
    store.put(items)
    store.close()
    again = Store.open(store.folder)
    assert contents(again) == expected(items) and again.sequence == 1
    assert (again.model_id, again.embed_dim, again.bundle) == ("fake-1", DIM, BundleReference(name="mini"))
    assert again.config == IndexConfig(views=("multimodal", "text"))
    assert files(store.folder) == ["store.sqlite", "store.sqlite-shm", "store.sqlite-wal", "writer.lock"]
    again.close()
    assert files(store.folder) == ["store.sqlite", "writer.lock"]


def test_nothing_to_do_changes_nothing(store: Store) -> None:
    store.put([item("a")])
    assert [each if isinstance(each, int) else each.tolist() for each in store.put([])] == [1, [], []]
    assert store.delete([])[0] == 1 and store.sequence == 1


def test_all_or_none(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put([item("a"), item("b")])
    before = contents(store)
    with pytest.raises(InputError, match="1 of 2 ids are not in the index, such as 'x'"):
        store.delete(["a", "x"])
    with pytest.raises(InputError, match="more than once"):
        store.put([item("c"), item("c", 1)])
    with pytest.raises(InputError):
        store.put([item("a", 1), (Product("d", "d"), {"image": vector(1)})])

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("uniecs.store_change.Change._insert_entries", fail)
        with pytest.raises(KeyboardInterrupt):
            store.put([item("a", 1), item("c", attributes={"new": 1})])
    assert contents(store) == before and store.sequence == 1 and store.verify() == []
    assert store.put([item("c", attributes={"new": 1})])[1].tolist() == [3]


def test_vectors(store: Store) -> None:
    store.put([item(str(number), views=["text"] if number % 2 else ["multimodal"]) for number in range(1, 8)])
    rows, vectors = store.vectors("text", [7, 1, 2, 99, 3])
    assert rows.tolist() == [1, 3, 7] and vectors.dtype == np.float32
    assert np.array_equal(vectors, [item(str(row), views=["text"])[1]["text"] for row in (1, 3, 7)])
    rows, vectors = store.vectors("text", np.array([2], np.int64))
    assert rows.shape == (0,) and vectors.shape == (0, DIM)
    assert [rows.tolist() for rows, _ in store.vectors_after("text", 1)] == [[3, 5, 7]]
    assert list(store.vectors_after("text", 7)) == []
    with pytest.raises(InputError, match="view is 'image'"):
        store.vectors("image", [1])


def test_batches_go_through_everything(tmp_path: Path) -> None:
    store = make(tmp_path / "i", durability="batch")
    number = 2 * BATCH_ROWS + 5
    for start in range(0, number, 500):
        store.put([item(str(each)) for each in range(start, min(start + 500, number))])
    store.delete([str(each) for each in range(0, number, 7)])
    found = contents(store)
    assert found.keys() == {str(each) for each in range(number) if each % 7}
    rows = np.concatenate([rows for rows, _ in store.vectors_after("text", 0)])
    assert np.all(np.diff(rows) > 0) and len(rows) == store.count("text") == len(found)
    some = rows[::3]
    assert np.array_equal(store.vectors("text", some[::-1])[0], some)
    assert store.products(some.tolist()) == {row: found[str(row - 1)][0] for row in some.tolist()}


def test_deleted_rows_are_known_until_purged(store: Store) -> None:
    store.put([item("a"), item("b"), item("c")])
    store.put([item("a", 1)])
    store.delete(["c", "b"])
    assert store.deleted_after(0).tolist() == [1, 2, 3] and store.deleted_after(2).tolist() == [2, 3]
    assert store.deleted_after(3).tolist() == []
    store.purge_deleted(2)
    assert (store.sequence, store.purged, store.deleted_after(2).tolist()) == (3, 2, [2, 3])
    with pytest.raises(InputError, match="from 2 on"):
        store.deleted_after(1)
    store.purge_deleted(1)
    store.purge_deleted(99)
    assert (store.purged, store.stats()["deleted"]) == (3, 0)
    assert store.put([item("d")])[0] == 4


@pytest.mark.parametrize(
    "attributes",
    [
        {"nul": "a\0b", "\0": 1},
        {"big": [2**63, -(2**63) - 1, 2**200, 10**400], "edge": [2**63 - 1, -(2**63)]},
        {"numbers": [0.1, -0.0, 1e308, 5e-324, 1, 1.0, True, 0, False]},
        {"list": [str(number) for number in range(20_000)]},
        {"long": "x" * 1_000_000},
        {"": "", "empty": [], "none": None, "nones": [None]},
        {"颜色": "红", "emoji": "👗", "line\nbreak": "a\nb\rc\u2028d"},
        {"readable": ["1", "1.0", "nan", "inf", "1_000", " 7 ", "٣"]},
        {f"key {number}": number for number in range(2000)},
    ],
    ids=lambda attributes: next(iter(attributes)).strip("\0") or "odd",
)
def test_odd_values_are_kept(store: Store, attributes: dict[str, Any]) -> None:
    product = Product("id\0 \n'\"", "title\0\n", "x.jpg", attributes)
    store.put([(product, {}), item("other")])
    assert store.products([1]) == {1: product}
    store._cache.clear()
    assert store.products([1]) == {1: product} and store.known([product.id]) == {product.id}
    assert store.verify() == []
    store.put([item(product.id, attributes={}), item("other", attributes={})])
    assert store.attribute_keys() == set() and store.verify() == []


def test_the_path_of_an_image_may_be_no_unicode(store: Store) -> None:
    product = Product("a", "七", "caf\udce9/七.jpg", {"größe": "七"})
    store.put([(product, {})])
    store._cache.clear()
    assert store.products([1]) == {1: product} and store.verify() == []


@pytest.mark.parametrize(
    "product",
    [
        Product("\ud800", "x"),
        Product(7, "x"),  # type: ignore[arg-type]
        Product("a", "x", b"bytes"),
        Product("a", "x", None, {"a": math.nan}),
        Product("a", "x", None, {"a": [math.inf]}),
        Product("a", "x", None, {"a": "\ud800"}),
        Product("a", "x", None, {"\ud800": 1}),
        Product("a", "x", None, {1: 1}),  # type: ignore[dict-item]
        Product("a", "x", None, {"a": {"b": 1}}),  # type: ignore[dict-item]
        Product("a", "x", None, {"a": [["b"]]}),  # type: ignore[list-item]
        Product("a", "x", None, {"a": b"b"}),  # type: ignore[dict-item]
        Product("a", "x", None, {"a": Decimal(1)}),  # type: ignore[dict-item]
        Product("a", "x", None, {"a": np.int64(1)}),
        Product("a", "x", None, {"a": 10**5000}),
    ],
)
def test_what_cannot_be_stored(store: Store, product: Product) -> None:
    with pytest.raises(InputError):
        store.put([item("b"), (product, {})])
    assert store.sequence == 0


@pytest.mark.parametrize(
    "vectors",
    [
        {"image": vector(1)},
        {"text": vector(1)[:-1]},
        {"text": np.zeros((1, DIM), np.float32)},
        {"text": np.full(DIM, np.nan, np.float32)},
    ],
)
def test_vectors_that_are_refused(store: Store, vectors: Any) -> None:
    with pytest.raises(InputError):
        store.put([(Product("a", "x"), vectors)])
    assert store.sequence == 0


def test_vectors_of_other_types_are_kept_as_float32(store: Store) -> None:
    values = vector(1).astype(np.float64)[::-1]
    store.put([(Product("a", "x"), {"text": values})])
    assert np.array_equal(store.vectors("text", [1])[1][0], values.astype(np.float32))


def test_rows_matching(store: Store) -> None:
    shop: list[dict[str, Any]] = [
        {"price": 5, "sale": True, "sizes": ["S", "M"], "code": 2**53},
        {"price": 7.5, "sale": 1},
        {"price": "6", "sizes": ["M", "L", 1], "code": str(2**53 + 1)},
        {"sizes": []},
        {"price": 7.5, "sale": "true"},
    ]
    store.put([item(str(number), attributes=each) for number, each in enumerate(shop)])
    store.put([item("4", attributes={"price": [100, 5.0]})])
    cases = [
        (OneOf("price", (5,)), [1, 6]),
        (OneOf("price", ("6", 7.5)), [2, 3]),
        (OneOf("price", (6,)), [3]),
        (OneOf("price", ("5",)), []),
        (OneOf("sale", (True,)), [1]),
        (OneOf("sale", (1.0,)), [2]),
        (OneOf("sizes", ("M", "S")), [1, 3]),
        (OneOf("sizes", (None,)), [2, 4, 6]),
        (OneOf("sizes", (None, "L")), [2, 3, 4, 6]),
        (OneOf("code", (2**53,)), [1]),
        (Between("code", 2**53, None), [1, 3]),
        (OneOf("nothing", ("x",)), []),
        (OneOf("nothing", (None,)), [1, 2, 3, 4, 6]),
        (Between("price", 5, 6), [1, 3, 6]),
        (Between("price", None, 6.5), [1, 3, 6]),
        (Between("price", 6, None), [2, 3, 6]),
        (Between("price", "5", None), [3]),
        (Between("sizes", "L", "M"), [1, 3]),
        (Between("sale", 0, 2), [2]),
    ]
    for predicate, rows in cases:
        assert store.rows_matching(predicate).tolist() == rows, predicate
    assert store.attribute_keys() == {"price", "sale", "sizes", "code"}
    store.delete([str(number) for number in (0, 2)])
    assert store.attribute_keys() == {"price", "sale"}
    with pytest.raises(FilterError, match="Unicode"):
        store.rows_matching(OneOf("price", ("\ud800",)))


def test_the_cache_holds_no_ghosts(store: Store) -> None:
    store.put([item("a"), item("b")])
    assert store.products([1, 2, 3]).keys() == {1, 2}
    store.put([item("a", 1)])
    assert store.products([1, 2, 3]) == {2: item("b")[0], 3: item("a", 1)[0]}
    store.delete(["b"])
    assert store.products([1, 2, 3]).keys() == {3}


def test_a_product_read_while_it_is_removed_is_not_cached(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from uniecs import store as module

    store.put([item("a")])
    original = module.read_products

    def slow(*arguments: Any) -> Any:
        found = original(*arguments)
        monkeypatch.setattr(module, "read_products", original)
        store.delete(["a"])
        return found

    monkeypatch.setattr(module, "read_products", slow)
    assert store.products([1]).keys() == {1}
    assert store.products([1]) == {}


def test_the_cache_is_bounded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("uniecs.store.CACHED_PRODUCTS", 10)
    store.put([item(str(number)) for number in range(40)])
    for row in range(1, 41):
        assert store.products([row])[row].id == str(row - 1)
    assert len(store._cache) == 10 and store.products(range(41)).keys() == set(range(1, 41))
    assert len(store._cache) == 10


def test_a_snapshot_is_of_one_moment(store: Store) -> None:
    store.put([item("a")])
    other = Store.open(store.folder)
    with other.snapshot():
        assert other.count() == 1
        store.put([item("b")])
        with other.snapshot():
            assert (other.count(), other.sequence, other.known(["a", "b"])) == (1, 1, {"a"})
        assert [len(rows) for rows, _ in other.vectors_after("text", 0)] == [1]
    assert (other.count(), other.known(["a", "b"])) == (2, {"a", "b"})


def test_a_failed_read_holds_nothing_back(store: Store) -> None:
    """A connection that kept its old state would answer from it."""
    store.put([item("a")])
    with pytest.raises(ZeroDivisionError), store.snapshot():
        assert store.count() == 1
        raise ZeroDivisionError
    batches = store.products_after(0)
    next(batches)
    store.put([item("b")])
    assert store.count() == 2 and [batch.keys() for batch in batches] == [{2}]


def test_threads_read_whole_states_while_one_writes(store: Store) -> None:
    """Every product is of the version that the others of its change have."""
    store.put([item(str(number)) for number in range(30)])
    failures: list[object] = []
    stop = threading.Event()

    def read() -> None:
        try:
            while not stop.is_set():
                with store.snapshot():
                    versions = {product.attributes["version"] for product, _ in contents(store).values()}
                    rows = store.rows_matching(OneOf("version", tuple(versions)))
                    if (
                        len(versions) != 1
                        or len(rows) != 30
                        or store.products(rows.tolist()).keys() != set(rows.tolist())
                    ):
                        failures.append((versions, rows))
        except UniecsError as error:
            failures.append(error)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for version in range(1, 60):
        store.put([item(str(number), version) for number in range(30)])
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == [] and store.verify() == []


def test_threads_write_in_turn(store: Store) -> None:
    def write(name: str) -> None:
        for version in range(20):
            store.put([item(name, version), item("shared", version)])

    threads = [threading.Thread(target=write, args=(str(number),)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (store.sequence, store.count(), store.verify()) == (80, 5, [])


@pytest.mark.parametrize(("durability", "level"), [("full", 2), ("batch", 1)])
def test_durability(tmp_path: Path, durability: Any, level: int) -> None:
    make(tmp_path / "i").close()
    store = Store.open(tmp_path / "i", durability)
    store.put([item("a")])
    assert store._database._writer is not None
    assert store._database._writer.execute("PRAGMA synchronous").fetchall() == [(level,)]


def test_unknown_durability(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="durability is 'fast'; expected 'full' or 'batch'"):
        make(tmp_path / "i", durability="fast")
    assert not (tmp_path / "i").exists()


def test_the_log_does_not_grow_for_ever(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("uniecs.database.LOG_LIMIT_BYTES", 200_000)
    for version in range(40):
        store.put([item(str(number), version) for number in range(30)])
        assert store.stats()["log_bytes"] < 1_000_000
    with store.snapshot():
        store.put([item("a")])  # a reader in the way is no fault
    store.checkpoint()
    assert store.stats()["log_bytes"] == 0 and store.verify() == []


def test_stats(store: Store) -> None:
    store.put([item("a"), item("b", views=["text"])])
    store.delete(["a"])
    stats = store.stats()
    assert stats.pop("store_bytes") >= 8 * 8192 and stats.pop("log_bytes") > 0
    assert stats == {"products": 1, "vectors": {"multimodal": 0, "text": 1}, "deleted": 1, "sequence": 2}


def test_closed(store: Store) -> None:
    store.put([item("a")])
    store.close()
    store.close()
    for use in (lambda: store.count(), lambda: store.put([item("b")]), lambda: store.products([1]), store.checkpoint):
        with pytest.raises(InputError, match="closed"):
            use()  # type: ignore[operator]


def test_create_overwrites_nothing(store: Store, tmp_path: Path) -> None:
    store.put([item("a")])
    with pytest.raises(IndexFileError, match="being written by process"):
        make(tmp_path / "i")
    store.close()
    with pytest.raises(IndexFileError, match="already exists"):
        make(tmp_path / "i")
    assert Store.open(tmp_path / "i").count() == 1
    (tmp_path / "file").write_text("mine")
    with pytest.raises(IndexFileError, match="cannot be written"):
        make(tmp_path / "file")


def test_create_where_a_crash_left_something(tmp_path: Path) -> None:
    """A log without its file would be read as the new file's."""
    folder = tmp_path / "i"
    store = make(folder)
    store.put([item("a")])
    log = (folder / "store.sqlite-wal").read_bytes()
    store.close()
    (folder / "store.sqlite").unlink()
    (folder / "store.sqlite-wal").write_bytes(log)
    (folder / "store.sqlite.new").write_bytes(b"half")
    (folder / "store.sqlite.new-wal").write_bytes(log)
    again = make(folder)
    assert (again.count(), again.verify()) == (0, [])
    again.close()
    assert files(folder) == ["store.sqlite", "writer.lock"]


def test_what_is_no_store(tmp_path: Path) -> None:
    for name in ("none", "empty", "foreign", "text", "zero", "renamed", "newer", "halved"):
        (tmp_path / name).mkdir()
    (tmp_path / "none").rmdir()
    connection = sqlite3.connect(tmp_path / "foreign" / "store.sqlite")
    connection.execute("CREATE TABLE product (id)")
    connection.close()
    (tmp_path / "text" / "store.sqlite").write_text("not a database" * 1000)
    (tmp_path / "zero" / "store.sqlite").touch()
    for name, key, value in (("renamed", "format", "shop"), ("newer", "format_version", "3")):
        make(tmp_path / name).close()
        connection = sqlite3.connect(tmp_path / name / "store.sqlite")
        connection.execute("UPDATE meta SET value = ? WHERE key = ?", (value, key))
        connection.commit()
        connection.close()
    store = make(tmp_path / "halved")
    store.put([item(str(number)) for number in range(500)])
    store.close()
    path = tmp_path / "halved" / "store.sqlite"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    cases = [
        ("none", "is not an index"),
        ("empty", "is not an index"),
        ("foreign", "is not an index"),
        ("text", "damaged.*not a database"),
        ("zero", "is not an index"),
        ("renamed", "its format is 'shop'"),
        ("newer", "format version 3; this uniecs reads up to 2: upgrade"),
        ("halved", "damaged"),
    ]
    for name, message in cases:
        with pytest.raises(IndexFileError, match=message):
            contents(Store.open(tmp_path / name))
    assert not (tmp_path / "none").exists()


def test_readable_with_any_tool(store: Store) -> None:
    """As docs/index-format.md says, without uniecs."""
    store.put([item("a"), item("b", 1)])
    store.close()
    connection = sqlite3.connect(store.folder / "store.sqlite")
    query = (
        "SELECT p.id, json_extract(p.content, '$.title') FROM product p JOIN attribute a USING (row) "
        "JOIN attribute_key k USING (key) WHERE k.name = 'colour' AND a.kind = 2 AND a.value = 'green'"
    )
    assert connection.execute(query).fetchall() == [("b", "title b 1")]
    ((vector,),) = connection.execute("SELECT vector FROM vector_text WHERE row = 2").fetchall()
    assert np.array_equal(np.frombuffer(vector, "<f4"), item("b", 1)[1]["text"])
    ((state,),) = connection.execute("SELECT value FROM meta WHERE key = 'state'").fetchall()
    assert json.loads(state)["sequence"] == 1
    connection.close()
