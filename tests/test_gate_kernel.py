"""The gate kernel without a GPU: its folding, its arithmetic compiled for the CPU, its build and its launchers."""

from __future__ import annotations

import ctypes
import mmap
import re
import runpy
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from uniecs.errors import BackendError, InputError, MissingExtraError
from uniecs.kernels import build, gate
from uniecs.kernels.accuracy import DRAWS, Accuracy, compare, fresh_seeds, over, random_weights
from uniecs.kernels.launch import CudaCoreLauncher, GateCall, PycudaLauncher
from uniecs.kernels.tensorrt_plugin import register_gate_plugin
from uniecs.trainer.fusion import Gate

HERE = Path(__file__).parent
FAKES = runpy.run_path(str(HERE / "fake_tensorrt_plugin.py"))
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
# Every kernel of a storage type, and rows that do not fill their last vectors.
DIMS = {"fp16": (64, 256, 320, 768, 832, 1024), "bf16": (64, 256, 448, 768, 1024)}
DIMS["fp32"] = (64, 128, 192, 384, 512, 640, 768, 1024)
CASES = [(dtype, dim) for dtype, dims in DIMS.items() for dim in dims]
HAS_GPU = torch.cuda.is_available()
no_gpu = pytest.mark.skipif(HAS_GPU, reason="shows what happens without a CUDA device")
Host = Callable[[GateCall], None]


@pytest.fixture(scope="session")
def nvcc() -> None:
    try:
        build.find_nvcc()
    except BackendError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def host(nvcc: None, tmp_path_factory: pytest.TempPathFactory) -> Host:
    """Makes a call on the CPU, with the row code of the kernel."""
    path = tmp_path_factory.mktemp("gate") / "gate_host.so"
    options = ["-std=c++17", "-O1", "-shared", "-Xcompiler", "-fPIC", "-arch=compute_75", "-I", build.SOURCE.parent]
    build.run_nvcc([*options, HERE / "gate_host.cu", "-o", path])
    library = ctypes.CDLL(str(path))

    def make(call: GateCall) -> None:
        kinds = {np.uint64: ctypes.c_uint64, np.int32: ctypes.c_int32}
        getattr(library, call.kernel)(*(kinds[type(each)](int(each)) for each in call.arguments()))

    return make


@dataclass
class Case:
    """Inputs and weights in a storage type, what the paper makes of them, and what the plain network makes of them."""

    x: Tensor
    attention: Tensor
    indicator: Tensor  # (B, 2); the text's column is the side's
    yz: Tensor
    u: Tensor
    parameters: Tensor
    reference: gate.Array
    plain: Tensor


def draw(dtype: str, dim: int, seed: int, mean: float = 0.0, batch: int = 3, tokens: int = 7) -> Case:
    """A case of 3 x 7 rows: no whole block of the grid, nor a whole number of them."""
    rng, storage = np.random.default_rng(seed), DTYPES[dtype]
    weights = random_weights(dim, rng, mean)
    x, attention = (torch.from_numpy(rng.standard_normal((batch, tokens, dim))).to(storage) for _ in range(2))
    there = torch.arange(batch, dtype=torch.float32) % 2
    reference = gate.plain_gate(weights, x.double().numpy(), attention.double().numpy(), there.double().numpy())

    def stored(array: gate.Array) -> Tensor:
        return torch.from_numpy(array).to(storage)

    module = Gate(dim)
    module.load_state_dict(
        {
            "indicator_embedding": torch.from_numpy(weights.indicator_embedding),
            "linear.weight": torch.from_numpy(weights.gate_weight),
            "linear.bias": torch.from_numpy(weights.gate_bias),
        }
    )
    projected = F.linear(attention, stored(weights.projection_weight), stored(weights.projection_bias))
    attended = F.layer_norm(projected, (dim,), stored(weights.norm_weight), stored(weights.norm_bias))
    with torch.no_grad():
        plain = module.to(storage)(x, attended, there.to(storage)[:, None, None])
    folded = gate.fold_gate(weights)
    yz = F.linear(attention, stored(folded.attended_weight), stored(folded.attended_bias))
    u = F.linear(x, stored(folded.own_weight))
    indicator = torch.stack((1 - there, there), 1)
    return Case(x, attention, indicator, yz, u, torch.from_numpy(folded.parameters).float(), reference, plain)


