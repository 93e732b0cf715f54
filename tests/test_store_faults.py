"""The store when things go wrong: damage, crashes, other processes, full and read-only disks."""

from __future__ import annotations

import os
import random
import runpy
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from uniecs.catalog import Product
from uniecs.errors import IndexFileError
from uniecs.filters import OneOf
from uniecs.store import Store
from uniecs.store_format import checksum_of

SCRIPT = Path(__file__).with_name("store_shop.py")
SHOP = runpy.run_path(str(SCRIPT))
make, item, contents, expected = (SHOP[name] for name in ("make", "item", "contents", "expected"))
NOBODY = 65534


def child(code: str, *arguments: object, unprivileged: bool = False) -> subprocess.Popen[str]:
    """A process that runs `code` with the names of store_shop.py and `arguments`, with pipes."""
    program = f"import os, runpy, sys\nglobals().update(runpy.run_path({str(SCRIPT)!r}, run_name='shop'))\n"
    program += "import uniecs.store_check\nfrom uniecs.errors import UniecsError\n"
    if unprivileged and os.geteuid() == 0:
        # Root may write everything. What is needed later is imported before: another user may not read it.
        program += f"item('warm-up')\nos.setuid({NOBODY})\n"
    command = [sys.executable, "-c", program + textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def answer(code: str, *arguments: object, unprivileged: bool = False) -> str:
    """What such a process prints until it ends."""
    with child(code, *arguments, unprivileged=unprivileged) as process:
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    return output.strip()


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    """The folder of a closed store of 40 products."""
    store = make(tmp_path / "i")
    store.put([item(f"p{number}", number) for number in range(40)])
    store.delete(["p3"])
    store.close()
    return tmp_path / "i"


# Damage


def flip(path: Path, place: int, bit: int = 1) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)
        file.seek(place)
        file.write(bytes([byte[0] ^ bit]))


def places(path: Path, data: bytes) -> list[int]:
    whole, found = path.read_bytes(), []
    place = whole.find(data)
    while place >= 0:
        found.append(place)
        place = whole.find(data, place + 1)
    return found


def test_a_flipped_bit_in_a_vector(filled: Path) -> None:
    (place,) = places(filled / "store.sqlite", item("p7", 7)[1]["text"].tobytes())
    flip(filled / "store.sqlite", place + 5)
    store = Store.open(filled)
    for read in (lambda: store.vectors("text", [9, 8]), lambda: list(store.vectors_after("text", 0))):
        with pytest.raises(IndexFileError, match=r"damaged: the vector of row 8 in the view 'text'.*update"):
            read()
    assert store.vectors("text", [7, 9])[0].tolist() == [7, 9] and len(store.vectors("multimodal", [8])[0]) == 1
    assert store.verify() == ["the vector of row 8 in the view 'text' does not have its checksum"]
    store.put([item("p7", 7)])
    assert store.verify() == [] and len(contents(store)) == 39


@pytest.mark.parametrize("bit", [1, 128])
def test_a_flipped_bit_in_a_product(filled: Path, bit: int) -> None:
    """128 makes it invalid UTF-8."""
    (place,) = places(filled / "store.sqlite", b"title p7 7")
    flip(filled / "store.sqlite", place, bit)
    store = Store.open(filled)
    for read in (lambda: store.products([9, 8, 1]), lambda: list(store.products_after(0))):
        with pytest.raises(IndexFileError, match=r"damaged: the product of row 8 .*update"):
            read()
    assert store.products([7, 9]).keys() == {7, 9}
    assert store.verify()[0] == "the product of row 8 does not have its checksum"
    store.put([item("p7", 7)])
    assert store.verify() == [] and len(contents(store)) == 39
    assert store.rows_matching(OneOf("version", (7,))).tolist() == [41]


@pytest.mark.parametrize("content", ['{"id":"p7"}', '{"id":"p7"},{"id":"p7"}', '"p7"', '{"id":', ""])
def test_a_product_that_none_of_ours_wrote(filled: Path, content: str) -> None:
    """Its checksum holds; what is beside it can still be read."""
    with closing(sqlite3.connect(filled / "store.sqlite")) as connection, connection:
        values = (content, checksum_of(8, content.encode()))
        connection.execute("UPDATE product SET content = ?, checksum = ? WHERE row = 8", values)
    store = Store.open(filled)
    with pytest.raises(IndexFileError, match="holds a product that is not valid"):
        store.products([9, 8, 1])
    assert store.products([7, 9]).keys() == {7, 9}


