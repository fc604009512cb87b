"""Exports compute what the network computes, say what they are, and are not written when they do not."""

import json
import sys
from hashlib import sha256

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from d3still.config import dump_config
from d3still.data import ImageBatch, Normalizer
from d3still.deploy import Embedder, cost_table, costs, export_network, open_network, read_safetensors
from d3still.deploy import export as export_module
from d3still.deploy import quantize as quantize_module
from d3still.deploy.export import TOLERANCE
from d3still.deploy.network_files import weights_hash
from d3still.deploy.runners import onnx_graph
from d3still.errors import UserError
from d3still.modeling import build_model, load_weights
from tests.deploy.small import CLASSES, NAME, make_config, make_network, needs, picture, save_pictures, save_run
from tests.tiny import REPOSITORY

needs_onnx = needs("onnx", "onnxscript", "onnxruntime")
needs_safetensors = needs("safetensors")
NETWORKS = [
    *(f"ResNet{depth}{kind}" for depth in (18, 34, 50, 101) for kind in ("", "_ibn_a")),
    "MobileNetV2",
    "MobileNetV3_Small",
    *(f"Swin_Transformer_V2_{size}" for size in ("Tiny", "Small", "Base")),
]


def answer(path, images):
    return onnx_graph(path.read_bytes())[0](images.numpy())


def random_pixels(batch, height, width):
    return torch.from_numpy(np.random.default_rng(batch).integers(0, 256, (batch, 3, height, width), dtype=np.uint8))


@needs_onnx
def test_onnx_equals_torch_at_any_batch_and_size(run, exported):
    network, description = open_network(run, "query")
    normalize = Normalizer(description.mean, description.std)
    for batch, height, width in [(1, 12, 16), (3, 12, 16), (14, 12, 16), (2, 33, 47)]:
        pixels = random_pixels(batch, height, width)
        nothing = torch.zeros(batch, 4, dtype=torch.int64)
        with torch.no_grad():
            images = normalize(ImageBatch(pixels, nothing, nothing[:, 0], nothing[:, 0]))
            expected = F.normalize(network(images).retrieval_feat).numpy()
        assert np.abs(answer(exported.path, pixels) - expected).max() <= TOLERANCE


@needs_onnx
def test_onnx_embeds_like_its_checkpoint(run, exported):
    images = [picture(number) for number in range(5)]
    onnx = Embedder.from_checkpoint(exported.path)
    assert np.abs(onnx(images) - Embedder.from_checkpoint(run)(images)).max() <= TOLERANCE
    assert onnx(images[0]).shape == (512,)
    with pytest.raises(UserError, match=r"query\.onnx: holds the query network, not the gallery network"):
        Embedder.from_checkpoint(exported.path, "gallery")


@needs_onnx
def test_model_card(run, exported):
    card = json.loads(exported.card_path.read_text(encoding="utf-8"))
    assert exported.card_path.name == "query.onnx.json" and card == exported.card
    assert (card["network"], card["part"], card["feature_width"]) == (NAME, "query", 512)
    assert (card["input"]["height"], card["input"]["width"]) == (12, 16)
    assert card["input"]["mean"] == [0.485, 0.456, 0.406] and card["input"]["std"] == [0.229, 0.224, 0.225]
    assert "antialias" in card["input"]["resize"]
    assert card["weights_sha256"] == weights_hash(make_network(1).state_dict())
    assert card["belongs_with"] == {"gallery": weights_hash(make_network(2).state_dict())}
    assert card["config"]["DISTILLER"]["TYPE"] == "ACD"
    assert card["bytes"] == exported.path.stat().st_size
    graph = card["graph"]
    assert graph["input_shape"] == ["batch", 3, "height", "width"] and graph["opset"] >= 18
    assert set(graph["differences"]) == {"1 × 12 × 16", "3 × 12 × 16", "14 × 12 × 16", "3 × 32 × 32"}
    assert max(graph["differences"].values()) <= TOLERANCE


@needs_onnx
def test_a_file_names_no_folder_of_this_machine(exported, resizing):
    for export in (exported, resizing):
        content = export.path.read_bytes()
        assert str(REPOSITORY).encode() not in content and b"site-packages" not in content


@needs_onnx
def test_switches_leave_normalising_and_length_outside(run, tmp_path):
    done = export_network(run, "gallery", "onnx", tmp_path / "g.onnx", normalize=False, l2=False, fixed_size=True)
    network, _ = open_network(run, "gallery")
    images = torch.randn(2, 3, 22, 26)
    with torch.no_grad():
        expected = network(images).retrieval_feat.numpy()
    assert np.allclose(answer(done.path, images), expected, atol=1e-4)
    assert done.card["graph"]["input_shape"] == ["batch", 3, 22, 26]
    assert done.card["graph"]["input_type"].startswith("float32")
    picked = [picture(number) for number in range(3)]
    assert np.allclose(
        Embedder.from_checkpoint(done.path, None)(picked), Embedder.from_checkpoint(run, "gallery")(picked), atol=1e-5
    ), "the embedder does what the graph leaves out"


