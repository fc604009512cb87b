"""Trading time for memory: activations that are computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def recomputed(function: Callable[[Tensor], Tensor], images: Tensor, *modules: nn.Module) -> Tensor:
    """``function(images)``, keeping only its input for the backward pass.

    Outputs, gradients and buffers equal those of a plain call bit for bit: random states are replayed,
    and the second run leaves the running statistics of batch norm alone.

    Args:
        function: what to run; one tensor in, one out.
        images: its input.
        modules: the modules that ``function`` runs, searched for batch norms.
    """
    norms = [part for module in modules for part in module.modules() if isinstance(part, _BatchNorm)]

    def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
        return nullcontext(), _statistics_left_alone(norms)

    return checkpoint(function, images, use_reentrant=False, context_fn=contexts)


@contextmanager
def _statistics_left_alone(norms: list[_BatchNorm]) -> Iterator[None]:
    """Batch norms in training normalise by their batch, but move no running statistic.

    The statistics stay arguments of the operation, at momentum 0, since both runs must save the same
    tensors for the backward pass.
    """
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
