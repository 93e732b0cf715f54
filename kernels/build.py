"""nvcc builds the kernel's PTX and cubins, and says how many registers each kernel takes and whether any spill.

python -m uniecs.kernels.build FOLDER        # gate-sm_90.ptx, gate-sm_90.cubin, ... and a table
"""

from __future__ import annotations

import argparse
import functools
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from uniecs.errors import BackendError

SOURCE = Path(__file__).with_name("gate.cu")
# Compute capabilities, times ten: Turing, Ampere, Ada, Hopper, Blackwell.
ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
_REPORT = re.compile(
    r"Compiling entry function '(?P<kernel>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers",
    re.DOTALL,
)


@dataclass(frozen=True)
class KernelReport:
    """What ptxas says of one kernel on one architecture; sizes in bytes a thread."""

    architecture: int
    kernel: str
    registers: int
    stack_bytes: int
    spill_bytes: int


def find_nvcc() -> str:
    """nvcc on the PATH, else in CUDA_HOME; raises `BackendError`."""
    home = os.environ.get("CUDA_HOME")
    nvcc = shutil.which("nvcc") or (shutil.which("nvcc", path=str(Path(home, "bin"))) if home else None)
    if nvcc is None:
        raise BackendError(
            "nvcc was not found, neither on the PATH nor in CUDA_HOME: install the CUDA toolkit 13.0 or newer, or "
            "bring PTX that python -m uniecs.kernels.build made elsewhere"
        )
    return nvcc


def run_nvcc(arguments: Sequence[str | Path]) -> str:
    """What nvcc prints; raises `BackendError` with it where nvcc fails."""
    command = [find_nvcc(), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise BackendError(f"{' '.join(command)} ended with status {result.returncode}:\n{result.stderr.strip()}")
    return result.stdout + result.stderr


@functools.cache
def compile_ptx(architecture: int) -> bytes:
    """The PTX of every kernel for one of `ARCHITECTURES`; kept for the process. Raises `BackendError`."""
    with tempfile.TemporaryDirectory() as folder:
        ptx = Path(folder, "gate.ptx")
        run_nvcc(["-std=c++17", "-ptx", f"-arch=compute_{architecture}", SOURCE, "-o", ptx])
        return ptx.read_bytes()


def compile_cubin(ptx: bytes, architecture: int) -> tuple[bytes, list[KernelReport]]:
    """Machine code from PTX of the same architecture, and the report of each kernel; raises `BackendError`."""
    with tempfile.TemporaryDirectory() as folder:
        source, cubin = Path(folder, "gate.ptx"), Path(folder, "gate.cubin")
        source.write_bytes(ptx)
        output = run_nvcc(["-cubin", f"-arch=sm_{architecture}", "-Xptxas", "-v", source, "-o", cubin])
        return cubin.read_bytes(), parse_reports(output, architecture)


def parse_reports(output: str, architecture: int) -> list[KernelReport]:
    """The kernels in what `ptxas -v` printed, in the order of their names; raises `BackendError` if there are none."""
    found = [
        KernelReport(
            architecture,
            match["kernel"],
            int(match["registers"]),
            int(match["stack"]),
            int(match["stores"]) + int(match["loads"]),
        )
        for match in _REPORT.finditer(output)
    ]
    if not found:
        raise BackendError(f"ptxas reported no kernel for sm_{architecture}; it printed: {output.strip()!r}")
    return sorted(found, key=lambda report: report.kernel)


def build(folder: Path, architectures: Sequence[int] = ARCHITECTURES) -> list[KernelReport]:
    """Write gate-sm_N.ptx and gate-sm_N.cubin for each architecture; returns every kernel's report.

    Raises `BackendError`.
    """
    folder.mkdir(parents=True, exist_ok=True)

    def one(architecture: int) -> list[KernelReport]:
        ptx = compile_ptx(architecture)
        cubin, reports = compile_cubin(ptx, architecture)
        (folder / f"gate-sm_{architecture}.ptx").write_bytes(ptx)
        (folder / f"gate-sm_{architecture}.cubin").write_bytes(cubin)
        return reports

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return [report for reports in pool.map(one, architectures) for report in reports]


def table(reports: Sequence[KernelReport]) -> str:
    """Registers of each kernel on each architecture, with the bytes spilled where there are any."""
    architectures = sorted({report.architecture for report in reports})
    cells = {
        (report.kernel, report.architecture): f"{report.registers}"
        + (f" ({report.spill_bytes} B spilled)" if report.spill_bytes else "")
        for report in reports
    }
    lines = [["registers a thread", *(f"sm_{each}" for each in architectures)]]
    for kernel in sorted({report.kernel for report in reports}):
        lines.append([kernel, *(cells.get((kernel, each), "") for each in architectures)])
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def architecture_for(capability: tuple[int, int]) -> int:
    """The highest of `ARCHITECTURES` whose PTX a device of this compute capability takes; raises `BackendError`."""
    fitting = [each for each in ARCHITECTURES if each <= 10 * capability[0] + capability[1]]
    if not fitting:
        raise BackendError(
            f"the gate kernel needs compute capability 7.5 or higher; this device has {capability[0]}.{capability[1]}"
        )
    return max(fitting)


def main() -> None:
    """The command line: build into a folder and print the table."""
    parser = argparse.ArgumentParser(prog="python -m uniecs.kernels.build", description="Build the gate kernel")
    parser.add_argument("folder", type=Path, help="where the .ptx and .cubin files go")
    folder = parser.parse_args().folder
    try:
        print(table(build(folder)))
    except (BackendError, OSError) as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")


if __name__ == "__main__":
    main()
