"""A run that is stopped and started again ends exactly like one that never stopped."""

import json
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from d3still.config import load_config, plain_tree
from d3still.distillers import DISTILLERS
from d3still.engine.finished_run import test as evaluate_run
from d3still.engine.signals import Preempted
from d3still.engine.trainer import Trainer
from d3still.errors import UserError
from d3still.files import write_atomically
from d3still.runs.checkpoint import load_checkpoint, save_checkpoint
from d3still.runs.folder import config_differences
from tests.tiny import REPOSITORY, curves, held_by_another, overrides, stage_settings

VOLATILE = {"seconds", "images_per_second", "data_wait", "peak_memory_mib", "steps"}


def chained(stage, chain):
    """Weight paths of the stage before, in the finished chain of runs."""
    keys = stage_settings(stage, chain)
    return {key.replace(".", "__"): value for key, value in keys.items() if "PATH" in key}


def result(folder):
    """Everything that must not depend on interruptions: weights, optimizer, metrics, history."""
    state = load_checkpoint(folder / "last.pth")
    history = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    history = [{k: v for k, v in line.items() if k not in VOLATILE} for line in history]
    metrics = json.loads((folder / "metrics.json").read_text())
    tensors = {f"{part}.{k}": v for part in ("query", "gallery", "extra") for k, v in (state[part] or {}).items()}
    for index, slot in state["optimizer"]["state"].items():
        tensors |= {f"momentum.{index}": slot["momentum_buffer"]}
    return tensors, history, {k: v for k, v in metrics.items() if k not in VOLATILE}


def assert_same(one, other):
    for a, b in zip(one[0].items(), other[0].items(), strict=True):
        assert a[0] == b[0] and torch.equal(a[1], b[1]), a[0]
    assert one[1] == other[1] and one[2] == other[2]


class StopAfter:
    """Makes the trainer receive a signal after some steps, as a cluster would send it."""

    def __init__(self, monkeypatch, number, steps):
        self.left = steps
        original = Trainer._train_on

        def train_on(trainer, *batches):
            original(trainer, *batches)
            self.left -= 1
            if self.left == 0:
                trainer.stop._note(number, None)

        monkeypatch.setattr(Trainer, "_train_on", train_on)


@pytest.mark.parametrize(("stage", "pair_sampler"), [("ssp", "random"), ("acd_rop", "identity")])
def test_stopped_within_an_epoch_equals_never_stopped(chain, run_stage, tmp_path, monkeypatch, stage, pair_sampler):
    more = chained(stage, chain) | {"SOLVER__MAX_EPOCHS": 3, "EXPERIMENT__TRIPLET_METHOD": "batch_sample"}
    more["DATALOADER__PAIR_SAMPLER"] = pair_sampler
    straight = run_stage(stage, tmp_path / "straight", **more)
    with monkeypatch.context() as patch:
        StopAfter(patch, signal.SIGTERM, steps=5)
        with pytest.raises(Preempted) as stopped:
            run_stage(stage, tmp_path / "stopped", **more)
    assert stopped.value.code == 143
    assert not (tmp_path / f"stopped/VeRi776/{stage}/seed2024/metrics.json").exists()
    resumed = run_stage(stage, tmp_path / "stopped", DATALOADER__NUM_WORKERS=1, **more)  # workers may differ
    assert_same(result(straight), result(resumed))


def test_four_epochs_equal_two_and_two_and_a_second_stop_changes_nothing(chain, run_stage, tmp_path, monkeypatch):
    more = chained("rop", chain) | {"SOLVER__MAX_EPOCHS": 4}
    straight = run_stage("rop", tmp_path / "straight", **more)
    for number in (signal.SIGINT, signal.SIGTERM):
        with monkeypatch.context() as patch:
            StopAfter(patch, number, steps=4)
            with pytest.raises(Preempted) as stopped:
                run_stage("rop", tmp_path / "stopped", **more)
        assert stopped.value.code == 128 + number
    assert_same(result(straight), result(run_stage("rop", tmp_path / "stopped", **more)))


def test_the_same_seed_gives_the_same_run_with_any_number_of_workers(chain, run_stage, tmp_path):
    more = chained("rop", chain)
    alone = run_stage("rop", tmp_path / "alone", **more)
    helped = run_stage("rop", tmp_path / "helped", DATALOADER__NUM_WORKERS=2, **more)
    cached = run_stage("rop", tmp_path / "cached", DATALOADER__CACHE="ram", **more)
    assert_same(result(alone), result(helped))
    assert_same(result(alone), result(cached))
    other = run_stage("rop", tmp_path / "other", SOLVER__SEED=7, **more)
    assert not torch.equal(
        load_checkpoint(alone / "last.pth")["query"]["fc.classifier.weight"],
        load_checkpoint(other / "last.pth")["query"]["fc.classifier.weight"],
    )


