"""The house: packages, floors, the public surface, and what may not be in the tree."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

import uniecs
from uniecs import errors

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
FOLDERS = {name: ROOT / folder for name, folder in PYPROJECT["tool"]["setuptools"]["package-dir"].items()}

# Room and floor of every module of sdk/uniecs; the other folders are one room each.
# evaluation stands below serve and train, because both use it and it needs neither.
ROOMS = {"contract": 0, "kernels": 1, "evaluation": 1, "serve": 2, "trainer": 2, "export": 3, "command": 4}
MODULES = {
    "uniecs": "serve",
    "uniecs.errors": "contract",
    "uniecs.config": "contract",
    "uniecs.durable": "contract",
    "uniecs.preprocess": "contract",
    "uniecs.catalog": "contract",
    "uniecs.filters": "contract",
    "uniecs.pacing": "contract",
    "uniecs.progress": "contract",
    "uniecs.bundle": "contract",
    "uniecs._core": "contract",  # compiled, from sdk/cpp
    "uniecs.int8_recipe": "contract",
    "uniecs.backends": "serve",
    "uniecs.encoder": "serve",
    "uniecs.index": "serve",
    "uniecs.local_index": "serve",
    "uniecs.filter_sets": "serve",
    "uniecs.engine": "serve",
    "uniecs.engine_input": "serve",
    "uniecs.query_cache": "serve",
    "uniecs.index_folder": "serve",
    "uniecs.milvus_connection": "serve",
    "uniecs.milvus_filters": "serve",
    "uniecs.milvus_index": "serve",
    "uniecs.copying": "serve",
    "uniecs.bulk_embed": "serve",
    "uniecs.vector_shards": "serve",
    "uniecs.index_migration": "serve",
    "uniecs.database": "serve",
    "uniecs.store": "serve",
    "uniecs.store_change": "serve",
    "uniecs.store_check": "serve",
    "uniecs.store_format": "serve",
    "uniecs.writer_lock": "serve",
    "uniecs.evaluation": "evaluation",
    "uniecs.benchmark_sets": "evaluation",
    "uniecs.cli": "command",
    "uniecs.bench": "command",
    "uniecs.cli_bench": "command",
    "uniecs.cli_io": "command",
    "uniecs.cli_models": "command",
    "uniecs.cli_search": "command",
    "uniecs.demo": "command",
    "uniecs.doctor": "command",
    "uniecs.contact_sheet": "command",
    "uniecs.drawing": "command",
    "uniecs.drawn_catalog": "command",
    "uniecs.drawn_footwear": "command",
    "uniecs.drawn_garments": "command",
    "uniecs.drawn_goods": "command",
}
COMPILED = (".cpp", ".hpp", ".h", ".cu", ".cuh")
HEAVY = (
    "torch",
    "transformers",
    "openvino",
    "onnxruntime",
    "hnswlib",
    "PIL",
    "tokenizers",
    "pandas",
    "pyarrow",
    "pymilvus",
    "ray",
)
PUBLIC = [
    "AddReport",
    "BackendError",
    "BundleError",
    "CatalogError",
    "CheckpointError",
    "ConfigError",
    "EncodeResult",
    "Encoder",
    "EngineMismatchError",
    "FilterError",
    "Hit",
    "ImageError",
    "IndexFileError",
    "InputError",
    "MissingExtraError",
    "ModelMismatchError",
    "ParityError",
    "Product",
    "Query",
    "Rejected",
    "SearchEngine",
    "TextError",
    "TrainingError",
    "UniecsError",
    "__version__",
    "load",
]


def python_files() -> dict[str, Path]:
    """Module name -> file, over the packages' folders in the tree."""
    found = {}
    for package, folder in FOLDERS.items():
        for path in folder.rglob("*.py"):
            parts = [package, *path.relative_to(folder).with_suffix("").parts]
            found[".".join(part for part in parts if part != "__init__")] = path
    return found


FILES = python_files()


def room(module: str) -> str:
    """The room of a module, by its own name or that of the nearest listed package above it."""
    top = module.split(".")[1] if "." in module else ""
    if top in ROOMS:
        return top
    while module not in MODULES:
        module, _, _ = module.rpartition(".")
        if module in ("", "uniecs"):
            return ""
    return MODULES[module]


