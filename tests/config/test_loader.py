"""Files that build on files, the command line, and what an error says."""

import copy
import os
import pickle
from pathlib import Path

import pytest

from d3still.config import dump_config, get_cfg, load_config, read_tree, reader
from d3still.errors import UserError
from d3still.runs.finished import read_run


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a file in an empty current folder and return its path."""
    monkeypatch.chdir(tmp_path)

    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write


def refused(path, *overrides) -> str:
    """The message with which a config is refused: one line, whatever went wrong."""
    with pytest.raises(UserError) as caught:
        load_config(path, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_later_files_override_earlier_ones(write):
    write("base/a.yaml", "SOLVER: {MAX_EPOCHS: 50, BASE_LR: 0.5}\nTEST: {FLIP_FEATS: True}\n")
    write("base/b.yaml", "_BASE_: a.yaml\nSOLVER: {MAX_EPOCHS: 60}\n")
    write("base/c.yaml", "TEST: {FLIP_FEATS: False}\n")
    cfg = load_config(write("x/y.yaml", "_BASE_: [../base/b.yaml, ../base/c.yaml]\nSOLVER: {SEED: 7}\n"))
    assert (cfg.SOLVER.MAX_EPOCHS, cfg.SOLVER.BASE_LR, cfg.SOLVER.SEED) == (60, 0.5, 7)
    assert cfg.TEST.FLIP_FEATS is False


def test_two_files_may_share_a_base(write):
    write("a.yaml", "SOLVER: {MAX_EPOCHS: 50}\n")
    write("b.yaml", "_BASE_: a.yaml\nSOLVER: {SEED: 1}\n")
    write("c.yaml", "_BASE_: a.yaml\nDATASETS: {NAMES: emoji}\n")
    cfg = load_config(write("d.yaml", "_BASE_: [b.yaml, c.yaml]\n"))
    assert (cfg.SOLVER.MAX_EPOCHS, cfg.SOLVER.SEED, cfg.DATASETS.NAMES) == (50, 1, "emoji")


def test_the_command_line_comes_last(write):
    path = write("a.yaml", "SOLVER: {MAX_EPOCHS: 50}\n")
    overrides = ["SOLVER.MAX_EPOCHS", "60", "SOLVER.LR_DECAY_STEPS", "(10,)", "TEST.FLIP_FEATS", "on"]
    cfg = load_config(path, overrides)
    assert (cfg.SOLVER.MAX_EPOCHS, cfg.SOLVER.LR_DECAY_STEPS, cfg.TEST.FLIP_FEATS) == (60, [10], True)


def test_the_config_is_frozen_and_knows_its_file(write):
    path = write("a.yaml", "SOLVER: {SEED: 3}\n")
    cfg = load_config(path)
    assert cfg.config_file == path and "config_file" not in cfg
    assert cfg.origin("SOLVER.SEED") == "a.yaml, line 1"
    with pytest.raises(AttributeError):
        cfg.SOLVER.SEED = 4
    with pytest.raises(AttributeError):
        cfg.merge_from_list(["SOLVER.SEED", 4])
    for twin in (copy.deepcopy(cfg), pickle.loads(pickle.dumps(cfg))):
        assert twin == cfg and twin.config_file == path


def test_what_is_open_is_filled_in(write):
    text = "INPUT: {TEACHER_SIZE_TRAIN: [32, 48], TEACHER_SIZE_TEST: [64, 80], TEACHER_PADDING: 3}\n"
    sizes = load_config(write("mine.yaml", text)).INPUT
    assert (sizes.SIZE_TRAIN, sizes.SIZE_TEST, sizes.PADDING) == ([32, 48], [64, 80], 3)
    sizes = load_config(write("mine.yaml", text + "  \n"), ["INPUT.SIZE_TRAIN", "[8, 8]", "INPUT.PADDING", 0]).INPUT
    assert (sizes.SIZE_TRAIN, sizes.SIZE_TEST, sizes.PADDING) == ([8, 8], [64, 80], 0)


def test_a_failed_merge_leaves_the_config_as_it_was(write):
    write("good.yaml", "SOLVER: {SEED: 3}\n")
    path = write("bad.yaml", "_BASE_: good.yaml\nSOLVER: {SEED: 5, MAX_EPOCHS: many}\n")
    cfg = get_cfg()
    with pytest.raises(UserError):
        cfg.merge_from_file(path)
    assert cfg == get_cfg() and cfg.config_file is None


def test_each_config_has_its_own_defaults():
    one, other = get_cfg(), get_cfg()
    one.SOLVER.LR_DECAY_STEPS.append(99)
    assert other.SOLVER.LR_DECAY_STEPS == get_cfg().SOLVER.LR_DECAY_STEPS == [40, 70]


def test_a_tree_can_be_merged():
    cfg = get_cfg()
    cfg.merge_from_other_cfg(
        {"SOLVER": {"MAX_EPOCHS": 3.0, "LR_DECAY_STEPS": (1, 2)}, "RKD": {"PDIST": {"SQUARED": True}}}
    )
    assert cfg.SOLVER.MAX_EPOCHS == 3 and cfg.SOLVER.LR_DECAY_STEPS == [1, 2] and cfg.RKD.PDIST.SQUARED is True
    with pytest.raises(UserError, match=r"did you mean SOLVER\.SEED"):
        cfg.merge_from_other_cfg({"SOLVER": {"SEEDS": 3}})


def test_a_section_without_keys_changes_nothing(write):
    assert load_config(write("a.yaml", "SOLVER:\n  # SEED: 3\nTEST: {}\n")).SOLVER == get_cfg().SOLVER


def test_a_shared_base_stands_where_its_last_user_needs_it(write):
    """b overrides a, then c with all that it builds on overrides b: a's 50, not b's 60."""
    write("a.yaml", "SOLVER: {MAX_EPOCHS: 50}\n")
    write("b.yaml", "_BASE_: a.yaml\nSOLVER: {MAX_EPOCHS: 60, SEED: 1}\n")
    write("c.yaml", "_BASE_: a.yaml\n")
    cfg = load_config(write("d.yaml", "_BASE_: [b.yaml, c.yaml]\n"))
    assert (cfg.SOLVER.MAX_EPOCHS, cfg.SOLVER.SEED) == (50, 1)


def test_each_base_is_read_once(write, monkeypatch):
    """24 levels that name the next one twice would be read 2^24 times."""
    levels = 24
    for level in range(levels):
        write(f"{level}.yaml", f"_BASE_: [{level + 1}.yaml, {level + 1}.yaml]\n")
    write(f"{levels}.yaml", "SOLVER: {SEED: 7}\n")
    read = []
    layer_of = reader.read_layer
    monkeypatch.setattr(reader, "read_layer", lambda file: read.append(file) or layer_of(file))
    assert load_config("0.yaml").SOLVER.SEED == 7
    assert len(read) == levels + 1


def bomb(levels, entry):
    """YAML of one line a level, each naming the one before nine times."""
    lines = [f"a0: &a0 {entry('x')}", *(f"a{n}: &a{n} {entry(f'*a{n - 1}')}" for n in range(1, levels))]
    return "\n".join(lines) + "\n"


def lists(name):
    return f"[{', '.join([name] * 9)}]"


def sections(name):
    return "{" + ", ".join(f"k{i}: {name}" for i in range(9)) + "}"


MANY = "stands for more than 10000 values"
BOMBS = {
    "lists": (bomb(40, lists), MANY),
    "shallow lists": (bomb(6, lists), MANY),
    "sections": (bomb(40, sections), MANY),
    "shallow sections": (bomb(6, sections), MANY),
    "itself": ("SOLVER: &a [" + "*a, " * 50 + "]\n", "an alias stands for what holds it"),
    "size": ("a: 0\n" * 100_000, "holds more than 262144 characters"),
}


@pytest.mark.parametrize(("text", "reason"), BOMBS.values(), ids=BOMBS)
def test_what_outgrows_its_file_is_refused_at_once(write, text, reason):
    """In a config file, and where a run folder or a checkpoint carries one."""
    message = refused(write("x.yaml", text))
    assert message.startswith("x.yaml") and reason in message
    with pytest.raises(UserError, match=rf"^last\.pth.*{reason}"):
        read_tree(text, "last.pth")
    folder = write("run/config.yaml", text).parent
    write("run/metrics.json", "{}")
    with pytest.raises(UserError, match=rf"run/config\.yaml.*{reason}"):
        read_run(folder)


def test_an_alias_is_what_it_stands_for(write):
    cfg = load_config(write("x.yaml", "INPUT: {SIZE_TRAIN: &size [64, 32], SIZE_TEST: *size}\n"))
    assert cfg.INPUT.SIZE_TRAIN == cfg.INPUT.SIZE_TEST == [64, 32]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("_BASE_: ~nosuchuser/x.yaml", "x.yaml, line 1: _BASE_ '~nosuchuser/x.yaml' begins with a user who has no"),
        ('_BASE_: "a\\0b"', "holds a NUL character"),
        ("_BASE_: folder", "folder is a folder"),
        ("_BASE_: pipe", "pipe cannot be read (it is a named pipe, not a file)"),
        ("OUTPUT_DIR: {ROOT_PATH: ~nosuchuser/log}", "OUTPUT_DIR.ROOT_PATH is '~nosuchuser/log'; it must be a path: "),
        ('DATASETS: {ROOT_DIR: "a\\0"}', "DATASETS.ROOT_DIR is 'a\\x00'; it must be a path: "),
        ('TEST: {WEIGHTS: "a\\0"}', "TEST.WEIGHTS is 'a\\x00'; it must be a path: "),
        ('EXPERIMENT: {IMPORTS: ["a\\0.py"]}', "holds a NUL character"),
        ("EXPERIMENT: {IMPORTS: [~nosuchuser/a.py]}", "begins with a user who has no home"),
    ],
)
def test_a_path_that_cannot_be_is_one_line(write, tmp_path, text, expected):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    assert expected in refused(write("x.yaml", text + "\n"))


def test_a_chain_of_bases_has_an_end(write):
    for level in range(100):
        write(f"{level}.yaml", f"_BASE_: {level + 1}.yaml\n")
    write("100.yaml", "SOLVER: {SEED: 7}\n")
    assert "64 files build on each other" in refused("0.yaml")
    assert load_config("40.yaml").SOLVER.SEED == 7


def test_circles_are_named(write):
    write("a.yaml", "_BASE_: b.yaml\n")
    write("b.yaml", "_BASE_: sub/c.yaml\n")
    path = write("sub/c.yaml", "_BASE_: ../a.yaml\n")
    assert "sub/c.yaml -> a.yaml -> b.yaml -> sub/c.yaml" in refused(path)
    assert "circle" in refused(write("own.yaml", "_BASE_: own.yaml\n"))


@pytest.mark.parametrize(
    "text, expected",
    [
        ("SOLVER: {MAX_EPOCH: 3}", "x.yaml, line 1: unknown key SOLVER.MAX_EPOCH; did you mean SOLVER.MAX_EPOCHS?"),
        ("INPUT:\n  MAX_EPOCHS: 3", "x.yaml, line 2: unknown key INPUT.MAX_EPOCHS; did you mean SOLVER.MAX_EPOCHS?"),
        ("MAX_EPOCHS: 3", "did you mean SOLVER.MAX_EPOCHS?"),
        ("solver: {seed: 3}", "did you mean SOLVER.SEED?"),
        ("INPUT: {XYZZY: 3}", "the keys of INPUT are STUDENT_SIZE_TRAIN, "),
        ("XYZZY: {Q: 3}", "the sections are EXPERIMENT, DISTILLER, "),
        ("SOLVER: 3", "SOLVER is a section, not a key"),
        ("SOLVER: {SEED: {A: 3}}", "SOLVER.SEED is a key, not a section; write SEED: 2024"),
        (
            "SOLVER:\n\n  MAX_EPOCHS: many",
            "x.yaml, line 3: SOLVER.MAX_EPOCHS cannot be 'many': it takes a whole number",
        ),
        ("SOLVER: {MAX_EPOCHS: 2.5}", "it takes a whole number; write for example MAX_EPOCHS: 120"),
        ("SOLVER: {MAX_EPOCHS: true}", "it takes a whole number"),
        ("SOLVER: {MAX_EPOCHS: [3]}", "it takes a whole number"),
        ("SOLVER: {BASE_LR: fast}", "it takes a number; write for example BASE_LR: 0.01"),
        ("SOLVER: {BASE_LR: .nan}", "it takes a number"),
        ("SOLVER: {BASE_LR: 1e999}", "it takes a number"),
        ("SOLVER: {LARGE_FC_LR: maybe}", "it takes True or False; write for example LARGE_FC_LR: True"),
        ("SOLVER: {LR_DECAY_STEPS: [early]}", "it takes a list; write for example LR_DECAY_STEPS: [40, 70]"),
        ("SOLVER: {LR_DECAY_STEPS: '[40'}", "it takes a list"),
        ("SOLVER: {LR_DECAY_STEPS: [[40]]}", "it takes a list"),
        ("SOLVER: {LR_DECAY_STEPS: [1, ]\n", "line 2: not valid YAML"),
        ("TEST: {RE_RANKING_PARAMETER: [60, 10]}", "write for example RE_RANKING_PARAMETER: [60, 10, 0.3]"),
        ("DATASETS: {NAMES: [SOP]}", "it takes a text; write for example NAMES: 'SOP'"),
        ("DATASETS: {NAMES: }", "DATASETS.NAMES has no value; write NAMES: 'SOP'"),
        ("SOLVER: {MAX_EPOCHS: null}", "SOLVER.MAX_EPOCHS has no value; write MAX_EPOCHS: 120"),
        ("SOLVER: {LR_DECAY_STEPS: [1, null]}", "it takes a list"),
        ("SOLVER:\n  SEED: 1\n  SEED: 2", "x.yaml, line 3: SOLVER.SEED is given twice"),
        ("SOLVER: {SEED: 1}\nTEST: {}\nSOLVER: {SEED: 2}", "x.yaml, line 3: SOLVER"),
        ("SOLVER:\n\tSEED: 1", "x.yaml, line 2: not valid YAML"),
        ("SOLVER: [SEED: 1", "not valid YAML"),
        ("a: *nothing", "not valid YAML"),
        ("a: " + "[" * 9999, "not valid YAML"),
        ("- SOLVER\n- TEST", "x.yaml holds no sections"),
        ("just words", "x.yaml holds no sections"),
        ("", "x.yaml is empty"),
        ("---\nSOLVER: {}\n---\nTEST: {}", "not valid YAML"),
        ("? [a, b]\n: c", "a key must be a plain name"),
        ('"SOLVER\\nSEED": 3', "a key must be a plain name"),
        ("a: &a {b: *a}", "nested too deeply"),
        ("SOLVER: {LR_DECAY_STEPS: &a [*a]}", "may hold only plain values"),
        ("SOLVER: {LR_DECAY_STEPS: [{a: 1}]}", "may hold only plain values"),
        ("_BASE_: nowhere.yaml", "x.yaml: _BASE_ names nowhere.yaml, which does not exist"),
        ("_BASE_:", "_BASE_ takes a path"),
        ("_BASE_: {a: b}", "_BASE_"),
    ],
)
def test_a_bad_file_gets_one_line_that_says_what_to_do(write, text, expected):
    message = refused(write("x.yaml", text))
    assert expected in message and "x.yaml" in message


def test_a_windows_editors_file_is_read(write):
    path = write("x.yaml", "")
    path.write_bytes(b"\xef\xbb\xbfSOLVER:\r\n  SEED: 7\r\n")
    assert load_config(path).SOLVER.SEED == 7


def test_a_file_that_cannot_be_read_is_named(write, tmp_path):
    assert "config file nowhere.yaml does not exist" in refused("nowhere.yaml")
    write("acd_rop.yaml", "TEST: {}\n")
    assert refused("acd_rpo.yaml").endswith("did you mean acd_rop.yaml?")
    assert "is a folder" in refused(tmp_path)
    latin = write("latin.yaml", "")
    latin.write_bytes("DATASETS: {NAMES: café}".encode("latin-1"))
    assert "not UTF-8" in refused(latin)
    binary = write("binary.yaml", "")
    binary.write_bytes(b"PK\x03\x04\x00\x00")
    assert "not valid YAML" in refused(binary)


@pytest.mark.parametrize(
    "overrides, expected",
    [
        (["SOLVER.SEED"], "'SOLVER.SEED' is left over"),
        (["SOLVER.SEED=3"], "'SOLVER.SEED=3' is left over"),
        (["SOLVER.SEDE", "3"], "command line: unknown key SOLVER.SEDE; did you mean SOLVER.SEED?"),
        (
            ["SOLVER.SEED", "x"],
            "command line: SOLVER.SEED cannot be 'x': it takes a whole number; write for example SOLVER.SEED 2024",
        ),
        (["SOLVER.SEED", None], "command line: SOLVER.SEED has no value"),
        (["SOLVER.LR_DECAY_STEPS", "x"], 'SOLVER.LR_DECAY_STEPS "[40, 70]"'),
        (["SOLVER.SEED", "-1"], "command line: SOLVER.SEED is -1"),
    ],
)
def test_a_bad_command_line_gets_one_line_too(write, overrides, expected):
    assert expected in refused(write("x.yaml", "SOLVER: {}\n"), *overrides)


def test_a_dumped_config_reads_back_the_same(write):
    path = write(
        "x.yaml", "DATASETS: {NAMES: '0', ROOT_DIR: 'é #1: x', CAMERA_PATTERN: '\"(c)\"'}\nSOLVER: {BASE_LR: 1e-7}\n"
    )
    cfg = load_config(path, ["EXPERIMENT.DEVICE_ID", "0", "TEST.WEIGHTS", "on", "OUTPUT_DIR.ROOT_PATH", "a" * 300])
    again = load_config(write("run/config.yaml", dump_config(cfg)))
    assert again == cfg and dump_config(again) == dump_config(cfg)
    assert (again.DATASETS.NAMES, again.EXPERIMENT.DEVICE_ID, again.TEST.WEIGHTS) == ("0", "0", "on")