def test_curves_go_on_where_they_stopped(chain, run_stage, tmp_path, monkeypatch):
    """Epochs of 4, 2 and 3 steps, stopped in the second: TensorBoard shows what it shows of a run never stopped."""
    monkeypatch.setattr(Trainer, "num_steps", lambda trainer, epoch: (4, 2, 3)[epoch])
    more = chained("rop", chain) | {"SOLVER__MAX_EPOCHS": 3, "SOLVER__LOG_PERIOD": 1}
    straight = curves(run_stage("rop", tmp_path / "straight", **more))
    with monkeypatch.context() as patch:
        StopAfter(patch, signal.SIGTERM, steps=5)
        with pytest.raises(Preempted):
            run_stage("rop", tmp_path / "stopped", **more)
    resumed = curves(run_stage("rop", tmp_path / "stopped", **more))
    assert [step for step, _ in straight["train/loss"]] == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert [epoch for epoch, _ in straight["epoch/loss"]] == [0, 1, 2]
    volatile = {f"epoch/{name}" for name in VOLATILE}
    assert resumed.keys() == straight.keys()
    assert {tag: resumed[tag] for tag in resumed.keys() - volatile} == {
        tag: straight[tag] for tag in straight.keys() - volatile
    }


def test_resume_never_starts_afresh(chain, run_stage, tmp_path):
    more = chained("rop", chain)
    first = result(run_stage("rop", tmp_path, **more))
    (tmp_path / "VeRi776/rop/seed2024/metrics.json").unlink()
    assert_same(first, result(run_stage("rop", tmp_path, resume="never", **more)))


def test_resume_from_a_path(chain, run_stage, tmp_path):
    more = chained("rop", chain) | {"SOLVER__CHECKPOINT_PERIOD": 1}
    whole = run_stage("rop", tmp_path / "whole", **more)
    assert (whole / "epoch_1.pth").exists() and not (whole / "epoch_2.pth").exists(), "the last epoch is last.pth"
    from_copy = run_stage("rop", tmp_path / "copy", resume=str(whole / "epoch_1.pth"), **more)
    assert result(whole)[2] == result(from_copy)[2]


def test_a_run_whose_start_weights_or_images_changed_goes_on_only_when_told_to(chain, run_stage, veri, tmp_path):
    """A copy of the data elsewhere is the same data; then an image and the gallery network change."""
    data, weights = shutil.copytree(veri, tmp_path / "elsewhere"), tmp_path / "gallery.pth"
    shutil.copy(chain / "VeRi776/vanilla/seed2024/last.pth", weights)
    more = {"DISTILLER__TEACHER_MODEL_PATH": weights, "SOLVER__CHECKPOINT_PERIOD": 1}
    folder = run_stage("rop", tmp_path / "log", **more)
    first, again = str(folder / "epoch_1.pth"), {**more, "DATASETS__ROOT_DIR": data}
    assert run_stage("rop", tmp_path / "log", **again) == folder
    victim = next((data / "image_query").iterdir())
    victim.write_bytes(victim.read_bytes() + b" ")
    state = load_checkpoint(weights)
    state["gallery"]["fc.classifier.weight"] += 1
    torch.save(state, weights)
    before = sorted(path.read_bytes() for path in folder.glob("*.*"))
    for resume in ("auto", first):  # it is finished; it would go on
        with pytest.raises(UserError) as refused:
            run_stage("rop", tmp_path / "log", resume=resume, **again)
        changed = "weights that DISTILLER.TEACHER_MODEL_PATH names are others; names, sizes or labels of the query"
        assert changed in str(refused.value) and "--accept-changes" in str(refused.value)
    assert sorted(path.read_bytes() for path in folder.glob("*.*")) == before
    run_stage("rop", tmp_path / "log", resume=first, accept_changes=True, **again)
    assert [line["epoch"] for line in result(folder)[1]] == [0, 1]
    run_stage("rop", tmp_path / "log", **again)  # from now on it is the run of these


def test_a_second_process_trains_nothing_and_a_test_may_look(chain, run_stage, veri, tmp_path, monkeypatch):
    """The first one has the lock of the folder; no file of it changes."""
    monkeypatch.setattr("d3still.locks.WAIT_SECONDS", 0.1)
    shutil.copytree(chain, tmp_path, dirs_exist_ok=True)
    folder = tmp_path / "VeRi776/rop/seed2024"
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    with held_by_another(folder) as first:
        for resume in ("auto", "never"):
            with pytest.raises(UserError, match=rf"is in use by process {first.pid} on .*; wait until it is done"):
                run_stage("rop", tmp_path, resume=resume)
        settings = overrides(veri, tmp_path, **stage_settings("rop", tmp_path))
        assert evaluate_run(load_config(REPOSITORY / "configs/veri/rop.yaml", settings)).summaries()["AIR"]
    assert before.items() <= {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}.items()
    run_stage("rop", tmp_path)  # the lock of a dead process does not bind


