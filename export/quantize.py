"""The int8 variant of a bundle: calibrated on real products by NNCF, and written only if it finds what fp32 finds."""

from __future__ import annotations

import importlib.metadata
import io
import logging
import shutil
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from uniecs.backends.base import create_backend
from uniecs.backends.openvino import OpenVinoBackend, import_openvino, make_core, without_telemetry
from uniecs.backends.openvino_int8 import constant_weights
from uniecs.bundle import Bundle, open_bundle, write_manifest
from uniecs.catalog import Product
from uniecs.durable import new_folder
from uniecs.encoder import Encoder
from uniecs.errors import CatalogError, ImageError, ParityError
from uniecs.evaluation import Pairs, evaluate_models, read_held_out, read_products
from uniecs.int8_recipe import FILE, VARIANT, Int8Recipe, QuantizedInput, check_model
from uniecs.preprocess import Tokenizer, pixel_values

Feed = dict[str, npt.NDArray[Any]]

MAX_FALL = 0.5
"""Largest fall of recall@10, in points of 100, that an int8 variant may show in any task."""
SAMPLE, SEED = 300, 0
SMOOTHING = 0.9
"""How much of the uneven size of input channels goes over to the weights (SmoothQuant's alpha, of 1)."""
_SMOOTHED = "nncf_smooth_quant"


@dataclass(frozen=True)
class Trial:
    """A recipe and what it costs: `fp32` and `int8` are `evaluate` reports of the same bundle on the same pairs."""

    bundle: Bundle
    recipe: Int8Recipe
    calibration: Mapping[str, Any]
    fp32: Mapping[str, Any]
    int8: Mapping[str, Any]

    @property
    def falls(self) -> dict[str, float]:
        """Task -> points of recall@10 that int8 loses against fp32; negative where it gains."""
        before, after = self.fp32["tasks"], self.int8["tasks"]
        return {task: round(100 * (before[task]["10"] - after[task]["10"]), 6) for task in before}

    @property
    def ok(self) -> bool:
        """Whether no task falls by more than `MAX_FALL`."""
        return max(self.falls.values()) <= MAX_FALL

    def table(self) -> str:
        """The tasks as an aligned plain-text table, and the verdict."""
        lines = [f"{self.bundle.model_id}, recall@10 on {self.int8['pairs']} pairs"]
        lines.append(f"{'task':6}{'fp32':>8}{'int8':>8}{'fall':>8}")
        for task, fall in self.falls.items():
            before, after = (100 * report["tasks"][task]["10"] for report in (self.fp32, self.int8))
            lines.append(f"{task:6}{before:8.2f}{after:8.2f}{fall:8.2f}{'' if fall <= MAX_FALL else '  too much'}")
        lines.append(f"int8 {'passes' if self.ok else 'FAILS'}: a task may fall by {MAX_FALL} points")
        return "\n".join(lines)

    def write(self, out: Path) -> Bundle:
        """The bundle with this int8 variant as a new folder `out`: same graphs, same model_id.

        Raises `ParityError` if a task falls too far, `BundleError` if `out` exists; then nothing is written.
        """
        if not self.ok:
            worst = max(self.falls, key=lambda task: self.falls[task])
            raise ParityError(
                f"int8 loses {self.falls[worst]:.2f} points of recall@10 in {worst}, and {MAX_FALL} are allowed: "
                "nothing is written"
            )
        manifest = dict(self.bundle.manifest)
        evaluation = {key: value for key, value in self.int8.items() if key != "baselines"} | {"falls": self.falls}
        variant = {"file": FILE, "calibration": dict(self.calibration), "evaluation": evaluation}
        manifest["variants"] = {**manifest.get("variants", {}), VARIANT: variant}
        with new_folder(out) as folder:
            for name in manifest["files"]:
                shutil.copyfile(self.bundle.path / name, folder / name)
            (folder / FILE).write_text(self.recipe.to_json(), encoding="utf-8")
            check_model(self.recipe, write_manifest(folder, manifest))
        return open_bundle(out)


def try_int8(bundle: Bundle, calibration: Path, catalog: Path, pairs: Path) -> Trial:
    """Calibrate an int8 variant of `bundle` on products of the catalogue file `calibration`, and judge it.

    A seeded sample of `SAMPLE` products with title and photo sets the ranges; recall is that of the nine tasks on
    `catalog` and `pairs`, which must be other products. Raises `CatalogError` for unusable files or shared products,
    and `BackendError` on a CPU without int8, before the calibration; `MissingExtraError` for a package that is missing.
    """
    # A CPU on which int8 cannot be judged is told here.
    OpenVinoBackend(bundle, "cpu", "int8", None, Int8Recipe(bundle.model_id, {}))
    chosen, (judged, listed) = read_products(calibration)[0], read_held_out(catalog, pairs)
    if shared := sorted(chosen.keys() & judged.keys()):
        raise CatalogError(
            f"{calibration} and {catalog} share {len(shared)} ids, such as {shared[0]!r}; "
            "expected other products to calibrate on than to judge recall on"
        )
    feeds = calibration_feeds(bundle, chosen)
    recipe = calibrate(bundle, feeds)
    made = {name: importlib.metadata.version(name) for name in ("nncf", "openvino")}
    sample = {"catalog": calibration.name, "products": len(feeds["image_encoder"]), "seed": SEED}
    facts = {**sample, "smoothing": SMOOTHING, **made}
    return judge(bundle, recipe, facts, judged, listed)


