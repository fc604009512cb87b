"""Weights that do not fit, or cannot be read, are one clear line, and leave the network as it was."""

import io
import pickle
import random
import struct
import zipfile

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from d3still.errors import UserError
from d3still.modeling import build_model, load_imagenet_weights, load_weights, read_weights
from d3still.modeling.recognition import recognise


@pytest.fixture(scope="module")
def model():
    return build_model("MobileNetV3_Small", 4)


def _refused(model, content, match, **kwargs):
    """The one line with which ``content`` is refused; the network must not have changed."""
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(UserError, match=match) as caught:
        load_weights(model, content, **kwargs)
    assert "\n" not in str(caught.value)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    return str(caught.value)


def test_a_missing_key_is_named(model):
    state = model.state_dict()
    del state["model.1.block.0.0.weight"]
    _refused(model, state, "does not fit MobileNetV3_Small; 1 missing: model.1.block.0.0.weight")


def test_a_left_over_key_is_named(model):
    for prefix in ("", "student.", "module.student."):
        state = {prefix + key: value for key, value in model.state_dict().items()}
        _refused(model, {**state, prefix + "stray": torch.ones(1)}, "1 left over: stray")


def test_many_keys_are_counted(model):
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("model.2.")}
    message = _refused(model, state, "18 missing: model.2.")
    assert message.count("model.2.") == 5 and "and 13 more" in message


def test_a_missing_head_is_no_exception(model):
    """Only ImageNet weights come without a head; otherwise it would silently stay random."""
    for purpose in ("train", "test", "resume"):
        state = {k: v for k, v in model.state_dict().items() if not k.startswith("fc.")}
        _refused(model, state, "12 missing: fc.add_block", purpose=purpose)
        state = {k: v for k, v in model.state_dict().items() if k != "fc.classifier.weight"}
        _refused(model, state, "1 missing: fc.classifier.weight", purpose=purpose)


def test_one_missing_counter_is_named(model):
    state = model.state_dict()
    del state["model.0.1.num_batches_tracked"]
    _refused(model, state, "model.0.1.num_batches_tracked")


def test_shapes_are_named(model):
    state = model.state_dict()
    state["model.0.0.weight"] = torch.zeros(16, 1, 3, 3)
    _refused(model, state, r"model.0.0.weight \(file 16×1×3×3, network 16×3×3×3\)")
    state = {**model.state_dict(), "fc.classifier.weight": torch.zeros(9, 256)}
    _refused(model, state, "fc.classifier.weight", purpose="test")


def test_another_network_is_recognised(model):
    other = build_model("ResNet18_ibn_a", 4)
    for state in (other.state_dict(), torchvision.models.resnet50().state_dict()):
        name = "ResNet18_ibn_a" if "layer1.0.bn1.IN.weight" in state else "ResNet50"
        _refused(model, state, f"these are weights of {name}\\)")
    assert recognise({"something": torch.ones(1)}) is None


def test_another_network_counts_for_more_than_another_number_of_classes(model):
    other = build_model("ResNet18", 9).state_dict()
    message = _refused(model, other, r"these are weights of ResNet18\)")
    assert "classifier" not in message


def test_imagenet_weights_must_cover_the_backbone():
    model = build_model("ResNet18", 4)
    state = torchvision.models.resnet18().state_dict()
    del state["layer2.0.conv1.weight"]
    _refused(model, state, "1 missing: layer2.0.conv1.weight$")
    _refused(build_model("ResNet18_ibn_a", 4), torchvision.models.resnet18().state_dict(), "missing: layer1.0.bn1.IN")


def test_neither_network_of_a_distiller_fits(model):
    other = build_model("ResNet18", 4).state_dict()
    content = {f"{part}.{key}": value for part in ("student", "teacher") for key, value in other.items()}
    _refused(model, content, "neither fits MobileNetV3_Small")
    _refused(model, content, "does not fit MobileNetV3_Small", part="query")


def test_the_same_weights_twice(model):
    state = model.state_dict()
    _refused(model, {**state, **{"module." + key: value for key, value in state.items()}}, "twice")


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, {"state_dict": {}}, {"model": {"lr": 0.1}}])
def test_nothing_to_load(model, content):
    _refused(model, content, "holds no weights")


def test_a_checkpoint_without_networks(model):
    _refused(model, {"format": "d3still", "query": None, "gallery": None}, "holds no network")


def test_things_between_the_weights(model):
    _refused(model, {**model.state_dict(), "epoch": 3}, "left over: epoch")


def test_no_file(model, tmp_path):
    _refused(model, tmp_path / "absent.pth", r"absent\.pth: no such")
    _refused(model, "", "folder|no such")


def test_a_folder(model, tmp_path):
    _refused(model, tmp_path, "is a folder")


@pytest.mark.parametrize(
    "content",
    [b"", b"not weights", b"PK\x03\x04broken", b"\x80\x02}q\x00.", b"\x80\x04\x95", pickle.dumps([1, 2])],
    ids=["empty", "text", "zip", "legacy", "pickle", "list"],
)
def test_files_that_are_no_weights(model, content, tmp_path):
    path = tmp_path / "bad weights é.pth"
    path.write_bytes(content)
    assert str(path) in _refused(model, path, "weight file|holds|damaged")


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
def test_truncated_files(model, kept, legacy, tmp_path):
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer, _use_new_zipfile_serialization=not legacy)
    path = tmp_path / "cut.pth"
    path.write_bytes(buffer.getvalue()[: int(kept * buffer.tell())])
    _refused(model, path, r"cut\.pth: is no PyTorch weight file, or a damaged one")


