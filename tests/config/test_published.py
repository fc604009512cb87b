"""Published YAML files of either codebase load unmodified and mean the same."""

import logging
import shlex

import pytest
import yaml

from d3still.config import dump_config, get_cfg, load_config
from d3still.config.published import ACD_DEFAULTS as FILLED_IN
from d3still.config.published import STAGE_2_KEYS
from d3still.errors import UserError

from .published import ACD_DEFAULTS, D3STILL_DEFAULTS, SETTINGS, is_stage_2, meaning, nested

STAGE_2_FILE = "acd/CUB200/ResNet101_256x256_ResNet18_64x64/ROP.yaml"


def plain(settings):
    return yaml.safe_dump(nested(settings))


def quoted(settings):
    """The hand-written form: tuples, quotes within quotes, on and off, integers for floats."""
    lines = []
    for section, values in nested(settings).items():
        lines.append(f"{section}:")
        for key, value in values.items():
            if isinstance(value, dict):
                text = str(value)
            elif isinstance(value, list):
                text = f"({', '.join(map(str, value))},)" if len(value) % 2 else f"'{tuple(value)}'"
            elif isinstance(value, bool):
                text = "on" if value else "'off'"
            elif isinstance(value, float) and value.is_integer():
                text = str(int(value))
            elif isinstance(value, str):
                text = f"\"'{value}'\"" if len(value) % 2 else f"('{value}')"
            else:
                text = str(value)
            lines.append(f"  {key}: {text}")
    return "\n".join(lines) + "\n"


def read(tmp_path, text):
    path = tmp_path / "published.yaml"
    path.write_text(text, encoding="utf-8")
    cfg = get_cfg()
    cfg.merge_from_file(path)
    return cfg.flat()


@pytest.mark.parametrize("form", [plain, quoted])
@pytest.mark.parametrize("side", ["acd", "baseline"])
def test_every_published_file_means_what_it_meant(side, form, tmp_path):
    names = [name for name in SETTINGS if name.startswith(side)]
    assert len(names) == {"acd": 99, "baseline": 172}[side]
    for name in names:
        values, expected = read(tmp_path, form(SETTINGS[name])), meaning(SETTINGS[name])
        expected["OUTPUT_DIR.ROOT_PATH"] = "log"  # "./log" in the published code
        assert {key: values[key] for key in expected} == expected, name


@pytest.mark.parametrize("form", [plain, quoted])
@pytest.mark.parametrize(
    "defaults, kind", [(D3STILL_DEFAULTS, "FitNet"), (ACD_DEFAULTS, "FitNet"), (D3STILL_DEFAULTS, "NONE")]
)
def test_a_file_with_every_published_key(defaults, kind, form, tmp_path):
    settings = defaults | {"DISTILLER.TYPE": kind}
    values, expected = read(tmp_path, form(settings)), meaning(settings)
    assert {key: values[key] for key in expected} == expected
    assert values["DATASETS.ROOT_DIR"] == get_cfg().DATASETS.ROOT_DIR


def test_what_is_filled_in_is_where_acds_defaults_differ():
    """`published.ACD_DEFAULTS` is the difference between two tables, not a third one."""
    theirs = meaning(ACD_DEFAULTS | {"DISTILLER.TYPE": "ROP"})
    ours = get_cfg().flat() | {
        "DISTILLER.TYPE": "ACD",
        "SOLVER.OPTIMIZER_BUILDER": "RAHO",
        "OUTPUT_DIR.ROOT_PATH": "./log",
    }
    assert {key: value for key, value in theirs.items() if ours[key] != value} == FILLED_IN


def test_d3stills_defaults_are_the_schemas():
    ours = get_cfg().flat() | {"OUTPUT_DIR.ROOT_PATH": "./log"}
    theirs = meaning(D3STILL_DEFAULTS)
    assert {key: ours[key] for key in theirs} == theirs


