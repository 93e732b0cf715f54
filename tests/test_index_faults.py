"""A SearchEngine in a folder when things go wrong: kills, full and read-only disks, damage, other processes, forks."""

from __future__ import annotations

import logging
import os
import random
import runpy
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from uniecs import local_index
from uniecs.catalog import Product
from uniecs.engine import SearchEngine
from uniecs.errors import FilterError, IndexFileError

TESTS = Path(__file__).parent
SHOP = runpy.run_path(str(TESTS / "index_shop.py"))
product, fake, check_index, Truth, VIEWS = (SHOP[name] for name in ("product", "fake", "check_index", "Truth", "VIEWS"))
NOBODY = 65534


def filled(folder: Path, count: int = 200) -> SearchEngine:
    """An engine with so many products, all of version 0."""
    engine = SearchEngine.create(folder, fake(), views=VIEWS)
    assert engine.add([product(f"p{number}", 0) for number in range(count)]).added == count
    return engine


def child(code: str, *arguments: object, unprivileged: bool = False) -> subprocess.Popen[str]:
    """A process that runs `code` with the names of index_shop.py and `arguments`, with pipes."""
    program = (
        f"import os, runpy, sys\nglobals().update(runpy.run_path({str(TESTS / 'index_shop.py')!r}, run_name='shop'))\n"
    )
    program += "import tqdm, uniecs._core, uniecs.store_check\nfrom uniecs.errors import UniecsError\n"
    if unprivileged and os.geteuid() == 0:
        # Root may write everything. What is needed later is imported before: another user may not read it.
        program += f"fake().encode(['warm-up'], [None], errors='return')\nos.setuid({NOBODY})\n"
    command = [sys.executable, "-c", program + textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def answer(code: str, *arguments: object, unprivileged: bool = False) -> str:
    """What such a process prints until it ends."""
    with child(code, *arguments, unprivileged=unprivileged) as process:
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    return output.strip()


# Kills


def test_killed_at_random_moments(tmp_path: Path) -> None:
    """The short form of tests/faults/kill.py."""
    report: str = runpy.run_path(str(TESTS / "faults" / "kill.py"))["run"](kills=8, seed=5, parent=tmp_path, size=400)
    assert "none lost" in report


def test_what_a_killed_save_left_is_removed(tmp_path: Path) -> None:
    with filled(tmp_path / "i"):
        (tmp_path / "i" / "graph-text.hnsw.4242.tmp").write_bytes(b"half a graph")
    assert sorted(path.name for path in (tmp_path / "i").glob("graph-*")) == [f"graph-{view}.hnsw" for view in VIEWS]


# Disks


def test_disk_full_while_adding(tmpfs: Path) -> None:
    (tmpfs / "filler").write_bytes(bytes(5 << 20))
    engine = filled(tmpfs / "i", 0)
    acknowledged: list[Product] = []
    with pytest.raises(IndexFileError, match="disk is full; this change was not made"):
        while len(acknowledged) < 20_000:
            products = [product(f"p{len(acknowledged) + number}", 0) for number in range(50)]
            assert engine.add(products).added == 50
            acknowledged += products
    assert len(acknowledged) > 500
    for _ in range(2):
        truth = check_index(engine, tmpfs / "i", random.Random(1))
        assert truth.products == {each.id: each for each in acknowledged}
        engine.close()
        engine = SearchEngine.open(tmpfs / "i", fake())
    (tmpfs / "filler").unlink()
    assert engine.add([product("after", 0)]).added == 1 and engine.delete(["p0"]) == 1
    engine.save()
    truth = check_index(engine, tmpfs / "i", random.Random(1))
    assert len(truth.products) == len(acknowledged) and engine.verify(50)["store"] == "ok"
    engine.close()


def test_disk_full_while_saving(tmpfs: Path) -> None:
    engine = filled(tmpfs / "i")
    engine.save()
    engine.update([product(f"p{number}", 1) for number in range(40)])
    with pytest.raises(OSError, match="No space"), (tmpfs / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1024))
    for _ in range(2):
        with pytest.raises(IndexFileError, match="no data is lost: the store has it"):
            engine.save()
        assert not list((tmpfs / "i").glob("*.tmp"))
        truth = check_index(engine, tmpfs / "i", random.Random(1))
        assert truth.products["p3"] == product("p3", 1) and len(truth.products) == 200
    engine.close()
    (tmpfs / "filler").unlink()
    with SearchEngine.open(tmpfs / "i", fake()) as engine:
        assert engine.add([product("after", 0)]).added == 1
        engine.save()
        assert len(check_index(engine, tmpfs / "i", random.Random(1)).products) == 201


