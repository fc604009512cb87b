"""From run folders to a results object: who belongs to whom, and every number in the tables."""

import csv
import io
import json
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml

from d3still.config import load_config
from d3still.distillers import DISTILLERS
from d3still.errors import UserError
from d3still.reporting.choose import gains_over
from d3still.reporting.comparison import compare
from d3still.reporting.html import report_html
from d3still.reporting.outputs import csv_text, json_text, to_csv, to_json
from d3still.reporting.pairing import mean_pairs, paired_differences, relative_names
from d3still.reporting.published import published_scores
from d3still.reporting.tables import Cell, Table, footnotes, tables_of, to_console, to_latex, to_markdown
from d3still.runs.facts import variant_settings
from d3still.runs.finished import find_runs, read_run
from tests.conformance import FOLDER as CONFORMANCE
from tests.reporting.fabricate import config, make_log, make_run
from tests.tiny import REPOSITORY

PUBLISHED = json.loads((CONFORMANCE / "published_veri776.json").read_text())["VeRi776"]
PAIR = "emoji/ResNet18_64x64__ResNet18_32x32"
CONTROLS = {
    "finetune": {"ACD__ALPHA": 0, "ACD__BETA": 0, "ROP__KD_WEIGHT": 0},
    "raho_only": {"ACD__ALPHA": 0, "ACD__BETA": 0},
    "acd_uniform": {"SOLVER__OPTIMIZER_BUILDER": "Uniform"},
}


def compared(folder):
    return compare(*find_runs(folder))


def add_control(log, queries, name, air, seeds=(2024, 2025)):
    for seed in seeds:
        named = {"OUTPUT_DIR__EXPERIMENT_NAME": f"emoji/acd_rop-{name}"}
        make_run(config("acd_rop", log, seed, **CONTROLS[name], **named), queries, air, 0.69)


@pytest.fixture
def own_log(log, tmp_path):
    """A log to change."""
    return Path(shutil.copytree(log, tmp_path / "log"))


def test_rows_and_differences(log):
    comparison = compared(log)
    assert [(row.pair, row.baseline, row.variant) for row in comparison.rows] == [
        (PAIR, "ROP", "baseline"),
        (PAIR, "ROP", "acd"),
    ]
    before, after = comparison.rows
    metrics = {
        (name, seed): json.loads((log / f"emoji/{name}/seed{seed}/metrics.json").read_text())
        for name in ("rop", "acd_rop")
        for seed in (2024, 2025)
    }
    for measure in ("mAP", "R1"):
        old = [metrics["rop", seed]["AIR"][measure] for seed in (2024, 2025)]
        new = [metrics["acd_rop", seed]["AIR"][measure] for seed in (2024, 2025)]
        assert before.summary(("AIR", measure)) == pytest.approx((np.mean(old), np.std(old, ddof=1)))
        difference = after.differences["baseline"]["AIR", measure]
        assert difference.value == pytest.approx(np.mean(new) - np.mean(old)) and difference.seeds == 2
        assert difference.significant and difference.verdict.low < difference.value < difference.verdict.high
    assert after.differences["baseline"]["SIR", "mAP"].value < 0
    assert not before.differences, "a baseline is compared with nothing"


def test_a_baselines_symmetric_result_is_its_gallery_networks(own_log):
    """Stage 0's own number, though the stage-1 folder says something else."""
    for seed, value in ((2024, 71.5), (2025, 72.5)):
        path = own_log / f"emoji/vanilla/seed{seed}/metrics.json"
        metrics = json.loads(path.read_text())
        metrics["SIR"]["mAP"] = value
        path.write_text(json.dumps(metrics))
    before, after = compared(own_log).rows
    assert before.scores(("SIR", "mAP")) == [71.5, 72.5]
    assert after.scores(("SIR", "mAP")) != [71.5, 72.5]
    shutil.rmtree(own_log / "emoji/vanilla")
    assert compared(own_log).rows[0].scores(("SIR", "mAP")) != [71.5, 72.5], "else the same network's of stage 1"


