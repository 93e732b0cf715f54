"""Stand-ins for `tensorrt` and `cuda.core` that run on a CPU and keep the rules of the real ones.

An engine is an ONNX graph that ONNX Runtime computes at the addresses it was given. Device memory is host memory that
is known as the device's and starts as NaN; work on a stream waits for `sync` or `launch`; a context needs its profile,
its scratch memory and every shape and address, and must have run once after a change of shapes before it is captured;
a CUDA graph fails once the context it came from was bound to something else.
"""

from __future__ import annotations

import ctypes
import json
import threading
from collections import namedtuple
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

VERSION, DRIVER, GPU = "10.9.0", (580, 65, 6), "Fake GPU"
Severity = namedtuple("Severity", "name")
NAMES = {1: "float32", 7: "int64", 10: "float16"}


class State:
    """What the fakes share within one test."""

    def __init__(self) -> None:
        self.current = threading.local()
        self.device: dict[int, int] = {}  # address -> size
        self.kept: list[Any] = []  # no memory is given back, so that no address is used twice
        self.streams: dict[int, Any] = {}
        self.events: list[str] = []
        self.builds: list[str] = []
        self.capturable = True
        self.gpu, self.capability, self.driver, self.version = GPU, (8, 6), DRIVER, VERSION

    def on_device(self, address: int, size: int) -> bool:
        return any(start <= address and address + size <= start + most for start, most in list(self.device.items()))


def view(address: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any]:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.ndarray(shape, dtype, memoryview((ctypes.c_byte * size).from_address(address)))


def fake_cuda(state: State) -> ModuleType:
    class Buffer:
        def __init__(self, handle: int, size: int, owner: Any) -> None:
            self.handle, self.size, self.owner = handle, size, owner

        @staticmethod
        def from_handle(ptr: int, size: int, owner: Any = None) -> Buffer:
            assert size <= owner.size
            return Buffer(ptr, size, owner)

        def copy_from(self, src: Buffer, *, stream: Stream) -> None:
            assert self.size == src.size
            assert state.on_device(self.handle, self.size) != state.on_device(src.handle, src.size)
            stream.add(lambda: ctypes.memmove(self.handle, src.handle, self.size), "copy")

        def copy_to(self, dst: Buffer, *, stream: Stream) -> Buffer:
            dst.copy_from(self, stream=stream)
            return dst

        def fill(self, value: int, *, stream: Stream) -> None:
            stream.add(lambda: ctypes.memset(self.handle, value, self.size), "fill")

    def allocate(size: int) -> Buffer:
        assert getattr(state.current, "device", None) == 0, "no current device in this thread"
        memory = (ctypes.c_byte * size)()
        ctypes.memset(memory, 0xFF, size)
        state.kept.append(memory)
        return Buffer(ctypes.addressof(memory), size, memory)

    class Graph:
        def __init__(self, work: list[Any]) -> None:
            self.work = work

        def launch(self, stream: Stream) -> None:
            state.events.append("launch")
            for each in self.work:
                stream.add(each, "graphed")

    class GraphBuilder:
        def __init__(self, stream: Stream) -> None:
            self.stream = stream

        def begin_building(self, mode: str) -> GraphBuilder:
            if not state.capturable:
                raise RuntimeError("operation not permitted when stream is capturing")
            self.stream.captured = []
            return self

        def end_building(self) -> GraphBuilder:
            self.work, self.stream.captured = self.stream.captured, None
            return self

        def complete(self) -> Graph:
            state.events.append("capture")
            return Graph(self.work)

        def close(self) -> None:
            pass

    class Stream:
        def __init__(self) -> None:
            self.work: list[Any] = []
            self.captured: list[Any] | None = None
            self.handle = id(self)
            state.streams[self.handle] = self

        def add(self, work: Any, what: str) -> None:
            assert getattr(state.current, "device", None) == 0, "no current device in this thread"
            state.events.append(what)
            (self.work if self.captured is None else self.captured).append(work)

        def sync(self) -> None:
            assert self.captured is None
            work, self.work = self.work, []
            for each in work:
                each()

        def create_graph_builder(self) -> GraphBuilder:
            return GraphBuilder(self)

    class Device:
        def __init__(self, number: int) -> None:
            self.number, self.name = number, state.gpu
            self.compute_capability = namedtuple("ComputeCapability", "major minor")(*state.capability)

        def set_current(self) -> None:
            if not state.gpu:
                raise RuntimeError("no CUDA-capable device is detected")
            state.current.device = self.number

        def create_stream(self) -> Stream:
            return Stream()

        def allocate(self, size: int, *, stream: Stream) -> Buffer:
            buffer = allocate(size)
            state.device[buffer.handle] = size
            return buffer

    core = ModuleType("cuda.core")
    core.__dict__.update(
        Device=Device,
        Buffer=Buffer,
        LegacyPinnedMemoryResource=lambda: SimpleNamespace(allocate=allocate),
        system=SimpleNamespace(get_kernel_mode_driver_version=lambda: state.driver),
    )
    return core


class Logger:
    INTERNAL_ERROR, ERROR, WARNING = Severity("INTERNAL_ERROR"), Severity("ERROR"), Severity("WARNING")
    Severity = Severity


