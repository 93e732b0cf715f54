"""The torch operator `uniecs::gate` and the fusion folded around it, on the CPU; on a GPU where there is one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from uniecs.config import FusionConfig
from uniecs.errors import InputError
from uniecs.kernels import gate as rows
from uniecs.trainer.folded import FoldedFusion
from uniecs.trainer.fusion import GatedFusion, GatedSide
from uniecs.trainer.gate_op import STORAGE, gate

DIM, HEADS = 64, 4
HAS_GPU = torch.cuda.is_available()
gpu = pytest.mark.skipif(not HAS_GPU, reason="no CUDA device: the kernel is not launched here")


def operands(
    batch: int = 3, tokens: int = 5, dim: int = DIM, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """x, yz, u, the indicator and the parameters, random."""
    x, y, z, u = torch.randn(4, batch, tokens, dim)
    wide = torch.promote_types(dtype, torch.float32)
    indicator = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]).repeat(batch, 1)[:batch]
    yz = torch.cat((y - y.mean(-1, keepdim=True), z), -1)
    stored = (each.to(device, dtype) for each in (x, yz, u))
    return (*stored, indicator.to(device, wide), torch.randn(4, dim).to(device, wide))  # type: ignore[return-value]


def make_fusion(layers: int = 2, dim: int = DIM, kind: str = "gated") -> GatedFusion:
    """A fusion with random weights, its biases and norms too."""
    fusion = GatedFusion(dim, FusionConfig(kind=kind, gated_layers=layers, heads=HEADS))
    with torch.no_grad():
        for parameter in fusion.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return fusion.eval()


def tokens(batch: int = 3, images: int = 9, texts: int = 6, dim: int = DIM) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inputs of a fusion: one product with both modalities, one with each."""
    mask = torch.ones(batch, texts, dtype=torch.int64)
    mask[0, texts // 2 + 1 :] = 0
    indicator = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]])[torch.arange(batch) % 3]
    return torch.randn(batch, images, dim), torch.randn(batch, texts, dim), mask, indicator


@pytest.mark.parametrize("column", [0, 1])
def test_operator_is_the_reference(column: int) -> None:
    given = operands(dtype=torch.float64)
    exact = rows.gate_rows(*(each.numpy() for each in given), column=column)
    assert np.abs(gate(*given, column).numpy() - exact).max() < 1e-12
    for dtype, bound in ((torch.float16, 2e-3), (torch.bfloat16, 2e-2), (torch.float32, 2e-6)):
        stored = tuple(each.to(dtype) for each in given[:3])
        out = gate(*stored, *(each.float() for each in given[3:]), column)
        exact = rows.gate_rows(*(each.double().numpy() for each in (*stored, *given[3:])), column=column)
        assert out.dtype == dtype
        assert np.abs(out.double().numpy() - exact).max() < bound * np.abs(exact).max()


def test_opcheck() -> None:
    x, yz, _, indicator, parameters = operands()
    u = torch.randn(3, 5, 4 * DIM)[..., :DIM]
    learned = tuple(each.requires_grad_() for each in (x, yz, u))
    torch.library.opcheck(gate, (*learned, indicator, parameters.requires_grad_(), 1))


@pytest.mark.parametrize("column", [0, 1])
def test_gradients(column: int) -> None:
    x, yz, u, indicator, parameters = operands(dtype=torch.float64, tokens=2)
    learned = tuple(each.requires_grad_() for each in (x, yz, u, parameters))

    def operator(x: Tensor, yz: Tensor, u: Tensor, parameters: Tensor) -> Tensor:
        out: Tensor = gate(x, yz, u, indicator, parameters, column)
        return out

    assert torch.autograd.gradcheck(operator, learned, fast_mode=True)
    assert torch.autograd.gradgradcheck(operator, learned, fast_mode=True)


