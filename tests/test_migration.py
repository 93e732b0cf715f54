"""An index folder of format version 1 becomes version 2 in place; tests/data/index-v1 is one (tests/data/README.md)."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from uniecs.catalog import Product
from uniecs.errors import IndexFileError
from uniecs.filters import OneOf
from uniecs.index_folder import BundleReference, IndexConfig
from uniecs.index_migration import migrate, needs_migration
from uniecs.store import Store

OLD = Path(__file__).with_name("data") / "index-v1"
NEW_FILES = ["store.sqlite", "writer.lock"]


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(OLD, tmp_path / "i")
    return tmp_path / "i"


def check_whole(folder: Path) -> None:
    """The folder holds what tests/data/index-v1 does."""
    store = Store.open(folder)
    assert (store.model_id, store.embed_dim, store.bundle) == ("fake-1", 16, BundleReference(path="/models/fake"))
    assert store.config == IndexConfig(("multimodal", "text"), 4, 20, "float32") and store.verify() == []
    lines = [json.loads(line) for line in (OLD / "products-1.jsonl").read_text("ascii").splitlines()]
    live = [(row, line) for row, line in enumerate(lines) if line is not None]
    live[5][1]["attributes"] = {"colour": "green", "Gr??e": "L"}  # a name that was no Unicode
    products = store.products(range(20))
    assert list(products.values()) == [Product(**line) for _, line in live] and len(live) == 7
    for view in store.config.views:
        tensors = load_file(OLD / f"{view}-1.safetensors")
        new = {row: place for place, (row, _) in enumerate(live, start=1)}
        rows, vectors = store.vectors(view, products)
        assert rows.tolist() == [new[row] for row in tensors["rows"].tolist()]
        assert np.array_equal(vectors, tensors["vectors"]) and len(rows) == store.count(view)
    assert store.rows_matching(OneOf("sizes", (42, "S"))).tolist() == [1, 7]
    store.close()


def test_migrate(folder: Path) -> None:
    assert needs_migration(folder)
    with pytest.raises(IndexFileError, match="is not an index"):
        Store.open(folder)
    migrate(folder)
    assert files(folder) == NEW_FILES and not needs_migration(folder)
    check_whole(folder)
    migrate(folder)
    check_whole(folder)


def test_hnswlib_is_not_needed(folder: Path) -> None:
    program = (
        "import sys; sys.modules['hnswlib'] = None\n"
        "from pathlib import Path; from uniecs.index_migration import migrate; migrate(Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", program, str(folder)], check=True)
    check_whole(folder)


def test_other_folders_are_left_alone(tmp_path: Path) -> None:
    migrate(tmp_path / "none")
    migrate(tmp_path)
    assert files(tmp_path) == []


CRASHES = [
    "uniecs.index_migration.build_store",
    "uniecs.store.create_database",
    "uniecs.store.Store.put",
    "uniecs.store.sync",
    "uniecs.store.remove_database",
    "uniecs.index_migration._verify_files",
    "pathlib.Path.replace",
    "pathlib.Path.unlink",
]


@pytest.mark.parametrize("place", CRASHES)
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("call", [1, 3])
def test_a_crash_leaves_an_index_that_opens(folder: Path, place: str, when: str, call: int) -> None:
    """A process that ends at once before or after the n-th call of a function; some are called less often."""
    program = f"""
import os, sys, pkgutil
from pathlib import Path
import uniecs.index_migration
owner, _, name = {place!r}.rpartition(".")
owner = pkgutil.resolve_name(owner)
original, calls = getattr(owner, name), 0
def crashing(*arguments, **options):
    global calls
    calls += 1
    if calls == {call} and {when!r} == "before":
        os._exit(9)
    try:
        return original(*arguments, **options)
    finally:
        if calls == {call}:
            os._exit(9)
