"""Every published form of weights, and our own, enters the right network whole."""

import logging
from collections import OrderedDict

import pytest
import torch
import torchvision
from torch import nn

from d3still.errors import UserError
from d3still.modeling import build_model, load_imagenet_weights, load_weights, read_weights

CLASSES = 6


@pytest.fixture(scope="module")
def query():
    torch.manual_seed(1)
    return _moved(build_model("MobileNetV3_Small", CLASSES))


@pytest.fixture(scope="module")
def gallery():
    torch.manual_seed(2)
    return _moved(build_model("ResNet18", CLASSES))


def _moved(model):
    """Running statistics and counters that differ from fresh ones, as after training."""
    for buffer in model.buffers():
        buffer.add_(1) if buffer.dtype == torch.long else buffer.add_(torch.rand_like(buffer))
    return model


def _prefixed(prefix, state):
    return OrderedDict((prefix + key, value) for key, value in state.items())


def _loaded(like, content, **kwargs):
    """A fresh network of the kind of ``like``, filled from ``content``."""
    model = build_model(like.name, like.num_classes)
    return model, load_weights(model, content, **kwargs)


def _assert_same(model, source):
    for key, value in source.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key


def _distiller(query, gallery):
    projectors = {"projector.0.0.weight": torch.rand(4), "projector.0.1.weight": torch.rand(4, 4)}
    return {
        **_prefixed("student.", query.state_dict()),
        **_prefixed("teacher.", gallery.state_dict()),
        **projectors,
    }


