"""Reading weight files: every published form, and our own, taken apart into networks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from d3still.errors import UserError
from d3still.files import user_path
from d3still.modeling.torch_file import load_torch_file

#: ``checkpoint["format"]`` of the files that the engine writes.
CHECKPOINT_FORMAT = "d3still"
#: Published distillers' names of the two networks.
_PREFIX_OF_PART = {"query": "student.", "gallery": "teacher."}
#: Keys under which trainers put the state dict, in the order tried.
_WRAPPERS = ("state_dict", "model", "model_state_dict")
#: Name components that DistributedDataParallel and torch.compile insert.
_INSERTED = ("module", "_orig_mod")
_SHOWN = 5


@dataclass(frozen=True)
class Weights:
    """A weight file, taken apart.

    Attributes:
        kind: what sort of file it is, in words.
        source: how to name it in a message.
        query: state dict of the query network ("student"), if the file names one.
        gallery: state dict of the gallery network ("teacher"), if the file names one.
        alone: state dict of a network that the file holds alone, without saying which.
        extra: what belongs to neither network, such as projectors.
        raw: the content of the file as it was read.
    """

    kind: str
    source: str
    query: dict[str, Tensor] | None = None
    gallery: dict[str, Tensor] | None = None
    alone: dict[str, Tensor] | None = None
    extra: dict[str, Tensor] = field(default_factory=dict)
    raw: Mapping[str, Any] = field(default_factory=dict)

    def networks(self) -> dict[str, dict[str, Tensor]]:
        """Part ("query", "gallery" or "network") → state dict, of the networks in the file."""
        parts = {"query": self.query, "gallery": self.gallery, "network": self.alone}
        return {part: state for part, state in parts.items() if state is not None}


def read_weights(source: str | os.PathLike[str] | Mapping[str, Any]) -> Weights:
    """Read a weight file, or sort a mapping already read, without running anything in it.

    Understood are our own checkpoints; a network alone; ``student.*`` and ``teacher.*`` with or without
    projectors beside them; each with ``module.`` anywhere and within ``{"state_dict": …}`` or
    ``{"model": …}``.

    Raises:
        UserError: naming the file, when it is missing, a folder, damaged, of another kind, would run
            code, or holds no weights.
    """
    if isinstance(source, Mapping):
        return _sort(source, "the given state dict")
    path = user_path(source)
    if path.suffix == ".safetensors":
        raise UserError(f"{path}: safetensors files are not read; save it with torch.save as a .pth first")
    content = load_torch_file(path)
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: holds a {type(content).__name__}, not a network's weights")
    return _sort(content, str(path))


def some(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _sort(content: Mapping[str, Any], source: str) -> Weights:
    if content.get("format") == CHECKPOINT_FORMAT:
        return _own_checkpoint(content, source)
    state = _flat_state(content, source)
    parts = {part: _under(prefix, state) for part, prefix in _PREFIX_OF_PART.items()}
    if not any(parts.values()):
        return Weights("published network", source, alone=state, raw=content)
    extra = {k: v for k, v in state.items() if not k.startswith(tuple(_PREFIX_OF_PART.values()))}
    kind = "published distiller" if all(parts.values()) else "published network of a distiller"
    return Weights(
        kind, source, query=parts["query"] or None, gallery=parts["gallery"] or None, extra=extra, raw=content
    )


def _own_checkpoint(content: Mapping[str, Any], source: str) -> Weights:
    parts = {part: _flat_state(content[part], source) for part in _PREFIX_OF_PART if content.get(part) is not None}
    if not parts:
        raise UserError(f"{source}: a d3still checkpoint that holds no network")
    return Weights("d3still checkpoint", source, **parts, extra=dict(content.get("extra") or {}), raw=content)


def _flat_state(content: Mapping[str, Any], source: str) -> dict[str, Tensor]:
    """Name → tensor, unwrapped and without what wrappers inserted into the names."""
    wrapper = next((key for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
    if wrapper is not None:
        return _flat_state(content[wrapper], source)
    others = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if len(others) == len(content):
        raise UserError(f"{source}: holds no weights (found: {some(others) or 'nothing at all'})")
    if others:
        raise UserError(f"{source}: not all of it is weights; left over: {some(others)}")
    state = {_bare(key): value.detach() for key, value in content.items()}
    if len(state) != len(content):
        raise UserError(f"{source}: holds the same weights twice, with and without 'module.' in the name")
    return state


def _bare(key: str) -> str:
    return ".".join(part for part in key.split(".") if part not in _INSERTED)


def _under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
