"""A sweep: where its runs live, which are shared, and that the numbers and the figure are those of the runs."""

import csv
import io
import json

import numpy as np
import pytest
from PIL import Image

from d3still.errors import UserError
from d3still.plans.sweep import plan_sweep
from d3still.reporting.sweep import read_sweep, save_figure, sweep_csv, sweep_figure, sweep_json, sweep_text
from d3still.reporting.words import is_key, is_whole_number, split_words
from tests.reporting.fabricate import make_run
from tests.tiny import REPOSITORY

ACD_ROP = REPOSITORY / "configs/emoji/acd_rop.yaml"


def planned(root, key="ACD.ALPHA", values=("0", "0.3", "1.5"), seeds=(2024, 2025), settings=()):
    return plan_sweep(ACD_ROP, key, values, seeds, ["OUTPUT_DIR.ROOT_PATH", str(root), *settings])


@pytest.fixture
def sweep(queries, tmp_path):
    """Finished runs: AIR rises with α, SIR falls."""
    plan = planned(tmp_path)
    for run in plan.all_runs:
        stage2 = run.cfg.DISTILLER.TYPE == "ACD"
        alpha = run.cfg.ACD.ALPHA if stage2 else 0.0
        air = None if run.cfg.DISTILLER.TYPE == "NONE" else 0.5 + 0.03 * alpha
        make_run(run.cfg, queries, air, 0.7 - 0.02 * alpha)
    return read_sweep(plan, {run.folder for run in plan.all_runs})


def test_a_value_has_its_own_folder_and_the_configs_own_value_is_the_experiment(tmp_path):
    plan = planned(tmp_path)
    places = {value: by_seed[2025].folder.relative_to(tmp_path).as_posix() for value, by_seed in plan.runs.items()}
    assert places == {
        0.0: "emoji/acd_rop/sweep/ACD.ALPHA=0/seed2025",
        0.3: "emoji/acd_rop/seed2025",
        1.5: "emoji/acd_rop/sweep/ACD.ALPHA=1.5/seed2025",
    }
    assert list(plan.runs) == [0.0, 0.3, 1.5], "in order of the value"
    assert len(plan.all_runs) == 2 * (2 + 3), "stages 0 and 1 once a seed"
    assert [by_seed[2024].cfg.ACD.ALPHA for by_seed in plan.runs.values()] == [0.0, 0.3, 1.5]
    assert plan.folder == tmp_path / "emoji/acd_rop/sweep"


def test_equal_values_are_one_run(tmp_path):
    assert list(planned(tmp_path, values=("1", "1.0", "1e0")).runs) == [1.0]


@pytest.mark.parametrize("key", ["ACD.BETA", "RAHO.GAMMA", "RAHO.RATIO"])
def test_other_keys(tmp_path, key):
    plan = planned(tmp_path, key, ("0.25", "0.75"), seeds=(1,))
    assert [run.name for run in plan.all_runs[2:]] == [
        f"emoji/acd_rop/sweep/{key}={v} seed 1" for v in ("0.25", "0.75")
    ]


def test_what_cannot_be_swept(tmp_path):
    with pytest.raises(UserError, match=r"did you mean.*ACD.ALPHA"):
        planned(tmp_path, "ACD.ALPHAS")
    with pytest.raises(UserError, match=r"ACD\.ALPHA"):
        planned(tmp_path, values=("much",))
    with pytest.raises(UserError, match="not of stage 2"):
        plan_sweep(REPOSITORY / "configs/emoji/rop.yaml", "ACD.ALPHA", ["1"], [1], [])


