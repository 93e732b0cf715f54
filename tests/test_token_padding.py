"""Spare tokens (uniecs.backends.token_padding): they are there for a single photo, and change no embedding."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

torch = pytest.importorskip("torch", reason="the trainer needs torch: pip install 'uniecs[train]'")
onnx = pytest.importorskip("onnx", reason="exporting needs onnx: pip install 'uniecs[export]'")

from uniecs.backends import openvino, token_padding  # noqa: E402
from uniecs.backends.token_padding import pad_tokens  # noqa: E402
from uniecs.bundle import open_bundle, packaged_bundle  # noqa: E402
from uniecs.config import MODELS  # noqa: E402
from uniecs.export.graphs import export_graph  # noqa: E402
from uniecs.trainer.model import UniECS  # noqa: E402

TOKENS, SPARE, SIDE = 197, 3, 28
Floats = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def graphs(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the graphs of `tiny_bundle`, but for an image encoder with a ViT-B/16's number of tokens."""
    folder, tiny = tmp_path_factory.mktemp("graphs"), MODELS["tiny"]
    sizes = dataclasses.replace(tiny.preprocessing, height_px=SIDE, width_px=SIDE)
    config = dataclasses.replace(tiny, preprocessing=sizes, image=dataclasses.replace(tiny.image, patch_px=2))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = UniECS(config).eval()
    onnx.save(export_graph(model, "image_encoder"), folder / "image_encoder.onnx")
    for name in ("text_encoder", "fusion"):
        shutil.copy(tiny_bundle / f"{name}.onnx", folder)
    return folder


def read(path: Path) -> Any:
    return openvino.make_core().read_model(path)


def outputs(model: Any, batches: tuple[int, ...]) -> list[Floats]:
    """What a model, compiled in float32, makes of random photos, by the name of its output."""
    compiled = openvino.make_core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    rng = np.random.default_rng(0)
    photos = [rng.normal(size=(batch, 3, SIDE, SIDE)).astype(np.float32) for batch in batches]
    return [np.array(compiled({"pixel_values": each})["image_tokens"]) for each in photos]


def test_no_number_changes(graphs: Path) -> None:
    plain, padded = read(graphs / "image_encoder.onnx"), read(graphs / "image_encoder.onnx")
    assert pad_tokens(padded) == SPARE
    assert pad_tokens(padded) == 0  # once is enough
    batches = (1, 2, 1, 5)
    for expected, found in zip(outputs(plain, batches), outputs(padded, batches), strict=True):
        assert found.shape == expected.shape == (len(expected), TOKENS, 64)
        np.testing.assert_allclose(found, expected, atol=2e-6)


def test_spare_tokens_that_are_attended_to_would_show(graphs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, padded = read(graphs / "image_encoder.onnx"), read(graphs / "image_encoder.onnx")
    monkeypatch.setattr(token_padding, "_cut", lambda output, tokens: output)
    pad_tokens(padded)
    (expected,), (found,) = outputs(plain, (1,)), outputs(padded, (1,))
    assert found.shape == (1, TOKENS + SPARE, 64)
    assert np.abs(found[:, :TOKENS] - expected).max() > 1e-3
    (expected,), (found,) = outputs(plain, (2,)), outputs(padded, (2,))
    np.testing.assert_allclose(found, expected, atol=2e-6)  # which has no spare tokens


def centred(tokens: Any) -> Any:
    from openvino import opset8

    return opset8.subtract(tokens, opset8.reduce_mean(tokens, np.array([1]), keep_dims=True))


def marked(tokens: Any) -> Any:
    from openvino import opset8

    return opset8.add(tokens, opset8.constant(np.ones((1, TOKENS, 1), np.float32)))


def mixed(tokens: Any) -> Any:
    from openvino import opset8

    order = opset8.constant(np.array([0, 2, 1], np.int64))
    weights = opset8.constant(np.eye(TOKENS, dtype=np.float32))
    return opset8.transpose(opset8.matmul(opset8.transpose(tokens, order), weights, False, False), order)


@pytest.mark.parametrize("change", [centred, marked, mixed])
def test_what_looks_at_all_tokens_is_left_alone(graphs: Path, change: Any) -> None:
    model = read(graphs / "image_encoder.onnx")
    result = model.get_results()[0].input(0)
    result.replace_source_output(change(result.get_source_output()).output(0))
    model.validate_nodes_and_infer_types()
    before = [node.get_name() for node in model.get_ordered_ops()]
    assert pad_tokens(model) == 0
    assert [node.get_name() for node in model.get_ordered_ops()] == before


def test_other_graphs_are_left_alone(graphs: Path) -> None:
    """Texts have any length; of the packaged model's 49 photo tokens seven more would be too many."""
    for path in (
        graphs / "text_encoder.onnx",
        graphs / "fusion.onnx",
        packaged_bundle("mini") / "image_encoder.onnx",
    ):
        assert pad_tokens(read(path)) == 0, path


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_backend_pads_in_low_precisions(
    graphs: Path, tiny_bundle: Path, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = openvino.make_core()
    if precision != "fp32" and not openvino.has_precision(core, precision):
        pytest.skip(f"this CPU has no {precision}")
    bundle, spare = open_bundle(tiny_bundle), list[int]()
    monkeypatch.setenv("UNIECS_CACHE", "")
    monkeypatch.setattr(openvino, "pad_tokens", lambda model: spare.append(pad_tokens(model)) or spare[-1])
    monkeypatch.setattr(type(bundle), "graph_bytes", lambda self, name: (graphs / f"{name}.onnx").read_bytes())
    backend = openvino.OpenVinoBackend(bundle, "cpu", precision, 1)
    photos = np.random.default_rng(1).normal(size=(1, 3, SIDE, SIDE)).astype(np.float32)
    found = backend.run("image_encoder", {"pixel_values": photos})
    plain = openvino.OpenVinoBackend(bundle, "cpu", "fp32", 1).run("image_encoder", {"pixel_values": photos})
    assert spare == ([] if precision == "fp32" else [SPARE])
    assert found.shape == (1, TOKENS, 64)
    np.testing.assert_allclose(found, plain, atol=0.05)


def test_cpp_does_the_same(cpp_sdk_build: Path, graphs: Path) -> None:
    """The spare tokens, and the largest differences of batches of 1, 2 and 1, in float32."""
    mini = packaged_bundle("mini") / "image_encoder.onnx"
    for path, spare in ((graphs / "image_encoder.onnx", SPARE), (mini, 0)):
        told = subprocess.run([cpp_sdk_build / "token_padding", path], capture_output=True, text=True, check=True)
        count, *most = told.stdout.split()
        assert (int(count), len(most)) == (spare, 3)
        assert max(map(float, most)) < 2e-6