@pytest.mark.parametrize(
    ("config", "key", "value", "counts"),
    [
        ("rop", "ROP.KD_WEIGHT", 7.0, True),
        ("rop", "FITNET.KD_WEIGHT", 7.0, False),
        ("rop", "RAHO.GAMMA", 0.7, False),
        ("vanilla", "ROP.KD_WEIGHT", 7.0, False),
        ("acd_rop", "ROP.KD_WEIGHT", 7.0, True),
        ("acd_rop", "CSD.KD_WEIGHT", 7.0, False),
        ("acd_rop", "ACD.ALPHA", 7.0, True),
        ("acd_rop", "RAHO.GAMMA", 0.7, True),
        ("rop", "SOLVER.BASE_LR", 0.7, True),
    ],
)
def test_only_a_setting_that_the_run_computes_with_makes_it_another_run(config, key, value, counts):
    """Else one baseline's weight, changed in the file that all share, would lose the runs of all others."""

    def tree(*settings):
        return plain_tree(load_config(REPOSITORY / f"configs/emoji/{config}.yaml", settings))

    differing = config_differences(tree(), tree(key, str(value)))
    assert [line.split(":")[0] for line in differing] == ([key] if counts else [])


def test_a_run_that_is_older_than_a_key_did_what_its_default_says():
    now = plain_tree(load_config(REPOSITORY / "configs/emoji/aml.yaml"))
    before = now | {"DATALOADER": {key: value for key, value in now["DATALOADER"].items() if key != "PAIR_SAMPLER"}}
    assert config_differences(before, now) == []
    now["DATALOADER"]["PAIR_SAMPLER"] = "identity"
    assert config_differences(before, now) == ["DATALOADER.PAIR_SAMPLER: random → identity"]


def test_the_section_of_a_class_that_a_distiller_is_made_from_counts(monkeypatch):
    monkeypatch.setattr(DISTILLERS, "_entries", dict(DISTILLERS._entries))
    mine = DISTILLERS.register("Mine")(type("Mine", (DISTILLERS.get("ROP"),), {}))
    assert mine.section == "Mine"
    before = {"DISTILLER": {"TYPE": "Mine"}, "SOLVER": {"OPTIMIZER_BUILDER": "Uniform"}, "ROP": 1, "CSD": 1}
    assert config_differences(before, before | {"ROP": 2, "CSD": 2}) == ["ROP: 1 → 2"]


def test_a_checkpoint_that_cannot_be_written_leaves_the_former_one(tmp_path):
    path = tmp_path / "last.pth"
    save_checkpoint(path, {"value": 1})

    def fail(file):
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"cannot write .*last\.pth.*No space left.*former file is kept"):
        write_atomically(path, fail)
    assert load_checkpoint(path)["value"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["last.pth"], "no leftovers"


class Evil:
    def __reduce__(self):
        return (print, ("run",))


@pytest.mark.parametrize("content", ["truncated", "text", "code", "foreign"])
def test_a_spoilt_checkpoint_is_refused_by_name(tmp_path, content, capsys):
    path = tmp_path / "last.pth"
    if content == "code":
        torch.save({"format": "d3still", "evil": Evil()}, path)
    elif content == "foreign":
        torch.save({"weights": torch.zeros(1)}, path)
    else:
        save_checkpoint(path, {"value": torch.zeros(1000)})
        path.write_bytes(path.read_bytes()[:500] if content == "truncated" else b"not a checkpoint")
    with pytest.raises(UserError, match=r"last\.pth"):
        load_checkpoint(path)
    assert "run" not in capsys.readouterr().out


def start(stage, data, log, **more):
    command = [sys.executable, "tools/train_net.py", "--config-file", f"configs/veri/{stage}.yaml"]
    return subprocess.Popen(
        [*command, *overrides(data, log, **more)], cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def kill_at_random_moments(stage, chain, veri, log, kills, rng):
    """Kill a run -9 again and again at random moments, then let it finish; how often it was still running."""
    more = chained(stage, chain) | {"SOLVER__MAX_EPOCHS": 4, "SOLVER__CHECKPOINT_STEPS": 1}
    folder, caught = log / f"VeRi776/{stage}/seed2024", 0
    for _ in range(kills):
        process = start(stage, veri, log, **more)
        deadline = time.monotonic() + 120
        while not folder.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 2.5))
        caught += process.poll() is None
        process.kill()
        process.wait()
    process = start(stage, veri, log, **more)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors.decode()
    return folder, caught


@pytest.fixture(scope="module")
def never_killed(chain, run_stage, tmp_path_factory):
    def run(stage):
        more = chained(stage, chain) | {"SOLVER__MAX_EPOCHS": 4, "SOLVER__CHECKPOINT_STEPS": 1}
        return result(run_stage(stage, tmp_path_factory.mktemp("straight"), **more))

    return run


def test_three_kills(chain, veri, tmp_path, never_killed):
    import random

    folder, caught = kill_at_random_moments("rop", chain, veri, tmp_path, 3, random.Random(1))
    assert caught > 0, "no kill hit a running process"
    assert_same(never_killed("rop"), result(folder))


@pytest.mark.slow
def test_twenty_kills(chain, veri, tmp_path, never_killed):
    import random

    rng = random.Random(2)
    folder, caught = kill_at_random_moments("acd_rop", chain, veri, tmp_path, 20, rng)
    assert caught > 0, "no kill hit a running process"
    assert_same(never_killed("acd_rop"), result(folder))
