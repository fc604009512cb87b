"""Weights and images drawn by the recipe of tests/conformance/README.md."""

import math
import zlib

import numpy as np
import torch

SEED = 20242
NOT_FILLED = (
    "num_batches_tracked",
    "relative_coords_table",
    "relative_position_index",
    "attn_mask",
    "logit_scale",
)


def filled(state):
    """A state dict with the keys and shapes of ``state``, in float64."""
    return {key: value if key.endswith(NOT_FILLED) else _draw(key, tuple(value.shape)) for key, value in state.items()}


def images(shape):
    return torch.from_numpy(np.random.default_rng([SEED, 99]).standard_normal(shape))


def _draw(key, shape):
    rng = np.random.default_rng([SEED, zlib.crc32(key.encode())])
    if len(shape) >= 2:
        drawn = rng.standard_normal(shape) * math.sqrt(2 / math.prod(shape[1:]))
    elif key.endswith(("running_var", "weight")):
        drawn = 0.5 + rng.random(shape)
    else:  # running means and biases
        drawn = 0.1 * rng.standard_normal(shape)
    return torch.from_numpy(np.asarray(drawn))
