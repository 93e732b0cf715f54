"""Our own checkpoints, and CLIP, ViT and BERT ones by path: small files of the real formats, made here."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="checkpoints need torch")
transformers = pytest.importorskip("transformers", reason="pre-trained checkpoints need transformers")

from uniecs.cli import main  # noqa: E402
from uniecs.config import MODELS, Functions, ImageEncoderConfig, TextEncoderConfig  # noqa: E402
from uniecs.errors import CheckpointError, UniecsError  # noqa: E402
from uniecs.trainer.checkpoint import (  # noqa: E402
    average_checkpoints,
    interpolate_positions,
    load_checkpoint,
    load_image_backbone,
    load_text_backbone,
    save_checkpoint,
)
from uniecs.trainer.loop import initial_checkpoint  # noqa: E402
from uniecs.trainer.model import UniECS  # noqa: E402
from uniecs.trainer.settings import load_train_config  # noqa: E402

TINY = MODELS["tiny"]
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def clip_model(image_px: int = 32, **functions: object) -> UniECS:
    square = replace(TINY.preprocessing, height_px=image_px, width_px=image_px)
    image = ImageEncoderConfig.from_dict(TINY.image.to_dict() | {"kind": "clip"} | functions)
    return UniECS(replace(TINY, preprocessing=square, image=image))


def save_clip(folder: Path, whole: bool, **functions: object) -> transformers.CLIPVisionModel:
    """A CLIP checkpoint as OpenAI's are stored: both towers in one file, or the vision tower alone."""
    vision = transformers.CLIPVisionConfig(image_size=32, patch_size=8, **TOWER, **functions)
    if not whole:
        tower = transformers.CLIPVisionModel(vision)
        tower.save_pretrained(folder)
        return tower
    text = transformers.CLIPTextConfig(vocab_size=99, max_position_embeddings=8, **TOWER)
    config = transformers.CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=16)
    clip = transformers.CLIPModel(config)
    clip.save_pretrained(folder)
    return clip.vision_model


def save_bert(folder: Path, layers: int = 2, positions: int = 16, **functions: object) -> transformers.BertModel:
    options = TOWER | {"num_hidden_layers": layers} | functions
    config = transformers.BertConfig(vocab_size=TINY.text.vocab_size, max_position_embeddings=positions, **options)
    bert = transformers.BertModel(config)
    bert.save_pretrained(folder)
    return bert.eval()


@pytest.mark.parametrize("whole", [True, False])
def test_a_clip_checkpoint_loads_by_path(tmp_path: Path, whole: bool) -> None:
    source = save_clip(tmp_path / "clip", whole).eval()
    model = clip_model().eval()
    load_image_backbone(model, tmp_path / "clip")
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = source(pixel_values=pixels).last_hidden_state
        assert torch.equal(model.image_encoder.backbone(pixel_values=pixels).last_hidden_state, expected)


def test_clip_position_embeddings_are_interpolated(tmp_path: Path) -> None:
    source = save_clip(tmp_path / "clip", whole=True)
    model = clip_model(image_px=48)
    load_image_backbone(model, tmp_path / "clip")
    old = source.state_dict()["embeddings.position_embedding.weight"]
    new = model.image_encoder.backbone.state_dict()["embeddings.position_embedding.weight"]
    assert new.shape == (37, 32)
    assert torch.equal(new[0], old[0])
    assert torch.equal(new, interpolate_positions(old[None], (4, 4), (6, 6))[0])


def test_a_vit_checkpoint_loads_by_path_at_another_resolution(tmp_path: Path) -> None:
    config = transformers.ViTConfig(image_size=64, patch_size=8, **TOWER)
    source = transformers.ViTModel(config)
    source.save_pretrained(tmp_path)
    model = UniECS(TINY)
    load_image_backbone(model, tmp_path)
    state, new = source.state_dict(), model.image_encoder.backbone.state_dict()
    key = "embeddings.position_embeddings"
    assert new[key].shape == (1, 13, 32)
    assert all(torch.equal(new[name], state[name]) for name in new if name != key)


