"""Small images and folders that the tests of this package make."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from d3still.data import Sample


def picture(height=20, width=24, seed=0):
    """A smooth random picture, as a PIL image."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def save(path, image=None, seed=0, **options):
    """Writes a picture, making its folders; the seed lets tests tell pictures apart."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or picture(seed=seed)).save(path, **options)
    return path


def save_all(folder, names):
    """A tiny picture under each name; what is in it does not matter."""
    for name in names:
        save(Path(folder) / name, Image.new("RGB", (4, 4)))


def training_set(folder, identities=8, images=5, height=40, width=44):
    """Samples with labels 0 … identities − 1 and a picture each."""
    return [
        Sample(str(save(folder / f"{i:03d}_{k}.png", picture(height, width, seed=100 * i + k))), i, k)
        for i in range(identities)
        for k in range(images)
    ]
