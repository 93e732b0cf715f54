"""The int8 variant: its recipe, its kernels, and the gate that a worse recipe does not pass."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from uniecs.backends import openvino, openvino_int8
from uniecs.backends.base import available_backends, create_backend
from uniecs.backends.openvino import OpenVinoBackend, make_core
from uniecs.backends.openvino_int8 import quantize
from uniecs.bundle import Bundle, open_bundle, packaged_bundle, write_manifest
from uniecs.catalog import Product
from uniecs.cli import main
from uniecs.drawn_catalog import DrawnProduct, draw, drawn_products, varied
from uniecs.encoder import load
from uniecs.errors import BackendError, BundleError, CatalogError, ParityError
from uniecs.evaluation import TASKS, Pairs
from uniecs.int8_recipe import Int8Recipe, QuantizedInput, parse_recipe, read_recipe

ENCODERS = ("image_encoder", "text_encoder")


def changed(recipe: Int8Recipe, change: Callable[[QuantizedInput], QuantizedInput]) -> Int8Recipe:
    """The recipe with every quantised input changed."""
    return replace(recipe, graphs={name: tuple(map(change, inputs)) for name, inputs in recipe.graphs.items()})


def kernels(bundle: Bundle, graph: str, inputs: Sequence[QuantizedInput]) -> list[str]:
    """The precision of each matrix product of the compiled graph, as OpenVINO reports what it runs."""
    core = make_core()
    model = core.read_model(bundle.graph_path(graph))
    quantize(model, inputs)
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    infos = [node.get_rt_info() for node in compiled.get_runtime_model().get_ordered_ops()]
    products = [info for info in infos if info["layerType"].value in ("FullyConnected", "MatMul")]
    return [info["runtimePrecision"].value for info in products]


# --- the recipe as a file


RECIPE = Int8Recipe("fake-0", {"text_encoder": (QuantizedInput(("a", "b"), -1.5, 0.1, (0.25, 3.0)),)})


def test_a_recipe_survives_its_file() -> None:
    assert parse_recipe(RECIPE.to_json()) == RECIPE


@pytest.mark.parametrize(
    "edit",
    [
        lambda read: read.update(format="other"),
        lambda read: read.update(format_version=2),
        lambda read: read.pop("model_id"),
        lambda read: read.update(graphs=[]),
        lambda read: read["graphs"].update(other=[]),
        lambda read: read["graphs"]["text_encoder"][0].update(low=1.0),
        lambda read: read["graphs"]["text_encoder"][0].update(low=0.05),
        lambda read: read["graphs"]["text_encoder"][0].update(high="much"),
        lambda read: read["graphs"]["text_encoder"][0].update(scale=[1.0, 0.0]),
        lambda read: read["graphs"]["text_encoder"][0].update(scale=[1.0, 1e999]),
        lambda read: read["graphs"]["text_encoder"][0].update(scale=[]),
        lambda read: read["graphs"]["text_encoder"][0].update(matmuls=[]),
        lambda read: read["graphs"]["text_encoder"][0].pop("matmuls"),
    ],
)
def test_a_bad_recipe_is_a_bundle_error(edit: Callable[[Any], Any]) -> None:
    read = json.loads(RECIPE.to_json())
    edit(read)
    with pytest.raises(BundleError, match=r"int8\.json is not an int8 recipe"):
        parse_recipe(json.dumps(read))


# --- what runs


def test_int8_of_a_bundle_without_the_variant_is_an_error(tiny_bundle: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    with pytest.raises(BackendError, match=r"has no int8 variant.*uniecs quantize"):
        create_backend(bundle, precision="int8")
    with pytest.raises(BackendError, match="not in int8; use backend='openvino'"):
        create_backend(bundle, "onnxruntime", precision="int8")


def test_int8_where_its_sums_overflow_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO would compute with AVX2 alone, and far off."""
    monkeypatch.setattr(openvino, "has_byte_products", lambda: False)
    with pytest.raises(BackendError, match=r"VNNI.* use precision='fp32'"):
        load("mini", precision="int8")
    assert "int8" not in available_backends()["openvino"]
    assert load("mini", precision="fp32").precision == "fp32"


@pytest.fixture(scope="module")
def int8_cpu() -> None:
    if not openvino.has_precision(make_core(), "int8"):
        pytest.skip("this CPU has no int8 arithmetic for an engine (VNNI): int8 is refused")


