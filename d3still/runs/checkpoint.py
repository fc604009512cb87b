"""What a checkpoint holds, and writing and reading it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from d3still.distillers import Distiller
from d3still.errors import UserError
from d3still.files import write_atomically
from d3still.modeling import CHECKPOINT_FORMAT
from d3still.modeling.torch_file import load_torch_file


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Save a checkpoint, all of it or nothing."""
    write_atomically(path, lambda file: torch.save({"format": CHECKPOINT_FORMAT, **state}, file))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of this package, to the CPU, without running any code in it.

    Raises:
        UserError: when it is missing, damaged (its checksums are compared), or not one.
    """
    if not path.exists():
        raise UserError(f"there is no checkpoint {path}")
    state = load_torch_file(path)
    if not isinstance(state, dict) or state.get("format") != CHECKPOINT_FORMAT:
        raise UserError(f"{path} is no checkpoint of a {CHECKPOINT_FORMAT} run")
    return state


def network_state(distiller: Distiller) -> dict[str, Any]:
    """Weights of both networks and of a baseline's extra parts, by their own names, and what it prepared."""
    return {
        "query": None if distiller.query is None else distiller.query.state_dict(),
        "gallery": distiller.gallery.state_dict(),
        "extra": distiller.extra.state_dict(),
        "prepared": dict(distiller.prepared),
    }


def load_network_state(distiller: Distiller, state: dict[str, Any]) -> None:
    """Put back what `network_state` gave."""
    if distiller.query is not None:
        distiller.query.load_state_dict(state["query"])
    distiller.gallery.load_state_dict(state["gallery"])
    distiller.extra.load_state_dict(state["extra"])
    device = next(distiller.gallery.parameters()).device
    distiller.prepared.update({name: value.to(device) for name, value in state.get("prepared", {}).items()})
