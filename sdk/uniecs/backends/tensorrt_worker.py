"""What one call at a time runs on: a stream, execution contexts, and memory on both sides of the bus."""

from __future__ import annotations

import ctypes
import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from uniecs.backends.base import Inputs
from uniecs.backends.engine_cache import Profile, shape_at
from uniecs.errors import BackendError

if TYPE_CHECKING:
    import tensorrt as trt
    from cuda import core
    from cuda.core.graph import Graph

CAPTURED_BATCH = 4
"""Batches up to this are bound by launches, and are captured as CUDA graphs."""
CAPTURED_JOBS = 32
"""CUDA graphs that a worker keeps; the one used least recently goes first."""
ZEROS = "zero token"


@dataclass(frozen=True)
class Job:
    """What a call runs: graphs in order, sizes of the named axes, inputs from the host, and the output to it."""

    graphs: tuple[str, ...]
    axes: tuple[tuple[str, int], ...]
    uploads: tuple[str, ...]
    output: str

    @property
    def small(self) -> bool:
        """Whether it is worth a CUDA graph."""
        return dict(self.axes)["batch"] <= CAPTURED_BATCH


class CaptureError(BackendError):
    """A job that cannot be captured as a CUDA graph; the worker is not fit for use afterwards."""


@dataclass(frozen=True)
class _Captured:
    """A CUDA graph, and the contexts it was captured from: each needs its own, for their state is baked in."""

    graph: Graph
    contexts: Mapping[str, trt.IExecutionContext]


