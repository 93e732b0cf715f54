"""TensorRT on an NVIDIA GPU, in fp16, from the engines that `uniecs build` made; it builds none itself."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from uniecs.backends.base import GRAPHS, Inputs, Tokens
from uniecs.backends.engine_cache import EngineKey, Machine, Profile, default_cache, load_engine, shape_at
from uniecs.backends.tensorrt_worker import CaptureError, Job, Worker
from uniecs.bundle import Bundle
from uniecs.errors import BackendError, MissingExtraError, UniecsError

if TYPE_CHECKING:
    import tensorrt as trt

LOG = "uniecs.tensorrt"
TEXT_STEP = 8
"""Texts are padded to a multiple of this: fewer sizes for CUDA graphs; an embedding does not depend on padding."""


def require_packages() -> None:
    """Raise `MissingExtraError` unless TensorRT and cuda-core can be imported."""
    try:
        import tensorrt  # noqa: F401
    except ImportError as error:
        hint = "install TensorRT 10 or 11 from NVIDIA (docs/tensorrt.md says where)"
        raise MissingExtraError(f"TensorRT cannot be imported ({error}): {hint}") from error
    try:
        import cuda.core  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(f"cuda-core cannot be imported ({error}): pip install 'uniecs[tensorrt]'") from error


def this_machine() -> Machine:
    """The GPU that CUDA lists first, its driver and TensorRT; raises `BackendError` or `MissingExtraError`."""
    require_packages()
    import tensorrt as trt
    from cuda import core

    try:
        device = core.Device(0)
        device.set_current()
        major, minor = device.compute_capability
        driver = ".".join(map(str, core.system.get_kernel_mode_driver_version()))
        return Machine(device.name, f"{major}.{minor}", driver, trt.__version__)
    except Exception as error:  # cuda-core raises kinds of its own, some directly under Exception
        raise BackendError(f"no NVIDIA GPU can be used here: {error}") from error


def engine_logger() -> trt.ILogger:
    """TensorRT's messages to the Python logger `LOG`: its errors as errors, all others for debugging."""
    import tensorrt as trt

    logger = logging.getLogger(LOG)

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: trt.ILogger.Severity, message: str) -> None:
            serious = severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR)
            logger.log(logging.ERROR if serious else logging.DEBUG, message)

    return Logger()


def describe() -> str:
    """Version, device and precision; raises `BackendError` or `MissingExtraError`."""
    machine = this_machine()
    return f"{machine.tensorrt} (cuda: fp16; {machine.gpu}, driver {machine.driver})"


