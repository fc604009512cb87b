"""Of two processes on one folder the second is refused, and a dead one keeps nobody out."""

import errno
import os
import signal
import socket

import pytest

from d3still.errors import UserError
from d3still.locks import locked
from tests.tiny import held_by_another


def names(folder):
    return [path.name for path in folder.iterdir()]


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr("d3still.locks.WAIT_SECONDS", 0.1)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_the_second_process_is_told_who_is_first_and_a_dead_one_does_not_count(tmp_path, quick, end):
    folder = tmp_path / "log/run"
    with held_by_another(folder) as first:
        with pytest.raises(UserError) as refused, locked(folder):
            pass
        assert str(refused.value) == (
            f"{folder} is in use by process {first.pid} on {socket.gethostname()}; wait until it is done, or stop it"
        )
        first.send_signal(end)
    with locked(folder):
        pass


def test_the_lock_leaves_nothing_behind(tmp_path):
    with locked(tmp_path / "a/b"):
        assert (tmp_path / "a/b").is_dir()
    assert names(tmp_path) == [], "nor the folders that were made for it"
    with locked(tmp_path / "a/b"):
        (tmp_path / "a/b/file").touch()
    assert names(tmp_path / "a/b") == ["file"]


def test_a_refused_process_leaves_the_first_ones_lock(tmp_path, quick):
    with locked(tmp_path):
        for _ in range(2):
            with pytest.raises(UserError, match=f"process {os.getpid()} on"), locked(tmp_path):
                pass


def test_a_full_disk_keeps_nobody_from_the_lock(tmp_path, quick, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    with locked(tmp_path), pytest.raises(UserError, match="is in use by another process"), locked(tmp_path):
        pass


def test_a_folder_that_cannot_be_locked_is_named(tmp_path):
    (tmp_path / "log").touch()
    with pytest.raises(UserError, match=r"cannot make the folder .*log/run"), locked(tmp_path / "log/run"):
        pass
