"""The network of a bundle, for training to go on from: its weights, read back out of its three graphs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from uniecs.bundle import GRAPHS, Bundle, open_bundle
from uniecs.config import ModelConfig
from uniecs.errors import BundleError, MissingExtraError
from uniecs.trainer.checkpoint import Checkpoint
from uniecs.trainer.model import UniECS

Array = npt.NDArray[np.float32]
POSITIONS = "position_embedding.weight"
"""CLIP's: export folds the look-up of all of them."""
GATE, INDICATOR = "gate.linear.weight", "gate.indicator_embedding"
MODALITIES = "modality_embedding"
"""That of feature fusion: export folds it to its two rows."""
LEAST_COSINE = 1 - 1e-6
"""Of the network's embedding of a golden input with the bundle's own: what export asks of float32 engines."""


def load_bundle(folder: Path) -> Checkpoint:
    """The network of the bundle in `folder` with the weights that its graphs compute with, in evaluation mode.

    Compact weights come back as they were rounded at export. Raises `BundleError` for a bundle that is damaged, whose
    graphs `uniecs export` did not write, or whose network does not give the bundle's golden embeddings, and
    `MissingExtraError` without onnx.
    """
    bundle = open_bundle(folder)
    model = UniECS(ModelConfig.from_dict(bundle.manifest["model"])).eval()
    for name in GRAPHS:
        read_weights(Graph(bundle.graph_path(name)), getattr(model, name))
    _check_golden(model, bundle)
    return Checkpoint(
        model, bundle.tokenizer_json(), {**bundle.manifest.get("provenance", {}), "bundle": bundle.model_id}
    )


def read_weights(graph: Graph, submodule: nn.Module) -> None:
    """Fill a submodule with the weights of its graph; raises `BundleError` where it lacks one."""
    for name, parameter in submodule.named_parameters():
        if name.endswith(INDICATOR):
            continue
        weight = _weight(graph, name, submodule)
        if weight is None or weight.shape != parameter.shape:
            raise BundleError(f"{graph.path} has no weight {name} as `uniecs export` writes it")
        parameter.data.copy_(torch.tensor(weight))


class Graph:
    """The constants of an ONNX graph, and which node takes which."""

    def __init__(self, path: Path) -> None:
        try:
            import onnx
        except ModuleNotFoundError as error:
            raise MissingExtraError("training from a bundle needs onnx: pip install 'uniecs[export]'") from error
        graph = onnx.load(path).graph
        self.path = path
        self.stored: dict[str, npt.NDArray[Any]] = {
            each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer
        }
        self.makers: dict[str, Any] = {output: node for node in graph.node for output in node.output}
        self.takers: dict[str, list[Any]] = {}
        for node in graph.node:
            for name in node.input:
                self.takers.setdefault(name, []).append(node)

    def constant(self, name: str) -> Array | None:
        """The float32 constant `name`, however compactly it is stored (export/weights.py); None if there is none."""
        for stored in (name, f"{name}.float16"):
            if stored in self.stored:
                return np.asarray(self.stored[stored], np.float32)
        if f"{name}.int8" in self.stored:
            return np.asarray(self.stored[f"{name}.int8"] * self.stored[f"{name}.scale"], np.float32)
        return None

    def product(self, bias: str) -> Array | None:
        """The matrix (in, out) of the MatMul to whose result the constant `bias` is added; None if there is none."""
        for node in self.takers.get(bias, []):
            for name in node.input if node.op_type == "Add" else ():
                if name in self.makers and self.makers[name].op_type == "MatMul":
                    return self.constant(self.makers[name].input[1])
        return None

    def row_table(self, shape: torch.Size) -> Array | None:
        """The only constant of shape (1, *shape), as a table of that shape; None if there is none, or several."""
        plain = {name.removesuffix(".float16") for name, each in self.stored.items() if each.shape == (1, *shape)}
        weight = self.constant(plain.pop()) if len(plain) == 1 else None
        return None if weight is None else weight[0]

    def added_rows(self, shape: torch.Size) -> Array | None:
        """The vectors that feature fusion adds to each side's tokens, as a table of that shape; None without them."""
        selected = {output for output, node in self.makers.items() if node.op_type == "Where"}
        adds = (node for node in self.makers.values() if node.op_type == "Add" and node.input[0] in selected)
        rows = [row for node in adds if (row := self.constant(node.input[1])) is not None and row.shape == shape[1:]]
        return np.stack(rows) if len(rows) == shape[0] else None

    def present(self, bias: str) -> Array | None:
        """The constant (D,) that the gate with the constant `bias` adds where its modality is present (eq. 3)."""
        for tokens in self.takers.get(bias, []):
            for node in self.takers.get(tokens.output[0], []):
                for name in node.input:
                    if name in self.makers and self.makers[name].op_type == "Mul":
                        return self.constant(self.makers[name].input[1])
        return None


def _weight(graph: Graph, name: str, submodule: nn.Module) -> Array | None:
    """The parameter `name` of a submodule as its graph holds it: by its name, or as the matrix beside its bias."""
    weight = graph.constant(name)
    if weight is None and name == MODALITIES:
        return graph.added_rows(submodule.get_parameter(name).shape)
    if weight is not None or not name.endswith(".weight"):
        return weight
    if name.endswith(POSITIONS):
        return graph.row_table(submodule.get_parameter(name).shape)
    bias = f"{name.removesuffix('weight')}bias"
    matrix = graph.product(bias)
    if matrix is None or not name.endswith(GATE):
        return None if matrix is None else np.ascontiguousarray(matrix.T)
    folded = graph.present(bias)
    if folded is None:
        return None
    # Export folds W3 e to one vector: any W3 with that product, e being what it is, computes the same.
    e = submodule.get_parameter(name.removesuffix(GATE) + INDICATOR).detach().numpy()
    return np.concatenate((matrix.T, np.outer(folded, e / (e @ e))), axis=1)


def _check_golden(model: UniECS, bundle: Bundle) -> None:
    golden: Mapping[str, torch.Tensor] = {name: torch.from_numpy(each) for name, each in bundle.golden().items()}
    with torch.inference_mode():
        images = model.image_encoder(golden["pixel_values"])
        texts = model.text_encoder(golden["input_ids"], golden["attention_mask"])
        embedding = model.fusion(images, texts, golden["attention_mask"], golden["modality_indicator"])
    least = float((embedding * golden["embedding"]).sum(1).min())
    if not least >= LEAST_COSINE:
        raise BundleError(f"the network of {bundle.path} does not give its golden embeddings: cosine {least:.6f}")