def test_controls_are_told_by_their_settings_and_compared_with(own_log, queries):
    for name, air in (("finetune", 0.52), ("raho_only", 0.54), ("acd_uniform", 0.53)):
        add_control(own_log, queries, name, air)
    comparison = compared(own_log)
    assert [row.variant for row in comparison.rows] == ["baseline", "acd", "finetune", "acd_uniform", "raho_only"]
    acd, finetune = comparison.rows[1:3]
    column = ("AIR", "mAP")
    over = acd.differences["finetune"][column]
    assert over.value == pytest.approx(acd.summary(column)[0] - finetune.summary(column)[0])
    assert set(finetune.differences) == {"baseline"}, "the control is not compared with itself"
    table = to_console(tables_of(comparison), footnotes(comparison))
    assert "Δft" in table.splitlines()[1] and "+ fine-tuning only" in table


def test_a_continued_stage_1_is_a_variant_of_the_baseline_that_it_goes_on_from(own_log, queries):
    for seed in (2024, 2025):
        started = {
            "DISTILLER__STUDENT_PRETRAIN_PATH": own_log / f"emoji/rop/seed{seed}/last.pth",
            "OUTPUT_DIR__EXPERIMENT_NAME": "emoji/rop-longer",
        }
        make_run(config("rop", own_log, seed, **started), queries, 0.505, 0.7)
    comparison = compared(own_log)
    assert [(row.baseline, row.variant) for row in comparison.rows] == [
        ("ROP", "baseline"),
        ("ROP", "longer"),
        ("ROP", "acd"),
    ]
    before, longer, _ = comparison.rows
    gain = longer.summary(("AIR", "mAP"))[0] - before.summary(("AIR", "mAP"))[0]
    assert longer.differences["baseline"]["AIR", "mAP"].value == pytest.approx(gain)
    assert "+ stage 1 continued" in to_console(tables_of(comparison), footnotes(comparison))


def test_holm_runs_over_the_rows_of_a_column(own_log, queries):
    for name in CONTROLS:
        add_control(own_log, queries, name, 0.505)
    rows = compared(own_log).rows[1:]
    verdicts = [row.differences["baseline"]["AIR", "mAP"].verdict for row in rows]
    smallest = min(verdicts, key=lambda verdict: verdict.p)
    assert smallest.p_holm == pytest.approx(4 * smallest.p), "the smallest of four is multiplied by four"
    assert all(verdict.p_holm >= verdict.p for verdict in verdicts)


def test_a_seed_that_only_one_side_has_gives_no_difference(own_log):
    shutil.rmtree(own_log / "emoji/rop/seed2025")
    comparison = compared(own_log)
    before, after = comparison.rows
    assert before.seeds == [2024] and after.seeds == [2024, 2025]
    mean, deviation = before.summary(("AIR", "mAP"))
    assert deviation is None, "no deviation of a single seed"
    for text in (to_console(tables_of(comparison), []), to_markdown(tables_of(comparison), [])):
        (line,) = [line for line in text.splitlines() if line.strip("| ").startswith("ROP ")]
        assert f"{mean:.2f}" in line and "±" not in line, "nor its sign"
    assert after.differences["baseline"]["AIR", "mAP"].seeds == 1
    assert any("seed 2025 has no finished baseline" in note for note in comparison.notes)


def test_a_log_may_have_moved(own_log, tmp_path):
    moved = tmp_path / "elsewhere" / "runs"
    moved.parent.mkdir()
    shutil.move(own_log, moved)
    assert [row.variant for row in compared(moved).rows] == ["baseline", "acd"]
    assert read_run(moved / "emoji/rop/seed2024").root == moved.resolve()


def reorder(folder, order, place=""):
    """List a run's queries in another order, and as images of another folder."""
    with np.load(folder / "per_query.npz") as file:
        arrays = dict(file)
    if place:
        arrays["query_paths"] = np.array([place + text.rpartition("/")[2] for text in arrays["query_paths"]])
    for name, values in arrays.items():
        arrays[name] = values if name.endswith("_cmc") else values[order]
    np.savez(folder / "per_query.npz", **arrays)


