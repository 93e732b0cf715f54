"""The index in a folder: what was acknowledged is there again, whatever became of the graphs; filters; compaction."""

from __future__ import annotations

import logging
import os
import runpy
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from uniecs import local_index
from uniecs.catalog import Product
from uniecs.encoder import Encoder
from uniecs.engine import SearchEngine
from uniecs.errors import ConfigError, FilterError, IndexFileError, InputError, ModelMismatchError
from uniecs.index import check_vectors

FAKES = runpy.run_path(str(Path(__file__).with_name("fake_encoder.py")))
fake: Callable[..., Encoder] = FAKES["fake"]
filled: Callable[..., SearchEngine] = FAKES["filled"]
shop, ids, contents = FAKES["shop"], FAKES["ids"], FAKES["contents"]
VIEWS = ("multimodal", "image", "text")


@pytest.fixture
def many(tmp_path: Path) -> Iterator[SearchEngine]:
    """500 products with attributes of every type."""
    products = [
        Product(
            str(n),
            f"shirt {n} {'red' if n % 3 else 'blue'}",
            None,
            {"price": n, "kind": "a" if n % 2 else "b", "new": n % 5 == 0, "sizes": ["S", "M"][: n % 3]}
            | ({"rare": "yes"} if n == 77 else {}),
        )
        for n in range(500)
    ]
    engine = filled(tmp_path / "many", ("text",), products)
    yield engine
    engine.close()


@pytest.mark.parametrize("saved", [True, False])
def test_what_add_acknowledged_is_there_again(tmp_path: Path, saved: bool) -> None:
    engine = filled(tmp_path / "i", VIEWS)
    engine.delete(["2"])
    if saved:
        engine.save()
    engine.update([Product("3", "blue shoe")])
    expected = {view: engine.search(text="red", view=view) for view in VIEWS}
    engine.close()
    again = SearchEngine.open(tmp_path / "i", fake())
    assert len(again) == 4 and again.views == VIEWS
    for view in VIEWS:
        assert again.search(text="red", view=view) == expected[view]
    assert again.search(text="blue shoe", k=1)[0].product == Product("3", "blue shoe")


def test_the_folder_has_what_the_docs_say(tmp_path: Path) -> None:
    with filled(tmp_path / "i", ("multimodal", "text")):
        pass
    assert set(contents(tmp_path / "i")) == {
        "store.sqlite",
        "writer.lock",
        "graph-multimodal.hnsw",
        "graph-text.hnsw",
    }
    before = {name: data for name, data in contents(tmp_path / "i").items() if name.endswith(".hnsw")}
    with SearchEngine.open(tmp_path / "i", fake()) as reader:
        assert len(reader.search(text="red")) == 5
    assert {name: data for name, data in contents(tmp_path / "i").items() if name.endswith(".hnsw")} == before


@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped", "stale", "foreign", "another store's"])
def test_a_graph_that_cannot_be_used_is_built_anew(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("uniecs"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("uniecs"), "disabled", False)
    engine = filled(tmp_path / "i", ("text",))
    engine.save()
    snapshot = tmp_path / "i" / "graph-text.hnsw"
    old = snapshot.read_bytes()
    engine.delete(["1"])
    engine.save()
    engine.add([Product("6", "new hat")])
    engine.save()
    expected = engine.search(text="red hat")
    engine.close()
    if damage == "missing":
        snapshot.unlink()
    elif damage == "stale":  # older than what the store still tells of deletions
        snapshot.write_bytes(old)
    elif damage == "another store's":
        with filled(tmp_path / "other", ("text",), [*shop(), Product("6", "new hat")]):
            pass
        snapshot.write_bytes((tmp_path / "other" / "graph-text.hnsw").read_bytes())
    else:
        data = snapshot.read_bytes()
        flipped = data[:200] + bytes([data[200] ^ 4]) + data[201:]
        snapshot.write_bytes({"truncated": data[:-9], "flipped": flipped, "foreign": b"no graph at all"}[damage])
    with caplog.at_level(logging.WARNING):
        again = SearchEngine.open(tmp_path / "i", fake())
    assert "building the graph of the view text anew" in caplog.text
    assert again.search(text="red hat") == expected
    again.save()
    again.close()
    caplog.clear()
    assert SearchEngine.open(tmp_path / "i", fake()).search(text="red hat") == expected
    assert not caplog.text


def test_a_graph_newer_than_its_store_is_not_taken_later(tmp_path: Path) -> None:
    """As after a power cut, or from a copy: the store lacks changes that the snapshot has, and goes on without them."""
    folder = tmp_path / "i"
    filled(folder).close()
    store = (folder / "store.sqlite").read_bytes()
    with SearchEngine.open(folder, fake()) as engine:
        engine.add([Product("6", "zebra")])
    (folder / "store.sqlite").write_bytes(store)
    killed: Any = SearchEngine.open(folder, fake())
    killed.add([Product("7", "yak")])
    killed._index._store.close()
    with SearchEngine.open(folder, fake()) as engine:
        assert ids(engine.search(text="yak", k=1)) == ["7"] and engine.verify()["recall_at_10"]["multimodal"] == 1


def test_vectors_that_make_no_graph_are_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path / "i", ("text",)).close()
    empty = local_index.LocalIndex._empty_graph

    def taken(index: local_index.LocalIndex) -> Any:
        graph, first = empty(index), np.eye(1, index.embed_dim, dtype=np.float32)
        graph.apply(np.zeros(0, np.uint64), np.ones(1, np.uint64), first, 1)
        return graph

    monkeypatch.setattr(local_index.LocalIndex, "_empty_graph", taken)
    with pytest.raises(IndexFileError, match="its vectors make no graph"):
        SearchEngine.open(tmp_path / "i", fake())


