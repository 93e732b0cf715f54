"""ONNX Runtime: fp32 on a CPU, or on an NVIDIA GPU with the onnxruntime-gpu package."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from uniecs.backends.base import GraphBackend, Inputs, Runner, Tokens, embed_through
from uniecs.bundle import Bundle
from uniecs.errors import BackendError, MissingExtraError

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
CUDA_OPTIONS = {
    "use_tf32": "0",  # it would cost fp32 its parity with the golden vectors
    "arena_extend_strategy": "kSameAsRequested",  # by default each extension doubles the last
    "cudnn_conv_algo_search": "HEURISTIC",  # by default each new batch size is searched anew
}


def import_onnxruntime() -> Any:
    """The `onnxruntime` module, imported with its telemetry off; raises `MissingExtraError`.

    Importing version 1.31 otherwise makes a device id in ~/.cache/Microsoft and starts an uploader. Both
    names of the switch are set, as later versions renamed it; a value set by the user stands.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("ORT_TELEMETRY_DISABLED", "1")
    hint = "pip install 'uniecs[onnxruntime]' (or 'uniecs[gpu]' for CUDA)"
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError(f"ONNX Runtime cannot be imported ({error}): {hint}") from error
    if not hasattr(onnxruntime, "InferenceSession"):
        # Uninstalling onnxruntime or onnxruntime-gpu deletes the files that both share.
        raise MissingExtraError(
            f"the installed ONNX Runtime lacks its files; uninstall it, and onnxruntime-gpu: {hint}"
        )
    return onnxruntime


def describe() -> str:
    """Version, devices and precisions; raises `MissingExtraError`."""
    onnxruntime = import_onnxruntime()
    listed = onnxruntime.get_available_providers()
    devices = "; ".join(f"{device}: fp32" for device, provider in PROVIDERS.items() if provider in listed)
    return f"{onnxruntime.__version__} ({devices})"


class OnnxRuntimeBackend(GraphBackend):
    """See `uniecs.backends.base.create_backend`."""

    name = "onnxruntime"

    def __init__(self, bundle: Bundle, device: str, precision: str, threads: int | None) -> None:
        """Raises `BackendError` for a device or precision that this installation lacks."""
        super().__init__(bundle, device, precision, threads)
        if precision != "fp32":
            able = "backend='openvino'" if device == "cpu" else "precision='fp32'"
            instead = "backend='tensorrt'" if precision == "fp16" else able
            raise BackendError(f"the onnxruntime backend runs in fp32, not in {precision}; use {instead}")
        self._onnxruntime = import_onnxruntime()
        listed = self._onnxruntime.get_available_providers()
        if PROVIDERS[device] not in listed:
            raise BackendError(
                f"device {device!r} needs {PROVIDERS[device]}; this ONNX Runtime has {', '.join(listed)}: "
                "pip install 'uniecs[gpu]' in place of onnxruntime"
            )
        self._preloaded = ""
        if device == "cuda":
            # The provider may be listed without its libraries or a driver: find out now, not at the first query.
            with contextlib.redirect_stdout(io.StringIO()) as said:
                self._onnxruntime.preload_dlls()
            self._preloaded = said.getvalue().strip()
            self._compiled("fusion")

    def _compile(self, graph: str) -> Runner:
        options = self._onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # No spinning: a request runs three sessions, and the pool of one would keep the cores of the next busy.
        # (One pool for all is no way out: once it exists, sessions of other libraries in this process fail.)
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # The arena keeps what its largest batch took, once for each graph.
        options.enable_cpu_mem_arena = False
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        providers: list[Any] = [PROVIDERS["cpu"]]
        if self.device == "cuda":
            providers.insert(0, (PROVIDERS["cuda"], CUDA_OPTIONS))
        session = self._onnxruntime.InferenceSession(self._bundle.graph_bytes(graph), options, providers=providers)
        session._model_bytes = None  # it would keep them for a change of providers
        if session.get_providers()[0] != PROVIDERS[self.device]:
            raise BackendError(
                f"ONNX Runtime could not start {PROVIDERS[self.device]} and fell back to "
                f"{session.get_providers()[0]}: check the NVIDIA driver and the CUDA libraries "
                f"(pip install 'onnxruntime-gpu[cuda,cudnn]' brings them). {self._preloaded}"
            )
        session.disable_fallback()
        return Session(session, self.device)

    def embed(self, pixel_values: npt.NDArray[np.float32] | None, tokens: Tokens | None) -> npt.NDArray[Any]:
        """See `Backend.embed`; tokens stay on the device before fusion."""
        output: npt.NDArray[Any] = embed_through(self._bound, self._bundle.embed_dim, pixel_values, tokens).numpy()
        return output

    def _bound(self, graph: str, inputs: Mapping[str, Any]) -> Any:
        session = cast(Session, self._runners.get(graph) or self._compiled(graph))
        try:
            return session.bound(inputs)
        except Exception as error:  # as in `run`
            shapes = {
                name: tuple(value.shape()) if callable(value.shape) else value.shape for name, value in inputs.items()
            }
            raise BackendError(f"{self.name} failed to run {graph} on inputs {shapes}: {error}") from error


class Session:
    """One graph, thread-safe: called with arrays it gives an array, through `bound` it keeps to the device."""

    def __init__(self, session: Any, device: str) -> None:
        self._session = session
        self._device = device

    def __call__(self, inputs: Inputs) -> npt.NDArray[Any]:
        output: npt.NDArray[Any] = self._session.run(None, dict(inputs))[0]
        return output

    def bound(self, inputs: Mapping[str, Any]) -> Any:
        """The output as an OrtValue on the device, from arrays and such OrtValues."""
        binding = self._session.io_binding()
        for name, value in inputs.items():
            if isinstance(value, np.ndarray):
                binding.bind_cpu_input(name, np.ascontiguousarray(value))
            else:
                binding.bind_ortvalue_input(name, value)
        binding.bind_output(self._session.get_outputs()[0].name, self._device)
        # Waits for the device at its end: another session, on a stream of its own, may read the output then.
        self._session.run_with_iobinding(binding)
        return binding.get_outputs()[0]
