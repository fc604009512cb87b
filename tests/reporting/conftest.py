"""A log of the emoji chain without training, made once."""

import pytest

from tests.reporting.fabricate import images, make_log


@pytest.fixture(scope="session")
def queries(tmp_path_factory):
    """(path, identity) of 60 small images, two an identity."""
    return images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def log(queries, tmp_path_factory):
    """vanilla, rop and acd_rop at seeds 2024 and 2025."""
    return make_log(tmp_path_factory.mktemp("log"), queries)
