"""A model bundle: graphs, tokenizer, preprocessing, golden tensors in one folder (docs/bundle-format.md).

`open_bundle` trusts nothing: the manifest's shape, every checksum, every name. Nothing is ever unpickled or
unpacked.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from uniecs.config import PLAIN_NAME, ModelConfig, Preprocessing
from uniecs.errors import BundleError, ConfigError

FORMAT = "uniecs-bundle"
FORMAT_VERSION = 1
GRAPHS = ("image_encoder", "text_encoder", "fusion")
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
GOLDEN = "golden.safetensors"
GOLDEN_TENSORS = (
    "images",
    "pixel_values",
    "input_ids",
    "attention_mask",
    "image_tokens",
    "text_tokens",
    "modality_indicator",
    "embedding",
)
MAX_MANIFEST_BYTES = 16_000_000
# A TensorProto that keeps its data in another file says so under this key (protobuf field 1, 8 bytes; then
# field 2).
EXTERNAL_DATA = b"\x0a\x08location\x12"


@dataclass(frozen=True)
class Bundle:
    """A verified bundle; made by `open_bundle`."""

    path: Path
    manifest: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The model's name, such as "mini"."""
        return str(self.manifest["name"])

    @property
    def model_id(self) -> str:
        """Identifies graphs, tokenizer and preprocessing: vectors of one model_id are comparable."""
        return str(self.manifest["model_id"])

    @property
    def embed_dim(self) -> int:
        """D, the length of an embedding."""
        return int(self.manifest["embed_dim"])

    @property
    def preprocessing(self) -> Preprocessing:
        """What turns photos and titles into the graphs' inputs."""
        return Preprocessing.from_dict(self.manifest["preprocessing"])

    def graph_path(self, graph: str) -> Path:
        """Path of the ONNX file of one of `GRAPHS`; raises `BundleError` for another name."""
        if graph not in GRAPHS:
            raise BundleError(f"no graph {graph!r}; a bundle has {', '.join(GRAPHS)}")
        return self.path / str(self.manifest["graphs"][graph]["file"])

    def graph_bytes(self, graph: str) -> bytes:
        """The ONNX file of one of `GRAPHS`; raises `BundleError` for another name, and if the file has changed."""
        return self._file(self.graph_path(graph).name)

    def _file(self, name: str) -> bytes:
        """The bytes that were verified, or `BundleError`: the folder may have been replaced since."""
        data = _read(self.path / name)
        if hashlib.sha256(data).hexdigest() != self.manifest["files"][name]["sha256"]:
            raise BundleError(f"{self.path / name} has changed since the bundle was loaded: load it again")
        return data

    def variant(self, name: str) -> bytes | None:
        """The bytes of the file that makes a variant, such as "int8", of the bundle; None if there is none."""
        entry = self.manifest.get("variants", {}).get(name)
        return None if entry is None else self._file(str(entry["file"]))

    def tokenizer_json(self) -> bytes:
        """The bytes of the Hugging Face tokenizer file."""
        return self._file(TOKENIZER)

    def golden(self) -> dict[str, npt.NDArray[Any]]:
        """The golden tensors by name (`GOLDEN_TENSORS`), G rows each; raises `BundleError`."""
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            tensors: dict[str, npt.NDArray[Any]] = load(self._file(GOLDEN))
        except SafetensorError as error:
            raise BundleError(f"{self.path / GOLDEN} cannot be read: {error}") from error
        missing = [name for name in GOLDEN_TENSORS if name not in tensors]
        if missing:
            raise BundleError(f"{self.path / GOLDEN} lacks the tensor {missing[0]!r}")
        rows = len(tensors["embedding"])
        if tensors["embedding"].shape != (rows, self.embed_dim) or any(len(each) != rows for each in tensors.values()):
            raise BundleError(f"{self.path / GOLDEN} has tensors of different lengths or another embed_dim")
        return tensors


