"""What ``tools/train_net.py`` does: one run from its config to its metrics."""

from __future__ import annotations

import json
import logging
import sys
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from yacs.config import CfgNode

from d3still import __version__
from d3still.config import dump_config, run_dir
from d3still.distillers import Distiller
from d3still.engine.distributed import process_group, synchronize_batch_norms, wait_for_main
from d3still.engine.events import logging_to
from d3still.engine.precision import choose_precision
from d3still.engine.query_accuracy import say_query_accuracy
from d3still.engine.recomputation import Recomputation
from d3still.engine.retrieval import Evaluation, evaluate, per_query
from d3still.engine.setup import (
    Data,
    build_distiller,
    load_start_weights,
    open_dataset,
    refuse_other_inputs,
    require_matches,
    start_files,
)
from d3still.engine.step import normalized_pairs
from d3still.engine.step_memory import does_not_fit
from d3still.engine.threads import choose_threads
from d3still.engine.trainer import LoopSettings, Trainer
from d3still.files import write_atomically, write_text
from d3still.runs.facts import stage_of
from d3still.runs.folder import RunFolder
from d3still.runs.inputs import fingerprint
from d3still.solver import build_optimizer, build_schedule

try:
    import resource
except ModuleNotFoundError:  # Windows
    resource = None

logger = logging.getLogger(__name__)


def train(cfg: CfgNode, resume: str = "auto", accept_changes: bool = False) -> Path:
    """Train what ``cfg`` describes, from the start or from where a former run stopped.

    Args:
        cfg: a frozen config from `load_config`.
        resume: ``auto``, ``never``, or the path of a checkpoint.
        accept_changes: go on although the start weights or the images are others than the run was begun with.

    Returns:
        The run's folder, with ``last.pth`` and ``metrics.json``.

    Raises:
        UserError: for whatever the user can put right; the folder is then as it was.
        Preempted: after SIGTERM or SIGINT.
    """
    folder = RunFolder(run_dir(cfg))
    with ExitStack() as stack:
        ranks, device = stack.enter_context(process_group(cfg.EXPERIMENT.DEVICE, cfg.EXPERIMENT.DEVICE_ID))
        stack.enter_context(logging_to(None, quiet=not ranks.is_main))
        if ranks.is_main:
            stack.enter_context(folder.alone())
        wait_for_main()  # no rank looks at the folder before it is this run's
        saved = folder.resumable(cfg, resume)
        dataset = open_dataset(cfg)
        inputs = fingerprint(start_files(cfg), dataset)
        if saved is not None and not accept_changes:
            refuse_other_inputs(saved.get("inputs", {}), inputs, folder.path)
        if folder.is_finished(saved, resume):
            logger.info("%s is finished; --resume never trains it again", folder.path)
            return folder.path
        # what can fail for a reason the user can mend comes before anything is written
        choose_threads(cfg.EXPERIMENT.NUM_THREADS, None if saved is None else saved["progress"].get("threads"))
        require_matches(cfg, dataset)
        distiller = build_distiller(cfg, dataset.num_classes)
        if saved is None:
            load_start_weights(cfg, distiller)
        distiller.to(device, memory_format=torch.channels_last)
        trainer = build_trainer(cfg, distiller, Data(cfg, dataset, ranks, device), folder, device, saved)
        if ranks.is_main:
            folder.begin(cfg, saved, resume, inputs)
            stack.enter_context(logging_to(folder.log))
            if saved is None and stage_of(cfg) == 2:
                pairs = normalized_pairs(trainer.pair_loader, trainer.normalize, device)
                say_query_accuracy(trainer.distiller.query, pairs)
        wait_for_main()  # no rank trains before the folder is ready
        evaluation = trainer.run()
        if ranks.is_main:
            _write_results(cfg, trainer, evaluation, inputs)
        return folder.path