def run(launch: Host, case: Case, device: str = "cpu") -> Tensor:
    """The kernel's output, poisoned before, with a poisoned row on either side that it must leave alone."""
    batch, tokens, dim = case.x.shape
    dtype = next(name for name, each in DTYPES.items() if each == case.x.dtype)
    tensors = (case.x, case.yz, case.u, case.indicator, case.parameters)
    x, yz, u, indicator, parameters = (each.to(device).contiguous() for each in tensors)
    room = torch.full((batch * tokens + 2, dim), float("nan"), dtype=case.x.dtype, device=device)
    launch(
        GateCall(
            x=x.data_ptr(),
            yz=yz.data_ptr(),
            u=u.data_ptr(),
            indicator=indicator.data_ptr(),
            parameters=parameters.data_ptr(),
            out=room[1:].data_ptr(),
            rows=batch * tokens,
            tokens=tokens,
            dim=dim,
            u_stride=dim,
            column=1,
            dtype=dtype,
        )
    )
    if device != "cpu":
        torch.cuda.synchronize()
    assert room[0].isnan().all()
    assert room[-1].isnan().all()
    return room[1:-1].reshape(case.x.shape).cpu()


def accuracy(case: Case, output: Tensor) -> Accuracy:
    """The rule's measures of one output."""
    return compare(case.reference, case.plain.double().numpy(), output.double().numpy())


def test_folding_is_exact() -> None:
    rng = np.random.default_rng()
    for dim, mean in ((64, 0.0), (192, 30.0)):
        weights = random_weights(dim, rng, mean)
        x, attention = rng.standard_normal((2, 2, 5, dim))
        indicator = np.array([[1.0, 0.0], [0.0, 1.0]])
        folded = gate.fold_gate(weights)
        yz, u = gate.folded_products(folded, x, attention)
        for column in (0, 1):
            plain = gate.plain_gate(weights, x, attention, indicator[:, column])
            rows = gate.gate_rows(x, yz, u, indicator, folded.parameters, column)
            assert np.abs(rows - plain).max() < 1e-11
            assert np.abs(gate.gate_rows(x, yz, u, indicator, folded.parameters, 1 - column) - plain).max() > 1e-2
        assert np.abs(yz[..., :dim].mean(-1)).max() < 1e-12


def test_the_reference_is_the_network() -> None:
    case = draw("fp32", 128, 3)
    weights = random_weights(128, np.random.default_rng(3))
    exact = torch.from_numpy(case.reference)
    module = Gate(128).double()
    with torch.no_grad():
        for name in ("weight", "bias"):
            getattr(module.linear, name).copy_(torch.from_numpy(getattr(weights, f"gate_{name}")))
        module.indicator_embedding.copy_(torch.from_numpy(weights.indicator_embedding))
        projected = F.linear(
            case.attention.double(),
            *(torch.from_numpy(getattr(weights, f"projection_{n}")) for n in ("weight", "bias")),
        )
        attended = F.layer_norm(
            projected, (128,), *(torch.from_numpy(getattr(weights, f"norm_{n}")) for n in ("weight", "bias"))
        )
        got = module(case.x.double(), attended, case.indicator[:, 1].double()[:, None, None])
    assert (got - exact).abs().max() < 1e-12


def test_source_and_python_agree() -> None:
    header = build.SOURCE.with_name("gate_row.cuh").read_text("utf-8")
    kernels = [
        f"{name}_x{vectors}" for name, vectors in re.findall(r"^\s*X\((\w+), \w+, (\d+)\)", header, re.MULTILINE)
    ]
    assert kernels == [f"{name}_x{each}" for name, vectors in gate.VECTORS.items() for each in vectors]
    assert f"kEpsilon = {gate.EPSILON:.0e}f".replace("e-05", "e-5") in header
    assert torch.nn.LayerNorm(4).eps == gate.EPSILON
    assert f"kLanes = {gate.LANES};" in header
    assert f"kThreads = {gate.THREADS};" in build.SOURCE.read_text("utf-8")


