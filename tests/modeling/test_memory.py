"""The numbers of docs/memory.md: the count is what the allocator hands out, and grows with the batch."""

import pytest
import torch

from benchmarks.memory import PAIRS, measured_peak
from d3still.engine.step_memory import StepShape, estimated_peak

SMALL = StepShape("ResNet18", 64, "MobileNetV3_Small", 32, 16, triplet_batch=8)


@pytest.mark.parametrize("recompute", [False, True])
def test_the_count_is_what_the_allocator_hands_out(recompute):
    setting = SMALL._replace(recompute=recompute)
    assert estimated_peak(setting) == pytest.approx(measured_peak(setting), rel=0.1)


def test_the_peak_is_a_straight_line_over_the_batch():
    def peak(pair_batch):
        setting = PAIRS[0]._replace(gallery="ResNet34", query="ResNet18", dtype=torch.bfloat16)
        return estimated_peak(setting._replace(pair_batch=pair_batch))

    small, middle, large = (peak(batch) for batch in (64, 160, 256))
    assert middle == pytest.approx((small + large) / 2, rel=1e-3)
