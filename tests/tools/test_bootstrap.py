"""What every command does around its own work."""

import logging

import pytest

from d3still.config import load_config
from tests.tiny import REPOSITORY


@pytest.fixture
def bootstrap(monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "tools"))
    import _bootstrap

    return _bootstrap


@pytest.mark.parametrize("rank, told", [("0", True), ("1", False)])
def test_how_a_published_config_is_read_is_told_once(bootstrap, tmp_path, monkeypatch, capsys, rank, told):
    file = tmp_path / "published.yaml"
    file.write_text("EXPERIMENT: {CUDA_AMP: True}\nDISTILLER: {TYPE: RAML}\nRAML: {LAMBDA2: 0.6778}\n")
    monkeypatch.setenv("RANK", rank)
    before = logging.getLogger("d3still").handlers[:], logging.getLogger("d3still").level
    bootstrap.run(lambda: load_config(file))
    assert ("RAML.LAMBDA2 = 0.7482" in capsys.readouterr().err) is told
    assert (logging.getLogger("d3still").handlers, logging.getLogger("d3still").level) == before