@pytest.mark.parametrize("measure", ["mAP", "R1"])
def test_queries_are_paired_by_image(own_log, measure):
    """Three runs list the same images in three orders, one of them in another place and with a query less: each
    query's gain, and its mean over the seeds, is what the lists say of that image."""

    def table(name, seed):
        arrays = read_run(own_log / f"emoji/{name}/seed{seed}").per_query
        values = arrays["AIR_ap"] if measure == "mAP" else arrays["AIR_first_hit"] == 1
        return dict(zip((Path(path).name for path in arrays["query_paths"]), 100.0 * values, strict=True))

    expected = {}
    for seed in (2024, 2025):
        after, before = table("acd_rop", seed), table("rop", seed)
        for image, value in after.items():
            expected.setdefault(image, []).append(value - before[image])
    rng = np.random.default_rng(0)
    reorder(own_log / "emoji/acd_rop/seed2024", rng.permutation(60), "D:\\data\\")
    reorder(own_log / "emoji/rop/seed2025", rng.permutation(60)[1:])
    reorder(own_log / "emoji/acd_rop/seed2025", rng.permutation(60))
    parts = []
    for seed in (2024, 2025):
        runs = [read_run(own_log / f"emoji/{name}/seed{seed}") for name in ("acd_rop", "rop")]
        parts.append(paired_differences(*runs, "AIR", measure))
        for path, identity, value in zip(parts[-1].paths, parts[-1].identities, parts[-1].values, strict=True):
            image = path.replace("\\", "/").rpartition("/")[2]
            assert value == pytest.approx(expected[image][seed - 2024]) and int(image[:4]) == identity
    assert [len(part.values) for part in parts] == [60, 59]
    both = mean_pairs(parts)
    assert len(both.values) == 59
    for path, value in zip(both.paths, both.values, strict=True):
        assert value == pytest.approx(np.mean(expected[path.rpartition("\\")[2]]))


def test_names_below_the_common_folder():
    assert relative_names(["/a/b/x.jpg", "/a/c/x.jpg"]) == ["b/x.jpg", "c/x.jpg"]
    assert relative_names(["/a/b/x.jpg", "/a/b/y.jpg"]) == ["x.jpg", "y.jpg"]
    assert relative_names(["x.jpg", "b/y.jpg"]) == ["x.jpg", "b/y.jpg"]
    assert relative_names(["a/x.jpg", "/b/y.jpg"]) == ["a/x.jpg", "b/y.jpg"] and relative_names([]) == []


def test_identities_of_older_runs_are_called_by_their_numbers(own_log):
    for run in (own_log / f"emoji/{name}/seed2024" for name in ("rop", "acd_rop")):
        assert set(own_pairs(own_log).names) == {f"shoe-{i}" for i in range(30)}
        arrays = dict(np.load(run / "per_query.npz"))
        np.savez(run / "per_query.npz", **{name: array for name, array in arrays.items() if name != "query_names"})
    assert set(own_pairs(own_log).names) == {str(i) for i in range(30)}


def own_pairs(log):
    return paired_differences(*(read_run(log / f"emoji/{name}/seed2024") for name in ("acd_rop", "rop")), "AIR", "mAP")


def test_queries_without_a_match_count_for_neither(own_log):
    for name in ("rop", "acd_rop"):
        path = own_log / f"emoji/{name}/seed2024/per_query.npz"
        with np.load(path) as file:
            arrays = dict(file)
        arrays["AIR_ap"][:5], arrays["AIR_first_hit"][:5] = np.nan, 0
        np.savez(path, **arrays)
    runs = [read_run(own_log / f"emoji/{name}/seed2024") for name in ("acd_rop", "rop")]
    for measure in ("mAP", "R1"):
        assert len(paired_differences(*runs, "AIR", measure).values) == 55


