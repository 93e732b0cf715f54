"""The mean of several checkpoints' weights: one network of the same size that often generalises better than each.

For checkpoints of one run at a rate of learning that is not yet zero, or of a run and its continuation (stochastic
weight averaging, Izmailov et al. 2018).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from uniecs.errors import CheckpointError
from uniecs.trainer.checkpoint import load_checkpoint, save_checkpoint


def average_checkpoints(folders: Sequence[Path], out: Path) -> None:
    """Write the checkpoint `out`, whose weights are the mean of those of `folders` (checkpoints or runs).

    Its provenance is that of the last one, with `averaged`: the steps of each. Raises `CheckpointError` for fewer than
    two, one of another network or tokenizer, one that cannot be read, or an `out` that exists.
    """
    if len(folders) < 2:
        raise CheckpointError(f"{len(folders)} checkpoint given; expected at least two to average")
    if out.exists():
        raise CheckpointError(f"{out} exists; choose another folder")
    checkpoints = [load_checkpoint(each) for each in folders]
    last = checkpoints[-1]
    for folder, each in zip(folders, checkpoints, strict=True):
        if each.config != last.config or each.tokenizer_json != last.tokenizer_json:
            raise CheckpointError(f"{folder} holds another network or tokenizer than {folders[-1]}")
    weights = [each.model.state_dict() for each in checkpoints]
    # In float64: the mean of equal weights is those weights.
    means = {
        name: torch.stack([each[name].double() for each in weights]).mean(0).to(tensor.dtype)
        for name, tensor in weights[-1].items()
    }
    last.model.load_state_dict(means)
    provenance = {**last.provenance, "averaged": [each.provenance.get("steps") for each in checkpoints]}
    save_checkpoint(out, last.model, last.tokenizer_json, provenance)
