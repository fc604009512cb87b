"""A network of a few thousand weights, its checkpoints and a folder of pictures: deployment in milliseconds."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from d3still.config import dump_config, get_cfg
from d3still.modeling import NETWORKS, RetrievalModel, build_model

NAME = "TestNet"
CLASSES = 5
INSTALL = "pip install -r requirements-deploy.txt"


def needs(*modules):
    """Skip a test, or all of a module as ``pytestmark``, where a deploy package is missing."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} missing; {INSTALL}")


@NETWORKS.register(NAME)
class SmallModel(RetrievalModel):
    """Two convolutions; the four stage maps are their outputs."""

    def __init__(self, name, num_classes, last_stride=1, checkpoint_activations=False):
        super().__init__(name, checkpoint_activations)
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(8, 16, 3, last_stride, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.add_head((8, 8, 8, 16), num_classes)

    def stage_maps(self, images):
        first = self.first(images)
        return first, first, first, self.second(first)

    def blocks(self):
        return []

    @classmethod
    def from_imagenet(cls, state):
        return None


def make_network(seed, name=NAME):
    """A network whose batch norms have seen images, so that features differ between images."""
    torch.manual_seed(seed)
    network = build_model(name, CLASSES).train()
    with torch.no_grad():
        for _ in range(3):
            network(torch.randn(16, 3, 24, 24))
    return network.eval()


def make_config(kind="ACD", name=NAME, **more):
    """A run's config with small images; further keys as ``SECTION__KEY=value``."""
    settings = {
        "DISTILLER.TYPE": kind,
        "DISTILLER.STUDENT_NAME": name,
        "DISTILLER.TEACHER_NAME": name,
        "INPUT.STUDENT_SIZE_TEST": [12, 16],
        "INPUT.TEACHER_SIZE_TEST": [24, 20],
        "INPUT.SIZE_TEST": [22, 26],
    }
    cfg = get_cfg()
    for key, value in (settings | {key.replace("__", "."): value for key, value in more.items()}).items():
        cfg.merge_from_list([key, value])
    return cfg


def save_run(path, query=1, gallery=2, cfg=None):
    """A checkpoint as the engine writes it, of networks drawn from these seeds; None for no query network."""
    state = {
        "format": "d3still",
        "query": None if query is None else make_network(query).state_dict(),
        "gallery": make_network(gallery).state_dict(),
        "extra": {},
        "config": dump_config(cfg or make_config()),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path)
    return path


def picture(seed, size=(30, 40)):
    """An (H, W, 3) uint8 array of coarse colour fields, different for each seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.array(Image.fromarray(coarse).resize((size[1], size[0]), Image.Resampling.BICUBIC))


def save_pictures(folder, count, first=0):
    """``count`` PNG files in a folder; their paths in order."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:04}.png" for number in range(first, first + count)]
    for number, path in enumerate(paths, start=first):
        Image.fromarray(picture(number)).save(path)
    return paths
