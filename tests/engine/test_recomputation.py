"""EXPERIMENT.CHECKPOINT_ACTIVATIONS: auto. A step whose memory ends is done again, and no number changes."""

import json

import pytest
import torch

from d3still.config import load_config
from d3still.engine.step_memory import GIB, StepShape, images_that_fit
from d3still.errors import UserError
from d3still.modeling import RetrievalModel
from d3still.runs.checkpoint import load_checkpoint
from tests.engine.test_resume import StopAfter, assert_same, chained, result
from tests.tiny import REPOSITORY


class FullMemory:
    """Lets the forward pass fail, as a full GPU would, from the ``first``-th block on that would keep activations."""

    def __init__(self, monkeypatch, first=0, always=False):
        self.calls, self.failures = 0, 0
        original = RetrievalModel.run

        def run(network, function, features, *modules):
            keeps = network.training and torch.is_grad_enabled()
            if keeps and (always or not network.checkpoint_activations):
                self.calls += 1
                if self.calls > first:
                    self.failures += 1
                    raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.50 GiB")
            return original(network, function, features, *modules)

        monkeypatch.setattr(RetrievalModel, "run", run)


@pytest.mark.parametrize("stage", ["rop", "acd_rop"])
def test_a_step_whose_memory_ends_is_done_again_bit_for_bit(chain, run_stage, tmp_path, monkeypatch, caplog, stage):
    """It ends in the second pass of the sixth step, when the batch statistics have moved and numbers were drawn."""
    blocks = {"rop": 13, "acd_rop": 9}[stage]  # runs of a pass: MobileNetV3-Small's layers, ResNet18's stem and blocks
    full = FullMemory(monkeypatch, first=5 * 2 * blocks + blocks + 3)
    with caplog.at_level("INFO", logger="d3still"):
        folder = run_stage(stage, tmp_path, **chained(stage, chain))
    assert full.failures == 1, "it never fails again"
    said = [record.message for record in caplog.records if "recomputed activations" in record.message]
    assert len(said) == 1 and "step 2 of epoch 2" in said[0]
    assert_same(result(chain / f"VeRi776/{stage}/seed2024"), result(folder))
    assert load_checkpoint(folder / "last.pth")["progress"]["recomputes"]


def test_a_run_goes_on_with_recomputation_and_with_another_setting(chain, run_stage, tmp_path, monkeypatch):
    more = chained("rop", chain)
    full = FullMemory(monkeypatch)
    with monkeypatch.context() as patch:
        StopAfter(patch, 15, steps=2)
        with pytest.raises(SystemExit):
            run_stage("rop", tmp_path, **more)
    with monkeypatch.context() as patch:
        StopAfter(patch, 15, steps=3)
        with pytest.raises(SystemExit):
            run_stage("rop", tmp_path, **more)
    assert full.failures == 1, "the second start knew it from the checkpoint"
    folder = run_stage("rop", tmp_path, EXPERIMENT__CHECKPOINT_ACTIVATIONS=True, **more)
    assert full.failures == 1
    assert_same(result(chain / "VeRi776/rop/seed2024"), result(folder))


@pytest.mark.parametrize(("setting", "advice"), [("auto", "even with recomputed"), (False, "ACTIVATIONS: auto, or")])
def test_a_step_that_does_not_fit_is_one_line_that_names_the_keys(
    chain, run_stage, tmp_path, monkeypatch, setting, advice
):
    FullMemory(monkeypatch, always=True)
    with pytest.raises(UserError, match=advice) as caught:
        run_stage("rop", tmp_path, EXPERIMENT__CHECKPOINT_ACTIVATIONS=setting, **chained("rop", chain))
    assert "SOLVER.IMS_DISTILLATION_PER_BATCH" in str(caught.value) and "\n" not in str(caught.value)


def test_other_errors_of_a_step_are_not_taken_for_a_full_memory(chain, run_stage, tmp_path, monkeypatch):
    def run(network, function, features, *modules):
        raise RuntimeError("a mistake in the network")

    monkeypatch.setattr(RetrievalModel, "run", run)
    with pytest.raises(RuntimeError, match="a mistake in the network"):
        run_stage("rop", tmp_path, **chained("rop", chain))


def test_what_fits_is_the_number_of_the_page(monkeypatch):
    """docs/memory.md: in float32, ResNet101 at 384 takes 385 MiB and 127.5 MiB an image; 24 GiB hold 167 images."""
    monkeypatch.setattr("d3still.engine.step_memory.per_image", lambda setting: (385 * 2**20, 127.5 * 2**20))
    assert images_that_fit(StepShape("ResNet101", 384, "ResNet18", 128, 128, recompute=True), 24 * GIB) == 167


@pytest.mark.parametrize(
    ("written", "value"), [("auto", "auto"), ("AUTO", "auto"), ("True", True), ("off", False), (1, True)]
)
def test_the_setting_is_a_switch_that_may_be_left_to_the_program(written, value):
    cfg = load_config(REPOSITORY / "configs/veri/rop.yaml", ["EXPERIMENT.CHECKPOINT_ACTIVATIONS", written])
    assert value == cfg.EXPERIMENT.CHECKPOINT_ACTIVATIONS and type(cfg.EXPERIMENT.CHECKPOINT_ACTIVATIONS) is type(value)


def test_the_setting_takes_nothing_else():
    with pytest.raises(UserError, match=r"CHECKPOINT_ACTIVATIONS cannot be 'maybe': it takes auto, True or False"):
        load_config(REPOSITORY / "configs/veri/rop.yaml", ["EXPERIMENT.CHECKPOINT_ACTIVATIONS", "maybe"])


def test_veri_needs_no_key_set_by_hand():
    for name in ("vanilla", "rop", "acd_rop"):
        assert load_config(REPOSITORY / f"configs/veri/{name}.yaml").EXPERIMENT.CHECKPOINT_ACTIVATIONS == "auto"


def test_the_peak_that_a_run_reports_stands_in_its_metrics(chain):
    metrics = json.loads((chain / "VeRi776/acd_rop/seed2024/metrics.json").read_text())
    assert metrics["peak_memory_mib"] > 0 and metrics["threads"] == 1
