"""Between two gallery networks: weights interpolated from stage 0 to stage 2, to give part of the way back.

Wortsman et al., "Robust fine-tuning of zero-shot models" (WiSE-FT), CVPR 2022.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy

from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from yacs.config import CfgNode

from d3still.engine.finished_run import LoadedRun
from d3still.engine.setup import previous_stage
from d3still.errors import UserError
from d3still.modeling import load_weights
from d3still.modeling.inference import exact_inference


def interpolated(start: Mapping[str, Tensor], end: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """``start`` + ``share`` · (``end`` − ``start``) of two state dicts of one network.

    Counters are the end's. With batch norm the statistics fit no longer and have to be computed again.
    """
    return {
        key: value.lerp(end[key], share) if value.is_floating_point() else end[key]  # exact at 0 and at 1
        for key, value in start.items()
    }


def merged_galleries(cfg: CfgNode, run: LoadedRun, shares: Sequence[float]) -> Iterator[tuple[float, nn.Module]]:
    """The gallery network at each share of the way from stage 0 (0) to stage 2 (1); beyond 1 it goes on.

    Batch-norm statistics are those of the training images at the gallery's test size, without augmentation, also at
    0 and 1: they alone move AIR and SIR (docs/results/beyond.md), so that a curve needs the same at all its points.

    Args:
        cfg: of a stage-2 run; its TEACHER_MODEL_PATH is the way's start.
        run: that run, loaded; it is left as it is.
        shares: of the way.

    Raises:
        UserError: when the weights of stage 0 are missing or fit no longer, or there are several ranks.
    """
    if run.data.ranks.world_size > 1:
        raise UserError("each rank would see other training images, and other statistics; start it without torchrun")
    end = run.distiller.gallery
    start = deepcopy(end)
    load_weights(start, previous_stage(cfg, "TEACHER_MODEL_PATH"), part="gallery", purpose="resume")
    for share in shares:
        network = deepcopy(end)
        network.load_state_dict(interpolated(start.state_dict(), end.state_dict(), share))
        take_statistics(network, run)
        yield share, network


def take_statistics(network: nn.Module, run: LoadedRun) -> None:
    """Set a gallery network's batch-norm statistics to those of the run's training images, as they are tested."""
    batches = run.data.test(run.data.dataset.train, run.data.sizes.gallery_test).epoch(0, 0)
    images = (run.data.normalize(batch.to(run.device)) for batch in batches)
    with exact_inference():  # but in train mode
        update_bn(images, network, run.device)
    network.eval()
