"""Files that a kill or a full disk cannot spoil."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

from d3still.errors import UserError


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file beside ``path``, flush it to the disk, then rename it over ``path``.

    Until the rename the former file is whole; after it the new one is.

    Raises:
        UserError: when it cannot be written (disk full, no permission); the former file is still there.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=_temporary_prefix(path), delete=False) as file:
            temporary = Path(file.name)
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
        _flush_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch and FAISS report a full disk as a RuntimeError
        kept = "; the former file is kept" if path.exists() else ""
        raise UserError(f"cannot write {path}: {error}{kept}; free some space or write elsewhere") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """`write_atomically` for text."""
    write_atomically(path, lambda file: file.write(text.encode()))


def remove_leftovers(path: Path) -> None:
    """Delete what a process that was killed while it wrote ``path`` left beside it."""
    for leftover in path.parent.glob(f"{_temporary_prefix(path)}*"):
        leftover.unlink(missing_ok=True)


def _temporary_prefix(path: Path) -> str:
    return f".{path.name}."


def _flush_folder(folder: Path) -> None:
    """Make a rename last through a power cut, where the system can."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
