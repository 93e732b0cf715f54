"""Bulk embedding: no row lost or twice, whatever dies; the same files from one process and from Ray."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from uniecs import bulk_embed, vector_shards
from uniecs.bulk_embed import BulkReport, embed_catalog
from uniecs.cli import main
from uniecs.errors import BackendError, CatalogError, ConfigError, InputError, ModelMismatchError
from uniecs.vector_shards import BulkJob, embedded_products, plan_shards

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed (the parquet extra)")
import pyarrow.parquet as parquet  # noqa: E402

DIM = 8
VIEWS = ("multimodal", "image")
# Ray's own, on the first use of its data context.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context")


def loader(deaths: str | None = None, at: str = "", times: int = 1, stop: type[BaseException] | None = None) -> Any:
    """Loads an encoder whose vectors are a hash of what it embeds; titles with "bad" fail.

    At a title with `at` in it, it raises `stop`, or kills its process, as often as `times` by the files in `deaths`.
    It stands in one function, because Ray sends it to processes that cannot import this file.
    """

    def load(threads: int | None) -> Any:
        import hashlib
        import os
        import signal
        from pathlib import Path

        import numpy as np

        from uniecs.encoder import EncodeResult
        from uniecs.errors import TextError

        class Fake:
            model_id, embed_dim = "fake-1", 8

            def encode(self, texts: list[str | None], images: list[Any], *, errors: str) -> EncodeResult:
                vectors, failed = np.full((len(texts), 8), np.nan, np.float32), {}
                for row, (text, image) in enumerate(zip(texts, images, strict=True)):
                    if at and at in (text or ""):
                        self.die()
                    if "bad" in (text or ""):
                        failed[row] = TextError("the text is bad")
                        continue
                    seed = hashlib.sha256(f"{text}|{image and Path(image).name}".encode()).digest()
                    vector = np.frombuffer(seed, np.uint8)[:8].astype(np.float32) - 100
                    vectors[row] = vector / np.linalg.norm(vector)
                return EncodeResult(vectors, failed)

            def die(self) -> None:
                if stop is not None:
                    raise stop("stopped")
                if deaths is not None and len(list(Path(deaths).iterdir())) < times:
                    (Path(deaths) / str(os.getpid())).touch()
                    os.kill(os.getpid(), signal.SIGKILL)

        return Fake()

    return load


@pytest.fixture
def catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """170 rows in 9 shards: three .parquet files of 50 rows, of which some are faulty, one .csv and one .jsonl."""
    monkeypatch.setattr(vector_shards, "SHARD_ROWS", 20)
    folder = tmp_path / "catalog"
    (folder / "more").mkdir(parents=True)
    for file in range(3):
        rows = [row(f"{file}-{n}", n) for n in range(50)]
        rows[7]["title"] = "bad title"
        rows[8]["id"] = rows[5]["id"]  # in the same shard
        rows[9] |= {"title": None, "image": None}
        rows[49]["id"] = None
        parquet.write_table(pa.Table.from_pylist(rows), folder / "more" / f"part-{file}.parquet", row_group_size=10)
    lines = [json.dumps(row(f"j{n}", n)) for n in range(10)]
    (folder / "a.jsonl").write_text("\n".join([*lines[:4], "not JSON", *lines[5:]]))
    (folder / "b.csv").write_text("id,title,image\n" + "".join(f"c{n},title c{n},\n" for n in range(10)))
    (folder / "notes.txt").write_text("not a catalogue")
    return folder


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a shard takes several; in the processes of Ray they are what they are."""
    monkeypatch.setattr(vector_shards, "ROW_GROUP", 7)
    monkeypatch.setattr(bulk_embed, "BATCH", 6)


def row(product_id: str, number: int) -> dict[str, Any]:
    return {
        "id": product_id,
        "title": f"title {product_id}",
        "image": f"{number}.jpg" if number % 3 else None,
        "price": number,
    }