def test_one_writer_many_readers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_index, "REFRESH_S", 0.0)
    writer = filled(tmp_path / "i", ("text",))
    reader = SearchEngine.open(tmp_path / "i", fake())
    for change in (lambda: reader.delete(["1"]), lambda: reader.add([Product("9", "x")]), lambda: reader.compact()):
        with pytest.raises(IndexFileError, match=f"process {os.getpid()}"):
            change()
    writer.update([Product("1", "purple hat")])
    writer.delete(["2"])
    assert ids(reader.search(text="purple hat", k=1)) == ["1"] and "2" not in ids(reader.search(text="green"))
    writer.close()
    assert reader.add([Product("9", "pink hat")]).added == 1
    assert ids(reader.search(text="pink hat", k=1)) == ["9"] and len(reader) == 4


def test_what_is_written_while_a_reader_refreshes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its filters must not lack the rows that its graph then has."""
    monkeypatch.setattr(local_index, "REFRESH_S", 0.0)
    with filled(tmp_path / "i", ("text",)) as writer, SearchEngine.open(tmp_path / "i", fake()) as reader:
        writer.add([Product("6", "red hat")])
        filters: Any = reader._index._filters  # type: ignore[attr-defined]
        forget = filters.forget

        def and_then(last: int) -> None:
            forget(last)
            monkeypatch.setattr(filters, "forget", forget)
            writer.add([Product("7", "red bag")])

        monkeypatch.setattr(filters, "forget", and_then)
        for _ in range(2):
            found = ids(reader.search(text="red", k=9, where={"$not": {"gender": "Men"}}))
        assert {"6", "7"} <= set(found)


def test_another_process_writes(tmp_path: Path) -> None:
    filled(tmp_path / "i", ("text",)).close()
    engine = SearchEngine.open(tmp_path / "i", fake())
    code = (
        "import runpy, sys; from uniecs.engine import SearchEngine; from uniecs.catalog import Product\n"
        "fakes = runpy.run_path(sys.argv[2])\n"
        "engine = SearchEngine.open(sys.argv[1], fakes['fake']())\n"
        "engine.add([Product('6', 'golden hat')]); engine.delete(['1'])\n"
        "import os; os._exit(0)\n"  # without closing: what was acknowledged is durable
    )
    script = str(Path(__file__).with_name("fake_encoder.py"))
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "i"), script], check=True)
    assert engine.add([Product("7", "silver hat")]).added == 1
    assert ids(engine.search(text="golden hat", k=1)) == ["6"] and len(engine) == 5
    assert engine.add([Product("6", "again")]).added == 0


def test_a_forked_child_is_told(tmp_path: Path) -> None:
    engine = filled(tmp_path / "i")
    child = os.fork() if hasattr(os, "fork") else pytest.skip("this system has no fork")
    if child == 0:
        try:
            engine.search(text="red")
        except InputError as error:
            os._exit(0 if "forked" in str(error) else 2)
        os._exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len(engine.search(text="red")) == 5


def test_where_with_and_or_not_and_absent(many: SearchEngine) -> None:
    def found(where: dict[str, Any]) -> set[int]:
        return {int(hit.id) for hit in many.search(text="shirt", k=500, where=where)}

    every = set(range(500))
    assert found({"price": (10, 12), "kind": "a"}) == {11}
    assert found({"$or": [{"price": (None, 1)}, {"price": (498, None)}]}) == {0, 1, 498, 499}
    assert found({"$not": {"kind": "a"}}) == {n for n in every if n % 2 == 0}
    assert found({"$and": [{"new": True}, {"$not": {"price": (20, None)}}]}) == {0, 5, 10, 15}
    assert found({"sizes": "M"}) == {n for n in every if n % 3 == 2}
    assert found({"sizes": None}) == {n for n in every if n % 3 == 0}
    assert found({"rare": ["yes", None]}) == every and found({"rare": "yes"}) == {77}
    assert found({"new": 1}) == set()
    for where in ({"$or": [{"colr": "x"}, {"kind": "a"}]}, {"$not": {"colr": "x"}}):
        with pytest.raises(FilterError, match="unknown key 'colr'"):
            found(where)


def test_what_does_not_match_is_found_after_reopening(many: SearchEngine, tmp_path: Path) -> None:
    many.save()
    many.close()
    with SearchEngine.open(tmp_path / "many", fake()) as again:
        assert len(again.search(text="shirt", k=500, where={"$not": {"kind": "a"}})) == 250
        assert len(again.search(text="shirt", k=500, where={})) == 500


def test_filters_follow_changes(many: SearchEngine) -> None:
    where = {"kind": "a", "$not": {"price": (100, None)}}
    before = {hit.id for hit in many.search(text="shirt", k=500, where=where)}
    many.update([Product("1", "shirt", None, {"kind": "b"}), Product("2", "shirt", None, {"kind": "a"})])
    many.add([Product("n", "shirt", None, {"kind": "a", "price": 3})])
    many.delete(["3"])
    assert {hit.id for hit in many.search(text="shirt", k=500, where=where)} == (before - {"1", "3"}) | {"2", "n"}


def test_explain_says_what_was_done(many: SearchEngine) -> None:
    few = many.explain(text="shirt", where={"rare": "yes"})
    assert (few["strategy"], few["matching"], few["hits"], few["compared"]) == ("exact", 1, 1, 1)
    assert many.explain(text="shirt")["matching"] == 500
    assert {"encode_ms", "search_ms", "ef", "products", "view"} <= few.keys()
    with pytest.raises(InputError):
        many.explain(text="shirt", k=0)


def test_stats_and_verify(many: SearchEngine, tmp_path: Path) -> None:
    many.delete(["1", "2"])
    stats = many.stats()
    assert stats["products"] == 498 and stats["views"]["text"]["removed"] == 2
    assert stats["views"]["text"]["vector_bytes"] == 500 * (32 * (4 + 1) + 8) and stats["store"]["store_bytes"] > 0
    assert many.verify(sample=50) == {"store": "ok", "recall_at_10": {"text": 1.0}}
    with pytest.raises(InputError):
        many.verify(sample=0)
    many.save()
    many.close()
    path = tmp_path / "many" / "store.sqlite"
    data = bytearray(path.read_bytes())
    place = data.index(b"shirt 400")
    data[place] ^= 1
    path.write_bytes(data)
    with (
        SearchEngine.open(tmp_path / "many", fake()) as again,
        pytest.raises(IndexFileError, match="damaged"),
    ):
        again.verify()


@pytest.mark.parametrize("storage", ["float16", "int8"])
def test_smaller_storage_scores_exactly(tmp_path: Path, storage: str) -> None:
    products = [Product(str(n), f"w{n % 17} w{n % 13} w{n % 11} w{n}") for n in range(600)]
    hits = {}
    for kind in ("float32", storage):
        engine = SearchEngine.create(tmp_path / kind, fake(), views=("text",), storage=kind)
        engine.add(products)
        hits[kind] = [engine.search(text=f"w{n} w3 w7", k=10) for n in range(60)]
        with engine:
            assert engine.explain(text="w1")["strategy"] in ("graph", "exact")
        assert SearchEngine.open(tmp_path / kind, fake()).search(text="w0 w3 w7") == hits[kind][0]
    for a, b in zip(hits["float32"], hits[storage], strict=True):
        assert len(set(ids(a)) & set(ids(b))) >= 9
        for hit in b:
            same = [each.score for each in a if each.id == hit.id]
            assert not same or same[0] == pytest.approx(hit.score, abs=1e-6)
    with pytest.raises(ConfigError, match="storage"):
        SearchEngine.create(tmp_path / "x", fake(), storage="int4")
    with pytest.raises(InputError, match="durability"):
        SearchEngine.create(tmp_path / "x", fake(), durability="some")


def test_changes_go_on_while_it_compacts(many: SearchEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    index: Any = many._index
    built, go_on = threading.Event(), threading.Event()
    original = index._built

    def slow(view: str) -> Any:
        made = original(view)
        built.set()
        go_on.wait(30)
        return made

    monkeypatch.setattr(index, "_built", slow)
    compacting = threading.Thread(target=many.compact)
    compacting.start()
    assert built.wait(30)
    many.delete(["5"])
    many.update([Product("6", "zebra")])
    many.save()
    assert ids(many.search(text="zebra", k=1)) == ["6"]
    go_on.set()
    compacting.join(30)
    assert ids(many.search(text="zebra", k=1)) == ["6"] and "5" not in ids(many.search(text="shirt 5", k=500))
    assert many.stats()["views"]["text"]["live"] == 499


def test_a_change_that_fails_between_store_and_graph_is_made_up_for(
    many: SearchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    index: Any = many._index
    with monkeypatch.context() as patch:
        patch.setattr(index, "_show", lambda *arguments: (_ for _ in ()).throw(MemoryError))
        with pytest.raises(MemoryError):
            many.add([Product("z", "zebra")])
    many.add([Product("y", "yak")])
    assert ids(many.search(text="zebra", k=1)) == ["z"] and ids(many.search(text="yak", k=1)) == ["y"]


def test_create_overwrites_nothing(tmp_path: Path) -> None:
    filled(tmp_path / "i").close()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("mine")
    before = contents(tmp_path / "i")
    for name in ("i", "file", "other"):
        with pytest.raises(IndexFileError, match="already exists"):
            SearchEngine.create(tmp_path / name, fake())
    assert contents(tmp_path / "i") == before and (tmp_path / "file").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    SearchEngine.create(tmp_path / "empty", fake()).close()


def test_open_what_is_no_index(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    for name in ("none", "file", "empty"):
        with pytest.raises(IndexFileError, match="not an index"):
            SearchEngine.open(tmp_path / name, fake())
    assert not (tmp_path / "none").exists()


def test_another_model_is_refused(tmp_path: Path) -> None:
    filled(tmp_path / "i").close()
    for encoder in (fake("fake-2"), fake("fake-1", 64)):
        with pytest.raises(ModelMismatchError, match="fake-1"):
            SearchEngine.open(tmp_path / "i", encoder)


def test_open_loads_the_recorded_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path / "i").close()
    asked: list[tuple[str, dict[str, Any]]] = []

    def load(name_or_path: str, **options: Any) -> Encoder:
        asked.append((name_or_path, options))
        return fake()

    monkeypatch.setattr("uniecs.encoder.load", load)
    assert len(SearchEngine.open(tmp_path / "i", backend="onnxruntime", threads=2)) == 5
    options = {"device": "auto", "backend": "onnxruntime", "precision": "auto", "threads": 2}
    assert asked == [("/models/fake", options)]


def test_an_index_of_version_1_opens(tmp_path: Path) -> None:
    import shutil

    old = Path(__file__).parent / "data" / "index-v1"
    folder = tmp_path / "old"
    shutil.copytree(old, folder, ignore=shutil.ignore_patterns("README*", "*.py"))
    import json

    manifest = json.loads((folder / "manifest.json").read_text())
    engine = SearchEngine.open(folder, fake(manifest["model_id"], manifest["embed_dim"]))
    products = [json.loads(line) for line in (old / "products-1.jsonl").read_text().splitlines()]
    live = [each for each in products if each is not None]
    assert len(engine) == len(live) < len(products)
    assert {hit.id for hit in engine.search(text="x", k=100)} == {each["id"] for each in live}
    engine.close()
    assert not (folder / "manifest.json").exists()


@pytest.mark.parametrize("bad", [np.ones((2, 4)), np.eye(3), [[1, np.nan, 0, 0]], [1, 0, 0, 0]])
def test_vectors_that_are_refused(bad: Any) -> None:
    with pytest.raises(InputError, match=r"shape|L2 norm"):
        check_vectors(bad, 4)
