"""The demos: that their stages are a chain, and that the table says what it should."""

import importlib

import pytest

from d3still.config import run_dir, weight_path
from d3still.runs.facts import baseline_of, pair_of, stage_of
from tests.tiny import REPOSITORY


@pytest.fixture
def demo(monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "tools"))
    return importlib.import_module("demo")


@pytest.mark.parametrize("name", ["SCRATCH", "PRETRAINED"])
def test_each_stage_starts_from_the_one_before(demo, name):
    chosen = getattr(demo, name)
    configs = [demo.config(*stage) for stage in zip(chosen.configs, chosen.short, strict=True)]
    gallery, query, _ = ((run_dir(cfg) / "last.pth").resolve() for cfg in configs)
    assert [stage_of(cfg) for cfg in configs] == [0, 1, 2]
    assert [weight_path(cfg, cfg.DISTILLER.TEACHER_MODEL_PATH) for cfg in configs[1:]] == [gallery, gallery]
    assert weight_path(configs[2], configs[2].DISTILLER.STUDENT_PRETRAIN_PATH) == query
    assert {baseline_of(cfg) for cfg in configs[1:]} == {chosen.baseline}
    assert pair_of(configs[1]) == pair_of(configs[2])


def test_the_table_has_gains_and_the_query_network_alone(demo):
    before = {"AIR": {"mAP": 20.0, "R1": 25.0}, "SIR": {"mAP": 40.0, "R1": 50.0}}
    groups = {"unimportant_at_both": ["layer2.1"], "unimportant_at_high_resolution_only": []}
    after = {
        "AIR": {"mAP": 21.5, "R1": 25.0},
        "SIR": {"mAP": 39.75, "R1": 50.5},
        "optimizer_report": {"groups": groups},
    }
    text = demo.report(demo.PRETRAINED, before, after, {"mAP": 30.0, "R1": 35.0})
    rows = [line.split() for line in text.splitlines()]
    assert ["CSD", "20.00", "25.00", "40.00", "50.00"] in rows
    assert ["CSD", "+", "ACD", "21.50", "25.00", "39.75", "50.50"] in rows
    assert ["Δ", "+1.50", "+0.00", "-0.25", "+0.50"] in rows
    assert ["query", "alone", "–", "–", "30.00", "35.00"] in rows
    assert "full learning rate): layer2.1" in text and "γ · lr):         none" in text
