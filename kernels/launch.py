"""Launch the gate kernel on raw device pointers: through cuda-core, or through pycuda, from the same PTX.

A `GateCall` checks everything that can be checked without the driver. Neither launcher waits, allocates or copies.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from uniecs.errors import BackendError, InputError, MissingExtraError
from uniecs.kernels.build import architecture_for, compile_ptx
from uniecs.kernels.gate import ITEM_BYTES, THREADS, VECTOR_BYTES, entry_point, grid

if TYPE_CHECKING:
    from cuda.core import Kernel

MAX_INT32 = 2**31 - 1
POINTERS = ("x", "yz", "u", "indicator", "parameters", "out")


@dataclass(frozen=True)
class GateCall:
    """One launch: device pointers and sizes as in gate.py's table, and the storage `dtype`, a key of `ITEM_BYTES`.

    Raises `InputError` for a null or misaligned pointer, a size out of range, or an `out` that overlaps an input.
    That a pointer is one of the device, and as long as it must be, is the caller's word.
    """

    x: int
    yz: int
    u: int
    indicator: int
    parameters: int
    out: int
    rows: int
    tokens: int
    dim: int
    u_stride: int
    column: int
    dtype: str

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "int" and type(value) is not int:
                raise InputError(f"{field.name} must be an int, not {type(value).__name__}")
        entry_point(self.dtype, self.dim)  # checks both
        self._check_sizes()
        self._check_pointers()

    def _check_sizes(self) -> None:
        if not 1 <= self.rows <= MAX_INT32:
            raise InputError(f"rows must be from 1 to {MAX_INT32}, not {self.rows}")
        if not 1 <= self.tokens <= self.rows or self.rows % self.tokens:
            raise InputError(f"tokens, of one sample, must divide the {self.rows} rows; got {self.tokens}")
        step = VECTOR_BYTES // ITEM_BYTES[self.dtype]
        if not self.dim <= self.u_stride <= MAX_INT32 or self.u_stride % step:
            raise InputError(f"u_stride must be at least {self.dim} and a multiple of {step}, not {self.u_stride}")
        if self.column not in (0, 1):
            raise InputError(f"column must be 0 (image) or 1 (text), not {self.column}")

    def _check_pointers(self) -> None:
        for name in POINTERS:
            pointer, step = getattr(self, name), 4 if name == "indicator" else VECTOR_BYTES
            if not 0 < pointer < 2**64 or pointer % step:
                raise InputError(f"{name} must be a device pointer aligned to {step} bytes, not {pointer:#x}")
        sizes = self.sizes_bytes()
        for name in POINTERS[:-1]:
            start = getattr(self, name)
            if start < self.out + sizes["out"] and self.out < start + sizes[name]:
                raise InputError(f"out overlaps {name}: the kernel reads its inputs while it writes")

    def sizes_bytes(self) -> dict[str, int]:
        """How many bytes the kernel touches from each pointer on."""
        item = ITEM_BYTES[self.dtype]
        row = self.dim * item
        return {
            "x": self.rows * row,
            "yz": 2 * self.rows * row,
            "u": (self.rows - 1) * self.u_stride * item + row,
            "indicator": self.rows // self.tokens * 2 * 4,
            "parameters": 4 * self.dim * 4,
            "out": self.rows * row,
        }

    @property
    def kernel(self) -> str:
        """The entry point in the PTX."""
        return entry_point(self.dtype, self.dim)

    def arguments(self) -> tuple[np.uint64 | np.int32, ...]:
        """The kernel's arguments in its order, each with the size it has there."""
        inputs = (self.x, self.yz, self.u, self.indicator, self.parameters)
        scalars = (self.rows, self.tokens, self.dim, self.u_stride, self.column)
        return (*map(np.uint64, inputs), *map(np.int32, scalars), np.uint64(self.out))


