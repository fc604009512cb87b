"""One batch over all ranks: what relational losses must see when several processes train together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor


class Exchanges:
    """What the ranks exchange in one step, kept, so that one of them can do its step again alone.

    The second time it takes what it was given the first time; the others go on and do not notice. That is right
    where the step is the same again, bit for bit, and each exchange comes by way of this module.
    """

    _current: ClassVar[Exchanges | None] = None

    def __init__(self) -> None:
        self._results: list[Tensor] = []
        self._next = 0

    def rewind(self) -> None:
        """Begin the step again."""
        self._next = 0

    def __enter__(self) -> Exchanges:
        Exchanges._current = self
        return self

    def __exit__(self, *error: object) -> None:
        Exchanges._current = None

    @classmethod
    def result_of(cls, communicate: Callable[[], Tensor]) -> Tensor:
        """What ``communicate`` gives, or gave in the attempt before."""
        kept = cls._current
        if kept is None:
            return communicate()
        if kept._next == len(kept._results):
            kept._results.append(communicate())
        kept._next += 1
        return kept._results[kept._next - 1]


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


def first_ranks(tensor: Tensor) -> Tensor:
    """The first rank's tensor on every rank; all must give one of its shape."""
    if world_size() > 1:
        tensor = tensor.detach().contiguous()
        dist.broadcast(tensor, 0)
    return tensor


def global_sum(tensor: Tensor) -> Tensor:
    """Sum of a tensor over ranks, without gradient."""
    if world_size() > 1:
        return Exchanges.result_of(lambda: _sum_over_ranks(tensor))
    return tensor


def _sum_over_ranks(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().clone()
    dist.all_reduce(tensor)
    return tensor


def _concatenated_over_ranks(tensor: Tensor) -> Tensor:
    tensor = tensor.contiguous()
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(parts, tensor)
    return torch.cat(parts)


class _Gather(torch.autograd.Function):
    """All-gather whose backward needs no communication: every rank holds the gradient of the same loss."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        # a copy, since autograd takes what forward returns for its own
        return Exchanges.result_of(lambda: _concatenated_over_ranks(tensor)).clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # times the number of ranks, because averaging over ranks will divide by it
        return local_part(gradient) * world_size()
