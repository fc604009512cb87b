"""EXPERIMENT.CHECKPOINT_ACTIVATIONS: activations computed again in the backward pass, from when they are needed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from d3still.distillers import Distiller
from d3still.errors import UserError
from d3still.losses.global_batch import Exchanges
from d3still.modeling.out_of_memory import is_out_of_memory, release_memory

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Recomputation:
    """Computes a step's gradients; under ``auto``, once more with recomputation where the memory ended.

    Recomputation is exact, and what the failed attempt changed is put back, so the step and all that follow give
    the same bits either way. With several ranks, one that does its step again takes what the others have sent it
    from its `Exchanges`; they switch before the next step (`Trainer`).

    Args:
        distiller: whose learner recomputes.
        setting: ``EXPERIMENT.CHECKPOINT_ACTIVATIONS``: "auto", True or False.
        explain: why nothing helps and what to do, the message of the error that then ends the run.
    """

    def __init__(
        self,
        distiller: Distiller,
        setting: str | bool = "auto",
        explain: Callable[[], str] = lambda: "the memory does not hold a training step; lower its batches or images",
    ) -> None:
        self._distiller, self.may_switch, self._explain = distiller, setting == "auto", explain
        self.on = False
        if setting is True:
            self.switch_on()

    def switch_on(self) -> None:
        """Recompute from here on."""
        self.on = True
        self._distiller.learner_network.checkpoint_activations = True

    def attempt(self, compute: Callable[[], T]) -> T:
        """``compute()``, done again where the memory ends and recomputation may begin.

        Args:
            compute: forward and backward pass of a step from their beginning, seeding included.

        Raises:
            UserError: when the memory does not hold the step even so.
        """
        # what a forward pass changes: batch statistics, in the modules that train
        modules = self._distiller.modules() if self.may_switch and not self.on else ()
        buffers = [b for m in modules if m.training for b in m.buffers(recurse=False)]
        before = [buffer.clone() for buffer in buffers]
        with Exchanges() as exchanges:
            result = _unless_memory_ends(compute)
            if result is None and self.may_switch and not self.on:
                self.switch_on()
                release_memory()
                for buffer, value in zip(buffers, before, strict=True):
                    buffer.copy_(value)
                exchanges.rewind()
                result = _unless_memory_ends(compute)
        if result is None:
            release_memory()
            raise UserError(self._explain())
        return result


def _unless_memory_ends(compute: Callable[[], T]) -> T | None:
    """None where the memory ended; the failed attempt's tensors are free once this returns."""
    try:
        return compute()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None