@pytest.mark.parametrize(
    "missing", sorted(key for key in SETTINGS[STAGE_2_FILE] if key != "SOLVER.UNIMPORTANT_LR_TIMES")
)
def test_a_key_that_a_stage_2_file_lacks_has_acds_default(missing, tmp_path):
    settings = {key: value for key, value in SETTINGS[STAGE_2_FILE].items() if key != missing}
    if missing == "DISTILLER.TYPE":
        settings["DISTILLER.TYPE"] = "FitNet"
    values, expected = read(tmp_path, plain(settings)), meaning(settings) | {"OUTPUT_DIR.ROOT_PATH": "log"}
    assert {key: values[key] for key in expected} == expected


def test_a_file_of_acds_codebase_without_a_distiller_is_stage_0(tmp_path):
    values = read(tmp_path, plain(ACD_DEFAULTS))
    assert values["DISTILLER.TYPE"] == "NONE" and values["SOLVER.OPTIMIZER_BUILDER"] == "Uniform"
    assert values["DISTILLER.STUDENT_NAME"] == "ResNet101"


def test_each_stage_is_recognised():
    stage_2 = [name for name in SETTINGS if is_stage_2(SETTINGS[name])]
    assert len(stage_2) == 91 and all(name.startswith("acd/") and "Vanilla_" not in name for name in stage_2)


