"""Which runs a comparison trains, in which order, and with which settings."""

import shutil

import pytest

from d3still.config import weight_path
from d3still.errors import UserError
from d3still.plans.plan import Planner, config_files
from d3still.runs.facts import VARIANT_TITLES, VARIANTS, variant_of, variant_settings
from tests.tiny import REPOSITORY

EMOJI = REPOSITORY / "configs/emoji"


def plan(*files, seeds=(2024,), variants=("baseline", "acd"), settings=(), **options):
    planner = Planner(files, settings)
    planner.add_all(list(seeds), variants, **options)
    return planner.runs


def names(runs):
    return [run.name for run in runs]


def test_a_stage_2_config_brings_the_stages_before_it():
    runs = plan(EMOJI / "acd_rop.yaml", seeds=(2024, 2025))
    expected = [f"emoji/{stage} seed {seed}" for seed in (2024, 2025) for stage in ("vanilla", "rop", "acd_rop")]
    assert names(runs) == expected
    vanilla, rop, acd = runs[:3]
    assert vanilla.needs == () and rop.needs == (vanilla.folder,) and acd.needs == (vanilla.folder, rop.folder)
    assert {run.cfg.SOLVER.SEED for run in runs[3:]} == {2025}


def test_what_several_need_is_planned_once():
    files = [EMOJI / f"{name}.yaml" for name in ("acd_rop", "acd_fitnet", "rop", "vanilla")]
    runs = plan(*files, seeds=(2024, 2024))
    assert sorted(names(runs)) == sorted(
        f"emoji/{s} seed 2024" for s in ("vanilla", "rop", "acd_rop", "fitnet", "acd_fitnet")
    )


def test_a_run_always_follows_what_it_needs():
    planned = set()
    for run in plan(EMOJI, seeds=(1, 2), variants=("acd", "finetune", "raho_only")):
        assert planned.issuperset(run.needs), run.name
        planned.add(run.folder)


def test_the_stage_before_may_have_a_file_in_another_folder():
    """A pair in its own folder, whose gallery network has a config under vanilla/."""
    pair = "ResNet101_IBN_256x256_ResNet18_128x128"
    assert names(plan(REPOSITORY / f"configs/veri/{pair}/acd_rop.yaml")) == [
        "VeRi776/vanilla/ResNet101_ibn_a_256x256 seed 2024",
        f"VeRi776/{pair}/rop seed 2024",
        f"VeRi776/{pair}/acd_rop seed 2024",
    ]


@pytest.mark.parametrize("dataset", ["cub", "inshop", "msmt17", "sop", "veri"])
def test_every_stage_2_config_of_the_matrix_finds_both_stages(dataset):
    files = sorted((REPOSITORY / f"configs/{dataset}").glob("**/acd_*.yaml"))[::2]
    for run in plan(*files):
        if run.cfg.DISTILLER.TYPE == "ACD":
            assert len(run.needs) == 2, run.file


def test_weights_of_elsewhere_need_no_run(tmp_path):
    weights = tmp_path / "VeRi.pth"
    weights.touch()
    runs = plan(EMOJI / "rop.yaml", settings=["DISTILLER.TEACHER_MODEL_PATH", str(weights)])
    assert names(runs) == ["emoji/rop seed 2024"] and runs[0].needs == ()


def test_configs_outside_the_repository_chain_by_their_names(tmp_path):
    for stage in ("vanilla", "rop", "acd_rop"):
        (tmp_path / f"{stage}.yaml").write_text(f"_BASE_: {EMOJI / stage}.yaml\n")
    assert [run.file.parent for run in plan(tmp_path / "acd_rop.yaml")] == [tmp_path] * 3


def test_variants_are_settings_on_the_stage_2_config():
    variants = VARIANTS
    runs = {run.cfg.OUTPUT_DIR.EXPERIMENT_NAME: run.cfg for run in plan(EMOJI / "acd_fitnet.yaml", variants=variants)}
    acd = runs["emoji/acd_fitnet"]
    finetune, uniform, raho = (runs[f"emoji/acd_fitnet-{name}"] for name in ("finetune", "acd_uniform", "raho_only"))
    assert (finetune.FITNET.KD_WEIGHT, finetune.ACD.ALPHA, finetune.ACD.BETA) == (0, 0, 0)
    assert finetune.SOLVER.OPTIMIZER_BUILDER == "RAHO" and finetune.RAHO == acd.RAHO, "RAHO's rates stay"
    assert uniform.SOLVER.OPTIMIZER_BUILDER == "Uniform"
    assert pytest.approx(acd.SOLVER.BASE_LR * acd.RAHO.GAMMA) == uniform.SOLVER.BASE_LR
    assert (uniform.FITNET, uniform.ACD) == (acd.FITNET, acd.ACD), "all terms stay"
    assert (raho.ACD.ALPHA, raho.ACD.BETA) == (0, 0) and raho.FITNET == acd.FITNET and raho.RAHO == acd.RAHO
    for name, terms in {"alpha_only": (0.3, 0, 20), "beta_only": (0, 0.2, 20), "logits_only": (0.3, 0.2, 0)}.items():
        one = runs[f"emoji/acd_fitnet-{name}"]
        assert terms == (one.ACD.ALPHA, one.ACD.BETA, one.FITNET.KD_WEIGHT) and one.RAHO == acd.RAHO
    assert len(runs) == 10, "with vanilla, fitnet and fitnet-longer"
    for name, cfg in runs.items():
        if cfg.DISTILLER.TYPE == "ACD":
            assert VARIANT_TITLES[variant_of(cfg)]
            assert variant_of(cfg) == name.partition("-")[2] or name == "emoji/acd_fitnet"