def job(tmp_path: Path, name: str = "out", views: tuple[str, ...] = VIEWS) -> BulkJob:
    return BulkJob(str(tmp_path / name), "fake-1", DIM, views)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_row_is_embedded_or_rejected(small_batches: None, catalog: Path, tmp_path: Path) -> None:
    report = embed_catalog(catalog, job(tmp_path), loader())
    assert report == BulkReport(shards=11, skipped=0, rows=170, embedded=170 - 3 * 4 - 1, rejected=13)
    out = tmp_path / "out"
    table = pa.concat_tables([parquet.read_table(path) for path in sorted(out.glob("*.parquet"))])
    assert table.schema.names == ["id", *VIEWS]
    assert table.schema.field("multimodal").type.list_size == DIM
    expected = Counter(f"{file}-{n}" for file in range(3) for n in range(49) if n not in (7, 8, 9))
    expected += Counter([f"j{n}" for n in range(10) if n != 4] + [f"c{n}" for n in range(10)])
    assert Counter(table["id"].to_pylist()) == expected
    vectors = {each["id"]: each for each in table.to_pylist()}
    assert vectors["0-3"]["image"] is None
    (fused, image), _ = loader()(None).encode(["title 0-4", None], ["4.jpg", "4.jpg"], errors="return").embeddings, 0
    np.testing.assert_array_equal(vectors["0-4"]["multimodal"], fused)
    np.testing.assert_array_equal(vectors["0-4"]["image"], image)

    rejected = pa.concat_tables([parquet.read_table(path) for path in sorted((out / "rejected").iterdir())]).to_pylist()
    reasons = Counter((each["row"], each["error"]) for each in rejected)
    assert reasons == {
        (4, "InputError"): 1,
        (7, "TextError"): 3,
        (8, "CatalogError"): 3,
        (9, "InputError"): 3,
        (49, "InputError"): 3,
    }
    assert {each["reason"] for each in rejected if each["row"] == 7} == {"the text is bad"}
    assert json.loads((out / "manifest.json").read_text())["views"] == list(VIEWS)


def test_a_run_that_stops_goes_on_and_gives_the_same_files(small_batches: None, catalog: Path, tmp_path: Path) -> None:
    embed_catalog(catalog, job(tmp_path, "whole"), loader())
    with pytest.raises(KeyboardInterrupt):
        embed_catalog(catalog, job(tmp_path), loader(at="1-25", stop=KeyboardInterrupt))
    there = contents(tmp_path / "out")
    assert 0 < len(there) < len(contents(tmp_path / "whole"))
    assert not any("part-1" in name and "0000000020" in name for name in there)
    (tmp_path / "out" / ".part-2-x.parquet.dead.partial").write_bytes(b"half")
    seen = []

    def load(threads: int | None) -> Any:
        encoder = loader()(threads)
        encode = encoder.encode
        encoder.encode = lambda texts, images, errors: (seen.extend(texts), encode(texts, images, errors=errors))[1]
        return encoder

    report = embed_catalog(catalog, job(tmp_path), load)
    assert (report.rows, report.skipped) == (170, 6)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert "title 1-21" in seen
    assert "title 0-1" not in seen
    assert embed_catalog(catalog, job(tmp_path), lambda threads: pytest.fail("nothing to do")).skipped == 11


def test_damaged_and_lost_shards(catalog: Path, tmp_path: Path) -> None:
    embed_catalog(catalog, job(tmp_path), loader())
    good = contents(tmp_path / "out")
    first = sorted((tmp_path / "out").glob("part-0*.parquet"))[0]
    first.write_bytes(first.read_bytes()[:-20])
    assert embed_catalog(catalog, job(tmp_path), loader()).skipped == 10
    assert contents(tmp_path / "out") == good
    (tmp_path / "out" / "rejected" / first.name).unlink()
    with pytest.raises(CatalogError, match="17 embedded and 0 rejected"):
        embed_catalog(catalog, job(tmp_path), loader())


