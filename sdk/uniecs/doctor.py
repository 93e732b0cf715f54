"""What is installed here, which backends and devices work, and what `load("mini")` would choose and why."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from typing import Any

from uniecs import __version__
from uniecs.backends.compiled_cache import cache_folder, trusted
from uniecs.bench.machine import version_of
from uniecs.errors import UniecsError

DEFAULT_MODEL = "mini"
PACKAGES = {
    "": ("numpy", "openvino", "pillow", "safetensors", "tqdm"),
    "onnxruntime": ("onnxruntime",),
    "gpu": ("onnxruntime-gpu",),
    "tensorrt": ("cuda-core",),
    "parquet": ("pyarrow",),
    "train": ("torch", "transformers", "tensorboard", "scikit-learn"),
    "export": ("onnx", "onnxscript", "nncf"),
}
"""Extra of uniecs ("" the runtime itself) -> the packages it brings."""
NOT_TRUSTED = "; NOT USED: it belongs to another user, or others may write there (chmod go-w)"
WHY = (
    '"auto" is device cpu (a GPU only when asked for), backend openvino on cpu and onnxruntime on cuda, '
    "precision fp32; what is not available is an error, never a silent fallback"
)
"""The rule of `uniecs.backends.base.create_backend`."""


def examine() -> dict[str, Any]:
    """Look at this machine; JSON types. A fault found is part of the report, not raised."""
    from uniecs.backends.base import available_backends
    from uniecs.backends.threads import usable_cpus

    packages = [_package(name, extra) for extra, names in PACKAGES.items() for name in names]
    return {
        "uniecs": __version__,
        "python": f"{platform.python_version()} ({sys.executable})",
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "usable_cpus": usable_cpus(),
        "cache": _cache(),
        "packages": packages,
        "conflicts": _conflicts({str(each["name"]): each["version"] for each in packages}),
        "backends": available_backends(),
        "models": _models(),
        "default": _default(),
    }


def format_report(report: dict[str, Any]) -> str:
    """The report of `examine` as plain text."""
    lines = [
        f"uniecs {report['uniecs']}, Python {report['python']}",
        f"{report['platform']}, {report['cpus']} CPUs, {report['usable_cpus']} of them for this process",
        f"compiled graphs: {report['cache']}",
        "",
        "packages",
    ]
    for package in report["packages"]:
        extra = f"uniecs[{package['extra']}]" if package["extra"] else "uniecs"
        absent = f"not installed (pip install '{extra}')"
        lines.append(f"  {package['name']:18}{package['version'] or absent}")
    lines += [f"  CONFLICT: {conflict}" for conflict in report["conflicts"]]
    lines += ["", "backends", *(f"  {name:18}{state}" for name, state in report["backends"].items())]
    lines += ["", "packaged models"]
    lines += [f"  {model['name']:18}{model['state']}" for model in report["models"]] or ["  none"]
    default = report["default"]
    lines += ["", f'load("{default["model"]}") ' + ("works" if default["works"] else "does NOT work")]
    lines += [f"  {default['chosen'] or default['error']}", f"  why: {default['why']}"]
    return "\n".join(lines)


def _package(name: str, extra: str) -> dict[str, str | None]:
    return {"name": name, "version": version_of(name), "extra": extra}


def _conflicts(versions: Mapping[str, str | None]) -> list[str]:
    """Packages that overwrite each other."""
    cpu, gpu = versions["onnxruntime"], versions["onnxruntime-gpu"]
    if cpu is None or gpu is None:
        return []
    try:
        from uniecs.backends.onnxruntime import import_onnxruntime

        found = import_onnxruntime()
        what = f"finds {found.package_name} {found.__version__} with {', '.join(found.get_available_providers())}"
    except UniecsError as error:
        what = f"fails: {error}"
    return [
        f"onnxruntime {cpu} and onnxruntime-gpu {gpu} are both installed and share one folder, where the last one "
        f"installed overwrote the other; `import onnxruntime` {what}. Keep one: pip uninstall -y onnxruntime "
        "onnxruntime-gpu, then pip install onnxruntime-gpu (it also runs on CPUs) or onnxruntime"
    ]


def _cache() -> str:
    """Where compiled graphs are kept, and how many."""
    folder = cache_folder()
    if folder is None:
        return "not kept ($UNIECS_CACHE is empty or relative, or there is no home)"
    try:
        sizes = [path.stat().st_size for path in folder.glob("*.blob")]
    except OSError as error:
        return f"not kept: {error}"
    return f"{len(sizes)} in {folder} ({sum(sizes) / 1e6:.0f} MB)" + ("" if trusted(folder) else NOT_TRUSTED)


def _models() -> list[dict[str, str]]:
    """Each packaged bundle, and whether its checksums hold."""
    from uniecs.bundle import open_bundle, packaged_bundle, packaged_names

    models = []
    for name in packaged_names():
        try:
            bundle = open_bundle(packaged_bundle(name))
            variants = "".join(f", {each} variant" for each in bundle.manifest.get("variants", ()))
            state = f"{bundle.model_id}, checksums hold{variants}"
        except UniecsError as error:
            state = f"damaged: {error}"
        models.append({"name": name, "state": state})
    return models


def _default() -> dict[str, Any]:
    """What `load` with nothing but defaults gives, tried on one text."""
    from uniecs.encoder import load

    chosen, failure = None, None
    try:
        encoder = load(DEFAULT_MODEL)
        encoder.encode(texts=["red kurta"])
        chosen = f"{encoder.model_id} on {encoder.backend}, device {encoder.device}, {encoder.precision}"
    except UniecsError as error:
        failure = str(error)
    return {"model": DEFAULT_MODEL, "works": failure is None, "chosen": chosen, "error": failure, "why": WHY}
