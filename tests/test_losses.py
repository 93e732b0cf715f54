"""The losses and the weight update, in value and gradient, against a literal float64 transcription."""

from __future__ import annotations

import inspect
import runpy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from uniecs.trainer import losses

reference = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("loss_reference.py"))))

TOLERANCE = 1e-9
SIZES = [(2, 3), (5, 4), (17, 6)]  # (N, D)
# name: (number of embedding inputs, the parameters the paper states, parameters to try beside them)
LOSSES: dict[str, tuple[int, dict[str, Any], list[dict[str, Any]]]] = {
    "v2t": (2, {"tau": 0.07}, [{"tau": 0.5}]),
    "pml": (4, {"tau": 0.07}, [{"tau": 0.5}]),
    "pdc": (3, {"alpha_2": 0.1}, [{"alpha_2": 0.4}]),
    "plc": (3, {"alpha_3": 0.05, "k": 10}, [{"k": 1}, {"k": 3}, {"alpha_3": 0.2, "k": 100}]),
    "v2v": (
        2,
        {"tau_v": 0.07, "alpha_4": 0.2, "k": 10},
        [{"k": 1}, {"k": 3}, {"tau_v": 0.5, "alpha_4": 0.5, "k": 100}],
    ),
    "t2t": (2, {"tau_t": 0.03}, [{"tau_t": 0.5}]),
}
HINGED = ("pdc", "plc", "v2v")
CASES = [(name, size, kwargs) for name, (_, _, more) in LOSSES.items() for size in SIZES for kwargs in [{}, *more]]


def embeddings(count: int, size: tuple[int, int], seed: int = 20) -> list[Tensor]:
    """`count` views (N, D) of the same N items: unit rows, each the item's direction and noise of its own."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda: torch.randn(size, generator=generator, dtype=torch.float64)  # noqa: E731
    items = draw()
    return [torch.nn.functional.normalize(items + 0.9 * draw(), dim=1) for _ in range(count)]


def value_and_gradients(function: Callable[..., Tensor], inputs: list[Tensor], **kwargs: Any) -> list[Tensor]:
    leaves = [each.clone().requires_grad_() for each in inputs]
    value = function(*leaves, **kwargs)
    assert value.shape == ()
    assert value.dtype == torch.float64
    return [value.detach(), *torch.autograd.grad(value, leaves)]


def agree(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.allclose(x, y, rtol=TOLERANCE, atol=TOLERANCE) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(("name", "size", "kwargs"), CASES)
def test_loss_is_the_transcription(name: str, size: tuple[int, int], kwargs: dict[str, Any]) -> None:
    inputs = embeddings(LOSSES[name][0], size)
    expected = value_and_gradients(getattr(reference, name), inputs, **kwargs)
    actual = value_and_gradients(getattr(losses, name), inputs, **kwargs)
    assert all(gradient.abs().max() > 1e-6 for gradient in expected[1:])
    assert agree(actual, expected)


@pytest.mark.parametrize("name", HINGED)
@pytest.mark.parametrize("size", SIZES)
def test_hinges_are_partly_active(name: str, size: tuple[int, int]) -> None:
    """Otherwise the comparison above would miss a lost or an inverted max(0, .)."""
    hinges: list[float] = []
    getattr(reference, name)(*embeddings(LOSSES[name][0], size), hinges=hinges)
    assert any(argument > 1e-3 for argument in hinges)
    assert any(argument < -1e-3 for argument in hinges)
    assert min(abs(argument) for argument in hinges) > 1e-6, "a kink has no one gradient to compare"


@pytest.mark.parametrize("name", LOSSES)
def test_defaults_are_those_of_the_paper(name: str) -> None:
    parameters = inspect.signature(getattr(losses, name)).parameters.values()
    assert {each.name: each.default for each in parameters if each.default is not each.empty} == LOSSES[name][1]


@pytest.mark.parametrize("name", LOSSES)
def test_comparison_can_fail(name: str) -> None:
    """Zeros, halves, swapped inputs and each slightly wrong parameter are told from the equation."""
    count, defaults, _ = LOSSES[name]
    literal = getattr(reference, name)
    inputs = embeddings(count, (17, 6))
    right = value_and_gradients(literal, inputs)
    assert agree(right, value_and_gradients(literal, inputs))
    wrong: dict[str, Callable[..., Tensor]] = {
        "zeros": lambda *x: 0.0 * literal(*x),
        "halves": lambda *x: 0.5 * literal(*x),
        "swapped ends": lambda *x: literal(x[-1], *x[1:-1], x[0]),
        "not unit rows": lambda *x: literal(*(1.001 * each for each in x)),
    }
    for parameter, value in defaults.items():
        changed = {parameter: value - 1 if parameter == "k" else 1.001 * value}
        wrong[f"{parameter} changed"] = lambda *x, changed=changed: literal(*x, **changed)
    for label, function in wrong.items():
        assert not agree(right, value_and_gradients(function, inputs)), label


@pytest.mark.parametrize("name", ["pdc", "plc"])
def test_image_and_text_play_equal_parts_in_clal(name: str) -> None:
    v, t, f = embeddings(3, (5, 4))
    torch.testing.assert_close(getattr(losses, name)(v, t, f), getattr(losses, name)(t, v, f))


def test_losses_stay_finite_in_float32_on_opposite_embeddings() -> None:
    """exp(1 / 0.03) over exp(-1 / 0.03) spans 28 decades: the log-sum-exp must not be taken naively."""
    towards = torch.nn.functional.normalize(torch.ones(4, 8), dim=1)
    value = losses.t2t(towards, -towards)
    torch.testing.assert_close(value, torch.tensor(4.0).log())


WEIGHTS = [
    ([1.0] * 6, [3.0, 1.0, 0.5, 0.25, 2.0, 7.0]),
    ([1.5, 0.2, 0.9, 1.4], [0.0, 0.0, 1e-3, 4.0]),
    ([0.7, 1.3], [1e-30, 2e-30]),
    ([1.0, 0.5, 1.5], [0.0, 0.0, 0.0]),
]


@pytest.mark.parametrize(("weights", "magnitudes"), WEIGHTS)
@pytest.mark.parametrize("beta", [0.0, 0.3, 0.5, 1.0])
def test_weight_update_is_the_transcription(weights: list[float], magnitudes: list[float], beta: float) -> None:
    before = torch.tensor(weights, dtype=torch.float64)
    after = losses.update_weights(before, torch.tensor(magnitudes, dtype=torch.float64), beta)
    expected = torch.tensor(reference.update_weights(weights, magnitudes, beta), dtype=torch.float64)
    torch.testing.assert_close(after, expected, rtol=TOLERANCE, atol=TOLERANCE)
    torch.testing.assert_close(after.mean(), before.mean(), rtol=TOLERANCE, atol=TOLERANCE)
    assert before.tolist() == weights


def test_weight_update_favours_the_larger_gradient_and_has_the_papers_beta() -> None:
    weights, magnitudes = (
        torch.ones(3, dtype=torch.float64),
        torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64),
    )
    after = losses.update_weights(weights, magnitudes)
    assert after[0] < after[1] < after[2]
    torch.testing.assert_close(after, losses.update_weights(weights, magnitudes, 0.5))
    assert not torch.allclose(after, losses.update_weights(weights, magnitudes, 0.501), rtol=TOLERANCE, atol=TOLERANCE)


def test_weights_stay_when_every_gradient_is_zero() -> None:
    weights = torch.tensor([1.0, 0.5, 1.5], dtype=torch.float64)
    torch.testing.assert_close(losses.update_weights(weights, torch.zeros(3, dtype=torch.float64)), weights)
