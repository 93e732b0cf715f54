"""Networks whose every weight is random, and their graphs as OpenVINO reads them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import onnx
import torch

from uniecs.backends.openvino import make_core
from uniecs.config import ModelConfig
from uniecs.export.graphs import export_graph
from uniecs.export.weights import round_weights, store_compactly
from uniecs.trainer.model import UniECS


def network(config: ModelConfig, part: str, seed: int) -> UniECS:
    """Random in `part`, a module of UniECS, those weights included that training finds as zeros and ones."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = UniECS(config).eval()
        with torch.no_grad():
            for weight in getattr(model, part).parameters():
                weight += torch.randn(weight.shape) * 0.1
    return model


def exported(model: UniECS, part: str, path: Path, compact: bool) -> Any:
    words = round_weights(model) if compact else None
    graph = export_graph(model, part)
    if words is not None:
        store_compactly(graph, words)
    onnx.save(graph, path)
    return make_core().read_model(path)


def exporter(network: Callable[[int], UniECS], part: str, folder: Path) -> Callable[[bool], tuple[UniECS, Any]]:
    """Of a network, in compact weights or not: it and its graph, exported once, which takes seconds."""

    @cache
    def made(compact: bool) -> tuple[UniECS, Any]:
        model = network(1)
        return model, exported(model, part, folder / f"{compact}.onnx", compact)

    return made
