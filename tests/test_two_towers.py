"""The Beyond Text recipe: queries against products in two stages, through the trainer's own loop."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="training needs torch")
pytest.importorskip("transformers", reason="training needs transformers")
pytest.importorskip("tensorboard", reason="training writes TensorBoard scalars")

from uniecs.benchmark_sets import evaluate_tasks, query_tasks, read_queries  # noqa: E402
from uniecs.catalog import Product  # noqa: E402
from uniecs.cli import main  # noqa: E402
from uniecs.errors import CatalogError, ConfigError, TrainingError  # noqa: E402
from uniecs.evaluation import read_products  # noqa: E402
from uniecs.trainer.checkpoint import load_checkpoint  # noqa: E402
from uniecs.trainer.distributed import World  # noqa: E402
from uniecs.trainer.embedder import TorchEncoder  # noqa: E402
from uniecs.trainer.loop import Run, train  # noqa: E402
from uniecs.trainer.pairs import QueryPairs, pairs_from_queries  # noqa: E402
from uniecs.trainer.settings import DataSettings, InitSettings, OptimizerSettings, TrainConfig  # noqa: E402

ALONE = World(0, 1, torch.device("cpu"))


@pytest.fixture
def catalog(tmp_path: Path, draw_catalog: Callable[[Path], list[dict[str, Any]]]) -> Path:
    """The drawn catalogue, and queries.csv of "COLOUR KIND", which two products answer."""
    rows = [f"{row['colour']} {row['kind']},{row['id']}" for row in draw_catalog(tmp_path)]
    (tmp_path / "queries.csv").write_text("\n".join(("query,product_id", *rows)))
    return tmp_path / "products.jsonl"


@pytest.fixture
def stage_1(catalog: Path, tmp_path: Path, tiny_checkpoint: Path) -> TrainConfig:
    return TrainConfig(
        model="tiny",
        output=str(tmp_path / "stage-1"),
        data=DataSettings(catalog=str(catalog), queries=str(tmp_path / "queries.csv")),
        init=InitSettings(tokenizer=str(tiny_checkpoint)),
        optimizer=OptimizerSettings(
            steps=120,
            batch_pairs=6,
            learning_rate=2e-3,
            warmup_steps=5,
            checkpoint_every=120,
            precision="fp32",
            losses=("q2t", "q2v"),
            beta=0.0,
        ),
    )


@pytest.fixture
def stage_2(stage_1: TrainConfig, tmp_path: Path) -> TrainConfig:
    settings = replace(stage_1.optimizer, losses=("q2f",), freeze_encoders=True, steps=20)
    init = InitSettings(checkpoint=stage_1.output)
    return replace(stage_1, output=str(tmp_path / "stage-2"), init=init, optimizer=settings)


def test_a_frequent_query_does_not_slow_an_epoch_down() -> None:
    looked_up = 0

    class Counted(str):
        def __hash__(self) -> int:
            nonlocal looked_up
            looked_up += 1
            return super().__hash__()

    # Half of the rows are of one query, as in a log of searches.
    rows = [(Counted("dress" if i % 2 else f"q{i}"), i) for i in range(2000)]
    batches = QueryPairs([], rows)._epoch(0, 8, seed=0)
    assert len({row for batch in batches for row in batch}) == 8 * len(batches) > 1000
    assert looked_up < 20 * len(rows)


def test_a_batch_has_no_query_and_no_product_twice() -> None:
    products = [Product(str(i), "t", b"") for i in range(12)]
    rows = [(f"q{i % 5}", str(i)) for i in range(12)] + [("q0", "1"), ("q9", "1"), ("q8", "gone")]
    source = pairs_from_queries(products, rows)
    assert source.described() == {"products": 12, "query_products": 14, "queries": 6}
    for batch in islice(source.batches(3, seed=0, start=0), 12):
        assert len({one.title for one, _ in batch}) == len({two.id for _, two in batch}) == 3
        assert all(one.image is None for one, _ in batch)
        assert all((one.title, two.id) in rows for one, two in batch)
    first = list(islice(source.batches(3, seed=0, start=0), 6))
    assert first[2:] == list(islice(source.batches(3, seed=0, start=2), 4))
    with pytest.raises(TrainingError, match="do not fill a batch of 7"):
        next(iter(source.batches(7, seed=0, start=0)))
    with pytest.raises(TrainingError, match="no row of the queries"):
        pairs_from_queries(products, [("a", "gone")])


def test_two_stages_find_products_by_words(stage_1: TrainConfig, stage_2: TrainConfig, catalog: Path) -> None:
    products, _ = read_products(catalog)
    tasks = query_tasks(products, read_queries(catalog.with_name("queries.csv")))
    assert [len(task.queries) for task in tasks] == [12, 12, 12]
    assert all(len(answers) == 2 for answers in tasks[2].answers)

    def recall(run: Path) -> dict[str, float]:
        checkpoint = load_checkpoint(run)
        figures = evaluate_tasks(TorchEncoder(checkpoint.model, checkpoint.tokenizer_json), tasks)
        return {name: row["5"] for name, row in figures.items()}

    one = recall(train(stage_1))
    two = recall(train(stage_2))
    assert one["t>t"] > 0.9
    assert one["t>v"] > 0.9  # a colour has four products, two of which answer
    assert two["t>vt"] > 0.9


@pytest.mark.parametrize("micro_products", [None, 4])
def test_stage_2_trains_the_fusion_alone(
    stage_1: TrainConfig, stage_2: TrainConfig, micro_products: int | None
) -> None:
    train(replace(stage_1, optimizer=replace(stage_1.optimizer, steps=2)))
    run = Run(replace(stage_2, optimizer=replace(stage_2.optimizer, micro_products=micro_products)), ALONE, None)
    before = {name: each.detach().clone() for name, each in run.model.named_parameters()}
    batch = next(iter(run.batches()))
    assert batch.has_image is not None
    assert batch.has_image.tolist() == [False] * 6 + [True] * 6
    run.train_step(batch)
    changed = {name for name, each in run.model.named_parameters() if not torch.equal(each, before[name])}
    assert changed
    assert all(name.startswith("fusion.") for name in changed)


def test_a_photo_reaches_the_query_by_the_image_loss_alone(stage_1: TrainConfig) -> None:
    run = Run(stage_1, ALONE, None)
    run.stepper.losses = ("q2t",)
    run.stepper.backward(next(iter(run.batches())), torch.ones(1))
    assert all(float(each.grad.abs().max()) == 0 for each in run.model.image_encoder.parameters())
    run.stepper.losses = ("q2v",)
    run.stepper.backward(next(iter(run.batches())), torch.ones(1))
    assert any(float(each.grad.abs().max()) > 0 for each in run.model.image_encoder.parameters())


@pytest.mark.parametrize(
    ("optimizer", "data", "match"),
    [
        ({"losses": ("q2t", "v2t")}, {}, "do not mix"),
        ({"losses": ("v2t",)}, {}, r"go with data\.queries"),
        ({}, {"queries": None, "group_columns": ("colour",)}, r"go with data\.queries"),
        ({}, {"group_columns": ("colour",)}, "data needs"),
    ],
)
def test_queries_and_their_losses_go_together(
    stage_1: TrainConfig, optimizer: dict[str, Any], data: dict[str, Any], match: str
) -> None:
    with pytest.raises(ConfigError, match=match):
        replace(stage_1, optimizer=replace(stage_1.optimizer, **optimizer), data=replace(stage_1.data, **data))


def test_a_checkpoint_brings_everything(stage_1: TrainConfig, tiny_checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match="nothing beside it"):
        InitSettings(checkpoint="a", tokenizer="b")
    other = replace(stage_1, fusion="score", init=InitSettings(checkpoint=str(tiny_checkpoint)))
    with pytest.raises(TrainingError, match="another network"):
        Run(other, ALONE, None)


def test_faulty_query_files_are_refused(tmp_path: Path, catalog: Path) -> None:
    path = tmp_path / "q.csv"
    path.write_text("query,product_id\nred shirt,\n")
    with pytest.raises(CatalogError, match="row 0"):
        read_queries(path)
    path.write_text("query,product_id\nred shirt,a\nrob\u00e9,b\n", encoding="latin-1")
    with pytest.raises(CatalogError, match=r"row 1 of .* cannot be used \(is the file UTF-8"):
        read_queries(path)
    path.write_text("query,product_id\n")
    with pytest.raises(CatalogError, match="no rows"):
        read_queries(path)
    products, _ = read_products(catalog)
    with pytest.raises(CatalogError, match="names product 'x'"):
        query_tasks(products, [("red shirt", "x")])


def test_the_command_line_evaluates_queries(
    tiny_checkpoint: Path, catalog: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    queries = str(catalog.with_name("queries.csv"))
    assert main(["eval", str(tiny_checkpoint), "--catalog", str(catalog), "--queries", queries, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report["tasks"]) == {"t>t", "t>v", "t>vt"}
    with pytest.raises(SystemExit):
        main(["eval", str(tiny_checkpoint), "--catalog", str(catalog), "--queries", queries, "--pairs", queries])


ATTRIBUTE_QUERIES = str(Path(__file__).parents[1] / "benchmarks" / "attribute_queries.py")


def test_queries_are_derived_from_attributes() -> None:
    derive = runpy.run_path(ATTRIBUTE_QUERIES)["derive"]
    products = [
        Product(str(i), "t", b"", {"colour": colour, "kind": "Shirts"} if colour else {"kind": "Shirts"})
        for i, colour in enumerate(("Red", "Blue", None))
    ]
    rows = derive(products, ["colour", "kind"], each=20, seed=0)
    assert set(rows) == {("red shirts", "0"), ("shirts", "0"), ("blue shirts", "1"), ("shirts", "1")}
    assert len(rows) == 4
    assert rows == derive(products, ["colour", "kind"], each=20, seed=0)


@pytest.mark.parametrize(("catalog", "out"), [("none.csv", "q.csv"), ("p.csv", "none/q.csv")])
def test_files_that_cannot_be_used_are_one_line(
    catalog: str, out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "p.csv").write_text("id,title,image,colour\na,shirt,a.png,Red\n")
    arguments = [str(tmp_path / catalog), "--columns", "colour", "--out", str(tmp_path / out)]
    monkeypatch.setattr("sys.argv", ["attribute_queries.py", *arguments])
    with pytest.raises(SystemExit, match=r"^attribute_queries: error: .*none"):
        runpy.run_path(ATTRIBUTE_QUERIES)["main"]()
