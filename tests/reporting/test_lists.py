"""Ranked lists: the evaluator's ranks and scores, excluded images in their place, and which queries are chosen."""

import json
import math

import numpy as np
import pytest
import torch

from d3still.data import Sample
from d3still.errors import UserError
from d3still.evaluation import evaluate_ranking
from d3still.evaluation.lists import Embedded, Features, Ranking, most_changed, rank, with_excluded, worst
from d3still.reporting import stored
from d3still.reporting.choose import by_name, choose, gains_over
from d3still.reporting.stored import kept_lists
from d3still.runs.finished import read_run
from tests.reporting.fabricate import make_log


def sample(name, identity, camera):
    return Sample(f"/data/{name}.jpg", identity, camera)


# One query at 0°, five gallery images at growing angles: cosines 1, 0.8, 0.6, 0, −1.
QUERY = [sample("q", 1, 0)]
GALLERY = [sample("far", 1, 1), sample("same", 1, 0), sample("hit", 1, 2), sample("miss", 2, 0), sample("own", 1, 0)]
COSINES = [-1.0, 1.0, 0.6, 0.8, 0.0]


def embedded():
    gallery = torch.tensor([[cosine, math.sqrt(1 - cosine**2)] for cosine in COSINES])
    return Embedded(Features(QUERY, torch.tensor([[1.0, 0.0]])), Features(GALLERY, gallery), (8, 8))


def shape(ranked):
    return [(entry.sample.path[6:-4], entry.rank, entry.hit, round(entry.score, 4)) for entry in ranked.entries]


def test_a_list_by_hand():
    """``same`` and ``own`` are of the query's identity and camera: not ranked. Hits at ranks 2 and 3: AP 7/12."""
    ranked = rank(embedded(), "cosine", exclude_same_camera=True, topk=5).of(0)
    assert shape(ranked) == [("miss", 1, False, 0.8), ("hit", 2, True, 0.6), ("far", 3, True, -1.0)]
    assert ranked.ap == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_excluded_images_stand_at_their_score_without_a_rank():
    ranking = rank(embedded(), "cosine", exclude_same_camera=True, topk=5)
    shown = with_excluded(ranking.of(0), 0, embedded(), "cosine")
    assert shape(shown) == [
        ("same", None, True, 1.0),
        ("miss", 1, False, 0.8),
        ("hit", 2, True, 0.6),
        ("own", None, True, 0.0),
        ("far", 3, True, -1.0),
    ]
    short = rank(embedded(), "cosine", exclude_same_camera=True, topk=2)
    names = [name for name, *_ in shape(with_excluded(short.of(0), 0, embedded(), "cosine"))]
    assert names == ["same", "miss", "hit"], "below the list's end nothing is added"


def test_distances_are_sorted_the_other_way():
    ranking = rank(embedded(), "euclidean", exclude_same_camera=True, topk=5)
    shown = with_excluded(ranking.of(0), 0, embedded(), "euclidean")
    assert [name for name, *_ in shape(shown)] == ["same", "miss", "hit", "own", "far"]
    assert [entry.score for entry in shown.entries] == pytest.approx(
        [math.sqrt(2 - 2 * c) for c in (1, 0.8, 0.6, 0, -1)]
    )


def test_nothing_is_excluded_where_the_rule_is_off():
    ranked = rank(embedded(), "cosine", exclude_same_camera=False, topk=5).of(0)
    assert [entry.rank for entry in ranked.entries] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_ranks_and_scores_are_the_evaluators(metric):
    """On random features with many queries: every list, and the scores of excluded images."""
    rng = np.random.default_rng(0)
    query = [sample(f"q{i}", int(rng.integers(6)), int(rng.integers(3))) for i in range(20)]
    gallery = [sample(f"g{i}", int(rng.integers(6)), int(rng.integers(3))) for i in range(60)]
    feats = [torch.from_numpy(rng.normal(size=(len(side), 8)).astype(np.float32)) for side in (query, gallery)]
    both = Embedded(Features(query, feats[0]), Features(gallery, feats[1]), (8, 8))
    labels = [[getattr(s, name) for s in side] for name in ("identity", "camera") for side in (query, gallery)]
    expected = evaluate_ranking(*feats, *labels, metric=metric, topk=10)
    everything = evaluate_ranking(*feats, *labels, metric=metric, exclude_same_camera=False, topk=60)
    ranking = rank(both, metric, exclude_same_camera=True, topk=10)
    for i in range(20):
        shown = with_excluded(ranking.of(i), i, both, metric)
        ranked = [entry for entry in shown.entries if entry.rank]
        assert [entry.sample for entry in ranked] == [gallery[j] for j in expected.topk.indices[i]]
        assert [entry.score for entry in ranked] == expected.topk.scores[i].tolist()
        assert [entry.hit for entry in ranked] == expected.topk.hits[i].tolist()
        score_of = dict(zip(everything.topk.indices[i].tolist(), everything.topk.scores[i].tolist(), strict=True))
        for entry in shown.entries:
            assert entry.score == score_of[gallery.index(entry.sample)]
            own = (entry.sample.identity, entry.sample.camera) == (query[i].identity, query[i].camera)
            assert own == (entry.rank is None)
        scores = [entry.score for entry in shown.entries]
        assert scores == sorted(scores, reverse=metric == "cosine")


