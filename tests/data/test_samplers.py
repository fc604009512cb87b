"""Identity-balanced, shuffled and sequential batches: METHOD's rules as properties."""

import itertools
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from d3still.data.samplers import IdentityBalancedBatches, SequentialBatches, ShuffledBatches
from d3still.errors import UserError


def identities(counts):
    return [identity for identity, count in enumerate(counts) for _ in range(count)]


def indices(batches):
    return [[index for _, index in batch] for batch in batches]


def joined(parts):
    """The global batches from the ranks' parts."""
    return [list(itertools.chain(*batch)) for batch in zip(*parts, strict=True)]


def test_length_is_what_is_yielded():
    # Images per identity 10, 5, 4, 1 in groups of 4: 2, 1, 1 and 1 groups. A batch of 8 takes two distinct
    # identities; after two batches one group is left, so 16 images come, not 20.
    for seed in range(20):
        sampler = IdentityBalancedBatches(identities([10, 5, 4, 1]), 8, 4, seed)
        assert sampler.num_batches(0) == len(sampler.epoch(0)) == 2
        assert sum(len(batch) for batch in sampler.epoch(0)) == 16


@given(
    counts=st.lists(st.integers(1, 9), min_size=2, max_size=12),
    per_batch=st.integers(1, 5),
    instances=st.integers(1, 4),
    seed=st.integers(0, 2**31),
    world_size=st.sampled_from([1, 2]),
)
@settings(max_examples=150, deadline=None)
def test_rule_of_the_identity_balanced_batches(counts, per_batch, instances, seed, world_size):
    assume(per_batch % world_size == 0 and len(counts) >= per_batch)
    labels = np.random.default_rng(seed).permutation(identities(counts))
    ranks = [
        IdentityBalancedBatches(labels, per_batch * instances, instances, seed, rank, world_size).epoch(3)
        for rank in range(world_size)
    ]
    batches = joined(ranks)
    used = Counter()
    groups = Counter()
    for batch in batches:
        assert len(batch) == per_batch * instances
        of = [labels[index] for _, index in batch]
        blocks = [of[start : start + instances] for start in range(0, len(of), instances)]
        assert all(len(set(block)) == 1 for block in blocks)  # K images of one identity together
        assert len({block[0] for block in blocks}) == per_batch  # all identities distinct
        groups.update(block[0] for block in blocks)
        used.update(index for _, index in batch)
    for identity, count in enumerate(counts):
        assert groups[identity] <= max(1, count // instances)
        if count >= instances:  # without replacement: no image twice in an epoch
            assert all(used[i] <= 1 for i in np.flatnonzero(labels == identity))
    left = sum(groups[identity] < max(1, count // instances) for identity, count in enumerate(counts))
    assert left < per_batch  # the epoch goes on as long as it can
    assert [position for batch in batches for position, _ in batch] == list(range(len(batches) * len(batch)))


def test_an_identity_with_few_images_is_drawn_with_replacement():
    batches = IdentityBalancedBatches(identities([2, 2]), 12, 6, seed=1).epoch(0)
    assert len(batches) == 1
    assert all(count <= 6 for count in Counter(indices(batches)[0]).values())
    assert {labels < 2 for labels in indices(batches)[0][:6]} in ({True}, {False})


def test_same_seed_same_epoch_other_epoch_other_batches():
    labels = identities([12] * 20)

    def epoch(seed, number):
        return indices(IdentityBalancedBatches(labels, 24, 4, seed).epoch(number))

    assert epoch(5, 2) == epoch(5, 2)
    assert epoch(5, 2) != epoch(5, 3)
    assert epoch(5, 2) != epoch(6, 2)
    sampler = IdentityBalancedBatches(labels, 24, 4, 5)
    sampler.epoch(7)
    assert indices(sampler.epoch(2)) == epoch(5, 2)  # not what was asked for before


def test_ranks_share_a_global_batch_without_repeating_an_identity():
    labels = identities([8] * 12)
    whole = IdentityBalancedBatches(labels, 24, 4, 0).epoch(1)
    parts = [IdentityBalancedBatches(labels, 24, 4, 0, rank, 3).epoch(1) for rank in range(3)]
    assert joined(parts) == whole
    assert all(len(batch) == 8 for part in parts for batch in part)


def test_too_few_identities_is_an_error_before_the_first_step():
    with pytest.raises(UserError, match=r"3 identities.*needs 16.*IMS_PER_BATCH"):
        IdentityBalancedBatches(identities([50] * 3), 96, 6, 0)
    with pytest.raises(UserError, match="0 identities"):
        IdentityBalancedBatches([], 8, 4, 0)


@pytest.mark.parametrize(("size", "instances", "world"), [(96, 5, 1), (96, 6, 3 * 16), (12, 6, 4)])
def test_sizes_that_do_not_divide(size, instances, world):
    with pytest.raises(UserError, match=r"IMS_PER_BATCH.*NUM_INSTANCE"):
        IdentityBalancedBatches(identities([9] * 30), size, instances, 0, 0, world)


def test_sizes_below_one():
    with pytest.raises(UserError, match="NUM_INSTANCE is 0"):
        IdentityBalancedBatches([0, 1], 8, 0, 0)
    with pytest.raises(UserError, match="IMS_PER_BATCH is -8"):
        IdentityBalancedBatches([0, 1], -8, 4, 0)
    with pytest.raises(UserError, match=r"TEST\.IMS_PER_BATCH is 0"):
        SequentialBatches(4, 0)


def test_sixty_thousand_images_are_dealt_quickly():
    labels = np.random.default_rng(0).integers(0, 11318, 60000)
    start = time.process_time()
    sampler = IdentityBalancedBatches(labels, 96, 6, 0)
    assert sampler.num_batches(0) > 600
    assert time.process_time() - start < 3  # takes 0.13 s


@pytest.mark.parametrize("world_size", [1, 2])
def test_shuffled_batches_hold_each_image_once(world_size):
    ranks = [ShuffledBatches(50, 8, 3, rank=r, world_size=world_size) for r in range(world_size)]
    parts = [sampler.epoch(0) for sampler in ranks]
    batches = joined(parts)
    assert ranks[0].num_batches(0) == len(batches) == 6
    assert batches == ShuffledBatches(50, 8, 3).epoch(0)
    assert len({index for batch in batches for _, index in batch}) == 48
    assert [p for batch in batches for p, _ in batch] == list(range(48))
    assert batches != ShuffledBatches(50, 8, 3).epoch(1)


def test_a_last_short_batch_can_be_kept():
    assert [len(b) for b in ShuffledBatches(50, 8, 3, drop_last=False).epoch(0)] == [8] * 6 + [2]
    for rank in range(2):
        sampler = ShuffledBatches(50, 8, 3, False, rank, 2)
        assert [len(batch) for batch in sampler.epoch(0)] == [4] * 6 + [1]
        assert sampler.num_batches(0) == 7
    assert ShuffledBatches(49, 8, 3, False, 0, 2).num_batches(0) == 6  # one image cannot be dealt to two


def test_two_streams_of_one_seed_shuffle_apart():
    assert ShuffledBatches(50, 8, 3, stream=2).epoch(0) != ShuffledBatches(50, 8, 3, stream=3).epoch(0)


def test_an_epoch_without_a_batch_is_an_error():
    with pytest.raises(UserError, match=r"50 images.*lower SOLVER.IMS_DISTILLATION_PER_BATCH 256"):
        ShuffledBatches(50, 256, 0)
    with pytest.raises(UserError, match="not a multiple of the 3 ranks"):
        ShuffledBatches(50, 8, 0, world_size=3)


def test_sequential_batches_over_ranks_hold_each_image_once():
    # 5 images on 2 ranks are 5
    parts = [SequentialBatches(5, 2, rank, 2).epoch() for rank in range(2)]
    assert indices(parts[0]) == [[0, 2], [4]]
    assert indices(parts[1]) == [[1, 3]]
    assert SequentialBatches(1, 2, 1, 2).num_batches() == 0
    assert indices(SequentialBatches(5, 8).epoch()) == [[0, 1, 2, 3, 4]]