@pytest.mark.parametrize("folder", ["", "rejected"])
def test_damaged_bytes_give_no_wrong_vectors(tmp_path: Path, folder: str) -> None:
    rows = "".join(f"{number},{'bad' if number % 9 == 0 else 'red'} {number}\n" for number in range(200))
    (tmp_path / "shop.csv").write_text("id,title\n" + rows)
    embed_catalog(tmp_path / "shop.csv", job(tmp_path), loader())
    (path,) = (tmp_path / "out" / folder).glob("*.parquet")
    good, errors = path.read_bytes(), Counter[bool]()
    products, vectors = zip(*embedded_products(tmp_path / "shop.csv", tmp_path / "out").items, strict=True)
    for place in range(0, len(good), 29):
        path.write_bytes(good[:place] + bytes([good[place] ^ 1 << place % 8]) + good[place + 1 :])
        try:
            found = list(embedded_products(tmp_path / "shop.csv", tmp_path / "out").items)
            assert [product for product, _ in found] == list(products)
            np.testing.assert_equal([each for _, each in found], list(vectors))
            errors[False] += 1
        except (CatalogError, InputError):
            errors[True] += 1
    assert errors[True] > 5
    path.write_bytes(good.replace(b'"report"', b'"repart"'))
    assert embed_catalog(tmp_path / "shop.csv", job(tmp_path), loader()).skipped == bool(folder)
    assert path.read_bytes() == good


def test_a_shard_embedded_anew_keeps_no_rejected_rows_of_before(tmp_path: Path) -> None:
    (tmp_path / "shop.csv").write_text("id,title\n1,a bad one\n2,red\n")
    embed_catalog(tmp_path / "shop.csv", job(tmp_path), loader())
    (shard,) = (tmp_path / "out").glob("*.parquet")
    shard.unlink()
    (tmp_path / "shop.csv").write_text("id,title\n1,a good one\n2,red\n")
    assert embed_catalog(tmp_path / "shop.csv", job(tmp_path), loader()).embedded == 2
    assert list((tmp_path / "out" / "rejected").iterdir()) == []


def test_a_row_after_one_of_its_id_that_failed_is_embedded(tmp_path: Path) -> None:
    (tmp_path / "shop.csv").write_text("id,title\n7,a bad one\n7,red\n7,blue\n8,a bag\n8,bad\n")
    assert embed_catalog(tmp_path / "shop.csv", job(tmp_path), loader()).embedded == 2
    (path,) = (tmp_path / "out" / "rejected").iterdir()
    assert parquet.read_table(path)["error"].to_pylist() == ["TextError", "CatalogError", "CatalogError"]
    pairs = list(embedded_products(tmp_path / "shop.csv", tmp_path / "out").items)
    assert [product.title for product, _ in pairs] == ["red", "a bag"]
    expected = loader()(None).encode(["red"], [None], errors="return").embeddings[0]
    np.testing.assert_array_equal(pairs[0][1]["multimodal"], expected)


def test_row_groups_without_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vector_shards, "SHARD_ROWS", 5)
    table = pa.Table.from_pylist([{"id": str(number), "title": "red"} for number in range(30)])
    with parquet.ParquetWriter(tmp_path / "shop.parquet", table.schema) as file:
        for start, rows in ((0, 0), (0, 10), (0, 0), (10, 10), (20, 10), (0, 0), (0, 0)):
            file.write_table(table.slice(start, rows))
    report = embed_catalog(tmp_path / "shop.parquet", job(tmp_path), loader())
    assert (report.rows, report.embedded) == (30, 30)
    found = [product.id for product, _ in embedded_products(tmp_path / "shop.parquet", tmp_path / "out").items]
    assert found == [str(number) for number in range(30)]


