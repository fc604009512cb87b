"""What a written value means, whatever reader it was written for."""

import math

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from d3still.config import dump_config, get_cfg
from d3still.config.coerce import AUTO, SWITCHES_WITH_AUTO
from d3still.errors import UserError

# (key, text as it stands in a YAML file, meaning)
UNDERSTOOD = [
    ("SOLVER.BASE_LR", "1", 1.0),
    ("SOLVER.BASE_LR", "1e-3", 0.001),
    ("SOLVER.BASE_LR", "'1e-3'", 0.001),
    ("SOLVER.BASE_LR", "1.E-4", 0.0001),
    ("SOLVER.BASE_LR", ".5", 0.5),
    ("SOLVER.BASE_LR", "+0.5", 0.5),
    ("SOLVER.MAX_EPOCHS", "12.0", 12),
    ("SOLVER.MAX_EPOCHS", "1e2", 100),
    ("SOLVER.MAX_EPOCHS", "'12'", 12),
    ("SOLVER.MAX_EPOCHS", "\"'12'\"", 12),
    ("SOLVER.MAX_EPOCHS", "010", 10),  # not YAML 1.1's octal
    ("TEST.FLIP_FEATS", "on", True),
    ("TEST.FLIP_FEATS", "'on'", True),
    ("TEST.FLIP_FEATS", "Yes", True),
    ("TEST.FLIP_FEATS", "True", True),
    ("TEST.FLIP_FEATS", "true", True),
    ("TEST.FLIP_FEATS", "1", True),
    ("EXPERIMENT.IF_LABELSMOOTH", "off", False),
    ("EXPERIMENT.IF_LABELSMOOTH", "\"'off'\"", False),
    ("EXPERIMENT.IF_LABELSMOOTH", "'False'", False),
    ("EXPERIMENT.IF_LABELSMOOTH", "no", False),
    ("EXPERIMENT.IF_LABELSMOOTH", "FALSE", False),
    ("EXPERIMENT.IF_LABELSMOOTH", "0", False),
    ("EXPERIMENT.DEVICE_ID", "0", "0"),
    ("EXPERIMENT.DEVICE_ID", "10", "10"),
    ("EXPERIMENT.DEVICE_ID", "\"'0'\"", "0"),
    ("EXPERIMENT.DEVICE_ID", "('0')", "0"),
    ("DATASETS.NAMES", "007", "007"),
    ("DATASETS.NAMES", "on", "on"),
    ("DATASETS.NAMES", "1.50", "1.50"),
    ("DATASETS.NAMES", "''", ""),
    ("DATASETS.NAMES", "('SOP')", "SOP"),
    ("DATASETS.NAMES", "it's", "it's"),
    ("DATASETS.CAMERA_PATTERN", r"(c\d+)_(\d+)", r"(c\d+)_(\d+)"),
    ("SOLVER.LR_DECAY_STEPS", "[40]", [40]),
    ("SOLVER.LR_DECAY_STEPS", "(40,)", [40]),
    ("SOLVER.LR_DECAY_STEPS", "(40)", [40]),
    ("SOLVER.LR_DECAY_STEPS", "(40, 70)", [40, 70]),
    ("SOLVER.LR_DECAY_STEPS", "'[40]'", [40]),
    ("SOLVER.LR_DECAY_STEPS", "\"'[40, 70]'\"", [40, 70]),
    ("SOLVER.LR_DECAY_STEPS", "40", [40]),
    ("SOLVER.LR_DECAY_STEPS", "40, 70", [40, 70]),
    ("SOLVER.LR_DECAY_STEPS", "\n- 40\n- 70.0", [40, 70]),
    ("SOLVER.LR_DECAY_STEPS", "['40', \"'70'\"]", [40, 70]),
    ("INPUT.SIZE_TRAIN", "[]", []),
    ("INPUT.SIZE_TRAIN", "()", []),
    ("INPUT.SIZE_TRAIN", "(256, 128)", [256, 128]),
    ("INPUT.PIXEL_MEAN", "[0, 1, .5]", [0.0, 1.0, 0.5]),
    ("TEST.RE_RANKING_PARAMETER", "(60.0, 10, 1)", [60, 10, 1.0]),
]