class CudaCoreLauncher:
    """The kernels of one PTX on one device, through cuda-core; safe to share between threads.

    Makes the device current in the calling thread. Raises `MissingExtraError` without cuda-core, `BackendError` where
    the driver, the device or the PTX fails.
    """

    def __init__(self, ptx: bytes, device: int = 0) -> None:
        _require_cuda_core()
        from cuda import core

        try:
            self._device = core.Device(device)
            self._device.set_current()
            self._module = core.ObjectCode.from_ptx(ptx, name="uniecs_gate")
        except Exception as error:  # cuda-core raises kinds of its own, directly under Exception
            raise BackendError(f"the gate kernel did not load on CUDA device {device}: {error}") from error
        self._kernels: dict[str, Kernel] = {}

    @classmethod
    def built_for(cls, device: int = 0) -> CudaCoreLauncher:
        """With PTX that nvcc builds now for this device's architecture; raises `BackendError` without nvcc too."""
        _require_cuda_core()
        from cuda import core

        try:
            capability = core.Device(device).compute_capability
        except Exception as error:  # as above
            raise BackendError(f"no CUDA device {device} here: {error}") from error
        return cls(compile_ptx(architecture_for((capability.major, capability.minor))), device)

    def launch(self, call: GateCall, stream: int = 0) -> None:
        """Put the kernel on `stream` (a cudaStream_t as an int; 0 is the legacy default stream), and return at once."""
        from cuda import core

        try:
            self._device.set_current()
            kernel = self._kernels.get(call.kernel)
            if kernel is None:
                kernel = self._kernels[call.kernel] = self._module.get_kernel(call.kernel)
            where = core.Stream.from_handle(stream) if stream else core.LEGACY_DEFAULT_STREAM
            core.launch(where, core.LaunchConfig(grid=grid(call.rows), block=THREADS), kernel, *call.arguments())
        except Exception as error:  # as above
            raise BackendError(f"{call.kernel} was not launched: {error}") from error


class PycudaLauncher:
    """The same through pycuda, in the device's primary context, so that it shares memory with the CUDA runtime.

    pycuda cannot adopt a foreign stream: the caller's stream is a `pycuda.driver.Stream`, which other libraries adopt
    by its `handle` (`torch.cuda.ExternalStream(stream.handle)`). Raises as `CudaCoreLauncher`.

    Written against pycuda's documentation and source; it has not been executed (pycuda has no wheels).
    """

    def __init__(self, ptx: bytes, device: int = 0) -> None:
        try:
            from pycuda import driver
        except ImportError as error:
            raise MissingExtraError(
                "this launcher needs pycuda, and a CUDA toolkit to build it: pip install pycuda"
            ) from error
        try:
            driver.init()
            self._context = driver.Device(device).retain_primary_context()
            self._context.push()
            try:
                self._module = driver.module_from_buffer(ptx + b"\0")
            finally:
                self._context.pop()
        except Exception as error:  # pycuda.driver.Error, but a stub of it may lack that
            raise BackendError(f"the gate kernel did not load on CUDA device {device}: {error}") from error

    def launch(self, call: GateCall, stream: Any = None) -> None:
        """Put the kernel on `stream` (a `pycuda.driver.Stream`; None is the default stream), and return at once."""
        try:
            self._context.push()
            try:
                function = self._module.get_function(call.kernel)
                function(*call.arguments(), grid=(grid(call.rows), 1), block=(THREADS, 1, 1), stream=stream)
            finally:
                self._context.pop()
        except Exception as error:  # as above
            raise BackendError(f"{call.kernel} was not launched: {error}") from error


@functools.cache
def device_launcher(device: int) -> CudaCoreLauncher:
    """The launcher of one device, built on first use and kept for the process; raises as `CudaCoreLauncher`."""
    return CudaCoreLauncher.built_for(device)


def _require_cuda_core() -> None:
    try:
        import cuda.core  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("launching the gate kernel needs cuda-core: pip install 'uniecs[kernels]'") from error
