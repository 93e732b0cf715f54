"""The processes of one training run: started alone, or by torchrun (one process for each device)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

# Longer than any validation or checkpoint, for which the other ranks wait.
TIMEOUT = timedelta(hours=1)


@dataclass(frozen=True)
class World:
    """This process among those of the run: its rank, their number, and its device."""

    rank: int
    size: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this rank writes the checkpoints, the scalars and the progress bar."""
        return self.rank == 0

    def gather(self, rows: Tensor) -> Tensor:
        """(2n, ...) of every rank, n rows of side 1 and n of side 2 -> (2N, ...) of the global batch, in rank order.

        Without gradient: the loss takes gathered embeddings as leaves, and each rank sends its own rows' share of
        the gradient through its network.
        """
        if self.size == 1:
            return rows.detach()
        parts = [torch.empty_like(rows) for _ in range(self.size)]
        dist.all_gather(parts, rows.detach().contiguous())
        sides = zip(*(part.chunk(2) for part in parts), strict=True)
        return torch.cat([part for side in sides for part in side])

    def share(self, pairs: int) -> slice:
        """Which of `pairs` pairs are this rank's; `pairs` is a multiple of the size."""
        each = pairs // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the ranks."""
        if self.size == 1:
            return
        flat = torch.cat([each.flatten() for each in tensors])
        dist.all_reduce(flat)
        for tensor, total in zip(tensors, torch.split(flat, [each.numel() for each in tensors]), strict=True):
            tensor.copy_(total.view_as(tensor))

    def wait(self) -> None:
        """Return when every rank is here."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def join() -> Iterator[World]:
    """The world that torchrun's environment describes, or this process alone where it did not start it.

    Each process takes its own GPU (NCCL), or the CPU (gloo) on a machine without. A rank that fails leaves at once,
    without a farewell that would wait for the others: torchrun then ends them all.
    """
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if size == 1:
        yield World(0, 1, device)
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    yield World(rank, size, device)
    dist.destroy_process_group()
