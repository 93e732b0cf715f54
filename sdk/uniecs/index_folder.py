"""What an index is made with: its configuration, and where its encoder came from (docs/index-format.md)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from uniecs.config import StrictConfig
from uniecs.errors import ConfigError

View: TypeAlias = Literal["multimodal", "image", "text"]
# The modalities that a view embeds: (text, image).
VIEW_INPUTS = {"multimodal": (True, True), "image": (False, True), "text": (True, False)}
Storage: TypeAlias = Literal["float32", "float16", "int8"]


@dataclass(frozen=True)
class IndexConfig(StrictConfig):
    """What an index is created with: its views, HNSW's M and ef_construction, and how the graph keeps vectors."""

    views: tuple[View, ...] = ("multimodal",)
    M: int = 16
    ef_construction: int = 200
    storage: Storage = "float32"

    def __post_init__(self) -> None:
        if not self.views or len(set(self.views)) < len(self.views):
            raise ConfigError(
                f"views is {self.views!r}; expected one or more of 'multimodal', 'image', 'text', each once"
            )
        if not 2 <= self.M <= 512:
            raise ConfigError(f"M is {self.M}; expected 2 to 512")
        if not self.M <= self.ef_construction <= 10_000:
            raise ConfigError(f"ef_construction is {self.ef_construction}; expected {self.M} (M) to 10000")


@dataclass(frozen=True)
class BundleReference(StrictConfig):
    """Where the encoder came from: the name of a packaged bundle, or the path of a bundle folder."""

    name: str | None = None
    path: str | None = None

    def __post_init__(self) -> None:
        if (self.name is None) == (self.path is None):
            raise ConfigError("bundle needs exactly one of name and path")

    @classmethod
    def of(cls, path: Path) -> BundleReference:
        """The reference to the bundle folder `path`."""
        from uniecs.bundle import packaged_bundle, packaged_names

        if path.name in packaged_names() and path.resolve() == packaged_bundle(path.name).resolve():
            return cls(name=path.name)
        return cls(path=str(path.absolute()))