def imports(source: str) -> Iterator[str]:
    """Every module that a source imports, at any depth; `from a import b` is a.b where that is a module of ours."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            for each in node.names:
                inner = f"{base}.{each.name}"
                yield inner if inner in FILES else "." * node.level + base


def breaches(module: str, source: str) -> list[str]:
    """What a module imports against the rules of the floors."""
    found = []
    home = room(module)
    for target in imports(source):
        top = target.split(".")[0]
        if target.startswith("."):
            found.append(f"{module}: relative import {target}")
        elif top in ("sdk", "trainer", "export", "kernels", "benchmarks", "tests"):
            found.append(f"{module}: {target} is a folder, not an import name")
        elif top in ("torch", "transformers") and home not in ("trainer", "export"):
            found.append(f"{module}: {target} outside the trainer and the exporter")
        elif top == "uniecs" and room(target) != home and ROOMS.get(room(target), 5) >= ROOMS.get(home, -1):
            found.append(f"{module} ({home}) -> {target} ({room(target)})")
        elif target == "uniecs.cli" or (target == "uniecs.demo" and module != "uniecs.cli_search"):
            found.append(f"{module}: {target} is imported by nobody")
    return found


def tracked() -> list[Path]:
    """Files under version control, and those about to be."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git work tree")
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, capture_output=True, check=True).stdout.decode()
    return [ROOT / name for name in listing.split("\0") if name]


def test_listed_packages_are_the_folders_with_python_files() -> None:
    folders = {module if path.stem == "__init__" else module.rpartition(".")[0] for module, path in FILES.items()}
    assert folders == set(PYPROJECT["tool"]["setuptools"]["packages"])
    assert all((folder / "__init__.py").is_file() for folder in FOLDERS.values())


def test_every_module_has_a_room() -> None:
    assert [module for module in FILES if room(module) not in ROOMS] == []


def test_imports_go_downward() -> None:
    assert [each for module, path in FILES.items() for each in breaches(module, path.read_text("utf-8"))] == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("uniecs.bundle", "from uniecs.backends.base import create_backend"),
        ("uniecs.bundle", "import uniecs"),
        ("uniecs.engine", "from uniecs.trainer import losses"),
        ("uniecs.engine", "def late():\n    from uniecs.trainer.model import UniECS"),
        ("uniecs.encoder", "from uniecs import cli"),
        ("uniecs.encoder", "def late():\n    import torch.nn"),
        ("uniecs.cli", "import transformers"),
        ("uniecs.trainer.loop", "from uniecs.engine import SearchEngine"),
        ("uniecs.trainer.loop", "from uniecs.export.verify import verify_bundle"),
        ("uniecs.trainer.loop", "from trainer.model import UniECS"),
        ("uniecs.trainer.loop", "from .model import UniECS"),
        ("uniecs.demo", "from uniecs.cli import main"),
        ("uniecs.export.graphs", "import tests.test_house"),
    ],
)
def test_the_floor_check_can_fail(module: str, source: str) -> None:
    assert len(breaches(module, source)) == 1


def test_the_folders_are_no_import_names() -> None:
    """From the repository root `import trainer` would be a second, different module."""
    for name in ("sdk", "trainer", "export", "kernels"):
        spec = importlib.util.find_spec(name)
        assert spec is None or not any(
            Path(each).is_relative_to(ROOT) for each in spec.submodule_search_locations or []
        )


def test_the_installed_package_is_this_tree() -> None:
    """A stale install, or one that lacks a data file, would make every other test a lie."""
    home = Path(uniecs.__file__).parent
    shipped = {home / "py.typed": FOLDERS["uniecs"] / "py.typed"}
    for package, folder in FOLDERS.items():
        inside = home.joinpath(*package.split(".")[1:])
        patterns = ["*.py", *PYPROJECT["tool"]["setuptools"]["package-data"].get(package, [])]
        files = [path for pattern in patterns for path in folder.glob(pattern) if path.is_file()]
        shipped |= {inside / path.relative_to(folder): path for path in files}
        assert {each.name for each in inside.glob("*.py")} == {each.name for each in folder.glob("*.py")}
    assert [str(path) for copy, path in shipped.items() if copy.read_bytes() != path.read_bytes()] == []


