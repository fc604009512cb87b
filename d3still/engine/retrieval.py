"""Asymmetric (AIR) and symmetric (SIR) retrieval with the two networks of a run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from d3still.data import BatchLoader, ImageBatch, ImageError, Sample
from d3still.engine.distributed import gather_lists, gather_rows
from d3still.engine.pictures import list_grid
from d3still.engine.setup import Data
from d3still.evaluation import RankingResult, evaluate_distances, evaluate_ranking, k_reciprocal_distances
from d3still.evaluation.lists import WORST, Features, labels_of, worst
from d3still.modeling.inference import exact_inference
from d3still.modeling.out_of_memory import InParts

logger = logging.getLogger(__name__)

LISTED = 10  # images in the ranked list of a hard query


@dataclass
class Evaluation:
    """Results by name: AIR and SIR (stage 0: SIR), with ``_reranked`` forms where asked for.

    Attributes:
        hardest: where asked for, by name without the re-ranked forms: the ranked lists of the few queries of lowest
            AP, a picture (`list_grid`).
    """

    results: dict[str, RankingResult]
    skipped: list[str]
    query: list[Sample]
    hardest: dict[str, np.ndarray]

    def summaries(self) -> dict[str, dict[str, float]]:
        """mAP, mINP, R1, R5, R10 of each, in percent."""
        return {name: result.summary() for name, result in self.results.items()}


def extract(
    network: nn.Module,
    samples: Sequence[Sample],
    loader: BatchLoader,
    normalize: Callable[[ImageBatch], Tensor],
    device: torch.device,
    flip: bool = False,
) -> tuple[Features, list[str]]:
    """Features of ``samples``, float32, in their order, over all ranks, and the paths that could not be read.

    Runs as in `exact_inference`, so that a score does not depend on what the training ran in, and in parts of the
    loader's batches where the memory does not hold them.

    Args:
        network: images (B, 3, H, W) → `ModelOutput`.
        samples, loader: the images, and their test loader.
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
    return Features([samples[index] for index in order.tolist()], values[positions]), gather_lists(skipped)


def extract_part(
    cfg: CfgNode, data: Data, network: nn.Module, samples: list[Sample], size: tuple[int, int], device: torch.device
) -> tuple[Features, list[str]]:
    """`extract` of a part of a run's dataset, with ``size`` the (height, width) of the network's input."""
    return extract(network, samples, data.test(samples, size), data.normalize, device, cfg.TEST.FLIP_FEATS)


def evaluate(
    cfg: CfgNode,
    data: Data,
    query_network: nn.Module | None,
    gallery_network: nn.Module,
    device: torch.device,
    draw_hardest: bool = False,
) -> Evaluation:
    """Rank the dataset's queries in both ways.

    AIR: query-network features of the queries against gallery-network features of the gallery.
    SIR: gallery-network features of both. Without a query network (stage 0) there is SIR only.
    ``draw_hardest`` also draws the lists of the few hardest queries (`Evaluation.hardest`).
    """
    dataset, sizes = data.dataset, data.sizes
    asking = {"AIR": (query_network, sizes.query_test), "SIR": (gallery_network, sizes.gallery_test)}
    gallery, skipped = extract_part(cfg, data, gallery_network, dataset.gallery, sizes.gallery_test, device)
    results, hardest = {}, {}
    for name, (network, size) in asking.items():
        if network is None:
            continue
        if name == "SIR" and dataset.query == dataset.gallery:
            query = gallery
        else:
            query, unread = extract_part(cfg, data, network, dataset.query, size, device)
            skipped += unread
        ranked = _rank(cfg, query, gallery)
        results |= {f"{name}{kind}": result for kind, result in ranked.items()}
        if draw_hardest:
            few = query.at(worst(ranked[""].ap, WORST))
            lists = _rank_plainly(cfg, few, gallery, topk=LISTED)
            try:
                hardest[name] = list_grid(few.samples, gallery.samples, lists, size, cfg.DATALOADER.MAX_PIXELS)
            except ImageError as error:  # gone since it was ranked: no reason to stop training
                logger.warning("no picture of %s's hardest queries: %s", name, error)
    return Evaluation(results, sorted(set(skipped)), query.samples, hardest)


def _rank(cfg: CfgNode, query: Features, gallery: Features) -> dict[str, RankingResult]:
    """The plain ranking under "", and the re-ranked one where ``TEST.RE_RANKING`` asks for it."""
    results = {"": _rank_plainly(cfg, query, gallery)}
    if cfg.TEST.RE_RANKING:
        k1, k2, weight = cfg.TEST.RE_RANKING_PARAMETER
        distances = k_reciprocal_distances(query.values, gallery.values, int(k1), int(k2), weight)
        labels, rule = labels_of(query.samples, gallery.samples), cfg.TEST.EXCLUDE_SAME_CAMERA
        results["_reranked"] = evaluate_distances(distances, *labels, exclude_same_camera=rule)
    return results


def _rank_plainly(cfg: CfgNode, query: Features, gallery: Features, topk: int = 0) -> RankingResult:
    rules: dict[str, Any] = {"metric": cfg.TEST.TEST_METRIC, "exclude_same_camera": cfg.TEST.EXCLUDE_SAME_CAMERA}
    labels = labels_of(query.samples, gallery.samples)
    return evaluate_ranking(query.values, gallery.values, *labels, topk=topk, **rules)


def per_query(evaluation: Evaluation) -> dict[str, np.ndarray]:
    """What comparisons between runs need, query by query: identities, their names, AP, INP, first hit, CMC."""
    arrays = {
        "query_paths": np.array([sample.path for sample in evaluation.query]),
        "query_ids": np.array([sample.identity for sample in evaluation.query]),
        "query_names": np.array([sample.name for sample in evaluation.query]),
    }
    for name, result in evaluation.results.items():
        arrays |= {f"{name}_{part}": np.asarray(getattr(result, part)) for part in ("ap", "inp", "first_hit", "cmc")}
    return arrays
