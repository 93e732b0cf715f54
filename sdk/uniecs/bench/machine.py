"""What the figures were measured on: processor, memory, versions, commit, and the state of a GPU."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from uniecs import __version__
from uniecs.backends.threads import usable_cpus

PACKAGES = ("numpy", "openvino", "onnxruntime", "onnxruntime-gpu", "tensorrt", "pillow")
CPUINFO = Path("/proc/cpuinfo")
STATM = Path("/proc/self/statm")
GPU_FIELDS = ("name", "driver_version", "power.draw", "clocks.sm", "clocks.mem", "temperature.gpu")


def describe_machine() -> dict[str, Any]:
    """CPU model, cores, memory and system; None is unknown."""
    pages = hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "usable_cores": usable_cpus(),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if pages else None,
        "os": platform.platform(),
        "architecture": platform.machine(),
        "python": platform.python_version(),
    }


def versions() -> dict[str, str]:
    """Of uniecs and of the packages below it that are installed."""
    found = {name: version_of(name) for name in PACKAGES}
    return {"uniecs": __version__, **{name: version for name, version in found.items() if version is not None}}


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """Of each of `packages`; "not installed" for one that is not."""
    return {package: version_of(package) or "not installed" for package in packages}


def version_of(package: str) -> str | None:
    """Of a package; None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def git_commit() -> str | None:
    """The commit of the work tree that this package runs from, "-dirty" after it if files differ; None elsewhere."""
    if shutil.which("git") is None:
        return None
    folder = str(Path(__file__).resolve().parent)
    command = ["git", "-C", folder, "describe", "--always", "--abbrev=12", "--dirty", "--exclude=*"]
    inside = subprocess.run(
        ["git", "-C", folder, "ls-files", "--error-unmatch", Path(__file__).name], capture_output=True, check=False
    )
    if inside.returncode:  # a package installed below somebody else's work tree
        return None
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def resident_bytes() -> int | None:
    """What this process has in memory; None where the system does not tell in /proc."""
    try:
        return int(STATM.read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def load_average() -> float | None:
    """Of the last minute; None where there is none."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def gpu_state() -> list[dict[str, str]]:
    """Name, driver, power, clocks and temperature of each NVIDIA GPU, as nvidia-smi tells them; empty without it."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", f"--query-gpu={','.join(GPU_FIELDS)}", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return []
    return [dict(zip(GPU_FIELDS, line.split(", "), strict=False)) for line in done.stdout.splitlines()]


def _cpu_model() -> str:
    try:
        lines = CPUINFO.read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