def test_without_per_query_results_there_is_a_difference_but_no_test(own_log):
    for path in own_log.rglob("per_query.npz"):
        path.unlink()
    comparison = compared(own_log)
    assert "Differences are not tested" in "".join(footnotes(comparison)) and not comparison.notes
    difference = comparison.rows[1].differences["baseline"]["AIR", "mAP"]
    assert difference.value > 3 and difference.verdict is None and not difference.significant
    assert "*" not in to_console(tables_of(comparison), [])


def test_a_row_that_alone_cannot_be_tested_is_named(own_log, queries):
    add_control(own_log, queries, "finetune", 0.52)
    for path in own_log.glob("emoji/acd_rop/*/per_query.npz"):
        path.unlink()
    notes = compared(own_log).notes
    assert [note.partition(": ")[0] for note in notes] == [f"{PAIR}, ROP, acd"] * 2, "against both references"


def test_two_experiments_of_one_kind_are_two_rows(own_log, queries):
    """A user's own variation must not be mixed into + ACD's mean."""
    named = {"OUTPUT_DIR__EXPERIMENT_NAME": "emoji/acd_rop_gamma.15", "RAHO__GAMMA": 0.15}
    make_run(config("acd_rop", own_log, 2024, **named), queries, 0.6, 0.6)
    assert [row.variant for row in compared(own_log).rows] == ["baseline", "acd", "acd (acd_rop_gamma.15)"]
    named = {"OUTPUT_DIR__EXPERIMENT_NAME": "emoji/rop_long", "SOLVER__MAX_EPOCHS": 99}
    make_run(config("rop", own_log, 2024, **named), queries, 0.6, 0.7)
    rows = compared(own_log).rows
    assert {row.baseline for row in rows} == {"ROP", "ROP (rop_long)"}
    assert [row.variant for row in rows if row.baseline == "ROP"] == ["baseline", "acd", "acd (acd_rop_gamma.15)"]


def test_a_log_within_a_log_is_not_mixed_in(own_log, queries):
    """As log/demo in log: experiments of the same names and seeds."""
    make_log(own_log / "demo", queries, seeds=(2024,))
    alone = [row.summary(("AIR", "mAP")) for row in compared(own_log / "demo").rows]
    rows = compared(own_log).rows
    assert [(row.baseline, row.variant, row.seeds) for row in rows] == [
        ("ROP (demo/emoji/rop)", "baseline", [2024]),
        ("ROP (demo/emoji/rop)", "acd", [2024]),
        ("ROP", "baseline", [2024, 2025]),
        ("ROP", "acd", [2024, 2025]),
    ]
    assert [row.summary(("AIR", "mAP")) for row in rows[:2]] == alone


def test_runs_of_a_sweep_are_no_rows(own_log, queries):
    named = {"OUTPUT_DIR__EXPERIMENT_NAME": "emoji/acd_rop/sweep/ACD.ALPHA=5", "ACD__ALPHA": 5}
    make_run(config("acd_rop", own_log, 2024, **named), queries, 0.6, 0.6)
    assert len(compared(own_log).rows) == 2


def test_the_validation_split_is_a_table_of_its_own(own_log, queries):
    named = {"OUTPUT_DIR__EXPERIMENT_NAME": "emoji/val/rop", "DATASETS__SPLIT": "val"}
    make_run(config("rop", own_log, 2024, **named), queries, 0.6, 0.7)
    assert list(compared(own_log).by_pair) == [PAIR, PAIR.replace("emoji", "emoji[val]")]


def test_differing_precision_is_said(own_log):
    path = own_log / "emoji/acd_rop/seed2024/metrics.json"
    path.write_text(path.read_text().replace("float32", "bfloat16"))
    assert any("bfloat16" in note and "float32" in note for note in compared(own_log).notes)


