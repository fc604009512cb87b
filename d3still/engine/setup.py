"""From a config to what a run needs: data, networks, the distiller."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from yacs.config import CfgNode

from d3still.config import repositories, weight_path
from d3still.data import (
    BatchLoader,
    ImageCache,
    Normalizer,
    RetrievalDataset,
    Sample,
    build_dataset,
    identity_loader,
    pair_loader,
    test_loader,
)
from d3still.distillers import DISTILLERS, Distiller
from d3still.engine.distributed import Rank
from d3still.errors import UserError
from d3still.evaluation.labels import match
from d3still.evaluation.lists import labels_of
from d3still.modeling import build_model, load_imagenet_weights, load_weights, read_weights
from d3still.runs.facts import WEIGHT_KEYS, side_of, stage_of
from d3still.runs.inputs import PARTS, input_changes

logger = logging.getLogger(__name__)


def open_dataset(cfg: CfgNode) -> RetrievalDataset:
    """The dataset that ``DATASETS`` names; its notes are logged."""
    dataset = build_dataset(
        cfg.DATASETS.NAMES,
        cfg.DATASETS.ROOT_DIR,
        split=cfg.DATASETS.SPLIT,
        camera_pattern=cfg.DATASETS.CAMERA_PATTERN,
        repositories=repositories(cfg),
    )
    logger.info(
        "%s: %d training images of %d identities, %d queries, %d gallery images",
        dataset.name,
        len(dataset.train),
        dataset.num_classes,
        len(dataset.query),
        len(dataset.gallery),
    )
    return dataset


def require_matches(cfg: CfgNode, dataset: RetrievalDataset) -> None:
    """Refuse a dataset of which no query could be scored, before hours of training.

    Raises:
        UserError: when no query has a match in the gallery, or only in images of its own camera.
    """
    query, gallery = dataset.query, dataset.gallery
    try:
        match(*labels_of(query, gallery), (len(query), len(gallery)), cfg.TEST.EXCLUDE_SAME_CAMERA)
    except UserError as error:
        raise UserError(f"{dataset.name} ({cfg.DATASETS.SPLIT} split): {error}") from error


def require_batches(cfg: CfgNode, dataset: RetrievalDataset) -> None:
    """Refuse a training set of which no batch can be made.

    Raises:
        UserError: when it has fewer identities than a balanced batch, or fewer images than a batch.
    """
    plain = cfg.clone()
    plain.defrost()
    plain.DATALOADER.CACHE = "none"  # nothing is decoded
    data = Data(plain, dataset, Rank(), torch.device("cpu"))
    data.identity()
    if stage_of(cfg) > 0:
        data.pairs()


def require_fitting_weights(cfg: CfgNode, key: str, num_classes: int) -> None:
    """Refuse start weights that do not fit the network that they are for.

    Raises:
        UserError: when the file that ``DISTILLER.key`` names is missing, of another network, or of another number
            of identities.
    """
    query, gallery = build_networks(cfg, num_classes)
    part = PARTS[key]
    network = {"query": query, "gallery": gallery}[part]
    load_weights(network, previous_stage(cfg, key), part=part, purpose="resume")


def build_networks(cfg: CfgNode, num_classes: int) -> tuple[nn.Module | None, nn.Module]:
    """Both networks with fresh weights, (query, gallery); stage 0 has one, described by ``STUDENT_*``."""
    d = cfg.DISTILLER
    student = build_model(d.STUDENT_NAME, num_classes, d.STUDENT_LAST_STRIDE)
    if stage_of(cfg) == 0:
        return None, student
    return student, build_model(d.TEACHER_NAME, num_classes, d.TEACHER_LAST_STRIDE)


def build_distiller(cfg: CfgNode, num_classes: int) -> Distiller:
    """The distiller of ``DISTILLER.TYPE`` over networks with fresh weights; seeded by ``SOLVER.SEED``."""
    entry = DISTILLERS.get(cfg.DISTILLER.TYPE)
    torch.manual_seed(cfg.SOLVER.SEED)
    query, gallery = build_networks(cfg, num_classes)
    return entry.build(cfg, query, gallery, learner="query" if stage_of(cfg) == 1 else "gallery")


def load_start_weights(cfg: CfgNode, distiller: Distiller) -> None:
    """Give the networks the weights that their stage starts from.

    Stage 0: ImageNet, an earlier network or none. Stage 1: the gallery network of stage 0; ImageNet, an earlier
    query network with its extra parts or none for the query network. Stage 2: the gallery network of stage 0, the
    query network and extra parts of stage 1.

    Raises:
        UserError: when a file is missing or does not fit.
    """
    d, stage = cfg.DISTILLER, stage_of(cfg)
    if stage > 0:
        path = previous_stage(cfg, "TEACHER_MODEL_PATH")
        load_weights(distiller.gallery, path, part="gallery", purpose="resume")
    if stage == 2:
        path = previous_stage(cfg, "STUDENT_PRETRAIN_PATH")
        load_weights(distiller.query, path, part="query", purpose="resume")
        _load_extra(distiller, path)
    elif d.STUDENT_PRETRAIN_CHOICE or d.STUDENT_PRETRAIN_PATH:
        path = weight_path(cfg, d.STUDENT_PRETRAIN_PATH) if d.STUDENT_PRETRAIN_PATH else ""
        part = "query" if stage == 1 else None
        load_imagenet_weights(distiller.learner_network, str(path), part, tie="gallery")
        if stage == 1 and path and read_weights(path).extra:
            _load_extra(distiller, path)
    else:
        logger.info("%s starts from scratch (DISTILLER.STUDENT_PRETRAIN_CHOICE: False)", d.STUDENT_NAME)


def _load_extra(distiller: Distiller, path: Path) -> None:
    """A baseline's own learnable parts from its stage-1 file. Parts that the loss does not use may be absent."""
    wanted = distiller.extra.state_dict()
    if not wanted:
        return
    found = read_weights(path).extra
    if not found and not getattr(distiller.baseline, "beta", 1.0):
        logger.info("%s holds no projectors; none is needed, since UGD.BETA is 0", path)
        return
    problems = [key for key in wanted if key not in found or found[key].shape != wanted[key].shape]
    if problems:
        name = type(distiller.baseline).__name__
        raise UserError(f"{path} lacks what {name} learned in stage 1: {', '.join(problems)}")
    distiller.extra.load_state_dict({key: found[key] for key in wanted})


