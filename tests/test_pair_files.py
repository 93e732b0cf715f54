"""Pairs streamed from Parquet: order, seeking, bounded reading, rows that cannot be used, and a run on them."""

from __future__ import annotations

import io
import itertools
from collections import Counter
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="training needs torch")
pytest.importorskip("transformers", reason="training needs transformers")
pytest.importorskip("tensorboard", reason="training writes TensorBoard scalars")
pyarrow = pytest.importorskip("pyarrow", reason="pair files are Parquet")

from pyarrow import parquet  # noqa: E402

from uniecs.errors import CatalogError, ConfigError, TrainingError  # noqa: E402
from uniecs.trainer import pair_files  # noqa: E402
from uniecs.trainer.checkpoint import Checkpoint  # noqa: E402
from uniecs.trainer.distributed import World  # noqa: E402
from uniecs.trainer.loop import Run  # noqa: E402
from uniecs.trainer.pair_files import PairFiles  # noqa: E402
from uniecs.trainer.settings import (  # noqa: E402
    DataSettings,
    InitSettings,
    OptimizerSettings,
    TrainConfig,
    resolve_paths,
)

ALONE = World(0, 1, torch.device("cpu"))
PATTERN = "pairs-*.parquet"


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (6, 8), (number % 256, number * 7 % 256, 128)).save(buffer, "PNG")
    return buffer.getvalue()


def row(number: int, **changes: Any) -> dict[str, Any]:
    sides = {"trigger": f"a{number}", "recall": f"b{number}"}
    record: dict[str, Any] = {f"{side}_id": name for side, name in sides.items()}
    record |= {f"{side}_text": f"title of {name}" for side, name in sides.items()}
    record |= {f"{side}_image": {"bytes": png(number), "path": None} for side in sides}
    return record | changes


def write(path: Path, rows: list[dict[str, Any]], row_group_size: int = 4) -> None:
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=row_group_size)


@pytest.fixture
def pattern(tmp_path: Path) -> str:
    """Three files of 10, 7 and 13 pairs, in row groups of four: 3 + 2 + 4 row groups."""
    start = 0
    for name, rows in (("a", 10), ("b", 7), ("c", 13)):
        write(tmp_path / f"pairs-{name}.parquet", [row(i) for i in range(start, start + rows)])
        start += rows
    return str(tmp_path / PATTERN)


def triggers(files: PairFiles, steps: int, start: int = 0, seed: int = 0, batch_pairs: int = 6) -> list[list[str]]:
    return [[one.id for one, _ in each] for each in itertools.islice(files.batches(batch_pairs, seed, start), steps)]


def test_an_epoch_gives_every_pair_once_in_another_order_each_time(pattern: str) -> None:
    files = PairFiles(pattern, shuffle_pairs=8)
    assert files.described() == {"pairs": 30}
    epochs = triggers(files, 10)
    assert Counter(itertools.chain(*epochs[:5])) == Counter(f"a{i}" for i in range(30))
    assert Counter(itertools.chain(*epochs[5:])) == Counter(f"a{i}" for i in range(30))
    assert epochs[:5] != epochs[5:]
    assert triggers(files, 5, seed=1) != epochs[:5]
    for one, two in next(iter(files.batches(6, 0, 0))):
        assert (one.id[1:], one.title, one.image) == (two.id[1:], f"title of {one.id}", png(int(one.id[1:])))


def test_the_order_mixes_the_files(pattern: str) -> None:
    order = [int(name[1:]) for batch in triggers(PairFiles(pattern, shuffle_pairs=30), 5) for name in batch]
    file = [0 if number < 10 else 1 if number < 17 else 2 for number in order]
    assert sum(a != b for a, b in itertools.pairwise(file)) > 10
    assert order != sorted(order)


@pytest.mark.parametrize("batch_pairs", [4, 7], ids=["4", "7, which leaves two rows of an epoch out"])
def test_any_step_starts_without_those_before(pattern: str, batch_pairs: int) -> None:
    files = PairFiles(pattern, shuffle_pairs=8)
    whole = triggers(files, 16, batch_pairs=batch_pairs)
    for start in range(16):
        assert triggers(files, 16 - start, start, batch_pairs=batch_pairs) == whole[start:]


