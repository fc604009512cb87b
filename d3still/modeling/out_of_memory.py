"""When the memory of a device ends: telling it from other errors, and embedding in smaller parts instead."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from d3still.errors import UserError

logger = logging.getLogger(__name__)

# RuntimeErrors that mean the same as OutOfMemoryError: of CPU allocators, and of CUDA's libraries and driver.
SAYINGS = ("can't allocate memory", "not enough memory", "out of memory", "_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that the memory of a GPU or of the machine has ended."""
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(saying in str(error) for saying in SAYINGS)


def release_memory() -> None:
    """Give back what a failed attempt left. Call outside the ``except`` block: its traceback holds the tensors."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class InParts:
    """``embed`` on whole batches, and on halves of them from where the memory ends; says so once.

    Args:
        embed: a part of a batch → its features (b, D). What it takes on the device must be gone when it returns.
        setting: the key or argument that sets the batch size, for the messages.
    """

    def __init__(self, embed: Callable[[Any], Tensor], setting: str) -> None:
        self._embed, self._setting = embed, setting
        self._at_once: int | None = None  # images in a part, once a whole batch did not fit
        self._told = False

    def __call__(self, batch: Any) -> Tensor:
        """Features (B, D) of a ``batch`` that has a length and can be sliced.

        Raises:
            UserError: when the memory does not hold a single image.
        """
        parts: list[Tensor] = []
        done = 0
        while done < len(batch):
            size = len(batch) - done if self._at_once is None else self._at_once
            part = self._attempt(batch[done : done + size])
            if part is None:
                release_memory()
                self._halve(min(size, len(batch) - done))
            else:
                parts.append(part)
                done += len(part)
                self._tell(len(batch))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _attempt(self, part: Any) -> Tensor | None:
        try:
            return self._embed(part)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return None

    def _halve(self, size: int) -> None:
        if size <= 1:
            raise UserError("the memory does not hold the network and one image; use smaller images or another device")
        self._at_once = size // 2

    def _tell(self, size: int) -> None:
        if self._at_once is not None and not self._told:
            self._told = True
            logger.warning(
                "%d images at once did not fit into the memory: %d from here on (%s)",
                size,
                self._at_once,
                self._setting,
            )
