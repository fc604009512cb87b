"""Keep pairwise work out of half precision."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

F = TypeVar("F", bound=Callable[..., Tensor])


def full_precision(loss: F) -> F:
    """Decorator: run a loss outside autocast, on float32 (or float64) inputs.

    Similarities, softmaxes and distances lose their small differences in bfloat16 and overflow in
    float16, so every loss between images is computed at least in float32, whatever the networks run in.
    """

    @functools.wraps(loss)
    def run(*args: Any, **kwargs: Any) -> Tensor:
        tensors = [a for a in args if isinstance(a, Tensor)]
        device = tensors[0].device.type if tensors else "cpu"
        with torch.autocast(device, enabled=False):
            return loss(*map(_widen, args), **{key: _widen(value) for key, value in kwargs.items()})

    return run  # type: ignore[return-value]


def _widen(value: Any) -> Any:
    if isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16):
        return value.float()
    return value
