"""A sweep: variants of a base configuration, results kept by configuration, and the report."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="training needs torch")
pytest.importorskip("transformers", reason="training needs transformers")
pytest.importorskip("tensorboard", reason="training writes TensorBoard scalars")
pytest.importorskip("sklearn", reason="the TF-IDF baseline needs scikit-learn")

from uniecs.cli import main  # noqa: E402
from uniecs.errors import CatalogError, ConfigError  # noqa: E402
from uniecs.evaluation import TASKS  # noqa: E402
from uniecs.trainer import sweep as sweeps  # noqa: E402
from uniecs.trainer.distributed import World  # noqa: E402
from uniecs.trainer.loop import Run  # noqa: E402
from uniecs.trainer.sweep import finished, load_sweep, markdown_report, merged, run_key, run_sweep  # noqa: E402


@pytest.fixture
def path(tmp_path: Path, tiny_checkpoint: Path, draw_catalog: Callable[[Path], list[dict[str, Any]]]) -> Path:
    """The drawn catalogue, the pair of each of its groups, and a sweep of two variants and two seeds."""
    ids = [row["id"] for row in draw_catalog(tmp_path)]
    pairs = [f"{one},{two}" for one, two in zip(ids[0::2], ids[1::2], strict=True)]
    (tmp_path / "pairs.csv").write_text("\n".join(("trigger_id,recall_id", *pairs)))
    file = tmp_path / "some.toml"
    file.write_text(
        f'''
        runs = "runs"
        results = "results"
        seeds = [0, 1]
        [base]
        model = "tiny"
        [base.data]
        catalog = "products.jsonl"
        group_columns = ["colour", "kind"]
        [base.validation]
        catalog = "products.jsonl"
        pairs = "pairs.csv"
        every = 1000
        [base.init]
        tokenizer = "{tiny_checkpoint}"
        [base.optimizer]
        steps = 3
        batch_pairs = 4
        precision = "fp32"
        [variants.whole]
        [variants."no gate"]
        fusion = "additive"
        optimizer = {{ losses = ["v2t", "pml"], beta = 0.0 }}
        '''
    )
    return file


def test_variants_change_only_what_they_name(path: Path) -> None:
    sweep = load_sweep(path)
    whole, changed = sweep.variants["whole"], sweep.variants["no gate"]
    assert (whole.fusion, changed.fusion) == ("gated", "additive")
    assert changed.optimizer.losses == ("v2t", "pml")
    assert (whole.optimizer.beta, changed.optimizer.beta) == (0.5, 0.0)
    assert changed.optimizer.steps == 3
    assert changed.data == whole.data
    assert whole.data.catalog == str(path.parent / "products.jsonl")
    assert merged({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}, "x") == {"a": {"b": 3, "c": 2}}


def test_a_key_stands_for_the_configuration_alone(path: Path, tmp_path: Path) -> None:
    one = load_sweep(path)
    moved = tmp_path / "elsewhere" / "some.toml"
    moved.parent.mkdir()
    moved.write_text(path.read_text())
    two = load_sweep(moved)
    assert run_key(one.run_of("whole", 0)) == run_key(two.run_of("whole", 0))
    keys = {run_key(one.run_of(variant, seed)) for variant in one.variants for seed in one.seeds}
    assert len(keys) == 4


def test_keys_of_old_runs_stay() -> None:
    sweep = load_sweep(Path(__file__).parents[1] / "trainer" / "configs" / "ablations.toml")
    assert len(finished(sweep)) == len(sweep.variants) * len(sweep.seeds) > 0


def test_finished_runs_are_kept(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = load_sweep(path)
    results = run_sweep(sweep)
    assert [(each["variant"], each["seed"]) for each in results] == [
        ("whole", 0), ("whole", 1), ("no gate", 0), ("no gate", 1)
    ]  # fmt: skip
    assert results[0]["config"]["seed"] == 0
    assert results[0]["parameters"] > results[2]["parameters"]
    assert all(0 <= each["tasks"]["v>vt"]["10"] <= 1 for each in results)
    lost = sweep.results / f"{results[3]['key']}.json"
    lost.unlink()
    assert len(finished(sweep)) == 3

    def only_the_lost(config: object, **_: object) -> Path:
        assert run_key(config) == results[3]["key"]  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(sweeps, "train", only_the_lost)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(sweep)
    assert not lost.exists()


@pytest.mark.parametrize("damage", ["half", "empty", "list", "other", "not text"])
def test_a_damaged_result_stops_a_sweep_before_its_first_run(
    path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    sweep = load_sweep(path)
    monkeypatch.setattr(sweeps, "train", None)  # which would be a TypeError
    file = sweep.result_of("no gate", 1)
    file.parent.mkdir()
    tasks = {task: {"10": 0.5} for task in TASKS}
    whole = json.dumps({"key": file.stem, "precision": "fp32", "tasks": tasks})
    file.write_text(whole)
    assert len(finished(sweep)) == 1
    other = whole.replace(file.stem, "0" * 16)
    file.write_bytes(
        {"half": whole.encode()[:60], "empty": b"", "list": b"[]", "other": other.encode(), "not text": b"\xff"}[damage]
    )
    with pytest.raises(ConfigError, match=rf"{file.stem}\.json is no.*remove it"):
        run_sweep(sweep)


def test_a_report_that_cannot_be_written_stops_a_sweep_before_its_first_run(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeps, "train", None)  # which would be a TypeError
    assert main(["sweep", str(path), "--report", str(path.parent / "none" / "report.md")]) == 1
    assert "cannot be written" in capsys.readouterr().err


def test_a_wrong_validation_stops_a_sweep_before_its_first_run(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_text(path.read_text() + '[variants.last]\nvalidation = { pairs = "none.csv" }\n')
    monkeypatch.setattr(sweeps, "train", None)  # which would be a TypeError
    with pytest.raises(CatalogError, match=r"none\.csv"):
        run_sweep(load_sweep(path))


def test_an_interrupted_run_goes_on(path: Path) -> None:
    sweep = load_sweep(path)
    config = sweep.run_of("whole", 0)
    run = Run(config, World(0, 1, torch.device("cpu")), None)
    for _, batch in zip(range(2), run.batches(), strict=False):
        run.train_step(batch)
    run.save(Path(config.output))
    results = run_sweep(sweep)
    again = load_sweep(path)
    assert (Path(config.output) / "checkpoints" / "00000003").is_dir()
    assert results == finished(again)


def test_the_report_is_the_mean_over_the_seeds(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "report.md"
    assert main(["sweep", str(path), "--report", str(out)]) == 0
    report = out.read_text()
    captured = capsys.readouterr()
    assert captured.out == report and "%|" not in captured.err
    sweep = load_sweep(path)
    runs = [each for each in finished(sweep) if each["variant"] == "no gate"]
    mean = sum(each["tasks"]["t>t"]["10"] for each in runs) / 2
    (row,) = [line for line in report.splitlines() if line.startswith("| no gate | 2 |")]
    assert row.split(" | ")[2] == f"{mean:.3f}"
    assert "| tfidf |" in report
    assert markdown_report(sweep, runs).count("| no gate |") == 1
    assert "| whole |" not in markdown_report(sweep, runs)
    one, two = ({**each, "precision": precision} for each, precision in zip(runs, ("fp32", "bf16"), strict=True))
    assert "| no gate (bf16, fp32) | 2 |" in markdown_report(sweep, [one, two])


def test_files_of_one_name_in_two_folders_are_not_one_run(path: Path) -> None:
    text = path.read_text()
    path.write_text(text + '[variants.half]\ndata = { catalog = "half/products.jsonl" }\n')
    with pytest.raises(ConfigError, match="'whole' and 'half' differ in the folders"):
        load_sweep(path)
    path.write_text(text + '[variants.half]\ndata = { catalog = "half.jsonl" }\n[variants.again]\noutput = "x"\n')
    sweep = load_sweep(path)
    keys = {name: run_key(sweep.run_of(name, 0)) for name in sweep.variants}
    assert keys["half"] != keys["whole"] == keys["again"]


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("[base]", "[basis]", "unknown key 'basis'"),
        ("[variants.", "[others.", "needs a table `base`"),
        ("seeds = [0, 1]", "seeds = []", "at least one"),
        ("seeds = [0, 1]", "seeds = [0, 0]", "none of them twice"),
        ("seeds = [0, 1]", "speed = 1", "unknown key 'speed'"),
        ('fusion = "additive"', 'fusion = "none"', "expected one of"),
        ("[variants.whole]", "[variants]\nwhole = 3", "expected a table"),
        ("[variants.whole]", "[variants.whole]\nseed = 3", "runs with all of `seeds`"),
        ("[variants.whole]", '[variants.whole]\nmodel = "huge"', "model is 'huge'"),
        ("[base.validation]", "[base.other]", "unknown key 'other'"),
    ],
)
def test_faulty_files_are_refused(path: Path, old: str, new: str, match: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(ConfigError, match=match):
        load_sweep(path)