@pytest.mark.parametrize(("dtype", "dim"), CASES)
@pytest.mark.parametrize("mean", [0.0, 8.0])
def test_accuracy_rule_on_the_cpu(host: Host, dtype: str, dim: int, mean: float) -> None:
    seeds = fresh_seeds()
    cases = [draw(dtype, dim, seed, mean) for seed in seeds]
    result = over([accuracy(case, run(host, case)) for case in cases])
    assert result.holds, (seeds, result)


def test_the_accuracy_rule_is_over_several_draws() -> None:
    """A draw whose roundings add up does not break it; a kernel that is wrong in one draw, or a little in all, does."""
    usual, unlucky = Accuracy(1.2e-6, 1.2e-6, 1.9e-7, 2e-7), Accuracy(2.7e-6, 1.2e-6, 1.9e-7, 2e-7)
    assert not unlucky.holds
    assert over([usual] * (DRAWS - 1) + [unlucky]).holds
    assert not over([unlucky] * DRAWS).holds
    for wrong in (replace(usual, kernel_max=1e-3), replace(usual, kernel_rms=1e-5), replace(usual, kernel_max=np.nan)):
        assert not over([usual] * (DRAWS - 1) + [wrong]).holds


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_accuracy_rule_can_fail(host: Host, dtype: str) -> None:
    case = draw(dtype, 256, 0)
    output = run(host, case)
    y, z = case.yz.chunk(2, -1)
    wrong = {
        "zeros": torch.zeros_like(output),
        "halves": output / 2,
        "NaN": output.clone().index_fill_(2, torch.tensor([5]), float("nan")),
        "y and z swapped": run(host, replace(case, yz=torch.cat((z, y), -1))),
        "x and u swapped": run(host, replace(case, x=case.u, u=case.x)),
        "modalities swapped": run(host, replace(case, indicator=case.indicator.flip(1))),
        "samples swapped": run(host, replace(case, x=case.x.flip(0))),
    }
    assert accuracy(case, output).holds
    assert [name for name, each in wrong.items() if accuracy(case, each).holds] == []


@pytest.mark.parametrize(("dtype", "dim"), CASES)
def test_rows_to_the_last_bit_of_their_storage(host: Host, dtype: str, dim: int) -> None:
    """Against float64 on the very operands, the kernel errs by its one rounding and a few of float32's."""
    case = draw(dtype, dim, 1, tokens=1)
    tensors = (case.x, case.yz, case.u, case.indicator, case.parameters)
    exact = gate.gate_rows(*(each.double().numpy() for each in tensors), column=1)
    half_ulp = torch.finfo(case.x.dtype).eps / 2
    bound = half_ulp * np.abs(exact) + 8 * 2.0**-24 * (1 + np.abs(exact))
    assert (np.abs(run(host, case).double().numpy() - exact) <= bound).all()


def test_a_row_does_not_depend_on_its_neighbours(host: Host) -> None:
    case = draw("fp16", 320, 2, batch=4, tokens=3)
    whole = run(host, case)
    for sample in range(4):
        part = slice(sample, sample + 1)
        names = ("x", "yz", "u", "indicator")
        alone = run(host, replace(case, **{name: getattr(case, name)[part] for name in names}))
        assert torch.equal(alone, whole[part])


def test_row_offsets_pass_2_to_the_31(host: Host) -> None:
    """The third row of u lies 2**31 numbers behind the first: memory that is mapped, and hardly touched."""
    case, stride = draw("fp16", 64, 4, batch=3, tokens=1), 2**30
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    try:
        space = mmap.mmap(-1, (2 * stride + 64) * 2, flags=flags)
    except OSError as error:
        pytest.skip(f"4 GiB of address space are not to be had: {error}")
    u = torch.frombuffer(space, dtype=torch.float16)
    for row in range(3):
        u[row * stride : row * stride + 64] = case.u[row, 0]
    out = torch.full_like(case.x, float("nan"))
    pointers = {name: getattr(case, name).data_ptr() for name in ("x", "yz", "indicator", "parameters")}
    sizes = {"rows": 3, "tokens": 1, "dim": 64, "u_stride": stride, "column": 1}
    host(GateCall(**pointers, u=u.data_ptr(), out=out.data_ptr(), **sizes, dtype="fp16"))
    assert torch.equal(out, run(host, case))


