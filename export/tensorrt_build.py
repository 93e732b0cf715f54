"""TensorRT engines of a bundle for this GPU: float16 graphs, one profile, all kept in a cache under their keys."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsInt

import onnx

from uniecs.backends.base import GRAPHS
from uniecs.backends.engine_cache import (
    FOLDER,
    EngineKey,
    Machine,
    Profile,
    default_cache,
    load_engine,
    store_engine,
    write_atomically,
)
from uniecs.backends.tensorrt import LOG, engine_logger, this_machine
from uniecs.bundle import Bundle
from uniecs.errors import BackendError
from uniecs.export.half import half_graph
from uniecs.progress import progress_bar

if TYPE_CHECKING:
    import tensorrt as trt

WORKSPACE_BYTES = 2 << 30
"""Most memory a tactic may use while it runs."""


@dataclass(frozen=True)
class BuiltEngine:
    """One engine of `build_engines`: where it lies, its size, whether it was there already, and how long it took."""

    graph: str
    path: Path
    size_bytes: int
    cached: bool
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        return {**asdict(self), "path": str(self.path)}


def build_engines(bundle: Bundle, cache: Path | None = None) -> tuple[Machine, list[BuiltEngine]]:
    """Build the engines of `bundle` for this machine into `cache` (`default_cache()` unless given).

    An engine that is there under the same key, whole, and loads in TensorRT, is kept. Progress goes to stderr on a
    terminal. Raises `MissingExtraError` without TensorRT or cuda-core, `BackendError` without a GPU, for a model that
    fp16 cannot hold, or when TensorRT refuses a graph; `OSError` if `cache` cannot be written.
    """
    machine, profile, cache = this_machine(), Profile.of(bundle), cache or default_cache()
    built = []
    for graph in GRAPHS:
        key, start = EngineKey(bundle.model_id, graph, machine, profile), time.perf_counter()
        engine = _kept_engine(cache, key)
        cached = engine is not None
        if engine is None:
            timings = timing_cache_path(cache, machine)
            known = timings.read_bytes() if timings.is_file() else b""
            with _progress(f"build {graph}") as monitor:
                engine, known = build_engine(bundle, graph, profile, timing_cache=known, monitor=monitor)
            write_atomically(timings, known)
            store_engine(cache, key, engine)
        built.append(BuiltEngine(graph, key.path(cache), len(engine), cached, time.perf_counter() - start))
    return machine, built


def _kept_engine(cache: Path, key: EngineKey) -> bytes | None:
    """The engine of `key`; None if it is missing, damaged, foreign, or nothing that TensorRT can load."""
    import tensorrt as trt

    try:
        engine = load_engine(cache, key)
    except BackendError:
        return None
    runtime = trt.Runtime(engine_logger())  # it must outlive what it loads
    return None if runtime.deserialize_cuda_engine(engine) is None else engine


def timing_cache_path(cache: Path, machine: Machine) -> Path:
    """TensorRT's measured tactics for one GPU, driver and version; TensorRT itself refuses those of another."""
    digest = hashlib.sha256("\n".join(asdict(machine).values()).encode()).hexdigest()[:16]
    return cache / FOLDER / f"timing-{digest}.cache"


def build_engine(
    bundle: Bundle,
    graph: str,
    profile: Profile,
    *,
    timing_cache: bytes = b"",
    monitor: trt.IProgressMonitor | None = None,
    compute_capabilities: tuple[str, ...] = (),
) -> tuple[bytes, bytes]:
    """The serialised engine of one graph and the timing cache after it; raises `BackendError` with TensorRT's reasons.

    `compute_capabilities`, such as ("SM86",), are for TensorRT for RTX, which builds ahead of time without a GPU.
    """
    import tensorrt as trt

    logger = engine_logger()
    builder = trt.Builder(logger)
    # TensorRT 11 knows no other kind of network, and takes the flag as 10 does.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    _parse(trt.OnnxParser(network, logger), bundle, graph)
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
    config.add_optimization_profile(_profile(builder, network, bundle.manifest["graphs"][graph]["inputs"], profile))
    if not config.set_timing_cache(config.create_timing_cache(timing_cache), False):
        config.set_timing_cache(config.create_timing_cache(b""), False)  # it was another TensorRT's
    if monitor is not None:
        config.progress_monitor = monitor
    if compute_capabilities:
        config.num_compute_capabilities = len(compute_capabilities)
        for index, name in enumerate(compute_capabilities):
            config.set_compute_capability(getattr(trt.ComputeCapability, name), index)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise BackendError(f"TensorRT {trt.__version__} cannot build {graph}; its messages are in the log {LOG}")
    return bytes(engine), bytes(config.get_timing_cache().serialize())


def _parse(parser: trt.OnnxParser, bundle: Bundle, graph: str) -> None:
    model = half_graph(onnx.load_model_from_string(bundle.graph_bytes(graph)))
    if not parser.parse(model.SerializeToString(deterministic=True)):
        errors = "; ".join(str(parser.get_error(i).desc()) for i in range(parser.num_errors))
        raise BackendError(f"TensorRT cannot read {graph}: {errors}")


def _profile(
    builder: trt.Builder, network: trt.INetworkDefinition, ports: Mapping[str, Any], profile: Profile
) -> trt.IOptimizationProfile:
    import tensorrt as trt

    ranges = builder.create_optimization_profile()
    for name in (network.get_input(i).name for i in range(network.num_inputs)):
        least, best, most = (trt.Dims(shape) for shape in profile.shapes(ports[name]))
        ranges.set_shape(name, least, best, most)
    return ranges


@contextmanager
def _progress(title: str) -> Iterator[trt.IProgressMonitor]:
    """A bar on a terminal: steps of the outermost phase, and the name of the phase at work."""
    import tensorrt as trt

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self, bar: Any) -> None:
            trt.IProgressMonitor.__init__(self)
            self._bar, self._outermost = bar, ""

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: SupportsInt) -> None:
            if parent_phase is None:
                self._outermost = phase_name
                self._bar.reset(total=int(num_steps))
            self._bar.set_postfix_str(phase_name)

        def step_complete(self, phase_name: str, step: SupportsInt) -> bool:
            if phase_name == self._outermost:
                self._bar.update()
            return True

        def phase_finish(self, phase_name: str) -> None:
            self._bar.refresh()

    with progress_bar(desc=title, unit="step") as bar:
        yield Monitor(bar)