def test_no_vague_module_names() -> None:
    vague = {"utils", "util", "common", "helpers", "helper", "misc"}
    assert [module for module in FILES if module.rpartition(".")[2] in vague] == []


def test_public_surface_is_exactly_this() -> None:
    assert uniecs.__all__ == PUBLIC
    assert {name for name in dir(errors) if name.endswith("Error")} <= set(PUBLIC)
    public = {name for name, each in vars(uniecs).items() if name[0] != "_" and not inspect.ismodule(each)}
    assert public - {"annotations"} == set(PUBLIC) - {"__version__"}


def test_public_surface_is_documented() -> None:
    for name in PUBLIC:
        each = getattr(uniecs, name)
        # A dataclass without a docstring gets its signature for one.
        assert each.__doc__, name
        assert not each.__doc__.startswith(f"{name}("), name
        members = inspect.getmembers_static(each) if inspect.isclass(each) and not issubclass(each, Exception) else []
        for member, value in members:
            if member[0] != "_" and isinstance(value, (property, classmethod, staticmethod, type(tracked))):
                assert value.__doc__, f"{name}.{member}"


def test_every_error_is_a_uniecs_error() -> None:
    assert all(issubclass(getattr(uniecs, name), uniecs.UniecsError) for name in PUBLIC if name.endswith("Error"))


def test_import_loads_nothing_heavy(tmp_path: Path) -> None:
    program = f"import sys, uniecs; print(*sorted(set({HEAVY!r}) & set(sys.modules)))"
    command = [sys.executable, "-I", "-c", program]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout.split() == []
    control = [sys.executable, "-I", "-c", program.replace("uniecs;", "uniecs, PIL;")]
    assert subprocess.run(control, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.split() == ["PIL"]


def test_version_is_told_once() -> None:
    assert uniecs.__version__ == PYPROJECT["project"]["version"] == metadata.version("uniecs")


def test_the_runtime_needs_no_torch() -> None:
    names = {re.split(r"[^A-Za-z0-9_-]", each)[0].lower() for each in PYPROJECT["project"]["dependencies"]}
    assert "numpy" in names
    assert not names & {"torch", "torchvision", "transformers", "sentence-transformers", "onnx"}


def test_packages_have_no_assert_and_no_bare_except() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in FILES.values()
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Assert) or (isinstance(node, ast.ExceptHandler) and node.type is None)
    ]
    assert found == []


def test_files_are_short() -> None:
    suffixes = (".py", *COMPILED)
    sources = [path for path in tracked() if path.suffix in suffixes and path.is_file()]
    assert len(sources) > 10
    assert [str(path) for path in sources if len(path.read_text("utf-8").splitlines()) >= 600] == []


def test_progress_bars_are_made_in_one_place() -> None:
    """Made otherwise they fail in a process without a stderr."""
    assert [module for module, path in FILES.items() if "tqdm(" in path.read_text("utf-8")] == ["uniecs.progress"]


def test_types_are_right() -> None:
    """Here and not before all tests, because it keeps one CPU busy for a minute."""
    mypy = [sys.executable, "-m", "mypy", "--strict"]
    control = subprocess.run([*mypy, "-c", "x: int = ''"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "Incompatible types" in control.stdout
    result = subprocess.run([*mypy, "-p", "uniecs"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_compiled_sources_are_formatted() -> None:
    clang_format = shutil.which(
        "clang-format", path=os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    )
    if clang_format is None:
        pytest.skip("clang-format is not installed")
    sources = [str(path) for path in tracked() if path.suffix in COMPILED and path.is_file()]
    check = [clang_format, "--dry-run", "--Werror", f"--style=file:{ROOT / '.clang-format'}"]
    result = subprocess.run([*check, *sources], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    control = subprocess.run(
        [*check, "--assume-filename=a.cpp"], input="int  a ;", capture_output=True, text=True, check=False
    )
    assert control.returncode != 0


def test_no_data_or_photos_under_version_control() -> None:
    assert [str(path) for path in tracked() if path.suffix.lower() in (".parquet", ".jpg", ".jpeg", ".npz")] == []
