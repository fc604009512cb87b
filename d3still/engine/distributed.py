"""Several processes that train one model: who is who, and the few exchanges that are not gradients."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from d3still.errors import UserError

TIMEOUT = timedelta(minutes=10)  # a rank that waits longer than this for another ends the run

LOST_PEER = ("gloo", "nccl", "connection", "peer")  # words of the errors that a vanished rank causes in others


@dataclass(frozen=True)
class Rank:
    """This process among those started by torchrun; a run without torchrun is rank 0 of 1."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @classmethod
    def from_environment(cls) -> Rank:
        """As torchrun says it to the processes that it starts."""
        variables = (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
        return cls(*(int(os.environ.get(name, default)) for name, default in variables))

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run's files."""
        return self.rank == 0


def choose_device(wanted: str, device_id: str, local_rank: int, world_size: int) -> torch.device:
    """``EXPERIMENT.DEVICE`` as a device; the CPU where there is no GPU.

    Raises:
        UserError: for a card that is not there.
    """
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    index = local_rank if world_size > 1 else int(device_id)
    if index >= torch.cuda.device_count():
        raise UserError(
            f"EXPERIMENT.DEVICE_ID asks for card {index}, but {torch.cuda.device_count()} are visible; "
            "check CUDA_VISIBLE_DEVICES and --nproc_per_node"
        )
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


@contextmanager
def process_group(wanted_device: str, device_id: str = "0") -> Iterator[tuple[Rank, torch.device]]:
    """Join the processes that torchrun started, NCCL on GPUs and gloo on CPUs, and leave them again."""
    ranks = Rank.from_environment()
    device = choose_device(wanted_device, device_id, ranks.local_rank, ranks.world_size)
    if ranks.world_size == 1:
        yield ranks, device
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        yield ranks, device
    except RuntimeError as error:
        if not any(word in str(error).lower() for word in LOST_PEER):
            raise
        raise UserError(
            f"rank {ranks.rank} lost the other ranks ({str(error).splitlines()[0]}); "
            "the rank that failed first says why, and the run can be resumed"
        ) from error
    finally:
        dist.destroy_process_group()


def wait_for_main() -> None:
    """Wait until rank 0 is here, too; it waits for nobody."""
    if dist.is_initialized():
        dist.broadcast_object_list([None], src=0)


def share_buffers(network: nn.Module) -> None:
    """Give every rank rank 0's batch-norm statistics, those that are saved; each rank gathered its own."""
    if dist.is_initialized():
        for buffer in network.buffers():
            dist.broadcast(buffer, src=0)


def synchronize_batch_norms(*networks: nn.Module) -> None:
    """Let the batch norms see the batches of all ranks (``EXPERIMENT.SYNC_BN``).

    Raises:
        UserError: on CPUs.
    """
    for network in networks:
        if any(parameter.device.type == "cpu" for parameter in network.parameters()):
            raise UserError("EXPERIMENT.SYNC_BN needs GPUs: PyTorch has no SyncBatchNorm on CPUs; set it to False")
        nn.SyncBatchNorm.convert_sync_batchnorm(network)


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Average gradients over ranks, once the backward pass is done; call on every rank.

    A parameter without gradient on some ranks counts as zero there; without one on all, it keeps none, so that
    the optimizer leaves it alone as in one process. DistributedDataParallel refuses such parameters, and sends
    while the backward pass runs: a rank whose memory ends there could not do its step again (`Trainer`).
    """
    if not dist.is_initialized():
        return
    parameters = list(parameters)
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    has_grad = grads[0].new_tensor([p.grad is not None for p in parameters])
    together = torch.cat([*(grad.flatten() for grad in grads), has_grad])
    dist.all_reduce(together)
    together /= dist.get_world_size()
    *means, has_grad = together.split([*(p.numel() for p in parameters), len(parameters)])
    for number, (parameter, mean) in enumerate(zip(parameters, means, strict=True)):
        if parameter.grad is not None:
            parameter.grad.copy_(mean.view_as(parameter))
        elif has_grad[number] > 0:
            parameter.grad = mean.view_as(parameter).clone()


def gather_rows(rows: Tensor) -> Tensor:
    """Concatenate (N_r, …) tensors of different lengths over ranks: nothing padded, nothing repeated."""
    if not dist.is_initialized():
        return rows
    lengths = [torch.zeros(1, dtype=torch.long, device=rows.device) for _ in range(dist.get_world_size())]
    dist.all_gather(lengths, torch.tensor([len(rows)], device=rows.device))
    longest = int(max(lengths))
    padded = torch.cat([rows, rows.new_zeros(longest - len(rows), *rows.shape[1:])])
    parts = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(parts, padded)
    return torch.cat([part[: int(length)] for part, length in zip(parts, lengths, strict=True)])


def gather_lists(items: list[Any]) -> list[Any]:
    """Concatenate lists over ranks."""
    if not dist.is_initialized():
        return items
    parts: list[list[Any]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(parts, items)
    return [item for part in parts for item in part]


class Agreement:
    """Lets all ranks act on flags that any of them may raise, in the same step."""

    def __init__(self) -> None:
        # on the CPU, so that asking does not wait for the GPU
        self._group = dist.new_group(backend="gloo") if dist.is_initialized() else None

    def highest(self, *values: int) -> list[int]:
        """The largest that any rank gives, for each of the values."""
        tensor = torch.tensor(values)
        if self._group is not None:
            dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self._group)
        return tensor.tolist()