def test_what_differs_between_compared_runs_is_said(own_log):
    """Seeds of one row under other settings, and a baseline that was tested by other rules."""
    for name, seed, key, value in (
        ("rop", 2025, "RE_PROB: 0.0", "RE_PROB: 0.25"),
        ("acd_rop", 2024, "EXCLUDE_SAME_CAMERA: true", "EXCLUDE_SAME_CAMERA: false"),
    ):
        path = own_log / f"emoji/{name}/seed{seed}/config.yaml"
        text = path.read_text()
        assert key in text
        path.write_text(text.replace(key, value))
    notes = compared(own_log).notes
    assert f"{PAIR}, ROP, baseline: seeds 2024 and 2025 also differ in INPUT.RE_PROB" in notes
    tested = "seed 2024: tested with TEST.EXCLUDE_SAME_CAMERA False, the baseline with True"
    assert f"{PAIR}, ROP, acd, {tested}" in notes


def test_a_variant_whose_baseline_is_missing_has_a_row_of_its_own(own_log, queries):
    """Two baselines that it could belong to, neither of which its weights name."""
    for name in ("one", "two"):
        named = {"OUTPUT_DIR__EXPERIMENT_NAME": f"emoji/rop_{name}"}
        make_run(config("rop", own_log, 2024, **named), queries, 0.5, 0.7)
    shutil.rmtree(own_log / "emoji/rop")
    rows = {(row.baseline, row.variant): row for row in compared(own_log).rows}
    assert set(rows) == {
        ("ROP", "baseline"),
        ("ROP (rop_two)", "baseline"),
        ("ROP (its baseline is missing)", "acd"),
    }
    assert not rows["ROP (its baseline is missing)", "acd"].differences


def test_a_variant_without_its_baseline_is_no_line_of_another_baseline(own_log, queries):
    named = {"OUTPUT_DIR__EXPERIMENT_NAME": "emoji/acd_csd", "ACD__BASELINE": "CSD"}
    make_run(config("acd_rop", own_log, 2024, **named), queries, 0.6, 0.6)
    (table,) = tables_of(compared(own_log))
    assert [[line[0].text for line in group] for group in table.groups] == [["CSD + ACD"], ["ROP", "+ ACD"]]


def test_damaged_and_foreign_folders_are_named_and_left_out(own_log):
    (own_log / "emoji/acd_rop/seed2025/metrics.json").write_text('{"AIR": {"mAP"')
    (own_log / "emoji/rop/seed2025/config.yaml").write_text("lr: 3\n")
    endless = own_log / "emoji/vanilla/seed2025/metrics.json"
    endless.unlink()
    endless.symlink_to("/dev/zero")
    comparison = compared(own_log)
    assert all(row.seeds == [2024] for row in comparison.rows)
    notes = "\n".join(comparison.notes)
    assert "acd_rop/seed2025/metrics.json" in notes and "rop/seed2025/config.yaml" in notes
    assert "vanilla/seed2025/metrics.json cannot be read ([Errno 22] it is a device, not a file)" in notes


def test_no_run_is_an_error_that_says_where(tmp_path):
    with pytest.raises(UserError, match=f"no finished run below {tmp_path}"):
        find_runs(tmp_path)


