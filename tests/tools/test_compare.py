"""compare_net, sweep_net and visualize_net as commands: on finished runs, and (slow) from training to the report."""

import json
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import yaml
from PIL import Image

from d3still.errors import UserError
from tests.reporting.fabricate import images, make_log
from tests.tiny import GALLERY, REPOSITORY, SETTINGS, overrides, stage_settings, tool

BASELINES = ("rop", "fitnet")


@pytest.fixture
def queries(tmp_path):
    return images(tmp_path / "images", identities=3)


@pytest.fixture(scope="module")
def configs(veri, tmp_path_factory):
    """Files of tiny experiments that chain like configs/emoji: a gallery network, two baselines with + ACD."""
    folder = tmp_path_factory.mktemp("configs")
    common = SETTINGS | {"DATASETS.NAMES": "VeRi776", "DATASETS.ROOT_DIR": str(veri), "OUTPUT_DIR.ROOT_PATH": "unset"}
    stages = {"vanilla": GALLERY} | {name: {} for b in BASELINES for name in (b, f"acd_{b}")}
    for stage, more in stages.items():
        tree = {"_BASE_": str(REPOSITORY / f"configs/veri/{stage}.yaml")}
        for key, value in (common | more).items():
            section, _, name = key.partition(".")
            tree.setdefault(section, {})[name] = value
        (folder / f"{stage}.yaml").write_text(yaml.safe_dump(tree))
    (folder / "_base_.yaml").write_text("SOLVER: {MAX_EPOCHS: 1}\n")
    return folder


def chain_settings(stage, veri, chain):
    return overrides(veri, chain, **stage_settings(stage, chain))


def test_compare_from_folders_alone(chain, run_tool, tmp_path):
    """Of the runs that the engine left: the table, the data, and the report with ranked lists by their networks."""
    status, printed = run_tool("compare_net", "--from", chain, "--out", tmp_path)
    assert status == 0 and "ROP" in printed and "+ ACD" in printed and "report.html" in printed
    runs = json.loads((tmp_path / "comparison.json").read_text())["runs"]
    metrics = {
        stage: json.loads((chain / f"VeRi776/{stage}/seed2024/metrics.json").read_text())
        for stage in ("vanilla", "rop", "acd_rop")
    }
    assert [run["variant"] for run in runs] == ["baseline", "acd"]
    assert runs[0]["AIR"] == metrics["rop"]["AIR"] and runs[0]["SIR"] == metrics["vanilla"]["SIR"]
    assert runs[1]["AIR"] == metrics["acd_rop"]["AIR"] and runs[1]["SIR"] == metrics["acd_rop"]["SIR"]
    page = (tmp_path / "report.html").read_text()
    assert "Queries" in page and "normalised score" in page and "No ranked lists" not in page
    ap = [np.load(chain / f"VeRi776/{stage}/seed2024/per_query.npz")["AIR_ap"] for stage in ("rop", "acd_rop")]
    changed = not np.array_equal(*ap)  # also where the means are the same
    assert (page.count("data:image") > 10) == changed, "lists of the queries whose AP changed, if any did"