def test_a_query_without_a_match_has_a_list():
    query = Features([*QUERY, sample("alone", 9, 0)], torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    ranking = rank(embedded()._replace(query=query), "cosine", True, 3)
    assert math.isnan(ranking.of(1).ap) and len(ranking.of(1).entries) == 3
    assert not any(entry.hit for entry in ranking.of(1).entries)


def test_a_junk_query_excludes_nothing():
    """Junk of its own camera has no place in its list, nor in any other."""
    junk = [sample("junk", -1, 0), sample("hit", 1, 2)]
    gallery = Features(junk, torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    query = Features([sample("nobody", -1, 0), *QUERY], torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    both = Embedded(query, gallery, (8, 8))
    shown = rank(both, "cosine", True, 2).of(0)
    assert with_excluded(shown, 0, both, "cosine") == shown and [name for name, *_ in shape(shown)] == ["hit"]


def test_choosing():
    ap = np.array([0.5, np.nan, 0.1, 0.9])
    assert worst(ap, 2) == [2, 0] and worst(ap, 9) == [2, 0, 3], "no query without a match"
    assert most_changed(np.array([0.0, 0.3, -0.2, 0.1, -0.5]), 2) == ([1, 3], [4, 2])
    assert most_changed(np.zeros(3), 2) == ([], []), "what did not change neither gained nor lost"


def test_queries_by_name():
    query = [sample("a/0001_c1", 1, 0), sample("b/0001_c1", 1, 1), sample("b/0002_c1", 2, 1)]
    assert by_name(["0002_c1.jpg", "/data/a/0001_c1.jpg", "b/0001_c1.jpg"], query) == [2, 0, 1]
    with pytest.raises(UserError, match=r"fits 2 queries.*more of the path"):
        by_name(["0001_c1.jpg"], query)
    with pytest.raises(UserError, match=r"0002_c2.jpg is no query; the nearest is 0002_c1.jpg"):
        by_name(["0002_c2.jpg"], query)
    with pytest.raises(UserError):
        by_name(["1_c1.jpg"], query)  # part of a name is none


def test_one_way_to_choose_at_a_time(run, queries):
    """Without a word the worst; by name; by the change over another run, which is only read when asked for."""
    query = [Sample(path, identity, 0) for path, identity in queries]
    ap = run.per_query["AIR_ap"] + np.where(np.arange(len(query)) == 7, 0.2, 0.0)
    ranking = Ranking(query, [], ap, None)

    def never():
        raise AssertionError

    assert choose(ranking, "AIR", never, lowest=2).places == worst(ap, 2)
    assert choose(ranking, "AIR", never, names=["0003_c002_0.png"]).places == [7]
    choice = choose(ranking, "AIR", lambda: run, improved=3)
    assert (choice.places, choice.what) == ([7], "most improved") and choice.gains[7] == pytest.approx(0.2)
    with pytest.raises(UserError, match="no query is harmed, so there is nothing to draw"):
        choose(ranking, "AIR", lambda: run, harmed=3)


@pytest.fixture
def run(queries, tmp_path):
    return read_run(make_log(tmp_path / "log", queries, seeds=(2024,)) / "emoji/acd_rop/seed2024")


def of_run(run, queries):
    """What a run's networks might say of its queries."""
    rng = np.random.default_rng(1)
    query = [Sample(path, identity, 0, name=f"shoe-{identity}") for path, identity in queries]
    gallery = [Sample(path.replace("0.png", "1.png"), i, 1, (0, 0, 9, 9), f"shoe-{i}") for path, i in queries[::2]]
    feats = (torch.from_numpy(rng.normal(size=(len(side), 8)).astype(np.float32)) for side in (query, gallery))
    return Embedded(*map(Features, (query, gallery), feats), (32, 32))


def test_gains_over_another_run(run, queries):
    query = [Sample(path, identity, 0) for path, identity in queries]
    ap = run.per_query["AIR_ap"]
    assert not gains_over(run, query, ap, "AIR").any()
    assert gains_over(run, query[::-1], ap[::-1] + 0.1, "AIR") == pytest.approx(np.full(len(ap), 0.1))
    with pytest.raises(UserError, match="has no per-query XIR results"):
        gains_over(run, query, ap, "XIR")


def test_lists_are_made_once_and_kept(run, queries):
    made = []

    def embed(wanted):
        made.append(wanted)
        return of_run(wanted, queries)

    paths = [queries[7][0], queries[3][0]]
    first = kept_lists(embed, run, paths)
    again = kept_lists(embed, read_run(run.folder), paths)
    assert len(made) == 1 and list(again) == paths
    direct = rank(of_run(run, queries), "cosine", True, stored.TOPK)
    for path, place in zip(paths, (7, 3), strict=True):
        assert first[path] == again[path] == direct.of(place)
        assert again[path].query.name == f"shoe-{queries[place][1]}"
        assert all(entry.sample.name == f"shoe-{entry.sample.identity}" for entry in again[path].entries)


def test_a_run_trained_again_has_new_lists(run, queries):
    made = []
    embed = lambda wanted: (made.append(1), of_run(wanted, queries))[1]  # noqa: E731
    kept_lists(embed, run, [queries[0][0]])
    metrics = json.loads((run.folder / "metrics.json").read_text())
    (run.folder / "metrics.json").write_text(json.dumps(metrics | {"seconds": 13.0}))
    kept_lists(embed, read_run(run.folder), [queries[0][0]])
    assert len(made) == 2


def test_damaged_lists_are_made_again(run, queries):
    (run.folder / stored.FILE).write_bytes(b"PK\x03\x04")
    assert kept_lists(lambda wanted: of_run(wanted, queries), run, [queries[0][0]])


def test_lists_of_a_dataset_that_lost_a_query(run, queries):
    embed = lambda wanted: of_run(wanted, queries[1:])  # noqa: E731
    with pytest.raises(UserError, match="has no query"):
        kept_lists(embed, run, [queries[0][0]])