def flipped(path):
    """A compressed file with a byte within an array changed: its zip directory is whole, its contents are not."""
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        member = max(archive.infolist(), key=lambda entry: entry.compress_size)
    content[member.header_offset + member.compress_size // 2] ^= 0xFF  # behind its header, which is shorter than half
    return bytes(content)


def saved(save, *array, **arrays):
    buffer = io.BytesIO()
    save(buffer, *array, **arrays)
    return buffer.getvalue()


BAD_PER_QUERY = {
    "cut": lambda path: path.read_bytes()[:-50],
    "no zip": lambda path: b"PK\x03\x04 damaged",
    "a flipped byte": flipped,
    "one array": lambda path: (np.save(path, np.zeros(3), allow_pickle=False), path.with_suffix(".npz.npy"))[
        1
    ].read_bytes(),
    "pickled": lambda path: saved(np.savez, query_paths=np.array([{}], dtype=object), query_ids=np.zeros(1, dtype=int)),
    "another length": lambda path: saved(np.savez, **{**np.load(path), "AIR_ap": np.zeros(7)}),
    "a type": lambda path: saved(np.savez, **{**np.load(path), "AIR_ap": np.full(60, "0.5")}),
    "a value": lambda path: saved(np.savez, **{**np.load(path), "AIR_ap": np.full(60, np.inf)}),
    "no paths": lambda path: saved(np.savez, **{name: a for name, a in np.load(path).items() if name != "query_paths"}),
    "no ranks": lambda path: saved(
        np.savez, **{name: a for name, a in np.load(path).items() if name != "SIR_first_hit"}
    ),
}


@pytest.mark.parametrize("kind", BAD_PER_QUERY)
def test_a_bad_per_query_file_is_named_and_the_rest_is_reported(own_log, kind):
    """As if it were not there: the scores stay, and the test rests on the other seed."""
    path = own_log / "emoji/acd_rop/seed2025/per_query.npz"
    path.write_bytes(BAD_PER_QUERY[kind](path))
    comparison = compared(own_log)
    (note,) = comparison.notes
    assert str(path) in note and ("is damaged" in note or "does not hold what a run writes" in note)
    before, after = comparison.rows
    assert after.seeds == before.seeds == [2024, 2025]
    assert after.differences["baseline"]["AIR", "mAP"].verdict.values == 60
    page = report_html(comparison)
    assert str(path) in page and "CMC" in page
    other = read_run(path.parent)
    with pytest.raises(UserError, match=r"no per-query AIR results.*per_query\.npz"):
        gains_over(other, [], np.array([]), "AIR")


@pytest.mark.parametrize(
    "line",
    [
        b'{"epoch": 3, "loss"',
        b"\xff\xfe",
        b"3",
        b"[]",
        b'{"loss": 1}',
        b'{"epoch": "3"}',
        b"[" * 20_000,
        b'{"epoch": 1e3}',
    ],
)
def test_a_history_ends_at_the_first_line_that_is_no_record(own_log, line, caplog):
    path = own_log / "emoji/acd_rop/seed2025/metrics.jsonl"
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([*lines[:3], line, *lines[3:]]))
    with caplog.at_level("WARNING", logger="d3still"):
        comparison = compared(own_log)
    assert "metrics.jsonl line 4 is no record" in caplog.text
    assert [record["epoch"] for record in comparison.rows[1].results[2025].run.history] == [0, 1, 2]
    assert "ROP + ACD, seed 2025, epoch 3" in report_html(comparison)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-1", "101", "1" + "0" * 400, '"50"', "null"])
def test_a_run_whose_scores_are_no_percentages_is_left_out(own_log, value):
    path = own_log / "emoji/acd_rop/seed2025/metrics.json"
    metrics = json.loads(path.read_text())
    metrics["AIR"]["mAP"] = "HERE"
    path.write_text(json.dumps(metrics).replace('"HERE"', value))
    comparison = compared(own_log)
    assert comparison.rows[1].seeds == [2024]
    (note,) = [note for note in comparison.notes if "metrics.json" in note]
    assert "lacks AIR" in note


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SOLVER.SEED", "x"),
        ("DATASETS.NAMES", ["emoji"]),
        ("DISTILLER.TYPE", 3),
        ("ACD.ALPHA", {}),
        ("INPUT.SIZE_TEST", [64]),
        ("INPUT.SIZE_TEST", 64),
        ("OUTPUT_DIR", []),
    ],
)
def test_a_run_whose_config_has_other_types_is_left_out(own_log, key, value):
    path = own_log / "emoji/acd_rop/seed2025/config.yaml"
    config = yaml.safe_load(path.read_text())
    section, _, name = key.partition(".")
    config[section] = {**config[section], name: value} if name else value
    path.write_text(yaml.safe_dump(config))
    comparison = compared(own_log)
    assert comparison.rows[1].seeds == [2024]
    assert any(f"{path} is not the config of a run: it lacks a proper {key}" in note for note in comparison.notes)