def test_what_changed_is_logged_in_one_line(tmp_path, caplog, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = SETTINGS["acd/CUB200/ResNet101_256x256_ResNet18_64x64/RAML.yaml"]
    (tmp_path / "x.yaml").write_text(plain(settings))
    with caplog.at_level(logging.INFO, logger="d3still"):
        cfg = load_config("x.yaml")
    (record,) = caplog.records
    message = record.getMessage()
    assert record.levelno == logging.INFO and "\n" not in message and message.startswith("x.yaml ")
    for told in (
        "SOLVER.UNIMPORTANT_LR_TIMES = RAHO.GAMMA",
        "DISTILLER.TYPE RAML in stage 2 = ACD over RAML with RAHO",
        "RAML.LAMBDA2 = 0.7482",
        "EXPERIMENT.CUDA_AMP = EXPERIMENT.PRECISION auto",
        "SOLVER.TRAINER",
        "TEST.WEIGHT",
        "FITNET.KD_WEIGHT 1.0",
    ):
        assert told in message
    caplog.clear()
    (tmp_path / "frozen.yaml").write_text(dump_config(cfg))
    with caplog.at_level(logging.INFO, logger="d3still"):
        assert load_config("frozen.yaml") == cfg
    assert not caplog.records


def test_a_file_of_ours_keeps_its_own_meaning(tmp_path, caplog):
    """λ2 is settable here, and our defaults hold."""
    path = tmp_path / "x.yaml"
    path.write_text("DISTILLER: {TYPE: RAML}\nRAML: {LAMBDA2: 0.6778}\nACD: {ALPHA: 5}\n")
    with caplog.at_level(logging.INFO, logger="d3still"):
        cfg = load_config(path)
    assert cfg.RAML.LAMBDA2 == 0.6778 and cfg.ACD.ALPHA == 5.0 and cfg.ACD.BETA == 2.0
    assert not caplog.records


@pytest.mark.parametrize(
    "mark", ["DISTILLER: {TYPE: ACD, TEACHER_ALPHA: 5}", "_BASE_: b.yaml\nDISTILLER: {TEACHER_ALPHA: 5}"]
)
def test_an_old_name_in_a_file_of_ours_is_only_a_name(tmp_path, mark):
    (tmp_path / "b.yaml").write_text("DISTILLER: {TYPE: ACD}\nACD: {BASELINE: CSD}\n")
    (tmp_path / "x.yaml").write_text(mark)
    cfg = load_config(tmp_path / "x.yaml")
    assert (cfg.DISTILLER.TYPE, cfg.ACD.ALPHA, cfg.ACD.BETA, cfg.RAHO.GAMMA) == ("ACD", 5.0, 2.0, 0.05)
    assert cfg.SOLVER.OPTIMIZER_BUILDER == "Uniform"


def test_new_keys_in_a_published_file_do_not_change_its_stage(tmp_path):
    settings = SETTINGS["acd/CUB200/ResNet101_256x256_ResNet18_64x64/RAML.yaml"]
    added = {"RAHO.MAX_BATCHES": 10, "DATALOADER.CACHE": "ram", "SOLVER.OPTIMIZER_BUILDER": "Uniform"}
    (tmp_path / "x.yaml").write_text(plain(settings | added))
    expected = meaning(settings) | added | {"OUTPUT_DIR.ROOT_PATH": "log"}
    values = load_config(tmp_path / "x.yaml").flat()
    del expected["OUTPUT_DIR.EXPERIMENT_NAME"]
    assert {key: values[key] for key in expected} == expected


def test_a_baseline_named_twice_is_refused(tmp_path):
    (tmp_path / "x.yaml").write_text(plain(SETTINGS[STAGE_2_FILE] | {"ACD.BASELINE": "CSD"}))
    with pytest.raises(UserError, match=r"DISTILLER\.TYPE ROP is the published name of ACD\.BASELINE"):
        load_config(tmp_path / "x.yaml")


def test_a_file_of_ours_can_build_on_a_published_one(tmp_path):
    (tmp_path / "published.yaml").write_text(plain(SETTINGS[STAGE_2_FILE]))
    (tmp_path / "mine.yaml").write_text("_BASE_: published.yaml\nRAHO: {GAMMA: 0.3}\nDISTILLER: {TEACHER_ALPHA: 1}\n")
    cfg = load_config(tmp_path / "mine.yaml")
    assert (cfg.DISTILLER.TYPE, cfg.ACD.BASELINE, cfg.RAHO.GAMMA) == ("ACD", "ROP", 0.3)
    assert (cfg.ACD.ALPHA, cfg.ACD.BETA, cfg.ROP.KD_WEIGHT) == (1.0, 2.0, 5.0)


def test_old_names_on_the_command_line(tmp_path):
    (tmp_path / "x.yaml").write_text(plain(SETTINGS[STAGE_2_FILE]))
    words = [
        "SOLVER.UNIMPORTANT_LR_TIMES",
        "0.3",
        "EXPERIMENT.CUDA_AMP",
        "False",
        "TEST.WEIGHT",
        "10",
        "DISTILLER.TEACHER_BETA",
        "1",
    ]
    cfg = load_config(tmp_path / "x.yaml", words)
    assert (cfg.RAHO.GAMMA, cfg.EXPERIMENT.PRECISION, cfg.ACD.BETA, cfg.DISTILLER.TYPE) == (0.3, "float32", 1.0, "ACD")
    assert cfg.TEST.WEIGHTS == "{run}/epoch_10.pth"


def test_an_old_and_a_new_name_for_one_key_are_refused(tmp_path):
    (tmp_path / "x.yaml").write_text("DISTILLER: {TEACHER_ALPHA: 1}\nACD: {ALPHA: 2}\n")
    with pytest.raises(
        UserError, match=r"DISTILLER\.TEACHER_ALPHA is the published name of ACD\.ALPHA, which is set too"
    ):
        load_config(tmp_path / "x.yaml")


def test_a_bad_value_under_an_old_name_is_refused(tmp_path):
    (tmp_path / "x.yaml").write_text("EXPERIMENT: {CUDA_AMP: perhaps}\n")
    with pytest.raises(UserError, match="CUDA_AMP cannot be 'perhaps': it takes True or False"):
        load_config(tmp_path / "x.yaml")


RAML_FILE = "acd/CUB200/ResNet101_256x256_ResNet18_64x64/RAML.yaml"


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({"RAML.LAMBDA2": 0.5}, (0.7482, 0.5)),  # no published file has it: it was set by hand
        ({"RAML.LAMBDA1": 0.5, "RAML.LAMBDA2": 0.25}, (0.5, 0.25)),
        ({"RAML.LAMBDA1": 0.5}, (0.5, 0.5)),  # with the published λ2: λ1 ran for both
        ({"RAML.LAMBDA2": "'0.6778'"}, (0.7482, 0.7482)),
        ({"RAML.LAMBDA2": "x"}, None),
    ],
)
def test_only_the_published_lambda2_is_read_as_lambda1(settings, expected, tmp_path, caplog):
    (tmp_path / "x.yaml").write_text(plain(SETTINGS[RAML_FILE] | settings))
    if expected is None:
        with pytest.raises(UserError, match=r"RAML\.LAMBDA2 cannot be 'x'"):
            load_config(tmp_path / "x.yaml")
        return
    with caplog.at_level(logging.INFO, logger="d3still"):
        cfg = load_config(tmp_path / "x.yaml")
    assert expected == (cfg.RAML.LAMBDA1, cfg.RAML.LAMBDA2)
    told = f"RAML.LAMBDA2 = {expected[0]} (LAMBDA1 ran for both; 0.6778 had no effect)"
    assert (told in caplog.text) is (expected[0] == expected[1])