@pytest.fixture
def any_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what int8 computes does not matter: it is taken to be right."""
    monkeypatch.setattr(openvino, "has_byte_products", lambda: True)


@pytest.fixture(scope="module")
def tiny(tiny_bundle: Path) -> Bundle:
    return open_bundle(tiny_bundle)


@pytest.fixture(scope="module")
def feeds(tiny: Bundle) -> dict[str, list[dict[str, Any]]]:
    """Twelve products of noise for each encoder of the tiny bundle."""
    rng = np.random.default_rng(0)
    p, words = tiny.preprocessing, tiny.manifest["model"]["text"]["vocab_size"]
    pixels = rng.normal(size=(12, 1, 3, p.height_px, p.width_px)).astype(np.float32)
    ids = [rng.integers(5, words, size=(1, length)) for length in range(2, 14)]
    texts = [{"input_ids": each, "attention_mask": np.ones_like(each)} for each in ids]
    return {"image_encoder": [{"pixel_values": each} for each in pixels], "text_encoder": texts}


@pytest.fixture(scope="module")
def recipe(tiny: Bundle, feeds: Any) -> Int8Recipe:
    if importlib.util.find_spec("nncf") is None:
        pytest.skip("calibration needs nncf")  # not importorskip: its import would report home
    from uniecs.export.quantize import calibrate

    return calibrate(tiny, feeds)


def test_calibration_finds_every_matrix_product_with_weights(tiny: Bundle, recipe: Int8Recipe) -> None:
    core = make_core()
    assert set(recipe.graphs) == set(ENCODERS)
    for graph, inputs in recipe.graphs.items():
        nodes = [node for node in core.read_model(tiny.graph_path(graph)).get_ops() if node.get_type_name() == "MatMul"]
        weighted = {node.get_friendly_name() for node in nodes if openvino_int8.constant_weights(node) is not None}
        assert {name for each in inputs for name in each.matmuls} == weighted
        assert 0 < len(weighted) < len(nodes)  # attention multiplies activations, and stays as it is
        assert any(min(each.scale) < max(each.scale) for each in inputs)


def test_the_same_products_give_the_same_recipe(tiny: Bundle, feeds: Any, recipe: Int8Recipe) -> None:
    from uniecs.export.quantize import calibrate

    assert calibrate(tiny, feeds) == recipe
    assert parse_recipe(recipe.to_json()) == recipe


@pytest.mark.parametrize("graph", ENCODERS)
def test_matrix_products_run_in_int8(tiny: Bundle, recipe: Int8Recipe, graph: str) -> None:
    inputs = recipe.graphs[graph]
    before, after = kernels(tiny, graph, ()), kernels(tiny, graph, inputs)
    assert not {"i8", "u8"} & set(before)
    assert sum(each in ("i8", "u8") for each in after) == sum(len(each.matmuls) for each in inputs)


@pytest.mark.usefixtures("int8_cpu")
@pytest.mark.parametrize("graph", ENCODERS)
def test_int8_is_near_fp32_and_only_for_the_right_ranges(
    tiny: Bundle, recipe: Int8Recipe, feeds: Any, graph: str
) -> None:
    narrow = changed(recipe, lambda each: replace(each, low=each.low / 10, high=each.high / 10))
    fp32 = create_backend(tiny, "openvino", "cpu", "fp32")

    def cosine(which: Int8Recipe) -> float:
        int8 = OpenVinoBackend(tiny, "cpu", "int8", 1, which)
        pairs = [(int8.run(graph, feed).ravel(), fp32.run(graph, feed).ravel()) for feed in feeds[graph]]
        return float(min(a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in pairs))

    assert cosine(narrow) < 0.99 < 0.998 < cosine(recipe) < 1 - 1e-7


def test_scales_leave_the_product_unchanged(tiny: Bundle, recipe: Int8Recipe, feeds: Any) -> None:
    """What the scale takes from the weights it gives to the input: with wide levels only rounding is left."""
    core, graph = make_core(), "text_encoder"
    levels = (openvino_int8.INPUT_LEVELS, openvino_int8.WEIGHT_LEVELS)
    model, plain = (core.read_model(tiny.graph_path(graph)) for _ in range(2))
    openvino_int8.INPUT_LEVELS, openvino_int8.WEIGHT_LEVELS = 1 << 20, 1 << 20
    try:
        quantize(model, recipe.graphs[graph])
    finally:
        openvino_int8.INPUT_LEVELS, openvino_int8.WEIGHT_LEVELS = levels
    config = {"INFERENCE_PRECISION_HINT": "f32"}
    a, b = (core.compile_model(each, "CPU", config)(feeds[graph][3])[0] for each in (model, plain))
    np.testing.assert_allclose(a, b, atol=2e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda each: replace(each, matmuls=("node_of_another_model",)), "there is no matrix product"),
        (lambda each: replace(each, scale=each.scale[1:]), "another kind of matrix product"),
    ],
)
@pytest.mark.usefixtures("any_cpu")
def test_a_recipe_that_does_not_fit_the_graph_is_an_error(
    tiny: Bundle, recipe: Int8Recipe, feeds: Any, change: Callable[[QuantizedInput], QuantizedInput], message: str
) -> None:
    backend = OpenVinoBackend(tiny, "cpu", "int8", 1, changed(recipe, change))
    with pytest.raises(BundleError, match=f"does not fit the graph: .*{message}"):
        backend.run("text_encoder", feeds["text_encoder"][0])


@pytest.mark.usefixtures("any_cpu")
def test_products_of_different_inputs_do_not_share_a_range(tiny: Bundle, recipe: Int8Recipe, feeds: Any) -> None:
    first, second = (each for each in recipe.graphs["text_encoder"] if len(each.matmuls) == 3)
    joined = replace(first, matmuls=(*first.matmuls, *second.matmuls))
    backend = OpenVinoBackend(tiny, "cpu", "int8", 1, replace(recipe, graphs={"text_encoder": (joined,)}))
    with pytest.raises(BundleError, match="another kind of matrix product"):
        backend.run("text_encoder", feeds["text_encoder"][0])


def test_a_recipe_of_another_model_is_refused(tiny: Bundle, recipe: Int8Recipe) -> None:
    with pytest.raises(BundleError, match="the int8 recipe is of model tiny-0123"):
        OpenVinoBackend(tiny, "cpu", "int8", 1, replace(recipe, model_id="tiny-0123"))


# --- the command


@pytest.fixture
def products(draw_catalog: Callable[[Path], list[dict[str, Any]]], tmp_path: Path) -> tuple[Path, Path, Path]:
    """Products to calibrate on, a catalogue, and pairs of it with ten candidates: recall@10 is 1 whatever the model."""
    rows = draw_catalog(tmp_path)
    others = [{**row, "id": f"other-{row['id']}"} for row in rows]
    (tmp_path / "others.jsonl").write_text("".join(json.dumps(each) + "\n" for each in others))
    ids = [row["id"] for row in rows][:20]
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("trigger_id,recall_id\n" + "".join(f"{a},{b}\n" for a, b in zip(ids[::2], ids[1::2], strict=True)))
    return tmp_path / "others.jsonl", tmp_path / "products.jsonl", pairs


def quantize_command(bundle: Path, out: Path, products: tuple[Path, Path, Path]) -> int:
    calibration, catalog, pairs = map(str, products)
    files = ["--calibration", calibration, "--catalog", catalog, "--pairs", pairs]
    return main(["quantize", str(bundle), "--out", str(out), *files])


@pytest.fixture
def calibrated(int8_cpu: None, recipe: Int8Recipe, monkeypatch: pytest.MonkeyPatch) -> Int8Recipe:
    """The command without NNCF's work, which other tests show."""
    pytest.importorskip("sklearn", reason="the evaluation's baselines need scikit-learn")
    from uniecs.export import quantize as quantization

    monkeypatch.setattr(quantization, "calibrate", lambda *_: recipe)
    return recipe


