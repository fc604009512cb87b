"""How networks run where a number is reported from them: eval mode, no gradient, float32 that is float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from d3still.losses.full_precision import without_autocast


@contextmanager
def exact_inference(*networks: nn.Module) -> Iterator[None]:
    """Run ``networks`` in eval mode, without gradient, outside autocast and without TF32; then all is as before.

    Scores and RAHO's tiers then depend on the weights alone, not on what a training runs in. TF32, which
    PyTorch allows to convolutions by itself, keeps 10 bits of float32's 23.
    """
    modes = [(module, module.training) for network in networks for module in network.modules()]
    with torch.no_grad(), without_autocast(), _without_tf32():
        try:
            for network in networks:
                network.eval()
            yield
        finally:
            for module, mode in modes:  # one by one: a part that was frozen in eval mode stays so
                module.training = mode


@contextmanager
def _without_tf32() -> Iterator[None]:
    """Switch TF32 off by PyTorch's former settings, or, where the user took those of 2.9 and later, by these.

    After the later settings the former raise, and each leaves parts of the other as they were: both are put back.
    """
    backends = torch.backends
    parts: list[Any] = []
    if hasattr(backends, "fp32_precision"):
        parts = [backends, backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn, backends.mkldnn.matmul]
    chosen = [part.fp32_precision for part in parts]
    try:
        former = torch.get_float32_matmul_precision(), backends.cudnn.allow_tf32
        _set_former("highest", False)
    except RuntimeError:
        former = None
        for part in parts:
            part.fp32_precision = "ieee"
    try:
        yield
    finally:
        if former is not None:
            _set_former(*former)
        for part, value in zip(parts, chosen, strict=True):
            part.fp32_precision = value


def _set_former(matmul: str, convolution: bool) -> None:
    torch.set_float32_matmul_precision(matmul)
    torch.backends.cudnn.allow_tf32 = convolution