@needs_onnx
def test_a_graph_that_resizes_takes_images_of_any_size(run, resizing):
    """What a browser runs: cosine to the whole pipeline of testing, on 200 small and 20 large pictures."""
    embed = Embedder.from_checkpoint(run)
    small = [picture(number, (16 + number % 61, 20 + number % 47)) for number in range(200)]
    large = [picture(number, (600 + 20 * number, 900 - 10 * number)) for number in range(20)]
    for images in (small, large):
        found = np.concatenate([answer(resizing.path, torch.from_numpy(i).permute(2, 0, 1)[None]) for i in images])
        assert (found * embed(images)).sum(1).min() >= 0.9999
    assert Embedder.from_checkpoint(resizing.path)(large[0]) @ embed(large[0]) >= 0.9999, "the embedder runs it too"
    graph = resizing.card["graph"]
    assert graph["resizes"] and graph["input_shape"] == ["batch", 3, "height", "width"]
    assert {"1 × 8 × 11", "1 × 87 × 116"} <= set(graph["differences"])


def test_a_graph_that_resizes_takes_pixels_of_any_size(run, tmp_path):
    for switches in ({"fixed_size": True}, {"normalize": False}):
        with pytest.raises(UserError, match="leave out --fixed-size and --no-normalize"):
            export_network(run, "query", "onnx", tmp_path / "q.onnx", with_resize=True, **switches)


@needs_onnx
def test_int8_says_what_it_loses_and_is_refused_where_that_is_much(run, exported, tmp_path, monkeypatch):
    import onnx

    paths = save_pictures(tmp_path / "p", 24)
    float32 = onnx.load_from_string(exported.path.read_bytes())
    del float32.metadata_props[:]
    graph = {key: value for key, value in exported.card["graph"].items() if key != "differences"}
    monkeypatch.setattr(export_module, "onnx_bytes", lambda *_: (float32.SerializeToString(), dict(graph)))
    done = export_network(run, "query", "onnx", tmp_path / "q.onnx", quantize="int8", calibration=paths)
    found = done.card["graph"]["quantized"]
    assert (found["calibrated_on"], found["compared_on"]) == (12, 12)
    cosines = (Embedder.from_checkpoint(done.path)(paths[1::2]) * Embedder.from_checkpoint(run)(paths[1::2])).sum(1)
    assert found["mean_cosine"] == pytest.approx(cosines.mean(), abs=1e-3) and found["mean_cosine"] > 0.97
    assert done.card["bytes"] < found["bytes_float32"] and found["milliseconds"] > 0
    assert done.card["weights_sha256"] == exported.card["weights_sha256"], "it belongs where its original does"
    pixels = quantize_module._pixels(open_network(run)[1], paths)
    assert pixels.flags.c_contiguous, "onnxruntime reads memory in order, whatever the strides"
    monkeypatch.setattr(quantize_module, "LEAST_COSINE", 1.0)
    with pytest.raises(UserError, match=r"mean cosine of 0\.\d+ .*nothing was written.*--accept-loss"):
        export_network(run, "query", "onnx", tmp_path / "r.onnx", quantize="int8", calibration=paths)
    assert not (tmp_path / "r.onnx").exists()
    with pytest.raises(UserError, match="at least two images"):
        export_network(run, "query", "onnx", tmp_path / "r.onnx", quantize="int8", calibration=paths[:1])


def test_wrong_requests_of_int8(run, tmp_path):
    for more in ({"format": "safetensors"}, {"normalize": False}, {"quantize": "int4"}):
        with pytest.raises(UserError, match="--quantize takes int8, for the format onnx"):
            export_network(run, "query", out=tmp_path, **{"quantize": "int8", **more})


@needs_onnx
def test_a_graph_that_differs_is_not_written(run, tmp_path, monkeypatch):
    def biased(content):
        return lambda images: onnx_graph(content)[0](images) + 0.001, {}

    monkeypatch.setattr(export_module, "onnx_graph", biased)
    with pytest.raises(UserError, match=r"query network TestNet .* differs from the original by .*nothing was written"):
        export_network(run, "query", "onnx", tmp_path / "query.onnx")
    assert not list(tmp_path.iterdir())


@needs_onnx
@pytest.mark.parametrize("content", [b"", b"no onnx", "cut"])
def test_a_damaged_onnx_file_is_named(exported, tmp_path, content):
    path = tmp_path / "bad.onnx"
    path.write_bytes(exported.path.read_bytes()[:2000] if content == "cut" else content)
    with pytest.raises(UserError, match=r"bad\.onnx: (is no ONNX file|carries no description)"):
        Embedder.from_checkpoint(path)
    with pytest.raises(UserError, match=r"missing\.onnx: no such ONNX file"):
        Embedder.from_checkpoint(tmp_path / "missing.onnx")


