"""Which network weights are of: only to make the error better when they do not fit."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import torch
from torch import Tensor

from d3still.errors import UserError
from d3still.modeling.base import RetrievalModel
from d3still.modeling.build import build_model
from d3still.modeling.registry import NETWORKS


def recognise(state: Mapping[str, Tensor]) -> str | None:
    """The name of the network whose backbone has these keys and shapes; None if there is none.

    Args:
        state: one network's weights, in any published form.
    """
    return next((name for name in NETWORKS if _is_of(_blueprint(name), state)), None)


@cache
def _blueprint(name: str) -> RetrievalModel:
    """The network without memory for its weights."""
    with torch.device("meta"):
        return build_model(name, num_classes=1)


def _is_of(model: RetrievalModel, state: Mapping[str, Tensor]) -> bool:
    try:
        state = model.own_form(state)
    except UserError:
        return False
    foreign = model.from_imagenet(state)
    return _backbone_shapes(foreign.state if foreign else state) == _backbone_shapes(model.state_dict())


def _backbone_shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {k: v.shape for k, v in state.items() if not k.startswith("fc.") and not k.endswith("num_batches_tracked")}