WRAPPINGS = {
    "bare": lambda state: state,
    "module.": lambda state: _prefixed("module.", state),
    "module. twice": lambda state: _prefixed("module.module.", state),
    "compiled": lambda state: _prefixed("_orig_mod.", state),
    "state_dict": lambda state: {"epoch": 3, "state_dict": state},
    "model": lambda state: {"model": state, "optimizer": {"lr": 0.1}, "best": 1.0},
    "both": lambda state: {"model": {"state_dict": _prefixed("module.", state)}},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("as_file", [True, False])
def test_a_network_alone(query, wrapping, as_file, tmp_path):
    content = WRAPPINGS[wrapping](query.state_dict())
    if as_file:
        torch.save(content, tmp_path / "net.pth")
        content = tmp_path / "net.pth"
    model, report = _loaded(query, content)
    _assert_same(model, query)
    assert report == ("published network", [], [])


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_a_whole_distiller(query, gallery, wrapping):
    content = WRAPPINGS[wrapping](_distiller(query, gallery))
    for part, source in (("query", query), ("gallery", gallery)):
        for chosen in (part, None):  # named, or found by what fits
            model, report = _loaded(source, content, part=chosen)
            _assert_same(model, source)
            assert report == ("published distiller", [], [])


def test_module_inside_a_distiller(query, gallery):
    content = {
        **_prefixed("module.student.module.", query.state_dict()),
        **_prefixed("module.teacher.module.", gallery.state_dict()),
    }
    _assert_same(_loaded(query, content, part="query")[0], query)
    _assert_same(_loaded(gallery, content, part="gallery")[0], gallery)


@pytest.mark.parametrize("part", [None, "query", "gallery"])
def test_a_file_with_one_network_gives_that_one(query, part):
    _assert_same(_loaded(query, _prefixed("student.", query.state_dict()), part=part)[0], query)
    _assert_same(_loaded(query, _prefixed("teacher.", query.state_dict()), part=part)[0], query)
    _assert_same(
        _loaded(query, {"format": "d3still", "query": query.state_dict(), "gallery": None}, part=part)[0], query
    )


def test_our_checkpoint(query, gallery, tmp_path):
    projector = {"projector.weight": torch.rand(2, 2)}
    content = {
        "format": "d3still",
        "query": query.state_dict(),
        "gallery": gallery.state_dict(),
        "extra": projector,
        "epoch": 3,
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
    }
    torch.save(content, tmp_path / "last.pth")
    _assert_same(_loaded(query, tmp_path / "last.pth", part="query")[0], query)
    model, report = _loaded(gallery, str(tmp_path / "last.pth"), part="gallery", purpose="resume")
    _assert_same(model, gallery)
    assert report.kind == "d3still checkpoint"
    weights = read_weights(tmp_path / "last.pth")
    assert torch.equal(weights.extra["projector.weight"], projector["projector.weight"])
    assert weights.raw["epoch"] == 3


def test_projectors_of_a_distiller_can_be_had(query, gallery, caplog):
    weights = read_weights({"state_dict": _prefixed("module.", _distiller(query, gallery))})
    assert set(weights.extra) == {"projector.0.0.weight", "projector.0.1.weight"}
    assert set(weights.query) == set(query.state_dict())
    with caplog.at_level(logging.INFO):
        _loaded(query, _distiller(query, gallery), part="query")
    assert "projector.0.0.weight" in caplog.text


def test_two_equal_networks_ask_which_is_meant(query):
    content = {**_prefixed("student.", query.state_dict()), **_prefixed("teacher.", query.state_dict())}
    with pytest.raises(UserError, match=r"both fit MobileNetV3_Small.*part='query'"):
        _loaded(query, content)


def test_files_from_before_batch_norm_counted(gallery):
    old = {key: value for key, value in gallery.state_dict().items() if not key.endswith("num_batches_tracked")}
    model, report = _loaded(gallery, old)
    assert report.missing == [] and model.bn1.num_batches_tracked == 0
    assert torch.equal(model.bn1.running_var, gallery.bn1.running_var)


def test_half_precision_files(gallery):
    half = {k: v.half() if v.is_floating_point() else v for k, v in gallery.state_dict().items()}
    model, _ = _loaded(gallery, half)
    assert model.conv1.weight.dtype == torch.float32
    assert torch.equal(model.conv1.weight, gallery.conv1.weight.half().float())


def test_loading_copies(gallery):
    state = gallery.state_dict()
    model, _ = _loaded(gallery, state)
    with torch.no_grad():
        model.conv1.weight.zero_()
    assert gallery.conv1.weight.abs().max() > 0


def _head_keys(model):
    return [key for key in model.state_dict() if key.startswith("fc.")]


def _unpadded_pool(net):
    net.maxpool = nn.MaxPool2d(2, 2)  # the one layer in which the published plain ResNet differs
    return net


@pytest.mark.parametrize("name", ["ResNet18", "ResNet50"])
def test_imagenet_resnet(name, caplog):
    classifier = _moved(getattr(torchvision.models, name.lower())()).eval()
    model = build_model(name, CLASSES, last_stride=2).eval()
    report = load_weights(model, {"state_dict": classifier.state_dict()})
    assert report == ("ImageNet torchvision", ["fc.weight", "fc.bias"], _head_keys(model))
    assert "fc.weight" in caplog.text
    _assert_same_features(model, _unpadded_pool(classifier), head="fc")


@pytest.mark.parametrize(("name", "classifier_layers"), [("mobilenet_v2", [1]), ("mobilenet_v3_small", [0, 3])])
def test_imagenet_mobilenet(name, classifier_layers):
    classifier = _moved(getattr(torchvision.models, name)()).eval()
    model = build_model({"mobilenet_v2": "MobileNetV2"}.get(name, "MobileNetV3_Small"), CLASSES, last_stride=2).eval()
    report = load_weights(model, classifier.state_dict())
    assert report.kind == "ImageNet torchvision"
    assert report.left_out == [f"classifier.{i}.{what}" for i in classifier_layers for what in ("weight", "bias")]
    _assert_same_features(model, classifier, head="classifier")


def test_imagenet_swin_of_torchvision():
    classifier = torchvision.models.swin_v2_t().eval()
    model = build_model("Swin_Transformer_V2_Tiny", CLASSES).eval()
    report = load_weights(model, classifier.state_dict())
    assert report.kind == "ImageNet torchvision" and report.left_out == ["head.weight", "head.bias"]
    _assert_same_features(model, classifier, head="head")


def _assert_same_features(model, classifier, head):
    """Our pooled features are what the classifier's last layers would receive."""
    setattr(classifier, head, nn.Identity())
    torch.manual_seed(0)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(images).pooled_feat, classifier(images), rtol=1e-4, atol=1e-4)


def test_imagenet_ibn_net(tmp_path):
    source = _moved(build_model("ResNet18_ibn_a", CLASSES))
    file = {key: value for key, value in source.state_dict().items() if not key.startswith("fc.")}
    torch.save({**file, "fc.weight": torch.rand(1000, 512), "fc.bias": torch.rand(1000)}, tmp_path / "ibn.pth")
    model, report = _loaded(source, tmp_path / "ibn.pth")
    assert report.kind == "ImageNet IBN-Net" and report.missing == _head_keys(model)
    for key, value in file.items():
        assert torch.equal(model.state_dict()[key], value), key


def _timm_swin(model, ending="head.fc."):
    state = {k.removeprefix("model."): v for k, v in model.state_dict().items() if not k.startswith("fc.")}
    return {**state, ending + "weight": torch.rand(1000, 768), ending + "bias": torch.rand(1000)}


