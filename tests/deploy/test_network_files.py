"""Which network a file gives, at which size, and what its hash depends on."""

import pytest
import torch

from d3still.config import dump_config, load_config
from d3still.deploy import Embedder, open_network, open_networks
from d3still.deploy.network_files import Description, describe, weights_hash
from d3still.engine.setup import Sizes, build_networks
from d3still.errors import UserError
from tests.deploy.small import make_config, make_network, picture, save_run
from tests.tiny import REPOSITORY, overrides


@pytest.mark.parametrize("stage", ["vanilla", "rop", "acd_rop"])
def test_sizes_and_names_are_the_engines(tmp_path, stage):
    """Independent implementation: what the engine builds and at which size it tests, stage by stage."""
    sizes = {"INPUT.STUDENT_SIZE_TEST": [8, 10], "INPUT.TEACHER_SIZE_TEST": [12, 14], "INPUT.SIZE_TEST": [16, 18]}
    names = {"DISTILLER.STUDENT_NAME": "MobileNetV3_Small", "DISTILLER.TEACHER_NAME": "ResNet34"}
    strides = {"DISTILLER.STUDENT_LAST_STRIDE": 2}
    settings = overrides(tmp_path, tmp_path, **sizes, **names, **strides)
    cfg = load_config(REPOSITORY / f"configs/veri/{stage}.yaml", settings)
    expected = Sizes.of(cfg)
    query, gallery = build_networks(cfg, 3)
    hashes = {"query": "q", "gallery": "g"}
    found = describe(cfg, "gallery", hashes)
    assert (found.size, found.network) == (expected.gallery_test, gallery.name)
    if query is None:
        assert found.last_stride == 2, "stage 0's one network is described by STUDENT_*"
        with pytest.raises(UserError, match=r"stage 0 has no query network.*part gallery"):
            describe(cfg, "query", hashes)
    else:
        found = describe(cfg, "query", hashes)
        assert (found.size, found.network, found.last_stride) == (expected.query_test, query.name, 2)


def test_hash_depends_on_every_weight_of_the_embedding_and_on_nothing_else():
    state = make_network(1).state_dict()
    former = weights_hash(state)
    for key, value in state.items():
        changed = {**state, key: value + 1}
        unused = key == "fc.classifier.weight" or key.endswith("num_batches_tracked")
        assert (weights_hash(changed) == former) == unused, key
    assert weights_hash(dict(reversed(state.items()))) == former, "order"
    assert weights_hash({k: v.double() for k, v in state.items()}) == former, "type"
    swapped = dict(state)
    one, other = "first.1.weight", "first.1.bias"
    swapped[one], swapped[other] = state[other], state[one]
    assert weights_hash(swapped) != former, "names"


def test_description_survives_json():
    description = describe(make_config(), "query", {"query": "a", "gallery": "b"})
    assert Description.from_dict(description.to_dict()) == description
    for name in ("config", "networks"):
        with pytest.raises(UserError, match="description of its network is damaged"):
            Description.from_dict(description.to_dict() | {name: None})


def test_parts_of_a_run(run):
    networks = open_networks(run)
    assert list(networks) == ["query", "gallery"]
    for part, size in (("query", (12, 16)), ("gallery", (22, 26))):
        network, description = open_network(run, part)
        assert description.size == size and description.part == part
        assert description.networks == {p: d.weights_hash for p, (_, d) in networks.items()}
        expected = make_network({"query": 1, "gallery": 2}[part]).state_dict()
        assert all(torch.equal(value, expected[key]) for key, value in network.state_dict().items())
        assert not network.training
    assert open_network(run)[1].part == "query", "the query network where nothing is asked for"


def test_stage_0_has_a_gallery_network_only(tmp_path):
    path = save_run(tmp_path / "last.pth", query=None, cfg=make_config("NONE"))
    assert open_network(path)[1].part == "gallery"
    with pytest.raises(UserError, match=r"last\.pth: holds no query network, only the gallery network"):
        open_network(path, "query")


def test_a_published_file_needs_a_config(tmp_path):
    networks = {"student": make_network(1), "teacher": make_network(2)}
    both = {f"{side}.{key}": value for side, net in networks.items() for key, value in net.state_dict().items()}
    torch.save({"state_dict": both}, tmp_path / "both.pth")
    torch.save(networks["teacher"].state_dict(), tmp_path / "one.pth")
    with pytest.raises(UserError, match=r"both\.pth: carries no config.*--config-file"):
        open_network(tmp_path / "both.pth")
    cfg = make_config()
    for path, part in (("both.pth", "query"), ("both.pth", "gallery"), ("one.pth", "gallery")):
        found = Embedder.from_checkpoint(tmp_path / path, part, config=cfg)
        expected = networks["student" if part == "query" else "teacher"]
        assert found.description.weights_hash == weights_hash(expected.state_dict())
    with pytest.raises(UserError, match=r"one\.pth: holds one network without saying which"):
        open_network(tmp_path / "one.pth", config=cfg)
    assert open_network(tmp_path / "one.pth", config=make_config("NONE"))[1].part == "gallery"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": "A: ["}, "not valid YAML"),
        ({"config": "A: 1"}, "lacks the sections"),
        ({"config": "{DISTILLER: {TYPE: ACD}, INPUT: {}, TEST: {}}"}, "lacks the key"),
        ({"config": dump_config(make_config(name="ResNet18"))}, r"does not fit ResNet18"),
        ({"config": dump_config(make_config(name="MyNet"))}, "'MyNet' is not a known network"),
        ({"query": {}}, "nothing at all"),
    ],
)
def test_a_file_that_does_not_fit_is_named(tmp_path, run, change, message):
    torch.save(torch.load(run, weights_only=True) | change, tmp_path / "odd.pth")
    with pytest.raises(UserError, match=rf"odd\.pth.*{message}") as caught:
        Embedder.from_checkpoint(tmp_path / "odd.pth")
    assert "\n" not in str(caught.value)


def test_a_config_in_a_checkpoint_imports_nothing(tmp_path):
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    cfg = make_config()
    cfg.EXPERIMENT.IMPORTS = [str(tmp_path / "evil.py")]
    Embedder.from_checkpoint(save_run(tmp_path / "last.pth", cfg=cfg))(picture(0))
    assert not (tmp_path / "ran").exists()