def test_longer_goes_on_from_stage_1_for_three_epochs_an_epoch_of_stage_2():
    runs = {run.cfg.OUTPUT_DIR.EXPERIMENT_NAME: run for run in plan(EMOJI / "acd_rop.yaml", variants=["longer"])}
    assert list(runs) == ["emoji/vanilla", "emoji/rop", "emoji/rop-longer"], "and no run of stage 2"
    vanilla, rop, longer = runs.values()
    assert longer.needs == (vanilla.folder, rop.folder)
    assert weight_path(longer.cfg, longer.cfg.DISTILLER.STUDENT_PRETRAIN_PATH).resolve() == rop.folder / "last.pth"
    stage_2 = plan(EMOJI / "acd_rop.yaml")[-1].cfg
    assert longer.cfg.SOLVER.MAX_EPOCHS == 3 * stage_2.SOLVER.MAX_EPOCHS
    assert pytest.approx(0.4 * rop.cfg.SOLVER.BASE_LR) == longer.cfg.SOLVER.BASE_LR
    assert (longer.cfg.SOLVER.LR_WARMUP_EPOCHS, longer.cfg.SOLVER.LR_DECAY_STEPS) == (0, [0])
    assert (longer.cfg.DISTILLER.TYPE, longer.cfg.ROP) == ("ROP", rop.cfg.ROP)
    assert [variant_of(run.cfg) for run in (rop, longer)] == ["baseline", "longer"]


def test_a_query_network_of_elsewhere_has_no_stage_1_to_go_on_with(tmp_path):
    (tmp_path / "query.pth").touch()
    settings = ["DISTILLER.STUDENT_PRETRAIN_PATH", str(tmp_path / "query.pth")]
    assert plan(EMOJI / "acd_rop.yaml", variants=["longer"], settings=settings) == []


def test_the_uniform_rate_can_be_chosen():
    runs = plan(EMOJI / "acd_rop.yaml", variants=["acd_uniform"], uniform_lr=0.0025)
    assert runs[-1].cfg.SOLVER.BASE_LR == 0.0025
    assert names(runs)[-1] == "emoji/acd_rop-acd_uniform seed 2024", "and + ACD itself is not asked for"
    assert len(runs) == 3


def test_settings_of_stage_2_leave_the_earlier_stages_alone():
    """Else ACD.ALPHA 5 would make finished runs of stages 0 and 1 those of another config."""
    settings = ["ACD.ALPHA", "5", "RAHO.GAMMA", "0.5", "SOLVER.MAX_EPOCHS", "3"]
    runs = plan(EMOJI / "acd_rop.yaml", settings=settings)
    assert [run.cfg.SOLVER.MAX_EPOCHS for run in runs] == [3, 3, 3]
    assert [run.cfg.ACD.ALPHA for run in runs] == [3.0, 3.0, 5.0]
    assert runs[0].cfg.RAHO.GAMMA == plan(EMOJI / "vanilla.yaml")[0].cfg.RAHO.GAMMA


@pytest.mark.parametrize(
    ("key", "instead"), [("SOLVER.SEED", "--seeds"), ("OUTPUT_DIR.EXPERIMENT_NAME", "OUTPUT_DIR.ROOT_PATH")]
)
def test_what_the_plan_sets_itself_cannot_be_set_for_all(key, instead):
    with pytest.raises(UserError, match=f"{key} is set for each run; use {instead}"):
        Planner([EMOJI / "rop.yaml"], [key, "7"])


@pytest.mark.parametrize("stage", ["vanilla", "rop", "acd_rop"])
def test_a_key_without_a_value_is_named(stage):
    with pytest.raises(UserError, match=r"'SOLVER\.MAX_EPOCHS' is left over"):
        plan(EMOJI / f"{stage}.yaml", settings=["SOLVER.MAX_EPOCHS"])


def test_an_unknown_variant_is_named():
    with pytest.raises(UserError, match="acd_all is not one of baseline, longer, acd, finetune, acd_uniform"):
        plan(EMOJI / "acd_rop.yaml", variants=["acd_all"])


def test_files_that_only_serve_as_bases_are_left_out(tmp_path):
    assert all(not path.name.startswith("_") for path in config_files([EMOJI]))
    shutil.copy(EMOJI / "_base_.yaml", tmp_path)
    with pytest.raises(UserError, match="no config file given"):
        list(config_files([tmp_path]))
    with pytest.raises(UserError, match=r"nothing\.yaml is no config file"):
        list(config_files([tmp_path / "nothing.yaml"]))


def test_a_user_baseline_without_a_weight_has_no_finetune_control():
    config = {"DISTILLER": {"TYPE": "ACD"}, "ACD": {"BASELINE": "Mine"}, "Mine": {"MARGIN": 1.0}}
    with pytest.raises(UserError, match="the baseline Mine has no KD_WEIGHT"):
        variant_settings(config, "finetune")


@pytest.mark.parametrize("name", ["configs/emoji/acd_rop.yaml", "configs/emoji/ResNet18_12x12"])
def test_configs_that_come_along_are_found_from_any_folder(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    files = list(config_files([name]))
    assert files and all(file.is_relative_to(REPOSITORY / "configs/emoji") for file in files)