@pytest.fixture
def readable() -> Iterator[Path]:
    """The folder of a closed index that this user may write, and another may read."""
    folder = Path(tempfile.mkdtemp())
    with filled(folder / "i"):
        pass
    folder.chmod(0o755)
    yield folder / "i"
    (folder / "i").chmod(0o755)
    for path in [*(folder / "i").iterdir(), folder / "i", folder]:
        path.unlink() if path.is_file() else path.rmdir()


USE = """
    engine = SearchEngine.open(sys.argv[1], fake())
    truth = check_index(engine, Path(sys.argv[1]), random.Random(1))
    print(len(truth.products), len(engine.similar("p1", k=3)), engine.verify(50)["store"])
    held = [product("p1", 1)]
    for change in (lambda: engine.add([product("new", 0)]), lambda: engine.update(held), lambda: engine.delete(["p1"]),
                   engine.compact):
        try:
            change()
            print("changed")
        except UniecsError as error:
            print(type(error).__name__, "cannot be written" in str(error))
    check_index(engine, Path(sys.argv[1]), random.Random(1))
    engine.close()
"""


@pytest.mark.parametrize("snapshots", [True, False])
def test_read_only_folder(readable: Path, snapshots: bool) -> None:
    for path in readable.iterdir():
        if path.suffix == ".hnsw" and not snapshots:
            path.unlink()
        else:
            path.chmod(0o444)
    readable.chmod(0o555)
    before = {path.name: path.read_bytes() for path in readable.iterdir()}
    assert answer(USE, readable, unprivileged=True).splitlines() == ["200 3 ok", *["IndexFileError True"] * 4]
    assert {path.name: path.read_bytes() for path in readable.iterdir()} == before


def test_permission_denied(readable: Path) -> None:
    code = """
        try:
            SearchEngine.open(sys.argv[1], fake())
        except UniecsError as error:
            print(type(error).__name__, "permissions" in str(error) or "Permission denied" in str(error))
    """
    for mode, path in ((0, readable / "store.sqlite"), (0o700, readable)):
        before = path.stat().st_mode
        path.chmod(mode)
        assert answer(code, readable, unprivileged=True) == "IndexFileError True", path
        path.chmod(before)
    (readable / "graph-text.hnsw").chmod(0)  # a snapshot that cannot be read is made anew
    code = (
        "print(len(check_index(SearchEngine.open(sys.argv[1], fake()), Path(sys.argv[1]), random.Random(1)).products))"
    )
    assert answer(code, readable, unprivileged=True) == "200"


# Damage


