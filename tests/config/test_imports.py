"""EXPERIMENT.IMPORTS and the sections that user code adds."""

import subprocess
import sys

import pytest

from d3still.config import add_section, dump_config, get_cfg, load_config, sections
from d3still.config.rules import NOT_NEGATIVE, one_of
from d3still.errors import UserError


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder, with the modules and paths that a test adds taken back afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.fixture(autouse=True)
def _own_sections(monkeypatch):
    for table in ("_sections", "_rules", "_owners"):
        monkeypatch.setattr(sections, table, dict(getattr(sections, table)))


def write_loss(path, section, weight=1.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"from d3still.config import add_section\nadd_section({section!r}, {{'W': {weight}, 'ON': False}})\n"
    )


@pytest.mark.parametrize("entry", ["my_loss", "my_loss.py", "./my_loss.py", "'my_loss.py'"])
def test_a_file_beside_the_config(here, entry):
    write_loss(here / "sub" / "my_loss.py", "Mine")
    (here / "sub" / "x.yaml").write_text(f"Mine: {{W: 3, ON: on}}\nEXPERIMENT: {{IMPORTS: [{entry}]}}\n")
    cfg = load_config("sub/x.yaml")
    assert cfg.Mine.W == 3.0 and cfg.Mine.ON is True
    assert cfg.EXPERIMENT.IMPORTS == ["sub/my_loss.py"]


