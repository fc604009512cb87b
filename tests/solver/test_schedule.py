"""Learning rates an epoch equal the published schedulers' (tests/conformance/retrieval.json)."""

import numpy as np
import pytest
import torch

from d3still.config import get_cfg
from d3still.errors import UserError
from d3still.solver.schedule import Warmup, WarmupCosine, WarmupMultiStep, build_schedule, set_learning_rates
from tests import conformance

RATES = {name: entry["lr"] for name, entry in conformance.load("retrieval")[0]["lr_per_epoch"].items()}
SCHEDULES = {
    "cosine_acd_20": WarmupCosine(20, 0, 1e-7, Warmup(0)),
    "cosine_acd_10": WarmupCosine(10, 0, 1e-7, Warmup(0)),
    "cosine_baseline_120": WarmupCosine(120, 40, 1e-7, Warmup(10, 0.1, "linear")),
    "cosine_constant_warmup": WarmupCosine(30, 10, 1e-7, Warmup(5, 0.1, "constant")),
    "multistep": WarmupMultiStep((40, 70), 0.1, Warmup(10, 0.1, "linear")),
}


@pytest.mark.parametrize("name", RATES)
def test_published_rates(name):
    schedule = SCHEDULES[name]
    np.testing.assert_allclose([schedule(e, 0.01) for e in range(len(RATES[name]))], RATES[name], rtol=1e-9)


def test_the_floor_is_the_same_for_every_group():
    # METHOD: η_min is absolute, also for RAHO's γ²·lr
    schedule = WarmupCosine(20, 0, 1e-7, Warmup(0))
    assert schedule(20, 1e-2) == pytest.approx(1e-7) and schedule(20, 2.5e-5) == pytest.approx(1e-7)


def test_rates_are_set_from_each_groups_own_base():
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [{"params": [p], "base_lr": base} for p, base in zip(parameters, (1e-2, 5e-4), strict=True)]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    set_learning_rates(optimizer, SCHEDULES["cosine_acd_10"], 5)
    expected = [1e-7 + (base - 1e-7) / 2 for base in (1e-2, 5e-4)]  # half a cosine at half time
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(expected)


def test_cosine_starts_at_the_first_decay_step():
    cfg = get_cfg()
    cfg.merge_from_list(["SOLVER.LR_DECAY_STEPS", "[40]", "SOLVER.MAX_EPOCHS", "120"])
    assert build_schedule(cfg) == SCHEDULES["cosine_baseline_120"]


def test_unknown_schedule_is_named():
    cfg = get_cfg()
    cfg.SOLVER.LR_DECAY_TYPE = "Linear"
    with pytest.raises(UserError, match=r"SOLVER.LR_DECAY_TYPE 'Linear'"):
        build_schedule(cfg)
