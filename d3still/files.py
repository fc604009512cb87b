"""Files that a kill or a full disk cannot spoil, and reading only what is a file."""

from __future__ import annotations

import errno
import io
import os
import re
import secrets
import stat
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
_KINDS = {stat.S_IFIFO: "named pipe", stat.S_IFSOCK: "socket"}


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file beside ``path``, flush it to the disk, then rename it over ``path``.

    Until the rename the former file is whole; after it the new one is. What a process that was killed
    while it wrote ``path`` left behind is removed. Folders that are missing are made.

    Args:
        path: the file; its mode follows the umask.
        write: is called with the open file. What it raises that is not about this file passes through.

    Raises:
        UserError: when it cannot be written (disk full, no permission); the former file is still there.
    """
    temporary = raw = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent, path.name)
        temporary, raw = _open_temporary(path)
        with io.BufferedWriter(raw) as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _flush_folder(path.parent)
    except Exception as error:
        # Libraries that were given the file (torch, FAISS) turn its errors into others of their own.
        problem = error if isinstance(error, OSError) else raw and raw.problem
        if not problem:
            raise
        kept = "; the former file is kept" if path.exists() else ""
        raise UserError(f"cannot write {path}: {problem}{kept}; free some space or write elsewhere") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def user_path(path: str | os.PathLike[str], what: str = "") -> Path:
    """A path as a person writes it: ``~`` and ``~name`` are home folders.

    Args:
        path: as written.
        what: what an error should name as its place, such as a key.

    Raises:
        UserError: there is no such home folder, or no file can have this name.
    """
    problem = "holds a NUL character" if "\0" in os.fspath(path) else ""
    try:
        expanded = Path(path).expanduser()
    except RuntimeError:
        problem = "begins with a user who has no home folder here"
    if problem:
        raise UserError(f"{what or 'the path'} '{os.fspath(path)}' {problem}; write the whole path")
    return expanded


def require_regular(path: str | os.PathLike[str]) -> int:
    """Whether ``path``, links followed, is a regular file; its size in bytes.

    Asked before anything that a user names is opened: reading a named pipe would wait for ever, and a device may
    have no end.

    Raises:
        OSError: it is missing, a folder, a pipe, a socket or a device, or no file can have such a name; what is
            wrong is its ``strerror``.
    """
    try:
        found = os.stat(path)  # noqa: PTH116  (a path may be text)
    except ValueError as error:  # a NUL, or a character that the file system's encoding lacks
        raise OSError(errno.EINVAL, "no file can have this name") from error
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder")
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, f"it is a {_KINDS.get(stat.S_IFMT(found.st_mode), 'device')}, not a file")
    return found.st_size


def write_text(path: Path, text: str) -> None:
    r"""`write_atomically` for text; undecodable letters of file names are written as ``\udcff``."""
    write_atomically(path, lambda file: file.write(text.encode("utf-8", "backslashreplace")))


def make_folder(path: Path) -> None:
    """Make a folder and those above it, where they are missing.

    Raises:
        UserError: when it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "a file of that name is in the way" if isinstance(error, FileExistsError) else error.strerror
        raise UserError(f"cannot make the folder {path}: {reason}; choose another place") from error


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Delete what processes that were killed while they wrote files of a folder left in it, and nothing else.

    A file that a living process is writing stays. With a name, only what was to become that file goes.
    """
    own = re.compile(rf"\.{'.+' if name is None else re.escape(name)}\.[a-z0-9_]+{re.escape(_TEMPORARY)}")
    with suppress(OSError):  # no such folder, or not ours to read: what follows says so
        found = [Path(entry.path) for entry in os.scandir(folder) if own.fullmatch(entry.name)]
        for leftover in found:
            if leftover.is_file() and not leftover.is_symlink():
                _remove_if_abandoned(leftover)


class _File(io.FileIO):
    """A file that keeps what went wrong when it was written to."""

    problem: OSError | None = None

    def write(self, data: bytes) -> int:  # type: ignore[override]
        try:
            return super().write(data)
        except OSError as error:
            self.problem = error
            raise


def _open_temporary(path: Path) -> tuple[Path, _File]:
    """A new file beside ``path``, locked for as long as it is open, so that nobody takes it for a leftover."""
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_TEMPORARY}")
        file = _File(temporary, "xb")
        if fcntl is None:
            return temporary, file
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:  # a file system without locks
            return temporary, file
        if os.fstat(file.fileno()).st_nlink:
            return temporary, file
        file.close()  # taken for a leftover before it was locked


def _remove_if_abandoned(leftover: Path) -> None:
    with suppress(OSError), leftover.open("rb") as file:  # in use, another user's, or gone already
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        leftover.unlink()


def _flush_folder(folder: Path) -> None:
    """Make a rename last through a power cut, where the system can."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