def build_trainer(
    cfg: CfgNode,
    distiller: Distiller,
    data: Data,
    folder: RunFolder,
    device: torch.device,
    saved: dict[str, Any] | None = None,
) -> Trainer:
    """The trainer that ``cfg`` describes; of a fresh run, the optimizer's builder analyses the networks here.

    Args:
        cfg: the frozen config.
        distiller: built, on ``device``, with the start weights of a fresh run.
        data: the run's loaders.
        folder: where the run lives.
        device: where the networks are.
        saved: the checkpoint to go on from; None for a fresh run.
    """
    ranks, x, s = data.ranks, cfg.EXPERIMENT, cfg.SOLVER
    precision = choose_precision(x.PRECISION, device)
    where = f"{device}, {precision.name}" + (f", {ranks.world_size} ranks" if ranks.world_size > 1 else "")
    logger.info("%s on %s", cfg.OUTPUT_DIR.EXPERIMENT_NAME, where)
    if distiller.extra_parameter_count():
        logger.info("%d parameters beside the two networks", distiller.extra_parameter_count())
    identity_loader, pair_loader = data.identity(), data.pairs() if distiller.uses_pairs else None
    recomputation = Recomputation(
        distiller, x.CHECKPOINT_ACTIVATIONS, partial(does_not_fit, cfg, distiller, precision, device)
    )
    if ranks.world_size > 1 and x.SYNC_BN:
        synchronize_batch_norms(distiller.learner_network, distiller.extra)
        recomputation.switch_on()  # ranks that recompute exchange more: all must, from the first step on
    pairs = partial(normalized_pairs, pair_loader, data.normalize, device)
    report = None if saved is None else saved["optimizer_report"]
    if saved is None:
        distiller.prepare(pairs)
    began = time.perf_counter()
    built = build_optimizer(cfg, distiller, pairs, report)
    if built.report and report is None:
        logger.info("block importance measured in %.1f s", time.perf_counter() - began)
    networks = distiller.query, distiller.gallery
    periods = s.LOG_PERIOD, s.EVAL_PERIOD, s.CHECKPOINT_PERIOD, s.CHECKPOINT_STEPS
    identities = {"identity_map": data.dataset.identity_map, "identity_names": data.dataset.identity_names}
    trainer = Trainer(
        distiller,
        built.optimizer,
        build_schedule(cfg),
        identity_loader,
        pair_loader,
        normalize=data.normalize,
        folder=folder,
        loop=LoopSettings(s.MAX_EPOCHS, s.SEED, *periods),
        evaluate=partial(evaluate, cfg, data, *networks, device, draw_hardest=ranks.is_main),
        precision=precision,
        ranks=ranks,
        recomputation=recomputation,
        report=built.report,
        about={"config": dump_config(cfg), **identities},
    )
    if saved is not None:
        trainer.load_state_dict(saved)
    return trainer


def _write_results(cfg: CfgNode, trainer: Trainer, evaluation: Evaluation, inputs: dict[str, Any]) -> None:
    """``per_query.npz``, then ``metrics.json``, whose presence says that the run is finished."""
    folder = trainer.folder
    write_atomically(folder.per_query, lambda file: np.savez_compressed(file, **per_query(evaluation)))
    first = next(iter(evaluation.results.values()))
    metrics = {
        "AIR": None,
        **evaluation.summaries(),
        "seconds": round(trainer.seconds, 1),
        "images_per_second": round(trainer.images / trainer.seconds, 1) if trainer.seconds else None,
        "peak_memory_mib": round(peak_memory(trainer.device) / 2**20),
        "precision": trainer.precision.name,
        "threads": torch.get_num_threads(),
        "seed": cfg.SOLVER.SEED,
        "valid_queries": first.num_valid,
        "unmatched_queries": first.num_unmatched,
        "extra_parameters": trainer.distiller.extra_parameter_count(),
        "optimizer_report": trainer.report,
        "skipped_images": sorted(trainer.skipped),
        "versions": versions(),
        "inputs": inputs,
    }
    write_text(folder.metrics, json.dumps(metrics, indent=1) + "\n")
    logger.info("results in %s", folder.metrics)


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that tensors took on a GPU, or this process on a CPU; 0 where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if resource is None:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def versions() -> dict[str, str]:
    """Versions that a number depends on."""
    return {
        "d3still": __version__,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": np.__version__,
    }
