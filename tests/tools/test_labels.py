"""What labels alone tell of a run is told before the first step of the first run: by train, compare and sweep."""

import re

import pytest

from d3still.errors import UserError
from tests.data.helpers import save_all
from tests.tiny import REPOSITORY, overrides

CONFIGS = REPOSITORY / "configs/own"


def make(root, identities=6, images=4, query="0_c1", gallery="1_c2", tested="qq"):
    """A `folder` dataset whose query and gallery are one image each of the identities in ``tested``."""
    asked, held = tested
    save_all(root / "train", [f"{i}/{n}_c1.png" for i in range(identities) for n in range(images)])
    save_all(root, [f"query/{asked}/{query}.png", f"gallery/{held}/{gallery}.png"])
    return root


CASES = {
    "no match": ({"tested": "qg"}, r"no query has a match: no query identity occurs in the gallery"),
    "one camera": ({"gallery": "1_c1"}, r"same-camera rule removes those; set TEST\.EXCLUDE_SAME_CAMERA: False"),
    "few identities": ({"identities": 3}, r"has 3 identities, but a batch needs 4|this run has 3"),
    "few images": ({"images": 1}, r"has 6 images, fewer than one batch; lower SOLVER\.IMS_DISTILLATION_PER_BATCH 8"),
    "other classes": ({"identities": 7}, r"last\.pth.* 6 identities.*this run has 7"),
}


@pytest.fixture
def no_training(monkeypatch):
    """Nothing may be trained: neither a run's first step nor a process for a run."""

    def refuse(*_):
        raise AssertionError("training began")

    monkeypatch.setattr("d3still.engine.run.Trainer.run", refuse)
    monkeypatch.setattr("d3still.plans.training.run_in_child", refuse)


def settings(data, log, **more):
    pattern = {"DATASETS.NAMES": "folder", "DATASETS.CAMERA_PATTERN": r"_c(\d+)", "DATALOADER.CACHE": "none"}
    return overrides(data, log, **pattern, **more)


def said(run_tool, caplog, *arguments):
    """What a command says of its first run: its error, or, of a plan, the first line that it logs as one."""
    with caplog.at_level("ERROR", logger="d3still"):
        try:
            run_tool(*arguments)
        except UserError as error:
            return [record.getMessage() for record in caplog.records] or [str(error)]
    raise AssertionError("it found nothing wrong")


@pytest.mark.parametrize("command", ["train_net", "compare_net", "sweep_net"])
@pytest.mark.parametrize("case", CASES)
def test_it_is_told_before_anything_is_trained(run_tool, caplog, no_training, tmp_path, chain, case, command):
    how, message = CASES[case]
    more = settings(make(tmp_path / "data", **how), tmp_path / "log")
    for key, stage in (("TEACHER_MODEL_PATH", "vanilla"), ("STUDENT_PRETRAIN_PATH", "rop")):
        more += [f"DISTILLER.{key}", str(chain / f"VeRi776/{stage}/seed2024/last.pth")]
    arguments = {
        "train_net": ("--config-file", CONFIGS / "acd_rop.yaml"),
        "compare_net": (CONFIGS / "acd_rop.yaml",),
        "sweep_net": ("--config-file", CONFIGS / "acd_rop.yaml", "--over", "ACD.ALPHA", 1, 2),
    }[command]
    first, *_ = said(run_tool, caplog, command, *arguments, *more)
    assert re.search(message, first), first
    assert not list(tmp_path.rglob("*.pth"))