def good_call(**changes: Any) -> GateCall:
    given = {"x": 1 << 20, "yz": 2 << 20, "u": 3 << 20, "indicator": 4 << 20, "parameters": 5 << 20, "out": 6 << 20}
    return GateCall(
        **(given | {"rows": 12, "tokens": 4, "dim": 256, "u_stride": 256, "column": 0, "dtype": "fp16"} | changes)
    )


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"dtype": "int8"}, "stores fp16, bf16, fp32"),
        ({"dim": 96}, "multiple of 64"),
        ({"dim": 1088}, "up to 1024"),
        ({"dim": 0}, "multiple of 64"),
        ({"rows": 0}, "rows"),
        ({"rows": 2**31}, "rows"),
        ({"tokens": 5}, "divide the 12 rows"),
        ({"tokens": 0}, "divide"),
        ({"u_stride": 248}, "u_stride"),
        ({"u_stride": 260}, "multiple of 8"),
        ({"column": 2}, "column"),
        ({"x": 0}, "x must be a device pointer"),
        ({"yz": (2 << 20) + 8}, "aligned to 16"),
        ({"indicator": (4 << 20) + 2}, "aligned to 4"),
        ({"out": 2**64}, "out must be"),
        ({"rows": 12.0}, "rows must be an int"),
        ({"x": None}, "x must be an int"),
        ({"out": 1 << 20}, "out overlaps x"),
        ({"out": (3 << 20) - 16}, "out overlaps u"),
        ({"out": (5 << 20) + 4096}, None),
        ({"out": (5 << 20) + 4080}, "out overlaps parameters"),
    ],
)
def test_a_call_is_checked_before_the_driver(changes: dict[str, Any], complaint: str | None) -> None:
    if complaint is None:
        assert good_call(**changes).kernel == "uniecs_gate_fp16_x1"
        return
    with pytest.raises(InputError, match=complaint):
        good_call(**changes)


def test_entry_points_and_grid() -> None:
    assert [gate.entry_point("fp16", dim)[-2:] for dim in (64, 256, 320, 512, 576, 768, 832, 1024)] == [
        *("x1", "x1", "x2", "x2", "x3", "x3", "x4", "x4"),
    ]
    assert [gate.entry_point("fp32", dim)[-2:] for dim in (64, 192, 512, 576, 768, 832)] == [
        *("x1", "x2", "x4", "x6", "x6", "x8"),
    ]
    assert [gate.grid(rows) for rows in (1, 4, 5, 2**31 - 1)] == [1, 1, 2, 2**29]


def test_weights_must_fit() -> None:
    weights = random_weights(64, np.random.default_rng(0))
    with pytest.raises(InputError, match=r"gate_weight has shape \(64, 128\)"):
        replace(weights, gate_weight=weights.gate_weight[:, :128])


