"""The three stages through the engine, on a folder in VeRi-776's layout, and what a run leaves behind."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from d3still.config import load_config
from d3still.distillers import Pair
from d3still.engine.finished_run import test as evaluate_run
from d3still.engine.query_accuracy import say_query_accuracy
from d3still.engine.setup import build_distiller, load_start_weights
from d3still.engine.trainer import Trainer
from d3still.errors import UserError
from d3still.runs.checkpoint import load_checkpoint, network_state, save_checkpoint
from tests.tiny import REPOSITORY, overrides, read_events, stage_settings


def run_folder(log, stage):
    return log / f"VeRi776/{stage}/seed2024"


def read(log, stage):
    return json.loads((run_folder(log, stage) / "metrics.json").read_text())


@pytest.mark.parametrize("stage", ["vanilla", "rop", "acd_rop"])
def test_a_run_leaves_its_files(chain, stage):
    folder = run_folder(chain, stage)
    metrics = read(chain, stage)
    assert set(metrics["SIR"]) == {"mAP", "mINP", "R1", "R5", "R10"}
    assert (metrics["AIR"] is None) == (stage == "vanilla"), "stage 0 has no query network"
    assert 0 < metrics["SIR"]["mAP"] <= 100 and metrics["valid_queries"] == 6 and metrics["unmatched_queries"] == 0
    assert metrics["precision"] == "float32" and metrics["seed"] == 2024 and metrics["seconds"] > 0
    assert metrics["versions"]["torch"] == torch.__version__
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1]
    assert {"loss", "ce", "triplet", "accuracy", "lr", "images_per_second", "data_wait"} <= set(lines[0])
    assert (lines[0].keys() & {"kd", "logits"}) == {"vanilla": set(), "rop": {"kd"}, "acd_rop": {"kd", "logits"}}[stage]
    assert lines[-1]["SIR"] == metrics["SIR"], "the reported numbers are those of the last epoch"
    for name in ("last.pth", "best.pth", "config.yaml", "log.txt", "per_query.npz"):
        assert (folder / name).stat().st_size > 0
    pictures = {"SIR/hardest_queries"} | ({"AIR/hardest_queries"} if stage != "vanilla" else set())
    assert pictures <= tags_of(next((folder / "tensorboard").glob("events*")))


def test_stage_2_says_how_well_the_query_network_names_its_training_images(chain):
    assert "of its training images right" in (run_folder(chain, "acd_rop") / "log.txt").read_text(encoding="utf-8")
    assert "of its training images right" not in (run_folder(chain, "rop") / "log.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize(("named", "said"), [([0, 1, 1, 0], "names 75 %"), ([0, 0, 1, 0], "names only 50 %")])
def test_the_query_networks_accuracy_is_the_share_named_right(named, said, caplog):
    labels = torch.tensor([0, 1, 1, 2])
    pairs = [Pair(torch.tensor(named)[part], torch.zeros(1), labels[part]) for part in (slice(3), slice(3, 4))]

    class Query(nn.Module):
        def forward(self, images):
            return SimpleNamespace(logits=torch.eye(3)[images])

    with caplog.at_level("INFO", "d3still.engine.query_accuracy"):
        say_query_accuracy(Query(), pairs)
    assert said in caplog.text
    assert (caplog.records[0].levelname == "WARNING") == ("only" in said)


def test_stage_1_goes_on_from_a_runs_query_network_and_its_projectors(tmp_path):

    def ugd(seed, file=""):
        settings = ["DISTILLER.TEACHER_MODEL_PATH", file, "DISTILLER.STUDENT_PRETRAIN_PATH", file, "SOLVER.SEED", seed]
        cfg = load_config(REPOSITORY / "configs/emoji/ugd.yaml", [str(value) for value in settings])
        return cfg, build_distiller(cfg, num_classes=3)

    source = ugd(1)[1]
    save_checkpoint(tmp_path / "last.pth", network_state(source))
    cfg, distiller = ugd(2, tmp_path / "last.pth")
    load_start_weights(cfg, distiller)
    for part in ("query", "gallery", "extra"):
        for key, value in getattr(source, part).state_dict().items():
            assert torch.equal(getattr(distiller, part).state_dict()[key], value), (part, key)


def tags_of(events):
    return {value.tag for event in read_events(events) for value in event.summary.value}


def test_the_frozen_network_is_the_one_of_the_stage_before(chain):
    states = {stage: load_checkpoint(run_folder(chain, stage) / "last.pth") for stage in ("vanilla", "rop", "acd_rop")}

    def equal(one, other):
        return all(torch.equal(one[key], other[key]) for key in one)

    assert equal(states["vanilla"]["gallery"], states["rop"]["gallery"]), "stage 1 freezes the gallery network"
    assert equal(states["rop"]["query"], states["acd_rop"]["query"]), "stage 2 freezes the query network"
    assert not equal(states["rop"]["gallery"], states["acd_rop"]["gallery"]), "and trains the gallery network"


def test_acd_saves_the_groups_and_scores_of_raho(chain):
    report = read(chain, "acd_rop")["optimizer_report"]
    # ResNet18: eight blocks, seven scored, int(7 · 0.3) = 2 unimportant
    assert len(report["scores"]) == 7
    groups = report["groups"]
    assert len(groups["unimportant_at_both"]) + len(groups["unimportant_at_high_resolution_only"]) == 2


def test_testing_a_run_gives_its_own_numbers(chain, veri):
    for stage in ("vanilla", "rop", "acd_rop"):
        settings = overrides(veri, chain, **stage_settings(stage, chain))
        found = evaluate_run(load_config(REPOSITORY / f"configs/veri/{stage}.yaml", settings)).summaries()
        reported = read(chain, stage)
        assert found == {name: reported[name] for name in found}


def test_per_query_results_average_to_the_reported_ones(chain):
    with np.load(run_folder(chain, "acd_rop") / "per_query.npz") as arrays:
        assert np.nanmean(arrays["AIR_ap"]) * 100 == pytest.approx(read(chain, "acd_rop")["AIR"]["mAP"])
        assert np.mean(arrays["AIR_first_hit"] == 1) * 100 == pytest.approx(read(chain, "acd_rop")["AIR"]["R1"])
        assert len(arrays["query_ids"]) == len(arrays["query_paths"]) == 6
        assert arrays["query_names"].tolist() == ["11", "11", "12", "12", "13", "13"]
    saved = load_checkpoint(run_folder(chain, "acd_rop") / "last.pth")
    assert saved["identity_names"] == {11: "11", 12: "12", 13: "13"}


def test_a_finished_run_says_so_and_stays(chain, run_stage, caplog):
    before = (run_folder(chain, "rop") / "last.pth").stat().st_mtime_ns
    with caplog.at_level("INFO", logger="d3still"):
        run_stage("rop", chain)
    assert "is finished" in caplog.text
    assert (run_folder(chain, "rop") / "last.pth").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("stage", "more", "message"),
    [
        ("rop", {"DISTILLER__TEACHER_MODEL_PATH": "nowhere.pth"}, r"nowhere\.pth.*DISTILLER\.TEACHER_MODEL_PATH"),
        ("acd_rop", {"DISTILLER__STUDENT_PRETRAIN_PATH": ""}, r"DISTILLER\.STUDENT_PRETRAIN_PATH is empty"),
        ("acd_rop", {"ACD__BASELINE": "ROPP"}, r"ACD\.BASELINE 'ROPP' is not a known baseline"),
        ("rop", {"DISTILLER__TYPE": "R0P"}, r"DISTILLER\.TYPE 'R0P'.*did you mean 'ROP'"),
        ("vanilla", {"DATASETS__ROOT_DIR": "/no/such/folder"}, r"/no/such/folder"),
        ("vanilla", {"EXPERIMENT__PRECISION": "float16"}, r"EXPERIMENT\.PRECISION float16 needs a GPU"),
        ("rop", {"ROP__TOPK": 9}, r"ROP\.TOPK is 9, more than the pair batch holds"),
        ("vanilla", {"SOLVER__OPTIMIZER_BUILDER": "RAHO"}, r"RAHO belongs to stage 2"),
        ("vanilla", {"SOLVER__OPTIMIZER_NAME": "Lion"}, r"SOLVER\.OPTIMIZER_NAME is 'Lion'"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(chain, run_stage, tmp_path, stage, more, message):
    settings = (
        {"DISTILLER__TEACHER_MODEL_PATH": str(run_folder(chain, "vanilla") / "last.pth")} if stage != "vanilla" else {}
    )
    settings |= (
        {"DISTILLER__STUDENT_PRETRAIN_PATH": str(run_folder(chain, "rop") / "last.pth")} if "acd" in stage else {}
    )
    with pytest.raises(UserError, match=message) as caught:
        run_stage(stage, tmp_path, **settings | more)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*.pth"))


def test_weights_that_left_the_numbers_replace_no_good_checkpoint(chain, run_stage, tmp_path, monkeypatch):
    """A finite loss, an update that overflows, and a checkpoint after each step."""
    where = {"DISTILLER__TEACHER_MODEL_PATH": str(run_folder(chain, "vanilla") / "last.pth")}

    class Overflowing(Trainer):
        def _train_on(self, *batches):
            super()._train_on(*batches)
            if self.step == 3:
                self.distiller.query.fc.classifier.weight.data[0, 0] = float("inf")

    monkeypatch.setattr("d3still.engine.run.Trainer", Overflowing)
    message = r"fc\.classifier\.weight.*the last good checkpoint is .*last\.pth.*lower SOLVER\.BASE_LR"
    with pytest.raises(UserError, match=message) as stopped:
        run_stage("rop", tmp_path, SOLVER__CHECKPOINT_STEPS=1, **where)
    saved = load_checkpoint(run_folder(tmp_path, "rop") / "last.pth")
    assert saved["progress"]["step"] == 2
    assert all(value.isfinite().all() for value in saved["query"].values())
    assert str(stopped.value) in (run_folder(tmp_path, "rop") / "log.txt").read_text(), "the log says why it ended"


def test_a_rate_that_overflows_the_weights_leaves_no_checkpoint(run_stage, tmp_path):
    with pytest.raises(UserError, match=r"not finite (after|in epoch)"):
        run_stage("vanilla", tmp_path, SOLVER__BASE_LR=3e38, SOLVER__CHECKPOINT_STEPS=1)
    assert not list(tmp_path.rglob("*.pth"))


def test_a_loss_that_is_not_finite_stops_the_run(chain, run_stage, tmp_path):
    where = {"DISTILLER__TEACHER_MODEL_PATH": str(run_folder(chain, "vanilla") / "last.pth")}
    with pytest.raises(UserError, match=r"not finite in epoch \d, step \d+ .*ce=.*last good checkpoint|no checkpoint"):
        run_stage("rop", tmp_path, SOLVER__BASE_LR=1e12, **where)


def test_a_run_of_another_config_is_refused_with_the_keys_that_differ(chain, run_stage):
    with pytest.raises(UserError, match=r"ROP\.TEMPERATURE: 0\.1 → 0\.2.*--resume never"):
        run_stage("rop", chain, ROP__TEMPERATURE=0.2)


def test_a_query_network_of_another_number_of_classes_is_refused(chain, run_stage, tmp_path):
    state = load_checkpoint(run_folder(chain, "vanilla") / "last.pth")
    state["gallery"]["fc.classifier.weight"] = torch.zeros(9, 512)
    torch.save(state, tmp_path / "nine.pth")
    with pytest.raises(UserError, match=r"9 identities.*this run has 6"):
        run_stage("rop", tmp_path, DISTILLER__TEACHER_MODEL_PATH=str(tmp_path / "nine.pth"))


def test_re_ranking_and_mirrored_features_are_reported_beside(chain, veri):
    more = {"TEST.RE_RANKING": True, "TEST.RE_RANKING_PARAMETER": [4, 2, 0.3], "TEST.FLIP_FEATS": True}
    settings = overrides(veri, chain, **stage_settings("rop", chain), **more)
    found = evaluate_run(load_config(REPOSITORY / "configs/veri/rop.yaml", settings)).summaries()
    assert list(found) == ["AIR", "AIR_reranked", "SIR", "SIR_reranked"]