def previous_stage(cfg: CfgNode, key: str) -> Path:
    """The file that a weight key of ``DISTILLER`` names.

    Raises:
        UserError: saying which key to set or what to train first.
    """
    value = getattr(cfg.DISTILLER, key)
    network = "gallery network (stage 0)" if key == "TEACHER_MODEL_PATH" else "query network (stage 1)"
    if not value:
        raise UserError(f"DISTILLER.{key} is empty; set it to the weights of the {network}")
    path = weight_path(cfg, value)
    if not path.exists():
        raise UserError(
            f"no weights at {path} (DISTILLER.{key}); train the {network} first, or set the key to its file"
        )
    return path


def start_files(cfg: CfgNode) -> dict[str, Path]:
    """The files that a run's stage starts from, by their key in ``DISTILLER``; whether or not they are there."""
    keys = dict.fromkeys((*WEIGHT_KEYS[stage_of(cfg)], "STUDENT_PRETRAIN_PATH"))
    return {key: weight_path(cfg, cfg.DISTILLER[key]) for key in keys if cfg.DISTILLER[key]}


def refuse_other_inputs(before: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    """Do not take a run for the same when the weights it started from, or its images, have changed since.

    Args:
        before: the `fingerprint` in its checkpoint or its metrics.
        now: the one of what its config names now.
        folder: the run's, for the message.

    Raises:
        UserError: naming what changed.
    """
    changes = input_changes(before, now)
    if changes:
        raise UserError(
            f"{folder} holds a run that was made from something else: {'; '.join(changes)}. Put back what it was "
            "made from, choose another OUTPUT_DIR.EXPERIMENT_NAME, start afresh with --resume never, or go on all "
            "the same with --accept-changes"
        )


@dataclass(frozen=True)
class Sizes:
    """(height, width) of every kind of image in a run."""

    identity: tuple[int, int]
    identity_padding: int
    query_test: tuple[int, int]
    gallery_test: tuple[int, int]

    @classmethod
    def of(cls, cfg: CfgNode) -> Sizes:
        """Sizes of the stage that ``cfg`` describes."""
        i, tested = cfg.INPUT, [side_of(cfg, part)[1] for part in ("query", "gallery")]
        if stage_of(cfg) == 2:
            return cls(tuple(i.SIZE_TRAIN), i.PADDING, *tested)
        return cls(tuple(i.STUDENT_SIZE_TRAIN), i.STUDENT_PADDING, *tested)


class Data:
    """Loaders of one run over one dataset, sharing decoded images where ``DATALOADER.CACHE`` says so."""

    def __init__(self, cfg: CfgNode, dataset: RetrievalDataset, ranks: Rank, device: torch.device) -> None:
        self.cfg, self.dataset, self.ranks = cfg, dataset, ranks
        self.sizes = Sizes.of(cfg)
        self.normalize = Normalizer(cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD)
        self._caches: dict[int, ImageCache] = {}
        self._common = {
            "rank": ranks.rank,
            "world_size": ranks.world_size,
            "num_workers": cfg.DATALOADER.NUM_WORKERS,
            "on_bad_image": cfg.DATALOADER.ON_BAD_IMAGE,
            "max_pixels": cfg.DATALOADER.MAX_PIXELS,
            "pin_memory": device.type == "cuda",
        }
        self._training = self._common | {
            "num_instances": cfg.DATALOADER.NUM_INSTANCE,
            "flip_prob": cfg.INPUT.PROB,
            "erase_prob": cfg.INPUT.RE_PROB,
            "seed": cfg.SOLVER.SEED,
        }

    def identity(self) -> BatchLoader:
        """Identity-balanced batches for the network that learns."""
        self._require_statistics("IMS_PER_BATCH")
        train = self.dataset.train
        return identity_loader(
            train,
            size=self.sizes.identity,
            padding=self.sizes.identity_padding,
            batch_size=self.cfg.SOLVER.IMS_PER_BATCH,
            sampler=self.cfg.DATALOADER.SAMPLER,
            cache=self._cache(train),
            **self._training,
        )

    def pairs(self) -> BatchLoader:
        """Two views of each image, for both networks."""
        self._require_statistics("IMS_DISTILLATION_PER_BATCH")
        i, train = self.cfg.INPUT, self.dataset.train
        return pair_loader(
            train,
            low_size=i.STUDENT_SIZE_TRAIN,
            low_padding=i.STUDENT_PADDING,
            high_size=i.TEACHER_SIZE_TRAIN,
            high_padding=i.TEACHER_PADDING,
            batch_size=self.cfg.SOLVER.IMS_DISTILLATION_PER_BATCH,
            sampler=self.cfg.DATALOADER.PAIR_SAMPLER,
            cache=self._cache(train),
            **self._training,
        )

    def test(self, samples: list[Sample], size: tuple[int, int]) -> BatchLoader:
        """Each of ``samples`` once, at the size of the network that embeds it."""
        cache = self._cache(samples)
        return test_loader(samples, size=size, batch_size=self.cfg.TEST.IMS_PER_BATCH, cache=cache, **self._common)

    def _require_statistics(self, key: str) -> None:
        """Refuse a single image a rank, which batch norm, unless it is synchronised, cannot take statistics of."""
        batch, ranks = self.cfg.SOLVER[key], self.ranks.world_size
        if batch // ranks < 2 and not self.cfg.EXPERIMENT.SYNC_BN:
            raise UserError(
                f"SOLVER.{key} {batch} leaves each of {ranks} ranks one image, too few for batch norm; raise it to "
                f"{2 * ranks}, or start fewer ranks"
            )

    def _cache(self, samples: list[Sample]) -> str | ImageCache:
        loader = self.cfg.DATALOADER
        if loader.CACHE != "ram":
            return loader.CACHE
        if id(samples) not in self._caches:
            cache = ImageCache(samples, on_bad_image=loader.ON_BAD_IMAGE, max_pixels=loader.MAX_PIXELS)
            self._caches[id(samples)] = cache
        return self._caches[id(samples)]