def test_interpolation_keeps_a_linear_ramp() -> None:
    ramp = torch.linspace(0, 1, 8)[None, :].expand(8, 8).reshape(1, 64, 1)
    table = torch.cat((torch.full((1, 1, 1), 7.0), ramp), dim=1)
    grid = interpolate_positions(table, (8, 8), (4, 16))[0, 1:, 0].reshape(4, 16)
    assert torch.allclose(grid, grid[:1].expand(4, -1), atol=1e-6)
    assert (grid.diff(dim=1)[:, 2:-2] > 0).all()
    assert interpolate_positions(table, (8, 8), (8, 8)) is table


def test_a_bert_checkpoint_loads_by_path(tmp_path: Path) -> None:
    source = save_bert(tmp_path)
    model = UniECS(TINY).eval()
    load_text_backbone(model, tmp_path)
    ids = torch.randint(0, 99, (2, 5))
    with torch.no_grad():
        expected = source(input_ids=ids).last_hidden_state
        assert torch.allclose(model.text_encoder.backbone(input_ids=ids).last_hidden_state, expected, atol=1e-6)


def test_a_deeper_and_longer_bert_gives_evenly_spaced_layers(tmp_path: Path) -> None:
    source = save_bert(tmp_path, layers=5, positions=64).state_dict()
    model = UniECS(replace(TINY, text=replace(TINY.text, layers=3)))
    load_text_backbone(model, tmp_path)
    new = model.text_encoder.backbone.state_dict()
    for mine, theirs in enumerate((0, 2, 4)):
        name = "encoder.layer.{}.output.dense.weight"
        assert torch.equal(new[name.format(mine)], source[name.format(theirs)])
    positions = "embeddings.position_embeddings.weight"
    assert torch.equal(new[positions], source[positions][:16])


