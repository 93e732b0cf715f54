"""`ItemFusion` gives what the fusion graph gives for one item, and leaves to the graph what it does not know."""

from __future__ import annotations

import dataclasses
import runpy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

torch = pytest.importorskip("torch", reason="the trainer needs torch: pip install 'uniecs[train]'")
pytest.importorskip("onnx", reason="exporting needs onnx: pip install 'uniecs[export]'")

from uniecs import _core  # noqa: E402
from uniecs.backends.item_fusion import item_fusion  # noqa: E402
from uniecs.backends.openvino import CoreFirst, fused, make_core  # noqa: E402
from uniecs.config import MODELS, FusionConfig  # noqa: E402

Floats = npt.NDArray[np.float32]
Made = Callable[[bool], tuple[Any, Any]]
DIM = 64
random = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("random_network.py"))))
pytestmark = pytest.mark.skipif(not _core.row_instructions(), reason="ItemFusion needs AVX2")


def network(seed: int, **changes: Any) -> Any:
    fusion = FusionConfig(**({"heads": 2, "blocks": 2, "mlp_ratio": 3} | changes))
    return random.network(dataclasses.replace(MODELS["tiny"], embed_dim=DIM, fusion=fusion), "fusion", seed)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Of `network`, in compact weights or not: it and its graph."""
    once: Made = random.exporter(network, "fusion", tmp_path_factory.mktemp("fusion"))
    return once


def feed(image: Floats | None, text: Floats | None, seen: int = 0) -> dict[str, npt.NDArray[Any]]:
    """The inputs of the graph for one item, whose text has padding from `seen` on; NaN where nothing may be read."""
    absent = np.full((1, DIM), np.nan, np.float32)
    mask = np.ones((1, 1 if text is None else len(text)), np.int64)
    mask[:, seen:] = 0 if text is not None else 1
    return {
        "image_tokens": (absent if image is None else image)[None],
        "text_tokens": (absent if text is None else text)[None],
        "text_mask": mask,
        "modality_indicator": np.array([[image is not None, text is not None]], np.float32),
    }


def tokens(rng: np.random.Generator, count: int) -> Floats | None:
    return rng.normal(size=(count, DIM)).astype(np.float32) if count else None


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("instructions", _core.row_instructions())
def test_items_get_what_torch_gives(instructions: str, compact: bool, made: Made, monkeypatch: Any) -> None:
    monkeypatch.setattr("uniecs.backends.item_fusion.ItemFusion", partial(_core.ItemFusion, instructions=instructions))
    model, graph = made(compact)
    fusion = item_fusion(graph, _core.Crew(2))
    assert fusion is not None
    rng = np.random.default_rng(0)
    for images, texts in ((0, 1), (0, 7), (0, 33), (1, 0), (12, 0), (65, 0), (12, 1), (3, 40), (1, 1)):
        image, text = tokens(rng, images), tokens(rng, texts)
        inputs = feed(image, text, texts)
        with torch.inference_mode():
            expected = model.fusion(*(torch.from_numpy(each) for each in inputs.values())).numpy()[0]
        np.testing.assert_allclose(fusion.embed([(image, text)])[0], expected, atol=2e-6)


@pytest.fixture(scope="module")
def tiny_fusion(made: Made) -> tuple[Any, Any]:
    """A fusion, and the graph that it is read from, compiled."""
    _, graph = made(False)
    compiled = make_core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return item_fusion(graph, _core.Crew(2)), compiled


def test_every_weight_counts(made: Made) -> None:
    """Each array that a network has, changed, changes some embedding; but for the keys' bias, which softmax drops."""
    arrays: dict[str, Floats] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("uniecs.backends.item_fusion.ItemFusion", lambda found, *_: arrays.update(found))
        item_fusion(made(False)[1], _core.Crew(1))
    rng = np.random.default_rng(1)
    items = [(tokens(rng, 5), None), (None, tokens(rng, 4)), (tokens(rng, 5), tokens(rng, 4))]

    def embeddings(given: dict[str, Floats]) -> Floats:
        return _core.ItemFusion(given, 2, _core.Crew(1)).embed(items)

    expected = embeddings(arrays)
    for name, array in arrays.items():
        changed = array.copy()
        changed[..., -1] += 1  # of keys and values: of a value
        assert np.abs(embeddings(arrays | {name: changed}) - expected).max() > 1e-6, name
    assert len(arrays) == 2 * 25 + 2 * 14 + 5  # sides, blocks, and what is around them