class TensorRtBackend:
    """See `uniecs.backends.base.create_backend`. Each call takes an idle worker, or makes one: a stream, execution
    contexts and buffers of its own."""

    name = "tensorrt"

    def __init__(self, bundle: Bundle, device: str, precision: str, cache: Path | None = None) -> None:
        """Load the engines for this machine from `cache` (`default_cache()` unless given).

        Raises `BackendError` for another device or precision, or if an engine is missing, `EngineMismatchError` if
        one is damaged or for something else, `MissingExtraError` if TensorRT or cuda-core is not installed.
        """
        if (device, precision) != ("cuda", "fp16"):
            raise BackendError(f"the tensorrt backend runs on cuda in fp16, not on {device} in {precision}")
        self.device, self.precision = device, precision
        machine = this_machine()
        self._profile = Profile.of(bundle)
        self._graphs: Mapping[str, Any] = {graph: bundle.manifest["graphs"][graph] for graph in GRAPHS}
        self._embed_dim = bundle.embed_dim
        self._runtime, self._engines = _deserialised(bundle, cache or default_cache(), machine, self._profile)
        self._idle: list[Worker] = []
        self._captures = True

    def run(self, graph: str, inputs: Inputs) -> npt.NDArray[Any]:
        """See `Backend.run`; tokens go in as float32 or float16 and come out as float32."""
        if graph not in GRAPHS:
            raise BackendError(f"no graph {graph!r}; expected one of {', '.join(GRAPHS)}")
        axes = self._axes(graph, inputs)
        (output,) = self._graphs[graph]["outputs"]
        job = Job((graph,), tuple(sorted(axes.items())), tuple(inputs), output)
        return self._performed(job, inputs).astype(np.float32, copy=False)

    def embed(self, pixel_values: npt.NDArray[np.float32] | None, tokens: Tokens | None) -> npt.NDArray[Any]:
        """See `Backend.embed`; tokens stay on the device. A batch beyond the engines' profile runs in parts."""
        given = pixel_values if pixel_values is not None else tokens[0] if tokens is not None else ()
        most = self._profile.batch[2]
        parts = [np.empty((0, self._embed_dim), np.float32)]
        for start in range(0, len(given), most):
            rows = slice(start, start + most)
            pixels = None if pixel_values is None else pixel_values[rows]
            parts.append(self._embed(pixels, None if tokens is None else (tokens[0][rows], tokens[1][rows])))
        return np.concatenate(parts)

    def _embed(self, pixel_values: npt.NDArray[np.float32] | None, tokens: Tokens | None) -> npt.NDArray[Any]:
        """One batch within the profile, as one job."""
        graphs = ["fusion"]
        inputs: dict[str, npt.NDArray[Any]] = {}
        axes = {"image_length": 1, "text_length": 1}
        if tokens is not None:
            input_ids, mask = (_padded(each, self._profile.text_length[2]) for each in tokens)
            inputs |= {"input_ids": input_ids, "attention_mask": mask, "text_mask": mask}
            axes["text_length"] = mask.shape[1]
            graphs.insert(0, "text_encoder")
        if pixel_values is not None:
            inputs["pixel_values"] = pixel_values
            axes["image_length"] = self._profile.image_length[2]
            graphs.insert(0, "image_encoder")
        axes["batch"] = batch = len(next(iter(inputs.values())))
        inputs.setdefault("text_mask", np.ones((batch, 1), np.int64))
        present = [[pixel_values is not None, tokens is not None]]
        inputs["modality_indicator"] = np.repeat(np.array(present, np.float32), batch, axis=0)
        self._check(axes)
        return self._performed(Job(tuple(graphs), tuple(sorted(axes.items())), tuple(inputs), "embedding"), inputs)

    def _axes(self, graph: str, inputs: Inputs) -> dict[str, int]:
        """The sizes of the named axes that `inputs` have; raises `BackendError` where they do not fit the graph."""
        ports = self._graphs[graph]["inputs"]
        axes: dict[str, int] = {}
        shapes = {name: array.shape for name, array in inputs.items()}
        for name, port in ports.items():
            for axis, size in zip(port["shape"], shapes.get(name, ()), strict=False):
                if isinstance(axis, str):
                    axes.setdefault(axis, size)
        named = {axis for port in ports.values() for axis in port["shape"] if isinstance(axis, str)}
        if named - axes.keys() or shapes != {name: shape_at(port, axes) for name, port in ports.items()}:
            expected = {name: tuple(port["shape"]) for name, port in ports.items()}
            raise BackendError(f"tensorrt cannot run {graph} on inputs {shapes}; expected {expected}")
        self._check(axes)
        return axes

    def _check(self, axes: Mapping[str, int]) -> None:
        for axis, size in axes.items():
            least, _, most = getattr(self._profile, axis)
            if not least <= size <= most:
                raise BackendError(f"{axis} is {size}; the engines were built for {least} to {most}")

    def _performed(self, job: Job, inputs: Inputs) -> npt.NDArray[Any]:
        try:
            try:
                worker = self._idle.pop()
            except IndexError:
                worker = Worker(self._engines, self._graphs, self._profile, self._captures)
            output = worker.perform(job, inputs)
        except CaptureError as error:
            logging.getLogger(LOG).warning("going on without CUDA graphs, which only costs time: %s", error)
            self._captures = False
            return self._performed(job, inputs)
        except UniecsError:
            raise
        except Exception as error:  # cuda-core and TensorRT raise kinds of their own
            shapes = {name: (array.dtype.name, array.shape) for name, array in inputs.items()}
            graphs = ", ".join(job.graphs)
            raise BackendError(f"{self.name} failed to run {graphs} on inputs {shapes}: {error}") from error
        # A worker whose call failed is left behind: its stream may be in any state.
        self._idle.append(worker)
        return output


def _padded(array: npt.NDArray[np.int64], most: int) -> npt.NDArray[np.int64]:
    """With zeros on the right up to a multiple of `TEXT_STEP`, at most `most`."""
    length = array.shape[1]
    missing = min(-(-length // TEXT_STEP) * TEXT_STEP, max(most, length)) - length
    return np.pad(array, ((0, 0), (0, missing)))


def _deserialised(
    bundle: Bundle, cache: Path, machine: Machine, profile: Profile
) -> tuple[trt.Runtime, dict[str, trt.ICudaEngine]]:
    """The runtime and the three engines; it must outlive them."""
    import tensorrt as trt

    runtime = trt.Runtime(engine_logger())
    engines = {}
    for graph in GRAPHS:
        key = EngineKey(bundle.model_id, graph, machine, profile)
        engine = runtime.deserialize_cuda_engine(load_engine(cache, key))
        if engine is None:
            raise BackendError(
                f"TensorRT {machine.tensorrt} cannot load {key.path(cache)} (its messages are in the log "
                "uniecs.tensorrt): run `uniecs build BUNDLE` on this machine"
            )
        engines[graph] = engine
    return runtime, engines
