"""Run by torchrun in tests/test_distributed.py: `step` saves one step's results of each file; `train` is a whole run.

torchrun --nproc-per-node 2 distributed_step.py step .OUT CONFIG.toml ...   (each CONFIG.OUT is written)
torchrun --nproc-per-node 2 distributed_step.py train CONFIG.toml [step at which rank 1 dies]
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from uniecs.trainer.distributed import World, join
from uniecs.trainer.loop import Run, train
from uniecs.trainer.settings import TrainConfig, load_train_config

WEIGHTS = torch.tensor([0.5, 2.0, 0.1, 1.5, 1.0, 0.9])


def one_step(config: TrainConfig, world: World, out: Path) -> None:
    """Losses, weights after the update, and the summed gradients of the first batch, from the leading rank."""
    run = Run(config, world, None)
    batch = next(iter(run.batches()))
    losses, magnitudes = run.stepper.backward(batch, WEIGHTS)
    gradients = {f"gradient/{name}": each.grad for name, each in run.model.named_parameters()}
    run.model.zero_grad()
    run.loss_weights = WEIGHTS
    run.train_step(batch)
    if world.leads:
        save_file(
            {
                "losses": torch.stack([each.detach() for each in losses.values()]),
                "magnitudes": magnitudes,
                "weights": run.loss_weights,
                **{name: each for name, each in gradients.items() if each is not None},
            },
            out,
        )
    world.wait()


def dying_train(config: TrainConfig, dies_at: int | None) -> None:
    """A run whose rank 1 leaves without a word at a step."""
    whole_step = Run.train_step

    def train_step(run: Run, batch: object) -> object:
        if run.world.rank == 1 and run.step == dies_at:
            os._exit(9)
        return whole_step(run, batch)  # type: ignore[arg-type]

    Run.train_step = train_step  # type: ignore[method-assign, assignment]
    train(config)


if __name__ == "__main__":
    torch.set_num_threads(1)
    command, first, *rest = sys.argv[1:]
    if command == "step":
        with join() as joined:
            for path in map(Path, rest):
                one_step(load_train_config(path), joined, path.with_suffix(first))
    else:
        dying_train(load_train_config(Path(first)), int(rest[0]) if rest else None)
