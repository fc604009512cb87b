"""The commands' doors: help without waiting, words in any order, and the one installed command."""

import os
import runpy
import subprocess
import sys

import pytest

import d3still.engine
from d3still import cli
from tests.tiny import REPOSITORY

HEAVY = ("torch", "torchvision", "matplotlib", "scipy", "faiss", "fastapi", "pandas")


@pytest.fixture
def call(monkeypatch, tmp_path):
    """Run a command in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["d3still", *map(str, words)])
        cli.main()

    return call


def test_help_of_each_command_imports_nothing_heavy():
    """All in one fresh process, one after another; what is heavy would also stay for the next."""
    program = (
        "import sys\nfrom d3still import cli\n"
        "for name in cli.COMMANDS:\n"
        "    sys.argv = ['d3still', name, '--help']\n"
        "    try:\n        cli.main()\n    except SystemExit as end:\n        assert not end.code, name\n"
        f"    loaded = [module for module in {HEAVY} if module in sys.modules]\n"
        "    assert not loaded, f'{name} --help imports {loaded}'\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [f"usage: d3still {name} " in done.stdout for name in cli.COMMANDS] == [True] * len(cli.COMMANDS)


@pytest.mark.parametrize(
    "words",
    [
        ("--config-file", "configs/emoji/rop.yaml", "SOLVER.SEED", "7", "INPUT.PADDING", "-1", "--resume", "never"),
        ("--resume", "never", "--config-file", "configs/emoji/rop.yaml", "SOLVER.SEED", "7"),
        ("SOLVER.SEED", "7", "--cfg", "configs/emoji/rop.yaml", "--resume", "never"),
        ("SOLVER.SEED", "7", "--resume", "never", "INPUT.PADDING", "2", "--cfg", "configs/emoji/rop.yaml"),
    ],
)
def test_settings_and_options_stand_in_any_order(call, monkeypatch, words):
    asked = []
    monkeypatch.setattr(d3still.engine, "train", lambda *arguments: asked.append(arguments))
    call("train", *words)
    ((cfg, resume, accept_changes),) = asked
    assert (cfg.SOLVER.SEED, cfg.INPUT.PADDING, resume, accept_changes) == (7, 2, "never", False)


def test_without_a_command_all_are_listed(call, capsys):
    call()
    call("--help")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line.startswith("  ")] == 2 * list(cli.COMMANDS)
    assert all(len(line) < 120 for line in lines)


def test_an_unknown_command_names_the_nearest(call):
    with pytest.raises(SystemExit) as caught:
        call("trian")
    assert caught.value.code == "error: there is no command 'trian'; did you mean 'train'?"


def test_each_tool_is_a_command():
    tools = {path.stem for path in (REPOSITORY / "tools").glob("[a-z]*.py")}
    assert set(cli.COMMANDS.values()) == tools


def test_index_kinds_are_those_of_the_package():
    """The command line names them itself, since the package's list comes with torch."""
    from d3still.deploy import KINDS

    assert runpy.run_path(str(REPOSITORY / "tools/index_net.py"))["KINDS"] == KINDS


@pytest.mark.slow
def test_an_installed_package_works_in_an_empty_folder(tmp_path):
    """Commands, configs and the emoji set come along; nothing of the checkout is needed."""
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    options = ["--no-deps", "--no-build-isolation", "--target", tmp_path / "site"]
    source = tmp_path / "source"
    subprocess.run(["git", "clone", "--quiet", REPOSITORY, source], check=True)
    subprocess.run([*pip, "install", *options, source], check=True, timeout=600)
    (tmp_path / "empty").mkdir()
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site"), "XDG_CACHE_HOME": str(tmp_path / "cache")}

    def installed(*words):
        return subprocess.run(
            [tmp_path / "site/bin/d3still", *words],
            cwd=tmp_path / "empty",
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    assert "check-dataset" in installed("--help").stdout
    done = installed("check-dataset", "emoji", "--fast")
    assert done.returncode == 0 and "all is well" in done.stdout, done.stderr
    done = installed("train", "--cfg", "configs/emoji/vanilla.yaml", "SOLVER.MAX_EPOCHS", "0")
    assert done.stderr == "error: command line: SOLVER.MAX_EPOCHS is 0; it must be 1 or more\n"
