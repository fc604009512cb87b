"""A function in a process of its own: its memory goes back to the system, and its death is not the caller's."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from types import FrameType

from d3still.errors import UserError

logger = logging.getLogger(__name__)

SIGNAL_STATUS = 128  # exit status of a process that a signal made end in good order: this and its number


def run_in_child(function: Callable[..., object], *arguments: object) -> None:
    """Call a function in a fresh process and wait for it. The terminal stays its own, for progress bars.

    A SIGTERM or Ctrl-C that reaches this process is passed on, so that the child can save what it has; this
    process ends once the child has. If this process is killed, the child gets a SIGTERM.

    Args:
        function: importable by its module's name; what it returns is dropped.
        arguments: its arguments, which must pickle.

    Raises:
        UserError: whatever went wrong in the child, in one line.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_call, args=(sender, function, arguments))
    with _sigterm_raises():
        process.start()
        sender.close()
        try:
            problem = receiver.recv()
        except EOFError:  # it ended without a word
            problem = None
        except BaseException:
            process.terminate()
            raise
        finally:
            process.join()
            receiver.close()
    if problem is None and process.exitcode:
        problem = _why(process.exitcode)
    if problem:
        raise UserError(problem)


def _call(sender: Connection, function: Callable[..., object], arguments: tuple[object, ...]) -> None:
    """The child's whole life: an empty message where all went well, else what went wrong."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        function(*arguments)
    except UserError as error:
        sender.send(str(error))
    except Exception as error:
        logger.exception("unexpected error")
        sender.send(f"{type(error).__name__}: {error}".splitlines()[0])
    else:
        sender.send("")


def _end_with_parent() -> None:
    """Stop this process in good order when its parent is killed: started again, the parent starts another."""
    parent = multiprocessing.parent_process()
    if parent is not None and wait([parent.sentinel]):
        os.kill(os.getpid(), signal.SIGTERM)


def _why(status: int) -> str:
    number = -status if status < 0 else status - SIGNAL_STATUS
    if number not in {entry.value for entry in signal.Signals}:
        return f"it ended with status {status}"
    name = signal.Signals(number).name
    memory = "; the machine may have run out of memory" if name == "SIGKILL" else ""
    return f"it was stopped by {name}{memory}; start the command again to go on"


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Let SIGTERM end this process by an exception, which leaves time to end the child."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(SIGNAL_STATUS + number)

    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield
        return
    former = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)
