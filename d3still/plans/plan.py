"""Which runs a comparison needs: from config files and seeds to a list in which each run follows what it needs."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from d3still.config import Config, installed, load_config, run_dir, weight_path
from d3still.errors import UserError
from d3still.files import user_path
from d3still.runs.facts import (
    BASELINE,
    LONGER,
    VARIANTS,
    WEIGHT_KEYS,
    longer_settings,
    stage_of,
    variant_of,
    variant_settings,
)

logger = logging.getLogger(__name__)

# Settings that a plan sets itself, with what to use instead.
OWN_SETTINGS = {"SOLVER.SEED": "--seeds", "OUTPUT_DIR.EXPERIMENT_NAME": "OUTPUT_DIR.ROOT_PATH"}
STAGE_2_SECTIONS = ("ACD.", "RAHO.")  # a setting of these leaves the earlier stages as they are
CONFIG_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True, eq=False)
class PlannedRun:
    """A run to be trained, or to be found finished.

    Attributes:
        file: its config file.
        settings: KEY, VALUE, … on top of it.
        cfg: both together.
        needs: folders of the planned runs that it starts from.
    """

    file: Path
    settings: tuple[str, ...]
    cfg: Config
    needs: tuple[Path, ...]

    @property
    def folder(self) -> Path:
        """Where it lives."""
        return run_dir(self.cfg).resolve()

    @property
    def name(self) -> str:
        """For messages: experiment and seed."""
        return f"{self.cfg.OUTPUT_DIR.EXPERIMENT_NAME} seed {self.cfg.SOLVER.SEED}"


class Planner:
    """Collects runs with what they start from.

    Args:
        files: config files, or folders of them; those whose name begins with ``_`` are only bases of others.
        settings: KEY, VALUE, … for all runs; those of ACD and RAHO go to stage 2 alone.

    Raises:
        UserError: for a file that is no config, or a setting that the plan makes itself.
    """

    def __init__(self, files: Iterable[str | Path], settings: Sequence[str] = ()) -> None:
        self.files = list(config_files(files))
        for key in settings[::2]:
            if key in OWN_SETTINGS:
                raise UserError(f"{key} is set for each run; use {OWN_SETTINGS[key]} instead")
        self.settings = tuple(settings)
        self._runs: dict[Path, PlannedRun] = {}
        self._config = functools.cache(load_config)  # of a file and settings, frozen
        # folder of an experiment → its file
        self._given = {run_dir(self.load(file)).parent.resolve(): file for file in self.files}

    @property
    def runs(self) -> list[PlannedRun]:
        """What was added so far; each run comes after those it needs."""
        return list(self._runs.values())

    def add_all(self, seeds: Sequence[int], variants: Sequence[str], uniform_lr: float | None = None) -> None:
        """Add every file at every seed; a stage-2 file once for each variant other than the baseline.

        Raises:
            UserError: for an unknown variant or a config that cannot work.
        """
        unknown = [name for name in variants if name not in VARIANTS]
        if unknown:
            raise UserError(f"--variants {unknown[0]} is not one of {', '.join(VARIANTS)}")
        added = [name for name in VARIANTS if name in variants and name != BASELINE]
        for seed in dict.fromkeys(seeds):
            for file in self.files:
                cfg = self.load(file, seed)
                if stage_of(cfg) < 2:
                    self.add(file, seed)
                    continue
                for variant in added:
                    if variant == LONGER:
                        self._add_longer(file, cfg, seed)
                    else:
                        self.add(file, seed, variant_settings(cfg, variant, uniform_lr))

    def add(self, file: Path, seed: int, extra: dict[str, Any] | None = None) -> PlannedRun:
        """Add one run, after the runs that it starts from.

        Args:
            file: its config.
            seed: its seed.
            extra: settings of this run alone.
        """
        more = tuple(str(part) for pair in (extra or {}).items() for part in pair)
        settings = self._settings_for(file, seed) + more
        cfg = self._config(file, settings)
        folder = run_dir(cfg).resolve()
        if folder not in self._runs:
            keys = WEIGHT_KEYS[2 if stage_of(cfg) and variant_of(cfg) == LONGER else stage_of(cfg)]
            needs = tuple(self._source(file, cfg, key, seed) for key in keys)
            self._runs[folder] = PlannedRun(file, settings, cfg, tuple(need for need in needs if need is not None))
        return self._runs[folder]

    def _add_longer(self, file: Path, cfg: Config, seed: int) -> None:
        """Add the continued stage 1 of a stage-2 file; nothing where its weights are of elsewhere."""
        folder = self._source(file, cfg, "STUDENT_PRETRAIN_PATH", seed)
        if folder is not None:
            source = self._runs[folder]
            self.add(source.file, seed, longer_settings(source.cfg, cfg))

    def load(self, file: Path, seed: int | None = None, *more: str) -> Config:
        """A file's config with the settings of all, at a seed other than its own, and with further settings."""
        return self._config(file, self._settings_for(file, seed) + more)

    def _settings_for(self, file: Path, seed: int | None) -> tuple[str, ...]:
        is_stage_2 = stage_of(self._config(file, ())) == 2
        pairs = [self.settings[at : at + 2] for at in range(0, len(self.settings), 2)]
        pairs += [] if seed is None else [("SOLVER.SEED", str(seed))]
        return tuple(part for pair in pairs if is_stage_2 or not pair[0].startswith(STAGE_2_SECTIONS) for part in pair)

    def _source(self, file: Path, cfg: Config, key: str, seed: int) -> Path | None:
        """Folder of the run that a weight key names, once that run is planned; None for weights of elsewhere."""
        value = getattr(cfg.DISTILLER, key)
        if not value:
            return None
        folder = weight_path(cfg, value).parent.resolve()
        if folder in self._runs:
            return folder
        source = self._given.get(folder.parent) or self._find(file, folder, seed)
        if source is None:
            return None
        return self.add(source, seed).folder

    def _find(self, file: Path, folder: Path, seed: int) -> Path | None:
        """The config beside or above ``file`` whose run lives in ``folder``.

        A run's folder repeats its config's place, ``<dataset>/<folders>/<stem>/seedN``, so that the file is
        ``<folders>/<stem>.yaml`` below one of the folders that ``file`` is in.
        """
        experiment = folder.parent
        for count in range(1, min(len(experiment.parts), len(file.parts))):
            for place in file.parents:
                candidate = place.joinpath(*experiment.parts[-count:]).with_suffix(CONFIG_SUFFIXES[0])
                if candidate.is_file() and run_dir(self.load(candidate, seed)).resolve() == folder:
                    return candidate
        return None


def config_files(names: Iterable[str | Path]) -> Iterator[Path]:
    """Config files among files and folders, without those that only serve as bases.

    Raises:
        UserError: for a name that is neither, and when nothing is left.
    """
    found: list[Path] = []
    for name in names:
        path = installed(user_path(name))
        if path.is_dir():
            found += sorted(p for p in path.iterdir() if p.suffix in CONFIG_SUFFIXES)
        elif path.suffix in CONFIG_SUFFIXES and path.is_file():
            found.append(path)
        else:
            raise UserError(f"{path} is no config file; name YAML files such as configs/emoji/acd_rop.yaml")
    kept = [path.resolve() for path in found if not path.name.startswith("_")]
    if not kept:
        raise UserError("no config file given; name YAML files such as configs/emoji/*.yaml")
    yield from dict.fromkeys(kept)
