"""SearchEngine over Milvus (milvus-lite) is the SearchEngine over a folder: the same calls, the same answers."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path

import pytest

from uniecs import cli
from uniecs.catalog import Product
from uniecs.encoder import Encoder
from uniecs.engine import SearchEngine
from uniecs.errors import FilterError, IndexFileError, InputError, ModelMismatchError

FAKES = runpy.run_path(str(Path(__file__).with_name("fake_encoder.py")))
fake: Callable[..., Encoder] = FAKES["fake"]
filled: Callable[..., SearchEngine] = FAKES["filled"]
shop, ids, picture = FAKES["shop"], FAKES["ids"], FAKES["picture"]


def test_the_same_answers_as_a_folder(milvus_url: str, tmp_path: Path) -> None:
    folder = filled(tmp_path / "i", ("multimodal", "image"))
    with SearchEngine.create(milvus_url, fake(), views=("multimodal", "image")) as engine:
        assert engine.add(shop()).added == 5
        for each in (folder, engine):
            each.update([Product("3", "blue shoe", picture("blue"), {"gender": "Women", "price": 5})])
            each.delete(["2"])
            assert each.add([Product("1", "again")]).added == 0
        for options in (
            {"text": "red shirt"},
            {"image": picture("blue"), "view": "image"},
            {"text": "shoe", "where": {"gender": ["Women", "Men"], "price": (None, 30)}},
            {"text": "x", "where": {"$not": {"gender": "Women"}}, "k": 2},
        ):
            expected, found = folder.search(**options), engine.search(**options)
            scores = [hit.score for hit in found]
            assert scores == pytest.approx([hit.score for hit in expected], abs=1e-5)
            by_id = {hit.id: hit.product for hit in expected}  # equal scores may come in another order
            assert {hit.id: hit.product for hit in found} == by_id
        odd = [{"id": "huge", "title": "red", "price": 2**63}, {"id": "good", "title": "zebra", "price": 1}]
        report = engine.add(odd)
        assert (report.added, [each.id for each in report.rejected]) == (1, ["huge"])
        assert engine.delete(["good"]) == 1
        assert ids(engine.similar("1")) == ids(folder.similar("1"))
        assert engine.explain(text="x", where={"price": 5})["index"] == "milvus"
        assert engine.stats()["products"] == len(engine) == 4
        with pytest.raises(FilterError, match="unknown key 'colr'"):
            engine.search(text="x", where={"colr": "red"})
    with pytest.raises(ModelMismatchError):
        SearchEngine.open(milvus_url, fake("other"))
    with SearchEngine.open(milvus_url, fake()) as again:
        assert len(again) == 4 and ids(again.search(text="blue shoe", k=1)) == ["3"]
    with pytest.raises(InputError, match="closed"):
        again.search(text="x")
    with pytest.raises(IndexFileError, match="already exists"):
        SearchEngine.create(milvus_url, fake())


def test_copy_command(milvus_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    filled(tmp_path / "i").close()
    assert cli.main(["copy", str(tmp_path / "i"), milvus_url]) == 0
    assert "5 products copied, 0 were there already" in capsys.readouterr().out
    assert cli.main(["copy", str(tmp_path / "i"), milvus_url, "--json"]) == 0
    assert '"unchanged": 5' in capsys.readouterr().out
    with SearchEngine.open(milvus_url, fake()) as engine:
        assert ids(engine.search(text="red shoe", k=1)) == ["3"]
    assert cli.main(["copy", str(tmp_path / "none"), milvus_url]) == 1
    assert "not an index" in capsys.readouterr().err
    with filled(tmp_path / "i2") as engine:
        engine.add([{"id": "huge", "title": "red", "price": 2**63}, {"id": "good", "title": "zebra"}])
    assert cli.main(["copy", str(tmp_path / "i2"), milvus_url]) == 1
    captured = capsys.readouterr()
    assert "1 products copied, 5 were there already, 1 rejected" in captured.out
    assert "(id huge): product 'huge' has the integer" in captured.err
    filled(tmp_path / "i3", ("image",)).close()
    assert cli.main(["copy", str(tmp_path / "i3"), milvus_url]) == 1
    assert "of the views image; the index there has multimodal" in capsys.readouterr().err


def test_an_index_of_nothing_leaves_no_collection(
    milvus_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("uniecs.encoder.load", lambda *args, **options: fake())
    (tmp_path / "empty.csv").write_text("id,title\n1,\n")
    (tmp_path / "shop.csv").write_text("id,title\n1,red shirt\n")
    for catalog, status in (("empty", 1), ("empty", 1), ("shop", 0)):
        assert cli.main(["index", str(tmp_path / f"{catalog}.csv"), "--out", milvus_url]) == status
        assert f"{1 - status} products added" in capsys.readouterr().out
    assert cli.main(["index", str(tmp_path / "empty.csv"), "--out", milvus_url]) == 1
    assert "already exists" in capsys.readouterr().err
    with SearchEngine.open(milvus_url, fake()) as engine:
        assert len(engine) == 1
