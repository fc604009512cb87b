"""Asymmetric (AIR) and symmetric (SIR) retrieval with the two networks of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from d3still.data import BatchLoader, ImageBatch, RetrievalDataset, Sample
from d3still.engine.distributed import gather_lists, gather_rows
from d3still.engine.setup import Data
from d3still.evaluation import RankingResult, evaluate_distances, evaluate_ranking, k_reciprocal_distances
from d3still.evaluation.lists import WORST, worst
from d3still.modeling.inference import exact_inference
from d3still.modeling.out_of_memory import InParts

LISTED = 10  # images in the ranked list of a hard query


@dataclass
class Features:
    """Features (N, D), float32, of the samples at ``indices``, and the paths that could not be read."""

    values: Tensor
    indices: list[int]
    skipped: list[str] = field(default_factory=list)


@dataclass
class Evaluation:
    """Results by name: AIR and SIR (stage 0: SIR), with ``_reranked`` forms where asked for.

    Attributes:
        hardest: where asked for, by name without the re-ranked forms: the few queries of lowest AP, the (height,
            width) at which they were embedded, and their results with ranked lists.
    """

    results: dict[str, RankingResult]
    skipped: list[str]
    query: list[Sample]
    gallery: list[Sample]
    hardest: dict[str, tuple[list[Sample], tuple[int, int], RankingResult]]

    def summaries(self) -> dict[str, dict[str, float]]:
        """mAP, mINP, R1, R5, R10 of each, in percent."""
        return {name: result.summary() for name, result in self.results.items()}


def extract(
    network: nn.Module,
    loader: BatchLoader,
    normalize: Callable[[ImageBatch], Tensor],
    device: torch.device,
    flip: bool = False,
) -> Features:
    """Features of every image of a test loader, in the order of its samples, over all ranks.

    Runs as in `exact_inference`, so that a score does not depend on what the training ran in, and in parts of the
    loader's batches where the memory does not hold them.

    Args:
        network: images (B, 3, H, W) → `ModelOutput`.
        flip: add the features of the mirrored image (``TEST.FLIP_FEATS``).
    """

    def embed(part: ImageBatch) -> Tensor:
        images = normalize(part.to(device, non_blocking=True))
        values = network(images).retrieval_feat
        return values + network(images.flip(3)).retrieval_feat if flip else values

    feats, indices, skipped = [], [], []
    embed_in_parts = InParts(embed, "TEST.IMS_PER_BATCH")
    with exact_inference(network):
        for batch in loader.epoch(0):
            skipped += batch.skipped
            if not len(batch):
                continue
            feats.append(embed_in_parts(batch))
            indices.append(batch.indices)
    loader.close()
    width = network.feature_width
    values = gather_rows(torch.cat(feats) if feats else torch.empty(0, width, device=device))
    order = gather_rows(torch.cat(indices).to(device) if indices else torch.empty(0, dtype=torch.long, device=device))
    order, positions = order.sort()
    return Features(values[positions], order.tolist(), gather_lists(skipped))


def evaluate(
    cfg: CfgNode,
    data: Data,
    query_network: nn.Module | None,
    gallery_network: nn.Module,
    device: torch.device,
    list_hardest: bool = False,
) -> Evaluation:
    """Rank the dataset's queries in both ways.

    AIR: query-network features of the queries against gallery-network features of the gallery.
    SIR: gallery-network features of both. Without a query network (stage 0) there is SIR only.
    ``list_hardest`` also ranks the few hardest queries in full (`Evaluation.hardest`).
    """
    dataset, sizes = data.dataset, data.sizes

    def embed(network: nn.Module, samples: list[Sample], size: tuple[int, int]) -> Features:
        return extract(network, data.test(samples, size), data.normalize, device, cfg.TEST.FLIP_FEATS)

    gallery = embed(gallery_network, dataset.gallery, sizes.gallery_test)
    same_images = dataset.query == dataset.gallery
    queries = {"SIR": gallery if same_images else embed(gallery_network, dataset.query, sizes.gallery_test)}
    if query_network is not None:
        queries = {"AIR": embed(query_network, dataset.query, sizes.query_test)} | queries
    results, hardest = {}, {}
    for name, query in queries.items():
        ranked = _rank(cfg, dataset, query, gallery)
        results |= {f"{name}{kind}": result for kind, result in ranked.items()}
        if list_hardest:
            places = worst(ranked[""].ap, WORST)
            few = Features(query.values[places], [query.indices[place] for place in places])
            samples = [dataset.query[index] for index in few.indices]
            size = sizes.query_test if name == "AIR" else sizes.gallery_test
            hardest[name] = samples, size, _rank_plainly(cfg, dataset, few, gallery, topk=LISTED)
    skipped = sorted({path for feats in (gallery, *queries.values()) for path in feats.skipped})
    return Evaluation(
        results,
        skipped,
        [dataset.query[i] for i in queries["SIR"].indices],
        [dataset.gallery[i] for i in gallery.indices],
        hardest,
    )


def _rank(cfg: CfgNode, dataset: RetrievalDataset, query: Features, gallery: Features) -> dict[str, RankingResult]:
    """The plain ranking under "", and the re-ranked one where ``TEST.RE_RANKING`` asks for it."""
    results = {"": _rank_plainly(cfg, dataset, query, gallery)}
    if cfg.TEST.RE_RANKING:
        k1, k2, weight = cfg.TEST.RE_RANKING_PARAMETER
        distances = k_reciprocal_distances(query.values, gallery.values, int(k1), int(k2), weight)
        labels, rule = _labels(dataset, query, gallery), cfg.TEST.EXCLUDE_SAME_CAMERA
        results["_reranked"] = evaluate_distances(distances, *labels, exclude_same_camera=rule)
    return results


def _rank_plainly(
    cfg: CfgNode, dataset: RetrievalDataset, query: Features, gallery: Features, topk: int = 0
) -> RankingResult:
    rules: dict[str, Any] = {"metric": cfg.TEST.TEST_METRIC, "exclude_same_camera": cfg.TEST.EXCLUDE_SAME_CAMERA}
    return evaluate_ranking(query.values, gallery.values, *_labels(dataset, query, gallery), topk=topk, **rules)


def _labels(dataset: RetrievalDataset, query: Features, gallery: Features) -> list[np.ndarray]:
    """Identities of both sides, then cameras, in the order that the ranking takes them."""
    queries = [dataset.query[i] for i in query.indices]
    images = [dataset.gallery[i] for i in gallery.indices]
    return [
        np.array([getattr(sample, name) for sample in part])
        for name in ("identity", "camera")
        for part in (queries, images)
    ]


def per_query(evaluation: Evaluation) -> dict[str, np.ndarray]:
    """What comparisons between runs need, query by query: identities, their names, AP, INP, first hit, CMC."""
    arrays = {
        "query_paths": np.array([sample.path for sample in evaluation.query]),
        "query_ids": np.array([sample.identity for sample in evaluation.query]),
        "query_names": np.array([sample.name for sample in evaluation.query]),
    }
    for name, result in evaluation.results.items():
        arrays |= {
            f"{name}_ap": np.asarray(result.ap),
            f"{name}_inp": np.asarray(result.inp),
            f"{name}_first_hit": np.asarray(result.first_hit),
            f"{name}_cmc": np.asarray(result.cmc),
        }
    return arrays
