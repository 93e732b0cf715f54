"""OpenVINO: the default engine on a CPU, in fp32, bf16 and int8; reads the ONNX graphs directly."""

from __future__ import annotations

import contextlib
import platform
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from uniecs._core import BertEncoder, Crew, ItemFusion, has_byte_products, keeping_signal_stack, row_instructions
from uniecs.backends.base import GraphBackend, Inputs, Runner
from uniecs.backends.bert_encoder import bert_encoder
from uniecs.backends.compiled_cache import cache_folder, cache_key, read_blob, write_blob
from uniecs.backends.item_fusion import item_fusion
from uniecs.backends.openvino_int8 import quantize
from uniecs.backends.threads import usable_cpus
from uniecs.backends.token_padding import MULTIPLE, pad_tokens
from uniecs.bundle import Bundle
from uniecs.errors import BackendError, MissingExtraError
from uniecs.int8_recipe import Int8Recipe, QuantizedInput, check_model, read_recipe

Tokens: TypeAlias = npt.NDArray[np.float32]
InCore: TypeAlias = Callable[[Inputs], npt.NDArray[Any] | None]

_import_lock = threading.Lock()
TELEMETRY = "openvino_telemetry"
CAPABILITIES = "OPTIMIZATION_CAPABILITIES"
CPUINFO = Path("/proc/cpuinfo")
MAX_REQUESTS = 4
"""Infer requests of each graph. OpenVINO runs one at a time; each keeps its last tensors, and making them anew for
every call costs memory that it does not give back."""
MAX_PREPARED = 256
"""Kernels kept for each graph, about four for each shape of input; OpenVINO's 5000 take gigabytes."""


@contextlib.contextmanager
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
        # The binding looks NumPy up when it first meets an array, and deadlocks if two threads do that at once.
        openvino.Tensor(np.zeros(1, np.float32))
    return openvino


def make_core() -> Any:
    """An OpenVINO `Core` whose CPU plugin is made, which leaves this thread's signal handlers their stack.

    Raises `MissingExtraError`.
    """
    openvino = import_openvino()

    def made() -> Any:
        core = openvino.Core()
        core.get_property("CPU", CAPABILITIES)  # makes the plugin
        return core

    return keeping_signal_stack(made)


def describe() -> str:
    """Version, device and precisions; raises `MissingExtraError`."""
    openvino, core = import_openvino(), make_core()
    precisions = ["fp32", *(each for each in ("bf16", "int8") if has_precision(core, each))]
    return f"{openvino.__version__.split('-')[0]} (cpu: {', '.join(precisions)})"


def has_precision(core: Any, precision: str) -> bool:
    """Whether this CPU computes in "bf16" or "int8", by an OpenVINO `Core`.

    OpenVINO takes int8 for granted with AVX2. But without VNNI it adds up pairs of products in 16 bits, which overflow
    unnoticed (a cosine of .975 in place of .998), and takes longer than in fp32.
    """
    able = precision.upper() in core.get_property("CPU", CAPABILITIES)
    return able and (precision != "int8" or has_byte_products())