def merged(key, text, tmp_path):
    section, name = key.split(".")
    path = tmp_path / "x.yaml"
    path.write_text(f"{section}:\n  {name}: {text.replace(chr(10), chr(10) + '    ')}\n", encoding="utf-8")
    cfg = get_cfg()
    cfg.merge_from_file(path)
    return cfg[section][name]


def same(value, meaning):
    inside = isinstance(value, list)
    return value == meaning and (
        list(map(type, value)) == list(map(type, meaning)) if inside else type(value) is type(meaning)
    )


@pytest.mark.parametrize("key, text, meaning", UNDERSTOOD)
def test_a_file_means(key, text, meaning, tmp_path):
    assert same(merged(key, text, tmp_path), meaning)


@pytest.mark.parametrize("key, text, meaning", UNDERSTOOD)
def test_the_command_line_means_the_same(key, text, meaning):
    # A shell has taken one layer of quotes off, as YAML's reader does.
    word = text if "\n" in text else yaml.load(f"x: {text}", Loader=yaml.BaseLoader)["x"]
    cfg = get_cfg()
    if isinstance(word, str) and "\n" in word:
        return  # lists over several lines are a file's form
    cfg.merge_from_list([key, word])
    assert same(cfg.flat()[key], meaning)


@pytest.mark.parametrize("key, text, meaning", UNDERSTOOD)
def test_python_values_mean_the_same(key, text, meaning):
    cfg = get_cfg()
    cfg.merge_from_list([key, tuple(meaning) if isinstance(meaning, list) else meaning])
    assert same(cfg.flat()[key], meaning)


@pytest.mark.parametrize(
    "key, value",
    [
        ("SOLVER.MAX_EPOCHS", True),
        ("SOLVER.BASE_LR", False),
        ("SOLVER.BASE_LR", math.nan),
        ("SOLVER.BASE_LR", math.inf),
        ("SOLVER.BASE_LR", ""),
        ("TEST.FLIP_FEATS", 2),
        ("TEST.FLIP_FEATS", 1.0),
        ("TEST.FLIP_FEATS", []),
        ("DATASETS.NAMES", True),
        ("DATASETS.NAMES", ["SOP"]),
        ("SOLVER.LR_DECAY_STEPS", True),
        ("SOLVER.LR_DECAY_STEPS", {"a": 1}),
        ("SOLVER.LR_DECAY_STEPS", "{a: 1}"),
        ("SOLVER.LR_DECAY_STEPS", "1]"),
        ("SOLVER.LR_DECAY_STEPS", "[1] 2"),
        ("SOLVER.LR_DECAY_STEPS", "[" * 9999),
        ("SOLVER.LR_DECAY_STEPS", [1.5]),
    ],
)
def test_what_cannot_be_is_refused(key, value):
    with pytest.raises(UserError, match="write for example"):
        get_cfg().merge_from_list([key, value])


def values_for(key, default):
    if key in SWITCHES_WITH_AUTO:
        return st.sampled_from([True, False, AUTO])
    if isinstance(default, bool):
        return st.booleans()
    if isinstance(default, int):
        return st.integers(-(10**9), 10**9)
    if isinstance(default, float):
        return st.floats(allow_nan=False, allow_infinity=False)
    if isinstance(default, str):
        return st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20)
    return st.lists(st.integers(0, 1000), max_size=4)


KEYS = {
    key: value
    for key, value in get_cfg().flat().items()
    if key not in ("EXPERIMENT.IMPORTS", "TEST.RE_RANKING_PARAMETER", "INPUT.PIXEL_MEAN", "INPUT.PIXEL_STD")
}


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_config_survives_being_written_and_read(tmp_path_factory, data):
    """Property: reading what was dumped gives the same values of the same types."""
    cfg = get_cfg()
    for key in data.draw(st.lists(st.sampled_from(sorted(KEYS)), max_size=8, unique=True)):
        *sections, name = key.split(".")
        node = cfg
        for section in sections:
            node = node[section]
        node[name] = data.draw(values_for(key, KEYS[key]), label=key)
    path = tmp_path_factory.mktemp("dump") / "config.yaml"
    path.write_text(dump_config(cfg), encoding="utf-8")
    again = get_cfg()
    again.merge_from_file(path)
    assert again.flat() == cfg.flat()
    assert all(same(value, cfg.flat()[key]) for key, value in again.flat().items())
