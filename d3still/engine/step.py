"""One training step: its seed, forward, loss, backward, update."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from d3still.data import BatchLoader, ImageBatch, PairBatch
from d3still.distillers import Distiller, Pair
from d3still.engine.distributed import average_gradients
from d3still.engine.precision import Precision


def compute_gradients(
    distiller: Distiller,
    precision: Precision,
    scaler: torch.amp.GradScaler,
    images: Tensor,
    labels: Tensor,
    pair: Pair | None,
) -> dict[str, Tensor]:
    """Forward and backward pass of a step; the parameters have its gradients then, this rank's.

    Args:
        images, labels, pair: as `Distiller.forward` takes them, on the device.

    Returns:
        Scalars on the device: ``loss``, its weighted terms, and ``accuracy``.
    """
    distiller.zero_grad(set_to_none=True)
    with precision.autocast():
        losses, accuracy = distiller(images, labels, pair)
        total = torch.stack([loss.reshape(()) for loss in losses.values()]).sum()
    scaler.scale(total).backward()
    values = {"loss": total, **losses, "accuracy": accuracy}
    return {name: value.detach() for name, value in values.items()}


def update(distiller: Distiller, optimizer: Optimizer, scaler: torch.amp.GradScaler) -> None:
    """Average the gradients over the ranks and take one step of the optimizer."""
    average_gradients(parameter for _, parameter in distiller.learnable_parameters())
    scaler.step(optimizer)
    scaler.update()


def seed_step(seed: int, epoch: int, step: int, rank: int) -> None:
    """Seed torch, numpy and random for one step, so that its randomness follows from where it is in the run.

    A resumed run then draws what it would have drawn, with no random state to save.
    """
    words = np.random.SeedSequence([seed % 2**64, epoch, step, rank]).generate_state(2)
    torch.manual_seed(int(words[0]) << 32 | int(words[1]))
    np.random.seed(words[0])
    random.seed(int(words[1]))


def normalized_pair(batch: PairBatch, normalize: Callable[[ImageBatch], Tensor], device: torch.device) -> Pair:
    """A loader's pair batch as the distillers take it, on ``device``."""
    batch = batch.to(device, non_blocking=True)
    return Pair(normalize(batch.low), normalize(batch.high), batch.low.labels)


def normalized_pairs(
    loader: BatchLoader, normalize: Callable[[ImageBatch], Tensor], device: torch.device, epoch: int = 0
) -> Iterator[Pair]:
    """The pair batches of an epoch, on ``device``."""
    for batch in loader.epoch(epoch):
        yield normalized_pair(batch, normalize, device)