@needs_onnx
def test_any_changed_bit_of_an_onnx_file_is_noticed(exported, tmp_path):
    """onnxruntime itself takes a file with other weights for sound."""
    path = tmp_path / "query.onnx"
    content = bytearray(exported.path.read_bytes())
    assert json.loads(exported.card_path.read_text(encoding="utf-8"))["sha256"] == sha256(content).hexdigest()
    for place in [*range(0, len(content), 4999), *range(len(content) - 90, len(content), 7)]:
        changed = content.copy()
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        with pytest.raises(UserError, match=r"query\.onnx: is no ONNX file of .*damaged or changed since"):
            Embedder.from_checkpoint(path)


def test_what_a_killed_export_left_is_removed(run, tmp_path):
    part = "abcd1234.d3still-part"
    for name in (f".q.safetensors.{part}", f".q.safetensors.json.{part}", ".q.safetensors.bak"):
        (tmp_path / name).write_text("half of it")
    export_network(run, "query", "safetensors", tmp_path / "q.safetensors")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [".q.safetensors.bak", "q.safetensors", "q.safetensors.json"]


@needs_safetensors
def test_safetensors_round_trip(run, tmp_path):
    done = export_network(run, "gallery", "safetensors", tmp_path / "gallery.safetensors")
    state, _ = read_safetensors(done.path)
    network = build_model(NAME, CLASSES)
    report = load_weights(network, state, purpose="resume")
    assert not report.left_out and not report.missing
    expected = make_network(2).state_dict()
    assert network.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in network.state_dict().items())
    images = [picture(number) for number in range(3)]
    found = Embedder.from_checkpoint(done.path, "gallery")
    assert np.array_equal(found(images), Embedder.from_checkpoint(run, "gallery")(images))
    assert found.description.networks == open_network(run)[1].networks, "it knows what it belongs with"


@needs_safetensors
def test_safetensors_that_were_changed_are_refused(run, tmp_path):
    from safetensors.torch import save_file

    path = export_network(run, "query", "safetensors", tmp_path / "query.safetensors").path
    state, metadata = read_safetensors(path)
    save_file({**state, "first.0.bias": state["first.0.bias"] + 1}, path, metadata)
    with pytest.raises(UserError, match="its weights are not those that its description names"):
        Embedder.from_checkpoint(path)
    save_file(state, path)
    with pytest.raises(UserError, match="carries no description"):
        Embedder.from_checkpoint(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="is no safetensors file"):
        Embedder.from_checkpoint(path)


def test_wrong_requests(run, tmp_path):
    for arguments, message in [
        (("query", "tflite", None), "format 'tflite' is not known; choose onnx or safetensors"),
        (("query", "onnx", tmp_path / "a.pth"), r"a\.pth: a file of the format onnx must end in \.onnx"),
    ]:
        with pytest.raises(UserError, match=message):
            export_network(run, *arguments)
    with pytest.raises(UserError, match=r"nowhere\.pth: no such weight file"):
        export_network(tmp_path / "nowhere.pth")


@pytest.mark.parametrize(
    ("module", "format"), [("onnx", "onnx"), ("onnxscript", "onnx"), ("safetensors.torch", "safetensors")]
)
def test_a_missing_package_is_named(run, tmp_path, monkeypatch, module, format):
    monkeypatch.setitem(sys.modules, module, None)
    package = module.partition(".")[0]
    with pytest.raises(UserError, match=rf"package {package} .*pip install -r requirements-deploy\.txt"):
        export_network(run, "query", format, tmp_path / f"query.{format}")
    assert not list(tmp_path.iterdir())


def test_costs_side_by_side(tmp_path):
    """Multiply-adds worked out by hand: convolutions and linear layers of the small network."""
    found = costs(save_run(tmp_path / "last.pth", cfg=make_config(INPUT__SIZE_TEST=[24, 32])))
    first, second = 6 * 8 * 8 * 27, 6 * 8 * 16 * 72  # query, 12 × 16: maps of 6 × 8, 3·9 and 8·9 weights a number
    head = 16 * 512 + 512 * CLASSES
    assert found["query"].multiply_adds == first + second + head
    assert found["gallery"].multiply_adds == 4 * (first + second) + head
    network = make_network(1)
    learned = sum(value.numel() for key, value in network.named_parameters() if "classifier" not in key)
    statistics = 2 * (8 + 16 + 16 + 512)  # mean and variance of each batch norm's channels
    assert found["query"].parameters == learned and found["query"].bytes == 4 * (learned + statistics)
    assert found["query"].milliseconds > 0
    table = cost_table(found)
    assert table.splitlines()[0].split() == ["query", "gallery", "ratio"]
    assert "12 × 16" in table and "24 × 32" in table and "1.0×" in table


@pytest.mark.slow
@needs_onnx
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_exports(tmp_path, name):
    cfg = make_config("NONE", name, INPUT__STUDENT_SIZE_TEST=[64, 64])
    network = build_model(name, 3).train()
    with torch.no_grad():
        network(torch.randn(4, 3, 64, 64))
    state = {"format": "d3still", "query": None, "gallery": network.state_dict(), "config": dump_config(cfg)}
    torch.save(state, tmp_path / "last.pth")
    done = export_network(tmp_path / "last.pth", None)
    differences = done.card["graph"]["differences"]
    assert len(differences) == (3 if name.startswith("Swin") else 4) and max(differences.values()) <= TOLERANCE
