"""The folder of an index: saved whole or not at all, and refused when anything in it is not as it was written."""

from __future__ import annotations

import hashlib
import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from uniecs.catalog import Product
from uniecs.encoder import Encoder
from uniecs.engine import SearchEngine
from uniecs.errors import (
    IndexFileError,
    ModelMismatchError,
)

FAKES = runpy.run_path(str(Path(__file__).with_name("fake_encoder.py")))
fake: Callable[..., Encoder] = FAKES["fake"]
filled: Callable[..., SearchEngine] = FAKES["filled"]
shop, contents, ids = FAKES["shop"], FAKES["contents"], FAKES["ids"]


@pytest.fixture
def engine(tmp_path: Path) -> SearchEngine:
    return filled(tmp_path / "shop.uniecs", ("multimodal", "image", "text"))


def test_save_and_open(engine: SearchEngine, tmp_path: Path) -> None:
    engine.delete(["2"])
    engine.save()
    again = SearchEngine.open(tmp_path / "shop.uniecs", fake())
    assert len(again) == 4 and again.views == engine.views
    for view in engine.views:
        hits = again.search(text="red", view=view)
        assert hits == engine.search(text="red", view=view)
    assert hits[0].product.image is None and hits[0].product.attributes["price"] in (10, 30)
    assert again.add([Product("2", "back"), Product("6", "new")]).added == 2
    again.save()
    third = SearchEngine.open(tmp_path / "shop.uniecs", fake())
    assert len(third) == 6 and ids(third.search(text="back", k=1)) == ["2"]
    views = {f"{view}-2.{kind}" for view in engine.views for kind in ("hnsw", "safetensors")}
    assert set(contents(tmp_path / "shop.uniecs")) == {"manifest.json", "products-2.jsonl"} | views


def test_save_without_changes_writes_nothing(tmp_path: Path) -> None:
    engine = filled(tmp_path / "i")
    engine.save()
    before = contents(tmp_path / "i")
    engine.save()
    SearchEngine.open(tmp_path / "i", fake()).save()
    assert contents(tmp_path / "i") == before


def test_context_manager_saves_unless_it_fails(tmp_path: Path) -> None:
    with SearchEngine.create(tmp_path / "i", fake()) as engine:
        engine.add(shop()[:2])
    with pytest.raises(ZeroDivisionError), SearchEngine.open(tmp_path / "i", fake()) as engine:
        engine.add(shop()[2:])
        raise ZeroDivisionError
    with SearchEngine.open(tmp_path / "i", fake()) as engine:
        assert len(engine) == 2
        engine.close()


def test_create_overwrites_nothing(tmp_path: Path) -> None:
    filled(tmp_path / "i").save()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("mine")
    before = contents(tmp_path / "i")
    for name in ("i", "file", "other"):
        with pytest.raises(IndexFileError, match="already exists"):
            SearchEngine.create(tmp_path / name, fake())
    assert contents(tmp_path / "i") == before and (tmp_path / "file").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    SearchEngine.create(tmp_path / "empty", fake()).save()


def test_the_other_writer_is_noticed(tmp_path: Path) -> None:
    one, two = filled(tmp_path / "i"), filled(tmp_path / "i", products=shop()[:1])
    one.save()
    before = contents(tmp_path / "i")
    with pytest.raises(IndexFileError, match="another engine"):
        two.save()
    assert contents(tmp_path / "i") == before


@pytest.mark.parametrize("failing", ["multimodal-2.hnsw", "products-2.jsonl", "manifest.json.new"])
def test_failed_save_leaves_the_saved_index(tmp_path: Path, failing: str) -> None:
    """A folder in the place of a new file stands for a disk that fails while that file is written."""
    engine = filled(tmp_path / "i")
    engine.save()
    before = contents(tmp_path / "i")
    engine.add([Product("6", "new")])
    blocked = tmp_path / "i" / failing
    blocked.mkdir()
    with pytest.raises(IndexFileError, match="unharmed"):
        engine.save()
    blocked.rmdir()
    assert contents(tmp_path / "i") == before
    engine.save()
    assert len(SearchEngine.open(tmp_path / "i", fake())) == 6


