"""The network's invariants (design/model.md): what an embedding may and may not depend on."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the network needs torch")
pytest.importorskip("transformers", reason="the network needs transformers")

from uniecs.config import MODELS, FusionConfig, ImageEncoderConfig, ModelConfig  # noqa: E402
from uniecs.errors import ConfigError  # noqa: E402
from uniecs.trainer.model import UniECS  # noqa: E402

Inputs = tuple["torch.Tensor", "torch.Tensor", "torch.Tensor", "torch.Tensor"]
KINDS = {"image": (1.0, 0.0), "text": (0.0, 1.0), "both": (1.0, 1.0)}
TOLERANCE = 1e-5


def clip_config() -> ModelConfig:
    tiny = MODELS["tiny"]
    square = replace(tiny.preprocessing, height_px=32, width_px=32)
    return replace(tiny, preprocessing=square, image=replace(tiny.image, kind="clip"))


def configs() -> dict[str, ModelConfig]:
    tiny = MODELS["tiny"]
    deep = FusionConfig(heads=2, gated_layers=3, blocks=2, mlp_ratio=2)
    others = {kind: replace(tiny, fusion=replace(tiny.fusion, kind=kind)) for kind in ("additive", "feature", "score")}
    return {"vit": tiny, "clip": clip_config(), "three gated layers": replace(tiny, fusion=deep), **others}


def network(config: ModelConfig) -> UniECS:
    torch.manual_seed(0)
    made = UniECS(config).eval()
    for parameter in made.parameters():  # larger than the initial weights, so that differences show
        parameter.data += 0.05 * torch.randn_like(parameter)
    return made


@pytest.fixture(scope="module", params=configs())
def model(request: pytest.FixtureRequest) -> UniECS:
    return network(configs()[request.param])


@pytest.fixture(scope="module")
def gated() -> UniECS:
    return network(MODELS["tiny"])


@pytest.fixture
def tokens(model: UniECS) -> Inputs:
    """Fusion inputs of five items: image tokens, text tokens, text mask (with padding), indicator of both."""
    torch.manual_seed(1)
    p = model.config.preprocessing
    with torch.no_grad():
        image = model.image_encoder(torch.randn(5, 3, p.height_px, p.width_px))
        mask = (torch.arange(9)[None] < torch.tensor([[9], [3], [5], [9], [1]])).long()
        text = model.text_encoder(torch.randint(5, 200, (5, 9)), mask)
    return image, text, mask, torch.ones(5, 2)


def gap(one: torch.Tensor, two: torch.Tensor) -> float:
    return float((one - two).abs().max())


@pytest.mark.parametrize("kind", KINDS)
def test_batch_mates_do_not_matter(model: UniECS, tokens: Inputs, kind: str) -> None:
    image, text, mask, _ = tokens
    mixed = torch.tensor([KINDS[kind], (1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (0.0, 1.0)])
    with torch.no_grad():
        together = model.fusion(image, text, mask, mixed)
        alone = model.fusion(image[:1], text[:1], mask[:1], mixed[:1])
    assert gap(together[:1], alone) < TOLERANCE
    assert gap(together[0], together[3]) > TOLERANCE


def test_text_padding_does_not_matter(model: UniECS) -> None:
    ids = torch.randint(5, 200, (2, 6))
    padded = torch.cat((ids, torch.randint(5, 200, (2, 7))), dim=1)
    short, long = torch.ones_like(ids), torch.cat((torch.ones_like(ids), torch.zeros(2, 7, dtype=torch.long)), dim=1)
    p = model.config.preprocessing
    with torch.no_grad():
        image = model.image_encoder(torch.randn(2, 3, p.height_px, p.width_px))
        for indicator in (torch.ones(2, 2), torch.tensor([[0.0, 1.0]]).expand(2, -1)):
            one = model.fusion(image, model.text_encoder(ids, short), short, indicator)
            two = model.fusion(image, model.text_encoder(padded, long), long, indicator)
            assert gap(one, two) < TOLERANCE


@pytest.mark.parametrize("garbage", [1e4, float("nan"), float("inf")])
def test_an_absent_buffer_does_not_leak(model: UniECS, tokens: Inputs, garbage: float) -> None:
    image, text, mask, _ = tokens
    with torch.no_grad():
        for column, kind in enumerate(("text", "image")):
            indicator = torch.tensor([KINDS[kind]]).expand(5, -1)
            clean = [torch.zeros_like(image), text] if column == 0 else [image, torch.zeros_like(text)]
            dirty = [torch.full_like(image, garbage), text] if column == 0 else [image, torch.full_like(text, garbage)]
            masks = [mask, mask] if column == 0 else [torch.ones_like(mask), torch.zeros_like(mask)]
            one = model.fusion(*clean, masks[0], indicator)
            two = model.fusion(*dirty, masks[1], indicator)
            assert torch.isfinite(two).all()
            assert gap(one, two) < TOLERANCE


def test_one_zero_token_equals_the_full_length(model: UniECS, tokens: Inputs) -> None:
    image, text, mask, _ = tokens
    one_token, one_mask = torch.zeros(5, 1, image.shape[2]), torch.ones(5, 1, dtype=torch.long)
    with torch.no_grad():
        text_only = torch.tensor([KINDS["text"]]).expand(5, -1)
        full = model.fusion(torch.zeros_like(image), text, mask, text_only)
        assert gap(full, model.fusion(one_token, text, mask, text_only)) < TOLERANCE
        image_only = torch.tensor([KINDS["image"]]).expand(5, -1)
        full = model.fusion(image, torch.zeros_like(text), torch.ones_like(mask), image_only)
        assert gap(full, model.fusion(image, one_token, one_mask, image_only)) < TOLERANCE


def test_forward_gives_the_three_representations(model: UniECS, tokens: Inputs) -> None:
    _, _, mask, _ = tokens
    p = model.config.preprocessing
    pixels, ids = torch.randn(5, 3, p.height_px, p.width_px), torch.randint(5, 200, (5, 9))
    with torch.no_grad():
        outputs = model(pixels, ids, mask)
        image, text = model.image_encoder(pixels), model.text_encoder(ids, mask)
        for kind, output in zip(("image", "text", "both"), outputs, strict=True):
            indicator = torch.tensor([KINDS[kind]]).expand(5, -1)
            assert output.shape == (5, model.config.embed_dim)
            assert gap(output, model.fusion(image, text, mask, indicator)) < TOLERANCE
            assert gap(output.norm(dim=1), torch.ones(5)) < 1e-6


def test_the_gate_starts_nearly_shut() -> None:
    gate = network(configs()["vit"]).fusion.image_sides[0].gate
    x, attended = torch.randn(2, 3, gate.dim), torch.randn(2, 3, gate.dim)
    with torch.no_grad():
        share = ((gate(x, attended, torch.ones(2, 1, 1)) - x) / (attended - x)).mean()
    assert 0 < share < 0.05


def test_the_gate_depends_on_its_indicator(gated: UniECS) -> None:
    gate = gated.fusion.image_sides[0].gate
    x, attended = torch.randn(2, 3, gate.dim), torch.randn(2, 3, gate.dim)
    with torch.no_grad():
        absent, present = (gate(x, attended, torch.full((2, 1, 1), value)) for value in (0.0, 1.0))
    assert gap(absent, present) > 1e-4


def test_the_gate_is_equations_3_and_4(gated: UniECS) -> None:
    gate = gated.fusion.text_sides[0].gate
    x, attended = torch.randn(2, 3, gate.dim), torch.randn(2, 3, gate.dim)
    with torch.no_grad():
        e = gate.indicator_embedding.expand(2, 3, -1)
        g = torch.sigmoid(torch.cat((x, attended, e), dim=-1) @ gate.linear.weight.T + gate.linear.bias)
        assert gap(gate(x, attended, torch.ones(2, 1, 1)), g * attended + (1 - g) * x) < TOLERANCE


def test_every_parameter_is_trained(model: UniECS) -> None:
    p = model.config.preprocessing
    outputs = model(torch.randn(3, 3, p.height_px, p.width_px), torch.randint(5, 200, (3, 4)), torch.ones(3, 4).long())
    sum((output * torch.randn_like(output)).sum() for output in outputs).backward()
    unused = [name for name, each in model.named_parameters() if each.grad is None]
    model.zero_grad()
    assert unused == []


def test_rows_without_an_image_are_their_text(model: UniECS) -> None:
    p = model.config.preprocessing
    pixels, ids, mask = (
        torch.randn(4, 3, p.height_px, p.width_px),
        torch.randint(5, 200, (4, 6)),
        torch.ones(4, 6).long(),
    )
    has_image = torch.tensor([True, False, True, False])
    pixels[1] = float("nan")
    with torch.no_grad():
        v, t, f = model(pixels, ids, mask, None, has_image)
        alone = model(pixels[has_image], ids[has_image], mask[has_image])
    for got, expected in zip((v, t, f), alone, strict=True):
        assert gap(got[has_image], expected) < TOLERANCE
    assert gap(f[~has_image], t[~has_image]) < TOLERANCE
    assert gap(f[has_image], t[has_image]) > 1e-3
    assert torch.isfinite(v).all()


def test_addition_in_place_of_the_gate(gated: UniECS) -> None:
    added = network(configs()["additive"])
    side = added.fusion.image_sides[0]
    assert side.gate is None
    x, other, indicator = torch.randn(2, 3, 64), torch.randn(2, 4, 64), torch.ones(2, 1, 1)
    with torch.no_grad():
        attended = side.norm(side.cross_attention(x, other, None))
        assert gap(side(x, other, None, None, indicator), side.block(x + attended, None)) < TOLERANCE
    assert sum(each.numel() for each in added.parameters()) < sum(each.numel() for each in gated.parameters())


def test_score_fusion_is_the_sum_of_the_two() -> None:
    model = network(configs()["score"])
    p = model.config.preprocessing
    with torch.no_grad():
        v, t, f = model(
            torch.randn(3, 3, p.height_px, p.width_px), torch.randint(5, 200, (3, 6)), torch.ones(3, 6).long()
        )
        assert gap(f, torch.nn.functional.normalize(v + t, dim=1)) < TOLERANCE


def test_the_image_encoder_sees_only_the_chosen_patches(model: UniECS) -> None:
    p, side = model.config.preprocessing, model.config.image.patch_px
    pixels = torch.randn(2, 3, p.height_px, p.width_px)
    everything = torch.arange(model.config.image_tokens - 1).expand(2, -1)
    few = torch.tensor([[1, 2, 3], [1, 2, 3]])
    changed = pixels.clone()
    changed[:, :, :side, :side] += 1.0  # patch 0
    with torch.no_grad():
        assert gap(model.image_encoder(pixels, everything), model.image_encoder(pixels)) < TOLERANCE
        assert model.image_encoder(pixels, few).shape == (2, 4, model.config.embed_dim)
        assert gap(model.image_encoder(pixels, few), model.image_encoder(changed, few)) < TOLERANCE
        assert gap(model.image_encoder(pixels), model.image_encoder(changed)) > 1e-3
        swapped = model.image_encoder(pixels, torch.tensor([[3, 1, 2], [1, 2, 3]]))
        assert gap(swapped[:, [0, 2, 3, 1]][0], model.image_encoder(pixels, few)[0]) < TOLERANCE


def test_the_base_configuration_is_the_papers() -> None:
    base = MODELS["base"]
    with torch.device("meta"):
        count = sum(each.numel() for each in UniECS(base).parameters())
    assert base.embed_dim == 256
    assert base.image_tokens == 197
    assert (base.text.layers, base.text.hidden, base.image.hidden) == (12, 768, 768)
    assert 0.19e9 < count < 0.21e9  # "0.2B parameters"


def test_a_configuration_survives_json() -> None:
    for config in MODELS.values():
        assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_a_clip_tower_refuses_oblong_images() -> None:
    tiny = MODELS["tiny"]
    with pytest.raises(ConfigError, match="square"):
        UniECS(replace(tiny, image=ImageEncoderConfig(kind="clip", patch_px=8, hidden=32, layers=1, heads=2)))


def test_tokens_have_the_configured_shapes(model: UniECS, tokens: Inputs) -> None:
    image, text, _, _ = tokens
    assert image.shape == (5, model.config.image_tokens, model.config.embed_dim)
    assert text.shape == (5, 9, model.config.embed_dim)
    assert np.isfinite(image.numpy()).all()
