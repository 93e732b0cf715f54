"""The exporter and the check of a bundle, which must pass on a good bundle and fail on each damaged one."""

from __future__ import annotations

import csv
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the exporter needs torch")
onnx = pytest.importorskip("onnx", reason="the exporter needs onnx")
pytest.importorskip("onnxscript", reason="the exporter needs onnxscript")
ort = pytest.importorskip("onnxruntime", reason="the exporter checks its graphs on ONNX Runtime")

from onnx import helper, numpy_helper  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors.numpy import save_file  # noqa: E402

from uniecs.backends.base import create_backend  # noqa: E402
from uniecs.bundle import Bundle, open_bundle, write_manifest  # noqa: E402
from uniecs.config import MODELS, ImageEncoderConfig, ModelConfig, Preprocessing, TextEncoderConfig  # noqa: E402
from uniecs.errors import BundleError, CheckpointError, ConfigError, ParityError  # noqa: E402
from uniecs.export import bundle_export  # noqa: E402
from uniecs.export.bundle_export import export_bundle, parity_feeds  # noqa: E402
from uniecs.export.golden import ROWS, draw_picture  # noqa: E402
from uniecs.export.graphs import export_graph, graph_specs  # noqa: E402
from uniecs.export.verify import compare, norm_limit, verify_bundle  # noqa: E402
from uniecs.export.weights import round_weights  # noqa: E402
from uniecs.trainer.checkpoint import load_checkpoint, save_checkpoint  # noqa: E402
from uniecs.trainer.model import UniECS  # noqa: E402

GRAPHS = ("image_encoder", "text_encoder", "fusion")
Golden = dict[str, Any]


