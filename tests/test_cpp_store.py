"""The index folder in the C++ SDK: the values, the lock, the snapshots and the faults are those of Python."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import runpy
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from uniecs.bundle import packaged_bundle
from uniecs.catalog import Product
from uniecs.engine import SearchEngine
from uniecs.errors import FilterError, IndexFileError
from uniecs.filters import parse_where
from uniecs.index_folder import BundleReference, IndexConfig
from uniecs.local_index import LocalIndex
from uniecs.store import Store

cpp = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("cpp_sdk.py"))))


def numbers_in_words() -> list[str]:
    """Strings that Python's float reads, and many that it does not."""
    digits = [c for c in map(chr, range(sys.maxunicode + 1)) if unicodedata.decimal(c, None) is not None]
    spaces = [c for c in map(chr, range(0x110000)) if c.isspace()]
    near = [chr(c) for c in {ord(d) + step for d in digits + spaces for step in (-1, 1)} if not 0xD800 <= c < 0xE000]
    made = [f"{c}5" for c in digits + near] + [f"{c}1{d}" for c in spaces for d in spaces] + [f"1{c}2" for c in spaces]
    made += ["1_0", "_1", "1_", "1__0", "1_.5", "1._5", "1e1_0", "1_e5", ".5", "5.", ".", "-.5e-3", "+1", "+-1", "1e"]
    made += ["inf", "-Infinity", "+INF", "nan", "infin", "1e999", "-1e999", "1e-999", "0e999", "0x1", "1\0", "\x001"]
    made += ["1" * 400, "0." + "0" * 400 + "1", "1" * 400 + "e-390", "5e-324", "2e-324", "1e400_0", "١_٢", "１．５"]
    draw = random.Random(3)
    made += ["".join(draw.choices("0123456789.eE+-_ infa\u00a0٣", k=draw.randrange(1, 7))) for _ in range(3000)]
    return list(dict.fromkeys(made))


def test_values_mean_the_same(cpp_sdk: Any, cpp_encoder: Any, tiny_encoder: Any, tmp_path: Path) -> None:
    """Every attribute of C++ is listed as Python lists it (verify compares them), and filters find the same."""
    words = numbers_in_words()
    odd: list[Any] = [0, -0.0, 1, 1.0, True, False, 2**53, 2**53 + 1, float(2**53), 2**63 - 1, -(2**63), 2**63, 2**64]
    odd += [1e308, 5e-324, 1.5, -1, "", " ", "1", "true", "\0", "a\0b", "é", "\U0001f600", "\uffff", "\U00010000", "ö"]
    odd += [str(number) for number in (2**53 - 1, 2**53, 2**63, -(2**53))] + [2**53 - 1, -(2**53)]
    rows: list[dict[str, Any]] = [{"id": "words", "title": "red", "attributes": {"w": words}}]
    rows += [{"id": f"o{i}", "title": "red bag", "attributes": {"v": value, "x": 1}} for i, value in enumerate(odd)]
    rows += [{"id": "l", "title": "blue", "attributes": {"v": [None, 1, 1.0, True, " ", "1"], "n": None, "e": []}}]
    made = cpp_sdk.create(tmp_path / "a.uniecs", cpp_encoder)
    assert made.put("add", rows) == (len(rows), [])
    made.save()
    engine = SearchEngine.open(tmp_path / "a.uniecs", tiny_encoder)
    assert engine.verify()["store"] == "ok"
    products = {hit.id: hit.product.attributes for hit in engine.search("red", k=100)}
    # As Python's own add takes them; but for integers beyond 64 bits, which have become floats.
    with SearchEngine.create(tmp_path / "b.uniecs", tiny_encoder) as mirror:
        assert not mirror.add(cpp.as_products(rows)).rejected
        assert products == {hit.id: hit.product.attributes for hit in mirror.search("red", k=100)}
    ends: list[Any] = [*odd[:3], *odd[4:], None]
    wheres: list[Any] = [{"v": each} for each in odd] + [{"v": odd}, {"v": [None, 1]}, {"w": words[:50]}, {"w": None}]
    wheres += [{"w": 12}, {"w": [1e3, 10.0]}, {"w": [None, 5]}]
    wheres += [{"v": pair} for pair in itertools.product(ends, ends)]
    wheres += [{"w": (low, high)} for low, high in ((5, 5), (0, None), (None, -1), (1e300, None), ("1", "2"))]
    used = 0
    for where in wheres:
        try:
            expected = cpp.pairs_of(engine.search("red bag", k=100, where=where))
        except FilterError:
            with pytest.raises(cpp_sdk.Failed) as refused:
                made.search("red bag", k=100, where=cpp.where_in_json(where))
            assert refused.value.status == cpp.FILTER
            continue
        assert cpp.same(made.search("red bag", k=100, where=cpp.where_in_json(where)), expected), where
        used += 1
    assert used > 250
    engine.close()
    made.free()


