"""Keep pairwise work out of half precision."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

F = TypeVar("F", bound=Callable[..., Tensor])


@contextmanager
def without_autocast() -> Iterator[None]:
    """No autocast within, whichever device it was meant for."""
    with ExitStack() as stack:
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


def full_precision(loss: F) -> F:
    """Decorator: run a loss outside autocast, on float32 (or float64) inputs, however they are given.

    Similarities, softmaxes and distances lose their small differences in bfloat16 and overflow in
    float16, so every loss between images is computed at least in float32, whatever the networks run in.
    """

    @functools.wraps(loss)
    def run(*args: Any, **kwargs: Any) -> Tensor:
        with without_autocast():
            return loss(*_widen(args), **_widen(kwargs))

    return run  # type: ignore[return-value]


def _widen(value: Any) -> Any:
    """``value`` with its half-precision tensors as float32, also within tuples, lists and mappings."""
    if isinstance(value, Tensor):
        return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(_widen, value))
    if isinstance(value, tuple | list):
        return type(value)(map(_widen, value))
    if isinstance(value, Mapping):
        return {key: _widen(item) for key, item in value.items()}
    return value