def test_wrong_pretrained_checkpoints_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_text_backbone(UniECS(TINY), tmp_path / "nothing")
    save_bert(tmp_path / "shallow", layers=1)
    with pytest.raises(CheckpointError, match="has 1 layers"):
        load_text_backbone(UniECS(TINY), tmp_path / "shallow")
    save_bert(tmp_path / "short", positions=8)
    with pytest.raises(CheckpointError, match="does not fit"):
        load_text_backbone(UniECS(TINY), tmp_path / "short")
    save_bert(tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_text_backbone(UniECS(TINY), tmp_path / "cut")
    with pytest.raises(CheckpointError, match="lacks"):
        load_image_backbone(UniECS(TINY), tmp_path / "shallow")


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu", "gelu_new"])
def test_a_clip_of_another_activation_loads_where_the_configuration_has_it(tmp_path: Path, activation: str) -> None:
    source = save_clip(tmp_path, whole=True, hidden_act=activation).eval()
    model = clip_model(activation=activation).eval()
    load_image_backbone(model, tmp_path)
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = source(pixel_values=pixels).last_hidden_state
        assert torch.equal(model.image_encoder.backbone(pixel_values=pixels).last_hidden_state, expected)


def test_a_bert_of_another_epsilon_loads_where_the_configuration_has_it(tmp_path: Path) -> None:
    source = save_bert(tmp_path, layer_norm_eps=1e-5)
    text = TextEncoderConfig.from_dict(TINY.text.to_dict() | {"layer_norm_eps": 1e-5})
    model = UniECS(replace(TINY, text=text)).eval()
    load_text_backbone(model, tmp_path)
    ids = torch.randint(0, 99, (2, 5))
    with torch.no_grad():
        expected = source(input_ids=ids).last_hidden_state
        assert torch.allclose(model.text_encoder.backbone(input_ids=ids).last_hidden_state, expected, atol=1e-6)
    usual = UniECS(TINY).eval()
    usual.text_encoder.backbone.load_state_dict(model.text_encoder.backbone.state_dict())
    with torch.no_grad():
        assert not torch.allclose(usual.text_encoder.backbone(input_ids=ids).last_hidden_state, expected, atol=1e-6)


def test_a_training_configuration_names_what_the_weights_need(tmp_path: Path) -> None:
    transformers.ViTModel(
        transformers.ViTConfig(image_size=[32, 24], patch_size=8, hidden_act="quick_gelu", **TOWER)
    ).save_pretrained(tmp_path / "vit")
    save_bert(tmp_path / "bert", layer_norm_eps=1e-5)
    (tmp_path / "bert" / "tokenizer.json").write_text("{}")
    (tmp_path / "run.toml").write_text(
        """
        model = "tiny"
        output = "run"
        image.activation = "quick_gelu"
        text.layer_norm_eps = 1e-05
        data = { catalog = "products.csv", pairs = "pairs.csv" }
        init = { image_weights = "vit", text_weights = "bert" }
        optimizer.steps = 1
        """
    )
    config = load_train_config(tmp_path / "run.toml")
    model = initial_checkpoint(config).model
    assert model.image_encoder.backbone.config.hidden_act == "quick_gelu"
    assert model.text_encoder.backbone.config.layer_norm_eps == 1e-5
    assert config.described()["image"] == {"activation": "quick_gelu"}
    save_checkpoint(tmp_path / "c", model, b"{}", {})
    assert load_checkpoint(tmp_path / "c").config == config.model_config != TINY
    with pytest.raises(CheckpointError, match="hidden_act"):
        initial_checkpoint(replace(config, image=Functions()))


def test_what_is_refused_says_what_to_set(tmp_path: Path) -> None:
    save_clip(tmp_path / "clip", whole=False, hidden_act="gelu")
    with pytest.raises(CheckpointError, match=r"here 'quick_gelu'; set image\.activation = \"gelu\"$"):
        load_image_backbone(clip_model(), tmp_path / "clip")
    save_bert(tmp_path / "bert", layer_norm_eps=1e-5)
    with pytest.raises(CheckpointError, match=r"here 1e-12; set text\.layer_norm_eps = 1e-05$"):
        load_text_backbone(UniECS(TINY), tmp_path / "bert")
    save_bert(tmp_path / "relu", hidden_act="relu")
    with pytest.raises(CheckpointError, match=r"here 'gelu'; expected one of gelu, gelu_new, quick_gelu$"):
        load_text_backbone(UniECS(TINY), tmp_path / "relu")


OTHER_FUNCTIONS = {"num_attention_heads": 4, "hidden_act": "relu", "layer_norm_eps": 1e-3}


@pytest.mark.parametrize("key", OTHER_FUNCTIONS)
@pytest.mark.parametrize("kind", ["clip", "vit", "bert"])
def test_weights_of_another_function_in_the_same_shapes_are_refused(tmp_path: Path, kind: str, key: str) -> None:
    options = TOWER | {key: OTHER_FUNCTIONS[key]}
    if kind == "clip":
        config = transformers.CLIPVisionConfig(image_size=32, patch_size=8, **options)
        transformers.CLIPVisionModel(config).save_pretrained(tmp_path)
    elif kind == "vit":
        config = transformers.ViTConfig(image_size=32, patch_size=8, **options)
        transformers.ViTModel(config).save_pretrained(tmp_path)
    else:
        config = transformers.BertConfig(vocab_size=TINY.text.vocab_size, max_position_embeddings=16, **options)
        transformers.BertModel(config).save_pretrained(tmp_path)
    model = clip_model() if kind == "clip" else UniECS(TINY)
    load = load_text_backbone if kind == "bert" else load_image_backbone
    with pytest.raises(CheckpointError, match=f"{key} '?{OTHER_FUNCTIONS[key]}'?, here "):
        load(model, tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": "wide"},
        {"num_attention_heads": 0},
        {"hidden_act": "unheard of"},
        {"dtype": "floaty"},
        {"patch_size": [8, 8]},
        None,
    ],
)
def test_a_damaged_configuration_is_a_checkpoint_error(tmp_path: Path, change: dict[str, object] | None) -> None:
    config = transformers.ViTConfig(image_size=32, patch_size=8, **TOWER)
    transformers.ViTModel(config).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps([] if change is None else json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match="cannot be read as a ViTModel checkpoint"):
        load_image_backbone(UniECS(TINY), tmp_path)


@pytest.mark.parametrize("index", [{}, []])
def test_a_damaged_index_of_shards_is_a_checkpoint_error(tmp_path: Path, index: object) -> None:
    save_bert(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="cannot be read as a BertModel checkpoint"):
        load_text_backbone(UniECS(TINY), tmp_path)