setattr(owner, name, crashing)
uniecs.index_migration.migrate(Path(sys.argv[1]))
"""
    status = subprocess.run([sys.executable, "-c", program, str(folder)], check=False).returncode
    assert status in (0, 9) and (call > 1 or status == 9)
    if not (folder / "store.sqlite").exists():
        assert set(files(OLD)) <= set(files(folder))
    migrate(folder)
    assert files(folder) == NEW_FILES
    check_whole(folder)


def test_every_flipped_or_missing_byte_is_noticed(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in OLD.iterdir()}
    for name, data in before.items():
        path = folder / name
        step = 7 if name == "manifest.json" else 97
        damaged = [data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :] for place in range(0, len(data), step)]
        for bad in (*damaged, data[:-1], b"", data + b"x"):
            path.write_bytes(bad)
            with pytest.raises(IndexFileError):
                migrate(folder)
        path.unlink()
        if name != "manifest.json":
            with pytest.raises(IndexFileError, match="missing"):
                migrate(folder)
        path.write_bytes(data)
    assert {name: (folder / name).read_bytes() for name in files(folder) if name != "writer.lock"} == before
    migrate(folder)
    check_whole(folder)


def signed(folder: Path, **changes: Any) -> None:
    """Rewrite files and manifest as a hostile writer would, with the right checksums."""
    path = folder / "manifest.json"
    data = {**json.loads(path.read_bytes()), **changes}
    del data["manifest_sha256"]
    for record in data["files"]:
        file = folder / record["name"]
        if file.is_file():
            record |= {"bytes": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    canonical = json.dumps(data, sort_keys=True, separators=(",", ":"))
    path.write_text(json.dumps({**data, "manifest_sha256": hashlib.sha256(canonical.encode()).hexdigest()}))


def test_folders_that_are_refused(folder: Path, tmp_path: Path) -> None:
    records = json.loads((OLD / "manifest.json").read_bytes())["files"]
    lines = (OLD / "products-1.jsonl").read_text().splitlines(keepends=True)
    manifests: list[tuple[dict[str, Any], str]] = [
        ({"format_version": 3}, "not valid"),
        ({"format": "uniecs-bundle"}, "not the manifest of an index"),
        ({"files": [{**records[0], "name": "../products-1.jsonl"}, *records[1:]]}, "other files"),
        ({"files": records[1:]}, "other files"),
        ({"rows": 9}, "8 rows; expected 9"),
        ({"rows": 7}, "rows that do not ascend"),
        ({"generation": 2}, "other files"),
        ({"embed_dim": 15}, "vectors"),
        ({"surprise": 1}, "unknown key"),
    ]
    for changes, message in manifests:
        signed(folder, **changes)
        with pytest.raises(IndexFileError, match=message):
            migrate(folder)
        shutil.copytree(OLD, folder, dirs_exist_ok=True)
    products: list[tuple[list[str], str]] = [
        ([*lines[:5], lines[0], *lines[6:]], "id '1' more than once"),
        (["null\n", *lines[1:]], "vectors of deleted products"),
        (["[]\n", *lines[1:]], "cannot be read"),
        ([lines[0].replace("49.5", "NaN"), *lines[1:]], "cannot be migrated"),
    ]
    for text, message in products:
        (folder / "products-1.jsonl").write_text("".join(text))
        signed(folder)
        with pytest.raises(IndexFileError, match=message):
            migrate(folder)
        shutil.copytree(OLD, folder, dirs_exist_ok=True)
    shutil.move(folder / "products-1.jsonl", tmp_path / "elsewhere")
    (folder / "products-1.jsonl").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(IndexFileError, match="is missing"):
        migrate(folder)
    assert needs_migration(folder) and not (folder / "store.sqlite").exists()


def test_a_folder_that_is_being_written(folder: Path) -> None:
    from uniecs.writer_lock import WriterLock

    lock = WriterLock(folder)
    lock.acquire()
    with pytest.raises(IndexFileError, match="being written by process"):
        migrate(folder)
    lock.release()
    migrate(folder)
    check_whole(folder)
