"""TensorRT engines on disk: the key that one is good for, its file, and how to tell a foreign one.

A file is `MAGIC`, the length of a JSON header (8 bytes, little endian), the header {"key": {...}, "sha256": ...},
and the serialised engine. Its name carries a digest of the key, so that engines for several GPUs may share a folder.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from uniecs.backends.compiled_cache import cache_folder
from uniecs.bundle import Bundle
from uniecs.durable import sync
from uniecs.errors import BackendError, EngineMismatchError

FOLDER = "tensorrt"
MAGIC = b"uniecs engine 1\n"
LENGTH_BYTES = 8
MAX_HEADER_BYTES = 1_000_000
_REMEDY = "run `uniecs build BUNDLE` on this machine"
RECIPE = 1
"""Counts the ways graphs have been derived and engines built: raised when export/half.py or the builder changes."""


@dataclass(frozen=True)
class Machine:
    """What an engine is tied to besides the model; versions as text."""

    gpu: str
    compute_capability: str
    driver: str
    tensorrt: str


@dataclass(frozen=True)
class Profile:
    """The sizes that engines are built for, by the manifest's names of the axes: (least, best, most), ends included."""

    batch: tuple[int, int, int]
    text_length: tuple[int, int, int]
    image_length: tuple[int, int, int]

    @classmethod
    def of(cls, bundle: Bundle) -> Self:
        """Batches to 32, best at 8; texts to `max_tokens`, best at 16; all image tokens, or one zero token."""
        longest = bundle.preprocessing.max_tokens
        image_tokens = int(bundle.manifest["graphs"]["image_encoder"]["outputs"]["image_tokens"]["shape"][1])
        return cls((1, 8, 32), (1, min(16, longest), longest), (1, image_tokens, image_tokens))

    def shapes(self, port: dict[str, Any]) -> tuple[tuple[int, ...], ...]:
        """The least, best and greatest shape of a port of the manifest."""
        return tuple(shape_at(port, {name: sizes[i] for name, sizes in asdict(self).items()}) for i in range(3))


def shape_at(port: dict[str, Any], axes: dict[str, int]) -> tuple[int, ...]:
    """The shape of a port of the manifest with its named axes at these sizes."""
    return tuple(axes[size] if isinstance(size, str) else int(size) for size in port["shape"])


@dataclass(frozen=True)
class EngineKey:
    """An engine serves exactly this; `model_id` stands for the bundle's checksums."""

    model_id: str
    graph: str
    machine: Machine
    profile: Profile
    precision: str = "fp16"
    recipe: int = RECIPE

    def flat(self) -> dict[str, Any]:
        """JSON types, one level deep."""
        fields = json.loads(json.dumps(asdict(self)))
        return {**fields.pop("machine"), **fields.pop("profile"), **fields}

    def path(self, cache: Path) -> Path:
        """Where the engine lies in the folder `cache`."""
        canonical = json.dumps(self.flat(), sort_keys=True, separators=(",", ":"))
        digest = hashlib.sha256(canonical.encode()).hexdigest()[:16]
        return cache / FOLDER / self.model_id / f"{self.graph}-{digest}.engine"


def default_cache() -> Path:
    """The folder of `cache_folder`; engines lie in its folder `FOLDER`. Raises `BackendError` if it names none."""
    folder = cache_folder()
    if folder is None:
        raise BackendError("there is no cache folder for engines: set UNIECS_CACHE to an absolute path")
    return folder


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a reader, or a crash, finds all of it or nothing; raises `OSError`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")  # process ids repeat among containers
    try:
        temporary.write_bytes(data)
        sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def store_engine(cache: Path, key: EngineKey, engine: bytes) -> Path:
    """Write the engine of `key` into `cache`; raises `OSError`."""
    header = json.dumps({"key": key.flat(), "sha256": hashlib.sha256(engine).hexdigest()}).encode()
    path = key.path(cache)
    write_atomically(path, MAGIC + len(header).to_bytes(LENGTH_BYTES, "little") + header + engine)
    return path


def load_engine(cache: Path, key: EngineKey) -> bytes:
    """The serialised engine of `key`.

    Raises `EngineMismatchError` if its file is damaged or holds another engine, or if `cache` has engines of this
    model and graph for other keys only, telling what differs; `BackendError` if there is none, or it cannot be read.
    """
    path = key.path(cache)
    try:
        if path.is_file():
            return _checked(path, key)
        others = [differences(key.flat(), found) for found in _keys_beside(path, key.graph)]
    except OSError as error:
        raise BackendError(f"{path} cannot be read: {error}") from error
    if others:
        _, nearest = min((len(each), each) for each in others)
        raise EngineMismatchError(
            f"no engine of {key.graph} in {path.parent} is for this machine; the nearest differs in "
            f"{'; '.join(nearest)}: {_REMEDY}"
        )
    raise BackendError(f"no TensorRT engine of {key.graph} of {key.model_id} in {cache}: {_REMEDY}")


def _checked(path: Path, key: EngineKey) -> bytes:
    header, engine = _split(path, path.read_bytes())
    if differing := differences(key.flat(), header["key"]):
        raise EngineMismatchError(f"{path} holds another engine; it differs in {'; '.join(differing)}: {_REMEDY}")
    if hashlib.sha256(engine).hexdigest() != header["sha256"]:
        raise EngineMismatchError(f"{path} is damaged, its checksum differs: {_REMEDY}")
    return engine


def _split(path: Path, data: bytes) -> tuple[dict[str, Any], bytes]:
    """The header and what follows it; `data` may end early behind the header."""
    start = len(MAGIC) + LENGTH_BYTES
    length = int.from_bytes(data[len(MAGIC) : start], "little")
    try:
        if not data.startswith(MAGIC) or length > min(len(data) - start, MAX_HEADER_BYTES):
            raise ValueError("it does not begin like one")
        header = json.loads(data[start : start + length])
        if not isinstance(header["key"], dict) or not isinstance(header["sha256"], str):
            raise ValueError("its header lacks key or sha256")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise EngineMismatchError(f"{path} is no engine of uniecs ({error}): {_REMEDY}") from error
    return header, data[start + length :]


def _keys_beside(path: Path, graph: str) -> Iterator[dict[str, Any]]:
    """The keys of the engines of the same graph in the same folder."""
    for other in sorted(path.parent.glob(f"{graph}-*.engine")):
        with other.open("rb") as file:
            data = file.read(len(MAGIC) + LENGTH_BYTES + MAX_HEADER_BYTES)
        try:
            yield _split(other, data)[0]["key"]
        except EngineMismatchError:
            continue  # a foreign file: the message tells of the engines there are


def differences(wanted: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Every part in which two keys differ, as "driver: 580.1, here 590.2"."""
    names = sorted(wanted.keys() | found.keys())
    return [
        f"{name}: {found.get(name)}, here {wanted.get(name)}" for name in names if found.get(name) != wanted.get(name)
    ]
