"""What is found out of a plan's runs before they are trained."""

import shutil

import pytest
import torch

from d3still.errors import UserError
from d3still.plans.plan import Planner
from d3still.plans.training import Training
from d3still.runs.checkpoint import load_checkpoint
from tests.data.helpers import save_all
from tests.tiny import REPOSITORY, overrides


def make(root, identities):
    save_all(root / "train", [f"{i}/{n}.png" for i in range(identities) for n in range(4)])
    save_all(root, ["query/7/0.png", "gallery/7/1.png"])
    return root


def planned(*files, settings):
    planner = Planner(files, settings)
    planner.add_all([1], ["acd"])
    return planner.runs


def test_data_is_looked_for_where_a_run_looks_for_it(tmp_path, monkeypatch):
    """A relative root below the config's own repository, from another folder."""
    make(tmp_path / "mine/pictures", identities=4)
    file = tmp_path / "mine/configs/vanilla.yaml"
    file.parent.mkdir()
    file.write_text(f"_BASE_: {REPOSITORY}/configs/own/vanilla.yaml\n")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    settings = overrides("pictures", tmp_path / "log", DATASETS__NAMES="folder")
    runs = planned(file, settings=settings)
    training = Training()
    training.check(runs[0], runs)
    assert not training.is_finished(runs[0])


def test_a_finished_run_of_other_start_weights_does_not_count(chain, veri, tmp_path):
    """The gallery network was trained again since: the query network that was made from it is not this plan's."""
    log = shutil.copytree(chain, tmp_path / "log")
    settings = overrides(veri, log)
    planner = Planner([REPOSITORY / f"configs/veri/{name}.yaml" for name in ("vanilla", "rop")], settings)
    run = next(run for run in (planner.add(file, 2024) for file in planner.files) if run.needs)
    assert Training().is_finished(run)
    weights = log / "VeRi776/vanilla/seed2024/last.pth"
    state = load_checkpoint(weights)
    state["gallery"]["fc.classifier.weight"] += 1
    torch.save(state, weights)
    with pytest.raises(UserError, match=r"made from something else: the weights that DISTILLER\.TEACHER_MODEL_PATH"):
        Training().is_finished(run)


def test_a_stage_before_of_another_dataset_is_named(tmp_path):
    """Four identities in stage 0, five in stage 1, which goes on from it."""
    log = f"{tmp_path}/log/own/vanilla/seed1/last.pth"
    for stage, identities in (("vanilla", 4), ("rop", 5)):
        data = make(tmp_path / f"data{identities}", identities)
        (tmp_path / f"{stage}.yaml").write_text(
            f"_BASE_: {REPOSITORY}/configs/own/{stage}.yaml\nDATASETS: {{ROOT_DIR: {data}}}\n"
            f"OUTPUT_DIR: {{EXPERIMENT_NAME: own/{stage}}}\nDISTILLER: {{TEACHER_MODEL_PATH: {log}}}\n"
        )
    settings = overrides("", tmp_path / "log", DATASETS__NAMES="folder")
    del settings[(at := settings.index("DATASETS.ROOT_DIR")) : at + 2]
    runs = planned(tmp_path / "vanilla.yaml", tmp_path / "rop.yaml", settings=settings)
    Training().check(runs[0], runs)
    with pytest.raises(UserError, match=r"start weights, of own/vanilla seed 1, know 4 identities, .* dataset has 5"):
        Training().check(runs[1], runs)
