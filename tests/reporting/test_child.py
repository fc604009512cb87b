"""A run in a process of its own: its errors come back in one line, its death harms nobody, signals reach it."""

import signal
import subprocess
import sys
import time

import pytest

from d3still.errors import UserError
from d3still.reporting.child import run_in_child
from tests.reporting import children
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


def test_sigterm_lets_the_child_save_first(tmp_path):
    command = [sys.executable, "-m", "tests.reporting.children", str(tmp_path)]
    with subprocess.Popen(command, cwd=REPOSITORY) as parent:
        deadline = time.monotonic() + 60
        while not (tmp_path / "there").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        parent.send_signal(signal.SIGTERM)
        assert parent.wait(30) == 128 + signal.SIGTERM
    assert (tmp_path / "saved").exists()
