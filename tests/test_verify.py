"""The parity ladder: it must pass on a good bundle, and every check of it must fail on a damaged one."""

from __future__ import annotations

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

pytest.importorskip("torch", reason="making the bundle needs torch")
onnx = pytest.importorskip("onnx", reason="damaging a graph needs onnx")
pytest.importorskip("onnxruntime", reason="the ladder is compared on two engines")

from onnx import helper, numpy_helper  # noqa: E402
from safetensors.numpy import save_file  # noqa: E402

from uniecs.backends.base import create_backend  # noqa: E402
from uniecs.bundle import Bundle, open_bundle, write_manifest  # noqa: E402
from uniecs.errors import BundleError  # noqa: E402
from uniecs.export import verify  # noqa: E402
from uniecs.export.golden import ROWS, golden_set  # noqa: E402
from uniecs.export.tolerances import TOLERANCES  # noqa: E402
from uniecs.export.verify import compare, verify_bundle  # noqa: E402

ENGINES = ("openvino", "onnxruntime")
GRAPHS = ("image_encoder", "text_encoder", "fusion")
FROM_THE_OUTSIDE = {"one by one", "end to end"}
OF_THE_FUSION = {"fusion", "batch mates", "padding", "absent side"}
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


def failed_checks(folder: Path) -> set[str]:
    """The checks that fail on OpenVINO fp32 and on ONNX Runtime too."""
    bad = failed(folder)
    engines = [{check for name, each, check in bad if (name, each) == (engine, "fp32")} for engine in ENGINES]
    return engines[0] & engines[1]


def test_verify_passes_on_a_good_bundle(tiny_bundle: Path) -> None:
    report = verify_bundle(tiny_bundle)
    assert report.ok, report.table()
    checks = {(row.backend, row.precision, row.check) for row in report.rows}
    for backend in ENGINES:
        assert {
            (backend, "fp32", check) for check in (*GRAPHS, *FROM_THE_OUTSIDE, *OF_THE_FUSION, "overlap@10")
        } <= checks
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
    ("graph", "factor", "checks"),
    [
        ("image_encoder", 0.0, {"image_encoder", *FROM_THE_OUTSIDE}),
        ("text_encoder", 0.5, {"text_encoder", "padding", *FROM_THE_OUTSIDE}),
        ("fusion", 0.5, {*OF_THE_FUSION, *FROM_THE_OUTSIDE, "extreme inputs"}),
        ("fusion", math.nan, {*OF_THE_FUSION, *FROM_THE_OUTSIDE, "extreme inputs", "overlap@10"}),
    ],
)
def test_verify_fails_on_zeroed_halved_and_nan_outputs(
    altered: Path, graph: str, factor: float, checks: set[str]
) -> None:
    wrap_output(altered, graph, factor)
    assert failed_checks(altered) == checks
    report = verify_bundle(altered)
    assert not report.ok
    assert "FAILED" in report.table()
    json.dumps(report.to_dict(), allow_nan=False)


def replace_input(folder: Path, graph: str, name: str, *nodes: Any, **constants: Any) -> None:
    """Let a graph read "replaced", which `nodes` make of `name` and `constants`, in the place of its input `name`."""
    path = folder / f"{graph}.onnx"
    model = onnx.load(path)
    for node in model.graph.node:
        node.input[:] = ["replaced" if each == name else each for each in node.input]
    model.graph.initializer.extend(numpy_helper.from_array(np.array(value), key) for key, value in constants.items())
    for node in reversed(nodes):
        model.graph.node.insert(0, node)
    onnx.save(model, path)
    resign(folder)


def test_verify_fails_on_swapped_modalities(altered: Path) -> None:
    swap = helper.make_node("Gather", ["modality_indicator", "order"], ["replaced"], axis=1)
    replace_input(altered, "fusion", "modality_indicator", swap, order=[1, 0])
    assert failed_checks(altered) >= {*OF_THE_FUSION, *FROM_THE_OUTSIDE}


def test_verify_fails_where_an_absent_side_leaks(altered: Path) -> None:
    """The image's tokens without the indicator's zeros."""
    ones = helper.make_node("Div", ["modality_indicator", "modality_indicator"], ["raw"])
    clean = helper.make_node("Max", ["raw", "modality_indicator"], ["loud"])
    finite = helper.make_node("IsNaN", ["raw"], ["nan"])
    replaced = helper.make_node("Where", ["nan", "one", "loud"], ["replaced"])
    replace_input(altered, "fusion", "modality_indicator", ones, clean, finite, replaced, one=np.float32(1))
    assert "absent side" in failed_checks(altered)


