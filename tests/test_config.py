"""The configuration dataclasses: strict keys and types, ranges, and a round trip through JSON."""

from __future__ import annotations

import copy
import dataclasses
import json
from typing import Any

import pytest

from uniecs.config import MODELS, USUAL, FusionConfig, ImageEncoderConfig, ModelConfig, Preprocessing
from uniecs.errors import ConfigError

TINY = MODELS["tiny"].to_dict()


def changed(path: str, value: object) -> dict[str, Any]:
    """The dictionary of `tiny` with the entry at the dotted `path` set to `value`."""
    data = copy.deepcopy(TINY)
    *parents, last = path.split(".")
    table = data
    for each in parents:
        table = table[each]
    table[last] = value
    return data


@pytest.mark.parametrize("name", MODELS)
def test_round_trip_through_json(name: str) -> None:
    config = MODELS[name]
    again = ModelConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert again.name == name
    assert isinstance(again.preprocessing.mean, tuple)


def test_absent_keys_take_their_defaults() -> None:
    config = ModelConfig.from_dict({"name": "x", "preprocessing": {"height_px": 224, "width_px": 224}})
    assert config == ModelConfig("x", Preprocessing(224, 224))
    assert config.fusion == FusionConfig()
    assert config.embed_dim == 256


def test_an_integer_is_accepted_where_a_float_is_meant() -> None:
    preprocessing = ModelConfig.from_dict(changed("preprocessing.mean", [0, 0, 1])).preprocessing
    assert preprocessing.mean == (0.0, 0.0, 1.0)
    assert [type(each) for each in preprocessing.mean] == [float] * 3


@pytest.mark.parametrize("path", ["dropout", "image.dropout", "preprocessing.Height_px", "fusion.head"])
def test_an_unknown_key_is_named(path: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown key '{path.split('.')[-1]}'"):
        ModelConfig.from_dict(changed(path, 1))


@pytest.mark.parametrize("key", ["height_px", "width_px"])
def test_a_missing_key_is_named(key: str) -> None:
    data = {each: value for each, value in TINY["preprocessing"].items() if each != key}
    with pytest.raises(ConfigError, match=f"lacks the key '{key}'"):
        Preprocessing.from_dict(data)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("name", 3),
        ("name", None),
        ("embed_dim", "32"),
        ("embed_dim", 32.0),
        ("embed_dim", True),
        ("embed_dim", None),
        ("fusion", None),
        ("fusion", [2, 1, 3, 2]),
        ("image.kind", "resnet"),
        ("image.kind", ["vit"]),
        ("image.heads", "2"),
        ("image.activation", "relu"),
        ("text.activation", 1),
        ("text.layer_norm_eps", "1e-5"),
        ("preprocessing.mean", 0.5),
        ("preprocessing.mean", "abc"),
        ("preprocessing.mean", [0.5, 0.5]),
        ("preprocessing.mean", [0.5, 0.5, "0.5"]),
        ("preprocessing.std", [0.5, 0.5, True]),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_by_its_path(path: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"^ModelConfig\.{path}\b"):
        ModelConfig.from_dict(changed(path, value))


@pytest.mark.parametrize("data", [None, [], "tiny", 7, [("name", "x")]])
def test_what_is_not_a_table_is_refused(data: object) -> None:
    with pytest.raises(ConfigError, match="expected a table"):
        ModelConfig.from_dict(data)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("name", "my model"),
        ("name", "../mine"),
        ("name", ""),
        ("embed_dim", 0),
        ("embed_dim", -32),
        ("embed_dim", 33),
        ("image.hidden", 33),
        ("text.hidden", 33),
        ("image.patch_px", 7),
        ("image.layer_norm_eps", 0),
        ("text.layer_norm_eps", -1e-5),
        ("text.layer_norm_eps", 1),
        ("text.layer_norm_eps", float("nan")),
        ("preprocessing.height_px", 0),
        ("preprocessing.height_px", 4104),
        ("preprocessing.width_px", -8),
        ("preprocessing.max_tokens", 2),
        ("preprocessing.max_tokens", 17),
        ("preprocessing.std", [0.5, 0.0, 0.5]),
        ("preprocessing.std", [0.5, 0.5, -1.0]),
    ],
)
def test_a_value_out_of_range_is_refused(path: str, value: object) -> None:
    with pytest.raises(ConfigError):
        ModelConfig.from_dict(changed(path, value))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), pytest.param(10**400, id="10**400")])
@pytest.mark.parametrize("key", ["mean", "std"])
def test_preprocessing_is_finite(key: str, value: float) -> None:
    with pytest.raises(ConfigError):
        ModelConfig.from_dict(changed(f"preprocessing.{key}", [0.5, value, 0.5]))


DIMENSIONS = [f"{part}.{key}" for part in ("image", "text", "fusion") for key in TINY[part] if key != "kind"]


@pytest.mark.parametrize("value", [0, -2])
@pytest.mark.parametrize("path", DIMENSIONS)
def test_every_dimension_is_positive(path: str, value: int) -> None:
    if (path, value) == ("fusion.blocks", 0):
        pytest.skip("eq. 6 without a network is a plain mean")
    with pytest.raises(ConfigError):
        ModelConfig.from_dict(changed(path, value))


@pytest.mark.parametrize(("kind", "other"), [("vit", "quick_gelu"), ("clip", "gelu")])
def test_an_activation_is_written_where_it_is_not_the_usual_one(kind: str, other: str) -> None:
    image = TINY["image"] | {"kind": kind}
    usual, stated, unusual = (
        ImageEncoderConfig.from_dict(image | functions)
        for functions in ({}, USUAL[kind].to_dict(), {"activation": other, "layer_norm_eps": 1e-6})
    )
    assert stated == usual != unusual
    assert usual.to_dict() == image
    assert unusual.to_dict() == image | {"activation": other, "layer_norm_eps": 1e-6}
    assert ImageEncoderConfig.from_dict(unusual.to_dict()) == unusual


def test_configurations_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        MODELS["tiny"].embed_dim = 64  # type: ignore[misc]


def test_image_tokens_counts_patches_and_the_class_token() -> None:
    assert MODELS["base"].image_tokens == 14 * 14 + 1
    assert MODELS["tiny"].image_tokens == 4 * 3 + 1
