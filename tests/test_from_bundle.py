"""The network of a bundle, read back for training: its weights, its embeddings, and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="checkpoints need torch")
for needed in ("transformers", "tensorboard", "onnx", "onnxscript", "onnxruntime", "openvino"):
    pytest.importorskip(needed, reason=f"exporting and training need {needed}")

from safetensors.numpy import save_file  # noqa: E402

from uniecs.bundle import Bundle, open_bundle, write_manifest  # noqa: E402
from uniecs.config import MODELS, FusionKind, ModelConfig  # noqa: E402
from uniecs.errors import BundleError, TrainingError  # noqa: E402
from uniecs.export.bundle_export import export_bundle, golden_outputs  # noqa: E402
from uniecs.export.graphs import export_graph  # noqa: E402
from uniecs.export.weights import round_weights  # noqa: E402
from uniecs.trainer.checkpoint import load_checkpoint, save_checkpoint  # noqa: E402
from uniecs.trainer.from_bundle import Graph, load_bundle, read_weights  # noqa: E402
from uniecs.trainer.loop import initial_checkpoint, resolve, train  # noqa: E402
from uniecs.trainer.model import UniECS  # noqa: E402
from uniecs.trainer.settings import DataSettings, InitSettings, OptimizerSettings, TrainConfig  # noqa: E402

TINY = MODELS["tiny"]
SQUARE_CLIP = replace(
    TINY,
    preprocessing=replace(TINY.preprocessing, height_px=32, width_px=32),
    image=replace(TINY.image, kind="clip", activation="gelu", layer_norm_eps=1e-3),
    text=replace(TINY.text, activation="quick_gelu", layer_norm_eps=1e-5),
)


Weights = Literal["float32", "compact"]


def network(config: ModelConfig) -> UniECS:
    """A network with random weights, vectors too: export stores equal ones under one name."""
    torch.manual_seed(7)
    model = UniECS(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 1:
                weight.add_(torch.randn_like(weight) * 0.1)
    return model


def exported(config: ModelConfig, tiny_checkpoint: Path, folder: Path, weights: Weights) -> tuple[UniECS, Path]:
    """A network of `config`, rounded to what is stored of it, and its bundle."""
    model = network(config)
    tokenizer = (tiny_checkpoint / "tokenizer.json").read_bytes()
    save_checkpoint(folder / "checkpoint", model, tokenizer, {})
    bundle = export_bundle(folder / "checkpoint", folder / "bundle", weights=weights)
    if weights == "compact":
        round_weights(model)
    return model, bundle.path


@pytest.fixture(scope="module")
def trained(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[UniECS, Path]:
    """A network of the `tiny` configuration and its compact bundle; read-only by agreement."""
    return exported(TINY, tiny_checkpoint, tmp_path_factory.mktemp("trained"), "compact")


@pytest.fixture(scope="module")
def trained_bundle(trained: tuple[UniECS, Path]) -> Path:
    return trained[1]


def embeddings(model: UniECS) -> list[torch.Tensor]:
    p = model.config.preprocessing
    torch.manual_seed(1)
    pixels = torch.rand(5, 3, p.height_px, p.width_px)
    ids = torch.randint(4, 40, (5, 9))
    mask = (torch.arange(9) < torch.tensor([[9], [4], [7], [2], [9]])).long()
    with torch.inference_mode():
        return list(model(pixels, ids, mask))


def check_weights(model: UniECS, restored: UniECS) -> None:
    """Asserts that `restored` is `model`, as far as a bundle tells."""
    assert restored.config == model.config
    theirs = dict(restored.named_parameters())
    for name, weight in model.named_parameters():
        if ".gate.linear.weight" in name:  # the part of the indicator is known by its product alone
            kept = slice(0, 2 * model.config.embed_dim)
            assert torch.equal(theirs[name][:, kept], weight[:, kept]), name
        elif "indicator_embedding" not in name:
            assert torch.equal(theirs[name], weight), name
    for ours, again in zip(embeddings(model), embeddings(restored), strict=True):
        torch.testing.assert_close(again, ours, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "config",
    [
        replace(SQUARE_CLIP, fusion=replace(TINY.fusion, gated_layers=2, blocks=1)),
        replace(TINY, fusion=replace(TINY.fusion, kind="feature", blocks=1)),
    ],
    ids=lambda config: config.fusion.kind,
)
def test_weights_come_back_as_they_were_exported(config: ModelConfig, tiny_checkpoint: Path, tmp_path: Path) -> None:
    model, bundle = exported(config, tiny_checkpoint, tmp_path, "float32")
    check_weights(model, load_bundle(bundle).model)


@pytest.mark.parametrize("kind", ["additive", "score"])
def test_weights_of_other_fusions_come_back(kind: FusionKind, tmp_path: Path) -> None:
    model = network(replace(TINY, fusion=replace(TINY.fusion, kind=kind, blocks=1)))
    (tmp_path / "fusion.onnx").write_bytes(export_graph(model, "fusion").SerializeToString())
    restored = UniECS(model.config)
    read_weights(Graph(tmp_path / "fusion.onnx"), restored.fusion)
    for (name, ours), theirs in zip(model.fusion.named_parameters(), restored.fusion.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_weights_of_a_compact_bundle_come_back_and_round_to_themselves(trained: tuple[UniECS, Path]) -> None:
    model, folder = trained
    bundle, checkpoint = open_bundle(folder), load_bundle(folder)
    check_weights(model, checkpoint.model)
    assert checkpoint.tokenizer_json == bundle.tokenizer_json()
    round_weights(checkpoint.model)
    again = golden_outputs(checkpoint.model, bundle.golden())["embedding"]
    np.testing.assert_allclose(again, bundle.golden()["embedding"], rtol=0, atol=2e-5)


def test_training_starts_from_a_bundle(
    trained_bundle: Path, draw_catalog: Callable[[Path], object], tmp_path: Path
) -> None:
    draw_catalog(tmp_path)
    config = TrainConfig(
        model="tiny",
        output=str(tmp_path / "run"),
        data=DataSettings(catalog=str(tmp_path / "products.jsonl"), group_columns=("colour", "kind")),
        init=InitSettings(checkpoint=str(trained_bundle)),
        optimizer=OptimizerSettings(steps=1, batch_pairs=5, learning_rate=1e-6, warmup_steps=1, precision="fp32"),
    )
    trained = load_checkpoint(train(config))
    assert trained.provenance["started_from"]["bundle"] == open_bundle(trained_bundle).model_id
    assert trained.tokenizer_json == open_bundle(trained_bundle).tokenizer_json()
    for ours, theirs in zip(embeddings(trained.model), embeddings(load_bundle(trained_bundle).model), strict=True):
        assert not torch.equal(ours, theirs)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-3)
    with pytest.raises(TrainingError, match="another network"):
        initial_checkpoint(replace(config, model="small"))


def test_the_shipped_bundle_has_a_name() -> None:
    assert load_bundle(resolve("bundle:mini")).config == MODELS["mini"]
    with pytest.raises(BundleError, match=r"packaged: .*mini"):
        resolve("bundle:maxi")


def test_a_bundle_of_another_make_is_refused(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match=r"has no weight .* as `uniecs export` writes it"):
        load_bundle(bundle.path)


def test_weights_that_do_not_give_the_golden_embeddings_are_refused(trained_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(trained_bundle, folder)
    opened = open_bundle(folder)
    golden: dict[str, Any] = opened.golden()
    save_file({**golden, "embedding": np.roll(golden["embedding"], 1, axis=0)}, folder / "golden.safetensors")
    write_manifest(folder, opened.manifest)
    with pytest.raises(BundleError, match="does not give its golden embeddings"):
        load_bundle(folder)
