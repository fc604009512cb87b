"""What is logged before a run's folder is ready reaches its log file, and a full disk costs lines, not the run."""

import logging
import sys
from pathlib import Path

import pytest

from d3still.engine.events import Board, logging_to
from d3still.errors import UserError

logger = logging.getLogger("d3still.tests")


def messages(path):
    return [line.split(" ", 2)[2] for line in path.read_text().splitlines()]


def test_the_log_file_begins_with_what_came_before_it(tmp_path):
    with logging_to(None):
        logger.warning("DISTILLER.OLD is not read")
        with logging_to(None), logging_to(tmp_path / "one.txt"):
            logger.info("epoch 1")
        logger.info("between")
        with logging_to(tmp_path / "two.txt"):
            logger.info("epoch 1 of another run")
    assert messages(tmp_path / "one.txt") == ["DISTILLER.OLD is not read", "epoch 1"]
    assert messages(tmp_path / "two.txt") == ["between", "epoch 1 of another run"]


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is always full")
def test_a_full_disk_is_one_warning(capsys):
    with logging_to(None), logging_to(Path("/dev/full")):
        for epoch in range(3):
            logger.info("epoch %d", epoch)
    lines = capsys.readouterr().err.splitlines()
    assert lines.count("/dev/full cannot be written any more; training goes on without it") == 1
    assert [line for line in lines if line.startswith("epoch")] == ["epoch 0", "epoch 1", "epoch 2"]
    assert "Traceback" not in "".join(lines)


def test_a_log_file_that_cannot_be_opened_is_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot write .*log\.txt: Is a directory"):
        (tmp_path / "log.txt").mkdir()
        with logging_to(tmp_path / "log.txt"):
            pass


def test_a_run_resumed_within_the_second_keeps_its_curves(tmp_path):
    for step in range(3):
        board = Board(tmp_path)
        board.scalars({"loss": 1.0}, step)
        board.close()
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 3


def test_a_full_disk_costs_curves_and_not_the_run(tmp_path, caplog):
    """Once the writing thread had died of it, the eleventh event waited for ever."""
    resource = pytest.importorskip("resource")
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    board = Board(tmp_path)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, former[1]))
    try:
        with caplog.at_level("WARNING", logger="d3still"):
            for step in range(200):
                board.scalars({"loss": 1.0}, step)
            board.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
    assert caplog.text.count(f"curves in {tmp_path} are lost (File too large); training goes on") == 1