def test_numbers_are_those_of_the_runs(sweep):
    content = json.loads(sweep_json(sweep))
    assert content["key"] == "ACD.ALPHA" and len(content["runs"]) == 6 and len(content["baseline_runs"]) == 2
    by_value = {}
    for run in content["runs"]:
        by_value.setdefault(run["value"], []).append(run["AIR"]["mAP"])
    lines = {
        (float(line["ACD.ALPHA"]), line["protocol"], line["measure"]): line
        for line in csv.DictReader(io.StringIO(sweep_csv(sweep)))
    }
    for value, scores in by_value.items():
        line = lines[value, "AIR", "mAP"]
        assert float(line["mean"]) == pytest.approx(np.mean(scores), rel=1e-5)
        assert float(line["deviation"]) == pytest.approx(np.std(scores, ddof=1), rel=1e-3)
    assert len(lines) == 3 * 10
    text = sweep_text(sweep)
    assert "baseline" in text and f"{np.mean(by_value[1.5]):.2f}" in text


def test_the_figure_has_four_panels_with_units(sweep, tmp_path):
    figure = sweep_figure(sweep)
    assert [axes.get_ylabel() for axes in figure.axes] == ["AIR mAP (%)", "AIR R1 (%)", "SIR mAP (%)", "SIR R1 (%)"]
    assert {axes.get_xlabel() for axes in figure.axes} == {"α (ACD.ALPHA)"}
    for axes, column in zip(figure.axes, (("AIR", "mAP"), ("AIR", "R1"), ("SIR", "mAP"), ("SIR", "R1")), strict=True):
        line = axes.get_lines()[0]
        assert line.get_xdata() == pytest.approx([0, 0.3, 1.5])
        assert line.get_ydata() == pytest.approx([row.summary(column)[0] for row in sweep.rows.values()])
        baseline = next(line for line in axes.get_lines() if line.get_label() == "baseline")
        assert baseline.get_ydata()[0] == pytest.approx(sweep.baseline.summary(column)[0])
    png, pdf = save_figure(figure, tmp_path / "out", "sweep_ACD.ALPHA")
    assert Image.open(png).size[0] > 1000 and pdf.read_bytes().startswith(b"%PDF")
    first = png.read_bytes(), pdf.read_bytes()
    save_figure(sweep_figure(sweep), tmp_path / "out", "sweep_ACD.ALPHA")
    assert (png.read_bytes(), pdf.read_bytes()) == first, "the same figure gives the same files"
    figure.axes[0].set_ylabel("$\\broken$")
    with pytest.raises(ValueError, match="broken"):
        save_figure(figure, tmp_path / "out", "sweep_ACD.ALPHA")
    assert (png.read_bytes(), pdf.read_bytes()) == first and len(list((tmp_path / "out").iterdir())) == 2


def test_unfinished_values_are_left_out(queries, tmp_path):
    plan = planned(tmp_path)
    value, by_seed = next(iter(plan.runs.items()))
    make_run(by_seed[2024].cfg, queries, 0.5, 0.5)
    sweep = read_sweep(plan, {by_seed[2024].folder})
    assert list(sweep.rows) == [value] and sweep.baseline is None
    assert sweep_figure(sweep).axes, "one value, one seed, no baseline can be drawn"
    with pytest.raises(UserError, match=r"no run of the sweep over ACD\.ALPHA is finished"):
        read_sweep(plan, set())


def test_values_that_are_no_numbers_are_placed_side_by_side(queries, tmp_path):
    plan = planned(tmp_path, "RAHO.CROSS_RESOLUTION", ("True", "False"), seeds=(1,))
    for run in plan.all_runs:
        make_run(run.cfg, queries, None if run.cfg.DISTILLER.TYPE == "NONE" else 0.5, 0.6)
    axes = sweep_figure(read_sweep(plan, {run.folder for run in plan.all_runs})).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["False", "True"]


def test_words_of_a_command_line_are_told_apart():
    assert split_words(["1", "2", "A.B", "3"], is_whole_number) == (["1", "2"], ["A.B", "3"])
    assert split_words(["1"], is_whole_number) == (["1"], [])
    for key in ("ACD.ALPHA", "VanillaKD.TEMPERATURE", "RKD.PDIST.EPSILON", "D3.TOPK"):
        assert is_key(key)
    for word in ("0.5", "1e-3", ".5", "-1", "True", "rop.yaml", "log/a.B", "IMG.JPG", "a_c1.png", "[1, 2]"):
        assert not is_key(word), word