def test_what_python_alone_can_store_is_read(cpp_sdk: Any, cpp_encoder: Any, tiny_encoder: Any, tmp_path: Path) -> None:
    """Paths that are no UTF-8, integers beyond a float, text with U+0000 and line breaks."""
    config = IndexConfig(views=("multimodal",))
    bundle = BundleReference(path="/models/\udcff")
    folder = tmp_path / "a.uniecs"
    model, dim = tiny_encoder.model_id, tiny_encoder.embed_dim
    store = Store.create(folder, model_id=model, embed_dim=dim, bundle=bundle, config=config)
    vectors = np.random.default_rng(0).standard_normal((4, dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    stored = [
        Product("raw", "title\n\u2028", os.fsdecode(b"/photos/\xff\xe9.jpg"), {"a": "é", "n": 2**70}),
        Product("lone", None, "/photos/\ud800\U0001f600.jpg", {"a": ["\n", "b"]}),
        Product("huge", "x", "/é/\U0001f600.jpg", {"n": [10**400, -(10**400)], "f": 1e-320}),
        Product("plain", "y", None, {}),
    ]
    store.put([(product, {"multimodal": vector}) for product, vector in zip(stored, vectors, strict=True)])
    store.close()
    fast = cpp_sdk.open(folder, cpp_encoder)
    assert len(fast.warnings) == 1 and "anew" in fast.warnings[0]
    found = {hit["id"]: hit for hit in fast.hits("search", cpp.items([("red", None)]))}
    assert found["raw"]["image"] == b"/photos/\xff\xe9.jpg" and found["raw"]["title"] == "title\n\u2028"
    assert found["lone"]["image"] == b"/photos/\xed\xa0\x80\xf0\x9f\x98\x80.jpg" and found["lone"]["title"] is None
    assert found["huge"]["image"].decode() == stored[2].image
    assert {id: hit["attributes"] for id, hit in found.items()} == {each.id: each.attributes for each in stored}
    for where, ids in (
        ({"n": {"$between": [1e300, None]}}, ["huge"]),
        ({"n": 2**70}, ["raw"]),
        ({"a": "b"}, ["lone"]),
        ({"f": 1e-320}, ["huge"]),
        ({"a": None}, ["huge", "plain"]),
    ):
        assert sorted(id for id, _ in fast.search("red", where=where)) == ids, where
    assert fast.put("update", [{"id": "plain", "title": "red"}]) == (1, [])
    fast.remove(["huge"])
    fast.save()
    fast.free()
    index = LocalIndex.open(folder, "full")
    assert index.verify(10)["store"] == "ok"
    assert [each.image for each, _ in index.search("multimodal", vectors[:1], 1, parse_where({"a": "é"}))[0]] == [
        stored[0].image
    ]
    index.close()


def test_a_path_that_is_no_utf8_is_written(cpp_sdk: Any, cpp_encoder: Any, tiny_encoder: Any, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xff\xe9.png")
    try:
        Image.new("RGB", (24, 32), "red").save(path)
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    made = cpp_sdk.create(tmp_path / "a.uniecs", cpp_encoder)
    assert made.put("add", [{"id": "1", "title": "é", "image": path, "attributes": {"é": "é"}}]) == (1, [])
    made.free()
    with SearchEngine.open(tmp_path / "a.uniecs", tiny_encoder) as engine:
        assert engine.verify()["store"] == "ok"
        product = engine.search("red", k=1)[0].product
    assert (product.image, product.title, product.attributes) == (str(path), "é", {"é": "é"})


def test_one_writer_at_a_time_across_languages(
    cpp_sdk: Any, cpp_encoder: Any, tiny_encoder: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "a.uniecs"
    first = cpp_sdk.create(folder, cpp_encoder)
    first.put("add", cpp.shop(3))
    engine = SearchEngine.open(folder, tiny_encoder)
    with pytest.raises(IndexFileError, match=f"being written by process {os.getpid()} on {socket.gethostname()}"):
        engine.delete(["p1"])
    first.close()
    engine.delete(["p1"])
    second = cpp_sdk.open(folder, cpp_encoder)
    with pytest.raises(
        cpp_sdk.Failed, match=f"being written by process {os.getpid()} on {socket.gethostname()}"
    ) as error:
        second.remove(["p2"])
    assert error.value.status == cpp.INDEX_FILE
    assert len(second.search("red")) == 2  # it reads all the same
    engine.close()
    second.remove(["p2"])
    assert [id for id, _ in second.search("red")] == ["p0"]
    with pytest.raises(cpp_sdk.Failed, match="closed"):
        first.search("red")
    first.free()
    second.free()


def test_the_lock_of_a_killed_writer_is_free(cpp_sdk: Any, cpp_encoder: Any, tiny_encoder: Any, tmp_path: Path) -> None:
    folder = tmp_path / "a.uniecs"
    made = cpp_sdk.create(folder, cpp_encoder)
    made.put("add", cpp.shop(3))
    made.save()
    made.free()
    program = "import sys, time\nfrom pathlib import Path\nfrom uniecs.store import Store\n"
    program += "store = Store.open(Path(sys.argv[1]))\nstore.delete(['p0'])\nprint('held', flush=True)\ntime.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == b"held\n"
        engine = cpp_sdk.open(folder, cpp_encoder)
        with pytest.raises(cpp_sdk.Failed, match=f"process {writer.pid} on"):
            engine.remove(["p1"])
        writer.kill()
    assert (folder / "writer.lock").read_text()  # what the dead process left
    engine.remove(["p1"])
    assert [id for id, _ in engine.search("red")] == ["p2"]
    engine.free()


CHILD = """
import os, runpy, sys, time
names = runpy.run_path(sys.argv[1])
sdk = names["Sdk"](names["Path"](sys.argv[2]))
engine = sdk.open(names["Path"](sys.argv[4]), sdk.load(names["Path"](sys.argv[3])))
"""
ADD = """
for number in range(10**6):
    engine.put("add", [{"id": f"{number}-{i}", "title": "red", "attributes": {"n": number}} for i in range(3)])
    if number % 3 == 2:
        engine.remove([f"{number - 1}-0"])
        engine.save()
    print(number, flush=True)
"""
FORK = """
engine.remove(["p0"])
if os.fork():
    os._exit(0)
try:
    engine.search("red")
except names["Failed"] as error:
    print(error.message, flush=True)
time.sleep(10)
"""
FOLLOW = """
folder = names["Path"](sys.argv[4])
engine.similar("p0")
def wait_for(name):
    while not folder.with_name(name).exists():
        time.sleep(0.01)
if forked := os.fork():
    wait_for("opened")
    engine.free()
    print("closed", flush=True)
    os.waitpid(forked, 0)
else:
    own = sdk.open(folder, sdk.load(names["Path"](sys.argv[3])))
    seen = len(own.similar("p0", k=100))
    folder.with_name("opened").touch()
    wait_for("written")
    time.sleep(1.1)  # it looks for changes once a second
    print(seen, len(own.similar("p0", k=100)), flush=True)
"""


@pytest.fixture
def start(cpp_sdk_build: Path, tiny_bundle: Path) -> Callable[[str, Path], subprocess.Popen[str]]:
    """Runs code beside an `engine` of a folder in another process."""

    def started(code: str, folder: Path) -> subprocess.Popen[str]:
        script = Path(__file__).with_name("cpp_sdk.py")
        command = [sys.executable, "-c", CHILD + code, script, cpp_sdk_build / "libuniecs.so", tiny_bundle, folder]
        return subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True)

    return started


def test_a_killed_writer_loses_nothing(
    start: Callable[[str, Path], subprocess.Popen[str]], tiny_encoder: Any, tmp_path: Path
) -> None:
    draw = random.Random(0)
    for kill in range(4):
        folder = tmp_path / f"{kill}.uniecs"
        SearchEngine.create(folder, tiny_encoder).close()
        with start(ADD, folder) as writer:
            assert writer.stdout is not None
            done = [int(writer.stdout.readline()) for _ in range(3 + kill)]
            time.sleep(draw.random() / 20)
            writer.kill()
            done += map(int, writer.stdout.read().split())
        with SearchEngine.open(folder, tiny_encoder) as engine:
            assert engine.verify()["store"] == "ok"
            held = {hit.id for hit in engine.search("red", k=10**4)}
            assert len(held) == len(engine)
        removed = {f"{number - 1}-0" for number in done if number % 3 == 2}
        kept = {f"{number}-{i}" for number in done for i in range(3)} - removed
        began = {f"{done[-1] + 1}-{i}" for i in range(3)}  # whole, or not at all
        assert held - began in (kept, kept - {f"{done[-1]}-0"})
        assert not held & began or began <= held


def test_a_fork_of_a_writer_does_not_keep_the_lock(
    start: Callable[[str, Path], subprocess.Popen[str]], cpp_sdk: Any, cpp_encoder: Any, tmp_path: Path
) -> None:
    engine = cpp_sdk.create(tmp_path / "a.uniecs", cpp_encoder)
    engine.put("add", cpp.shop(3))
    engine.close()
    engine.free()
    with start(FORK, tmp_path / "a.uniecs") as writer:
        assert writer.stdout is not None
        assert "before this process was forked" in writer.stdout.readline()
        writer.wait()  # the child lives on
        engine = cpp_sdk.open(tmp_path / "a.uniecs", cpp_encoder)
        engine.remove(["p1"])
        assert [id for id, _ in engine.search("red")] == ["p2"]
        engine.free()


def test_a_forked_child_has_nothing_of_its_parents_open(
    start: Callable[[str, Path], subprocess.Popen[str]], cpp_sdk: Any, cpp_encoder: Any, tmp_path: Path
) -> None:
    """Else, once the parent has closed the index, the child's own engine would not see what others write."""
    engine = cpp_sdk.create(tmp_path / "a.uniecs", cpp_encoder)
    engine.put("add", cpp.shop(3))
    engine.free()
    with start(FOLLOW, tmp_path / "a.uniecs") as forking:
        assert forking.stdout is not None
        assert forking.stdout.readline() == "closed\n"
        engine = cpp_sdk.open(tmp_path / "a.uniecs", cpp_encoder)
        engine.remove(["p1"])
        engine.free()
        (tmp_path / "written").touch()
        assert forking.stdout.readline() == "2 1\n"


@pytest.mark.parametrize("damage", ["missing", "a byte", "cut", "another store's", "newer", "purged"])
def test_a_snapshot_of_no_use_is_made_anew(
    cpp_sdk: Any, cpp_encoder: Any, tiny_encoder: Any, tmp_path: Path, damage: str
) -> None:
    folder, graph = tmp_path / "a.uniecs", tmp_path / "a.uniecs" / "graph-multimodal.hnsw"
    made = cpp_sdk.create(folder, cpp_encoder)
    made.put("add", cpp.shop(60))
    made.save()
    old = graph.read_bytes()
    if damage == "purged":
        made.remove(["p1"])
        made.save()
        made.remove(["p2"])
        made.save()
    made.free()
    data = bytearray(graph.read_bytes())
    if damage == "missing":
        graph.unlink()
    elif damage == "a byte":
        data[len(data) // 2] ^= 1
        graph.write_bytes(data)
    elif damage == "cut":
        graph.write_bytes(data[:-9])
    elif damage == "another store's":
        other = cpp_sdk.create(tmp_path / "b.uniecs", cpp_encoder)
        other.put("add", cpp.shop(60))
        other.save()
        other.free()
        shutil.copyfile(tmp_path / "b.uniecs" / graph.name, graph)
    elif damage == "newer":
        store = Store.open(folder)
        copy = store.folder / "old.sqlite"
        with contextlib.closing(sqlite3.connect(folder / "store.sqlite")) as connection:
            connection.execute("VACUUM INTO ?", (str(copy),))
        store.delete(["p1"])
        store.close()
        index = LocalIndex.open(folder, "full")
        index.save()
        index.close()
        copy.replace(folder / "store.sqlite")
    elif damage == "purged":
        graph.write_bytes(old)
    engine = cpp_sdk.open(folder, cpp_encoder)
    assert len(engine.warnings) == 1 and "building the graph of the view multimodal anew" in engine.warnings[0]
    with SearchEngine.create(tmp_path / "c.uniecs", tiny_encoder) as fresh:
        gone = ("p1", "p2") if damage == "purged" else ()
        fresh.add([each for each in cpp.as_products(cpp.shop(60)) if each.id not in gone])
        assert cpp.same(engine.search("red dress"), cpp.pairs_of(fresh.search("red dress")))
    engine.save()
    engine.free()
    again = cpp_sdk.open(folder, cpp_encoder)
    assert again.warnings == []
    again.free()


def test_a_graph_newer_than_its_store_is_not_taken_later(cpp_sdk: Any, cpp_encoder: Any, tmp_path: Path) -> None:
    folder = tmp_path / "a.uniecs"
    first, lost, then = cpp.shop(6)[:4], cpp.shop(6)[4:5], cpp.shop(6)[5:]
    made = cpp_sdk.create(folder, cpp_encoder)
    made.put("add", first)
    made.save()
    made.free()
    store = (folder / "store.sqlite").read_bytes()
    made = cpp_sdk.open(folder, cpp_encoder)
    made.put("add", lost)
    made.save()
    made.free()
    (folder / "store.sqlite").write_bytes(store)
    killed = cpp_sdk.open(folder, cpp_encoder)
    assert killed.put("add", then) == (1, [])
    killed.free()  # without a save
    again = cpp_sdk.open(folder, cpp_encoder)
    assert len(again.warnings) == 1 and "building the graph of the view multimodal anew" in again.warnings[0]
    again.free()


def test_damage_of_the_store_is_told(cpp_sdk: Any, cpp_encoder: Any, tiny_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "a.uniecs"
    made = cpp_sdk.create(folder, cpp_encoder)
    made.put("add", cpp.shop(20))
    made.save()
    made.free()

    def damaged(statement: str) -> Path:
        copy = tmp_path / "copy.uniecs"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(folder, copy)
        with contextlib.closing(sqlite3.connect(copy / "store.sqlite")) as connection, connection:
            connection.execute(statement)
        return copy

    opens = [
        ("UPDATE meta SET value = 'other' WHERE key = 'model_id'", "its setting 'model_id' does not have its checksum"),
        ("UPDATE meta SET value = '3' WHERE key = 'format_version'", "format version 3; this uniecs reads up to 2"),
        ("UPDATE meta SET value = 'x' WHERE key = 'format'", "is not an index: its format is 'x'"),
        ("DELETE FROM meta WHERE key = 'state'", "its setting 'state' does not have its checksum"),
        ("DROP TABLE meta", "is not an index"),
        ("ALTER TABLE deleted RENAME COLUMN row TO line", "tables are not described as they were made"),
    ]
    for statement, message in opens:
        with pytest.raises(cpp_sdk.Failed, match=message) as error:
            cpp_sdk.open(damaged(statement), cpp_encoder)
        assert error.value.status == cpp.INDEX_FILE
    entry = "INSERT INTO attribute SELECT key, 1, 101, 3 FROM attribute_key WHERE name = 'price'"
    searches: list[tuple[str, Any, str]] = [
        ("UPDATE product SET content = replace(content, 'p', 'q')", None, "the product of row"),
        (
            "UPDATE attribute SET row = row + 900",
            {"price": {"$between": [0, 100]}},
            "lists the rows 901 to 920 of 1 to 20",
        ),
        (entry, {"price": 101}, "a filter found what does not match"),
    ]
    for statement, where, message in searches:
        engine = cpp_sdk.open(damaged(statement), cpp_encoder)
        with pytest.raises(cpp_sdk.Failed, match=message) as error:
            engine.search("red", where=where)
        assert error.value.status == cpp.INDEX_FILE
        engine.free()
    for missing in (tmp_path, tmp_path / "none"):
        with pytest.raises(cpp_sdk.Failed, match="is not an index"):
            cpp_sdk.open(missing, cpp_encoder)
    with pytest.raises(cpp_sdk.Failed, match="already exists"):
        cpp_sdk.create(folder, cpp_encoder)
    (folder / "store.sqlite").write_bytes(b"x" * 8192)
    with pytest.raises(cpp_sdk.Failed, match="is damaged"):
        cpp_sdk.open(folder, cpp_encoder)


READ = """
import os, runpy, sys
names = runpy.run_path(sys.argv[1])
sdk = names["Sdk"](names["Path"](sys.argv[2]))
encoder = sdk.load(names["Path"](sys.argv[3]))
sdk.encode(encoder, [("red", None)])  # what is read on first use, another user may not read
if os.geteuid() == 0:
    os.setuid(65534)  # root may write everywhere
engine = sdk.open(names["Path"](sys.argv[4]), encoder)
print(len(engine), len(engine.search("red")), engine.warnings)
try:
    engine.remove(["p0"])
except names["Failed"] as error:
    print(error.status, "cannot be written" in error.message)
"""


@pytest.mark.parametrize("state", ["closed", "with a log"])
def test_a_folder_that_may_only_be_read(
    cpp_sdk: Any, cpp_sdk_build: Path, cpp_encoder: Any, tiny_bundle: Path, state: str
) -> None:
    parent = Path(tempfile.mkdtemp())
    made = cpp_sdk.create(parent / "a.uniecs", cpp_encoder)
    made.put("add", cpp.shop(5))
    made.save()
    if state == "closed":
        made.free()
    else:
        made.put("add", [{"id": "late", "title": "red"}])
    folder = shutil.copytree(parent / "a.uniecs", parent / "b.uniecs", ignore=shutil.ignore_patterns("*-shm"))
    assert (folder / "store.sqlite-wal").exists() == (state != "closed")
    for path, mode in ((parent, 0o755), *((each, 0o444) for each in folder.iterdir()), (folder, 0o555)):
        path.chmod(mode)
    script = Path(__file__).with_name("cpp_sdk.py")
    command = [sys.executable, "-c", READ, script, cpp_sdk_build / "libuniecs.so", tiny_bundle, folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    products = 5 if state == "closed" else 6
    assert (done.returncode, done.stdout) == (0, f"{products} {products} []\n6 True\n"), done.stderr
    folder.chmod(0o755)
    shutil.rmtree(parent)


def test_another_model_is_refused(cpp_sdk: Any, cpp_encoder: Any, tiny_encoder: Any, tmp_path: Path) -> None:
    with SearchEngine.create(tmp_path / "a.uniecs", tiny_encoder) as engine:
        engine.add(cpp.as_products(cpp.shop(3)))
    mini = cpp_sdk.load(packaged_bundle("mini"))
    with pytest.raises(cpp_sdk.Failed, match="open it with its own model, or index anew") as error:
        cpp_sdk.open(tmp_path / "a.uniecs", mini)
    assert error.value.status == cpp.MODEL_MISMATCH
    cpp_sdk.c.uniecs_encoder_free(mini)
