"""What ``tools/train_net.py`` does: one run from its config to its metrics."""

from __future__ import annotations

import io
import json
import logging
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from yacs.config import CfgNode

from d3still import __version__
from d3still.config import run_dir
from d3still.data import RetrievalDataset
from d3still.engine.distributed import Rank, from_main, process_group
from d3still.engine.events import logging_to
from d3still.engine.precision import choose_precision
from d3still.engine.query_accuracy import say_query_accuracy
from d3still.engine.retrieval import Evaluation, per_query
from d3still.engine.setup import (
    Data,
    build_distiller,
    load_start_weights,
    open_dataset,
    refuse_other_inputs,
    require_matches,
    start_files,
)
from d3still.engine.threads import choose_threads
from d3still.engine.trainer import Trainer
from d3still.files import write_atomically, write_text
from d3still.runs.facts import stage_of
from d3still.runs.folder import RunFolder
from d3still.runs.inputs import fingerprint

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
        from_main(None)  # no rank looks at the folder before it is this run's
        saved = folder.resumable(cfg, resume)
        dataset = open_dataset(cfg)
        inputs = fingerprint(start_files(cfg), dataset)
        if saved is not None and not accept_changes:
            refuse_other_inputs(saved.get("inputs", {}), inputs, folder.path)
        if folder.is_finished(saved, resume):
            logger.info("%s is finished; --resume never trains it again", folder.path)
            return folder.path
        trainer = _prepare(cfg, folder, dataset, saved, ranks, device)
        if ranks.is_main:
            folder.begin(cfg, saved, resume, inputs)
            stack.enter_context(logging_to(folder.log))
            if saved is None and stage_of(cfg) == 2:
                say_query_accuracy(trainer.distiller.query, trainer.pairs())
        from_main(None)  # no rank trains before the folder is ready
        evaluation = trainer.run()
        if ranks.is_main:
            _write_results(trainer, evaluation, inputs)
        return folder.path


def _prepare(
    cfg: CfgNode,
    folder: RunFolder,
    dataset: RetrievalDataset,
    saved: dict[str, Any] | None,
    ranks: Rank,
    device: torch.device,
) -> Trainer:
    """Everything that can fail for a reason the user can mend, before anything is written."""
    precision = choose_precision(cfg.EXPERIMENT.PRECISION, device)
    choose_threads(cfg.EXPERIMENT.NUM_THREADS, None if saved is None else saved["progress"].get("threads"))
    require_matches(cfg, dataset)
    distiller = build_distiller(cfg, dataset.num_classes)
    if saved is None:
        load_start_weights(cfg, distiller)
    distiller.to(device, memory_format=torch.channels_last)
    where = f"{device}, {precision.name}" + (f", {ranks.world_size} ranks" if ranks.world_size > 1 else "")
    logger.info("%s on %s", cfg.OUTPUT_DIR.EXPERIMENT_NAME, where)
    if distiller.extra_parameter_count():
        logger.info("%d parameters beside the two networks", distiller.extra_parameter_count())
    data = Data(cfg, dataset, ranks, device)
    return Trainer(cfg, distiller, data, folder, precision, ranks, device, saved)


def _write_results(trainer: Trainer, evaluation: Evaluation, inputs: dict[str, Any]) -> None:
    """``per_query.npz``, then ``metrics.json``, whose presence says that the run is finished."""
    folder, cfg = trainer.folder, trainer.cfg
    write_atomically(folder.per_query, lambda file: file.write(_npz(per_query(evaluation))))
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
        "optimizer_report": trainer.built.report,
        "skipped_images": sorted(trainer.skipped),
        "versions": versions(),
        "inputs": inputs,
    }
    write_text(folder.metrics, json.dumps(metrics, indent=1) + "\n")
    logger.info("results in %s", folder.metrics)


def _npz(arrays: dict[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


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
