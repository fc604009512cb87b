"""What a run made, loaded again: tested, AIR and SIR out, or its features to look at."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from yacs.config import CfgNode

from d3still.config import run_dir, weight_path
from d3still.distillers import Distiller
from d3still.engine.distributed import process_group
from d3still.engine.events import logging_to
from d3still.engine.retrieval import Evaluation, evaluate, extract_part
from d3still.engine.setup import Data, build_distiller, open_dataset, previous_stage
from d3still.errors import UserError
from d3still.evaluation.lists import Embedded
from d3still.modeling import load_weights, read_weights
from d3still.runs.facts import stage_of
from d3still.runs.folder import RunFolder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedRun:
    """A run's two networks with their weights, on ``device``, and its data."""

    distiller: Distiller
    data: Data
    device: torch.device


@contextmanager
def open_run(cfg: CfgNode) -> Iterator[LoadedRun]:
    """Load what a run made, for testing or looking at it; within torchrun, on every rank.

    Raises:
        UserError: when there are no weights, or they do not fit.
    """
    with ExitStack() as stack:
        ranks, device = stack.enter_context(process_group(cfg.EXPERIMENT.DEVICE, cfg.EXPERIMENT.DEVICE_ID))
        stack.enter_context(logging_to(None, quiet=not ranks.is_main))
        dataset = open_dataset(cfg)
        distiller = build_distiller(cfg, dataset.num_classes)
        load_test_weights(cfg, distiller)
        distiller.to(device, memory_format=torch.channels_last)
        yield LoadedRun(distiller, Data(cfg, dataset, ranks, device), device)


def test(cfg: CfgNode, query_network: Callable[[LoadedRun], nn.Module] | None = None) -> Evaluation:
    """Evaluate a run's ``last.pth``, or the checkpoint that ``TEST.WEIGHTS`` names.

    Nothing is downloaded. A classifier of another width is dropped, and said to be.

    Args:
        cfg: the run's config.
        query_network: gives a network to be tested in the place of the run's query network.

    Raises:
        UserError: when there are no weights, or they do not fit.
    """
    with open_run(cfg) as run:
        query = query_network(run) if query_network else run.distiller.query
        return evaluate(cfg, run.data, query, run.distiller.gallery, run.device)


def embed(cfg: CfgNode, protocol: str) -> Embedded:
    """Embed the dataset's queries and gallery with a run's networks, as its evaluation does.

    Args:
        cfg: the run's config.
        protocol: AIR (queries by the query network) or SIR (by the gallery network).

    Raises:
        UserError: when weights or images are missing.
    """
    with open_run(cfg) as run:
        data, distiller, sizes = run.data, run.distiller, run.data.sizes
        asking = {"AIR": (distiller.query, sizes.query_test), "SIR": (distiller.gallery, sizes.gallery_test)}
        network, size = asking[protocol]
        if network is None:
            raise UserError("stage 0 has no query network, so there is no AIR to show; ask for SIR")
        query, _ = extract_part(cfg, data, network, data.dataset.query, size, run.device)
        gallery, _ = extract_part(cfg, data, distiller.gallery, data.dataset.gallery, sizes.gallery_test, run.device)
    return Embedded(query, gallery, size)


def load_test_weights(cfg: CfgNode, distiller: Distiller) -> None:
    """Weights of both networks, from ``TEST.WEIGHTS``, else the run's own ``last.pth``.

    A file that holds one network only is the learner's, and the other comes from where its stage takes it
    (``TEACHER_MODEL_PATH``, ``STUDENT_PRETRAIN_PATH``).
    """
    path = weight_path(cfg, cfg.TEST.WEIGHTS) if cfg.TEST.WEIGHTS else RunFolder(run_dir(cfg)).last
    if not path.exists():
        raise UserError(f"no weights at {path}; train this config first, or set TEST.WEIGHTS to a checkpoint")
    logger.info("testing %s", path)
    held = read_weights(path).networks()
    networks = {"query": distiller.query, "gallery": distiller.gallery}
    keys = {"query": "STUDENT_PRETRAIN_PATH", "gallery": "TEACHER_MODEL_PATH"}
    for side, network in networks.items():
        if network is None:
            continue
        elsewhere = len(held) == 1 and stage_of(cfg) > 0 and side != distiller.learner
        source = previous_stage(cfg, keys[side]) if elsewhere else path
        load_weights(network, source, part=side, purpose="test")
