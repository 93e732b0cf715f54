"""The float16 graphs: typed as they must be, close to the golden vectors; what float16 cannot hold is an error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="float16 graphs are derived with onnx")
ort = pytest.importorskip("onnxruntime", reason="ONNX Runtime computes them here")

from onnx import TensorProto, helper, numpy_helper, shape_inference  # noqa: E402

from uniecs.bundle import GRAPHS, Bundle, open_bundle, packaged_bundle  # noqa: E402
from uniecs.errors import BackendError  # noqa: E402
from uniecs.export.attention import ZERO_MASK  # noqa: E402
from uniecs.export.half import MASKED, half_graph  # noqa: E402

Array = np.ndarray[Any, Any]

NEEDS_FLOAT32 = {"LayerNormalization", "Softmax", "ReduceMean", "ReduceSum", "ReduceL2", "Pow", "Sqrt", "Clip"}
COSINE_LIMIT = 0.99999


@pytest.fixture(scope="module", params=["mini", "tiny", "fake"])
def bundle(request: pytest.FixtureRequest, bundle: Bundle) -> Bundle:
    if request.param == "mini":
        return open_bundle(packaged_bundle("mini"))
    if request.param == "tiny":
        return open_bundle(request.getfixturevalue("tiny_bundle"))
    return bundle


@pytest.fixture(scope="module")
def halves(bundle: Bundle) -> dict[str, Any]:
    return {graph: half_graph(onnx.load(bundle.graph_path(graph))) for graph in GRAPHS}


def computed(model: Any, feed: dict[str, Array]) -> Array:
    """By ONNX Runtime without its optimiser, which would drop the rounding between two nodes."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = {each.name: each.type for each in session.get_inputs()}
    cast = {name: each.astype(np.float16) if "float16" in names[name] else each for name, each in feed.items()}
    output: Array = session.run(None, cast)[0]
    return output


def embedded(halves: dict[str, Any], golden: dict[str, Array]) -> Array:
    """The golden rows through all three graphs."""
    mask = golden["attention_mask"]
    return computed(
        halves["fusion"],
        {
            "image_tokens": computed(halves["image_encoder"], {"pixel_values": golden["pixel_values"]}),
            "text_tokens": computed(halves["text_encoder"], {"input_ids": golden["input_ids"], "attention_mask": mask}),
            "text_mask": mask,
            "modality_indicator": golden["modality_indicator"],
        },
    )


def least_cosine(a: Array, b: Array) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(((a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)).min())


def kinds(model: Any) -> dict[str, int]:
    """Element type of every tensor; raises where a graph is not strongly typed."""
    graph = shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    ports = {each.name: each.type.tensor_type.elem_type for each in (*graph.value_info, *graph.input, *graph.output)}
    return ports | {each.name: each.data_type for each in graph.initializer}


def in_float16(model: Any) -> list[str]:
    """The operators among those that need float32 which take float16."""
    types = kinds(model)
    constants = {each.name for each in model.graph.initializer}
    return [
        node.op_type
        for node in model.graph.node
        if (node.op_type in NEEDS_FLOAT32 or (node.op_type == "Div" and node.input[1] not in constants))
        and any(types.get(name) == TensorProto.FLOAT16 for name in node.input)
    ]


def test_embeddings_are_the_golden_ones(bundle: Bundle, halves: dict[str, Any]) -> None:
    golden = bundle.golden()
    embeddings = embedded(halves, golden)
    assert embeddings.dtype == np.float32
    assert least_cosine(embeddings, golden["embedding"]) >= COSINE_LIMIT
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("damage", ["zeros", "halves", "swapped"])
def test_a_damaged_graph_is_told_apart(bundle: Bundle, halves: dict[str, Any], damage: str) -> None:
    golden, worse = bundle.golden(), onnx.ModelProto()
    worse.CopyFrom(halves["fusion"])
    if damage == "swapped":
        one, two = (
            each for each in worse.graph.node if "modality_indicator" in each.input and each.op_type == "Gather"
        )
        one.input[1], two.input[1] = two.input[1], one.input[1]
    for matrix in worse.graph.initializer if damage != "swapped" else ():
        array = numpy_helper.to_array(matrix)
        if array.ndim == 2:
            array = array * array.dtype.type(0.5 if damage == "halves" else 0)
            matrix.CopyFrom(numpy_helper.from_array(array, matrix.name))
    assert not least_cosine(embedded({**halves, "fusion": worse}, golden), golden["embedding"]) >= COSINE_LIMIT


def test_norms_softmax_and_sums_are_float32_and_matrices_float16(halves: dict[str, Any]) -> None:
    for graph, model in halves.items():
        onnx.checker.check_model(model, full_check=True)
        assert in_float16(model) == [], graph
        types = kinds(model)
        products = [node for node in model.graph.node if node.op_type in ("MatMul", "Gemm", "Conv")]
        assert {types[name] for node in products for name in node.input} <= {TensorProto.FLOAT16}