def test_the_mean_of_checkpoints(tiny_checkpoint: Path, tmp_path: Path) -> None:
    tokenizer = (tiny_checkpoint / "tokenizer.json").read_bytes()
    other = UniECS(TINY)
    save_checkpoint(tmp_path / "other", other, tokenizer, {"steps": 7})
    assert main(["average", str(tiny_checkpoint), str(tmp_path / "other"), "--out", str(tmp_path / "mean")]) == 0
    mean, one, two = (
        load_checkpoint(tmp_path / "mean"),
        load_checkpoint(tiny_checkpoint).model.state_dict(),
        other.state_dict(),
    )
    assert mean.tokenizer_json == tokenizer
    assert mean.provenance["mean_of"][1] == {"steps": 7}
    for name, weight in mean.model.state_dict().items():
        torch.testing.assert_close(weight, (one[name] + two[name]) / 2, rtol=0, atol=1e-7)
    with pytest.raises(CheckpointError, match="exists already"):
        average_checkpoints([tiny_checkpoint], tmp_path / "mean")
    save_checkpoint(tmp_path / "deeper", UniECS(replace(TINY, fusion=replace(TINY.fusion, blocks=1))), tokenizer, {})
    save_checkpoint(tmp_path / "foreign", other, tokenizer + b" ", {})
    for name in ("deeper", "foreign"):
        with pytest.raises(CheckpointError, match="different networks or tokenizers"):
            average_checkpoints([tiny_checkpoint, tmp_path / name], tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_checkpoint_rebuilds_the_network(tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = UniECS(TINY).eval()
    save_checkpoint(tmp_path / "c", model, b"{}", {"seed": 3})
    loaded = load_checkpoint(tmp_path / "c")
    assert loaded.config == TINY
    assert loaded.tokenizer_json == b"{}"
    assert loaded.provenance == {"seed": 3}
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.model.parameters(), strict=True))


def test_saving_replaces_what_was_left_unfinished_and_leaves_nothing_behind(tmp_path: Path) -> None:
    unfinished = tmp_path / ".unfinished-c"
    unfinished.mkdir()
    (unfinished / "model.safetensors").write_bytes(b"half")
    save_checkpoint(tmp_path / "c", UniECS(TINY), b"{}", {"seed": 2})
    assert load_checkpoint(tmp_path / "c").provenance == {"seed": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


@pytest.mark.parametrize("left", [1 << 10, 1 << 20], ids=["for no weights", "for no optimiser"])
def test_a_full_disk_is_a_checkpoint_error(tmpfs: Path, left: int) -> None:
    save_checkpoint(tmpfs / "before", UniECS(TINY), b"{}", {})
    free = shutil.disk_usage(tmpfs).free
    (tmpfs / "filler").write_bytes(bytes(free - left))
    with pytest.raises(CheckpointError, match=r"after cannot be written: .*"):
        save_checkpoint(tmpfs / "after", UniECS(TINY), b"{}", {}, {"optimizer": torch.zeros(1 << 20)})
    assert not (tmpfs / "after").exists()
    load_checkpoint(tmpfs / "before")


DAMAGES = ["weights cut", "weights foreign", "json", "format", "version", "provenance", "tokenizer", "gone"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, tiny_checkpoint: Path, damage: str) -> None:
    folder = tmp_path / "c"
    shutil.copytree(tiny_checkpoint, folder)
    weights, document = folder / "model.safetensors", folder / "checkpoint.json"
    content = json.loads(document.read_text())
    if damage == "weights cut":
        weights.write_bytes(weights.read_bytes()[:-5])
    elif damage == "weights foreign":
        content["model"]["text"]["layers"] = 1
        document.write_text(json.dumps(content))
    elif damage == "json":
        document.write_text("{")
    elif damage in ("format", "version", "provenance"):
        content["format_version" if damage == "version" else damage] = 99
        document.write_text(json.dumps(content))
    elif damage == "tokenizer":
        (folder / "tokenizer.json").unlink()
    else:
        shutil.rmtree(folder)
    with pytest.raises(UniecsError):
        load_checkpoint(folder)
