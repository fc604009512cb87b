"""From a config file and command-line settings to the frozen config of a run, and back to text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from d3still.config.coerce import coerce, unquote
from d3still.config.imports import IMPORTS_KEY
from d3still.config.node import Config, get_cfg
from d3still.config.paths import CONFIGS, REPOSITORY, default_experiment_name
from d3still.config.reader import read_layers
from d3still.config.validate import validate


def load_config(path: str | Path, overrides: Iterable[Any] = ()) -> Config:
    """The checked, frozen config of a file with command-line settings on top.

    What is left open is filled in: ``INPUT.SIZE_TRAIN``, ``SIZE_TEST`` and ``PADDING`` become those of the
    gallery network, ``OUTPUT_DIR.EXPERIMENT_NAME`` becomes DATASET/CONFIG_STEM.

    Args:
        path: a YAML file, this package's or a published one; ``configs/…`` is found from any folder.
        overrides: ``[KEY, VALUE, …]``.

    Raises:
        UserError: for whatever is wrong, naming file, line and key.
    """
    cfg, overrides = get_cfg(), list(overrides)
    # User code named on the command line may add the sections that the file fills.
    for key, value in zip(overrides[::2], overrides[1::2], strict=False):
        if key == IMPORTS_KEY:
            cfg.merge_from_list([key, value])
    cfg.merge_from_file(installed(path))
    cfg.merge_from_list(overrides)
    _fill_in(cfg)
    validate(cfg)
    cfg.freeze()
    return cfg


def installed(path: str | Path) -> Path:
    """The path, or where it is not there and begins with ``configs``, what comes along under that name."""
    own = REPOSITORY / path
    return own if Path(path).parts[:1] == (CONFIGS,) and not Path(path).exists() and own.exists() else Path(path)


def user_code(path: str | Path) -> list[str]:
    """What loading a config file would import: ``EXPERIMENT.IMPORTS`` of it and of the files it builds on.

    Raises:
        UserError: for a file that is missing or not YAML.
    """
    named = (layer.settings.get(IMPORTS_KEY) for layer in read_layers(path))
    return [entry for setting in named if setting is not None for entry in coerce(IMPORTS_KEY, setting, [])]


def dump_config(cfg: Config) -> str:
    """The config as YAML that `load_config` reads back to the same values."""
    return yaml.safe_dump(
        plain_tree(cfg), sort_keys=False, allow_unicode=True, default_flow_style=None, width=float("inf")
    )


def _fill_in(cfg: Config) -> None:
    sizes = cfg.INPUT
    sizes.SIZE_TRAIN = list(sizes.SIZE_TRAIN or sizes.TEACHER_SIZE_TRAIN)
    sizes.SIZE_TEST = list(sizes.SIZE_TEST or sizes.TEACHER_SIZE_TEST)
    if sizes.PADDING == -1:
        sizes.PADDING = sizes.TEACHER_PADDING
    if not cfg.OUTPUT_DIR.EXPERIMENT_NAME:
        cfg.OUTPUT_DIR.EXPERIMENT_NAME = default_experiment_name(cfg, cfg.config_file)


def plain_tree(value: Any) -> Any:
    """A config, or a value of one, as its YAML holds it: in plain mappings and lists."""
    if isinstance(value, Mapping):
        return {key: plain_tree(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [plain_tree(child) for child in value]
    # A text with quotes of its own gets another pair, since reading takes one pair off.
    return f'"{value}"' if isinstance(value, str) and unquote(value) != value else value