def test_names_of_files(tmp_path: Path) -> None:
    (tmp_path / "shop").mkdir()
    for number, name in enumerate(["衣" * 80, "x" * 240 + "1", "x" * 240 + "2"]):
        (tmp_path / "shop" / f"{name}.csv").write_text(f"id,title\n{number},red\n3,bad\n")
    assert embed_catalog(tmp_path / "shop", job(tmp_path), loader()).embedded == 3
    found = [product.id for product, _ in embedded_products(tmp_path / "shop", tmp_path / "out").items]
    assert sorted(found) == ["0", "1", "2"]
    (tmp_path / os.fsdecode(b"caf\xe9.csv")).write_text("id,title\n1,red\n")
    with pytest.raises(CatalogError, match="not UTF-8"):
        plan_shards(tmp_path / os.fsdecode(b"caf\xe9.csv"), tmp_path / "out")


@pytest.mark.parametrize("pattern", ["shop", "shop/../shop", "shop/**/*.[cp]*"])
@pytest.mark.parametrize("out", ["shop", "shop/out", "shop/../shop/out"])
def test_vectors_in_the_folder_of_the_catalogue_are_no_part_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, out: str
) -> None:
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "a.csv").write_text("id,title\n1,red\n2,bad\n")
    monkeypatch.chdir(tmp_path)
    for skipped in (0, 1):
        assert embed_catalog(pattern, job(tmp_path, out), loader()) == BulkReport(1, skipped, 2, 1, 1)
    assert [product.id for product, _ in embedded_products(pattern, out).items] == ["1"]


def test_a_folder_of_other_vectors_is_refused(catalog: Path, tmp_path: Path) -> None:
    embed_catalog(catalog, job(tmp_path), loader())
    with pytest.raises(ModelMismatchError, match="fake-2"):
        embed_catalog(catalog, BulkJob(str(tmp_path / "out"), "fake-2", DIM, VIEWS), loader())
    with pytest.raises(ModelMismatchError):
        embed_catalog(catalog, job(tmp_path, views=("image",)), loader())
    with pytest.raises(ModelMismatchError, match="encoder is fake-1"):
        embed_catalog(catalog, BulkJob(str(tmp_path / "new"), "fake-2", DIM), loader())
    with pytest.raises(InputError, match="of no file of this catalogue"):
        embed_catalog(catalog / "b.csv", job(tmp_path), loader())
    (catalog / "b.csv").write_text("id,title\nc1,changed\n")
    with pytest.raises(InputError, match="was made from"):
        embed_catalog(catalog, job(tmp_path), loader())
    with pytest.raises(ConfigError, match="views"):
        job(tmp_path, views=("multimodal", "sound"))