def test_the_check_of_types_can_fail(halves: dict[str, Any]) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(halves["fusion"])
    node = next(each for each in model.graph.node if each.op_type in ("ReduceMean", "ReduceSum", "ReduceL2"))
    model.graph.node.insert(
        list(model.graph.node).index(node),
        helper.make_node("Cast", [node.input[0]], ["narrow"], to=TensorProto.FLOAT16),
    )
    node.input[0] = "narrow"
    model.graph.ClearField("value_info")
    typed = {each.input[0] for each in model.graph.node if each.op_type == node.op_type}
    assert "narrow" in typed
    with pytest.raises(Exception, match=r"(?i)type"):
        kinds(model)


def test_ports_keep_their_types_but_for_the_tokens(bundle: Bundle, halves: dict[str, Any]) -> None:
    for graph, model in halves.items():
        described = bundle.manifest["graphs"][graph]
        for ports, expected in ((model.graph.input, described["inputs"]), (model.graph.output, described["outputs"])):
            found = {port.name: helper.tensor_dtype_to_np_dtype(port.type.tensor_type.elem_type).name for port in ports}
            tokens = ("image_tokens", "text_tokens")
            assert found == {name: "float16" if name in tokens else port["dtype"] for name, port in expected.items()}


def test_no_cast_is_redundant_and_no_mask_of_zeros_is_left(halves: dict[str, Any]) -> None:
    for model in halves.values():
        constants = {each.name for each in model.graph.initializer}
        casts = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "Cast"}
        assert not constants & set(casts.values())
        assert not set(casts) & set(casts.values())
        pairs = [(node.input[0], node.attribute[0].i) for node in model.graph.node if node.op_type == "Cast"]
        assert len(pairs) == len(set(pairs))
        assert not any(name.startswith(ZERO_MASK) for name in (*constants, *(node.name for node in model.graph.node)))
        assert not any(each.data_type == TensorProto.INT8 for each in model.graph.initializer)


def test_constants_are_finite_and_masks_moderate(halves: dict[str, Any]) -> None:
    stored = [numpy_helper.to_array(each) for model in halves.values() for each in model.graph.initializer]
    floats = [each for each in stored if each.dtype.kind == "f" and each.size]
    assert all(np.isfinite(each).all() and each.min() >= MASKED for each in floats)


def test_the_same_graph_gives_the_same_bytes_and_stays_as_it_was(bundle: Bundle, halves: dict[str, Any]) -> None:
    source = onnx.load(bundle.graph_path("fusion"))
    before = source.SerializeToString(deterministic=True)
    again = half_graph(source).SerializeToString(deterministic=True)
    assert again == halves["fusion"].SerializeToString(deterministic=True)
    assert source.SerializeToString(deterministic=True) == before


def small_graph(nodes: list[Any], constants: dict[str, Array]) -> Any:
    """A graph from x (n, 2) float32 to y (n, 2) float32."""
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in ("x", "y")]
    stored = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "graph", ports[:1], ports[1:], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def softmax_of_masked(mask: float) -> Any:
    constants = {"w": np.eye(2, dtype=np.float32), "m": np.array([0, mask], np.float32)}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Add", ["a", "m"], ["b"]),
        helper.make_node("Softmax", ["b"], ["y"]),
    ]
    return small_graph(nodes, constants)


@pytest.mark.parametrize("mask", [-np.inf, float(np.finfo(np.float32).min)])
def test_masks_become_finite(mask: float) -> None:
    model = half_graph(softmax_of_masked(mask))
    np.testing.assert_array_equal(computed(model, {"x": np.array([[-9e3, 9e3]], np.float32)}), [[1, 0]])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda w: w * 1e6, r"constant w reaches 1e\+06.*65504"),
        (lambda w: w * np.nan, "constant w"),
        (lambda w: np.float32(1e-12), "zero in float16"),
    ],
)
def test_what_float16_cannot_hold_is_an_error(spoil: Callable[[Array], Array], message: str) -> None:
    constants = {"w": np.asarray(spoil(np.eye(2, dtype=np.float32)), np.float32)}
    node = helper.make_node("MatMul" if constants["w"].ndim else "Mul", ["x", "w"], ["a"])
    casts = [helper.make_node("Mul", ["h", "w"], ["y"])]
    nodes = [node, helper.make_node("Identity", ["a"], ["y"])]
    if not constants["w"].ndim:
        constants["one"] = np.eye(2, dtype=np.float32)
        nodes = [helper.make_node("MatMul", ["x", "one"], ["h"]), *casts]
    with pytest.raises(BackendError, match=message):
        half_graph(small_graph(nodes, constants))


def test_an_output_that_is_half_inside_is_delivered_as_float32() -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    model = half_graph(small_graph(nodes, {"w": np.eye(2, dtype=np.float32)}))
    onnx.checker.check_model(model, full_check=True)
    assert computed(model, {"x": np.ones((3, 2), np.float32)}).dtype == np.float32
