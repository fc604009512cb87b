"""Files are whole or as they were, and what is cleaned up is what a killed writer left, never anything else."""

import os
import resource
import zipfile
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from d3still.errors import UserError
from d3still.files import make_folder, remove_leftovers, write_atomically, write_text


def names(folder):
    return [path.name for path in folder.iterdir()]


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


def abandoned(path, monkeypatch):
    """What a writer of ``path`` that is killed leaves beside it."""
    before = set(path.parent.iterdir())

    def die(file):
        file.write(b"half of it")
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.unlink", lambda *_, **__: None)  # the dead clean up nothing
        with pytest.raises(Killed):
            write_atomically(path, die)
    (left,) = set(path.parent.iterdir()) - before
    return left


@pytest.mark.parametrize("name", ["env", "*", "g[1].index", "a.b?.pth"])
def test_only_own_leftovers_are_removed(tmp_path, monkeypatch, name):
    others = [".env.local", ".bash.rc", f".{name}.notes", f".{name}.abc12345", ".other.abc12345.d3still-part", name]
    for other in others:
        (tmp_path / other).write_text("the user's")
    left = abandoned(tmp_path / name, monkeypatch)
    remove_leftovers(tmp_path, name)
    assert not left.exists()
    assert {path.name for path in tmp_path.iterdir()} == set(others)


def test_a_file_that_is_being_written_stays(tmp_path):
    path = tmp_path / "a.pth"

    def write(file):
        remove_leftovers(tmp_path, path.name)
        file.write(b"whole")

    write_atomically(path, write)
    assert path.read_bytes() == b"whole"


def test_writing_again_removes_what_a_killed_writer_left(tmp_path, monkeypatch):
    left = abandoned(tmp_path / "query.onnx", monkeypatch)
    write_text(tmp_path / "query.onnx", "whole")
    assert not left.exists() and names(tmp_path) == ["query.onnx"]


def test_what_is_not_about_the_disk_passes_through(tmp_path):
    def fail(file):
        file.write(b"half of it")
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    (tmp_path / "a.pth").write_bytes(b"former")
    with pytest.raises(RuntimeError, match="illegal memory access"):
        write_atomically(tmp_path / "a.pth", fail)
    assert names(tmp_path) == ["a.pth"] and (tmp_path / "a.pth").read_bytes() == b"former"


@contextmanager
def full_disk():
    """No file of this process grows beyond 10 kB; what is more fails to be written, as on a full disk.

    No fixture: pytest writes its dot before a fixture ends, and its own output may be a file.
    """
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, former[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)


def write_zip(file):
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("weights", bytes(100_000))


@pytest.mark.parametrize(
    "write",
    [
        lambda file: torch.save({"weights": torch.zeros(100_000)}, file),
        lambda file: np.savez(file, weights=np.zeros(100_000)),
        write_zip,
        lambda file: file.write(bytes(100_000)),
    ],
)
def test_a_full_disk_is_named_whatever_the_library_makes_of_it(tmp_path, write):
    """torch.save turns the file's own error into a RuntimeError about a position."""
    (tmp_path / "a.pth").write_bytes(b"former")
    message = r"cannot write .*a\.pth: .*File too large; the former file is kept"
    with full_disk(), pytest.raises(UserError, match=message):
        write_atomically(tmp_path / "a.pth", write)
    assert names(tmp_path) == ["a.pth"] and (tmp_path / "a.pth").read_bytes() == b"former"


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "log").touch()
    with pytest.raises(UserError, match=r"cannot make the folder .*log/emoji: .*; choose another place"):
        make_folder(tmp_path / "log/emoji")
    with pytest.raises(UserError, match=r"folder .*log: a file of that name is in the way"):
        make_folder(tmp_path / "log")
    with pytest.raises(UserError, match=r"log/emoji"):
        write_text(tmp_path / "log/emoji/table.md", "")


def test_the_mode_follows_the_umask(tmp_path):
    former = os.umask(0o002)
    try:
        write_text(tmp_path / "shared", "")
    finally:
        os.umask(former)
    assert (tmp_path / "shared").stat().st_mode & 0o777 == 0o664
