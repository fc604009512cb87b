"""Ranked lists to look at: what the evaluator ranked for a query, with its ranks and scores."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from torch import Tensor

from d3still.data import Sample
from d3still.evaluation import RankedLists, evaluate_ranking
from d3still.evaluation.labels import JUNK_IDENTITY

WORST = 4  # queries shown where the worst are


class Features(NamedTuple):
    """Images with their identities and cameras, and their features (N, D) in the same order."""

    samples: Sequence[Sample]
    values: Tensor

    def at(self, places: list[int]) -> Features:
        """Those at some places."""
        return Features([self.samples[place] for place in places], self.values[places])


class Embedded(NamedTuple):
    """Both sides of a retrieval; ``query_size`` is the (height, width) at which the queries' network got them."""

    query: Features
    gallery: Features
    query_size: tuple[int, int]


@dataclass(frozen=True)
class Entry:
    """A gallery image in a ranked list.

    Attributes:
        sample: the image.
        score: the evaluator's, cosine similarity or distance.
        hit: whether it is of the query's identity.
        rank: from 1; None for an image that the same-camera rule excludes, which has no rank.
    """

    sample: Sample
    score: float
    hit: bool
    rank: int | None


@dataclass(frozen=True)
class RankedList:
    """A query with the best of its ranking, best first. ``ap`` is a fraction, NaN for a query without a match."""

    query: Sample
    ap: float
    entries: tuple[Entry, ...]


@dataclass(frozen=True, eq=False)
class Ranking:
    """The best of every query's ranking, as `evaluate_ranking` gave it with ``topk`` above 0.

    Attributes:
        query, gallery: the images that were ranked, in order.
        ap: (Q,) AP of each query, a fraction; NaN without a match.
        lists: ``RankingResult.topk``.
    """

    query: Sequence[Sample]
    gallery: Sequence[Sample]
    ap: np.ndarray
    lists: RankedLists

    def of(self, index: int) -> RankedList:
        """The list of the query at this place."""
        columns = (values[index].tolist() for values in (self.lists.indices, self.lists.scores, self.lists.hits))
        entries = [
            Entry(self.gallery[place], score, hit, number)
            for number, (place, score, hit) in enumerate(zip(*columns, strict=True), start=1)
            if place >= 0
        ]
        return RankedList(self.query[index], float(self.ap[index]), tuple(entries))


def rank(embedded: Embedded, metric: str, exclude_same_camera: bool, topk: int) -> Ranking:
    """Rank the gallery for every query by the rules of `evaluate_ranking`, whose errors it raises."""
    query, gallery, _ = embedded
    rules = {"metric": metric, "exclude_same_camera": exclude_same_camera}
    labels = labels_of(query.samples, gallery.samples)
    result = evaluate_ranking(query.values, gallery.values, *labels, topk=topk, **rules)
    return Ranking(query.samples, gallery.samples, result.ap, result.topk)


def with_excluded(shown: RankedList, index: int, embedded: Embedded, metric: str) -> RankedList:
    """The list with the images that the same-camera rule keeps out of it, where their scores would put them.

    They get no rank, and those that would stand below the list's end are left out. Junk is excluded from every list.
    """
    query, gallery, size = embedded
    asked = query.samples[index].identity, query.samples[index].camera
    own = [i for i, sample in enumerate(gallery.samples) if (sample.identity, sample.camera) == asked]
    if not own or asked[0] == JUNK_IDENTITY:
        return shown
    alone = Embedded(query.at([index]), gallery.at(own), size)
    ranked = rank(alone, metric, exclude_same_camera=False, topk=len(own)).of(0)
    direction = -1.0 if metric == "cosine" else 1.0  # sorts best first
    entries = list(shown.entries)
    excluded = [replace(entry, rank=None) for entry in ranked.entries]
    worst = direction * entries[-1].score if entries else np.inf
    for entry in excluded:
        if direction * entry.score <= worst:
            bisect.insort_right(entries, entry, key=lambda other: direction * other.score)
    return replace(shown, entries=tuple(entries))


def worst(ap: np.ndarray, count: int) -> list[int]:
    """Places of the queries with the lowest AP, worst first; those without a match are not among them."""
    order = np.argsort(ap, kind="stable")  # NaN comes last
    return [int(i) for i in order[:count] if np.isfinite(ap[i])]


def most_changed(gains: np.ndarray, count: int) -> tuple[list[int], list[int]]:
    """Places of the largest gains, best first, and of the largest losses, worst first; only real gains and losses."""
    order = np.argsort(-gains, kind="stable")
    improved = [int(i) for i in order[:count] if gains[i] > 0]
    harmed = [int(i) for i in order[::-1][:count] if gains[i] < 0]
    return improved, harmed


def labels_of(query: Sequence[Sample], gallery: Sequence[Sample]) -> list[np.ndarray]:
    """Query and gallery identities, then cameras, as `evaluate_ranking` takes them."""
    return [
        np.array([getattr(sample, name) for sample in side])
        for name in ("identity", "camera")
        for side in (query, gallery)
    ]