def test_a_file_in_the_current_folder_and_an_absolute_one(here, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    write_loss(here / "near.py", "Near")
    write_loss(elsewhere / "far.py", "Far")
    (elsewhere / "x.yaml").write_text(
        f"EXPERIMENT: {{IMPORTS: [near, {elsewhere}/far.py]}}\nNear: {{W: 2}}\nFar: {{W: 4}}\n"
    )
    cfg = load_config(elsewhere / "x.yaml")
    assert (cfg.Near.W, cfg.Far.W) == (2.0, 4.0)
    assert list(cfg.EXPERIMENT.IMPORTS) == ["near.py", f"{elsewhere}/far.py"]


def test_a_module_of_a_package(here):
    write_loss(here / "pack" / "loss.py", "Packed")
    (here / "pack" / "__init__.py").write_text("")
    write_loss(here / "whole" / "__init__.py", "Whole")
    (here / "x.yaml").write_text("EXPERIMENT: {IMPORTS: [pack.loss, whole]}\nPacked: {W: 2}\nWhole: {W: 4}\n")
    cfg = load_config("x.yaml")
    assert (cfg.Packed.W, cfg.Whole.W) == (2.0, 4.0)


def test_the_command_line_imports_before_the_file_is_read(here):
    write_loss(here / "my_loss.py", "Mine")
    (here / "x.yaml").write_text("Mine: {W: 3}\n")
    cfg = load_config("x.yaml", ["SOLVER.SEED", "1", "EXPERIMENT.IMPORTS", "my_loss.py", "Mine.W", "4"])
    assert cfg.Mine.W == 4.0 and cfg.EXPERIMENT.IMPORTS == ["my_loss.py"]


def test_imports_add_up_and_survive_the_frozen_config(here):
    write_loss(here / "one" / "loss.py", "One")
    write_loss(here / "two" / "loss.py", "Two")  # the same file name, another file
    (here / "one" / "base.yaml").write_text("EXPERIMENT: {IMPORTS: [loss.py]}\nOne: {W: 2}\n")
    (here / "two" / "x.yaml").write_text("_BASE_: ../one/base.yaml\nEXPERIMENT: {IMPORTS: [loss.py]}\nTwo: {W: 4}\n")
    cfg = load_config("two/x.yaml")
    assert (cfg.One.W, cfg.Two.W) == (2.0, 4.0)
    assert cfg.EXPERIMENT.IMPORTS == ["one/loss.py", "two/loss.py"]
    (here / "run").mkdir()
    (here / "run" / "config.yaml").write_text(dump_config(cfg))
    assert load_config("run/config.yaml") == cfg


def test_a_file_is_run_once(here):
    (here / "count.py").write_text(
        "import pathlib\np = pathlib.Path('n')\np.write_text(p.read_text() + 'x' if p.exists() else 'x')\n"
    )
    (here / "x.yaml").write_text("EXPERIMENT: {IMPORTS: [count, count.py]}\n")
    load_config("x.yaml")
    load_config("x.yaml")
    assert (here / "n").read_text() == "x"


def test_a_module_can_be_found_by_a_spawned_process(here):
    """What spawned data workers do: import the module by its name with the parent's path."""
    write_loss(here / "sub" / "spawned_loss.py", "Mine")
    (here / "sub" / "x.yaml").write_text("EXPERIMENT: {IMPORTS: [spawned_loss]}\n")
    load_config("sub/x.yaml")
    code = f"import sys; sys.path[:] = {sys.path!r}; import spawned_loss"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_name_that_the_library_has_does_not_hide_it(here):
    write_loss(here / "random.py", "Mine")
    (here / "x.yaml").write_text("EXPERIMENT: {IMPORTS: [random.py]}\nMine: {W: 3}\n")
    assert load_config("x.yaml").Mine.W == 3.0
    assert hasattr(__import__("random"), "shuffle")


@pytest.mark.parametrize(
    "entry, text, expected",
    [
        ("gone.py", None, "no such file beside the config"),
        ("gone", None, "no such module or file"),
        ("gone.deeper", None, "no such module or file"),
        ("broken.py", "def (:", "cannot be imported (SyntaxError"),
        ("broken.py", "import not_there_at_all", "not_there_at_all"),
        ("broken", "1 / 0", "cannot be imported (ZeroDivisionError: division by zero)"),
        (
            "broken.py",
            "from d3still.config import add_section\nadd_section('ROP', {'K': 1})",
            "section ROP already exists",
        ),
    ],
)
def test_what_cannot_be_imported_is_named(here, entry, text, expected):
    if text:
        (here / "broken.py").write_text(text)
    (here / "x.yaml").write_text(f"EXPERIMENT:\n  IMPORTS: [{entry}]\n")
    with pytest.raises(UserError) as caught:
        load_config("x.yaml")
    message = str(caught.value)
    assert message.startswith(f"x.yaml, line 2: EXPERIMENT.IMPORTS '{entry}'") and expected in message
    assert "\n" not in message


def test_a_section_is_in_every_later_config():
    add_section("Mine", {"W": 1.0, "STEPS": (1, 2)})
    add_section("Mine", {"W": 1.0, "STEPS": (1, 2)})
    cfg = get_cfg()
    cfg.merge_from_list(["Mine.W", "2", "Mine.STEPS", "[3]"])
    assert cfg.Mine == {"W": 2.0, "STEPS": [3]} and get_cfg().Mine == {"W": 1.0, "STEPS": [1, 2]}


def test_a_section_added_while_a_config_exists_reaches_it():
    cfg = get_cfg()
    add_section("Mine", {"W": 1.0})
    cfg.merge_from_list(["Mine.W", 2])
    assert cfg.Mine.W == 2.0


def test_a_section_of_the_schema_may_be_named_with_its_own_defaults():
    add_section("FITNET", {"KD_WEIGHT": 2.0})
    assert get_cfg().FITNET == {"KD_WEIGHT": 2.0}


def test_a_section_brings_rules_and_sections_within(tmp_path):
    add_section("Mine", {"W": (1.0, NOT_NEGATIVE), "INNER": {"K": (3, one_of(3, 5))}})
    (tmp_path / "x.yaml").write_text("Mine: {W: 2, INNER: {K: 5}}\n")
    assert load_config(tmp_path / "x.yaml").Mine == {"W": 2.0, "INNER": {"K": 5}}
    with pytest.raises(UserError, match=r"command line: Mine\.W is -1.0; it must be 0 or more"):
        load_config(tmp_path / "x.yaml", ["Mine.W", "-1"])
    with pytest.raises(UserError, match=r"Mine\.INNER\.K is 4; it must be 3 | 5"):
        load_config(tmp_path / "x.yaml", ["Mine.INNER.K", "4"])


@pytest.mark.parametrize("defaults", [{"W": 2.0}, {"W": 1}, {"W": True}, {"V": 1.0}, {}])
def test_a_section_cannot_be_taken_twice(defaults):
    add_section("Mine", {"W": 1.0})
    with pytest.raises(UserError, match="Mine already exists with other defaults"):
        add_section("Mine", defaults)


@pytest.mark.parametrize(
    "name, defaults",
    [("my loss", {}), ("A.B", {}), ("", {}), ("Mine", {"A.B": 1}), ("Mine", {"A": None}), ("Mine", {"A": {"B": None}})],
)
def test_a_section_needs_plain_names_and_values(name, defaults):
    with pytest.raises(UserError, match="config section"):
        add_section(name, defaults)


def test_a_list_that_starts_empty_takes_numbers_or_texts(tmp_path):
    add_section("Mine", {"LIST": []})
    cfg = get_cfg()
    (tmp_path / "x.yaml").write_text("Mine: {LIST: [1, 2.5, a]}\n")
    cfg.merge_from_file(tmp_path / "x.yaml")
    assert cfg.Mine.LIST == [1, 2.5, "a"]