def resign(folder: Path, **changes: Any) -> Bundle:
    """Write the manifest anew, as somebody would who altered the bundle on purpose."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    for key in ("files", "model_id"):
        del manifest[key]
    return write_manifest(folder, manifest | changes)


@pytest.fixture
def altered(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the tiny bundle that a test may damage."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "altered"))


def alter_golden(folder: Path, change: Callable[[Golden], None]) -> None:
    golden = open_bundle(folder).golden()
    change(golden)
    save_file(golden, folder / "golden.safetensors")
    resign(folder)


def failed(folder: Path) -> set[tuple[str, str, str]]:
    return {(row.backend, row.precision, row.check) for row in verify_bundle(folder).rows if not row.ok}


# --- the bundle


def test_the_bundle_follows_the_contract(tiny_bundle: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    specs = graph_specs(ModelConfig.from_dict(bundle.manifest["model"]))
    for name in GRAPHS:
        model = onnx.load(bundle.graph_path(name))
        onnx.checker.check_model(model)
        assert [(each.domain, each.version) for each in model.opset_import] == [("", 18)]
        assert bundle.manifest["graphs"][name] == specs[name].to_dict(f"{name}.onnx")
        for ports, expected in (
            (model.graph.input, specs[name].inputs),
            (model.graph.output, specs[name].outputs),
        ):
            shapes = {p.name: tuple(d.dim_param or d.dim_value for d in p.type.tensor_type.shape.dim) for p in ports}
            assert shapes == {key: port.shape for key, port in expected.items()}
    assert bundle.manifest["provenance"]["seed"] == 0
    assert bundle.manifest["provenance"]["export"]["rounding_min_cosine"] > 0.999
    assert bundle.manifest["golden"]["texts"] == [row.text for row in ROWS]
    kinds = {tuple(row) for row in bundle.golden()["modality_indicator"].tolist()}
    assert kinds == {(1.0, 0.0), (0.0, 1.0), (1.0, 1.0)}


def test_graphs_hold_no_local_paths(tiny_bundle: Path) -> None:
    for name in GRAPHS:
        data = (tiny_bundle / f"{name}.onnx").read_bytes()
        assert b"site-packages" not in data
        assert b".py" not in data


def test_compact_weights_are_int8_and_float16(tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    large = {}
    for name in GRAPHS:
        for each in onnx.load(tiny_bundle / f"{name}.onnx").graph.initializer:
            if math.prod(each.dims) >= 1024:
                large[each.name] = numpy_helper.to_array(each).dtype
    table = "backbone.embeddings.word_embeddings.weight"
    assert large.pop(f"{table}.int8") == np.int8
    assert large.pop(f"{table}.scale") == np.float32
    assert len(large) > 20
    assert set(large.values()) == {np.dtype(np.float16)}
    full = export_graph(load_checkpoint(tiny_checkpoint).model, "text_encoder").ByteSize()
    assert (tiny_bundle / "text_encoder.onnx").stat().st_size < 0.4 * full


def test_the_gate_table_is_folded(tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    model = load_checkpoint(tiny_checkpoint).model
    round_weights(model)
    gate = model.fusion.image_sides[0].gate
    dim = model.config.embed_dim
    folded = (gate.linear.weight[:, 2 * dim :] @ gate.indicator_embedding).detach().numpy()
    constants = [numpy_helper.to_array(i) for i in onnx.load(tiny_bundle / "fusion.onnx").graph.initializer]
    assert any(c.size == dim and c.dtype == np.float32 and np.allclose(c.ravel(), folded, atol=1e-6) for c in constants)


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("graph", GRAPHS)
def test_each_graph_equals_torch_at_all_sizes(
    tiny_bundle: Path, tiny_checkpoint: Path, backend: str, graph: str
) -> None:
    model = load_checkpoint(tiny_checkpoint).model
    round_weights(model)
    runner = create_backend(open_bundle(tiny_bundle), backend, device="cpu", precision="fp32")
    sizes = set()
    for feed in parity_feeds(model.config, graph):
        with torch.inference_mode():
            expected = getattr(model, graph)(*map(torch.from_numpy, feed.values())).numpy()
        np.testing.assert_allclose(runner.run(graph, feed), expected, atol=1e-5)
        sizes.add(tuple(array.shape[:2] for array in feed.values())[:2])
    assert len(sizes) == {"image_encoder": 3, "text_encoder": 9, "fusion": 18}[graph]


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_an_absent_buffer_may_hold_anything(tiny_bundle: Path, backend: str) -> None:
    bundle = open_bundle(tiny_bundle)
    golden = bundle.golden()
    feed = {name: golden[name].copy() for name in ("image_tokens", "text_tokens", "modality_indicator")}
    feed["text_mask"] = golden["attention_mask"]
    for column, name in enumerate(("image_tokens", "text_tokens")):
        feed[name][golden["modality_indicator"][:, column] == 0] = np.nan
    embedding = create_backend(bundle, backend, device="cpu", precision="fp32").run("fusion", feed)
    np.testing.assert_allclose(embedding, golden["embedding"], atol=1e-5)


def test_a_first_run_with_one_token_spoils_no_later_run(tmp_path: Path) -> None:
    """OpenVINO 2026.4 fails this without `guard_attention`."""
    openvino = pytest.importorskip("openvino", reason="the fault was OpenVINO's")
    data = MODELS["tiny"].to_dict() | {"embed_dim": 256}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = UniECS(ModelConfig.from_dict(data)).eval()
    onnx.save(export_graph(model, "fusion"), tmp_path / "fusion.onnx")
    core = openvino.Core()
    compiled = core.compile_model(tmp_path / "fusion.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    rng = np.random.default_rng(0)
    for image_length, text_length, kind in ((1, 5, (0, 1)), (49, 1, (1, 0)), (49, 7, (1, 1))):
        feed = [
            rng.normal(size=(1, image_length, 256)).astype(np.float32),
            rng.normal(size=(1, text_length, 256)).astype(np.float32),
            np.ones((1, text_length), np.int64),
            np.array([kind], np.float32),
        ]
        with torch.inference_mode():
            expected = model.fusion(*map(torch.from_numpy, feed)).numpy()
        np.testing.assert_allclose(compiled(feed)[0], expected, atol=1e-5)


def test_clip_image_towers_export_too() -> None:
    config = ModelConfig(
        name="clip",
        preprocessing=Preprocessing(height_px=16, width_px=16, max_tokens=8),
        embed_dim=16,
        image=ImageEncoderConfig(kind="clip", patch_px=8, hidden=16, layers=1, heads=2, intermediate=32),
        text=TextEncoderConfig(vocab_size=50, hidden=16, layers=1, heads=2, intermediate=32, max_positions=8),
    )
    model = UniECS(config).eval()
    session = ort.InferenceSession(export_graph(model, "image_encoder").SerializeToString())
    for feed in parity_feeds(config, "image_encoder"):
        with torch.inference_mode():
            expected = model.image_encoder(torch.from_numpy(feed["pixel_values"])).numpy()
        np.testing.assert_allclose(session.run(None, feed)[0], expected, atol=1e-5)


def test_evaluation_goes_into_the_manifest_and_the_model_id_stays(
    tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sklearn", reason="the baselines need scikit-learn")
    for number in range(4):
        Image.fromarray(draw_picture(number)).save(tmp_path / f"{number}.png")
    with (tmp_path / "catalog.csv").open("w", newline="") as file:
        rows = [(str(i), f"product number {i // 2} {'red' if i % 2 else 'blue'}", f"{i}.png") for i in range(4)]
        csv.writer(file).writerows([("id", "title", "image"), *rows])
    (tmp_path / "pairs.csv").write_text("trigger_id,recall_id\n0,1\n2,3\n")
    bundle = export_bundle(
        tiny_checkpoint, tmp_path / "out", catalog=tmp_path / "catalog.csv", pairs=tmp_path / "pairs.csv"
    )
    evaluation = bundle.manifest["evaluation"]
    assert evaluation["pairs"] == 2
    assert len(evaluation["tasks"]) == 9
    assert set(evaluation["baselines"]) == {"tfidf", "raw_pixels"}
    assert (evaluation["backend"], evaluation["precision"]) == ("openvino", "fp32")
    # The same checkpoint gives the same files, and the figures are no part of the model's identity.
    assert bundle.model_id == open_bundle(tiny_bundle).model_id == evaluation["model_id"]
    assert open_bundle(tiny_bundle).manifest["evaluation"] is None
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")


# --- what is refused


def test_an_existing_folder_is_never_overwritten(tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    with pytest.raises(BundleError, match="never overwritten"):
        export_bundle(tiny_checkpoint, out)
    assert (out / "mine.txt").read_text() == "keep"


def test_half_an_evaluation_and_unknown_storage_are_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="both a catalogue and a pairs file"):
        export_bundle(tiny_checkpoint, tmp_path / "out", pairs=tmp_path / "pairs.csv")
    with pytest.raises(ConfigError, match="int4"):
        export_bundle(tiny_checkpoint, tmp_path / "out", weights="int4")  # type: ignore[arg-type]


def test_a_graph_that_differs_from_torch_leaves_nothing(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(model: UniECS, name: str) -> Any:
        graph = export_graph(model, name)
        if name == "image_encoder":
            bias = next(each for each in graph.graph.initializer if each.name == "proj.bias")
            bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(0.1), "proj.bias"))
        return graph

    monkeypatch.setattr(bundle_export, "export_graph", wrong)
    with pytest.raises(ParityError, match="image_encoder differs from torch"):
        export_bundle(tiny_checkpoint, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("value", "message"), [(1e6, "beyond float16"), (math.nan, "NaN")])
def test_weights_that_cannot_be_stored_are_refused(
    tiny_checkpoint: Path, tmp_path: Path, value: float, message: str
) -> None:
    loaded = load_checkpoint(tiny_checkpoint)
    with torch.no_grad():
        loaded.model.fusion.head.weight[0, 0] = value
    save_checkpoint(tmp_path / "checkpoint", loaded.model, loaded.tokenizer_json, {})
    with pytest.raises(CheckpointError, match=message) as caught:
        export_bundle(tmp_path / "checkpoint", tmp_path / "out")
    assert "fusion.head.weight" in str(caught.value)
    assert [each.name for each in tmp_path.iterdir()] == ["checkpoint"]


def test_a_tokenizer_larger_than_the_word_table_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    loaded = load_checkpoint(tiny_checkpoint)
    data = loaded.config.to_dict()
    data["text"]["vocab_size"] = 100
    small = UniECS(ModelConfig.from_dict(data))
    save_checkpoint(tmp_path / "checkpoint", small, loaded.tokenizer_json, {})
    with pytest.raises(CheckpointError, match="embeds 100"):
        export_bundle(tmp_path / "checkpoint", tmp_path / "out")


# --- verify


def test_verify_passes_on_a_good_bundle(tiny_bundle: Path) -> None:
    report = verify_bundle(tiny_bundle)
    assert report.ok, report.table()
    checks = {(row.backend, row.precision, row.check) for row in report.rows}
    for backend in ("openvino", "onnxruntime"):
        assert {(backend, "fp32", check) for check in (*GRAPHS, "one by one", "end to end")} <= checks
    assert {("preprocess", "exact", "pixel_values"), ("preprocess", "exact", "input_ids")} <= checks
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["ok"] is True
    assert len(report.table().splitlines()) == 2 + len(report.rows) + len(report.skipped)


def test_verify_needs_no_torch(tiny_bundle: Path) -> None:
    code = (
        "import sys; from uniecs.export.verify import verify_bundle; report = verify_bundle(sys.argv[1]); "
        "assert report.ok, report.table(); assert not {'torch', 'onnx', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tiny_bundle)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def wrap_output(folder: Path, graph: str, factor: float) -> None:
    """Multiply the output of a graph by `factor`."""
    path = folder / f"{graph}.onnx"
    model = onnx.load(path)
    output = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = ["true_output" if name == output else name for name in node.output]
        node.input[:] = ["true_output" if name == output else name for name in node.input]
    model.graph.initializer.append(numpy_helper.from_array(np.float32(factor), "factor"))
    model.graph.node.append(helper.make_node("Mul", ["true_output", "factor"], [output]))
    onnx.save(model, path)
    resign(folder)


@pytest.mark.parametrize(
    ("graph", "factor"),
    [("image_encoder", 0.0), ("text_encoder", 0.5), ("fusion", 0.5), ("fusion", math.nan)],
)
def test_verify_fails_on_zeroed_halved_and_nan_outputs(altered: Path, graph: str, factor: float) -> None:
    wrap_output(altered, graph, factor)
    report = verify_bundle(altered)
    bad = {(row.backend, row.check) for row in report.rows if not row.ok}
    for backend in ("openvino", "onnxruntime"):
        assert {check for name, check in bad if name == backend} == {graph, "one by one", "end to end"}
    assert not report.ok
    assert "FAILED" in report.table()
    json.dumps(report.to_dict(), allow_nan=False)


def test_verify_fails_on_swapped_modalities(altered: Path) -> None:
    path = altered / "fusion.onnx"
    model = onnx.load(path)
    for node in model.graph.node:
        node.input[:] = ["swapped" if name == "modality_indicator" else name for name in node.input]
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 0]), "order"))
    model.graph.node.insert(0, helper.make_node("Gather", ["modality_indicator", "order"], ["swapped"], axis=1))
    onnx.save(model, path)
    resign(altered)
    bad = failed(altered)
    for backend in ("openvino", "onnxruntime"):
        assert {check for name, _, check in bad if name == backend} == {"fusion", "one by one", "end to end"}


def test_verify_tells_fp32_from_bf16(altered: Path) -> None:
    def disturb(golden: Golden) -> None:
        noise = np.random.default_rng(0).normal(size=golden["embedding"].shape)
        length = np.linalg.norm(noise, axis=1, keepdims=True)
        golden["embedding"] += (0.01 * noise / length).astype(np.float32)

    alter_golden(altered, disturb)
    bad = failed(altered)
    assert {precision for _, precision, _ in bad} == {"fp32"}
    assert {check for _, _, check in bad} == {"fusion", "one by one", "end to end"}


@pytest.mark.parametrize("read", [False, True])
def test_verify_compares_the_text_tokens_that_are_read(altered: Path, read: bool) -> None:
    def disturb(golden: Golden) -> None:
        golden["text_tokens"][(golden["attention_mask"] != 0) == read] *= np.float32(-1)

    alter_golden(altered, disturb)
    assert {check for _, _, check in failed(altered)} == ({"text_encoder", "fusion"} if read else set())


def test_verify_fails_on_preprocessing_that_differs(altered: Path) -> None:
    def nudge(golden: Golden) -> None:
        golden["pixel_values"][0, 0, 0, 0] = np.nextafter(golden["pixel_values"][0, 0, 0, 0], np.float32(9))

    alter_golden(altered, nudge)
    assert failed(altered) == {("preprocess", "exact", "pixel_values")}
    texts = [None if row.text is None else f"{row.text}!" for row in ROWS]
    resign(altered, golden={"texts": texts})
    assert ("preprocess", "exact", "input_ids") in failed(altered)


def test_verify_refuses_golden_rows_that_do_not_fit_their_texts(altered: Path) -> None:
    resign(altered, golden={"texts": [None] * len(ROWS)})
    with pytest.raises(BundleError, match="does not fit the manifest's texts"):
        verify_bundle(altered)


@pytest.mark.parametrize("factor", [0.0, 0.5, -1.0, math.nan, math.inf])
def test_compare_rejects_one_wrong_row(factor: float) -> None:
    expected = np.random.default_rng(1).normal(size=(3, 4, 8)).astype(np.float32)
    assert compare(expected, expected).within("fp32")
    actual = expected.copy()
    actual[1, 2] *= np.float32(factor)
    assert not compare(actual, expected).within("bf16")
    assert not compare(expected[:2], expected).within("bf16")


def test_lengths_are_held_as_tightly_as_directions() -> None:
    expected = np.ones((1, 4), np.float32)
    for precision in ("fp32", "bf16"):
        assert compare(expected * np.float32(1 + 0.9 * norm_limit(precision)), expected).within(precision)
        assert not compare(expected * np.float32(1 + 1.1 * norm_limit(precision)), expected).within(precision)


def test_golden_pictures_are_different_and_not_blank() -> None:
    pictures = [draw_picture(number) for number in range(6)]
    assert all(len(np.unique(picture.reshape(-1, 3), axis=0)) > 3 for picture in pictures)
    assert len({picture.tobytes() for picture in pictures}) == 6