def test_quantize_writes_a_bundle_with_the_variant(
    tiny: Bundle,
    calibrated: Int8Recipe,
    products: tuple[Path, Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "new"
    assert quantize_command(tiny.path, out, products) == 0
    printed = capsys.readouterr().out
    assert all(f"\n{task} " in printed for task in TASKS)
    assert "int8 passes" in printed
    made = open_bundle(out)
    assert made.model_id == tiny.model_id
    assert read_recipe(made) == calibrated
    variant = made.manifest["variants"]["int8"]
    assert variant["evaluation"]["precision"] == "int8"
    assert variant["evaluation"]["falls"] == dict.fromkeys(TASKS, 0.0)
    assert variant["calibration"]["products"] == 24
    a, b = (load(out, precision=each).encode(texts=["red shirt", "blue bag"]) for each in ("fp32", "int8"))
    assert 0.99 < np.einsum("nd,nd->n", a, b).min() < 1 - 1e-7
    assert quantize_command(tiny.path, out, products) == 1  # never overwritten


def test_quantize_refuses_what_loses_recall(
    tiny: Bundle,
    calibrated: Int8Recipe,
    products: tuple[Path, Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from uniecs.export import quantize as quantization

    monkeypatch.setattr(quantization, "MAX_FALL", -0.1)
    before = sorted(tmp_path.iterdir())
    assert quantize_command(tiny.path, tmp_path / "new", products) == 1
    output = capsys.readouterr()
    assert "int8 FAILS" in output.out
    assert "nothing is written" in output.err
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.usefixtures("any_cpu")
def test_mistakes_are_told_before_the_calibration(
    tiny: Bundle,
    products: tuple[Path, Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from uniecs.export import quantize as quantization

    monkeypatch.setattr(quantization, "calibrate", lambda *_: pytest.fail("it was calibrated"))
    calibration, catalog, pairs = products
    with pytest.raises(CatalogError, match="cannot read the pairs file"):
        quantization.try_int8(tiny, calibration, catalog, pairs.with_name("none.csv"))
    with pytest.raises(CatalogError, match=r"share 24 ids, such as .*expected other products"):
        quantization.try_int8(tiny, catalog, catalog, pairs)
    monkeypatch.setattr(openvino, "has_byte_products", lambda: False)
    with pytest.raises(BackendError, match="VNNI"):
        quantization.try_int8(tiny, calibration, catalog, pairs)
    assert quantize_command(tiny.path, catalog / "out", products) == 1
    assert f"{catalog / 'out'} cannot be written" in capsys.readouterr().err


def test_there_must_be_products_to_calibrate_on(tiny: Bundle) -> None:
    from uniecs.export.quantize import calibration_feeds

    with pytest.raises(CatalogError, match="no product to calibrate on"):
        calibration_feeds(tiny, {"1": Product("1", "only a title", None, {})})


def test_a_variant_must_be_a_listed_file(tiny: Bundle, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny.path, tmp_path / "copy"))
    for entry, message in (
        ({"file": "int8.json"}, "not among the manifest's files"),
        ({"file": "../x"}, "plain file name"),
        ({}, "expected a JSON str"),
    ):
        with pytest.raises(BundleError, match=message):
            write_manifest(folder, {**tiny.manifest, "variants": {"int8": entry}})


# --- the shipped model


def shop(drawn: Sequence[DrawnProduct]) -> tuple[dict[str, Product], Pairs]:
    """Each drawn product twice: another photo, and a title without the brand."""
    products, pairs = {}, []
    for each in drawn:
        twin = f"{each.id}-twin"
        products[each.id] = Product(each.id, each.title, draw(each.look), {})
        products[twin] = Product(twin, each.title.split(" ", 1)[1], varied(each), {})
        pairs.append((each.id, twin))
    return products, pairs


@pytest.mark.usefixtures("int8_cpu")
def test_the_gate_passes_minis_recipe_and_refuses_a_damaged_one(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="the evaluation's baselines need scikit-learn")
    from uniecs.export.quantize import judge

    bundle = open_bundle(packaged_bundle("mini"))
    recipe = read_recipe(bundle)
    products, pairs = shop(drawn_products()[::9])
    good = judge(bundle, recipe, {}, products, pairs)
    assert good.ok, good.table()
    narrow = changed(recipe, lambda each: replace(each, low=each.low / 10, high=each.high / 10))
    bad = judge(bundle, narrow, {}, products, pairs)
    assert not bad.ok
    assert bad.falls["t>v"] > 10
    assert "too much" in bad.table()
    with pytest.raises(ParityError, match="nothing is written"):
        bad.write(tmp_path / "new")
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("int8_cpu")
def test_minis_int8_embeddings_are_near_its_fp32_ones() -> None:
    texts = ["Men black slim fit jeans", "Women red printed kurta", "Unisex steel dial watch", "x"]
    images = [draw(each.look) for each in drawn_products()[::80]]
    both: list[list[np.ndarray[Any, Any]]] = []
    for precision in ("fp32", "int8"):
        encoder = load("mini", precision=precision, threads=1)
        assert encoder.precision == precision
        both.append([encoder.encode(texts=texts), encoder.encode(images=images), encoder.encode(texts, images[:4])])
    for a, b in zip(*both, strict=True):
        assert 0.99 < np.einsum("nd,nd->n", a, b).min() < 1 - 1e-6


def test_minis_variant_passed_the_gate_on_real_products() -> None:
    variant = open_bundle(packaged_bundle("mini")).manifest["variants"]["int8"]
    assert variant["calibration"]["catalog"] == "train.parquet"
    assert variant["evaluation"]["pairs"] == 419
    assert set(variant["evaluation"]["falls"]) == set(TASKS)
    assert max(variant["evaluation"]["falls"].values()) <= 0.5
