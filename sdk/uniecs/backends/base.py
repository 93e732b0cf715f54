"""What an engine must do for us, and the choice of one; engines are imported on use."""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy.typing as npt

from uniecs.backends.threads import usable_cpus
from uniecs.bundle import GRAPHS, Bundle
from uniecs.errors import BackendError, InputError, UniecsError

__all__ = ["BACKENDS", "GRAPHS", "Backend", "GraphBackend", "available_backends", "create_backend"]

BACKENDS = ("openvino", "onnxruntime")
DEVICES = ("cpu", "cuda")
PRECISIONS = ("fp32", "bf16")

Inputs: TypeAlias = Mapping[str, npt.NDArray[Any]]
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
        `BackendError`.
        """


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
        except Exception as error:  # engines raise kinds of their own, some directly under Exception
            shapes = {name: (array.dtype.name, array.shape) for name, array in inputs.items()}
            raise BackendError(f"{self.name} failed to run {graph} on inputs {shapes}: {error}") from error

    def _compiled(self, graph: str) -> Runner:
        path = self._bundle.graph_path(graph)
        with self._lock:
            if graph not in self._runners:
                try:
                    self._runners[graph] = self._compile(path)
                except UniecsError:
                    raise
                except Exception as error:  # as above
                    raise BackendError(f"{self.name} cannot compile {path}: {error}") from error
            return self._runners[graph]

    @abstractmethod
    def _compile(self, path: Path) -> Runner:
        """Compile one ONNX file to a thread-safe function; any exception of the engine may escape."""


def create_backend(
    bundle: Bundle,
    backend: str = "auto",
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
) -> Backend:
    """The engine for a bundle's graphs: what was asked for, or an error; nothing falls back silently.

    "auto" stands for: device "cpu"; backend "openvino" on cpu, "onnxruntime" on cuda; precision "fp32".
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
    from uniecs.backends import onnxruntime, openvino

    report = {}
    for name, describe in zip(BACKENDS, (openvino.describe, onnxruntime.describe), strict=True):
        try:
            report[name] = describe()
        except UniecsError as error:
            report[name] = f"unavailable: {error}"
    return report


def _one_of(what: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise BackendError(f"{what} is {value!r}; expected one of {', '.join(known)}")