@pytest.fixture
def own_baseline(own_log):
    """The log as if ROP were a user's baseline, Huber, whose section has another name."""
    for path in own_log.rglob("config.yaml"):
        text = path.read_text().replace("TYPE: ROP", "TYPE: Huber").replace("BASELINE: ROP", "BASELINE: Huber")
        path.write_text(f"{text}\nMY_LOSS:\n  DELTA: 1.0\n  KD_WEIGHT: 1.0\n")
    return own_log


@pytest.mark.parametrize("known", [False, True])
def test_a_users_baseline_may_have_a_section_of_any_name(own_baseline, queries, monkeypatch, known):
    """With its code at hand and without: + ACD and its controls are told apart by the weight in that section."""
    if known:
        own = type("Huber", (), {"section": "MY_LOSS"})
        monkeypatch.setitem(DISTILLERS._entries, "Huber", own)
    for name, weights in {"finetune": ("0.0", "0.0"), "raho_only": ("1.0", "0.0")}.items():
        folder = shutil.copytree(own_baseline / "emoji/acd_rop", own_baseline / f"emoji/acd_rop-{name}")
        for path in folder.rglob("config.yaml"):
            text = re.sub(r"(ALPHA|BETA): [\d.]+", rf"\1: {weights[1]}", path.read_text())
            text = text.replace("EXPERIMENT_NAME: emoji/acd_rop", f"EXPERIMENT_NAME: emoji/acd_rop-{name}")
            path.write_text(text.replace("  DELTA: 1.0\n  KD_WEIGHT: 1.0", f"  DELTA: 1.0\n  KD_WEIGHT: {weights[0]}"))
    rows = compared(own_baseline).rows
    assert [(row.baseline, row.variant) for row in rows] == [
        ("Huber", variant) for variant in ("baseline", "acd", "finetune", "raho_only")
    ]


def test_a_users_baseline_without_a_weight_is_compared_but_has_no_control(own_baseline):
    for path in own_baseline.rglob("config.yaml"):
        path.write_text(path.read_text().partition("\nMY_LOSS")[0])
    assert [row.variant for row in compared(own_baseline).rows] == ["baseline", "acd"]
    config = read_run(own_baseline / "emoji/acd_rop/seed2024").config
    with pytest.raises(UserError, match="Huber has no KD_WEIGHT"):
        variant_settings(config, "finetune")
    assert variant_settings(config, "raho_only")["ACD.ALPHA"] == 0


def test_json_is_the_schema(log):
    runs = json.loads(to_json(compared(log)))["runs"]
    assert len(runs) == 4
    for run in runs:
        assert list(run) == ["pair", "baseline", "variant", "seed", "precision", "AIR", "SIR", "seconds"]
        for protocol in ("AIR", "SIR"):
            assert set(run[protocol]) == {"mAP", "mINP", "R1", "R5", "R10"}
            assert all(0 <= value <= 100 for value in run[protocol].values())
    assert {(run["variant"], run["seed"]) for run in runs} == {
        (variant, seed) for variant in ("baseline", "acd") for seed in (2024, 2025)
    }


def test_csv_has_every_measure(log):
    lines = list(csv.DictReader(io.StringIO(to_csv(compared(log)))))
    assert len(lines) == 2 * 2 * 5
    (line,) = [row for row in lines if (row["variant"], row["protocol"], row["measure"]) == ("acd", "AIR", "mAP")]
    assert float(line["delta_over_baseline"]) > 0 and float(line["p_holm_over_baseline"]) < 0.05
    assert line["delta_over_finetune"] == ""


def test_published_numbers_stand_beside_measured_ones(queries, tmp_path):
    for folder, pair in (
        ("", "ResNet101_256x256"),
        ("ResNet101_IBN_256x256_ResNet18_128x128", "ResNet101_IBN_256x256"),
    ):
        log = tmp_path / (folder or "main")
        for stage, air in (("rop", 0.65), ("acd_rop", 0.67)):
            file = REPOSITORY / "configs/veri" / folder / f"{stage}.yaml"
            make_run(load_config(file, ["OUTPUT_DIR.ROOT_PATH", str(log)]), queries, air, 0.8)
        comparison = compared(log)
        table = PUBLISHED[f"{pair}__ResNet18_128x128"]["ROP"]
        assert [row.published for row in comparison.rows] == [table["baseline"], table["ACD"]]
        text = to_console(tables_of(comparison), footnotes(comparison))
        assert "published mAP" in text and f"{table['ACD']['mAP']:.2f}" in text and "Published: AIR" in text


