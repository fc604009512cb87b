"""Files that a kill or a full disk cannot spoil."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

from d3still.errors import UserError

try:
    import fcntl
except ImportError:  # Windows deletes no file that is open
    fcntl = None  # type: ignore[assignment]

_TEMPORARY = ".d3still-part"  # how the names of unfinished files end, and of no others


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file beside ``path``, flush it to the disk, then rename it over ``path``.

    Until the rename the former file is whole; after it the new one is.

    Raises:
        UserError: when it cannot be written (disk full, no permission); the former file is still there.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.name}.", suffix=_TEMPORARY, delete=False
        ) as file:
            temporary = Path(file.name)
            _is_free(file)  # ours from now on, until it is closed
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
    r"""`write_atomically` for text; undecodable letters of file names are written as ``\udcff``."""
    write_atomically(path, lambda file: file.write(text.encode("utf-8", "backslashreplace")))


def remove_leftovers(path: Path) -> None:
    """Delete what a process that was killed while it wrote ``path`` left beside it, and nothing else.

    A file that a living process is writing stays.
    """
    own = re.compile(rf"\.{re.escape(path.name)}\.[a-z0-9_]+{re.escape(_TEMPORARY)}")
    if not path.parent.is_dir():
        return
    for leftover in path.parent.iterdir():
        if own.fullmatch(leftover.name) and leftover.is_file() and not leftover.is_symlink():
            with suppress(OSError):  # another user's, or another process was quicker
                with leftover.open("rb") as file:
                    abandoned = _is_free(file)
                if abandoned:
                    leftover.unlink()


def _is_free(file: IO[bytes]) -> bool:
    """Whether no process has this file locked; from then on this one has, until it closes the file or dies."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _flush_folder(folder: Path) -> None:
    """Make a rename last through a power cut, where the system can."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