@pytest.mark.parametrize("place", ["config", "base"])
def test_code_of_other_peoples_runs_does_not_run_unasked(queries, run_tool, tmp_path, place):
    """They are compared from their numbers, and the page says what would show more."""
    folder = make_log(tmp_path / "log", queries, seeds=(1,)) / "emoji/rop/seed1"
    (folder / "theirs.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    config, named = folder / "config.yaml", "IMPORTS: [theirs.py]"
    if place == "config":
        config.write_text(re.sub(r"IMPORTS: \[\]", named, config.read_text()))
        assert named in config.read_text()
    else:
        text = re.sub(r"IMPORTS: \[\],? ?", "", config.read_text())
        config.write_text(f"_BASE_: base.yaml\n{text}")
        (folder / "base.yaml").write_text(f"EXPERIMENT: {{{named}}}")
    command = (
        "compare_net",
        "--from",
        tmp_path / "log",
        "--out",
        tmp_path / "out",
        "DATASETS.ROOT_DIR",
        tmp_path / "none",
    )
    status, printed = run_tool(*command)
    assert status == 0 and "+ ACD" in printed and not (tmp_path / "ran").exists()
    assert "theirs.py, which would run that code" in (tmp_path / "out/report.html").read_text()
    run_tool(*command, "--trust")
    assert (tmp_path / "ran").exists()


def test_compare_refuses_what_makes_no_sense(run_tool, tmp_path):
    for arguments in ((), ("configs/emoji/rop.yaml", "--from", "log")):
        with pytest.raises(UserError, match="either config files or --from"):
            run_tool("compare_net", *arguments)
    with pytest.raises(UserError, match="no finished run below"):
        run_tool("compare_net", "--from", tmp_path)
    for option in ("--from", "--out"):
        with pytest.raises(UserError, match="'~nosuchuser/log' begins with a user who has no home folder"):
            run_tool("compare_net", option, "~nosuchuser/log")


def test_compare_lists_its_plan(configs, run_tool, tmp_path):
    """Settings may stand after any option; they and the seeds are told apart."""
    settings = ("OUTPUT_DIR.ROOT_PATH", tmp_path, "SOLVER.MAX_EPOCHS", "1")
    expected = [f"missing   VeRi776/{name} seed {seed}" for seed in (7, 8) for name in ("vanilla", "rop", "acd_rop")]
    for arguments in (
        (configs / "acd_rop.yaml", *settings, "--seeds", 7, 8, "--dry-run"),
        (configs / "acd_rop.yaml", "--dry-run", "--seeds", 7, 8, *settings),
        ("--seeds", 7, 8, "--variants", "acd", *settings, "--dry-run", configs / "acd_rop.yaml"),
    ):
        status, printed = run_tool("compare_net", *arguments)
        assert status == 0 and printed.splitlines() == [*expected, "6 of 6 runs are left to train"]


def test_a_run_that_cannot_start_is_one_line_and_status_1(chain, configs, run_tool, tmp_path, caplog):
    """The dataset is missing, so its stage 0 fails, and what needs it is not started."""
    settings = ("OUTPUT_DIR.ROOT_PATH", tmp_path / "log", "DATASETS.ROOT_DIR", tmp_path / "nowhere")
    with caplog.at_level("ERROR", logger="d3still"), pytest.raises(UserError, match="nothing to compare"):
        run_tool("compare_net", configs / "acd_rop.yaml", *settings)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 3 and f"{tmp_path / 'nowhere'} does not exist" in messages[0]
    assert all("not started, since it needs VeRi776/vanilla seed 2024" in message for message in messages[1:])
    assert not (tmp_path / "log").exists()


def test_visualize_draws_the_worst_queries(chain, veri, run_tool, tmp_path):
    settings = chain_settings("acd_rop", veri, chain)
    config, picture = REPOSITORY / "configs/veri/acd_rop.yaml", tmp_path / "worst.png"
    with np.load(chain / "VeRi776/acd_rop/seed2024/per_query.npz") as arrays:
        order = np.argsort(arrays["AIR_ap"], kind="stable")[:2]
        expected = [(f"{100 * arrays['AIR_ap'][i]:.2f}", arrays["query_paths"][i]) for i in order]
    _, printed = run_tool("visualize_net", "--config-file", config, "--worst", 2, "--out", picture, *settings)
    lines = printed.splitlines()
    assert [(line.split()[0], line.split()[-1]) for line in lines[:2]] == expected
    with pytest.raises(SystemExit):
        run_tool("visualize_net", "--config-file", config, "--topk", 0, *settings)
    assert lines[2] == str(picture) and Image.open(picture).size[0] > 1000


def test_visualize_draws_chosen_and_changed_queries(chain, veri, run_tool, tmp_path):
    settings = chain_settings("acd_rop", veri, chain)
    config, folder = REPOSITORY / "configs/veri/acd_rop.yaml", chain / "VeRi776/acd_rop/seed2024/pictures"
    name = sorted(path.name for path in (veri / "image_query").iterdir())[3]
    _, printed = run_tool("visualize_net", "--config-file", config, "--protocol", "SIR", "--queries", name, *settings)
    assert printed.splitlines()[0].endswith(name) and (folder / "SIR_chosen.png").exists()
    after, before = (np.load(chain / f"VeRi776/{stage}/seed2024/per_query.npz") for stage in ("acd_rop", "rop"))
    with after, before:
        gains = after["AIR_ap"] - before["AIR_ap"]
    for option, sign in (("--most-improved", 1), ("--most-harmed", -1)):
        arguments = ("--config-file", config, option, 3, *settings)
        if not (sign * gains > 0).any():
            with pytest.raises(UserError, match="so there is nothing to draw"):
                run_tool("visualize_net", *arguments)
            continue
        _, printed = run_tool("visualize_net", *arguments)
        assert f"({100 * sign * np.max(sign * gains):+.2f})" in printed.splitlines()[0]


def test_sweep_lists_its_plan(configs, run_tool, tmp_path):
    arguments = ("--config-file", configs / "acd_rop.yaml", "--over", "RAHO.GAMMA", 0.05, 0.5)
    settings = ("OUTPUT_DIR.ROOT_PATH", tmp_path)
    status, printed = run_tool("sweep_net", *arguments, *settings, "--dry-run")
    assert status == 0 and [line.split(maxsplit=1)[1] for line in printed.splitlines()[:-1]] == [
        f"VeRi776/{name} seed 2024" for name in ("vanilla", "rop", "acd_rop", "acd_rop/sweep/RAHO.GAMMA=0.5")
    ]
    with pytest.raises(UserError, match="needs values"):
        run_tool("sweep_net", "--config-file", configs / "acd_rop.yaml", "--over", "RAHO.GAMMA", *settings)


@pytest.mark.slow
def test_from_nothing_to_the_report(configs, tmp_path):
    """Two baselines, two seeds, a control; a kill in the middle; then a sweep that shares what is there."""
    settings = ("OUTPUT_DIR.ROOT_PATH", tmp_path)
    arguments = [configs, "--seeds", 1, 2, "--variants", "baseline", "acd", "finetune", *settings]
    command = [sys.executable, str(REPOSITORY / "tools/compare_net.py"), *map(str, arguments)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as killed:
        while not (tmp_path / "VeRi776/vanilla/seed1/metrics.json").exists():
            assert killed.poll() is None
            time.sleep(0.1)
        killed.send_signal(signal.SIGTERM)
        assert killed.wait(120) == 128 + signal.SIGTERM
    before = (tmp_path / "VeRi776/vanilla/seed1/last.pth").stat().st_mtime_ns
    done = tool("compare_net.py", *arguments)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "VeRi776/vanilla/seed1/last.pth").stat().st_mtime_ns == before, "a finished run stays"
    runs = json.loads((tmp_path / "compare/comparison.json").read_text())["runs"]
    found = {(run["baseline"], run["variant"], run["seed"]) for run in runs}
    assert found == {(b, v, s) for b in ("ROP", "FitNet") for v in ("baseline", "acd", "finetune") for s in (1, 2)}
    for name in ("report.html", "table.md", "table.tex", "table.csv"):
        assert (tmp_path / "compare" / name).stat().st_size > 0
    assert "training" not in tool("compare_net.py", *arguments).stderr, "the second time nothing is trained"
    other = tool("compare_net.py", *arguments, "SOLVER.BASE_LR", 0.5)
    assert other.returncode == 2 and "SOLVER.BASE_LR: 0.01 → 0.5" in other.stderr, "never the results of another config"

    sweep = ("--config-file", configs / "acd_rop.yaml", "--over", "RAHO.GAMMA", 0.05, 0.5, "--seeds", 1, 2, *settings)
    done = tool("sweep_net.py", *sweep)
    assert done.returncode == 0, done.stderr
    place = tmp_path / "VeRi776/acd_rop/sweep"
    runs = json.loads((place / "sweep_RAHO.GAMMA.json").read_text())["runs"]
    assert [(run["value"], run["seed"]) for run in runs] == [(0.05, 1), (0.05, 2), (0.5, 1), (0.5, 2)]
    own = json.loads((tmp_path / "VeRi776/acd_rop/seed1/metrics.json").read_text())
    assert runs[0]["AIR"] == own["AIR"], "the config's own value is the experiment itself"
    for suffix in ("png", "pdf", "csv"):
        assert (place / f"sweep_RAHO.GAMMA.{suffix}").stat().st_size > 0
