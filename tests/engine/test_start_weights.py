"""Which network of a file that holds two a stage starts from; no key says it, the key that names the file does."""

from types import SimpleNamespace

import pytest
import torch

from d3still.config import get_cfg
from d3still.engine.setup import load_start_weights
from d3still.modeling import build_model

CLASSES = 3


@pytest.fixture(scope="module")
def run_file(tmp_path_factory):
    """A run's last.pth whose two networks are of one kind, told apart by their first bias-like value: 1 and 2."""
    states = {}
    for value, side in enumerate(("query", "gallery"), start=1):
        state = build_model("MobileNetV3_Small", CLASSES).state_dict()
        state["fc.classifier.weight"] = torch.full_like(state["fc.classifier.weight"], value)
        states[side] = state
    path = tmp_path_factory.mktemp("run") / "last.pth"
    torch.save({"format": "d3still", "extra": {}, **states}, path)
    return path


@pytest.mark.parametrize("choice", [True, False])
@pytest.mark.parametrize("kind, query, gallery", [("NONE", None, 2), ("ROP", 1, 2), ("ACD", 1, 2)])
def test_student_path_means_the_query_network_and_teacher_path_the_gallery(run_file, kind, query, gallery, choice):
    """In stage 0 the one network that learns is the gallery network. A path is used also where ImageNet is not."""
    cfg = get_cfg()
    paths = ["DISTILLER.TEACHER_MODEL_PATH", run_file, "DISTILLER.STUDENT_PRETRAIN_PATH", run_file]
    cfg.merge_from_list(["DISTILLER.TYPE", kind, "DISTILLER.STUDENT_PRETRAIN_CHOICE", choice, *map(str, paths)])
    networks = {side: build_model("MobileNetV3_Small", CLASSES) for side in ("query", "gallery")}
    learner = networks["query" if kind == "ROP" else "gallery"]
    distiller = SimpleNamespace(**networks, extra=torch.nn.ModuleDict(), learner_network=learner)
    load_start_weights(cfg, distiller)
    for side, value in (("query", query), ("gallery", gallery)):
        assert value is None or (networks[side].fc.classifier.weight == value).all()
