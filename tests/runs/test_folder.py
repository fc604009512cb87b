"""A run's folder: what may be gone on with, what a new run replaces and when, and who may be in it."""

import json
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from d3still.config import dump_config, load_config
from d3still.errors import UserError
from d3still.runs.checkpoint import load_checkpoint, save_checkpoint
from d3still.runs.folder import RunFolder
from d3still.runs.former import FormerRun
from d3still.runs.history import append_record, read_history
from tests.tiny import REPOSITORY


@pytest.fixture(scope="module")
def cfg():
    return load_config(REPOSITORY / "configs/emoji/vanilla.yaml")


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


def state(cfg, epoch, finished=False):
    progress = {"epoch": epoch, "finished": finished}
    parts = {"optimizer": {}, "optimizer_report": {}, "scaler": {}}
    return {"config": dump_config(cfg), "progress": progress, **parts, "which": f"epoch {epoch}"}


def train(folder, cfg, resume="auto", epochs=3, fail_in=None):
    """What the engine does with a folder."""
    with folder.alone():
        saved = folder.resumable(cfg, resume)
        if folder.is_finished(saved, resume):
            return "finished"
        folder.begin(cfg, saved, resume, {})
        for epoch in range(0 if saved is None else saved["progress"]["epoch"], epochs):
            if epoch == fail_in:
                raise UserError("image 7 cannot be read")
            save_checkpoint(folder.best, {"which": f"epoch {epoch}", "epoch": epoch})
            append_record(folder.history, {"epoch": epoch})
            last = epoch + 1 == epochs
            folder.save(state(cfg, epoch + 1, finished=last), None if last else epoch + 1)
        folder.metrics.write_text(json.dumps({"epochs": epochs}))
        folder.per_query.touch()
        folder.tensorboard.mkdir(exist_ok=True)
        return "trained"


@pytest.fixture
def finished(tmp_path, cfg):
    folder = RunFolder(tmp_path / "run")
    assert train(folder, cfg) == "trained"
    return folder


def content(folder):
    return {path.name: path.is_file() and path.read_bytes() for path in folder.path.rglob("*")}


def test_a_finished_run_is_left_alone(finished, cfg):
    before = content(finished)
    assert set(before) == {
        *("last.pth", "best.pth", "epoch_1.pth", "epoch_2.pth", "metrics.jsonl", "config.yaml"),
        *("metrics.json", "per_query.npz", "tensorboard"),
    }
    assert train(finished, cfg) == "finished" and content(finished) == before


def test_what_killed_writers_left_goes_and_other_dot_files_stay(finished, cfg):
    before = content(finished)
    for name in ("metrics.json", "ranked_lists.npz", "last.pth"):
        (finished.path / f".{name}.0a1b2c3d.d3still-part").touch()
    (finished.path / ".notes").touch()
    assert train(finished, cfg) == "finished" and content(finished) == before | {".notes": b""}


@pytest.mark.parametrize("resume", ["never", "epoch_1.pth"])
def test_a_run_that_does_not_start_leaves_the_former_one(finished, cfg, resume):
    """An unreadable first image once emptied a finished run."""
    before = content(finished)
    where = resume if resume == "never" else str(finished.path / resume)
    with pytest.raises(UserError, match="image 7"):
        train(finished, cfg, where, fail_in=0 if resume == "never" else 1)
    assert content(finished) == before


def test_going_on_that_fails_at_once_changes_nothing(tmp_path, cfg):
    folder = RunFolder(tmp_path)
    for _ in range(2):
        with pytest.raises(UserError, match="image 7"):
            train(folder, cfg, fail_in=1)
        left = {**content(folder)}
        assert set(left) == {"last.pth", "best.pth", "epoch_1.pth", "metrics.jsonl", "config.yaml"}
    assert left["metrics.jsonl"] == b'{"epoch": 0}\n'


def test_a_former_run_goes_with_the_new_ones_first_checkpoint(finished, cfg):
    with pytest.raises(UserError, match="image 7"):
        train(finished, cfg, "never", fail_in=1)
    assert set(content(finished)) == {"last.pth", "best.pth", "epoch_1.pth", "metrics.jsonl", "config.yaml"}
    assert load_checkpoint(finished.last)["progress"]["epoch"] == 1


def test_going_on_from_an_earlier_epoch_drops_the_results_of_later_ones(finished, cfg):
    with pytest.raises(UserError, match="image 7"):
        train(finished, cfg, str(finished.path / "epoch_1.pth"), epochs=4, fail_in=2)
    left = set(content(finished))
    assert "metrics.json" not in left and "per_query.npz" not in left, "not this run's, which isn't finished"
    assert [record["epoch"] for record in read_history(finished.history)] == [0, 1]
    assert load_checkpoint(finished.best)["which"] == "epoch 1", "not of epoch 2, which is to come"
    assert train(finished, cfg) == "trained" and train(finished, cfg) == "finished"


