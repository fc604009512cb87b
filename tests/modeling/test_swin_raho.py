"""Each Swin gallery network takes one stage-2 step with the learning rates of RAHO."""

from itertools import chain

import pytest
import torch

from d3still.config import get_cfg
from d3still.distillers import DISTILLERS, Pair
from d3still.modeling import build_model
from d3still.solver import build_optimizer

CLASSES = 3


@pytest.mark.parametrize(
    "name",
    [
        "Swin_Transformer_V2_Tiny",
        pytest.param("Swin_Transformer_V2_Small", marks=pytest.mark.slow),
        pytest.param("Swin_Transformer_V2_Base", marks=pytest.mark.slow),
    ],
)
def test_one_step_with_raho(name):
    torch.manual_seed(0)
    cfg = get_cfg()
    cfg.merge_from_list(["DISTILLER.TYPE", "ACD", "ACD.BASELINE", "FitNet", "SOLVER.OPTIMIZER_BUILDER", "RAHO"])
    cfg.merge_from_list(["DISTILLER.TEACHER_NAME", name, "SOLVER.BASE_LR", "0.01"])
    distiller = DISTILLERS.get("ACD").build(cfg, build_model("ResNet18", CLASSES), build_model(name, CLASSES)).train()
    labels = torch.tensor([0, 1, 2, 2, 0, 1])
    pair = Pair(torch.randn(6, 3, 32, 32), torch.randn(6, 3, 64, 64), labels)
    built = build_optimizer(cfg, distiller, lambda: [pair], None)
    blocks = [block.name for block in distiller.gallery.blocks()]
    groups = built.report["groups"]
    assert sorted(chain.from_iterable(groups.values())) == sorted(blocks), "every block is in one group"
    unimportant = groups["unimportant_at_both"] + groups["unimportant_at_high_resolution_only"]
    assert len(unimportant) == int(0.3 * (len(blocks) - 1))
    rates = {n: group["lr"] for group in built.optimizer.param_groups for n in group["names"]}
    assert set(rates) == {n for n, _ in distiller.gallery.named_parameters()}
    assert len(set(rates.values())) > 1

    before = {key: value.clone() for key, value in distiller.gallery.state_dict().items()}
    frozen = {key: value.clone() for key, value in distiller.query.state_dict().items()}
    losses, _ = distiller(torch.randn(6, 3, 64, 64), labels, pair)
    total = sum(losses.values())
    total.backward()
    built.optimizer.step()
    assert torch.isfinite(total)
    after = distiller.gallery.state_dict()
    moved = [key for key in before if not torch.equal(before[key], after[key])]
    assert {key.removesuffix(".norm1.weight") for key in moved} >= set(blocks), "every block learns"
    assert all(torch.equal(frozen[key], value) for key, value in distiller.query.state_dict().items())