def test_a_flipped_bit_in_an_attribute(tmp_path: Path) -> None:
    store = make(tmp_path / "i")
    store.put([item("a", attributes={"material": "leather"}), item("b", attributes={"material": "cotton"})])
    store.close()
    path = tmp_path / "i" / "store.sqlite"
    (place,) = (each for each in places(path, b"leather") if path.read_bytes()[each - 1 : each] != b'"')
    flip(path, place + 2)
    store = Store.open(tmp_path / "i")
    assert store.verify() == ["the listed attributes of row 1 are not those of its product"]
    store.delete(["a"])
    assert store.verify() == [] and store.attribute_keys() == {"material"}


def test_a_flipped_bit_in_the_settings(filled: Path) -> None:
    path = filled / "store.sqlite"
    for text in (b"fake-1", b'{"sequence"'):
        for place in places(path, text):
            flip(path, place + 3)
        with pytest.raises(IndexFileError, match="damaged"):
            Store.open(filled)
        for place in places(path, text[:3] + bytes([text[3] ^ 1]) + text[4:]):
            flip(path, place + 3)
    assert Store.open(filled).verify() == []


def test_any_flipped_bit_is_found_or_harmless(filled: Path, tmp_path: Path) -> None:
    """Harmless: in unused space, or in what SQLite does not need. It must never give other contents unnoticed."""
    path = filled / "store.sqlite"
    good, before = path.read_bytes(), contents(Store.open(filled))
    draw, noticed = random.Random(5), 0
    for number in range(150):
        copy = tmp_path / f"copy-{number}"
        copy.mkdir()
        (copy / path.name).write_bytes(good)
        flip(copy / path.name, draw.randrange(len(good)), 1 << draw.randrange(8))
        try:
            store = Store.open(copy)
            faults = store.verify()
            noticed += bool(faults)
            assert faults or contents(store) == before
            store.close()
        except IndexFileError:
            noticed += 1
    assert noticed > 10


# Crashes


