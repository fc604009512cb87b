"""RAHO's scores and groups equal the published ones (tests/conformance/raho.*)."""

import numpy as np
import pytest
import torch

from d3still.distillers.acd import BlockImportance
from d3still.errors import UserError
from tests import conformance

VALUES, ARRAYS = conformance.load("raho")
NAMES = [name.removeprefix("block_high__") for name in ARRAYS if name.startswith("block_high__")]
BLOCKS = [(name, int(name[len("layer")])) for name in NAMES]


def measured(batches=3, right=None):
    importance = BlockImportance(BLOCKS)
    for i in range(batches):
        labels = torch.from_numpy(ARRAYS["labels"][i])
        known = torch.from_numpy(ARRAYS["gallery_logits_low"][i]).argmax(1) == labels
        importance.update(
            [torch.from_numpy(ARRAYS[f"block_high__{name}"][i]) for name in NAMES],
            torch.from_numpy(ARRAYS["gallery_final_high"][i]),
            [torch.from_numpy(ARRAYS[f"block_low__{name}"][i]) for name in NAMES],
            torch.from_numpy(ARRAYS["query_final_low"][i]),
            known if right is None else torch.full_like(known, right),
        )
    return importance


def test_scores():
    scores = measured().scores()
    assert list(scores) == VALUES["scored_blocks"], "every block but the first, in order"
    for key, reference in [
        ("high", "score_high_resolution"),
        ("cross", "score_cross_resolution"),
        ("normalised_high", "normalised_high_resolution"),
        ("normalised_cross", "normalised_cross_resolution"),
    ]:
        np.testing.assert_allclose([s[key] for s in scores.values()], VALUES[reference], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("case", ["p30_cross1", "p30_cross0", "p50_cross1", "p50_cross0"])
def test_groups(case):
    expected = VALUES[case]
    groups = measured().groups(expected["RATIO"], expected["CROSS_RESOLUTION"])
    for tier in ("unimportant_at_both", "unimportant_at_high_resolution_only", "important"):
        assert groups[tier] == expected[tier]


def test_a_batch_with_no_image_right_adds_nothing_to_the_cross_score():
    # METHOD: the published code turns such a batch into NaN
    importance = measured()
    before = importance.scores()
    importance.update(
        [torch.from_numpy(ARRAYS[f"block_high__{name}"][0]) for name in NAMES],
        torch.from_numpy(ARRAYS["gallery_final_high"][0]),
        [torch.from_numpy(ARRAYS[f"block_low__{name}"][0]) for name in NAMES],
        torch.from_numpy(ARRAYS["query_final_low"][0]),
        torch.zeros(20, dtype=torch.bool),
    )
    after = importance.scores()
    assert all(after[name]["cross"] == before[name]["cross"] for name in before)
    assert any(after[name]["high"] != before[name]["high"] for name in before)


def test_without_any_right_image_groups_follow_the_high_resolution(caplog):
    groups = measured(right=False).groups(0.3, cross_resolution=True)
    assert groups == measured(right=False).groups(0.3, cross_resolution=False)
    assert "classified no low-resolution image right" in caplog.text


def test_no_batch_is_an_error():
    with pytest.raises(UserError, match="RAHO saw no batch"):
        BlockImportance(BLOCKS).groups(0.3, True)


def test_one_block_cannot_be_compared():
    with pytest.raises(UserError, match="at least 2"):
        BlockImportance([("layer1.0", 1)])
