"""Fixtures of the deployment tests."""

import pytest

from d3still.deploy import Embedder, export_network
from tests.deploy.small import save_pictures, save_run


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """The last.pth of a stage-2 run with small networks."""
    return save_run(tmp_path_factory.mktemp("run") / "last.pth")


@pytest.fixture(scope="session")
def query(run):
    """The run's query network."""
    return Embedder.from_checkpoint(run, "query")


@pytest.fixture(scope="session")
def gallery(run):
    """The run's gallery network."""
    return Embedder.from_checkpoint(run, "gallery")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """A folder of 40 pictures."""
    folder = tmp_path_factory.mktemp("pictures")
    save_pictures(folder, 40)
    return folder


@pytest.fixture(scope="session")
def exported(run, tmp_path_factory):
    """The run's query network as ONNX."""
    return export_network(run, "query", "onnx", tmp_path_factory.mktemp("onnx") / "query.onnx")


@pytest.fixture(scope="session")
def many(tmp_path_factory):
    """600 pictures, for features that are made up."""
    return save_pictures(tmp_path_factory.mktemp("many"), 600)


@pytest.fixture(scope="session")
def resizing(run, tmp_path_factory):
    """The same, with the resize in its graph."""
    return export_network(run, "query", "onnx", tmp_path_factory.mktemp("resizing") / "query.onnx", with_resize=True)