def test_every_architecture_builds_without_spills(
    nvcc: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = build.run_nvcc(["--list-gpu-arch"]).split()
    missing = [each for each in build.ARCHITECTURES if f"compute_{each}" not in known]
    if missing:
        pytest.skip(f"this nvcc does not know {missing}")
    reports = build.build(tmp_path)
    with capsys.disabled():
        print(f"\n{build.table(reports)}")
    kernels = sorted(f"uniecs_gate_{name}_x{each}" for name, vectors in gate.VECTORS.items() for each in vectors)
    for architecture in build.ARCHITECTURES:
        mine = [report for report in reports if report.architecture == architecture]
        assert [report.kernel for report in mine] == kernels
        assert [report for report in mine if report.spill_bytes or report.stack_bytes] == []
        # Three blocks at least fit a multiprocessor's 65536 registers.
        assert max(report.registers for report in mine) * gate.THREADS * 3 <= 65536
        assert f".target sm_{architecture}".encode() in (tmp_path / f"gate-sm_{architecture}.ptx").read_bytes()
        assert (tmp_path / f"gate-sm_{architecture}.cubin").read_bytes()[:4] == b"\x7fELF"


def test_memory_is_read_and_written_16_bytes_at_a_time(nvcc: None) -> None:
    bodies = re.split(r"\.entry (?=uniecs_gate)", build.compile_ptx(90).decode())[1:]
    assert len(bodies) == sum(map(len, gate.VECTORS.values()))
    for body in bodies:
        kernel, vectors = body.partition("(")[0], int(body.partition("(")[0][-1])
        moves = re.findall(r"\b(ld|st)\.(\w+)\S*?(\.v4)?\.[fub]32\b", body)
        loads = [wide for what, space, wide in moves if (what, space) == ("ld", "global")]
        stores = [wide for what, space, wide in moves if (what, space) == ("st", "global")]
        # x, y, z, u, and three parameters for every four numbers; the indicator alone is one number.
        of_vector = 4 + 3 * (gate.VECTOR_BYTES // gate.ITEM_BYTES[kernel.split("_")[2]]) // 4
        assert (kernel, loads.count(".v4"), loads.count("")) == (kernel, vectors * of_vector, 1)
        assert (kernel, stores) == (kernel, [".v4"] * vectors)
        assert (kernel, re.findall(r"\b(?:ld|st)\.(?:local|shared)", body)) == (kernel, [])


def test_spills_are_seen() -> None:
    line = (
        "ptxas info    : Compiling entry function 'a_kernel' for 'sm_90'\n"
        "ptxas info    : Function properties for a_kernel\n"
        "    16 bytes stack frame, 6 bytes spill stores, 24 bytes spill loads\n"
        "ptxas info    : Used 128 registers, used 0 barriers, 16 bytes cumulative stack size\n"
    )
    (report,) = build.parse_reports(line, 90)
    assert report == build.KernelReport(90, "a_kernel", 128, 16, 30)
    assert "128 (30 B spilled)" in build.table([report])
    with pytest.raises(BackendError, match="reported no kernel"):
        build.parse_reports("ptxas info : nothing", 90)


def test_nvcc_failures_are_told(nvcc: None) -> None:
    with pytest.raises(BackendError, match="ended with status"):
        build.compile_cubin(b"no PTX at all", 90)


def test_without_nvcc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    with pytest.raises(BackendError, match="CUDA toolkit"):
        build.find_nvcc()
    monkeypatch.setattr("sys.argv", ["build", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="1"):
        build.main()
    assert capsys.readouterr().err.startswith("python -m uniecs.kernels.build: error: nvcc was not found")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvcc").touch(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert build.find_nvcc() == str(tmp_path / "bin" / "nvcc")


def test_architectures() -> None:
    chosen = {(7, 5): 75, (8, 7): 86, (9, 0): 90, (10, 3): 100, (12, 1): 120, (13, 0): 120}
    assert {each: build.architecture_for(each) for each in chosen} == chosen
    with pytest.raises(BackendError, match=r"has 7\.0"):
        build.architecture_for((7, 0))


@no_gpu
def test_without_a_driver() -> None:
    pytest.importorskip("cuda.core", reason="cuda-core is not installed")
    with pytest.raises(BackendError, match="no CUDA device 0 here"):
        CudaCoreLauncher.built_for(0)
    with pytest.raises(BackendError, match="did not load on CUDA device 0"):
        CudaCoreLauncher(b"")


def test_without_the_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cuda.core", "pycuda", "tensorrt", "tensorrt.plugin"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=r"uniecs\[kernels\]"):
        CudaCoreLauncher(b"")
    with pytest.raises(MissingExtraError, match="pip install pycuda"):
        PycudaLauncher(b"")
    with pytest.raises(MissingExtraError, match="TensorRT 10"):
        register_gate_plugin(b"")


class FakeCore(ModuleType):
    """Stands for cuda.core; it records what is launched where. The real one was type-checked, see docs/kernels.md."""

    LEGACY_DEFAULT_STREAM = "legacy"

    def __init__(self) -> None:
        super().__init__("cuda.core")
        self.launched: list[Any] = []
        self.Device = lambda index: SimpleNamespace(set_current=lambda: None, compute_capability=None)
        kernels = SimpleNamespace(get_kernel=lambda name: name)
        self.ObjectCode = SimpleNamespace(from_ptx=lambda ptx, name: kernels)
        self.Stream = SimpleNamespace(from_handle=lambda handle: handle)
        self.LaunchConfig = lambda grid, block: (grid, block)
        self.launch = lambda *given: self.launched.append(given)


@pytest.fixture
def fake_core(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCore]:
    fake, package = FakeCore(), ModuleType("cuda")
    package.core = fake  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cuda", package)
    monkeypatch.setitem(sys.modules, "cuda.core", fake)
    yield fake


def test_cuda_core_is_given_the_call(fake_core: FakeCore) -> None:
    launcher, call = CudaCoreLauncher(b"ptx"), good_call(rows=24, column=1)
    launcher.launch(call, stream=77)
    launcher.launch(call)
    expected = ("uniecs_gate_fp16_x1", *(n << 20 for n in (1, 2, 3, 4, 5)), 24, 4, 256, 256, 1, 6 << 20)
    assert fake_core.launched == [(77, (6, 128), *expected), ("legacy", (6, 128), *expected)]
    fake_core.launch = lambda *given: 1 / 0
    with pytest.raises(BackendError, match="was not launched"):
        launcher.launch(call)


def test_pycuda_is_given_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[Any] = []

    def function(name: str) -> Callable[..., None]:
        return lambda *given, **where: events.append((name, [each.dtype.char for each in given], where))

    context = SimpleNamespace(push=lambda: events.append("push"), pop=lambda: events.append("pop"))
    package, driver = ModuleType("pycuda"), ModuleType("pycuda.driver")
    package.driver = driver  # type: ignore[attr-defined]
    vars(driver).update(
        init=lambda: None,
        Device=lambda index: SimpleNamespace(retain_primary_context=lambda: context),
        module_from_buffer=lambda ptx: SimpleNamespace(get_function=function),
    )
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setitem(sys.modules, "pycuda.driver", driver)
    PycudaLauncher(b"ptx").launch(good_call(), stream="mine")
    where = {"grid": (3, 1), "block": (128, 1, 1), "stream": "mine"}
    kernel = ("uniecs_gate_fp16_x1", [*"LLLLL", *"iiiii", "L"], where)
    assert events == ["push", "pop", "push", kernel, "pop"]


def test_tensorrt_plugin_on_a_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    tensorrt = FAKES["install"](monkeypatch)
    register_gate_plugin(b"ptx")
    plugin = tensorrt.plugin.defined["uniecs::gate"]
    assert plugin.compile(batch="B", tokens="N", dim=768, u_width=3072, dtype="HALF", column=1) == (
        b"uniecs_gate_fp16_x3",
        b"ptx",
        {"grid_x": "ceil(B*N/4)", "block_x": 128},
        ["B*N", "N", 768, 3072, 1],
    )
    # Types come first in the combination: five inputs, and the output.
    assert plugin.combinations() == [(*[each] * 3, "FP32", "FP32", each) for each in ("FP16", "BF16", "FP32")]
    scalars = re.findall(r"int (\w+)", good_signature())
    assert scalars == ["rows", "tokens", "dim", "u_stride", "column"]
    with pytest.raises(BackendError, match="refused the plugin"):
        register_gate_plugin(b"ptx")


def good_signature() -> str:
    """The kernels' parameters, as the source has them."""
    header = build.SOURCE.with_name("gate_row.cuh").read_text("utf-8")
    return " ".join(header.partition("#define UNIECS_GATE_PARAMETERS(T)")[2].partition("#define")[0].split())


@pytest.mark.skipif(not HAS_GPU, reason="no CUDA device: the kernel itself is not executed here")
@pytest.mark.parametrize(("dtype", "dim"), CASES)
def test_accuracy_rule_on_the_gpu(nvcc: None, dtype: str, dim: int) -> None:
    pytest.importorskip("cuda.core", reason="cuda-core is not installed")
    launcher = CudaCoreLauncher.built_for(0)
    for mean in (0.0, 8.0):
        seeds = fresh_seeds()
        cases = [draw(dtype, dim, seed, mean) for seed in seeds]
        result = over([accuracy(case, run(launcher.launch, case, "cuda")) for case in cases])
        assert result.holds, (seeds, result)
    case = cases[0]
    assert not accuracy(case, run(launcher.launch, replace(case, x=case.u, u=case.x), "cuda")).holds
