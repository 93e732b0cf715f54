"""A stand-in for `tensorrt` and `tensorrt.plugin`: the decorators with the rules of their published source.

It knows what uniecs.kernels.tensorrt_plugin uses, and shows that the pieces fit; it is no TensorRT.
"""

from __future__ import annotations

import inspect
import sys
import typing
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

TENSORS = ("x", "yz", "u", "indicator", "parameters")


class TensorDesc:
    """A shape, also as expressions, and a dtype."""

    def __init__(self, shape: tuple[int, ...], shape_expr: tuple[Any, ...], dtype: str) -> None:
        self.shape, self.shape_expr, self.dtype = shape, shape_expr, dtype

    def like(self) -> TensorDesc:
        return TensorDesc(self.shape, self.shape_expr, self.dtype)


class Expression:
    """A dimension by name."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __mul__(self, other: Expression) -> Expression:
        return Expression(f"{self.text}*{other.text}")


class SymInt32:
    """An int or an expression."""

    def __init__(self, value: int | Expression) -> None:
        assert isinstance(value, (int, Expression))
        self.value = value.text if isinstance(value, Expression) else value


class SymIntExprs(list[SymInt32]):
    """A list of SymInt32."""

    @classmethod
    def from_tuple(cls, values: list[SymInt32]) -> SymIntExprs:
        assert all(isinstance(each, SymInt32) for each in values)
        return cls(values)


class KernelLaunchParams:
    """Grid and block; other attributes are refused."""

    __slots__ = ("block_x", "block_y", "block_z", "grid_x", "grid_y", "grid_z", "shared_mem")


class AutoTuneCombination:
    """Types that change together, separated by |."""

    def __init__(self, io_types: str, layouts: str) -> None:
        assert layouts == "LINEAR"
        columns = [each.strip().split("|") for each in io_types.split(",")]
        count = max(map(len, columns))
        assert all(len(each) in (1, count) for each in columns)
        self.types = [tuple(each[i % len(each)] for each in columns) for i in range(count)]


class Plugin:
    """What the three decorators were given for one plugin."""

    def __init__(self, describe: Callable[..., Any]) -> None:
        signature = inspect.signature(describe)
        names = [name for name, each in signature.parameters.items() if each.annotation is TensorDesc]
        self.attributes = [name for name in signature.parameters if name not in names]
        assert [*names, *self.attributes] == list(signature.parameters)
        assert all(signature.parameters[name].annotation in (int, float, str, bool, bytes) for name in self.attributes)
        assert signature.return_annotation is TensorDesc
        self.names, self.describe = names, describe
        self.autotune: Callable[..., Any] | None = None
        self.aot_impl: Callable[..., Any] | None = None

    def combinations(self) -> list[tuple[str, ...]]:
        """The type combinations of the inputs and the output."""
        assert self.autotune is not None
        assert list(inspect.signature(self.autotune).parameters) == [*self.names, "outputs"]
        return [types for each in self.autotune(*[None] * 5, (None,)) for types in each.types]

    def compile(self, batch: str, tokens: str, dim: int, u_width: int, dtype: str, column: int) -> tuple[Any, ...]:
        """What the ahead-of-time implementation returns, with the expressions as text."""
        assert self.aot_impl is not None
        signature = inspect.signature(self.aot_impl)
        assert list(signature.parameters) == [*self.names, *self.attributes, "outputs", "tactic"]
        expected = (bytes, bytes, KernelLaunchParams, SymIntExprs)
        assert typing.get_args(signature.return_annotation) == expected
        free = (Expression(batch), Expression(tokens))
        shapes = {"x": dim, "yz": 2 * dim, "u": u_width}
        descs = [TensorDesc((-1, -1, width), (*free, width), dtype) for width in shapes.values()]
        descs.append(TensorDesc((-1, 2), (free[0], 2), "FLOAT"))
        descs.append(TensorDesc((4, dim), (4, dim), "FLOAT"))
        output = self.describe(*descs, column)
        assert output.shape == descs[0].shape
        kernel, ptx, launch, extra = self.aot_impl(*descs, column, (output,), 0)
        assert isinstance(launch, KernelLaunchParams)
        assert isinstance(extra, SymIntExprs)
        where = {name: getattr(launch, name) for name in ("grid_x", "block_x")}
        return kernel, ptx, where, [each.value for each in extra]


def install(monkeypatch: Any) -> Any:
    """Put the stand-in in the place of tensorrt, and return it."""
    tensorrt, plugin = ModuleType("tensorrt"), ModuleType("tensorrt.plugin")
    defined: dict[str, Plugin] = {}

    def register(plugin_id: str) -> Callable[[Any], Any]:
        if plugin_id in defined:
            raise ValueError(f"already has a definition for {plugin_id}")
        return lambda describe: defined.setdefault(plugin_id, Plugin(describe)) and describe

    def setter(name: str) -> Callable[[str], Callable[[Any], Any]]:
        return lambda plugin_id: lambda function: setattr(defined[plugin_id], name, function)

    vars(tensorrt).update(plugin=plugin, float16="HALF", bfloat16="BF16", float32="FLOAT", __version__="stand-in")
    vars(plugin).update(
        register=register,
        autotune=setter("autotune"),
        aot_impl=setter("aot_impl"),
        defined=defined,
        cdiv=lambda expression, step: f"ceil({expression.text}/{step})",
        **{
            each.__name__: each for each in (TensorDesc, SymInt32, SymIntExprs, KernelLaunchParams, AutoTuneCombination)
        },
    )
    monkeypatch.setitem(sys.modules, "tensorrt", tensorrt)
    monkeypatch.setitem(sys.modules, "tensorrt.plugin", plugin)
    return SimpleNamespace(plugin=plugin)