def packaged_names() -> list[str]:
    """Names of the bundles that the package carries."""
    return sorted(each.parent.name for each in _packaged_root().glob(f"*/{MANIFEST}"))


def packaged_bundle(name: str) -> Path:
    """Folder of the packaged bundle `name`; raises `BundleError` listing the names there are."""
    if name not in packaged_names():
        raise BundleError(f"no packaged bundle {name!r}; packaged: {', '.join(packaged_names()) or 'none'}")
    return _packaged_root() / name


def locate_bundle(name_or_path: str | os.PathLike[str]) -> Path:
    """Folder of a packaged bundle given its name, or of any bundle given its path; raises `BundleError`."""
    if isinstance(name_or_path, str) and name_or_path in packaged_names():
        return packaged_bundle(name_or_path)
    try:
        path = Path(name_or_path)
        found = path.is_dir()
    except (TypeError, ValueError, OSError) as error:
        raise BundleError(f"{name_or_path!r} is not a bundle's name or path: {error}") from error
    if not found:
        names = ", ".join(packaged_names()) or "none"
        raise BundleError(f"no bundle {str(name_or_path)!r}: not a folder, and not a packaged name ({names})")
    return path


def open_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Read and verify a bundle folder: manifest, version, names, sizes, sha256 of every file, model_id.

    Raises `BundleError` for a bundle that is missing, cut off, altered, of a newer format, or that names
    anything but plain files inside its folder.
    """
    folder = Path(path)
    manifest = _read_manifest(folder)
    try:
        _check_manifest(manifest)
        for name, recorded in manifest["files"].items():
            _check_file(folder, name, recorded)
        for graph in GRAPHS:
            _check_graph(folder / manifest["graphs"][graph]["file"])
        expected = _model_id(manifest)
        if manifest["model_id"] != expected:
            raise BundleError(f"model_id is {manifest['model_id']!r} but its parts give {expected!r}: it was altered")
    except (BundleError, ConfigError) as error:
        raise BundleError(f"bundle {folder}: {error}") from error
    return Bundle(path=folder, manifest=manifest)


def write_manifest(folder: str | os.PathLike[str], manifest: Mapping[str, Any]) -> Bundle:
    """Complete `manifest` with format, version, files and model_id, write it atomically, open the bundle.

    `files` records every file in `folder` but the manifest. Raises `BundleError` if the bundle is not whole.
    """
    target = Path(folder) / MANIFEST
    names = sorted(each.name for each in Path(folder).iterdir() if each.name != MANIFEST)
    files = {name: {"sha256": _sha256(target.parent / name), "bytes": _size(target.parent / name)} for name in names}
    complete = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        **manifest,
        "files": files,
        "model_id": "",
    }
    try:
        _check_manifest(complete)
    except (BundleError, ConfigError) as error:
        raise BundleError(f"bundle {folder}: {error}") from error
    complete["model_id"] = _model_id(complete)
    temporary = target.with_name(f".{MANIFEST}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(complete, file, indent=1, ensure_ascii=False, allow_nan=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(target)
    return open_bundle(folder)


def _packaged_root() -> Path:
    # Resolved: a strict editable install links modules into a tree that has no data folders.
    return Path(__file__).resolve().parent / "bundles"


def _size(path: Path) -> int:
    """Bytes of a regular file; raises `BundleError` for anything else, a symbolic link included."""
    try:
        status = path.lstat()
    except (OSError, ValueError) as error:
        raise BundleError(f"{path.name} is missing: {error}") from error
    if not stat.S_ISREG(status.st_mode):
        raise BundleError(f"{path.name} is a link or no regular file; a bundle holds plain files only")
    return status.st_size


def _read(path: Path) -> bytes:
    _size(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error}") from error


def _sha256(path: Path) -> str:
    _size(path)
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error}") from error


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        size = _size(path)
    except BundleError as error:
        raise BundleError(f"{folder} is no bundle: {error}") from error
    if size > MAX_MANIFEST_BYTES:
        raise BundleError(f"{path} has {size} bytes; at most {MAX_MANIFEST_BYTES} are expected")
    try:
        manifest = json.loads(_read(path).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is not JSON: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise BundleError(f'{path} is not a bundle\'s manifest: "format" must be {FORMAT!r}')
    version = manifest.get("format_version")
    if type(version) is not int or version < 1:
        raise BundleError(f"{path}: format_version is {version!r}; expected {FORMAT_VERSION}")
    if version > FORMAT_VERSION:
        raise BundleError(f"{path}: format_version {version} is newer than {FORMAT_VERSION}: upgrade uniecs")
    return manifest


def _require(manifest: Mapping[str, Any], key: str, kind: type) -> Any:
    value = manifest.get(key)
    if type(value) is not kind:
        raise BundleError(f"{key!r} of the manifest is {str(value)[:80]!r}; expected a JSON {kind.__name__}")
    return value


def _plain(name: object) -> str:
    if not isinstance(name, str) or not PLAIN_NAME.fullmatch(name):
        raise BundleError(f"the manifest names {str(name)[:200]!r}; expected a plain file name inside the folder")
    return name


def _check_manifest(manifest: Mapping[str, Any]) -> None:
    """Check the keys a reader relies on; raises `BundleError` or `ConfigError`."""
    files = _require(manifest, "files", dict)
    for name in files:
        if _plain(name) == MANIFEST:
            raise BundleError(f"the manifest lists itself ({MANIFEST})")
    _require(manifest, "model_id", str)
    _plain(_require(manifest, "name", str))
    graphs = _require(manifest, "graphs", dict)
    needed = [_plain(_require(_require(graphs, graph, dict), "file", str)) for graph in GRAPHS]
    for name in (*needed, TOKENIZER, GOLDEN):
        if name not in files:
            raise BundleError(f"{name} is not among the manifest's files")
    model = ModelConfig.from_dict(manifest.get("model"))
    if Preprocessing.from_dict(manifest.get("preprocessing")) != model.preprocessing:
        raise BundleError("the manifest's preprocessing differs from its model's")
    if _require(manifest, "embed_dim", int) != model.embed_dim:
        raise BundleError(f"embed_dim is {manifest['embed_dim']}, but the model's is {model.embed_dim}")
    texts = _require(_require(manifest, "golden", dict), "texts", list)
    if not all(text is None or type(text) is str for text in texts):
        raise BundleError("the manifest's golden texts are not all strings or null")
    variants = _require({"variants": {}, **manifest}, "variants", dict)
    for name in variants:
        file = _plain(_require(_require(variants, name, dict), "file", str))
        if file not in files:
            raise BundleError(f"{file} of the variant {name!r} is not among the manifest's files")


def _check_file(folder: Path, name: str, recorded: object) -> None:
    size = _size(folder / name)
    if not isinstance(recorded, dict) or size != recorded.get("bytes"):
        raise BundleError(f"{name} has {size} bytes, recorded is {recorded!r}: it is cut off or altered")
    digest = _sha256(folder / name)
    if digest != recorded.get("sha256"):
        raise BundleError(f"{name} is damaged: its sha256 is {digest}, recorded is {recorded.get('sha256')!r}")


def _check_graph(path: Path) -> None:
    """Refuse weights in another file: the file that an ONNX graph names could be any on the machine."""
    if _size(path) == 0:
        raise BundleError(f"{path.name} is empty; expected an ONNX graph")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data.find(EXTERNAL_DATA) >= 0:
            raise BundleError(f"{path.name} keeps weights in another file; export it with the weights inside")


def _model_id(manifest: Mapping[str, Any]) -> str:
    names = {manifest["graphs"][graph]["file"] for graph in GRAPHS} | {TOKENIZER}
    identity = {
        "files": {name: manifest["files"][name]["sha256"] for name in names},
        "preprocessing": Preprocessing.from_dict(manifest["preprocessing"]).to_dict(),
    }
    canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return f"{manifest['name']}-{hashlib.sha256(canonical.encode()).hexdigest()[:16]}"
