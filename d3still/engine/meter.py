"""Losses of an epoch, summed on the device and read once an interval."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from d3still.errors import UserError


class Meter:
    """Running sums of named values; adding does not wait for the GPU, reading does.

    It also remembers the first step whose loss was not finite, with that step's values.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.steps = 0
        self._sums: Tensor | None = None
        self._bad: Tensor | None = None  # the first bad step's values, and its number; −1 while there is none

    def add(self, values: dict[str, Tensor]) -> None:
        """Add one step's values, scalars on one device, always the same names."""
        stacked = torch.stack([value.detach().double() for value in values.values()])
        if self._sums is None:
            self.names = list(values)
            self._sums = torch.zeros_like(stacked)
        if self._bad is None:
            self._bad = stacked.new_full((len(stacked) + 1,), -1)
        is_new = ~torch.isfinite(stacked).all() & (self._bad[-1] < 0)
        self._bad = torch.where(is_new, torch.cat([stacked, stacked.new_full((1,), self.steps)]), self._bad)
        self._sums += stacked
        self.steps += 1

    def means(self) -> dict[str, float]:
        """Mean of each value over the steps so far."""
        if self._sums is None or not self.steps:
            return {}
        return dict(zip(self.names, (self._sums / self.steps).tolist(), strict=True))

    def check_finite(self, epoch: int, last_good: str) -> None:
        """Stop a run whose loss has left the numbers.

        Args:
            epoch: for the message.
            last_good: what to go on from, for the message.

        Raises:
            UserError: naming the step, the loss terms and the last good checkpoint.
        """
        *values, step = [-1] if self._bad is None else self._bad.tolist()
        if step < 0:
            return
        terms = ", ".join(f"{n}={v:.4g}" for n, v in zip(self.names, values, strict=True))
        raise UserError(
            f"the loss is not finite in epoch {epoch}, step {int(step)} ({terms}); {last_good}; "
            "lower SOLVER.BASE_LR or set EXPERIMENT.PRECISION: float32"
        )

    def state_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint within an epoch."""
        return {"names": self.names, "steps": self.steps, "sums": None if self._sums is None else self._sums.tolist()}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Go on from `state_dict`."""
        self.names, self.steps = list(state["names"]), state["steps"]
        if state["sums"] is not None:
            self._sums = torch.tensor(state["sums"], dtype=torch.float64, device=device)