def test_verify_fails_where_the_mean_of_the_batch_enters(altered: Path) -> None:
    mean = helper.make_node("ReduceMean", ["image_tokens", "damage.axis"], ["damage.mean"], keepdims=1)
    small = helper.make_node("Mul", ["damage.mean", "damage.share"], ["damage.part"])
    replaced = helper.make_node("Add", ["image_tokens", "damage.part"], ["replaced"])
    replace_input(
        altered,
        "fusion",
        "image_tokens",
        mean,
        small,
        replaced,
        **{"damage.axis": [0], "damage.share": np.float32(0.1)},
    )
    assert {"batch mates", "one by one"} <= failed_checks(altered)


def test_verify_fails_where_the_length_of_a_text_enters(altered: Path) -> None:
    """text_mask.sum() / Nt, which is 1 without padding, scales the tokens: right when padded like the golden rows."""
    shape = helper.make_node("Shape", ["text_mask"], ["damage.shape"])
    length = helper.make_node("Gather", ["damage.shape", "damage.one"], ["damage.length"], axis=0)
    wide = helper.make_node("Cast", ["damage.length"], ["damage.wide"], to=onnx.TensorProto.FLOAT)
    share = helper.make_node("Div", ["damage.wide", "damage.full"], ["damage.share"])
    replaced = helper.make_node("Mul", ["text_tokens", "damage.share"], ["replaced"])
    full = np.float32(open_bundle(altered).golden()["input_ids"].shape[1])
    replace_input(
        altered, "fusion", "text_tokens", shape, length, wide, share, replaced, **{"damage.one": 1, "damage.full": full}
    )
    bad = failed_checks(altered)
    assert "padding" in bad
    assert not bad & {"fusion", "batch mates"}


class Damaged:
    """A backend whose fusion gives every product of a batch the embedding of the one before it."""

    def __init__(self, runner: Any) -> None:
        self._runner = runner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def run(self, graph: str, inputs: Any) -> Any:
        output = self._runner.run(graph, inputs)
        return np.roll(output, 1, axis=0) if graph == "fusion" else output

    def embed(self, pixel_values: Any, tokens: Any) -> Any:
        return np.roll(self._runner.embed(pixel_values, tokens), 1, axis=0)


def test_verify_fails_where_one_engine_finds_other_neighbours(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def create(bundle: Bundle, backend: str, **options: Any) -> Any:
        runner = create_backend(bundle, backend, **options)
        return Damaged(runner) if backend == "onnxruntime" else runner

    monkeypatch.setattr(verify, "create_backend", create)
    bad = failed(tiny_bundle)
    assert ("onnxruntime", "fp32", "overlap@10") in bad
    assert {backend for backend, _, _ in bad} == {"onnxruntime"}


def test_verify_tells_fp32_from_bf16(altered: Path) -> None:
    def disturb(golden: Golden) -> None:
        noise = np.random.default_rng(0).normal(size=golden["embedding"].shape)
        length = np.linalg.norm(noise, axis=1, keepdims=True)
        golden["embedding"] += (0.01 * noise / length).astype(np.float32)

    alter_golden(altered, disturb)
    bad = failed(altered)
    assert {precision for _, precision, _ in bad} == {"fp32"}
    assert {check for _, _, check in bad} == {*OF_THE_FUSION, *FROM_THE_OUTSIDE}


@pytest.mark.parametrize("read", [False, True])
def test_verify_compares_the_text_tokens_that_are_read(altered: Path, read: bool) -> None:
    def disturb(golden: Golden) -> None:
        golden["text_tokens"][(golden["attention_mask"] != 0) == read] *= np.float32(-1)

    alter_golden(altered, disturb)
    assert {check for _, _, check in failed(altered)} == (
        {"text_encoder", "fusion", "batch mates", "absent side"} if read else set()
    )


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
    for precision, tolerance in TOLERANCES.items():
        assert compare(expected * np.float32(1 + 0.9 * tolerance.length), expected).within(precision)
        assert not compare(expected * np.float32(1 + 1.1 * tolerance.length), expected).within(precision)


def test_the_golden_set_holds_different_products() -> None:
    titles, pictures = golden_set()
    assert len(titles) == len(pictures) == len(set(titles)) == len({each.tobytes() for each in pictures}) == 64