@pytest.mark.parametrize("base", ["", "_BASE_: published.yaml\n", "DISTILLER: {TYPE: ACD}\n"])
def test_a_lambda2_of_ours_stays_beside_old_names(base, tmp_path):
    """An old name elsewhere in the file does not make its λ2 the published one."""
    (tmp_path / "published.yaml").write_text(plain(SETTINGS[RAML_FILE]))
    text = f"{base}RAML: {{LAMBDA2: 0.3}}\nEXPERIMENT: {{CUDA_AMP: False}}\n"
    (tmp_path / "x.yaml").write_text(text)
    assert load_config(tmp_path / "x.yaml").RAML.LAMBDA2 == 0.3


# Over a published stage-2 file: what is set, and what the config then holds of it.
SET_OVER = [
    ("RAML.LAMBDA2 0.6778", {"RAML.LAMBDA1": 0.7482, "RAML.LAMBDA2": 0.6778}),
    ("RAML.LAMBDA2 0.3 RAML.LAMBDA1 0.5", {"RAML.LAMBDA1": 0.5, "RAML.LAMBDA2": 0.3}),
    ("RAML.LAMBDA1 0.5", {"RAML.LAMBDA1": 0.5, "RAML.LAMBDA2": 0.5}),  # as the published code ran
    ("DISTILLER.TYPE CSD", {"DISTILLER.TYPE": "ACD", "ACD.BASELINE": "CSD", "SOLVER.OPTIMIZER_BUILDER": "RAHO"}),
    ("DISTILLER.TYPE ACD ACD.BASELINE CSD", {"DISTILLER.TYPE": "ACD", "ACD.BASELINE": "CSD"}),
    ("ACD.BASELINE CSD", {"DISTILLER.TYPE": "ACD", "ACD.BASELINE": "CSD"}),
    ("DISTILLER.TYPE NONE", {"DISTILLER.TYPE": "NONE", "SOLVER.OPTIMIZER_BUILDER": "Uniform"}),
    (
        "SOLVER.OPTIMIZER_BUILDER Uniform DISTILLER.TYPE CSD",
        {"ACD.BASELINE": "CSD", "SOLVER.OPTIMIZER_BUILDER": "Uniform"},
    ),
    ("EXPERIMENT.PRECISION float32", {"EXPERIMENT.PRECISION": "float32"}),
    ("EXPERIMENT.CUDA_AMP off", {"EXPERIMENT.PRECISION": "float32"}),
    ("INPUT.SIZE_TRAIN [32,32] INPUT.PADDING 1", {"INPUT.SIZE_TRAIN": [32, 32], "INPUT.PADDING": 1}),
    ("DATALOADER.SAMPLER random", {"DATALOADER.SAMPLER": "softmax"}),
    ("FITNET.KD_WEIGHT 3", {"FITNET.KD_WEIGHT": 3.0}),  # filled in with ACD's default
    ("DISTILLER.TEACHER_MODEL_PATH mine.pth", {"DISTILLER.TEACHER_MODEL_PATH": "mine.pth"}),
    ("TEST.WEIGHT 60", {"TEST.WEIGHTS": "{run}/epoch_60.pth"}),
    ("TEST.WEIGHTS best.pth", {"TEST.WEIGHTS": "best.pth"}),
    ("DATASETS.ROOT_DIR ''", {"DATASETS.ROOT_DIR": "datasets"}),
    *((f"{old} 0.25", {new: 0.25}) for old, new in STAGE_2_KEYS.items() if new != "RAHO.CROSS_RESOLUTION"),
    *((f"{new} 0.25", {new: 0.25}) for new in STAGE_2_KEYS.values() if new != "RAHO.CROSS_RESOLUTION"),
]