def test_two_windows_are_read_at_most(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    whole = pair_files._read

    def counting(window: Any) -> Any:
        read.append(sum(group.rows for group in window))
        return whole(window)

    monkeypatch.setattr(pair_files, "_read", counting)
    batches = PairFiles(pattern, shuffle_pairs=8).batches(2, 0, 0)
    assert isinstance(batches, Generator)
    next(batches)
    assert len(read) <= 2
    assert max(read) < 8 + 4
    batches.close()  # and with it the reader
    read.clear()
    next(PairFiles(pattern, shuffle_pairs=8).batches(2, 0, 14))  # the last step of an epoch: its last window alone
    assert len(read) == 1


def test_rows_that_cannot_be_used_are_stood_in_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lacking = [
        {"recall_text": None},
        {"trigger_text": ""},
        {"trigger_text": " "},
        {"recall_image": None},
        {"trigger_image": {"bytes": None, "path": None}},
        {"recall_image": {"bytes": None, "path": " "}},
    ]
    rows = [row(0), *(row(i, **changes) for i, changes in enumerate(lacking, 1)), row(7)]
    write(tmp_path / "pairs-a.parquet", rows)
    (batch,) = triggers(PairFiles(str(tmp_path / PATTERN), 8), 1, batch_pairs=8)
    assert set(batch) == {"a0", "a7"}
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 6
    for i, (column,) in enumerate(lacking, 1):
        (line,) = (each for each in told if f"row {i} of" in each)
        assert f"has no {column}; expected" in line
    write(tmp_path / "pairs-a.parquet", [row(0, recall_text=None), row(1, recall_text=None)])
    with pytest.raises(TrainingError, match="no pair of a batch has rows that can be used"):
        triggers(PairFiles(str(tmp_path / PATTERN), 8), 1, batch_pairs=2)


def test_a_row_that_is_not_utf8_is_stood_in_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = pyarrow.Table.from_pylist([row(0), row(1), row(2)])
    texts = pyarrow.array([b"red", b"r\xe9d", b"blue"]).view(pyarrow.string())
    place = table.schema.get_field_index("trigger_text")
    parquet.write_table(table.set_column(place, "trigger_text", texts), tmp_path / "pairs-a.parquet")
    (batch,) = triggers(PairFiles(str(tmp_path / PATTERN), 8), 1, batch_pairs=3)
    assert set(batch) == {"a0", "a2"}
    assert "left out: row 1 of" in (told := capsys.readouterr().err) and "can't decode byte 0xe9" in told


def test_unusable_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "pairs-a.parquet"
    with pytest.raises(CatalogError, match="no file matches"):
        PairFiles(str(tmp_path / PATTERN), 8)
    path.write_bytes(b"PAR1 is not enough")
    with pytest.raises(CatalogError, match="cannot be read as Parquet"):
        PairFiles(str(tmp_path / PATTERN), 8)
    parquet.write_table(pyarrow.table({"trigger_text": ["a"]}), path)
    with pytest.raises(CatalogError, match="no column 'trigger_image'"):
        PairFiles(str(tmp_path / PATTERN), 8)
    write(path, [row(i) for i in range(9)], row_group_size=9)
    with pytest.raises(CatalogError, match="row group of 9 rows, more than data"):
        PairFiles(str(tmp_path / PATTERN), 8)
    write(path, [row(i) for i in range(3)])
    with pytest.raises(TrainingError, match="hold 3 pairs; a batch needs 4"):
        triggers(PairFiles(str(tmp_path / PATTERN), 8), 1, batch_pairs=4)


@pytest.fixture
def config(pattern: str, tmp_path: Path, tiny_checkpoint: Path) -> TrainConfig:
    return TrainConfig(
        model="tiny",
        output=str(tmp_path / "run"),
        data=DataSettings(pair_files=pattern, shuffle_pairs=8),
        init=InitSettings(tokenizer=str(tiny_checkpoint)),
        optimizer=OptimizerSettings(steps=7, batch_pairs=6, warmup_steps=2, checkpoint_every=3, precision="fp32"),
    )


def test_a_run_on_pair_files_resumes_to_the_same_weights(
    config: TrainConfig, resumes_alike: Callable[[TrainConfig], Checkpoint]
) -> None:
    provenance = resumes_alike(config).provenance
    assert provenance["pairs"] == 30
    assert provenance["train_config"]["data"]["pair_files"] == PATTERN


def test_resuming_on_other_pairs_is_refused(config: TrainConfig, tmp_path: Path) -> None:
    Run(config, ALONE, None).save(tmp_path / "run")
    Run(config, ALONE, tmp_path / "run")
    write(tmp_path / "pairs-c.parquet", [row(i) for i in range(6)])
    with pytest.raises(TrainingError, match=r"run on other data: {'pairs': 30}, now {'pairs': 23}; give it the same"):
        Run(config, ALONE, tmp_path / "run")


def test_a_photo_that_cannot_be_read_is_stood_in_for(
    config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = {"bytes": b"no picture", "path": None}
    write(tmp_path / "pairs-a.parquet", [row(0), row(1, recall_image=broken), row(2)])
    settings = replace(config.data, pair_files=str(tmp_path / "pairs-a.parquet"))
    small = replace(config, data=settings, optimizer=replace(config.optimizer, batch_pairs=3))
    batch = next(iter(Run(small, ALONE, None).batches()))
    assert "left out: the pair of a1 and b1" in capsys.readouterr().err
    assert len(batch) == 6
    lengths = batch.attention_mask.sum(1)
    assert len({tuple(ids) for ids in batch.input_ids[:3].tolist()}) == 2, lengths
    assert batch.has_image is None


def test_a_folder_may_have_a_name_like_a_pattern(tmp_path: Path) -> None:
    folder = tmp_path / "run [1]"
    folder.mkdir()
    write(folder / "pairs-a.parquet", [row(0)])
    for given in (PATTERN, f"../*/{PATTERN}"):
        table = {"pair_files": given}
        resolve_paths(table, ("pair_files",), folder)
        assert PairFiles(table["pair_files"], 8).rows == 1


def test_data_is_a_catalog_or_pair_files() -> None:
    for bad in (
        {"catalog": "a.csv"},
        {"catalog": "a.csv", "pairs": "p.csv", "group_columns": ("a",)},
        {"catalog": "a.csv", "pair_files": "p"},
        {"pairs": "p.csv"},
        {},
    ):
        with pytest.raises(ConfigError, match="data needs"):
            DataSettings(**bad)  # type: ignore[arg-type]
