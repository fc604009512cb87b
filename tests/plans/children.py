"""What test_child.py calls in other processes."""

import os
import signal
import sys
import time
from pathlib import Path

from d3still.errors import UserError
from d3still.plans.child import run_in_child


def write(path, text):
    Path(path).write_text(text)


def refuse():
    raise UserError("no weights at nowhere.pth; train it first")


def break_down():
    raise ZeroDivisionError("by nought\nand more")


def die(status):
    os._exit(status)


def kill_itself():
    os.kill(os.getpid(), signal.SIGKILL)


def wait_for_sigterm(folder):
    """Says that it is there; on SIGTERM it saves and exits as a run does."""

    def save(number, frame):
        Path(folder, "saved").touch()
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, save)
    Path(folder, "there").touch()
    time.sleep(60)


if __name__ == "__main__":
    run_in_child(wait_for_sigterm, sys.argv[1])
