"""OpenVINO: the default engine on a CPU, in fp32 and bf16; reads the ONNX graphs directly."""

from __future__ import annotations

import contextlib
import platform
import sys
import threading
from pathlib import Path
from typing import Any

import numpy.typing as npt

from uniecs.backends.base import GraphBackend, Inputs, Runner
from uniecs.backends.compiled_cache import cache_folder, cache_key, read_blob, write_blob
from uniecs.bundle import Bundle
from uniecs.errors import BackendError, MissingExtraError

_import_lock = threading.Lock()
TELEMETRY = "openvino_telemetry"
CPUINFO = Path("/proc/cpuinfo")
MAX_IDLE = 4
"""Idle infer requests kept for each graph."""
MAX_PREPARED = 256
"""Kernels kept for each graph, about four for each shape of input; OpenVINO's 5000 take gigabytes."""


def import_openvino() -> Any:
    """The `openvino` module, imported without its telemetry; raises `MissingExtraError`.

    `import openvino` otherwise reports to Google Analytics and writes ~/intel; with its telemetry package out
    of sight it takes a stub of its own.
    """
    with _import_lock:
        hidden = "openvino" not in sys.modules
        before = sys.modules.get(TELEMETRY)
        if hidden:
            sys.modules[TELEMETRY] = None  # type: ignore[assignment]
        try:
            import openvino
        except ImportError as error:
            raise MissingExtraError(f"OpenVINO cannot be imported ({error}): pip install openvino") from error
        finally:
            if hidden:
                del sys.modules[TELEMETRY]
                if before is not None:
                    sys.modules[TELEMETRY] = before
    return openvino


def describe() -> str:
    """Version, device and precisions; raises `MissingExtraError`."""
    openvino = import_openvino()
    precisions = "fp32, bf16" if _has_bf16(openvino.Core()) else "fp32"
    return f"{openvino.__version__.split('-')[0]} (cpu: {precisions})"


def _has_bf16(core: Any) -> bool:
    return "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _machine(core: Any) -> dict[str, Any]:
    """What a compiled graph depends on besides the graph and its configuration."""
    cpu = {name: core.get_property("CPU", name) for name in ("FULL_DEVICE_NAME", "OPTIMIZATION_CAPABILITIES")}
    try:
        with CPUINFO.open(encoding="ascii", errors="replace") as lines:
            cpu["flags"] = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:  # not Linux: the name and what it can do must suffice
        cpu["flags"] = ""
    return {"engine": f"openvino {import_openvino().__version__}", "machine": platform.machine(), **cpu}


class OpenVinoBackend(GraphBackend):
    """See `uniecs.backends.base.create_backend`."""

    name = "openvino"

    def __init__(self, bundle: Bundle, device: str, precision: str, threads: int | None) -> None:
        """Raises `BackendError` for a device or precision that this machine lacks."""
        super().__init__(bundle, device, precision, threads)
        if device != "cpu":
            raise BackendError(
                f"the openvino backend runs on cpu, not on {device}; "
                "use backend='onnxruntime' with onnxruntime-gpu (pip install 'uniecs[gpu]')"
            )
        self._core = import_openvino().Core()
        if precision == "bf16" and not _has_bf16(self._core):
            raise BackendError("this CPU has no bf16 instructions (AVX512_BF16 or AMX); use precision='fp32'")
        self._machine = _machine(self._core)

    def _compile(self, path: Path) -> Runner:
        compiled = self._compiled_model(path)
        # A request serves one call at a time: a stack of idle ones grows to the number of threads that call
        # at once, within bounds, as each keeps its last tensors.
        idle: list[Any] = []

        def run(inputs: Inputs) -> npt.NDArray[Any]:
            try:
                request = idle.pop()
            except IndexError:
                request = compiled.create_infer_request()
            try:
                output: npt.NDArray[Any] = request.infer(dict(inputs), share_inputs=True)[0]
            finally:
                if len(idle) < MAX_IDLE:
                    idle.append(request)
            return output

        return run

    def _compiled_model(self, path: Path) -> Any:
        """The graph compiled, from the cache if an earlier process did the same."""
        config: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "bf16" if self.precision == "bf16" else "f32",
            "ENABLE_CPU_PINNING": False,
            "CPU_RUNTIME_CACHE_CAPACITY": MAX_PREPARED,
        }
        if self._threads is not None:
            config["INFERENCE_NUM_THREADS"] = self._threads
        folder = cache_folder()
        files = {name: each["sha256"] for name, each in self._bundle.manifest["files"].items()}
        key = cache_key(
            {"graph": path.name, "files": files, "precision": self.precision, "config": config, **self._machine}
        )
        blob = read_blob(folder, key)
        if blob is not None:
            # A blob that this OpenVINO nevertheless refuses is compiled and written anew.
            with contextlib.suppress(RuntimeError, ValueError):
                return self._core.import_model(blob, "CPU", config)
        compiled = self._core.compile_model(self._core.read_model(path), "CPU", config)
        if folder is not None:
            write_blob(folder, key, compiled.export_model().getvalue())
        return compiled