class Context:
    """See the rules above."""

    def __init__(self, state: State, engine: Engine) -> None:
        self.state, self.engine = state, engine
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.profile: int | None = None
        self.scratch = 0
        self.warm: Any = None

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        assert stream in self.state.streams
        self.profile, self.shapes = profile, {}
        return True

    def set_device_memory(self, memory: int, size: int) -> None:
        assert self.state.on_device(memory, size)
        self.scratch = size

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, most = self.engine.profile[name]
        self.shapes[name] = tuple(shape)
        return len(shape) == len(least) and all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True))

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.addresses[name] = memory
        return name in self.engine.dtypes

    def execute_async_v3(self, stream: int) -> bool:
        queue, bound = self.state.streams[stream], (dict(self.shapes), dict(self.addresses))
        assert self.profile == 0
        assert self.scratch >= self.engine.device_memory_size_v2
        assert bound[0].keys() == self.engine.profile.keys()
        assert bound[1].keys() == self.engine.dtypes.keys()
        assert queue.captured is None or self.warm == bound, "captured without a run after the change of shapes"

        def compute() -> None:
            assert bound == (self.shapes, self.addresses), "the context was bound anew before the work was done"
            self.warm = bound
            self.engine.compute(*bound)

        queue.add(compute, "run")
        return True


class Engine:
    device_memory_size_v2 = 256

    def __init__(self, state: State, serialized: bytes) -> None:
        import onnxruntime

        header, _, model = serialized.partition(b"\n")
        self.state, self.profile = state, json.loads(header)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.output = self.session.get_outputs()[0].name
        ports = [*self.session.get_inputs(), *self.session.get_outputs()]
        kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}
        self.dtypes = {port.name: kinds[port.type] for port in ports}

    def get_tensor_dtype(self, name: str) -> Any:
        return self.dtypes[name]

    def create_execution_context(self, strategy: str) -> Context:
        assert strategy == "user managed"
        return Context(self.state, self)

    def compute(self, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int]) -> None:
        for name, shape in shapes.items():
            size = int(np.prod(shape)) * np.dtype(self.dtypes[name]).itemsize
            assert self.state.on_device(addresses[name], size), f"{name} is not on the device"
        feed = {name: view(addresses[name], shape, self.dtypes[name]).copy() for name, shape in shapes.items()}
        result = self.session.run(None, feed)[0]
        assert self.state.on_device(addresses[self.output], result.nbytes)
        view(addresses[self.output], result.shape, result.dtype)[...] = result


def fake_tensorrt(state: State) -> ModuleType:
    class Network:
        model = b""

        @property
        def num_inputs(self) -> int:
            return len(self.inputs)

        def get_input(self, index: int) -> Any:
            return self.inputs[index]

    class Parser:
        def __init__(self, network: Network, logger: Any) -> None:
            self.network, self.num_errors = network, 0

        def parse(self, model: bytes) -> bool:
            import onnx

            self.network.model = model
            self.network.inputs = onnx.load_from_string(model).graph.input
            return True

    class Profile:
        def __init__(self) -> None:
            self.ranges: dict[str, Any] = {}

        def set_shape(self, name: str, *shapes: Any) -> None:
            self.ranges[name] = shapes

    class Config:
        def __init__(self) -> None:
            self.flags, self.profiles, self.timings = {"TF32"}, [], None
            self.progress_monitor: Any = None

        def clear_flag(self, flag: str) -> None:
            self.flags.remove(flag)

        def set_memory_pool_limit(self, pool: str, size: int) -> None:
            assert size > 0

        def add_optimization_profile(self, profile: Profile) -> int:
            self.profiles.append(profile)
            return 0

        def create_timing_cache(self, data: bytes) -> SimpleNamespace:
            return SimpleNamespace(serialize=lambda: b"timings" if data else b"timing", data=data)

        def set_timing_cache(self, cache: SimpleNamespace, ignore_mismatch: bool) -> bool:
            self.timings = cache
            return not cache.data or cache.data.startswith(b"timing")

        def get_timing_cache(self) -> Any:
            return self.timings

    class Builder:
        def __init__(self, logger: Any) -> None:
            pass

        def create_network(self, flags: int) -> Network:
            assert flags == 2
            return Network()

        def create_builder_config(self) -> Config:
            return Config()

        def create_optimization_profile(self) -> Profile:
            return Profile()

        def build_serialized_network(self, network: Network, config: Config) -> bytes | None:
            assert config.flags == set()
            (profile,) = config.profiles
            monitor = config.progress_monitor
            monitor.phase_start("build", None, 1)
            monitor.phase_start("inner", "build", 3)
            assert monitor.step_complete("build", 0)
            monitor.phase_finish("build")
            state.builds.append(",".join(each.name for each in network.inputs))
            return json.dumps(profile.ranges).encode() + b"\n" + network.model

    def deserialize(serialized: bytes) -> Engine | None:
        return Engine(state, serialized) if serialized.startswith(b"{") else None

    module = ModuleType("tensorrt")
    module.__dict__.update(
        __version__=state.version,
        ILogger=Logger,
        IProgressMonitor=type("IProgressMonitor", (), {}),
        Builder=Builder,
        OnnxParser=Parser,
        Dims=tuple,
        Runtime=lambda logger: SimpleNamespace(deserialize_cuda_engine=deserialize),
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user managed"),
        NetworkDefinitionCreationFlag=SimpleNamespace(STRONGLY_TYPED=1),
        BuilderFlag=SimpleNamespace(TF32="TF32"),
        MemoryPoolType=SimpleNamespace(WORKSPACE="workspace"),
        nptype=lambda dtype: dtype,
    )
    return module


def install(monkeypatch: Any) -> State:
    """Put the fakes in place of the modules for one test."""
    import sys

    state = State()
    core = fake_cuda(state)
    cuda = ModuleType("cuda")
    cuda.__dict__.update(core=core, __path__=[])
    for name, module in (("cuda", cuda), ("cuda.core", core), ("tensorrt", fake_tensorrt(state))):
        monkeypatch.setitem(sys.modules, name, module)
    return state