def test_flipped_bits_never_give_a_wrong_product(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anywhere in the store: a right answer, or an error that says that it is damaged."""
    monkeypatch.setattr(logging.getLogger("uniecs"), "disabled", True)
    with filled(tmp_path / "good", 120):
        pass
    truth = Truth.of_store(tmp_path / "good")
    files = {path.name: path.read_bytes() for path in (tmp_path / "good").iterdir()}
    size, draw = len(files["store.sqlite"]), random.Random(5)
    query = fake().encode(["red shirt"], [None], errors="return").embeddings[0]
    told = right = 0
    for number in range(120):
        copy = tmp_path / f"copy-{number}"
        copy.mkdir()
        for name, data in files.items():
            if name.endswith(".hnsw") and number % 3 == 0:
                continue
            (copy / name).write_bytes(data)
        with (copy / "store.sqlite").open("r+b") as file:
            # Every page at least once, and in a third of the cases a few bytes.
            for _ in range(1 if number % 3 else 8):
                place = 8192 * (number % (size // 8192)) + draw.randrange(8192)
                file.seek(place)
                file.write(bytes([files["store.sqlite"][place] ^ 1 << draw.randrange(8)]))
        faulty = False
        try:
            engine = SearchEngine.open(copy, fake())
        except IndexFileError:
            told += 1
            continue
        for view, where in [(view, where) for view in VIEWS for where in (None, *SHOP["WHERES"])]:
            try:
                hits = engine.search(text="red shirt", view=view, k=200, where=where)
            except IndexFileError:
                faulty = True
                continue
            except FilterError:  # the list of attributes may have lost one
                assert where
                faulty = True
                continue
            scores = truth.scores(query, view, where)
            for hit in hits:
                assert hit.product == truth.products[hit.id] and hit.score == pytest.approx(scores[hit.id], abs=1e-5)
            # A filter may lose products with the list of attributes: verify says so.
            assert len(hits) == len(scores) or (where is not None and len(hits) < len(scores))
            faulty |= len(hits) < len(scores)
            right += len(hits) == len(scores)
        try:
            engine.verify(50)
            assert not faulty
        except IndexFileError as error:
            assert "damaged" in str(error)
            told += 1
        engine.close()
    assert told > 40 and right > 400


# Other processes


def test_two_writers(tmp_path: Path) -> None:
    code = """
        engine = SearchEngine.open(sys.argv[1], fake())
        print(engine.update([product("p1", 1)]).added, flush=True)
        sys.stdin.readline()
        engine.close()
        print("closed", flush=True)
    """
    filled(tmp_path / "i").close()
    ours = SearchEngine.open(tmp_path / "i", fake())
    with child(code, tmp_path / "i") as process:
        assert process.stdin is not None and process.stdout is not None and process.stdout.readline() == "1\n"
        ours_too: list[Any] = [lambda: ours.add([product("new", 0)]), lambda: ours.delete(["p2"]), ours.compact]
        for change in ours_too:
            with pytest.raises(IndexFileError, match=f"being written by process {process.pid} on .*one writer"):
                change()
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "closed\n"
    assert ours.add([product("new", 0)]).added == 1
    truth = check_index(ours, tmp_path / "i", random.Random(1))
    assert truth.products["p1"] == product("p1", 1) and len(truth.products) == 201
    ours.close()


FOLLOW = """
    from uniecs import local_index
    local_index.REFRESH_S = 0.0
    engine = SearchEngine.open(sys.argv[1], fake())
    print("ready", flush=True)
    last, answers = -1, 0
    while last < 40:
        wheres = [None, {"$not": {"price": (None, -1)}}, {"price": (0, answers % 90 + 10)}]
        for text, where in ((text, where) for text in WORDS[:3] for where in wheres):
            hits = engine.search(text=text, k=1000, where=where)
            # Each product is of every round until it is replaced: all are of one round, or of that and the one after.
            versions = {hit.product.attributes["version"] for hit in hits if hit.id[0] == "p"}
            assert len(hits) == len({hit.id for hit in hits}) and len(versions) == 1, (len(hits), versions)
            assert (where and "price" in where) or len(hits) == 200, (len(hits), where)
            assert min(versions) >= last, (versions, last)
            last = min(versions)
            answers += 1
        if answers % 90 == 0:
            assert engine.verify(20)["store"] == "ok"
            assert len(engine.similar("p7", k=5)) == 5
    print(answers)
"""


@pytest.mark.parametrize("storage", ["float32", "int8"])
def test_a_reader_in_another_process(tmp_path: Path, storage: str) -> None:
    """It keeps answering while all products are replaced, saved and compacted: each time all of one version."""
    engine = SearchEngine.create(tmp_path / "i", fake(), views=VIEWS, storage=storage, durability="batch")
    index: Any = engine._index
    vectors = fake().encode([product(f"p{number}", 0).title for number in range(200)], [None] * 200, errors="return")

    def replace(version: int) -> None:  # in one change, which `update` makes of 64 products at most
        products = [product(f"p{number}", version) for number in range(200)]
        index.put([(each, dict.fromkeys(VIEWS, row)) for each, row in zip(products, vectors.embeddings, strict=True)])

    replace(0)
    with child(FOLLOW, tmp_path / "i") as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        for version in range(1, 41):
            replace(version)
            if version % 3 == 0:
                index.save()
            if version % 7 == 0:
                engine.compact()
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and int(output) > 1
    engine.close()


def test_a_reader_that_is_two_saves_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was deleted since is no longer told: it takes the writer's snapshot instead of building the graph."""
    monkeypatch.setattr(local_index, "REFRESH_S", 0.0)
    writer = filled(tmp_path / "i")
    reader = SearchEngine.open(tmp_path / "i", fake())
    index: Any = reader._index
    with monkeypatch.context() as patch:
        patch.setattr(index, "_built", lambda view: pytest.fail("built anew"))
        for version in (1, 2, 3):
            writer.update([product(f"p{number}", version) for number in range(60)])
            writer.delete([f"p{100 + version}"])
            writer.save()
        check_index(reader, tmp_path / "i", random.Random(1))
    writer.close()
    reader.close()


# Clocks and forks


def test_a_clock_that_jumps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = filled(tmp_path / "i")
    reader = SearchEngine.open(tmp_path / "i", fake())
    for version, seconds in enumerate((1e9, -1e9, 0.0, 1e6), 1):
        for name in ("time", "monotonic", "perf_counter"):
            monkeypatch.setattr(f"time.{name}", lambda seconds=seconds: seconds)
        writer.update([product(f"p{number}", version) for number in range(50)])
        writer.save()
        writer.compact()
        for engine in (writer, reader):
            truth = check_index(engine, tmp_path / "i", random.Random(1))
        assert truth.products["p1"] == product("p1", version)
    writer.close()
    reader.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_forked_while_a_thread_writes(tmp_path: Path) -> None:
    """Each use in the child says so, and none waits for the thread that is not there; it can open the index itself."""
    code = """
        import threading
        engine = SearchEngine.open(sys.argv[1], fake())
        index, inside, go_on = engine._index, threading.Event(), threading.Event()
        show = index._show
        def slow(*arguments):
            inside.set()
            go_on.wait(30)
            show(*arguments)
        index._show = slow
        writing = threading.Thread(target=lambda: engine.update([product("p1", 1)]))
        writing.start()
        inside.wait(30)
        forked = os.fork()
        if forked == 0:
            uses = [lambda: engine.search(text="red"), lambda: engine.similar("p1"), lambda: len(engine),
                    lambda: engine.add([product("x", 0)]), lambda: engine.update([product("p2", 1)]),
                    lambda: engine.delete(["p1"]), engine.save, engine.compact, engine.verify, engine.stats]
            for use in uses:
                try:
                    use()
                    os._exit(1)
                except UniecsError as error:
                    if "forked" not in str(error):
                        os._exit(2)
            engine.close()
            own = SearchEngine.open(sys.argv[1], fake())
            if len(own.search(text="red", k=500)) != 200:
                os._exit(3)
            try:
                own.delete(["p1"])
                os._exit(4)
            except UniecsError as error:  # the parent writes
                if "one writer" not in str(error):
                    os._exit(5)
            own.close()
            os._exit(0)
        _, status = os.waitpid(forked, 0)
        go_on.set()
        writing.join()
        truth = check_index(engine, Path(sys.argv[1]), random.Random(1))
        print(status, truth.products["p1"] == product("p1", 1), engine.verify(50)["store"], flush=True)
        engine.close()
    """
    filled(tmp_path / "i").close()
    assert answer(code, tmp_path / "i") == "0 True ok"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_has_nothing_of_its_parents_open(tmp_path: Path) -> None:
    """Else, once the parent has closed the index, the child's own engine would not see what others write, and the
    child would take their log with it at its end.
    """
    code = """
        import time
        engine = SearchEngine.open(sys.argv[1], fake())
        engine.search(text="red")
        if forked := os.fork():
            engine.close()
            print("closed", flush=True)
            os.waitpid(forked, 0)
        else:
            own = SearchEngine.open(sys.argv[1], fake())
            seen = len(own.search(text="red", k=500))
            sys.stdin.readline()
            time.sleep(1.1)  # it looks for changes once a second
            print(seen, len(own.search(text="red", k=500)), flush=True)
    """
    add_and_die = """
        engine = SearchEngine.open(sys.argv[1], fake())
        print(engine.add([product(f"q{number}", 0) for number in range(50)]).added, flush=True)
        os.kill(os.getpid(), 9)
    """
    filled(tmp_path / "i").close()
    with child(code, tmp_path / "i") as forking:
        assert forking.stdin is not None and forking.stdout is not None
        assert forking.stdout.readline() == "closed\n"
        with child(add_and_die, tmp_path / "i") as adding:
            assert adding.communicate(timeout=60)[0] == "50\n"
        forking.stdin.write("\n")
        forking.stdin.flush()
        assert forking.stdout.readline() == "200 250\n"
    with SearchEngine.open(tmp_path / "i", fake()) as engine:
        assert len(engine) == 250
