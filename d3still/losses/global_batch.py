"""One batch over all ranks: what relational losses must see when several processes train together."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Number of processes that train together; 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def global_batch(tensor: Tensor) -> Tensor:
    """Concatenate a (B, …) tensor over ranks, in rank order, with gradient: (world · B, …).

    Every rank must then compute the same loss from the result. When gradients are averaged over ranks, as
    `d3still.engine.distributed.average_gradients` and DistributedDataParallel do, the parameters receive the
    gradient of that one loss on the whole batch.
    """
    return tensor if world_size() == 1 else _Gather.apply(tensor)


def local_part(tensor: Tensor) -> Tensor:
    """The rows of a `global_batch` that this rank put in."""
    if world_size() == 1:
        return tensor
    return tensor.chunk(world_size())[dist.get_rank()]


def global_sum(tensor: Tensor) -> Tensor:
    """Sum of a tensor over ranks, without gradient."""
    if world_size() > 1:
        tensor = tensor.detach().clone()
        dist.all_reduce(tensor)
    return tensor


class _Gather(torch.autograd.Function):
    """All-gather whose backward needs no communication: every rank holds the gradient of the same loss."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        tensor = tensor.contiguous()
        parts = [torch.empty_like(tensor) for _ in range(world_size())]
        dist.all_gather(parts, tensor)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # times the number of ranks, because averaging over ranks will divide by it
        return local_part(gradient) * world_size()
