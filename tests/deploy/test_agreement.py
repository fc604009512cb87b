"""What is deployed answers as the evaluator does: exported query network, exact index, same-camera rule."""

import json

import numpy as np
import pytest

from benchmarks.deploy_agreement import NEAR, agreement, first_answers
from d3still.config import load_config
from d3still.data import Sample
from d3still.deploy import GalleryImage, GalleryIndex, IndexOptions
from d3still.deploy.kinds import new_index
from d3still.deploy.runners import OnnxNetwork
from d3still.engine.finished_run import test as evaluate_run
from d3still.errors import UserError
from d3still.evaluation import evaluate_ranking
from tests.deploy.small import make_network, needs
from tests.deploy.test_index import unit

pytestmark = needs("faiss", "onnx", "onnxscript", "onnxruntime")


def run_of(chain, stage):
    return chain / f"VeRi776/{stage}/seed2024"


def test_r1_of_a_trained_chain(chain, tmp_path):
    """A real stage-2 run: R1 as the run's own metrics report it, but for near ties."""
    found = agreement(run_of(chain, "acd_rop"), tmp_path, fixed_size=True)  # a graph that is sooner made
    reported = json.loads((run_of(chain, "acd_rop") / "metrics.json").read_text())["AIR"]["R1"]
    assert found.queries == 6 and found.evaluated == pytest.approx(reported)
    assert found.holds, found
    assert abs(found.deployed - reported) <= 100 * len(found.gaps) / found.queries + 1e-9
    assert not found.gaps or max(found.gaps) <= NEAR
    metrics = json.loads((run_of(chain, "acd_rop") / "metrics.json").read_text())
    cfg = load_config(run_of(chain, "acd_rop") / "config.yaml")
    tested = evaluate_run(cfg, lambda run: OnnxNetwork(tmp_path / "query.onnx", run.distiller.gallery)).summaries()
    for protocol, near in (("AIR", 0.1), ("SIR", 1e-6)):  # percent: near ties may change places
        for name in ("mAP", "R1"):
            assert tested[protocol][name] == pytest.approx(metrics[protocol][name], abs=near)
    with pytest.raises(UserError, match=r"query\.onnx: belongs with another gallery network"):
        OnnxNetwork(tmp_path / "query.onnx", make_network(5))


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["vanilla", "rop"])
def test_r1_of_the_stages_before(chain, tmp_path, stage):
    assert agreement(run_of(chain, stage), tmp_path).holds


@pytest.mark.parametrize("own_camera", [True, False])
def test_first_answers_follow_the_evaluators_rules(own_camera):
    """Independent implementation: the evaluator's ranking of the same features, with junk and cameras."""
    rng = np.random.default_rng(1)
    query, gallery = unit(60, 1), unit(300, 2)

    def samples(prefix, count, identities):
        return [Sample(f"/{prefix}{n}.png", int(rng.choice(identities)), int(rng.integers(3))) for n in range(count)]

    queries, images = samples("q", 60, range(8)), samples("g", 300, [-1, *range(8)])
    gallery[:8] = query[:8]  # certain first answers, some of them junk or of the query's own camera
    images[0] = Sample(images[0].path, -1, 0)
    images[1] = Sample(images[1].path, queries[1].identity, queries[1].camera)
    images[2] = Sample(images[2].path, queries[2].identity, (queries[2].camera + 1) % 3)
    faiss_index = new_index(IndexOptions(), 512, 300)
    faiss_index.add(gallery)
    header = {"embedding": {"feature_width": 512}}
    index = GalleryIndex(faiss_index, [GalleryImage(s.path, s.identity, s.box) for s in images], header)
    hits, gaps = first_answers(index, query, queries, images, {"EXCLUDE_SAME_CAMERA": own_camera})
    labels = [[getattr(s, name) for s in part] for name in ("identity", "camera") for part in (queries, images)]
    expected = evaluate_ranking(query, gallery, *labels, exclude_same_camera=own_camera)
    assert np.array_equal(hits, expected.first_hit == 1)
    assert hits[2] and (gaps >= 0).all() and 5 < hits.sum() < 60