@pytest.mark.parametrize("form", ["timm", "old timm", "authors"])
def test_imagenet_swin_of_timm(form):
    source = build_model("Swin_Transformer_V2_Tiny", CLASSES)
    state = _timm_swin(source, "head.fc." if form == "timm" else "head.")
    if form == "old timm":  # it kept the tables
        state["layers.0.blocks.0.attn.relative_coords_table"] = torch.rand(1, 15, 15, 2)
        state["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(64, 64, dtype=torch.long)
        state["layers.0.blocks.1.attn_mask"] = torch.zeros(64, 64, 64)
    if form == "authors":  # their merging of patches ends a stage; wrapped in {"model": …}
        for stage in (1, 2, 3):
            for key in ("reduction.weight", "norm.weight", "norm.bias"):
                state[f"layers.{stage - 1}.downsample.{key}.moved"] = state.pop(f"layers.{stage}.downsample.{key}")
        state = {"model": {key.removesuffix(".moved"): value for key, value in state.items()}}
    model, report = _loaded(source, state)
    assert report.kind == "ImageNet timm" and len(report.left_out) == 2 and report.missing == _head_keys(model)
    for key, value in source.state_dict().items():
        assert key.startswith("fc.") or torch.equal(model.state_dict()[key], value), key


def test_swin_weights_for_other_windows_are_refused():
    source = build_model("Swin_Transformer_V2_Tiny", CLASSES)
    state = {**_timm_swin(source), "layers.0.blocks.0.attn.relative_coords_table": torch.rand(1, 31, 31, 2)}
    with pytest.raises(UserError, match=r"the given state dict: .*16×16"):
        _loaded(source, state)


def test_imagenet_is_for_training_only(gallery):
    state = torchvision.models.resnet18().state_dict()
    for purpose in ("test", "resume"):
        with pytest.raises(UserError, match="no embedding head"):
            _loaded(gallery, state, purpose=purpose)


def test_another_classifier_at_test(gallery, caplog):
    model = build_model("ResNet18", CLASSES + 3)
    before = model.fc.classifier.weight.clone()
    report = load_weights(model, _prefixed("student.", gallery.state_dict()), purpose="test")
    assert report.left_out == report.missing == ["fc.classifier.weight"]
    assert "fc.classifier.weight" in caplog.text
    assert torch.equal(model.fc.classifier.weight, before)
    assert torch.equal(model.fc.add_block[2].weight, gallery.fc.add_block[2].weight)


@pytest.mark.parametrize("purpose", ["train", "resume"])
def test_another_classifier_elsewhere_names_both_numbers(gallery, purpose):
    model = build_model("ResNet18", CLASSES + 3)
    with pytest.raises(UserError, match=rf"\b{CLASSES} identities.*\b{CLASSES + 3}\b"):
        load_weights(model, gallery.state_dict(), purpose=purpose)


class TestDownload:
    @pytest.fixture(autouse=True)
    def _offline(self, monkeypatch):
        self.asked = []

        def load(url, **kwargs):
            self.asked.append((url, kwargs))
            return self.answer()

        monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", load)

    def test_weights_come_from_torchvision(self, caplog):
        classifier = torchvision.models.resnet18()
        self.answer = classifier.state_dict
        model = build_model("ResNet18", CLASSES)
        with caplog.at_level(logging.INFO):
            report = load_imagenet_weights(model)
        assert torch.equal(model.conv1.weight, classifier.conv1.weight)
        assert report.kind == "ImageNet torchvision"
        ((url, kwargs),) = self.asked
        assert "resnet18" in url and kwargs["check_hash"] and kwargs["weights_only"]
        assert url in caplog.text

    @pytest.mark.parametrize("name", ["ResNet101", "MobileNetV2", "MobileNetV3_Small", "Swin_Transformer_V2_Base"])
    def test_without_network_the_error_says_what_to_fetch(self, name):
        def fail():
            raise OSError("unreachable\nmore")

        self.answer = fail
        with torch.device("meta"):
            model = build_model(name, CLASSES)
        with pytest.raises(UserError, match=r"https://\S+\.pth.*DISTILLER.STUDENT_PRETRAIN_PATH") as caught:
            load_imagenet_weights(model)
        assert name in str(caught.value) and "\n" not in str(caught.value)

    def test_ibn_says_where_its_weights_are(self):
        with pytest.raises(UserError, match=r"IBN-Net.*DISTILLER.STUDENT_PRETRAIN_PATH"):
            load_imagenet_weights(build_model("ResNet18_ibn_a", CLASSES))
        assert not self.asked

    def test_a_file_is_used_instead(self, tmp_path):
        classifier = torchvision.models.resnet18()
        torch.save(classifier.state_dict(), tmp_path / "resnet18.pth")
        model = build_model("ResNet18", CLASSES)
        load_imagenet_weights(model, str(tmp_path / "resnet18.pth"))
        assert torch.equal(model.conv1.weight, classifier.conv1.weight) and not self.asked
