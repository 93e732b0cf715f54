"""The same graphs in an engine as it comes: what uniecs is compared with where the engine is installed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy.typing as npt

from uniecs.backends.base import Inputs, Tokens, embed_through
from uniecs.backends.onnxruntime import import_onnxruntime
from uniecs.backends.openvino import make_core
from uniecs.bundle import GRAPHS, Bundle
from uniecs.encoder import Encoder

ENGINES = ("onnxruntime", "openvino")


class PlainBackend:
    """A backend of one engine with nothing set, each graph compiled as its documentation's first example does.

    With `fastembed_threads` ONNX Runtime as fastembed sets it up: every optimisation, and as many threads within
    operators as between. OpenVINO chooses its own precision: bf16 where the CPU has it.
    """

    device, precision = "cpu", "its own"

    def __init__(self, bundle: Bundle, name: str, fastembed_threads: int | None = None) -> None:
        """Raises `MissingExtraError` for an engine that is not installed."""
        self.name, self._embed_dim = name, bundle.embed_dim
        self._runners: dict[str, Callable[[Inputs], Any]] = {}
        if name == "onnxruntime":
            engine = import_onnxruntime()
            options = engine.SessionOptions()
            options.log_severity_level = 3  # errors; it warns of what it leaves out of a graph
            if fastembed_threads is not None:
                options.graph_optimization_level = engine.GraphOptimizationLevel.ORT_ENABLE_ALL
                options.intra_op_num_threads = options.inter_op_num_threads = fastembed_threads
            for graph in GRAPHS:
                path = str(bundle.graph_path(graph))
                self._runners[graph] = _session(engine.InferenceSession(path, options, ["CPUExecutionProvider"]))
        else:
            core = make_core()
            for graph in GRAPHS:
                self._runners[graph] = _model(core.compile_model(bundle.graph_path(graph), "CPU"))

    def run(self, graph: str, inputs: Inputs) -> npt.NDArray[Any]:
        """As `Backend.run`, but not thread-safe."""
        output: npt.NDArray[Any] = self._runners[graph](inputs)
        return output

    def embed(self, pixel_values: Any, tokens: Tokens | None) -> npt.NDArray[Any]:
        """As `Backend.embed`."""
        output: npt.NDArray[Any] = embed_through(self.run, self._embed_dim, pixel_values, tokens)
        return output


def plain_encoder(bundle: Bundle, name: str) -> Encoder:
    """Our preprocessing around an engine as it comes."""
    return Encoder(bundle, PlainBackend(bundle, name))


def _session(session: Any) -> Callable[[Inputs], Any]:
    return lambda given: session.run(None, dict(given))[0]


def _model(compiled: Any) -> Callable[[Inputs], Any]:
    return lambda given: compiled(dict(given))[0]
