"""Fixtures that several test folders share."""

import pytest
from hypothesis import settings

from d3still.config import load_config
from d3still.engine import train
from tests.tiny import REPOSITORY, make_veri, overrides, stage_settings

settings.register_profile("repeatable", derandomize=True)  # the same examples each time: red is about the change
settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def veri(tmp_path_factory):
    """A tiny folder in VeRi-776's own layout."""
    return make_veri(tmp_path_factory.mktemp("data") / "VeRi")


@pytest.fixture(scope="session")
def run_stage(veri):
    """``run_stage(stage, log, …)`` trains one of configs/veri's stages on the tiny folder, in this process."""

    def run(stage, log, resume="auto", accept_changes=False, **more):
        settings = overrides(veri, log, **stage_settings(stage, log), **more)
        return train(load_config(REPOSITORY / f"configs/veri/{stage}.yaml", settings), resume, accept_changes)

    return run


@pytest.fixture(scope="session")
def chain(run_stage, tmp_path_factory):
    """The folder of finished runs of all three stages: vanilla, rop, acd_rop."""
    log = tmp_path_factory.mktemp("chain")
    for stage in ("vanilla", "rop", "acd_rop"):
        run_stage(stage, log)
    return log
