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
from uniecs.export.bundle_export import export_bundle  # noqa: E402
from uniecs.trainer.checkpoint import load_checkpoint, save_checkpoint  # noqa: E402
from uniecs.trainer.from_bundle import load_bundle  # noqa: E402
from uniecs.trainer.loop import initial_checkpoint, resolve, train  # noqa: E402
from uniecs.trainer.model import UniECS  # noqa: E402
from uniecs.trainer.settings import DataSettings, InitSettings, OptimizerSettings, TrainConfig  # noqa: E402

TINY = MODELS["tiny"]
SQUARE_CLIP = replace(
    TINY,
    preprocessing=replace(TINY.preprocessing, height_px=32, width_px=32),
    image=replace(TINY.image, kind="clip"),
)


def exported(
    config: ModelConfig, tiny_checkpoint: Path, folder: Path, weights: Literal["float32", "compact"] = "float32"
) -> tuple[UniECS, Path]:
    """A network of `config` and its bundle; vectors are random too, for export stores equal ones under one name."""
    torch.manual_seed(7)
    model = UniECS(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 1:
                weight.add_(torch.randn_like(weight) * 0.1)
    tokenizer = (tiny_checkpoint / "tokenizer.json").read_bytes()
    save_checkpoint(folder / "checkpoint", model, tokenizer, {})
    return model, export_bundle(folder / "checkpoint", folder / "bundle", weights=weights).path


@pytest.fixture(scope="module")
def trained_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compact bundle of the `tiny` configuration; read-only by agreement."""
    return exported(TINY, tiny_checkpoint, tmp_path_factory.mktemp("trained"), "compact")[1]


def embeddings(model: UniECS) -> list[torch.Tensor]:
    p = model.config.preprocessing
    torch.manual_seed(1)
    pixels = torch.rand(5, 3, p.height_px, p.width_px)
    ids = torch.randint(4, 40, (5, 9))
    mask = (torch.arange(9) < torch.tensor([[9], [4], [7], [2], [9]])).long()
    with torch.inference_mode():
        return list(model(pixels, ids, mask))


@pytest.mark.parametrize(("kind", "network"), [("gated", TINY), ("additive", SQUARE_CLIP), ("score", TINY)])
def test_weights_come_back_as_they_were_exported(
    kind: FusionKind, network: ModelConfig, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    config = replace(network, fusion=replace(TINY.fusion, kind=kind, gated_layers=2))
    model, bundle = exported(config, tiny_checkpoint, tmp_path)
    restored = load_bundle(bundle).model
    assert restored.config == config
    theirs = dict(restored.named_parameters())
    for name, weight in model.named_parameters():
        if ".gate.linear.weight" in name:  # the part of the indicator is known by its product alone
            kept = slice(0, 2 * config.embed_dim)
            assert torch.equal(theirs[name][:, kept], weight[:, kept]), name
        elif "indicator_embedding" not in name:
            assert torch.equal(theirs[name], weight), name
    for ours, again in zip(embeddings(model), embeddings(restored), strict=True):
        torch.testing.assert_close(again, ours, rtol=0, atol=1e-6)


def test_a_compact_bundle_exports_to_the_same_embeddings(trained_bundle: Path, tmp_path: Path) -> None:
    checkpoint = load_bundle(trained_bundle)
    save_checkpoint(tmp_path / "checkpoint", checkpoint.model, checkpoint.tokenizer_json, checkpoint.provenance)
    again, original = export_bundle(tmp_path / "checkpoint", tmp_path / "bundle"), open_bundle(trained_bundle)
    assert again.tokenizer_json() == original.tokenizer_json()
    np.testing.assert_allclose(again.golden()["embedding"], original.golden()["embedding"], rtol=0, atol=2e-5)


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
