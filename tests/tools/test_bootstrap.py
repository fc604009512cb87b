"""What every command does around its own work."""

import logging
import subprocess
import sys

import pytest

from d3still.config import load_config
from tests.tiny import REPOSITORY


@pytest.fixture
def bootstrap(monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "tools"))
    import _bootstrap

    return _bootstrap


@pytest.mark.parametrize("rank, told", [("0", True), ("1", False)])
def test_how_a_published_config_is_read_is_told_once(bootstrap, tmp_path, monkeypatch, capsys, rank, told):
    file = tmp_path / "published.yaml"
    file.write_text("EXPERIMENT: {CUDA_AMP: True}\nDISTILLER: {TYPE: RAML}\nRAML: {LAMBDA2: 0.6778}\n")
    monkeypatch.setenv("RANK", rank)
    before = logging.getLogger("d3still").handlers[:], logging.getLogger("d3still").level
    bootstrap.run(lambda: load_config(file))
    assert ("RAML.LAMBDA2 = 0.7482" in capsys.readouterr().err) is told
    assert (logging.getLogger("d3still").handlers, logging.getLogger("d3still").level) == before


def test_a_file_that_cannot_be_made_is_one_line(bootstrap, tmp_path, capsys):
    (tmp_path / "log").touch()
    with pytest.raises(SystemExit) as ended:
        bootstrap.run(lambda: (tmp_path / "log/emoji").mkdir())
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"error: {tmp_path}/log/emoji: Not a directory\n"


def test_names_in_what_a_command_logs_command_no_terminal(bootstrap, capsys):
    bootstrap.run(lambda: logging.getLogger("d3still").warning("left out: %s", "a\x1b[2J\nb.png"))
    assert capsys.readouterr().err == "left out: a\\x1b[2J\\nb.png\n"


def test_ctrl_c_ends_a_command_quietly(bootstrap, capsys):
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        bootstrap.run(interrupted)
    assert ended.value.code == 130 and capsys.readouterr().err == ""


def test_a_closed_pipe_ends_a_command_quietly():
    """`… | head -1`: what is printed after the reader is gone has nobody to read it."""
    code = "import _bootstrap; _bootstrap.run(lambda: print('x' * 200_000))"
    command = f'{sys.executable} -c "{code}" | head -c 1; exit ${{PIPESTATUS[0]}}'
    done = subprocess.run(["bash", "-c", command], cwd=REPOSITORY / "tools", capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (141, b"x", b"")
