"""The recipe of a bundle's int8 variant: where int8 arithmetic goes, and over which ranges (docs/bundle-format.md).

The weights stay those of the bundle: an engine quantises them as it loads a graph.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from uniecs.bundle import GRAPHS, Bundle
from uniecs.errors import BackendError, BundleError

VARIANT = "int8"
FILE = "int8.json"
FORMAT = "uniecs-int8"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class QuantizedInput:
    """A tensor (..., K) and the matrix products that read it in int8.

    `matmuls` are the names of MatMul nodes with constant weights (K, N). Channel k of the tensor is multiplied by
    `scale[k]`, row k of the weights divided by it; the scaled tensor takes 256 levels from `low` to `high`.
    """

    matmuls: tuple[str, ...]
    low: float
    high: float
    scale: tuple[float, ...]


@dataclass(frozen=True)
class Int8Recipe:
    """The quantised inputs of each graph that runs in int8; the others stay in a floating-point type."""

    model_id: str
    graphs: Mapping[str, tuple[QuantizedInput, ...]]

    def to_json(self) -> str:
        """The text of `int8.json`, one quantised input a line."""
        graphs = []
        for graph, inputs in self.graphs.items():
            rows = ",\n".join("  " + json.dumps(asdict(each), allow_nan=False) for each in inputs)
            graphs.append(f" {json.dumps(graph)}: [\n{rows}\n ]")
        head = json.dumps({"format": FORMAT, "format_version": FORMAT_VERSION, "model_id": self.model_id})
        return head[:-1] + ', "graphs": {\n' + ",\n".join(graphs) + "\n}}\n"


def parse_recipe(text: str | bytes) -> Int8Recipe:
    """The recipe of a text as `Int8Recipe.to_json` gives it; raises `BundleError` saying what is wrong with it."""
    try:
        read = json.loads(text)
        if read["format"] != FORMAT or read["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format {read['format']!r} {read['format_version']!r}, not {FORMAT} {FORMAT_VERSION}")
        if unknown := set(read["graphs"]) - set(GRAPHS):
            raise ValueError(f"unknown graphs {sorted(unknown)}")
        graphs = {graph: tuple(_quantized_input(each) for each in rows) for graph, rows in read["graphs"].items()}
        return Int8Recipe(str(read["model_id"]), graphs)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise BundleError(f"{FILE} is not an int8 recipe: {type(error).__name__}: {error}") from error


def _quantized_input(read: Mapping[str, Any]) -> QuantizedInput:
    low, high = _numbers([read["low"], read["high"]])
    scale = _numbers(read["scale"])
    names = tuple(map(str, read["matmuls"]))
    if not (names and low < high and low <= 0 <= high and min(scale) > 0):
        raise ValueError(f"bad range or scale for {names}")
    return QuantizedInput(names, low, high, scale)


def _numbers(values: Sequence[Any]) -> tuple[float, ...]:
    numbers = tuple(map(float, values))
    if not all(map(math.isfinite, numbers)):
        raise ValueError("a number is not finite")
    return numbers


def read_recipe(bundle: Bundle) -> Int8Recipe:
    """The recipe of the bundle's int8 variant.

    Raises `BackendError` if the bundle has none, `BundleError` if it cannot be read or is of another model.
    """
    text = bundle.variant(VARIANT)
    if text is None:
        raise BackendError(
            f"bundle {bundle.model_id} has no int8 variant: make a bundle that has one with `uniecs quantize`, "
            "or use precision 'bf16' or 'fp32'"
        )
    recipe = parse_recipe(text)
    check_model(recipe, bundle)
    return recipe


def check_model(recipe: Int8Recipe, bundle: Bundle) -> None:
    """Raise `BundleError` if the recipe was calibrated on another model: its ranges would be wrong."""
    if recipe.model_id != bundle.model_id:
        raise BundleError(f"the int8 recipe is of model {recipe.model_id}, the bundle is {bundle.model_id}")
