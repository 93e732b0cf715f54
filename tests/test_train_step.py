"""The training benchmark: its stages are the trainer's step, its formulas count what runs, and its report adds up."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

torch = pytest.importorskip("torch", reason="training needs torch")
pytest.importorskip("transformers", reason="training needs transformers")
pytest.importorskip("tensorboard", reason="training writes TensorBoard scalars")

from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from uniecs.config import MODELS  # noqa: E402
from uniecs.trainer.loop import fast_attention  # noqa: E402
from uniecs.trainer.model import UniECS  # noqa: E402
from uniecs.trainer.settings import load_train_config  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
TINY = MODELS["tiny"]
CPU = torch.device("cpu")


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_step", ROOT / "benchmarks" / "train_step.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


bench = load_script()


def test_the_report_adds_up() -> None:
    report = bench.measure(TINY, CPU, "fp32", pairs=3, rounds=2, global_pairs=8)
    assert list(report["shares"]) == ["data", *bench.STAGES]
    assert all(share > 0 for share in report["shares"].values())
    assert sum(report["shares"].values()) == pytest.approx(1, abs=1e-3)
    medians = report["median_s"]
    assert report["stages_over_step"] == pytest.approx(
        sum(medians[name] for name in bench.STAGES) / medians["step"], 1e-2
    )
    assert report["fraction_of_matmul_rate"] >= 0
    assert report["step_operations"] == 3 * 6 * sum(bench.forward_operations(TINY).values())


def test_shares_of_the_large_run_scale_the_networks_alone() -> None:
    medians = dict.fromkeys(("data", "step", *bench.STAGES), 1.0) | {"global_losses": 3.0, "global_weighting": 1.0}
    share = bench.shares(medians, pairs=2, global_pairs=1024)["losses_and_weighting_over_step_of_1024_pairs_on_8"]
    assert share == pytest.approx(4 / (4 + 3 * 64 + 1), abs=1e-4)


def test_the_stages_are_the_trainers_step() -> None:
    with bench.batch_maker(TINY, 3) as make:
        batch = make()
    assert batch.pixel_values.shape == (6, 3, 32, 24)
    assert batch.input_ids.shape == (6, TINY.preprocessing.max_tokens)
    whole, staged = (bench.Bench(TINY, CPU, "fp32") for _ in range(2))
    before = [each.detach().clone() for each in whole.model.parameters()]
    with fast_attention(whole.model), fast_attention(staged.model):
        whole.whole_step(batch)
        staged.staged_step(batch, bench.Clock(CPU))
    moved = [not torch.equal(a, b) for a, b in zip(before, whole.model.parameters(), strict=True)]
    assert sum(moved) > len(moved) / 2
    for (name, one), two in zip(whole.model.named_parameters(), staged.model.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-4, atol=1e-6, msg=name)
    torch.testing.assert_close(whole.weights, staged.weights)


def test_operations_are_those_that_run() -> None:
    """Against torch's own counter, part by part, at two batch sizes: the slope is one product."""
    model, counted = UniECS(TINY), []
    for products in (1, 2):
        with fast_attention(model), torch.no_grad(), FlopCounterMode(display=False) as counter:
            ids = torch.ones(products, TINY.preprocessing.max_tokens, dtype=torch.int64)
            model(torch.zeros(products, 3, 32, 24), ids, ids)
        counts = counter.get_flop_counts()
        counted.append({name: sum(counts[f"UniECS.{name}"].values()) for name in bench.NETWORKS})
    slope = {name: counted[1][name] - counted[0][name] for name in bench.NETWORKS}
    assert slope == bench.forward_operations(TINY)


def test_operations_of_a_vit_b16() -> None:
    """17.5 G multiply-adds at 224 px are the published figure for ViT-B/16."""
    assert bench.forward_operations(MODELS["base"])["image_encoder"] == pytest.approx(2 * 17.5e9, rel=0.02)


def test_saved_bytes_of_a_linear_layer_and_a_relu() -> None:
    """Saved are the layer's input, 5 x 3 floats, and the ReLU's output, 5 x 4; the weight is a parameter."""
    layer, x = torch.nn.Linear(3, 4), torch.randn(5, 3)
    assert bench.saved_bytes(lambda: torch.relu(layer(x)), list(layer.parameters())) == 4 * 5 * (3 + 4)
    assert bench.saved_bytes(lambda: torch.relu(layer(x))) >= 4 * 5 * (3 + 4)


def test_the_plan_counts_the_network() -> None:
    parameters = sum(each.numel() for each in UniECS(TINY).parameters())
    saved = bench.activation_bytes(TINY, "fp32")
    assert 0 < saved["checkpointed"] < saved["whole"]
    assert saved["weight_copies"] < 1e6
    assert bench.activation_bytes(TINY, "bf16")["whole"] < saved["whole"]
    # Four and more matrices of N x N floats.
    assert bench.loss_bytes(TINY, 128) > 4 * 128 * 128 * 4
    text = bench.plan(TINY)
    assert f"{parameters / 1e6:.4g} M parameters" in text
    assert "gradient caching, pieces of 32" in text


def test_the_papers_run_is_a_configuration() -> None:
    config = load_train_config(ROOT / "trainer" / "configs" / "paper.toml")
    optimizer = config.optimizer
    assert (config.model, optimizer.batch_pairs, optimizer.steps) == ("base", bench.GLOBAL_PAIRS, bench.RUN_STEPS)
    assert (optimizer.learning_rate, optimizer.beta, optimizer.precision) == (1e-4, 0.5, "fp16")
    assert optimizer.batch_pairs % bench.GPUS == 0


def test_a_gpu_that_is_not_there_is_wrong_usage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["train_step.py", "tiny", "--device", "cuda"])
    with pytest.raises(SystemExit):
        bench.main()
    assert "this torch finds no GPU" in capsys.readouterr().err