def test_paths_that_are_not_utf8(catalog: Path, tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    with pytest.raises(InputError, match="is not UTF-8"):
        job(tmp_path, name)
    (catalog / "more").rename(tmp_path / name)
    with pytest.raises(CatalogError, match=r"cannot be read: .*surrogates"):
        plan_shards(tmp_path / name / "part-0.parquet", tmp_path / "out")


def test_one_run_at_a_time_writes_a_folder(catalog: Path, tmp_path: Path) -> None:
    def load(threads: int | None) -> Any:
        with pytest.raises(InputError, match=f"out is being written by process {os.getpid()} on .*one writer"):
            embed_catalog(catalog, job(tmp_path), loader())
        return loader()(threads)

    assert embed_catalog(catalog, job(tmp_path), load).skipped == 0
    assert embed_catalog(catalog, job(tmp_path), loader()).skipped == 11


def test_a_changed_word_makes_another_file(tmp_path: Path) -> None:
    text = "id,title\n" + "".join(f"l{number},red bag\n" for number in range(20_000))
    seen = set()
    for each in (text, text.replace("l9999,red", "l9999,tan"), text):
        (tmp_path / "b.csv").write_text(each)
        seen |= {shard.fingerprint for shard in plan_shards(tmp_path / "b.csv", tmp_path / "out")}
    assert len(seen) == 2


def test_new_files_are_added(catalog: Path, tmp_path: Path) -> None:
    embed_catalog(catalog, job(tmp_path), loader())
    (catalog / "z.csv").write_text("id,title\nz1,new\n")
    report = embed_catalog(catalog, job(tmp_path), loader())
    assert (report.shards, report.skipped, report.rows) == (12, 11, 171)


def test_catalogues(catalog: Path, tmp_path: Path) -> None:
    assert [
        (each.source, each.groups, each.first_row, each.rows)
        for each in plan_shards(catalog / "more/part-*", tmp_path / "out")
    ][:4] == [
        ("part-0.parquet", (0, 2), 0, 20),
        ("part-0.parquet", (2, 4), 20, 20),
        ("part-0.parquet", (4, 5), 40, 10),
        ("part-1.parquet", (0, 2), 0, 20),
    ]
    assert [each.source for each in plan_shards(catalog / "b.csv", tmp_path / "out")] == ["b.csv"]
    assert len(plan_shards(catalog, tmp_path / "out")) == 11
    names = [each.name for each in plan_shards(catalog, tmp_path / "out")]
    assert len(set(names)) == len(names)
    for hidden in (".part-9.parquet", "_part-9.parquet"):
        shutil.copy(catalog / "more" / "part-0.parquet", catalog / "more" / hidden)
    assert [each.name for each in plan_shards(catalog, tmp_path / "out")] == names
    assert {each.source for each in plan_shards(catalog / "more/*", tmp_path / "out")} == {
        f"part-{file}.parquet" for file in range(3)
    }
    assert {each.source for each in plan_shards(catalog / "more/_*", tmp_path / "out")} == {"_part-9.parquet"}
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    for wrong in ("empty", "missing.csv", "catalog/notes.txt", "broken.parquet", "none-*.csv"):
        with pytest.raises(CatalogError):
            plan_shards(tmp_path / wrong, tmp_path / "out")


def test_products_and_their_vectors_come_together(catalog: Path, tmp_path: Path) -> None:
    embed_catalog(catalog, job(tmp_path), loader())
    embedded = embedded_products(catalog, tmp_path / "out")
    assert (embedded.model_id, embedded.views, embedded.count) == ("fake-1", VIEWS, 157)
    pairs = list(embedded.items)
    assert len(pairs) == 157
    by_id = {product.id: (product, vectors) for product, vectors in pairs}
    product, vectors = by_id["2-4"]
    assert (product.attributes, Path(product.image).name) == ({"price": 4}, "4.jpg")
    expected = loader()(None).encode([None], [product.image], errors="return").embeddings[0]
    np.testing.assert_array_equal(vectors["image"], expected)
    assert set(by_id["2-6"][1]) == {"multimodal"}
    with pytest.raises(InputError, match="of no file of this catalogue"):
        embedded_products(catalog / "b.csv", tmp_path / "out")
    next((tmp_path / "out").glob("b-*.parquet")).unlink()
    with pytest.raises(CatalogError, match="missing"):
        embedded_products(catalog, tmp_path / "out")
    with pytest.raises(InputError, match="no folder of vectors"):
        embedded_products(catalog, tmp_path)
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(InputError, match="no folder of vectors"):
        embedded_products(catalog, tmp_path)


def test_command(catalog: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "vectors"
    (tmp_path / "shop.csv").write_text("id,title\n1,red shirt\n2,blue shirt\n,no id\n")
    assert main(["embed", str(tmp_path / "shop.csv"), "--out", str(out), "--views", "text,multimodal", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["rows"], report["embedded"], report["rejected"], report["shards"]) == (3, 2, 1, 1)
    with parquet.ParquetFile(next(out.glob("*.parquet"))) as file:
        table = file.read()
    assert table.schema.names == ["id", "text", "multimodal"]
    norms = np.linalg.norm(np.array(table["text"].to_pylist()), axis=1)
    np.testing.assert_allclose(norms, 1, atol=1e-3)
    assert main(["embed", str(tmp_path / "shop.csv"), "--out", str(out), "--views", "text,multimodal"]) == 0
    assert "1 shards, of which 1 were there" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["embed", str(tmp_path / "shop.csv"), "--out", str(tmp_path / "a.npz"), "--ray", "local"])


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Ray on this machine alone, with two CPUs, in a folder of its own."""
    if importlib.util.find_spec("ray") is None:  # not imported here: that must come after its environment is set
        pytest.skip("Ray is not installed (the ray extra)")
    folder = tempfile.mkdtemp(prefix="ray-")  # the paths of its sockets must be short
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")  # no token in the home folder
        patch.setenv("RAY_worker_niceness", "0")  # else its workers wait for all other tests
        with bulk_embed._cluster("local", num_cpus=2, object_store_memory=100 << 20, _temp_dir=folder) as ray:
            yield ray
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def small_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk_embed, "CPUS_PER_WORKER", 1)


def test_ray_gives_the_same_files(cluster: Any, small_workers: None, catalog: Path, tmp_path: Path) -> None:
    here = embed_catalog(catalog, job(tmp_path, "here"), loader())
    assert embed_catalog(catalog, job(tmp_path), loader(), ray="local") == here
    assert contents(tmp_path / "out") == contents(tmp_path / "here")
    assert cluster.is_initialized()  # a cluster that the program had is left to it
    assert cluster.nodes()[0]["NodeManagerAddress"] == "127.0.0.1"


@pytest.mark.parametrize(
    ("cpus", "expected"),
    [((2.0, 2.0), (2, 2)), ((6.0, 9.0), (4, 3)), ((3.0, 1.0), (3, 1)), ((0.0, 16.0), (4, 4)), ((0.0,), (1, 1))],
)
def test_a_worker_fits_on_a_machine(cpus: tuple[float, ...], expected: tuple[int, int]) -> None:
    dead = {"Alive": False, "Resources": {"CPU": 64.0}}
    nodes = [dead, *({"Alive": True, "Resources": {"CPU": each} if each else {}} for each in cpus)]
    assert bulk_embed._worker_size(nodes) == expected


def test_a_killed_worker_is_replaced(cluster: Any, small_workers: None, catalog: Path, tmp_path: Path) -> None:
    here = embed_catalog(catalog, job(tmp_path, "here"), loader())
    (tmp_path / "deaths").mkdir()
    deadly = loader(str(tmp_path / "deaths"), at="1-25", times=2)
    assert embed_catalog(catalog, job(tmp_path), deadly, ray="local") == here
    assert len(list((tmp_path / "deaths").iterdir())) == 2
    assert contents(tmp_path / "out") == contents(tmp_path / "here")


def test_errors_of_workers_are_ours(cluster: Any, catalog: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelMismatchError, match="encoder is fake-1"):
        embed_catalog(catalog, BulkJob(str(tmp_path / "out"), "fake-2", DIM), loader(), ray="local")


def test_a_shard_that_kills_every_worker_ends_the_run(
    cluster: Any, catalog: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk_embed, "RETRIES", 1)
    (tmp_path / "deaths").mkdir()
    deadly = loader(str(tmp_path / "deaths"), at="c3", times=100)
    with pytest.raises(BackendError, match=r"workers died at .*b\.csv"):
        embed_catalog(catalog / "b.csv", job(tmp_path), deadly, ray="local")
    assert len(list((tmp_path / "deaths").iterdir())) == 2


def test_a_model_that_kills_every_worker_ends_the_run(
    cluster: Any, catalog: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk_embed, "RETRIES", 1)
    (tmp_path / "deaths").mkdir()

    def load(threads: int | None, deaths: str = str(tmp_path / "deaths")) -> Any:
        import os
        import signal
        from pathlib import Path

        (Path(deaths) / str(os.getpid())).touch()
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(BackendError, match=r"workers died at .*b\.csv"):
        embed_catalog(catalog / "b.csv", job(tmp_path), load, ray="local")
    assert len(list((tmp_path / "deaths").iterdir())) == 2
