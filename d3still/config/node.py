"""The config object: yacs's node, with files that build on files, published keys and helpful errors."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from d3still.config.coerce import coerce
from d3still.config.imports import IMPORTS_KEY, import_user_code
from d3still.config.published import translate, translate_overrides
from d3still.config.reader import COMMAND_LINE, Setting, read_layers, shown
from d3still.config.sections import known_defaults, leaves, schema
from d3still.errors import UserError
from d3still.files import user_path

NEAR = 0.75  # difflib's ratio from which a known key counts as a misspelt one


class Config(CfgNode):
    """A tree of sections and keys, read as ``cfg.SOLVER.MAX_EPOCHS``.

    Attributes:
        config_file: the file that was merged last, as an absolute path, or None; not a key.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # yacs takes attributes for keys, so what is none goes past it.
        self.__dict__["config_file"] = None
        self.__dict__["_settings"] = {}  # what was merged, by full key

    def merge_from_file(self, cfg_filename: str | Path) -> None:
        """Merge a YAML file and the files it names in ``_BASE_``; published files are translated.

        ``EXPERIMENT.IMPORTS`` of each file is imported before that file's keys are read.

        Raises:
            UserError: for anything wrong with the files; this config is then unchanged.
        """
        values: dict[str, Setting] = {}
        for layer in read_layers(cfg_filename):
            settings = translate(layer, self.__dict__["_settings"] | values)
            values |= self._understood(settings, layer.file.parent, values)
        self._assign(values)
        self.__dict__["config_file"] = user_path(cfg_filename).resolve()

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
        given = {key: Setting(value, COMMAND_LINE) for key, value in pairs}
        settings = translate_overrides(given, self.__dict__["_settings"])
        self._assign(self._understood(settings, Path.cwd(), {}))

    def merge_from_other_cfg(self, cfg_other: Mapping[str, Any]) -> None:
        """Merge a tree of sections and keys, with the same checks as a file's.

        Raises:
            UserError: for an unknown key or a value that does not fit.
        """
        settings = {key: Setting(value, "config") for key, value in leaves(cfg_other)}
        self._assign(self._understood(settings, Path.cwd(), {}))

    def flat(self) -> dict[str, Any]:
        """All values by their full key, ``{"SOLVER.MAX_EPOCHS": 120, …}``."""
        return dict(leaves(self))

    def origin(self, key: str) -> str:
        """Where the value of a key was written, for an error message: a file and line, or the command line."""
        file = self.__dict__["config_file"]
        setting = self.__dict__["_settings"].get(key)
        return setting.where if setting else shown(file) if file else "config"

    def _understood(self, settings: dict[str, Setting], folder: Path, before: dict[str, Setting]) -> dict[str, Setting]:
        """The settings with values of the keys' own types; user code is imported first, for its sections."""
        understood: dict[str, Setting] = {}
        if IMPORTS_KEY in settings:
            where = settings[IMPORTS_KEY].where
            entries = coerce(IMPORTS_KEY, settings[IMPORTS_KEY], [])
            found = [import_user_code(entry, folder, where) for entry in entries]
            earlier = before[IMPORTS_KEY].value if IMPORTS_KEY in before else self.EXPERIMENT.IMPORTS
            understood[IMPORTS_KEY] = Setting(list(dict.fromkeys([*earlier, *found])), where)
        defaults = known_defaults()
        for key, setting in settings.items():
            if setting.value is None and _is_section(key, defaults):
                continue  # a section whose keys are all commented out
            if key not in defaults:
                raise UserError(f"{setting.where}: {_unknown(key, defaults)}")
            if key != IMPORTS_KEY:
                understood[key] = replace(setting, value=coerce(key, setting, defaults[key]))
        return understood

    def _assign(self, settings: dict[str, Setting]) -> None:
        if self.is_frozen():
            raise AttributeError("this config is frozen; settings belong in its file or on the command line")
        for name, section in schema().items():
            if name not in self:  # added since this config was made
                self[name] = Config(copy.deepcopy(section))
        for key, setting in settings.items():
            *path, leaf = key.split(".")
            node = self
            for part in path:
                node = node[part]
            node[leaf] = setting.value
            self.__dict__["_settings"][key] = setting


def get_cfg() -> Config:
    """A fresh, unfrozen config with every default, sections that distillers added included."""
    return Config(copy.deepcopy(schema()))


def _is_section(key: str, known: Mapping[str, Any]) -> bool:
    return any(other.startswith(f"{key}.") for other in known)


def _unknown(key: str, known: Mapping[str, Any]) -> str:
    """What is wrong with an unknown key, and the nearest known one."""
    if _is_section(key, known):
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