def test_gradients_are_those_of_the_network() -> None:
    """Through the folding, the operator's gradients at the attention's output and the tokens are the plain gate's."""
    side: GatedSide = make_fusion().text_sides[0].double()  # type: ignore[assignment]
    assert side.gate is not None
    linear, out = side.gate.linear, side.cross_attention.out
    x, attention = (torch.randn(3, 5, DIM, dtype=torch.float64, requires_grad=True) for _ in range(2))
    indicator = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    plain = side.gate(x, side.norm(out(attention)), indicator[:, 1, None, None])

    own, attended, embedding = linear.weight.chunk(3, 1)
    weight, bias = out.weight - out.weight.mean(0), out.bias - out.bias.mean()
    y = attention @ weight.T + bias
    yz = torch.cat((y, y @ (attended * side.norm.weight).T), -1)
    absent = linear.bias + attended @ side.norm.bias
    lines = (side.norm.weight, side.norm.bias, absent, absent + embedding @ side.gate.indicator_embedding)
    folded = gate(x, yz, x @ own.T, indicator, torch.stack(lines), 1)
    assert (folded - plain).abs().max() < 1e-12

    weights = (x, attention, linear.weight, linear.bias, side.norm.weight, side.norm.bias, out.weight, out.bias)
    weights = (*weights, side.gate.indicator_embedding)
    seed = torch.randn_like(plain)
    for a, b in zip(torch.autograd.grad(plain, weights, seed), torch.autograd.grad(folded, weights, seed), strict=True):
        assert (a - b).abs().max() < 1e-10


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"x": torch.randn(3, 5)}, "batch, tokens, dim"),
        ({"x": torch.randn(3, 5, 96)}, "multiple of 64"),
        ({"yz": torch.randn(3, 5, 64)}, r"yz must be \(3, 5, 128\)"),
        ({"u": torch.randn(3, 5, 64).half()}, "u must be"),
        ({"modality_indicator": torch.ones(3, 2, dtype=torch.int64)}, "modality_indicator must be"),
        ({"parameters": torch.randn(5, 64)}, "parameters must be"),
        ({"parameters": torch.randn(4, 64).half()}, "parameters must be"),
        ({"column": 2}, "column must be 0"),
    ],
)
def test_operands_are_checked(changes: dict[str, Tensor | int], complaint: str) -> None:
    names = ("x", "yz", "u", "modality_indicator", "parameters")
    given = dict(zip(names, operands(), strict=True)) | {"column": 0} | changes
    with pytest.raises(InputError, match=complaint):
        gate(**given)


def test_folded_fusion_is_the_fusion() -> None:
    torch.manual_seed(0)
    fusion = make_fusion()
    folded = FoldedFusion(fusion)
    given = tokens()
    with torch.no_grad():
        expected = fusion(*given)
    assert (folded(*given) - expected).abs().max() < 1e-5
    # What a missing modality's buffer holds is without effect, and one token of it does.
    image, text, mask, indicator = given
    only_text = (torch.full((3, 1, DIM), float("nan")), text, mask, torch.tensor([[0.0, 1.0]]).expand(3, 2))
    with torch.no_grad():
        expected = fusion(*only_text)
    assert (folded(*only_text) - expected).abs().max() < 1e-5
    # A sample does not depend on its batch mates.
    alone = folded(image[:1], text[:1], mask[:1], indicator[:1])
    assert (alone - folded(*given)[:1]).abs().max() < 1e-5
    # The comparison can fail.
    swapped = (image, text, mask, indicator.flip(1))
    assert (folded(*swapped) - folded(*given)).abs().max() > 1e-2


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.999), (torch.float16, 0.9999)])
def test_folded_fusion_in_half_precision(dtype: torch.dtype, bound: float) -> None:
    torch.manual_seed(1)
    fusion, given = make_fusion(), tokens()
    with torch.no_grad():
        cosine = (FoldedFusion(fusion, dtype)(*given) * fusion(*given)).sum(-1)
    assert cosine.min() > bound


def test_a_fusion_without_gates_is_refused() -> None:
    with pytest.raises(InputError, match="nothing to fold"):
        FoldedFusion(make_fusion(kind="additive"))


@gpu
@pytest.mark.parametrize("dtype", list(STORAGE))
@pytest.mark.parametrize("dim", [64, 256, 768, 1024])
def test_operator_on_the_gpu(dtype: torch.dtype, dim: int) -> None:
    pytest.importorskip("cuda.core", reason="cuda-core is not installed")
    given = operands(3, 37, dim, dtype, "cuda")
    bound = 4 * torch.finfo(dtype).eps
    expected = gate(*(each.cpu() for each in given), 1).double()
    out = gate(*given, 1).cpu().double()
    assert ((out - expected).abs() <= bound * (1 + expected.abs())).all()
    wide = torch.randn(3, 37, 4 * dim, device="cuda").to(dtype)
    wide[..., :dim] = given[2]
    x, yz, _, indicator, parameters = given
    strided = gate(x, yz, wide[..., :dim], indicator, parameters, 1).cpu().double()
    assert torch.equal(strided, out)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        assert torch.equal(gate(*given, 1).cpu().double(), out)
    torch.library.opcheck(gate, (*given, 1))


@gpu
@pytest.mark.parametrize("dtype", list(STORAGE))
def test_folded_fusion_on_the_gpu(dtype: torch.dtype) -> None:
    pytest.importorskip("cuda.core", reason="cuda-core is not installed")
    fusion, given = make_fusion(), tokens()
    with torch.no_grad():
        expected = fusion(*given)
        out = FoldedFusion(fusion, dtype).cuda()(*(each.cuda() for each in given)).cpu()
    assert (out * expected).sum(-1).min() > 0.999
