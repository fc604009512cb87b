"""Where a run lives and how a stage finds the weights of the one before."""

from pathlib import Path

import pytest

from d3still.config import REPOSITORY, filled_in, get_cfg, load_config, run_dir, weight_path


def config_at(path, text="DATASETS: {NAMES: emoji}\n"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "file, folder",
    [
        ("configs/emoji/rop.yaml", "log/emoji/rop/seed2024"),
        ("configs/mine/PAIR/rop.yaml", "log/emoji/PAIR/rop/seed2024"),
        ("configs/mine/vanilla/ResNet18_64x64.yaml", "log/emoji/vanilla/ResNet18_64x64/seed2024"),
        ("configs/rop.yaml", "log/emoji/rop/seed2024"),
        ("elsewhere/deep/rop.yaml", "log/emoji/rop/seed2024"),
        ("rop.yaml", "log/emoji/rop/seed2024"),
    ],
)
def test_a_run_is_named_after_its_dataset_and_config(tmp_path, monkeypatch, file, folder):
    monkeypatch.chdir(tmp_path)
    config_at(tmp_path / file)
    assert run_dir(load_config(file)) == Path(folder)
    assert run_dir(load_config(tmp_path / file)) == Path(folder)


def test_the_repositorys_configs_are_named_alike_from_everywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = load_config(REPOSITORY / "configs" / "veri" / "acd_rop.yaml")
    assert run_dir(cfg) == Path("log/VeRi776/acd_rop/seed2024")


def test_root_name_and_seed_can_be_chosen(tmp_path):
    overrides = ["OUTPUT_DIR.ROOT_PATH", str(tmp_path), "OUTPUT_DIR.EXPERIMENT_NAME", "a/b", "SOLVER.SEED", 7]
    cfg = load_config(config_at(tmp_path / "x.yaml"), overrides)
    assert run_dir(cfg) == tmp_path / "a" / "b" / "seed7"


def test_weights_follow_root_and_seed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = get_cfg()
    cfg.merge_from_list(["OUTPUT_DIR.ROOT_PATH", "runs", "SOLVER.SEED", 7])
    assert weight_path(cfg, "{root}/emoji/rop/seed{seed}/last.pth") == tmp_path / "runs/emoji/rop/seed7/last.pth"
    cfg.OUTPUT_DIR.ROOT_PATH = "/data/runs"
    assert weight_path(cfg, "{root}/seed{seed}.pth") == Path("/data/runs/seed7.pth")


def test_weights_follow_the_experiment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = ["DATASETS.NAMES", "folder", "OUTPUT_DIR.EXPERIMENT_NAME", "shoes/small/acd_rop", "SOLVER.SEED", "7"]
    cfg = load_config(config_at(tmp_path / "x.yaml"), settings)
    assert weight_path(cfg, "{root}/{dataset}/vanilla/last.pth") == tmp_path / "log/folder/vanilla/last.pth"
    assert weight_path(cfg, "{root}/{folder}/rop/last.pth") == tmp_path / "log/shoes/small/rop/last.pth"
    assert weight_path(cfg, "{run}/best.pth") == tmp_path / "log/shoes/small/acd_rop/seed7/best.pth"
    assert weight_path(cfg, "{other}/{}.pth") == tmp_path / "{other}/{}.pth"
    assert filled_in(cfg, "{root} {run}", "/moved") == "/moved /moved/shoes/small/acd_rop/seed7"


def test_weights_are_looked_for_here_then_in_the_repository_then_in_checkpoints(tmp_path, monkeypatch):
    repository, here = tmp_path / "repository", tmp_path / "here"
    for folder in (repository / "checkpoints", here / "checkpoints"):
        folder.mkdir(parents=True)
    monkeypatch.chdir(here)
    monkeypatch.setattr("d3still.config.paths.REPOSITORY", repository)
    cfg = get_cfg()
    assert weight_path(cfg, "w.pth") == here / "w.pth"  # nowhere: for the caller to report
    for place in (repository / "checkpoints", here / "checkpoints", repository, here):
        (place / "w.pth").touch()
        assert weight_path(cfg, "w.pth") == place / "w.pth"
    (tmp_path / "clone/configs/veri").mkdir(parents=True)
    (tmp_path / "clone/w2.pth").touch()
    cfg.merge_from_file(config_at(tmp_path / "clone/configs/veri/x.yaml"))
    assert weight_path(cfg, "w2.pth") == tmp_path / "clone/w2.pth"  # the repository that the config is from
    assert weight_path(cfg, "/nowhere/w.pth") == Path("/nowhere/w.pth")


@pytest.mark.parametrize("name", ["folder", "csv"])
@pytest.mark.parametrize("experiment", ["", "shoes"])
def test_the_configs_for_own_data_chain(tmp_path, monkeypatch, name, experiment):
    """Each stage's weight paths are the results of the stages before, of either kind of data and under any name."""
    monkeypatch.chdir(tmp_path)

    def stage(stem):
        settings = ["DATASETS.NAMES", name, "SOLVER.SEED", "7"]
        settings += ["OUTPUT_DIR.EXPERIMENT_NAME", f"{experiment}/{stem}"] if experiment else []
        return load_config(f"configs/own/{stem}.yaml", settings)

    vanilla, rop, acd = (tmp_path / run_dir(stage(stem)) / "last.pth" for stem in ("vanilla", "rop", "acd_rop"))
    assert vanilla == tmp_path / "log" / (experiment or name) / "vanilla/seed7/last.pth" and acd != rop
    for stem in ("rop", "acd_rop"):
        assert weight_path(stage(stem), stage(stem).DISTILLER.TEACHER_MODEL_PATH) == vanilla
    assert weight_path(stage("acd_rop"), stage("acd_rop").DISTILLER.STUDENT_PRETRAIN_PATH) == rop
    assert stage("vanilla").INPUT.STUDENT_SIZE_TRAIN == stage("rop").INPUT.TEACHER_SIZE_TRAIN
    assert stage("vanilla").DISTILLER.STUDENT_NAME == stage("rop").DISTILLER.TEACHER_NAME


@pytest.mark.parametrize(
    ("name", "root", "folder"),
    [
        ("folder", "/data/shoes", "log/folder/shoes/rop/seed2024"),
        ("folder", "/data/boots/", "log/folder/boots/rop/seed2024"),
        ("csv", "/data/bags.csv", "log/csv/bags/rop/seed2024"),
        ("VeRi776", "/data/VeRi", "log/VeRi776/rop/seed2024"),
    ],
)
def test_two_own_datasets_have_two_folders(tmp_path, name, root, folder):
    cfg = load_config(config_at(tmp_path / "rop.yaml", f"DATASETS: {{NAMES: {name}, ROOT_DIR: {root}}}\n"))
    assert run_dir(cfg) == Path(folder)
    assert weight_path(cfg, "{root}/{dataset}/rop/last.pth").parts[-4:-2] == Path(folder).parts[-4:-2]
