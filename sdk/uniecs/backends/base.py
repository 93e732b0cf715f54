"""What an engine must do for us, and the choice of one; engines are imported on use."""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from uniecs.backends.threads import usable_cpus
from uniecs.bundle import GRAPHS, Bundle
from uniecs.errors import BackendError, InputError, UniecsError

__all__ = ["BACKENDS", "GRAPHS", "Backend", "GraphBackend", "available_backends", "create_backend"]

BACKENDS = ("openvino", "onnxruntime", "tensorrt")
DEVICES = ("cpu", "cuda")
PRECISIONS = ("fp32", "bf16", "fp16", "int8")

Inputs: TypeAlias = Mapping[str, npt.NDArray[Any]]
Tokens: TypeAlias = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]
Runner: TypeAlias = Callable[[Inputs], npt.NDArray[Any]]


class Backend(Protocol):
    """Runs the graphs of one bundle on one device in one precision."""

    @property
    def name(self) -> str:
        """One of `BACKENDS`."""

    @property
    def device(self) -> str:
        """One of `DEVICES`."""

    @property
    def precision(self) -> str:
        """One of `PRECISIONS`."""

    def run(self, graph: str, inputs: Inputs) -> npt.NDArray[Any]:
        """The one output of `graph` (one of `GRAPHS`), a copy the caller owns; thread-safe.

        Inputs are named and typed as in docs/bundle-format.md. Graphs are compiled on first use. Raises
        `BackendError`, and `BundleError` if a graph's file has changed by then.
        """

    def embed(self, pixel_values: npt.NDArray[np.float32] | None, tokens: Tokens | None) -> npt.NDArray[Any]:
        """The output of `fusion` for a batch of one kind, (B, D), after the encoders that it needs; thread-safe.

        `pixel_values` (B, 3, H, W) or None, `tokens` (input_ids, attention_mask), both (B, Nt), or None; at least
        one is given. An absent side is one zero token, which equals any number of them (design: the exact fast
        path), and its graph does not run. Raises as `run` does.
        """


def embed_through(
    run: Callable[[str, Mapping[str, Any]], Any],
    embed_dim: int,
    pixel_values: npt.NDArray[np.float32] | None,
    tokens: Tokens | None,
) -> Any:
    """`Backend.embed` by up to three calls of `run(graph, inputs)`, each output passed on as it is."""
    given = pixel_values if pixel_values is not None else tokens[0] if tokens is not None else ()
    batch = len(given)
    image_tokens: Any = np.zeros((batch, 1, embed_dim), np.float32)
    text_tokens: Any = image_tokens
    text_mask = np.ones((batch, 1), np.int64)
    if pixel_values is not None:
        image_tokens = run("image_encoder", {"pixel_values": pixel_values})
    if tokens is not None:
        input_ids, text_mask = tokens
        text_tokens = run("text_encoder", {"input_ids": input_ids, "attention_mask": text_mask})
    indicator = np.array([[pixel_values is not None, tokens is not None]] * batch, np.float32)
    return run(
        "fusion",
        {
            "image_tokens": image_tokens,
            "text_tokens": text_tokens,
            "text_mask": text_mask,
            "modality_indicator": indicator,
        },
    )


class GraphBackend(ABC):
    """The common part of the backends: each graph is compiled once, on first use, under a lock."""

    name: str

    def __init__(self, bundle: Bundle, device: str, precision: str, threads: int | None) -> None:
        self.device = device
        self.precision = precision
        self._bundle = bundle
        self._threads = threads
        self._lock = threading.Lock()
        self._runners: dict[str, Runner] = {}

    def run(self, graph: str, inputs: Inputs) -> npt.NDArray[Any]:
        """See `Backend.run`."""
        runner = self._runners.get(graph) or self._compiled(graph)
        try:
            return runner(inputs)
        except UniecsError:
            raise
        except Exception as error:  # engines raise kinds of their own, some directly under Exception
            shapes = {name: (array.dtype.name, array.shape) for name, array in inputs.items()}
            raise BackendError(f"{self.name} failed to run {graph} on inputs {shapes}: {error}") from error

    def embed(self, pixel_values: npt.NDArray[np.float32] | None, tokens: Tokens | None) -> npt.NDArray[Any]:
        """See `Backend.embed`."""
        output: npt.NDArray[Any] = embed_through(self.run, self._bundle.embed_dim, pixel_values, tokens)
        return output

    def _compiled(self, graph: str) -> Runner:
        path = self._bundle.graph_path(graph)
        with self._lock:
            if graph not in self._runners:
                try:
                    self._runners[graph] = self._compile(graph)
                except UniecsError:
                    raise
                except Exception as error:  # as above
                    raise BackendError(f"{self.name} cannot compile {path}: {error}") from error
            return self._runners[graph]

    @abstractmethod
    def _compile(self, graph: str) -> Runner:
        """Compile `Bundle.graph_bytes` to a thread-safe function; any exception of the engine may escape."""


def create_backend(
    bundle: Bundle,
    backend: str = "auto",
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
) -> Backend:
    """The engine for a bundle's graphs: what was asked for, or an error; nothing falls back silently.

    "auto" stands for: device "cpu"; backend "openvino" on cpu, "onnxruntime" on cuda; precision "fp32"; with backend
    "tensorrt", which is never chosen by itself, device "cuda" and precision "fp16".
    `threads` is the number of CPU threads for one run; None leaves it to the engine, within the CPUs that the
    process may use. Raises `BackendError`
    for what is unknown or unavailable here, `MissingExtraError` for an engine that is not installed,
    `InputError` for bad `threads`.
    """
    _one_of("backend", backend, ("auto", *BACKENDS))
    _one_of("device", device, ("auto", *DEVICES))
    _one_of("precision", precision, ("auto", *PRECISIONS))
    if threads is not None and (type(threads) is not int or threads < 1):
        raise InputError(f"threads is {threads!r}; expected a positive int, or None for the engine's own choice")
    if backend == "tensorrt":
        from uniecs.backends.tensorrt import TensorRtBackend

        device, precision = device.replace("auto", "cuda"), precision.replace("auto", "fp16")
        return TensorRtBackend(bundle, device, precision)
    if threads is None and (usable := usable_cpus()) < (os.cpu_count() or 1):
        threads = usable  # engines see the machine, not the quota of a container
    device = "cpu" if device == "auto" else device
    precision = "fp32" if precision == "auto" else precision
    if backend == "onnxruntime" or (backend == "auto" and device == "cuda"):
        from uniecs.backends.onnxruntime import OnnxRuntimeBackend

        return OnnxRuntimeBackend(bundle, device, precision, threads)
    from uniecs.backends.openvino import OpenVinoBackend

    return OpenVinoBackend(bundle, device, precision, threads)


def available_backends() -> dict[str, str]:
    """For each of `BACKENDS` its version, devices and precisions, or "unavailable: " and the reason."""
    from uniecs.backends import onnxruntime, openvino, tensorrt

    report = {}
    for name, describe in zip(BACKENDS, (openvino.describe, onnxruntime.describe, tensorrt.describe), strict=True):
        try:
            report[name] = describe()
        except UniecsError as error:
            report[name] = f"unavailable: {error}"
    return report


def _one_of(what: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise BackendError(f"{what} is {value!r}; expected one of {', '.join(known)}")