def test_killed_while_writing(tmp_path: Path) -> None:
    """All that was acknowledged is there; the change under way at most is there beyond it, and whole."""
    make(tmp_path / "i").close()
    draw = random.Random(5)
    versions: dict[str, int] = {}
    for _ in range(5):
        command = [sys.executable, str(SCRIPT), str(tmp_path / "i")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            lines = [process.stdout.readline()]
            time.sleep(draw.random() * 0.3)
            process.kill()
            lines += process.stdout
        after = versions
        for line in lines:
            if line == "done\n":
                versions = after
            elif line.startswith("change ") and line.endswith("\n"):
                changed = dict(pair.split("=") for pair in line.split()[1:])
                after = versions | {id: int(version) for id, version in changed.items()}
        store = Store.open(tmp_path / "i")
        assert store.verify() == []
        found = contents(store)
        store.close()
        assert found in [
            expected([item(id, version) for id, version in each.items() if version >= 0]) for each in (versions, after)
        ]
        versions = {id: int(str(product.attributes["version"])) for id, (product, _) in found.items()}
    assert len(versions) > 10


def test_a_crashed_writer_leaves_no_lock(filled: Path) -> None:
    code = """
        store = Store.open(sys.argv[1])
        store.put([item("crashed")])
        os.kill(os.getpid(), 9)
    """
    with child(code, filled) as process:
        assert process.wait(60) == -signal.SIGKILL
    assert (filled / "writer.lock").read_text().startswith(f"process {process.pid} on ")
    store = Store.open(filled)
    assert store.known(["crashed"]) == {"crashed"}
    assert store.put([item("next")])[0] == 4


def test_the_lock_does_not_live_on_in_a_forked_child(filled: Path) -> None:
    code = """
        store = Store.open(sys.argv[1])
        store.put([item("a")])
        if os.fork() == 0:
            print("ready", flush=True)  # by now it has closed what it shares
            sys.stdin.readline()
            os._exit(0)
        os.kill(os.getpid(), 9)
    """
    with child(code, filled) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.wait(60)
        store = Store.open(filled)
        assert store.put([item("b")])[0] == 4
        store.close()
        process.stdin.write("\n")


# Other processes


def test_one_writer_at_a_time(filled: Path) -> None:
    code = """
        store = Store.open(sys.argv[1])
        store.put([item("theirs")])
        print("ready", flush=True)
        sys.stdin.readline()
        store.close()
        print("closed", flush=True)
        sys.stdin.readline()
    """
    ours = Store.open(filled)
    assert ours.sequence == 2
    with child(code, filled) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for write in (lambda: ours.put([item("ours")]), lambda: ours.delete(["p1"]), ours.begin_writing):
            with pytest.raises(IndexFileError, match=f"being written by process {process.pid} on .*one writer"):
                write()
        assert ours.known(["theirs", "ours"]) == {"theirs"}
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "closed\n"
        assert ours.begin_writing() == 3
        sequence, rows, _ = ours.put([item("ours")])
        assert (sequence, rows.tolist()) == (4, [42])
        process.stdin.write("\n")


def test_two_stores_in_one_process(filled: Path) -> None:
    one, two = Store.open(filled), Store.open(filled)
    one.put([item("one")])
    with pytest.raises(IndexFileError, match=f"process {os.getpid()} "):
        two.put([item("two")])
    assert two.products([41])[41].id == "one"
    one.close()
    two.put([item("one", 1)])
    assert two.products([41]) == {} and two.verify() == []


def test_a_reader_in_another_process_during_writes(filled: Path) -> None:
    code = """
        store = Store.open(sys.argv[1])
        print("ready", flush=True)
        last, reads, versions = 0, 0, None
        while versions != {99}:
            with store.snapshot():
                sequence, found = store.sequence, contents(store)
                assert len(found) == store.count() and sequence >= last
                versions = {product.attributes["version"] for id, (product, _) in found.items() if id[0] == "n"}
                assert len(versions) <= 1
            last = sequence
            reads += 1
        print(reads)
    """
    store = Store.open(filled)
    with child(code, filled) as process:
        assert process.stdout is not None
        process.stdout.readline()
        for version in range(100):
            store.put([item(f"n{number}", version) for number in range(20)])
            if version % 10 == 0:
                store.checkpoint()
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and int(output) > 1


def test_forked_after_open(filled: Path) -> None:
    code = """
        store = Store.open(sys.argv[1])
        store.put([item("a")])
        child = os.fork()
        if child == 0:
            for use in (lambda: store.count(), lambda: store.put([item("b")]), lambda: store.products([1])):
                try:
                    use()
                    os._exit(1)
                except UniecsError as error:
                    if "forked" not in str(error):
                        os._exit(2)
            store.close()
            again = Store.open(sys.argv[1])
            if again.count() != 40:
                os._exit(3)
            again.close()
            sys.exit(0)
        _, status = os.waitpid(child, 0)
        store.put([item("c")])
        print(status, store.count(), store.verify(), flush=True)
    """
    assert answer(code, filled) == "0 41 []"


# Disks


def test_disk_full(tmpfs: Path) -> None:
    (tmpfs / "filler").write_bytes(bytes(5 << 20))
    store = make(tmpfs / "i")
    added = 0
    with pytest.raises(IndexFileError, match="disk is full; this change was not made"):
        while added < 100_000:
            store.put([item(str(number)) for number in range(added, added + 64)])
            added += 64
    assert added > 1000 and store.count() == added and store.verify() == []
    assert len(contents(store)) == added
    (tmpfs / "filler").unlink()
    store.put([item("after")])
    store.close()
    store = Store.open(tmpfs / "i")
    assert store.count() == added + 1 and store.verify() == []
    store.close()


def test_no_room_for_a_new_store(tmpfs: Path) -> None:
    with pytest.raises(OSError, match="No space"), (tmpfs / "filler").open("wb") as file:
        while True:
            file.write(bytes(4096))
    with pytest.raises(IndexFileError, match=r"disk is full|No space"):
        make(tmpfs / "i")
    assert not (tmpfs / "i" / "store.sqlite").exists()


def crashed(folder: Path) -> None:
    """A store whose last change is in its log alone."""
    code = """
        store = Store.open(sys.argv[1])
        store.put([item("crashed")])
        os._exit(0)
    """
    answer(code, folder)
    assert (folder / "store.sqlite-wal").stat().st_size > 0


READ = """
    store = Store.open(sys.argv[1])
    print(len(contents(store)), store.verify(), sorted(store.known(["p1", "crashed"])))
    try:
        store.put([item("b")])
    except UniecsError as error:
        print("cannot be written" in str(error), flush=True)
"""


@pytest.fixture
def readable() -> Iterator[Path]:
    """The folder of a closed store that this user may write, and another may read."""
    folder = Path(tempfile.mkdtemp())
    store = make(folder / "i")
    store.put([item(f"p{number}", number) for number in range(40)])
    store.close()
    folder.chmod(0o755)
    yield folder / "i"
    (folder / "i").chmod(0o755)
    shutil.rmtree(folder)


@pytest.mark.parametrize("state", ["closed", "crashed", "crashed, without the log's index"])
def test_read_only_folder(readable: Path, state: str) -> None:
    if state != "closed":
        crashed(readable)
    if "without" in state:
        (readable / "store.sqlite-shm").unlink()
    for path in readable.iterdir():
        path.chmod(0o444)
    readable.chmod(0o555)
    before = sorted(path.name for path in readable.iterdir())
    found = "40 [] ['p1']" if state == "closed" else "41 [] ['crashed', 'p1']"
    assert answer(READ, readable, unprivileged=True) == f"{found}\nTrue"
    assert sorted(path.name for path in readable.iterdir()) == before


def test_a_reader_without_rights_sees_a_writer(readable: Path) -> None:
    """Nothing of the log is there when it opens; later another user writes, and closes, and writes."""
    if os.geteuid() != 0:
        pytest.skip("needs two users")
    readable.chmod(0o555)
    code = """
        store = Store.open(sys.argv[1])
        while True:
            print(store.count(), store.sequence, flush=True)
            if not sys.stdin.readline():
                break
    """
    with child(code, readable, unprivileged=True) as process:
        assert process.stdin is not None and process.stdout is not None

        def read() -> str:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write("\n")
            process.stdin.flush()
            return process.stdout.readline().strip()

        assert process.stdout.readline().strip() == "40 1"
        store = Store.open(readable)
        store.put([item("a")])
        assert read() == "41 2"
        store.put([item("b")])
        assert read() == "42 3"
        store.close()
        assert read() == "42 3"
        store = Store.open(readable)
        store.put([item("c")])
        store.close()
        assert read() == "43 4"


def test_read_only_file_system(tmpfs: Path) -> None:
    for name in ("closed", "crashed"):
        store = make(tmpfs / name)
        store.put([item(f"p{number}", number) for number in range(40)])
        store.close()
    crashed(tmpfs / "crashed")
    (tmpfs / "crashed" / "store.sqlite-shm").unlink()
    subprocess.run(["mount", "-o", "remount,ro", str(tmpfs)], check=True)
    for name, count in (("closed", 40), ("crashed", 41)):
        store = Store.open(tmpfs / name)
        assert len(contents(store)) == count and store.verify() == []
        with pytest.raises(IndexFileError, match="cannot be written"):
            store.put([item("x")])
        store.close()


def test_permission_denied(readable: Path) -> None:
    (readable / "store.sqlite").chmod(0)
    code = """
        try:
            Store.open(sys.argv[1])
        except UniecsError as error:
            print(type(error).__name__, "permissions" in str(error))
    """
    assert answer(code, readable, unprivileged=True) == "IndexFileError True"


def test_a_clock_that_jumps(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in the store depends on the time."""
    store = Store.open(filled)
    for seconds in (-1e9, 1e9):
        monkeypatch.setattr("time.time", lambda seconds=seconds: seconds)
        store.put([(Product(f"at {seconds}", "x"), {"text": np.eye(8, dtype=np.float32)[0]})])
    assert store.verify() == [] and store.count() == 41