class Worker:
    """Serves one call at a time, from any thread.

    A tensor has one place on the device by its name, as large as the profile allows: the encoders write
    `image_tokens` and `text_tokens` where the fusion reads them.
    """

    def __init__(
        self, engines: Mapping[str, trt.ICudaEngine], graphs: Mapping[str, Any], profile: Profile, captures: bool
    ) -> None:
        """`graphs` as in the manifest; with `captures`, jobs that come again become CUDA graphs."""
        from cuda import core

        self._captures = captures
        self._engines = engines
        self._graphs = graphs
        self._device = core.Device(0)
        self._device.set_current()
        self._stream = self._device.create_stream()
        self._dtypes = {name: _dtype(engines[graph], name) for graph in graphs for name in _ports(graphs[graph])}
        greatest = {name: profile.shapes(port)[2] for graph in graphs for name, port in _ports(graphs[graph]).items()}
        sizes = {name: math.prod(shape) * self._dtypes[name].itemsize for name, shape in greatest.items()}
        pinned = core.LegacyPinnedMemoryResource()
        self._pinned = {name: pinned.allocate(size) for name, size in sizes.items()}
        one_token = math.prod(greatest["embedding"]) * self._dtypes["image_tokens"].itemsize
        sizes[ZEROS] = one_token
        self._memory = {name: self._device.allocate(size, stream=self._stream) for name, size in sizes.items()}
        self._memory[ZEROS].fill(0, stream=self._stream)
        # Graphs of a job run one after the other: one scratch, as large as the largest needs, serves all contexts.
        self._scratch_bytes = max(1, *(engine.device_memory_size_v2 for engine in engines.values()))
        self._scratch = self._device.allocate(self._scratch_bytes, stream=self._stream)
        self._contexts = {graph: self._context(graph) for graph in engines}
        self._seen: set[Job] = set()
        self._captured: OrderedDict[Job, _Captured] = OrderedDict()
        self._stream.sync()

    def perform(self, job: Job, inputs: Inputs) -> npt.NDArray[Any]:
        """The output of `job`, a copy; `inputs` by name, of the shapes that `job` has for them.

        Raises `BackendError` for another shape or when TensorRT refuses, `CaptureError`, and whatever cuda-core raises.
        """
        self._device.set_current()
        for name in job.uploads:
            host = self._host(name, job)
            if inputs[name].shape != host.shape:
                raise BackendError(f"{name} has shape {inputs[name].shape}; expected {host.shape}")
            host[...] = inputs[name]
        captured = self._graph_of(job) if self._captures and job.small else None
        if captured is None:
            self._bind(job, self._contexts)
            self._enqueue(job, self._contexts)
        else:
            captured.graph.launch(self._stream)
        self._stream.sync()
        return self._host(job.output, job).copy()

    def _graph_of(self, job: Job) -> _Captured | None:
        """The CUDA graph of a job: captured when it comes for the second time, None before."""
        if job in self._captured:
            self._captured.move_to_end(job)
        elif job in self._seen:
            self._captured[job] = self._capture(job)
            if len(self._captured) > CAPTURED_JOBS:
                self._captured.popitem(last=False)
        self._seen.add(job)
        return self._captured.get(job)

    def _capture(self, job: Job) -> _Captured:
        contexts = {graph: self._context(graph) for graph in job.graphs}
        self._bind(job, contexts)
        # After a change of shapes the first run updates a context's state, which must not become part of the graph.
        self._enqueue(job, contexts)
        self._stream.sync()
        try:
            builder = self._stream.create_graph_builder()
            builder.begin_building("relaxed")  # other threads go on allocating and copying meanwhile
            self._enqueue(job, contexts)
            graph = builder.end_building().complete()
            builder.close()
        except Exception as error:  # cuda-core and TensorRT raise kinds of their own
            raise CaptureError(f"{', '.join(job.graphs)} cannot be captured as a CUDA graph: {error}") from error
        return _Captured(graph, contexts)

    def _context(self, graph: str) -> trt.IExecutionContext:
        import tensorrt as trt

        context = self._engines[graph].create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if context is None or not context.set_optimization_profile_async(0, int(self._stream.handle)):
            raise BackendError(f"TensorRT cannot make an execution context of {graph}: is the GPU's memory full?")
        context.set_device_memory(int(self._scratch.handle), self._scratch_bytes)
        return context

    def _bind(self, job: Job, contexts: Mapping[str, trt.IExecutionContext]) -> None:
        """Give the contexts the job's shapes and the addresses of its tensors."""
        held = {*job.uploads, *(name for graph in job.graphs for name in self._graphs[graph]["outputs"])}
        for graph in job.graphs:
            inputs = self._graphs[graph]["inputs"]
            for name in _ports(self._graphs[graph]):
                shape = self._shape(name, job)
                if name in inputs and not contexts[graph].set_input_shape(name, shape):
                    raise BackendError(f"the engine of {graph} refuses {name} of shape {shape}")
                place = self._memory[name if name in held else ZEROS]
                if not contexts[graph].set_tensor_address(name, int(place.handle)):
                    raise BackendError(f"the engine of {graph} has no tensor {name}")

    def _enqueue(self, job: Job, contexts: Mapping[str, trt.IExecutionContext]) -> None:
        """Upload, run, download, in the order of the stream."""
        for name in job.uploads:
            size = self._bytes(name, job)
            _part(self._memory[name], size).copy_from(_part(self._pinned[name], size), stream=self._stream)
        for graph in job.graphs:
            if not contexts[graph].execute_async_v3(int(self._stream.handle)):
                raise BackendError(f"TensorRT failed to run {graph}; its messages are in the log uniecs.tensorrt")
        size = self._bytes(job.output, job)
        _part(self._memory[job.output], size).copy_to(_part(self._pinned[job.output], size), stream=self._stream)

    def _shape(self, name: str, job: Job) -> tuple[int, ...]:
        port = next(ports[name] for graph in reversed(job.graphs) if name in (ports := _ports(self._graphs[graph])))
        return shape_at(port, dict(job.axes))

    def _bytes(self, name: str, job: Job) -> int:
        return math.prod(self._shape(name, job)) * self._dtypes[name].itemsize

    def _host(self, name: str, job: Job) -> npt.NDArray[Any]:
        """The pinned memory of a tensor as an array of the job's shape."""
        memory = (ctypes.c_byte * self._bytes(name, job)).from_address(int(self._pinned[name].handle))
        return np.ndarray(self._shape(name, job), self._dtypes[name], memoryview(memory))


def _ports(graph: Mapping[str, Any]) -> dict[str, Any]:
    return {**graph["inputs"], **graph["outputs"]}


def _dtype(engine: trt.ICudaEngine, name: str) -> np.dtype[Any]:
    import tensorrt as trt

    dtype: np.dtype[Any] = np.dtype(trt.nptype(engine.get_tensor_dtype(name)))
    return dtype


def _part(buffer: core.Buffer, size: int) -> core.Buffer:
    """The first `size` bytes of a buffer, not a copy."""
    from cuda import core

    return core.Buffer.from_handle(int(buffer.handle), size, owner=buffer)
