"""Compiled graphs on disk: the same answers, never from a blob that is damaged, foreign or writable by others."""

from __future__ import annotations

import os
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from uniecs.backends import compiled_cache
from uniecs.backends.base import create_backend
from uniecs.backends.compiled_cache import cache_folder, cache_key, read_blob, write_blob
from uniecs.bundle import Bundle
from uniecs.errors import BackendError

fake = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("fake_bundle.py"))))
KEY = cache_key({"graph": "a"})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNIECS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def image_tokens(bundle: Bundle, *, may_compile: bool = True, **options: Any) -> Any:
    backend: Any = create_backend(bundle, "openvino", **options)
    if not may_compile:
        backend._core = SimpleNamespace(import_model=backend._core.import_model)
    _, *shape = bundle.manifest["graphs"]["image_encoder"]["inputs"]["pixel_values"]["shape"]
    return backend.run(
        "image_encoder", {"pixel_values": np.linspace(-1, 1, np.prod(shape), dtype=np.float32).reshape(1, *shape)}
    )


def test_the_second_start_imports_and_answers_the_same(bundle: Bundle, folder: Path) -> None:
    first = image_tokens(bundle)
    (blob,) = folder.glob("*.blob")
    assert oct(folder.stat().st_mode)[-3:] == "700"
    assert not blob.stat().st_mode & 0o077
    np.testing.assert_array_equal(image_tokens(bundle, may_compile=False), first)
    assert list(folder.iterdir()) == [blob]


def test_another_graph_precision_or_thread_count_is_another_blob(bundle: Bundle, folder: Path, tmp_path: Path) -> None:
    image_tokens(bundle)
    image_tokens(bundle, threads=1)
    other = fake.write_fake_bundle(tmp_path / "other", seed=1)
    assert not np.array_equal(image_tokens(other), image_tokens(bundle))
    assert len(list(folder.glob("*.blob"))) == 3


def test_a_changed_blob_is_compiled_anew(bundle: Bundle, folder: Path) -> None:
    first = image_tokens(bundle)
    (blob,) = folder.glob("*.blob")
    whole = blob.read_bytes()
    for damaged in (
        whole[: len(whole) // 2],
        whole[:-1],
        b"",
        whole[:40] + bytes(each ^ 255 for each in whole[40:60]) + whole[60:],
        whole[: len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 1]) + whole[len(whole) // 2 + 1 :],
    ):
        blob.write_bytes(damaged)
        with pytest.raises(BackendError, match="read_model"):
            image_tokens(bundle, may_compile=False)
        np.testing.assert_array_equal(image_tokens(bundle), first)
        np.testing.assert_array_equal(image_tokens(bundle, may_compile=False), first)


def test_a_blob_that_the_engine_refuses_is_compiled_anew(bundle: Bundle, folder: Path) -> None:
    first = image_tokens(bundle)
    (blob,) = folder.glob("*.blob")
    write_blob(folder, blob.stem, b"whole, but no graph")
    np.testing.assert_array_equal(image_tokens(bundle), first)
    np.testing.assert_array_equal(image_tokens(bundle, may_compile=False), first)


def test_a_blob_counts_only_under_its_own_key(folder: Path) -> None:
    write_blob(folder, KEY, b"graph")
    assert read_blob(folder, KEY) == b"graph"
    other = cache_key({"graph": "b"})
    (folder / f"{KEY}.blob").rename(folder / f"{other}.blob")
    assert read_blob(folder, other) is None
    assert read_blob(folder, KEY) is None


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="needs POSIX permissions")
def test_what_others_may_write_is_not_trusted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_blob(folder, KEY, b"graph")
    blob = folder / f"{KEY}.blob"
    for path, usual in ((folder, 0o700), (blob, 0o600)):
        for mode in (0o720, 0o702):
            path.chmod(mode)
            assert read_blob(folder, KEY) is None
        path.chmod(usual)
    assert read_blob(folder, KEY) == b"graph"
    folder.chmod(0o777)
    write_blob(folder, cache_key({}), b"another")
    assert list(folder.glob("*.blob")) == [blob]
    folder.chmod(0o700)
    stranger = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: stranger)
    assert read_blob(folder, KEY) is None


def test_without_a_usable_folder_everything_works(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("UNIECS_CACHE", "")
    expected = image_tokens(bundle)
    for place in (tmp_path / "file" / "cache", tmp_path / "file", Path("/proc/none"), Path("relative")):
        monkeypatch.setenv("UNIECS_CACHE", str(place))
        np.testing.assert_array_equal(image_tokens(bundle), expected)
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_where_the_folder_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/someone")
    for value, expected in {"": None, "relative": None, "/elsewhere": Path("/elsewhere")}.items():
        monkeypatch.setenv("UNIECS_CACHE", value)
        assert cache_folder() == expected
    monkeypatch.delenv("UNIECS_CACHE")
    assert cache_folder() == Path("/var/cache/someone/uniecs")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path("/home/someone/.cache/uniecs")


def test_the_folder_does_not_grow_without_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled_cache, "MAX_BYTES", 3 * (100 + compiled_cache.DIGEST_BYTES))
    keys = [cache_key({"graph": str(i)}) for i in range(5)]
    for age, key in enumerate(keys[:3]):
        write_blob(folder, key, bytes(100))
        os.utime(folder / f"{key}.blob", (1_000_000 + age, 1_000_000 + age))
    assert read_blob(folder, keys[0]) is not None  # used: now the youngest
    for key in keys[3:]:
        write_blob(folder, key, bytes(100))
    assert [read_blob(folder, key) is not None for key in keys] == [True, False, False, True, True]