def judge(
    bundle: Bundle, recipe: Int8Recipe, calibration: Mapping[str, Any], products: Mapping[str, Product], pairs: Pairs
) -> Trial:
    """Run the nine tasks in fp32 and with `recipe` in int8; raises as `evaluate_products` does."""
    backends = (
        create_backend(bundle, "openvino", "cpu", "fp32"),
        OpenVinoBackend(bundle, "cpu", "int8", None, recipe),
    )
    fp32, int8 = evaluate_models([Encoder(bundle, each) for each in backends], products, pairs)
    return Trial(bundle, recipe, calibration, fp32, int8)


def calibration_feeds(bundle: Bundle, products: Mapping[str, Product]) -> dict[str, list[Feed]]:
    """Inputs of both encoders, one product each: the first `SAMPLE` usable ones in a seeded order.

    Raises `CatalogError` if no product has a title and a readable photo.
    """
    tokenizer = Tokenizer(bundle.tokenizer_json(), bundle.preprocessing.max_tokens)
    complete = [each for each in products.values() if each.title is not None and each.image is not None]
    feeds: dict[str, list[Feed]] = {"image_encoder": [], "text_encoder": []}
    for place in np.random.default_rng(SEED).permutation(len(complete)):
        product = complete[place]
        try:
            pixels = pixel_values(product.image, bundle.preprocessing)
        except ImageError:
            continue  # the sample is of readable products
        ids, mask = tokenizer.pad(tokenizer.encode([str(product.title)]))
        feeds["image_encoder"].append({"pixel_values": pixels[None]})
        feeds["text_encoder"].append({"input_ids": ids, "attention_mask": mask})
        if len(feeds["image_encoder"]) == SAMPLE:
            break
    if not feeds["image_encoder"]:
        raise CatalogError("no product to calibrate on: none has a title and a readable photo")
    return feeds


def calibrate(bundle: Bundle, feeds: Mapping[str, Sequence[Feed]]) -> Int8Recipe:
    """The recipe that NNCF finds for each graph of `feeds` on its inputs; the same feeds give the same recipe.

    Matrix products with constant weights become int8. What multiplies activations (attention) and the patch
    convolution stay as they are: int8 made them no faster, and less exact.
    """
    core = make_core()
    graphs = {}
    for graph, inputs in feeds.items():
        graphs[graph] = quantized_inputs(_nncf_quantized(core.read_model(bundle.graph_path(graph)), inputs))
    return Int8Recipe(bundle.model_id, graphs)


def _nncf_quantized(model: Any, inputs: Sequence[Feed]) -> Any:
    """The OpenVINO model with NNCF's FakeQuantize operations in it."""
    nncf = _import_nncf()
    advanced = nncf.quantization.advanced_parameters
    ignored = [
        node.get_friendly_name()
        for node in model.get_ops()
        if node.get_type_name() == "Convolution"
        or (node.get_type_name() == "MatMul" and constant_weights(node) is None)
    ]
    with _quiet():
        return nncf.quantize(
            model,
            nncf.Dataset(inputs),
            subset_size=len(inputs),
            model_type=nncf.ModelType.TRANSFORMER,
            ignored_scope=nncf.IgnoredScope(names=ignored),
            # Corrected biases would be weights of their own; they brought nothing (docs/export.md).
            advanced_parameters=advanced.AdvancedQuantizationParameters(
                disable_bias_correction=True,
                overflow_fix=advanced.OverflowFix.DISABLE,
                activations_range_estimator_params=nncf.quantization.range_estimator.RangeEstimatorParametersSet.MINMAX,
                smooth_quant_alphas=advanced.AdvancedSmoothQuantParameters(matmul=SMOOTHING),
            ),
        )


def quantized_inputs(model: Any) -> tuple[QuantizedInput, ...]:
    """What a model quantised by NNCF does to the inputs of its matrix products with constant weights."""
    found = []
    for node in model.get_ordered_ops():
        if node.get_type_name() != "FakeQuantize" or node.input_value(0).get_node().get_type_name() == "Constant":
            continue
        takers = [each.get_node() for each in node.output(0).get_target_inputs() if each.get_index() == 0]
        matmuls = sorted(each.get_friendly_name() for each in takers if each.get_type_name() == "MatMul")
        if not matmuls:
            continue
        low, high = (float(node.input_value(port).get_node().data) for port in (1, 2))
        source = node.input_value(0).get_node()
        if _SMOOTHED in source.get_friendly_name():
            factors = source.input_value(1).get_node().data.ravel()
        else:
            factors = np.ones(node.get_output_partial_shape(0)[-1].get_length())
        # Four digits: what the scale takes from the weights it gives to the input, so any number near it serves.
        scale = tuple(float(f"{factor:.4g}") for factor in factors)
        found.append(QuantizedInput(tuple(matmuls), low, high, scale))
    return tuple(found)


def _import_nncf() -> Any:
    """The `nncf` module, imported without its telemetry."""
    import_openvino()
    with without_telemetry():
        import nncf
    nncf.set_log_level(logging.ERROR)
    return nncf


@contextmanager
def _quiet() -> Iterator[None]:
    """Warnings of NNCF's own are dropped; its progress bars go to stderr if that is a terminal, or nowhere."""
    bars = sys.stderr if sys.stderr.isatty() else io.StringIO()
    with warnings.catch_warnings(), redirect_stdout(bars):
        warnings.simplefilter("ignore")
        yield
