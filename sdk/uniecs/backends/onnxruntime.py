"""ONNX Runtime: fp32 on a CPU, or on an NVIDIA GPU with the onnxruntime-gpu package."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy.typing as npt

from uniecs.backends.base import GraphBackend, Inputs, Runner
from uniecs.bundle import Bundle
from uniecs.errors import BackendError, MissingExtraError

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def import_onnxruntime() -> Any:
    """The `onnxruntime` module, imported with its telemetry off; raises `MissingExtraError`.

    Importing version 1.31 otherwise makes a device id in ~/.cache/Microsoft and starts an uploader. Both
    names of the switch are set, as later versions renamed it; a value set by the user stands.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("ORT_TELEMETRY_DISABLED", "1")
    try:
        import onnxruntime
    except ImportError as error:
        hint = "pip install 'uniecs[onnxruntime]' (or 'uniecs[gpu]' for CUDA)"
        raise MissingExtraError(f"ONNX Runtime cannot be imported ({error}): {hint}") from error
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
            raise BackendError(f"the onnxruntime backend runs in fp32, not in {precision}; use backend='openvino'")
        self._onnxruntime = import_onnxruntime()
        listed = self._onnxruntime.get_available_providers()
        if PROVIDERS[device] not in listed:
            raise BackendError(
                f"device {device!r} needs {PROVIDERS[device]}; this ONNX Runtime has {', '.join(listed)}: "
                "pip install 'uniecs[gpu]' in place of onnxruntime"
            )
        if device == "cuda":
            # The provider may be listed without a usable driver: find out now, not at the first query.
            self._compiled("fusion")

    def _compile(self, path: Path) -> Runner:
        options = self._onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        providers: list[Any] = [PROVIDERS["cpu"]]
        if self.device == "cuda":
            # TF32 would cost fp32 its parity with the golden vectors.
            providers.insert(0, (PROVIDERS["cuda"], {"use_tf32": "0"}))
        session = self._onnxruntime.InferenceSession(str(path), options, providers=providers)
        if session.get_providers()[0] != PROVIDERS[self.device]:
            raise BackendError(
                f"ONNX Runtime could not start {PROVIDERS[self.device]} and fell back to "
                f"{session.get_providers()[0]}: check the NVIDIA driver and the CUDA libraries"
            )
        session.disable_fallback()

        def run(inputs: Inputs) -> npt.NDArray[Any]:
            output: npt.NDArray[Any] = session.run(None, dict(inputs))[0]
            return output

        return run