@pytest.mark.parametrize(
    "changes",
    [{"kind": "additive"}, {"kind": "feature"}, {"gated_layers": 2}, {"heads": 4}],
    ids=lambda each: str(each),
)
def test_other_fusions_are_left_to_the_graph(changes: dict[str, Any], tmp_path: Path) -> None:
    graph = random.exported(network(0, blocks=1, **changes), "fusion", tmp_path / "fusion.onnx", compact=False)
    assert item_fusion(graph, _core.Crew(1)) is None


def test_what_does_not_fit_is_an_error(tiny_fusion: tuple[Any, Any]) -> None:
    fusion, _ = tiny_fusion
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="neither image nor text"):
        fusion.embed([(tokens(rng, 2), None), (None, None)])
    with pytest.raises(ValueError, match=r"\(count, 64\)"):
        fusion.embed([(None, np.zeros((3, DIM + 1), np.float32))])
    with pytest.raises(ValueError, match=r"head\.bias"):
        _core.ItemFusion({}, 2, _core.Crew(1))
    with pytest.raises(ValueError, match="AVX2"):
        _core.ItemFusion({}, 2, _core.Crew(1), "instructions of another CPU")
    assert fusion.embed([]).shape == (0, DIM)
    assert np.isnan(fusion.embed([(np.full((3, DIM), np.nan, np.float32), tokens(rng, 2))])).all()


def test_many_threads_get_their_own_answers(tiny_fusion: tuple[Any, Any]) -> None:
    fusion, _ = tiny_fusion
    rng = np.random.default_rng(0)
    items = [(tokens(rng, int(rng.integers(0, 40))), tokens(rng, int(rng.integers(1, 40)))) for _ in range(64)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda item: fusion.embed([item])[0], items * 4))
    np.testing.assert_array_equal(together, [fusion.embed([item])[0] for item in items] * 4)
    np.testing.assert_array_equal(fusion.embed(items), together[: len(items)])


def test_few_tokens_leave_the_graph(tiny_fusion: tuple[Any, Any]) -> None:
    """Either way the answer is the same, and what is absent or padding is not read."""
    fusion, compiled = tiny_fusion
    rng, asked = np.random.default_rng(0), list[int]()

    def graph(inputs: Any) -> Floats:
        asked.append(len(inputs["modality_indicator"]))
        return np.array(compiled(inputs)[0])

    def compile_graph() -> Callable[[Any], Floats]:
        asked.append(0)
        return graph

    run = CoreFirst(partial(fused, fusion, _core.ItemFusion.FEW_TOKENS), compile_graph)
    text, image = tokens(rng, 8), tokens(rng, 12)
    assert text is not None and image is not None
    padded = text.copy()
    padded[5:] = np.nan
    for item in (feed(image, None), feed(None, text, 8), feed(None, padded, 5), feed(image, text, 3)):
        np.testing.assert_allclose(
            run(item), compiled({**item, "text_tokens": np.nan_to_num(item["text_tokens"])})[0], atol=2e-6
        )
    assert asked == []
    several = {
        name: np.concatenate([first, second])
        for (name, first), second in zip(
            feed(image, text, 3).items(), feed(image[::-1], text[::-1], 8).values(), strict=True
        )
    }
    np.testing.assert_allclose(run(several), compiled(several)[0], atol=2e-6)
    assert asked == []
    many = {name: np.repeat(each, 10, axis=0) for name, each in several.items()}
    long = feed(tokens(rng, _core.ItemFusion.FEW_TOKENS), text, 8)
    neither = {**several, "modality_indicator": np.zeros((2, 2), np.float32)}
    half = {**several, "modality_indicator": np.full((2, 2), 0.5, np.float32)}
    for given in (many, long, neither, half, feed(image, text, 0)):
        np.testing.assert_array_equal(run(given), np.array(compiled(given)[0]))
    assert asked == [0, 20, 1, 2, 2, 1]
    asked.clear()
    in_float32 = CoreFirst(partial(fused, fusion, None), compile_graph)
    for given in (many, long):
        np.testing.assert_allclose(in_float32(given), compiled(given)[0], atol=2e-6)
    assert asked == []
    np.testing.assert_array_equal(in_float32(half), np.array(compiled(half)[0]))
    assert asked == [0, 2]