def test_a_last_checkpoint_of_an_earlier_epoch_ends_the_finished_state(finished, cfg):
    """As a person does who copies epoch_1.pth over last.pth."""
    finished.last.write_bytes((finished.path / "epoch_1.pth").read_bytes())
    with pytest.raises(UserError, match="image 7"):
        train(finished, cfg, fail_in=1)
    assert not finished.metrics.exists()


def test_a_copy_goes_on_with_the_history_of_the_run_it_is_from(finished, cfg, tmp_path):
    copy = RunFolder(tmp_path / "copy")
    train(copy, cfg, str(finished.path / "epoch_2.pth"))
    assert [record["epoch"] for record in read_history(copy.history)] == [0, 1, 2]


def test_a_checkpoint_of_weights_alone_is_refused(finished, cfg):
    with pytest.raises(UserError, match=r"best\.pth holds weights alone, without .*; go on with --resume .*last\.pth"):
        train(finished, cfg, str(finished.best))


def test_a_damaged_checkpoint_is_refused_and_nothing_is_lost(finished, cfg):
    finished.last.write_bytes(b"damaged")
    before = content(finished)
    with pytest.raises(UserError) as refused:
        train(finished, cfg)
    assert f"go on with --resume {finished.path / 'epoch_2.pth'}, or start afresh with --resume never" in str(
        refused.value
    )
    assert "delete" not in str(refused.value) and content(finished) == before
    finished.last.unlink()
    with pytest.raises(
        UserError, match=r"holds epoch_1\.pth, epoch_2\.pth, metrics\.json, .* but no last\.pth; go on with"
    ):
        train(finished, cfg)
    before.pop("last.pth")
    assert content(finished) == before
    assert train(finished, cfg, str(finished.path / "epoch_2.pth")) == "trained"


def test_a_first_epoch_that_was_killed_before_its_checkpoint_starts_again(tmp_path, cfg):
    folder = RunFolder(tmp_path)
    save_checkpoint(folder.best, {"epoch": 0})
    append_record(folder.history, {"epoch": 0})
    assert train(folder, cfg) == "trained"


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is always full")
def test_an_epoch_that_a_full_disk_does_not_take_stops_the_run_in_one_line():
    with pytest.raises(UserError, match=r"cannot write /dev/full: No space left.*it goes on from the last checkpoint"):
        append_record(Path("/dev/full"), {"epoch": 0})


class Steps:
    """Counts what changes a folder, and dies before a given step."""

    def __init__(self, monkeypatch, number):
        self.left = number
        for name in ("mkdir", "rename", "rmdir", "unlink", "write_text"):
            monkeypatch.setattr(Path, name, self._counted(getattr(Path, name)))
        monkeypatch.setattr("d3still.runs.former.shutil.rmtree", self._rmtree)

    def _counted(self, original):
        def method(*arguments, **options):
            if self.left == 0:
                raise Killed
            self.left -= 1
            return original(*arguments, **options)

        return method

    def _rmtree(self, path, **_):
        for child in path.iterdir():
            child.unlink()
        path.rmdir()


def replace(folder):
    """A new run of three files takes the place of another."""
    own = [folder / name for name in ("last.pth", "a", "b")]
    former = FormerRun(folder, "last.pth", ["a"])
    former.set_aside([path for path in own if path.exists()])
    (folder / "a").write_text("new")
    own[0].write_text("new")
    former.discard()
    (folder / "b").write_text("new")


def recover(folder):
    FormerRun(folder, "last.pth", ["a"]).recover()


@pytest.mark.parametrize("second", range(6))
def test_a_kill_at_any_moment_leaves_the_former_run_or_the_new_one(tmp_path, monkeypatch, second):
    """Also when the recovery is killed, at its ``second`` step."""
    ends = []
    for first in range(40):
        folder = tmp_path / str(first)
        folder.mkdir()
        for name in ("last.pth", "a", "b"):
            (folder / name).write_text("old")
        for steps, work in ((first, replace), (second, recover)):
            with monkeypatch.context() as patch, suppress(Killed):
                Steps(patch, steps)
                work(folder)
        recover(folder)
        ends.append({path.name: path.read_text() for path in folder.iterdir()})
    assert ends[0] == dict.fromkeys(("last.pth", "a", "b"), "old")
    assert ends[-1] == dict.fromkeys(("last.pth", "a", "b"), "new")
    for end in ends:
        assert end == ends[0] or (end["last.pth"] == end["a"] == "new" and end.get("b", "new") == "new")
