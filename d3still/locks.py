"""One process at a time in a folder."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from d3still.errors import UserError
from d3still.files import make_folder

LOCK, OWNER = ".lock", ".lock-owner"  # the lock itself; who has it
WAIT_SECONDS = 5.0  # for a process that is just about to end
_TRIES = 100  # a folder may be removed by the process before between its being made and its being locked


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder meanwhile. The system frees the lock of a process that dies.

    Args:
        folder: is made where it is missing, and removed again if nothing was written into it.

    Raises:
        UserError: when another process is at work in it, naming its host and number, or it cannot be made.
    """
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    lock = _acquire(folder)
    try:
        _sign(folder)
        yield
    finally:
        (folder / OWNER).unlink(missing_ok=True)
        (folder / LOCK).unlink(missing_ok=True)
        lock.release()
        with suppress(OSError):  # from the innermost up to the first that holds something
            for place in missing:
                place.rmdir()


def _acquire(folder: Path) -> FileLock:
    for _ in range(_TRIES):
        make_folder(folder)
        lock = FileLock(folder / LOCK, timeout=WAIT_SECONDS)
        try:
            lock.acquire()
        except Timeout as error:
            raise UserError(f"{folder} is in use by {_owner(folder)}; wait until it is done, or stop it") from error
        except FileNotFoundError:
            continue
        except OSError as error:
            raise UserError(f"cannot lock {folder}: {error.strerror}; choose another place") from error
        return lock
    raise UserError(f"cannot lock {folder}: it is removed again and again by another process")


def _sign(folder: Path) -> None:
    """Say who has the lock; not in the lock's own file, which those who ask for it may empty."""
    owner = {"host": socket.gethostname(), "process": os.getpid()}
    with suppress(OSError):  # a full disk: the lock holds, and others are told less
        (folder / OWNER).write_text(json.dumps(owner), encoding="utf-8")


def _owner(folder: Path) -> str:
    try:
        owner = json.loads((folder / OWNER).read_text(encoding="utf-8"))
        return f"process {owner['process']} on {owner['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
