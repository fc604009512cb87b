"""Random numbers that follow from a key alone.

An image's augmentation must not depend on which worker or rank prepares it, nor on what was prepared
before, so each draw is a hash of (seed, epoch, position in the epoch, stream): SplitMix64 (Steele, Lea and
Flood, "Fast splittable pseudorandom number generators", 2014), run for a whole batch at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIERS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_SHIFTS = np.uint64(30), np.uint64(27), np.uint64(31)
_MANTISSA_SHIFT, _MANTISSA_UNIT = np.uint64(11), 2.0**-53
_WORD = 2**64


def splitmix64(state: np.ndarray) -> np.ndarray:
    """One SplitMix64 output for each uint64 state."""
    z = state + _GAMMA
    z = (z ^ (z >> _SHIFTS[0])) * _MULTIPLIERS[0]
    z = (z ^ (z >> _SHIFTS[1])) * _MULTIPLIERS[1]
    return z ^ (z >> _SHIFTS[2])


def uniforms(seed: int, epoch: int, stream: int, positions: Sequence[int], count: int) -> np.ndarray:
    """``count`` numbers in [0, 1) for each position, shape (positions, count), float64.

    Args:
        seed: of the run.
        epoch: from 0.
        stream: one number a purpose, so that two views of an image draw independently.
        positions: of the images in the epoch, over all ranks.
        count: how many numbers an image gets.
    """
    state = np.zeros(len(positions), dtype=np.uint64)
    for part in (seed % _WORD, epoch, stream):
        state = splitmix64(state + np.array(part, dtype=np.uint64))
    state = splitmix64(state + np.asarray(positions, dtype=np.uint64))
    steps = np.arange(count, dtype=np.uint64) * _GAMMA
    return (splitmix64(state[:, None] + steps) >> _MANTISSA_SHIFT).astype(np.float64) * _MANTISSA_UNIT