@pytest.mark.parametrize("words, expected", SET_OVER)
def test_what_is_set_over_a_published_file_holds(words, expected, tmp_path):
    (tmp_path / "x.yaml").write_text(plain(SETTINGS[RAML_FILE] | {"DATASETS.ROOT_DIR": "/data"}))
    values = load_config(tmp_path / "x.yaml", shlex.split(words)).flat()
    assert {key: values[key] for key in expected} == expected


@pytest.mark.parametrize("kind, built", [("CSD", ("ACD", "CSD", "RAHO")), ("NONE", ("NONE", "RAML", "Uniform"))])
def test_a_type_over_a_published_stage_2_in_a_file(kind, built, tmp_path):
    (tmp_path / "published.yaml").write_text(plain(SETTINGS[RAML_FILE]))
    (tmp_path / "x.yaml").write_text(f"_BASE_: published.yaml\nDISTILLER: {{TYPE: {kind}}}\n")
    cfg = load_config(tmp_path / "x.yaml")
    assert built == (cfg.DISTILLER.TYPE, cfg.ACD.BASELINE, cfg.SOLVER.OPTIMIZER_BUILDER)


def test_a_type_over_a_config_of_ours_is_only_itself(tmp_path):
    (tmp_path / "x.yaml").write_text("DISTILLER: {TYPE: ACD}\nRAML: {LAMBDA1: 0.5}\n")
    cfg = load_config(tmp_path / "x.yaml", ["DISTILLER.TYPE", "RAML", "RAML.LAMBDA1", "0.25"])
    assert (cfg.DISTILLER.TYPE, cfg.RAML.LAMBDA1, cfg.RAML.LAMBDA2) == ("RAML", 0.25, 0.7482)


@pytest.mark.parametrize("written", ["\"0'\"", "'\"0'", "\"'0 '' \""])
def test_a_card_with_a_stray_quote_is_that_card(written, tmp_path, caplog, monkeypatch):
    """Two published files say DEVICE_ID: "0'"."""
    monkeypatch.chdir(tmp_path)
    text = plain(SETTINGS[STAGE_2_FILE]).replace("EXPERIMENT:\n", f"EXPERIMENT:\n  DEVICE_ID: {written}\n")
    (tmp_path / "x.yaml").write_text(text)
    with caplog.at_level(logging.INFO, logger="d3still"):
        assert load_config("x.yaml").EXPERIMENT.DEVICE_ID == "0"
    assert "EXPERIMENT.DEVICE_ID " in caplog.text and " = 0 (one quote too many)" in caplog.text


@pytest.mark.parametrize("written", ["\"0'1\"", "\"cuda'\"", "\"'\""])
def test_a_card_that_is_no_number_is_refused(written, tmp_path):
    (tmp_path / "x.yaml").write_text(f"EXPERIMENT: {{DEVICE_ID: {written}}}\n")
    with pytest.raises(UserError, match=r"x\.yaml, line 1: EXPERIMENT\.DEVICE_ID is .* one card's number"):
        load_config(tmp_path / "x.yaml")
