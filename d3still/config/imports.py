"""EXPERIMENT.IMPORTS: a user's own modules, imported before the rest of a config is read."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import zlib
from pathlib import Path
from types import ModuleType

from d3still.errors import UserError
from d3still.files import user_path

IMPORTS_KEY = "EXPERIMENT.IMPORTS"


def import_user_code(entry: str, folder: Path, where: str) -> str:
    """Import one entry of EXPERIMENT.IMPORTS so that what it registers is known.

    Args:
        entry: a ``.py`` file or a module; a file is looked for beside the config, then in the current
            folder.
        folder: the config file's folder.
        where: what an error should name as the place of the entry.

    Returns:
        The entry as it can be found again from the current folder: a path, or a module's name unchanged.

    Raises:
        UserError: when nothing of that name is found, or importing it fails.
    """
    try:
        file = _find_file(entry, folder)
        if file is None:
            return _import_module(entry, folder)
        _import_file(file)
    except UserError as error:
        raise UserError(f"{where}: {IMPORTS_KEY} '{entry}': {error}") from error
    except Exception as error:  # whatever a user's file raises is reported against the entry
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{where}: {IMPORTS_KEY} '{entry}' cannot be imported ({reason}); correct that file") from error
    return str(file.relative_to(Path.cwd())) if file.is_relative_to(Path.cwd()) else str(file)


def _find_file(entry: str, folder: Path) -> Path | None:
    names = (entry,) if entry.endswith(".py") else (f"{entry}.py", f"{entry.replace('.', '/')}.py")
    for place in (folder, Path.cwd()):
        for name in names:
            file = place / user_path(name)
            if file.is_file():
                return file.resolve()
    if entry.endswith(".py"):
        raise UserError(f"no such file beside the config or in {Path.cwd()}; correct the path")
    return None


def _import_module(entry: str, folder: Path) -> str:
    for place in (folder.resolve(), Path.cwd()):
        _extend_path(place)
    try:
        importlib.import_module(entry)
    except ModuleNotFoundError as error:
        if error.name is None or not (entry == error.name or entry.startswith(f"{error.name}.")):
            raise
        raise UserError(f"no such module or file beside the config or in {Path.cwd()}; correct the name") from None
    return entry


def _import_file(file: Path) -> ModuleType:
    """The module of a file, run once however often it is named."""
    for module in list(sys.modules.values()):
        if getattr(module, "__file__", None) == str(file):
            return module
    # Worker processes that are spawned import by name: the folder must be on the path and the name free.
    _extend_path(file.parent)
    importlib.invalidate_caches()
    found = importlib.util.find_spec(file.stem) if file.stem.isidentifier() else None
    free = file.stem not in sys.modules and found is not None and found.origin == str(file)
    name = file.stem if free else f"user_{file.stem}_{zlib.crc32(str(file).encode()):08x}"
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _extend_path(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