def test_every_published_pair_and_baseline_is_found():
    table = PUBLISHED
    found = [
        published_scores(f"VeRi776/{pair.replace('_IBN_', '_ibn_a_')}", baseline)
        for pair, baselines in table.items()
        for baseline in baselines
    ]
    assert len(found) == 24 and all(scores["acd"]["mAP"] > scores["baseline"]["mAP"] for scores in found)
    assert published_scores("emoji/ResNet18_64x64__ResNet18_32x32", "ROP") == {}


def test_tables_are_well_formed(log):
    comparison = compared(log)
    tables, notes = tables_of(comparison), footnotes(comparison)
    assert any("paired bootstrap over the 30 test identities" in note and "Holm" in note for note in notes)
    markdown = to_markdown(tables, notes).splitlines()
    rows = [line for line in markdown if line.startswith("|")]
    assert len({line.count("|") for line in rows}) == 1, "every line has the same cells"
    latex = to_latex(tables, notes)
    lines = [line for line in latex.splitlines() if line.endswith(r"\\")]
    columns = latex.split(r"\begin{tabular}{")[1].split("}")[0]
    assert all(line.count(" & ") == len(columns) - 1 for line in lines)
    assert r"$\pm$" in latex and latex.count("{") == latex.count("}") and "%" in latex


def test_a_spreadsheet_computes_no_name():
    """Texts that it would take for formulas get an apostrophe, which it hides; numbers stay numbers."""
    cells = ["=1+1", "+ACD", "-x", "@SUM(A1)", " =1", "＝1", "a=b", -0.5, 3, float("nan"), None, True, "a\r=1"]
    (read,) = csv.reader(io.StringIO(csv_text([cells])))
    assert read[:7] == ["'=1+1", "'+ACD", "'-x", "'@SUM(A1)", "' =1", "'＝1", "a=b"]
    assert read[7:] == ["-0.5", "3", "", "", "True", r"a\r=1"]


def test_json_is_what_any_reader_takes():
    content = {"a": [float("nan"), 1.5, {"b": float("-inf")}], "c": "NaN", "\udcff": None}
    text = json_text(content)
    assert json.loads(text, parse_constant=pytest.fail) == {"a": [None, 1.5, {"b": None}], "c": "NaN", "\udcff": None}


def test_line_ends_and_escape_codes_in_names_change_no_table():
    hostile = "a\r\nb\x1b[31m\u202ec"
    table = Table(hostile, [Cell(""), Cell(hostile)], [[[Cell("x"), Cell("1")], [Cell(hostile), Cell("2")]]])
    for text in (to_console([table], [hostile]), to_markdown([table], [hostile]), to_latex([table], [hostile])):
        assert text.replace("\n", "").isprintable()
    lines = to_console([table], [hostile]).splitlines()
    assert len(lines) == 7 and len({len(line) for line in lines[1:5]}) == 1, "a title, a rule, three lines, a note"
    assert len(to_markdown([table], [hostile]).splitlines()) == 8


def test_names_cannot_break_a_table(own_log, queries):
    named = {"OUTPUT_DIR__EXPERIMENT_NAME": "emoji/a|b_50%&<i>", "RAHO__GAMMA": 0.5}
    make_run(config("acd_rop", own_log, 2024, **named), queries, 0.6, 0.6)
    tables = tables_of(compared(own_log))
    assert r"a\|b\_50%&\<i\>" in to_markdown(tables, [])
    assert r"a|b\_50\%\&$<$i$>$" in to_latex(tables, [])
