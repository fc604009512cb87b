"""Gallery networks between stage 0 and stage 2."""

import importlib
import json

import pytest
import torch
from torch import nn

from d3still.config import load_config
from d3still.engine.distributed import Rank
from d3still.engine.finished_run import open_run
from d3still.engine.finished_run import test as evaluate_run
from d3still.engine.merging import interpolated, merged_galleries
from d3still.errors import UserError
from d3still.runs.checkpoint import load_checkpoint
from tests.tiny import REPOSITORY, overrides, stage_settings


def test_weights_lie_on_the_line_between_and_counters_are_the_ends():
    start = {"weight": torch.tensor([1.0, 2.0]), "num_batches_tracked": torch.tensor(3)}
    end = {"weight": torch.tensor([3.0, -2.0]), "num_batches_tracked": torch.tensor(9)}
    assert {share: interpolated(start, end, share)["weight"].tolist() for share in (0, 0.25, 1, 1.5)} == {
        0: [1.0, 2.0],
        0.25: [1.5, 1.0],
        1: [3.0, -2.0],
        1.5: [4.0, -4.0],
    }
    assert interpolated(start, end, 0.5)["num_batches_tracked"] == 9


def test_ends_have_the_trained_weights_and_all_the_training_images_statistics(chain, veri):
    settings = overrides(veri, chain, **stage_settings("acd_rop", chain))
    cfg = load_config(REPOSITORY / "configs/veri/acd_rop.yaml", settings)
    states = {stage: load_checkpoint(chain / f"VeRi776/{stage}/seed2024/last.pth") for stage in ("vanilla", "acd_rop")}
    with open_run(cfg) as run:
        merged = dict(merged_galleries(cfg, run, [0.0, 0.5, 1.0]))
        for share, stage in ((0.0, "vanilla"), (1.0, "acd_rop")):
            for key, value in states[stage]["gallery"].items():
                if "running_" not in key and not key.endswith("num_batches_tracked"):
                    assert torch.equal(merged[share].state_dict()[key], value), key
        middle = merged[0.5]
        ends = [states[stage]["gallery"]["conv1.weight"] for stage in ("vanilla", "acd_rop")]
        torch.testing.assert_close(middle.conv1.weight, (ends[0] + ends[1]) / 2)
        images = torch.cat([run.data.normalize(b) for b in run.data.test(run.data.dataset.train, (32, 32)).epoch(0, 0)])
        assert not middle.training
        with torch.no_grad():
            expected = nn.functional.conv2d(images, middle.conv1.weight, stride=2, padding=3).mean((0, 2, 3))
        run.data.ranks = Rank(0, 2)
        with pytest.raises(UserError, match="start it without torchrun"):
            next(merged_galleries(cfg, run, [0.5]))
    torch.testing.assert_close(middle.bn1.running_mean, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shares", ["0.5", "0,1"])
def test_the_command_prints_each_share_and_saves_one(chain, veri, tmp_path, monkeypatch, capsys, shares):
    monkeypatch.syspath_prepend(str(REPOSITORY / "tools"))
    merge_net = importlib.import_module("merge_net")
    settings = overrides(veri, chain, **stage_settings("acd_rop", chain))
    file = str(REPOSITORY / "configs/veri/acd_rop.yaml")
    words = ["--config-file", file, "--json", "--shares", shares]
    save = [] if "," in shares else ["--save", str(tmp_path / "merged.pth")]
    monkeypatch.setattr("sys.argv", ["merge_net", *words, *save, *settings])
    merge_net.main()
    found = json.loads(capsys.readouterr().out)
    assert [row["share"] for row in found] == [float(share) for share in shares.split(",")]
    assert all(0 < row[kind]["mAP"] <= 100 for row in found for kind in ("AIR", "SIR"))
    if save:
        again = evaluate_run(load_config(file, [*settings, "TEST.WEIGHTS", str(tmp_path / "merged.pth")])).summaries()
        assert again == {kind: pytest.approx(found[0][kind]) for kind in ("AIR", "SIR")}


@pytest.mark.parametrize("shares", ["nan", "0.5,inf", "half", "", "0,,1"])
def test_shares_are_finite_numbers(monkeypatch, shares, capsys):
    monkeypatch.syspath_prepend(str(REPOSITORY / "tools"))
    monkeypatch.setattr("sys.argv", ["merge_net", "--config-file", "x.yaml", f"--shares={shares}"])
    with pytest.raises(SystemExit):
        importlib.import_module("merge_net").parse()
    assert f"--shares: '{shares}' is no list of numbers such as 0,0.5,1" in capsys.readouterr().err
