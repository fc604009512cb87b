"""The number of CPU threads: what is free at the start, and the same again when a run goes on."""

import os

import pytest
import torch

from d3still.engine import threads
from d3still.engine.threads import choose_threads, free_cores


@pytest.fixture(autouse=True)
def same_threads_afterwards(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def stat(*cores):
    """``/proc/stat`` of cores with (busy, idle) ticks: user, nice, system, idle, iowait, irq, softirq, steal, guest."""
    lines = [f"cpu{number} {busy} 0 0 {idle} 0 0 0 0 0 0" for number, (busy, idle) in enumerate(cores)]
    return "\n".join(["cpu  1 2 3 4 5 6 7 8 9 0", *lines, "intr 1", ""])


@pytest.mark.parametrize(
    ("spent", "free"),
    [
        ([(0, 30), (0, 30), (1, 29), (2, 28)], 4),
        ([(30, 0), (0, 30), (0, 30), (0, 30)], 3),
        ([(30, 0), (15, 15), (0, 30), (9, 21)], 2),  # 50 % idle is not free, 70 % is
        ([(30, 0)] * 4, 0),
    ],
)
def test_free_cores_are_those_that_were_idle_meanwhile(tmp_path, monkeypatch, spent, free):
    path = tmp_path / "stat"
    path.write_text(stat(*[(1000, 500)] * 4))
    monkeypatch.setattr(threads, "PROC_STAT", path)
    monkeypatch.setattr(threads, "usable_cores", lambda: 4)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    later = stat(*[(1000 + busy, 500 + idle) for busy, idle in spent])
    monkeypatch.setattr(threads.time, "sleep", lambda seconds: path.write_text(later))
    assert free_cores() == free


def test_where_the_system_does_not_tell_all_cores_count(tmp_path, monkeypatch):
    monkeypatch.setattr(threads, "PROC_STAT", tmp_path / "none")
    monkeypatch.setattr(threads, "usable_cores", lambda: 6)
    assert free_cores() == 6


@pytest.mark.parametrize(("free", "chosen"), [(2, 2), (1, 1), (0, 1), (9, 2)])
def test_a_fresh_run_takes_what_is_free_and_at_least_one(monkeypatch, caplog, free, chosen):
    torch.set_num_threads(2)
    monkeypatch.setattr(threads, "free_cores", lambda: free)
    with caplog.at_level("INFO", logger="d3still"):
        assert choose_threads(0, None) == torch.get_num_threads() == chosen
    assert f"{chosen} CPU thread" in caplog.text and f"{free} of" in caplog.text


def test_a_resumed_run_keeps_its_number_and_another_one_is_said(monkeypatch, caplog):
    monkeypatch.setattr(threads, "free_cores", lambda: 1)
    assert choose_threads(0, 3) == torch.get_num_threads() == 3
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    assert choose_threads(2, 3) == 2, "what the user sets counts"
    assert "began with 3 CPU threads" in caplog.text


def test_the_environment_counts_before_what_is_free(monkeypatch):
    torch.set_num_threads(2)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setattr(threads, "free_cores", lambda: 1)
    assert choose_threads(0, None) == 2
