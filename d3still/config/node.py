"""The config object: yacs's node, with files that build on files, published keys and helpful errors."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from d3still.config.coerce import coerce
from d3still.config.defaults import default_tree
from d3still.config.imports import IMPORTS_KEY, import_user_code
from d3still.config.published import translate, translate_overrides
from d3still.config.reader import COMMAND_LINE, Setting, read_layers
from d3still.config.sections import added_sections
from d3still.errors import UserError

NEAR = 0.75  # difflib's ratio from which a known key counts as a misspelt one


class Config(CfgNode):
    """A tree of sections and keys, read as ``cfg.SOLVER.MAX_EPOCHS``.

    Attributes:
        config_file: the file that was merged last, or None; not a key.
    """

    CONFIG_FILE = "config_file"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.__dict__[Config.CONFIG_FILE] = None

    def merge_from_file(self, cfg_filename: str | Path) -> None:
        """Merge a YAML file and the files it names in ``_BASE_``; published files are translated.

        ``EXPERIMENT.IMPORTS`` of each file is imported before that file's keys are read.

        Raises:
            UserError: for anything wrong with the files; this config is then unchanged.
        """
        values: dict[str, Any] = {}
        for layer in read_layers(cfg_filename):
            settings = translate(layer)
            values |= self._understood(settings, layer.file.parent, values)
        self._assign(values)
        self.__dict__[Config.CONFIG_FILE] = Path(cfg_filename).expanduser().resolve()

    def merge_from_list(self, cfg_list: Iterable[Any]) -> None:
        """Merge ``[KEY, VALUE, …]`` as given on a command line; published keys are understood.

        Raises:
            UserError: for an unknown key, a value that does not fit, or a key without value.
        """
        items = list(cfg_list)
        if len(items) % 2:
            raise UserError(
                f"{COMMAND_LINE}: '{items[-1]}' is left over; settings are pairs, e.g. SOLVER.MAX_EPOCHS 20"
            )
        pairs = zip(map(str, items[::2]), items[1::2], strict=True)
        settings = translate_overrides({key: Setting(value, COMMAND_LINE) for key, value in pairs})
        self._assign(self._understood(settings, Path.cwd(), {}))

    def merge_from_other_cfg(self, cfg_other: Mapping[str, Any]) -> None:
        """Merge a tree of sections and keys, with the same checks as a file's.

        Raises:
            UserError: for an unknown key or a value that does not fit.
        """
        settings = {key: Setting(value, "config") for key, value in _leaves(cfg_other)}
        self._assign(self._understood(settings, Path.cwd(), {}))

    def flat(self) -> dict[str, Any]:
        """All values by their full key, ``{"SOLVER.MAX_EPOCHS": 120, …}``."""
        return dict(_leaves(self))

    def _understood(self, settings: dict[str, Setting], folder: Path, before: dict[str, Any]) -> dict[str, Any]:
        """Values of the keys' own types; imports user code first and takes in the sections it adds."""
        values: dict[str, Any] = {}
        if IMPORTS_KEY in settings:
            setting = settings[IMPORTS_KEY]
            entries = coerce(IMPORTS_KEY, setting, [])
            found = [import_user_code(entry, folder, setting.where) for entry in entries]
            earlier = before.get(IMPORTS_KEY, self.EXPERIMENT.IMPORTS)
            values[IMPORTS_KEY] = list(dict.fromkeys([*earlier, *found]))
        defaults = get_cfg().flat()
        for key, setting in settings.items():
            if key not in defaults:
                raise UserError(f"{setting.where}: {_unknown(key, defaults)}")
            if key != IMPORTS_KEY:
                values[key] = coerce(key, setting, defaults[key])
        return values

    def _assign(self, values: dict[str, Any]) -> None:
        if self.is_frozen():
            raise AttributeError("this config is frozen; settings belong in its file or on the command line")
        for name, section in added_sections():
            if name not in self:
                self[name] = Config(section)
        for key, value in values.items():
            *path, leaf = key.split(".")
            node = self
            for part in path:
                node = node[part]
            node[leaf] = value


def get_cfg() -> Config:
    """A fresh, unfrozen config with every default, sections that distillers added included."""
    cfg = Config(default_tree())
    for name, section in added_sections():
        cfg[name] = Config(section)
    return cfg


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _unknown(key: str, known: Mapping[str, Any]) -> str:
    """What is wrong with an unknown key, and the nearest known one."""
    if any(other.startswith(f"{key}.") for other in known):
        return f"{key} is a section, not a key; write its keys below it, indented"
    for other in known:
        if key.startswith(f"{other}."):
            return f"{other} is a key, not a section; write {other.rpartition('.')[2]}: {known[other]!r}"
    section, _, leaf = key.rpartition(".")
    upper = {other.upper(): other for other in known}
    near = [upper[name] for name in difflib.get_close_matches(key.upper(), upper, n=1, cutoff=NEAR)]
    near += [other for other in known if other.rpartition(".")[2] == leaf]
    if near:
        return f"unknown key {key}; did you mean {near[0]}?"
    inside = [other.rpartition(".")[2] for other in known if other.startswith(f"{section}.")]
    if inside:
        return f"unknown key {key}; the keys of {section} are {', '.join(inside)}"
    sections = dict.fromkeys(other.partition(".")[0] for other in known)
    return f"unknown key {key}; the sections are {', '.join(sections)}"
