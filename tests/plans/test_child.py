"""A run in a process of its own: its errors come back in one line, its death harms nobody, signals reach it."""

import signal
import subprocess
import sys
import time

import pytest

from d3still.errors import UserError
from d3still.plans.child import run_in_child
from tests.plans import children
from tests.tiny import REPOSITORY


def test_it_runs(tmp_path):
    run_in_child(children.write, tmp_path / "file", "text")
    assert (tmp_path / "file").read_text() == "text"


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (children.refuse, (), "no weights at nowhere.pth; train it first"),
        (children.break_down, (), "ZeroDivisionError: by nought"),
        (children.die, (3,), "it ended with status 3"),
        (children.die, (143,), "it was stopped by SIGTERM; start the command again to go on"),
        (children.kill_itself, (), "it was stopped by SIGKILL; the machine may have run out of memory; start"),
    ],
)
def test_whatever_goes_wrong_is_one_line(function, arguments, message):
    with pytest.raises(UserError) as caught:
        run_in_child(function, *arguments)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_child_of_a_stopped_or_killed_process_saves_and_ends(tmp_path, number):
    """Else a comparison that is started again would train beside it."""
    command = [sys.executable, "-m", "tests.plans.children", str(tmp_path)]
    with subprocess.Popen(command, cwd=REPOSITORY) as parent:
        wait_for(tmp_path / "there")
        parent.send_signal(number)
        assert parent.wait(30) == (128 + number if number == signal.SIGTERM else -number)
    wait_for(tmp_path / "saved")


def wait_for(path):
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert path.exists()
