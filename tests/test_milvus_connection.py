"""The connection to Milvus: URLs, errors that pass and errors that do not, and the server of milvus-lite."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from uniecs import milvus_connection
from uniecs.errors import BackendError, IndexFileError, InputError
from uniecs.index_folder import BundleReference, IndexConfig
from uniecs.milvus_connection import Address, Connection, is_milvus_url
from uniecs.milvus_index import MilvusIndex

pytestmark = pytest.mark.usefixtures("milvus")


def create(milvus_url: str) -> MilvusIndex:
    return MilvusIndex.create(milvus_url, "fake-1", 16, BundleReference(name="mini"), IndexConfig())


def test_urls(tmp_path: Path) -> None:
    parse = Address.parse
    assert parse("milvus://host/shop") == Address("milvus://host/shop", "http://host:19530", "", "shop", lite=False)
    assert parse("milvus://host:1/db/shop").database == "db"
    assert parse("milvus+tls://[::1]:443/shop").uri == "https://[::1]:443"
    assert parse(f"milvus-lite://{tmp_path}/a.db/shop").uri == f"{tmp_path}/a.db"
    assert parse("milvus-lite://a.db/shop").uri == str(Path("a.db").absolute())
    assert [is_milvus_url(each) for each in ("milvus://x", "shop.uniecs", "milvus", tmp_path)] == [True] + [False] * 3
    for wrong in (
        "milvus://",
        "milvus://host",
        "milvus://host/",
        "milvus://host/a-b",
        "milvus://host:x/shop",
        "milvus-lite://a/shop",
        "http://host/shop",
        "milvus://a/b/c/shop",
        "milvus:///shop",
    ):
        with pytest.raises(InputError):
            parse(wrong)
    with pytest.raises(InputError, match="MILVUS_TOKEN") as caught:
        parse("milvus://root:secret@host/shop")
    assert "secret" not in str(caught.value)


class Flaky:
    """A client whose calls fail a number of times."""

    def __init__(self, failures: list[Exception]) -> None:
        self.failures, self.calls = failures, 0

    def has_collection(self, name: str, timeout: float) -> bool:
        self.calls += 1
        if self.failures:
            raise self.failures.pop(0)
        return True


def test_transient_errors_are_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    import grpc
    from pymilvus.exceptions import MilvusException

    waits: list[float] = []
    monkeypatch.setattr(milvus_connection.time, "sleep", waits.append)
    address = Address.parse("milvus://host/shop")
    busy = MilvusException(message="busy", retriable=True)
    down = MilvusException(code=grpc.StatusCode.UNAVAILABLE, message="down")
    client = Flaky([busy, down])
    assert Connection(address, client).call("has_collection") is True
    assert (client.calls, len(waits)) == (3, 2)
    assert 0.1 <= waits[0] <= 0.3 and 0.2 <= waits[1] <= 0.6

    client = Flaky([busy] * 100)
    with pytest.raises(BackendError, match=r"milvus://host/shop: has_collection failed, attempt 5 of 5.*busy"):
        Connection(address, client).call("has_collection")
    assert client.calls == 5

    client = Flaky([MilvusException(code=1100, message="invalid parameter")])
    with pytest.raises(BackendError, match=r"attempt 1 of 5.*invalid"):
        Connection(address, client).call("has_collection")


def test_a_server_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(milvus_connection, "REQUEST_S", 0.3)
    monkeypatch.setattr(milvus_connection, "FIRST_WAIT_S", 0.01)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but not listening
        with pytest.raises(BackendError, match="attempt 5 of 5"):
            MilvusIndex.open(f"milvus://127.0.0.1:{taken.getsockname()[1]}/shop")


def listening() -> set[str]:
    """Addresses of this process's own listening TCP sockets, as /proc has them."""
    inodes = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            inodes.add(str(descriptor.readlink()))
        except OSError:
            continue
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]:
            cells = line.split()
            if cells[3] == "0A" and f"socket:[{cells[9]}]" in inodes:
                found.add(cells[1].partition(":")[0])
    return found


@pytest.mark.skipif(not Path("/proc/self/net/tcp").exists(), reason="needs /proc")
def test_lite_listens_on_loopback_only_and_ends_with_the_last_user(milvus_url: str) -> None:
    before = listening()
    first = create(milvus_url)
    second = MilvusIndex.open(milvus_url)
    assert listening() - before <= {"0100007F", "0000000000000000FFFF00000100007F"}
    assert listening()
    first.close()
    assert len(second) == 0
    second.close()
    assert listening() == before


def test_a_file_that_another_process_has_open(milvus_url: str) -> None:
    index = create(milvus_url)
    program = f"from uniecs.milvus_index import MilvusIndex; MilvusIndex.open({milvus_url!r})"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "BackendError" in result.stderr and "one process at a time may open it" in result.stderr
    index.close()


def test_opening_what_is_not_there_makes_nothing(tmp_path: Path) -> None:
    with pytest.raises(IndexFileError, match="does not exist"):
        MilvusIndex.open(f"milvus-lite://{tmp_path}/some/shop.db/products")
    assert list(tmp_path.iterdir()) == []


def test_a_path_written_in_two_ways_is_one_server(milvus_url: str) -> None:
    first = create(milvus_url)
    second = MilvusIndex.open(milvus_url.replace("/shop.db", "/sub/../shop.db"))
    second.close()
    assert len(first) == 0
    first.close()


def test_import_loads_no_pymilvus() -> None:
    program = "import sys, uniecs.milvus_index, uniecs.copying; print('pymilvus' in sys.modules, 'grpc' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "False"]