def test_every_flipped_or_missing_byte_is_noticed(tmp_path: Path) -> None:
    folder = tmp_path / "i"
    filled(folder).save()
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        places = range(len(data)) if path.name == "manifest.json" else (0, len(data) // 2, len(data) - 1)
        damaged = [data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :] for place in places]
        for bad in (*damaged, data[:-1], data[: len(data) // 2], b"", data + b"x"):
            path.write_bytes(bad)
            before = contents(folder)
            with pytest.raises(IndexFileError):
                SearchEngine.open(folder, fake())
            assert contents(folder) == before
        path.unlink()
        with pytest.raises(IndexFileError):
            SearchEngine.open(folder, fake())
        path.write_bytes(data)
    assert len(SearchEngine.open(folder, fake())) == 5


def test_open_what_is_no_index(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    for name in ("none", "file", "empty"):
        with pytest.raises(IndexFileError, match="not an index"):
            SearchEngine.open(tmp_path / name, fake())
    assert not (tmp_path / "none").exists()


def signed(folder: Path, **changes: Any) -> None:
    """Rewrite the manifest as a hostile or later writer would, with the right checksum (docs/index-format.md)."""
    path = folder / "manifest.json"
    data = {**json.loads(path.read_bytes()), **changes}
    del data["manifest_sha256"]
    canonical = json.dumps(data, sort_keys=True, separators=(",", ":"))
    path.write_text(json.dumps({**data, "manifest_sha256": hashlib.sha256(canonical.encode()).hexdigest()}))


def test_manifests_that_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "i"
    filled(folder).save()
    (tmp_path / "products-1.jsonl").write_bytes((folder / "products-1.jsonl").read_bytes())
    original = (folder / "manifest.json").read_bytes()
    files = json.loads(original)["files"]
    outside = [{**files[0], "name": "../products-1.jsonl"}, *files[1:]]
    cases: list[tuple[dict[str, Any], str]] = [
        ({"format_version": 2}, "newer|up to 1: upgrade"),
        ({"format": "uniecs-bundle"}, "not the manifest of an index"),
        ({"files": outside}, "other files"),
        ({"files": [{**files[0], "name": str(tmp_path / "products-1.jsonl")}, *files[1:]]}, "other files"),
        ({"files": files[1:]}, "other files"),
        ({"rows": 4}, "expected 4"),
        ({"generation": "1"}, "not valid"),
        ({"surprise": 1}, "unknown key"),
        ({"bundle": {"name": None, "path": None}}, "exactly one"),
        ({"config": {"views": ["title"], "M": 16, "ef_construction": 200}}, "not valid"),
    ]
    for changes, message in cases:
        signed(folder, **changes)
        with pytest.raises(IndexFileError, match=message):
            SearchEngine.open(folder, fake())
        (folder / "manifest.json").write_bytes(original)
    signed(folder)
    assert len(SearchEngine.open(folder, fake())) == 5


def test_links_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    filled(tmp_path / "i").save()
    path = tmp_path / "i" / "products-1.jsonl"
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(IndexFileError, match="is missing"):
        SearchEngine.open(tmp_path / "i", fake())


def test_another_model_is_refused(tmp_path: Path) -> None:
    filled(tmp_path / "i").save()
    before = contents(tmp_path / "i")
    for encoder in (fake("fake-2"), fake("fake-1", 64)):
        with pytest.raises(ModelMismatchError, match="fake-1"):
            SearchEngine.open(tmp_path / "i", encoder)
    assert contents(tmp_path / "i") == before


def test_open_loads_the_recorded_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path / "i").save()
    asked: list[tuple[str, dict[str, Any]]] = []

    def load(name_or_path: str, **options: Any) -> Encoder:
        asked.append((name_or_path, options))
        return fake()

    monkeypatch.setattr("uniecs.encoder.load", load)
    assert len(SearchEngine.open(tmp_path / "i", backend="onnxruntime", threads=2)) == 5
    options = {"device": "auto", "backend": "onnxruntime", "precision": "auto", "threads": 2}
    assert asked == [("/models/fake", options)]
