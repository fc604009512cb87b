"""Whatever a user names is read only where it is a regular file: no reader waits for a pipe or reads a device."""

import os
import threading
from pathlib import Path

import numpy as np
import pytest

from d3still.config import load_config
from d3still.data import build_dataset, read_image
from d3still.data.datasets.files import read_lines
from d3still.deploy import Embedder, GalleryIndex, IndexBuilder
from d3still.deploy.index import read_header
from d3still.deploy.listing import list_images
from d3still.deploy.milvus import MilvusGallery
from d3still.deploy.runners import _content
from d3still.errors import UserError
from d3still.evaluation.features import load_features
from d3still.modeling import read_weights
from d3still.runs.checkpoint import load_checkpoint
from d3still.runs.finished import read_per_query
from d3still.runs.folder import RunFolder
from d3still.runs.history import read_history

READERS = {
    "image": read_image,
    "weights": read_weights,
    "checkpoint": load_checkpoint,
    "table": lambda path: build_dataset("csv", path),
    "list": read_lines,
    "config": load_config,
    "features": load_features,
    "history": read_history,
    "per query": read_per_query,
    "index": read_header,
    "onnx": _content,
}


def pipe(path):
    os.mkfifo(path)
    # Whoever opens the pipe after all is let go again, so that the test fails and does not hang.
    threading.Thread(target=lambda: path.open("wb").close(), daemon=True).start()
    return "named pipe"


def device(path):
    path.symlink_to("/dev/zero")
    return "device"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("make", [pipe, device])
@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_what_is_no_regular_file_is_refused_at_once(tmp_path, read, make):
    path = tmp_path / "x.png"
    kind = make(path)
    with pytest.raises(UserError, match=rf"x\.png.*it is a {kind}, not a file") as caught:
        read(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_a_name_that_no_file_can_have(tmp_path, read):
    with pytest.raises(UserError, match=r"no file can have|does not exist|there is no checkpoint|holds a NUL"):
        read(tmp_path / "a\0b.png")


@pytest.mark.parametrize(
    "read",
    [
        load_config,
        read_weights,
        lambda path: build_dataset("csv", path),
        lambda path: RunFolder(Path("run")).resumable(None, path),
        list_images,
        Embedder.from_checkpoint,
        GalleryIndex.load,
        MilvusGallery.open,
        lambda path: IndexBuilder(None, path),
    ],
)
def test_a_home_folder_that_nobody_has(read):
    with pytest.raises(UserError, match=r"'~nosuchuser/x\.yaml' begins with a user who has no home folder here"):
        read("~nosuchuser/x.yaml")


def test_a_damaged_compressed_feature_file_is_one_line(tmp_path):
    path = tmp_path / "query.npz"
    np.savez_compressed(path, features=np.random.default_rng(0).random((20, 16)), ids=np.arange(20))
    whole = path.read_bytes()
    for place in range(60, len(whole), 97):  # in the compressed arrays, their headers and the table of contents
        content = bytearray(whole)
        content[place : place + 4] = b"\xff\x00\xff\x00"
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"query\.npz is not a readable .npz file"):
            load_features(path)
