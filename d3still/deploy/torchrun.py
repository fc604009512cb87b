"""The processes that torchrun started to embed one gallery together."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")

PATIENCE = timedelta(days=1)  # a rank may wait that long for the others' share of a large gallery


@dataclass(frozen=True)
class Ranks:
    """This process among others; without torchrun it is alone.

    Attributes:
        rank: its number.
        world_size: how many there are.
        device: where its network runs.
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device | None = None

    @property
    def is_main(self) -> bool:
        """Whether this process writes the index."""
        return self.rank == 0

    def share(self, items: Sequence[T], rank: int | None = None) -> Sequence[T]:
        """A rank's contiguous part of a list, this one's by default; all parts in order are the list."""
        rank = self.rank if rank is None else rank
        return items[len(items) * rank // self.world_size : len(items) * (rank + 1) // self.world_size]

    def from_main(self, make: Callable[[], T]) -> T:
        """What ``make`` gives on rank 0, where alone it is called, on every rank."""
        value = [make() if self.is_main else None]
        if self.world_size > 1:
            dist.broadcast_object_list(value, src=0)
        return value[0]

    def wait(self) -> None:
        """Until every rank has come this far."""
        if self.world_size > 1:
            dist.barrier()


@contextmanager
def torchrun_ranks() -> Iterator[Ranks]:
    """Join the processes that torchrun started, and leave them again. Each takes a GPU of its own, if there are."""
    rank, world_size, local = (
        int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
    )
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    device = torch.device("cuda", local % cards) if cards else torch.device("cpu")
    if world_size == 1:
        yield Ranks(device=device)
        return
    dist.init_process_group("gloo", timeout=PATIENCE)  # only to wait for each other: features go by files
    try:
        yield Ranks(rank, world_size, device)
    finally:
        dist.destroy_process_group()
