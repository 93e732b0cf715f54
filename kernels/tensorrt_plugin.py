"""The gate as a TensorRT plugin compiled ahead of time: the kernel's PTX goes into the engine, Python does not.

An ONNX node of it has the op type `gate`, the string attribute `plugin_namespace` "uniecs", `aot` 1, the integer
attribute `column`, and the kernel's tensors as inputs: x (B, N, D), yz (B, N, 2D), u (B, N, U), of which the first D
columns count, the indicator (B, 2) and the parameters (4, D), both fp32. So u may be the whole merged projection of x,
uncopied. D and U are fixed, B and N free. Create the network with `PREFER_AOT_PYTHON_PLUGINS`.

Written against the documentation and the published Python source of `tensorrt.plugin` (TensorRT 10 and 11). It has NOT
been executed: TensorRT is not on PyPI, and TensorRT-RTX has no Python plugins. Tests run it on a stand-in.
"""

# No postponed annotations here: tensorrt.plugin reads the types themselves.

from uniecs.errors import BackendError, MissingExtraError
from uniecs.kernels.gate import LANES, THREADS, entry_point

PLUGIN_ID = "uniecs::gate"


def register_gate_plugin(ptx: bytes) -> None:
    """Define `uniecs::gate` in TensorRT's plugin registry, once a process, with PTX that the engine's device takes.

    Raises `MissingExtraError` without TensorRT, `BackendError` where its `tensorrt.plugin` refuses the definition.
    """
    try:
        import tensorrt as trt
        import tensorrt.plugin as trtp
    except ImportError as error:
        raise MissingExtraError(
            "the gate's TensorRT plugin needs TensorRT 10 or newer with its Python bindings, from NVIDIA's own index"
        ) from error

    storage = {trt.float16: "fp16", trt.bfloat16: "bf16", trt.float32: "fp32"}

    def describe(
        x: trtp.TensorDesc,
        yz: trtp.TensorDesc,
        u: trtp.TensorDesc,
        indicator: trtp.TensorDesc,
        parameters: trtp.TensorDesc,
        column: int,
    ) -> trtp.TensorDesc:
        return x.like()

    def autotune(
        x: trtp.TensorDesc,
        yz: trtp.TensorDesc,
        u: trtp.TensorDesc,
        indicator: trtp.TensorDesc,
        parameters: trtp.TensorDesc,
        outputs: tuple[trtp.TensorDesc],
    ) -> list[trtp.AutoTuneCombination]:
        same = "FP16|BF16|FP32"
        return [trtp.AutoTuneCombination(f"{same}, {same}, {same}, FP32, FP32, {same}", "LINEAR")]

    def compiled(
        x: trtp.TensorDesc,
        yz: trtp.TensorDesc,
        u: trtp.TensorDesc,
        indicator: trtp.TensorDesc,
        parameters: trtp.TensorDesc,
        column: int,
        outputs: tuple[trtp.TensorDesc],
        tactic: int,
    ) -> tuple[bytes, bytes, trtp.KernelLaunchParams, trtp.SymIntExprs]:
        dim, u_stride = int(x.shape[2]), int(u.shape[2])
        rows = x.shape_expr[0] * x.shape_expr[1]
        scalars = (rows, x.shape_expr[1], dim, u_stride, int(column))
        launch = trtp.KernelLaunchParams()
        launch.grid_x = trtp.cdiv(rows, THREADS // LANES)
        launch.block_x = THREADS
        extra = trtp.SymIntExprs.from_tuple([trtp.SymInt32(each) for each in scalars])
        return entry_point(storage[x.dtype], dim).encode(), ptx, launch, extra

    try:
        trtp.register(PLUGIN_ID)(describe)
        trtp.autotune(PLUGIN_ID)(autotune)
        trtp.aot_impl(PLUGIN_ID)(compiled)
    except (ValueError, RuntimeError) as error:
        raise BackendError(f"TensorRT {trt.__version__} refused the plugin {PLUGIN_ID}: {error}") from error