def test_safetensors(model, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"\x02\x00\x00\x00\x00\x00\x00\x00{}")
    _refused(model, path, "safetensors files are not read")


class _Runs:
    """Unpickled, it leaves a trace."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return (open, (str(self.trace), "w"))


@pytest.mark.parametrize("legacy", [False, True])
def test_code_is_refused(model, legacy, tmp_path):
    trace, path = tmp_path / "trace", tmp_path / "evil.pth"
    content = {**model.state_dict(), "payload": _Runs(trace)}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    _refused(model, path, r"evil\.pth: refused, because loading it would run code")
    assert not trace.exists()


NUMPY = {
    "best": np.float64(0.913),
    "counts": [np.int64(-7), np.bool_(True), np.float16(0.5), np.complex64(1 - 2j), np.str_("veri"), np.bytes_(b"ab")],
    "when": np.datetime64("2026-11-26T23:05", "m"),
    "dtype": np.dtype("float32"),
    "types": (np.float32, np.uint8, np.dtype(">i2")),
    "matrix": np.arange(12, dtype=np.float32).reshape(3, 4),
    "transposed": np.asfortranarray(np.arange(6, dtype=np.int64).reshape(2, 3)),
    "big_endian": np.array([1, 256], dtype=">u4"),
    "names": np.array(["a", "größer"]),
    "empty": np.zeros((0, 3)),
    "single": np.array(5.0),
    "random": np.random.RandomState(3).get_state(),
}


@pytest.mark.parametrize("form", ["zip", "legacy", "numpy 1"])
def test_numpy_values_in_a_checkpoint_are_data(model, form, tmp_path):
    path, let_in = tmp_path / "best.pth", set(torch.serialization.get_safe_globals())
    torch.save({"state_dict": model.state_dict(), **NUMPY}, path, _use_new_zipfile_serialization=form == "zip")
    if form == "numpy 1":  # there the module that its pickles call has another name
        path.write_bytes(path.read_bytes().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))
    assert load_weights(model, path).kind == "published network"
    found = read_weights(path).raw
    _assert_same({key: found[key] for key in NUMPY}, NUMPY)
    assert set(torch.serialization.get_safe_globals()) == let_in  # torch itself is left as strict as it was


def _assert_same(found, expected):
    assert type(found) is type(expected)
    if isinstance(expected, np.ndarray):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
    elif isinstance(expected, dict | list | tuple):
        keys = expected if isinstance(expected, dict) else range(len(expected))
        assert len(found) == len(expected)
        for key in keys:
            _assert_same(found[key], expected[key])
    else:
        assert found == expected


@pytest.mark.parametrize(
    "payload",
    [np.array([None, 1], dtype=object), np.dtype("O"), np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "O")])],
    ids=["objects", "type of objects", "fields"],
)
def test_numpy_values_that_may_hold_anything_are_refused(model, payload, tmp_path):
    torch.save({**model.state_dict(), "payload": payload}, tmp_path / "objects.pth")
    _refused(model, tmp_path / "objects.pth", r"objects\.pth: refused, because loading it would run code")


def test_every_flipped_bit_of_a_weight_is_noticed(model, tmp_path):
    path = tmp_path / "rot.pth"
    torch.save(model.state_dict(), path)
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        weights = [info for info in archive.infolist() if "/data/" in info.filename]
    rng = random.Random(0)
    for info in rng.sample(weights, 10):
        content = bytearray(whole)
        name, extra = struct.unpack_from("<HH", whole, info.header_offset + 26)  # of the local file header, 30 bytes
        place = info.header_offset + 30 + name + extra + rng.randrange(info.file_size)
        content[place] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        _refused(model, path, r"rot\.pth: .*damaged one \(.*checksum")
    path.write_bytes(whole)
    load_weights(model, path)


def test_a_damaged_file_in_torchs_download_cache_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    model = build_model("ResNet18", 4)
    cached = tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    cached.parent.mkdir(parents=True)
    torch.save(torchvision.models.resnet18().state_dict(), cached)  # a whole file, but not the published one
    with pytest.raises(UserError, match=r"resnet18-f37072fd\.pth: is damaged .*not f37072fd\); delete it") as caught:
        load_imagenet_weights(model)
    assert "\n" not in str(caught.value)


def test_a_whole_pickled_network_is_refused(model, tmp_path):
    torch.save(model, tmp_path / "whole.pth")
    _refused(model, tmp_path / "whole.pth", "refused.*state_dict")


def test_a_tensor_is_not_a_network(model, tmp_path):
    torch.save(torch.ones(3), tmp_path / "tensor.pth")
    _refused(model, tmp_path / "tensor.pth", "holds a Tensor")


def test_a_torchscript_archive(model, tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), tmp_path / "script.pt")
    _refused(model, tmp_path / "script.pt", r"script\.pt")


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_end_in_one_line(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("bytes") / "x.pth"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_weights(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_misspelt_arguments_are_a_programming_error(model):
    with pytest.raises(ValueError, match="part='student'"):
        load_weights(model, model.state_dict(), part="student")
