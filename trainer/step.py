"""One training step: embeddings of the global batch, the six losses, and their gradient through the network.

The losses see gathered, detached embeddings, so that each one's gradient there costs almost nothing (eq. 19 needs it)
and one pass through the network follows. The same split gives exact large batches on small memory (gradient
caching): embed in pieces without a graph, take the gradient at the embeddings, then embed each piece again with one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.parallel import DistributedDataParallel

from uniecs.trainer.data import Batch
from uniecs.trainer.distributed import World
from uniecs.trainer.losses import NAMES, LossName, Representations, all_losses
from uniecs.trainer.model import UniECS

Outputs = tuple[Tensor, Tensor, Tensor]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class LossGradients:
    """The six losses, the gradient of each at v, t, f of the global batch, and its norm (eq. 19)."""

    losses: Mapping[str, Tensor]
    at_embeddings: Sequence[Sequence[Tensor]]
    magnitudes: Tensor


def loss_gradients(outputs: Sequence[Tensor], names: Sequence[LossName] = NAMES) -> LossGradients:
    """`outputs` are v, t, f of the global batch, each (2N, D), side 1 before side 2; `names` the losses."""
    leaves = [each.detach().float().requires_grad_() for each in outputs]
    one, two = (Representations(*side) for side in zip(*(leaf.chunk(2) for leaf in leaves), strict=True))
    losses = all_losses(one, two, names)
    gradients = [
        torch.autograd.grad(loss, leaves, retain_graph=True, materialize_grads=True) for loss in losses.values()
    ]
    return LossGradients(losses, gradients, torch.stack([norm(each) for each in gradients]))


class Stepper:
    """Puts the gradient of sum_i lambda_i L_i over the global batch into the parameters."""

    def __init__(
        self,
        model: UniECS,
        world: World,
        *,
        precision: str,
        grad_at: str,
        micro_products: int | None,
        losses: Sequence[LossName] = NAMES,
    ) -> None:
        """`precision` is a key of `DTYPES`; `micro_products` products are embedded at a time, None for all."""
        self.model, self.world, self.grad_at, self.micro_products = model, world, grad_at, micro_products
        self.losses = losses
        self.dtype = DTYPES[precision]
        self.scaler = GradScaler(world.device.type, enabled=precision == "fp16")
        self.wrapped: nn.Module = model
        if world.size > 1 and grad_at == "embeddings":
            self.wrapped = DistributedDataParallel(model)

    def backward(self, batch: Batch, weights: Tensor) -> tuple[Mapping[str, Tensor], Tensor]:
        """The losses of the global batch and |grad L_i|, after adding the (scaled) gradient to the parameters."""
        pieces = batch.split(self.micro_products)
        if len(pieces) > 1:
            with torch.no_grad():
                parts = [self._embed(self.model, piece) for piece in pieces]
            local = tuple(torch.cat(each) for each in zip(*parts, strict=True))
            gathered = loss_gradients([self.world.gather(each) for each in local], self.losses)
            graphs = None
        else:
            graphs = self._embed(self.wrapped if self.grad_at == "embeddings" else self.model, batch)
            gathered = loss_gradients([self.world.gather(each) for each in graphs], self.losses)
        if self.grad_at == "parameters":
            return gathered.losses, self._through_each(pieces, graphs, gathered, weights)
        total = [sum_weighted(weights, each) for each in zip(*gathered.at_embeddings, strict=True)]
        self._through(pieces, graphs, self._mine(total))
        return gathered.losses, gathered.magnitudes

    def _embed(self, network: nn.Module, piece: Batch) -> Outputs:
        with torch.autocast(self.world.device.type, self.dtype, enabled=self.dtype != torch.float32):
            outputs: Outputs = network(*piece.inputs())
        return outputs

    def _mine(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        """This rank's rows of gradients of the global batch, scaled for the loss scaler."""
        share = self.world.share(len(gradients[0]) // 2)
        rows = [torch.cat([side[share] for side in each.chunk(2)]) for each in gradients]
        return [self.scaler.scale(each) for each in rows]

    def _through(self, pieces: Sequence[Batch], graphs: Outputs | None, gradients: Sequence[Tensor]) -> None:
        """One pass from the embeddings into the parameters; DDP averages over the ranks, the loss wants their sum."""
        start = 0
        for number, piece in enumerate(pieces, 1):
            last = number == len(pieces)
            waits = isinstance(self.wrapped, DistributedDataParallel) and not last
            with self.wrapped.no_sync() if waits else nullcontext():  # type: ignore[operator]
                outputs = graphs or self._embed(self.wrapped, piece)
                rows = slice(start, start + len(piece))
                torch.autograd.backward(outputs, [each[rows] * self.world.size for each in gradients])
            start += len(piece)

    def _through_each(
        self, pieces: Sequence[Batch], graphs: Outputs | None, gathered: LossGradients, weights: Tensor
    ) -> Tensor:
        """One pass for each loss: the norms over all parameters, as the paper writes eq. 19."""
        parameters = [each for each in self.model.parameters() if each.requires_grad]
        mine = [self._mine(each) for each in gathered.at_embeddings]
        sums = [[torch.zeros_like(each) for each in parameters] for _ in mine]
        start = 0
        for piece in pieces:
            outputs = graphs or self._embed(self.model, piece)
            for into, gradients in zip(sums, mine, strict=True):
                rows = [each[start : start + len(piece)] for each in gradients]
                found = torch.autograd.grad(outputs, parameters, rows, retain_graph=True, materialize_grads=True)
                torch._foreach_add_(into, found)
            start += len(piece)
        for each in sums:
            self.world.sum_(each)
        for parameter, *parts in zip(parameters, *sums, strict=True):
            total = sum_weighted(weights, parts)
            parameter.grad = total if parameter.grad is None else parameter.grad + total
        return torch.stack([norm(each) for each in sums]) / self.scaler.get_scale()


def norm(tensors: Sequence[Tensor]) -> Tensor:
    """The L2 norm of all the tensors together."""
    return torch.stack([each.square().sum() for each in tensors]).sum().sqrt()


def sum_weighted(weights: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    """sum_i weights[i] * tensors[i]."""
    stacked = torch.stack(list(tensors))
    return torch.einsum("i,i...->...", weights.to(stacked.dtype), stacked)
