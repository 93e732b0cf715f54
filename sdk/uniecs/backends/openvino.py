"""OpenVINO: the default engine on a CPU, in fp32, bf16 and int8; reads the ONNX graphs directly."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from uniecs.backends.base import GraphBackend, Inputs, Runner
from uniecs.bundle import Bundle
from uniecs.errors import BackendError, BundleError, MissingExtraError
from uniecs.int8_recipe import Int8Recipe, QuantizedInput, check_model, read_recipe

_import_lock = threading.Lock()
TELEMETRY = "openvino_telemetry"
INPUT_LEVELS, WEIGHT_LEVELS = 256, 255


@contextmanager
def without_telemetry() -> Iterator[None]:
    """Hide the telemetry package of OpenVINO from what is imported within; it is then replaced by a stub."""
    with _import_lock:
        before = sys.modules.get(TELEMETRY)
        sys.modules[TELEMETRY] = None  # type: ignore[assignment]
        try:
            yield
        finally:
            del sys.modules[TELEMETRY]
            if before is not None:
                sys.modules[TELEMETRY] = before


def import_openvino() -> Any:
    """The `openvino` module, imported without its telemetry; raises `MissingExtraError`.

    `import openvino` otherwise reports to Google Analytics and writes ~/intel.
    """
    with without_telemetry():
        try:
            import openvino
        except ImportError as error:
            raise MissingExtraError(f"OpenVINO cannot be imported ({error}): pip install openvino") from error
    return openvino


def describe() -> str:
    """Version, device and precisions; raises `MissingExtraError`."""
    openvino = import_openvino()
    core = openvino.Core()
    precisions = ["fp32", *(each for each in ("bf16", "int8") if _has(core, each))]
    return f"{openvino.__version__.split('-')[0]} (cpu: {', '.join(precisions)})"


def _has(core: Any, precision: str) -> bool:
    return precision.upper() in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class OpenVinoBackend(GraphBackend):
    """See `uniecs.backends.base.create_backend`."""

    name = "openvino"

    def __init__(
        self, bundle: Bundle, device: str, precision: str, threads: int | None, recipe: Int8Recipe | None = None
    ) -> None:
        """`recipe` is an int8 recipe on trial, in place of the bundle's own.

        Raises `BackendError` for a device or precision that this machine or the bundle lacks, `BundleError` for
        an int8 recipe of another model.
        """
        super().__init__(bundle, device, precision, threads)
        if device != "cpu":
            raise BackendError(
                f"the openvino backend runs on cpu, not on {device}; "
                "use backend='onnxruntime' with onnxruntime-gpu (pip install 'uniecs[gpu]')"
            )
        if precision == "fp16":
            raise BackendError("the openvino backend runs in fp32 or bf16, not in fp16; use backend='tensorrt'")
        self._core = import_openvino().Core()
        if precision == "bf16" and not _has(self._core, "bf16"):
            raise BackendError("this CPU has no bf16 instructions (AVX512_BF16 or AMX); use precision='fp32'")
        self._int8: dict[Path, tuple[QuantizedInput, ...]] = {}
        if precision == "int8":
            if not _has(self._core, "int8"):
                raise BackendError("OpenVINO has no int8 arithmetic on this CPU; use precision='fp32'")
            recipe = recipe or read_recipe(bundle)
            check_model(recipe, bundle)
            self._int8 = {bundle.graph_path(graph): inputs for graph, inputs in recipe.graphs.items()}

    def _compile(self, path: Path) -> Runner:
        # Under int8 all but the quantised matrix products runs in bf16, where the CPU has it.
        bf16 = self.precision == "bf16" or (self.precision == "int8" and _has(self._core, "bf16"))
        config: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
        }
        if self._threads is not None:
            config["INFERENCE_NUM_THREADS"] = self._threads
        model = self._core.read_model(path)
        quantize(model, self._int8.get(path, ()))
        compiled = self._core.compile_model(model, "CPU", config)
        # A request serves one call at a time: a stack of idle ones grows to the number of threads that call
        # at once.
        idle: list[Any] = []

        def run(inputs: Inputs) -> npt.NDArray[Any]:
            try:
                request = idle.pop()
            except IndexError:
                request = compiled.create_infer_request()
            try:
                output: npt.NDArray[Any] = request.infer(dict(inputs), share_inputs=True)[0]
            finally:
                idle.append(request)
            return output

        return run


def quantize(model: Any, inputs: Sequence[QuantizedInput]) -> None:
    """Put FakeQuantize on `inputs` of an OpenVINO model and on the weights that meet them, in place.

    As it compiles the model, OpenVINO makes int8 matrix products of them. Raises `BundleError` for inputs that do not
    fit the model.
    """
    nodes = {node.get_friendly_name(): node for node in model.get_ops() if node.get_type_name() == "MatMul"}
    for each in inputs:
        if absent := set(each.matmuls) - set(nodes):
            raise BundleError(f"the int8 recipe does not fit the graph: there is no matrix product {min(absent)!r}")
        _quantize_input(each, [nodes[name] for name in each.matmuls])
    if inputs:
        model.validate_nodes_and_infer_types()


def _quantize_input(quantized: QuantizedInput, matmuls: Sequence[Any]) -> None:
    from openvino import opset8

    source = matmuls[0].input_value(0)
    scale = np.array(quantized.scale, np.float32)
    matrices = []
    for matmul in matmuls:
        weights = constant_weights(matmul)
        if weights is None or len(weights) != len(scale) or matmul.input_value(0) != source:
            name = matmul.get_friendly_name()
            raise BundleError(f"the int8 recipe does not fit the graph: {name} is another kind of matrix product")
        matrices.append(weights / scale[:, None])
    scaled = opset8.multiply(source, opset8.constant(scale))
    narrow = _fake_quantize(scaled, np.float32(quantized.low), np.float32(quantized.high), INPUT_LEVELS)
    for matmul, matrix in zip(matmuls, matrices, strict=True):
        bound = np.maximum(np.abs(matrix).max(axis=0, keepdims=True), np.finfo(np.float32).tiny)
        matmul.input(0).replace_source_output(narrow)
        matmul.input(1).replace_source_output(_fake_quantize(opset8.constant(matrix), -bound, bound, WEIGHT_LEVELS))


def _fake_quantize(node: Any, low: Any, high: Any, levels: int) -> Any:
    from openvino import opset8

    return opset8.fake_quantize(node, low, high, low, high, levels).output(0)


def constant_weights(matmul: Any) -> npt.NDArray[np.float32] | None:
    """The weights (K, N) of an OpenVINO MatMul as float32, however they are stored; None if they are not constant."""
    node = matmul.input_value(1).get_node()
    if node.get_type_name() == "Convert":
        node = node.input_value(0).get_node()
    transposed = any(matmul.get_attributes().get(side) for side in ("transpose_a", "transpose_b"))
    if node.get_type_name() != "Constant" or len(node.get_output_shape(0)) != 2 or transposed:
        return None
    weights: npt.NDArray[np.float32] = node.data.astype(np.float32)
    return weights
