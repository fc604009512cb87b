"""Commands in the tests' own process."""

import importlib
import sys

import pytest

from tests.tiny import REPOSITORY


@pytest.fixture
def run_tool(monkeypatch, capsys):
    """``run_tool("compare_net", …)`` runs a command's main in this process; its status and what it printed."""

    def run(name, *arguments):
        monkeypatch.syspath_prepend(str(REPOSITORY / "tools"))
        module = importlib.import_module(name)
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        status = module.main()
        return status, capsys.readouterr().out

    return run
