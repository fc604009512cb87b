"""Files are whole or as they were, and what is cleaned up is what a killed writer left, never anything else."""

import pytest

from d3still.files import remove_leftovers, write_atomically


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
    remove_leftovers(tmp_path / name)
    assert not left.exists()
    assert {path.name for path in tmp_path.iterdir()} == set(others)


def test_a_file_that_is_being_written_stays(tmp_path):
    path = tmp_path / "a.pth"

    def write(file):
        remove_leftovers(path)
        file.write(b"whole")

    write_atomically(path, write)
    assert path.read_bytes() == b"whole"