def _machine(core: Any) -> dict[str, Any]:
    """What a compiled graph depends on besides the graph and its configuration."""
    cpu = {name: core.get_property("CPU", name) for name in ("FULL_DEVICE_NAME", CAPABILITIES)}
    try:
        with CPUINFO.open(encoding="ascii", errors="replace") as lines:
            cpu["flags"] = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:  # not Linux: the name and what it can do must suffice
        cpu["flags"] = ""
    return {"engine": f"openvino {import_openvino().__version__}", "machine": platform.machine(), **cpu}


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
        self._core = make_core()
        if precision == "bf16" and not has_precision(self._core, "bf16"):
            raise BackendError("this CPU has no bf16 instructions (AVX512_BF16 or AMX); use precision='fp32'")
        self._machine = _machine(self._core)
        self._crew = Crew(threads or usable_cpus())
        self._int8: Mapping[str, tuple[QuantizedInput, ...]] = {}
        if precision == "int8":
            recipe = recipe or read_recipe(bundle)
            check_model(recipe, bundle)
            if not has_precision(self._core, "int8"):
                raise BackendError(
                    "this CPU has no int8 arithmetic for an engine (VNNI): sums of products would overflow; "
                    "use precision='fp32'"
                )
            self._int8 = recipe.graphs

    def _compile(self, graph: str) -> Runner:
        in_core = self._in_core(graph)
        return self._graph(graph) if in_core is None else CoreFirst(in_core, partial(self._graph, graph))

    def _in_core(self, graph: str) -> InCore | None:
        """What the core computes in place of a graph: a text encoder of few tokens, fusion in fp32 of any number."""
        if not row_instructions():
            return None
        if graph == "fusion":
            fusion = item_fusion(self._model(graph), self._crew)
            most = None if self.precision == "fp32" else ItemFusion.FEW_TOKENS
            return None if fusion is None else partial(fused, fusion, most)
        if graph == "text_encoder" and self.precision == "fp32":
            encoder = bert_encoder(self._model(graph), self._crew)
            return None if encoder is None else partial(encoded, encoder)
        return None

    def _model(self, graph: str) -> Any:
        return self._core.read_model(self._bundle.graph_bytes(graph))

    def _graph(self, graph: str) -> Runner:
        """The graph compiled, for as many threads at once as there may be requests; more wait."""
        compiled = self._compiled_model(graph)
        permits = threading.Semaphore(MAX_REQUESTS)
        idle: list[Any] = []

        def run(inputs: Inputs) -> npt.NDArray[Any]:
            with permits:
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

    def _compiled_model(self, graph: str) -> Any:
        """The graph compiled, from the cache if an earlier process did the same."""
        # Under int8 all but the quantised matrix products runs in bf16, where the CPU has it.
        bf16 = self.precision == "bf16" or (self.precision == "int8" and has_precision(self._core, "bf16"))
        config: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
            "ENABLE_CPU_PINNING": False,
            "CPU_RUNTIME_CACHE_CAPACITY": MAX_PREPARED,
        }
        if self._threads is not None:
            config["INFERENCE_NUM_THREADS"] = self._threads
        folder = cache_folder()
        sha256 = self._bundle.manifest["files"][self._bundle.graph_path(graph).name]["sha256"]
        int8 = [asdict(each) for each in self._int8.get(graph, ())]
        multiple = 1 if self.precision == "fp32" else MULTIPLE  # products in fp32 don't mind their number of rows
        key = cache_key({"graph": sha256, "int8": int8, "multiple": multiple, "config": config, **self._machine})
        blob = read_blob(folder, key)
        if blob is not None:
            # A blob that this OpenVINO nevertheless refuses is compiled and written anew.
            with contextlib.suppress(RuntimeError, ValueError):
                return self._core.import_model(blob, "CPU", config)
        model = self._model(graph)
        if multiple > 1:
            pad_tokens(model)
        quantize(model, self._int8.get(graph, ()))
        compiled = self._core.compile_model(model, "CPU", config)
        if folder is not None:
            write_blob(folder, key, compiled.export_model().getvalue())
        return compiled


class CoreFirst:
    """A graph in whose place the core computes what it is faster at; for the rest it is compiled when that first comes.

    The two agree to rounding, which is float32's in the core and that of its precision in the graph.
    """

    def __init__(self, in_core: InCore, compile_graph: Callable[[], Runner]) -> None:
        """`in_core` gives None for what it leaves to the graph."""
        self._in_core = in_core
        self._compile_graph = compile_graph
        self._graph: Runner | None = None
        self._lock = threading.Lock()

    def __call__(self, inputs: Inputs) -> npt.NDArray[Any]:
        output = self._in_core(inputs)
        if output is not None:
            return output
        with self._lock:
            self._graph = self._graph or self._compile_graph()
        return self._graph(inputs)


def encoded(encoder: BertEncoder, inputs: Inputs) -> npt.NDArray[Any] | None:
    """The text encoder's output; None for many tokens, or what the core refuses."""
    return encoder.encode(inputs["input_ids"], inputs["attention_mask"])


def fused(fusion: ItemFusion, most: int | None, inputs: Inputs) -> npt.NDArray[Any] | None:
    """The fusion's output; None for more tokens than `most`, or what the core refuses."""
    if most is not None and _tokens(inputs) > most:
        return None
    items = _items(inputs)
    return None if items is None else fusion.embed(items)


def _tokens(inputs: Inputs) -> int:
    """The number of tokens, without padding and absent sides."""
    has_image, has_text = (inputs["modality_indicator"] != 0).T
    texts = inputs["text_mask"][has_text] != 0
    return int(has_image.sum() * inputs["image_tokens"].shape[1] + texts.sum())


def _items(inputs: Inputs) -> list[tuple[Tokens | None, Tokens | None]] | None:
    """The image and text tokens, (count, D) or None, of each item; None for what the core refuses."""
    indicator, mask = inputs["modality_indicator"], inputs["text_mask"]
    if not ((indicator == 0) | (indicator == 1)).all():
        return None
    items = []
    for row, (has_image, has_text) in enumerate(indicator):
        image = inputs["image_tokens"][row] if has_image else None
        text = inputs["text_tokens"][row][mask[row] != 0] if has_text else None
        items.append((image, text))
    counts = ([len(each) for each in item if each is not None] for item in items)
    return items if all(item and min(item) for item in counts) else None
