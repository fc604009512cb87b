"""Every config builds what it names: networks, losses, optimizer and schedule (on the meta device)."""

import functools

import pytest
import torch

from d3still.config import load_config
from d3still.distillers import DISTILLERS
from d3still.modeling import build_model
from d3still.solver import build_optimizer, build_schedule
from d3still.solver.raho import TIER_POWERS

from .test_matrix import FOLDERS, experiments

NUM_CLASSES = 100


@functools.cache
def network(side, name, last_stride):
    """One network a name and side: its structure is all that is looked at here."""
    with torch.device("meta"):
        return build_model(name, NUM_CLASSES, last_stride)


def analysed(gallery):
    """A block analysis that found every block unimportant at high resolution only, but for the first."""
    first, *rest = [name for name, _, _ in gallery.blocks()]
    none = {tier: [] for tier in TIER_POWERS}
    return {"groups": none | {"important": [first], "unimportant_at_high_resolution_only": rest}, "scores": {}}


@pytest.mark.parametrize("folder", FOLDERS.values())
def test_every_config_builds(folder):
    for path in experiments(folder):
        cfg = load_config(path)
        kind, own = cfg.DISTILLER.TYPE, cfg.DISTILLER
        student = network("query", own.STUDENT_NAME, own.STUDENT_LAST_STRIDE)
        query, gallery, learner, report = None, student, "gallery", None
        if kind != "NONE":
            query, gallery = student, network("gallery", own.TEACHER_NAME, own.TEACHER_LAST_STRIDE)
            learner = "gallery" if kind == "ACD" else "query"
        if cfg.SOLVER.OPTIMIZER_BUILDER == "RAHO":
            report = analysed(gallery)
        with torch.device("meta"):
            distiller = DISTILLERS.get(kind).build(cfg, query, gallery, learner)
        optimizer = build_optimizer(cfg, distiller, pairs=list, report=report).optimizer
        assert type(optimizer).__name__ == cfg.SOLVER.OPTIMIZER_NAME
        rates = sorted({group["base_lr"] / cfg.SOLVER.BASE_LR for group in optimizer.param_groups})
        gamma = cfg.RAHO.GAMMA
        assert rates == pytest.approx([gamma**2, gamma] if kind == "ACD" else [1.0]), path
        schedule = build_schedule(cfg)
        last = schedule(cfg.SOLVER.MAX_EPOCHS - 1, cfg.SOLVER.BASE_LR)
        assert 0 < last < schedule(cfg.SOLVER.LR_DECAY_STEPS[0], cfg.SOLVER.BASE_LR) == cfg.SOLVER.BASE_LR
