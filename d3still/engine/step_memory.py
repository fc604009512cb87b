"""The memory that a training step takes, counted without running it (docs/memory.md), and what fits a device.

The step is run with its true batch sizes on fake tensors: PyTorch does everything but the arithmetic,
and a counter follows which storages are alive. So what autograd keeps, what a block needs while it is
recomputed and what the backward pass creates are counted, not guessed. Not seen are the workspaces
inside a kernel, the CUDA context and the allocator's unused remainders; CONTEXT and SLACK stand for
them.
"""

from __future__ import annotations

from typing import Any, NamedTuple
from weakref import finalize

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary
from yacs.config import CfgNode

from d3still.distillers import Distiller
from d3still.engine.precision import DTYPES, Precision
from d3still.modeling import RetrievalModel, build_model
from d3still.runs.facts import side_of

GIB = 2**30
CLASSES = 576  # VeRi-776's training identities
TRIPLET_BATCH = 96
#: Assumed, not measured: GiB of the CUDA context with cuDNN; a tenth for workspaces and fragmentation.
CONTEXT, SLACK = 0.7, 1.1

Size = int | tuple[int, int]


class StepShape(NamedTuple):
    """One step of stage 2 or, with ``learner="query"``, of stage 1; without pairs, of stage 0.

    Sizes are (height, width), or one number for both. A bfloat16 step is an autocast one.
    """

    gallery: str
    gallery_size: Size
    query: str
    query_size: Size
    pair_batch: int
    dtype: torch.dtype = torch.float32
    recompute: bool = False
    triplet_batch: int = TRIPLET_BATCH
    learner: str = "gallery"
    classes: int = CLASSES


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that are alive, and their highest sum."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._note(leaf.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        self._known[storage] = True
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        finalize(storage, self._freed, storage.nbytes())

    def _freed(self, size: int) -> None:
        self.now -= size


def estimated_peak(setting: StepShape) -> int:
    """Bytes alive at the fullest moment of the step, by fake tensors."""
    with torch.device("meta"):
        networks = networks_of(setting)
    with FakeTensorMode(allow_non_fake_inputs=True), LiveBytes() as live:
        learner, frozen = (network.to_empty(device="cpu") for network in networks)
        step(learner, frozen, setting)
    return live.peak


def networks_of(setting: StepShape) -> tuple[RetrievalModel, RetrievalModel]:
    """The network that learns and the one that does not."""
    names = (setting.gallery, setting.query) if setting.learner == "gallery" else (setting.query, setting.gallery)
    learner = build_model(names[0], setting.classes, checkpoint_activations=setting.recompute).train()
    return learner, build_model(names[1], setting.classes).eval().requires_grad_(False)


def step(learner: RetrievalModel, frozen: RetrievalModel, setting: StepShape) -> None:
    """Forward on the triplets and on both views of the pairs, one loss, one backward, with SGD's momentum.

    The loss stands for all of them: what they keep is small beside the activations, but for RKD's B³
    angles (docs/memory.md).
    """
    momentum = [torch.zeros_like(parameter) for parameter in learner.parameters()]
    sizes = [(size, size) if isinstance(size, int) else size for size in (setting.gallery_size, setting.query_size)]
    own, other = sizes if setting.learner == "gallery" else reversed(sizes)
    images = torch.zeros(setting.triplet_batch, 3, *own)
    labels = torch.zeros(setting.triplet_batch, dtype=torch.long)
    with torch.autocast("cpu", torch.bfloat16, enabled=setting.dtype != torch.float32):
        supervised = learner(images)
        loss = F.cross_entropy(supervised.logits, labels) + supervised.pooled_feat.float().square().mean()
        if setting.pair_batch:
            with torch.no_grad():
                target = frozen(torch.zeros(setting.pair_batch, 3, *other))
            learned = learner(torch.zeros(setting.pair_batch, 3, *own))
            loss = loss + F.mse_loss(learned.retrieval_feat.float(), target.retrieval_feat.float())
            loss = loss + F.mse_loss(learned.logits.float(), target.logits.float())
    loss.backward()
    del momentum


def per_image(setting: StepShape) -> tuple[float, float]:
    """(fixed bytes, bytes an image) of the line through the peaks at the setting's batches and at half."""
    half = setting._replace(pair_batch=setting.pair_batch // 2, triplet_batch=setting.triplet_batch // 2)
    images = [s.pair_batch + s.triplet_batch for s in (half, setting)]
    low, high = estimated_peak(half), estimated_peak(setting)
    slope = (high - low) / (images[1] - images[0])
    return high - slope * images[1], slope


def images_that_fit(setting: StepShape, memory: float) -> int:
    """Triplet and pair images together that a device of ``memory`` bytes holds: docs/memory.md's formula."""
    fixed, image = per_image(setting)
    return max(0, int(((memory - CONTEXT * GIB) / SLACK - fixed) / image))


def setting_of(cfg: CfgNode, distiller: Distiller, precision: Precision, recompute: bool = True) -> StepShape:
    """The step of a run, as `estimated_peak` takes it."""
    d, i, (gallery, _) = cfg.DISTILLER, cfg.INPUT, side_of(cfg, "gallery")
    return StepShape(
        d[f"{gallery}_NAME"],
        tuple(i[f"{gallery}_SIZE_TRAIN"]),
        d.STUDENT_NAME,
        tuple(i.STUDENT_SIZE_TRAIN),
        0 if distiller.query is None else cfg.SOLVER.IMS_DISTILLATION_PER_BATCH,
        DTYPES[precision.name],
        recompute,
        cfg.SOLVER.IMS_PER_BATCH,
        distiller.learner,
        distiller.learner_network.num_classes,
    )


def does_not_fit(cfg: CfgNode, distiller: Distiller, precision: Precision, device: torch.device) -> str:
    """One line for a run whose step the memory does not hold: the peak, what fits, which keys to lower."""
    keys = ["SOLVER.IMS_PER_BATCH", "INPUT.*SIZE_TRAIN"]
    if distiller.uses_pairs:
        keys.insert(0, "SOLVER.IMS_DISTILLATION_PER_BATCH")
    recomputes = distiller.learner_network.checkpoint_activations
    advice = "" if recomputes else "set EXPERIMENT.CHECKPOINT_ACTIVATIONS: auto, or "
    text = f"the memory of {device} does not hold a training step{' even with recomputed activations' * recomputes}"
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
        peak = torch.cuda.max_memory_allocated(device)
        text += f" (peak {peak / GIB:.1f} of {memory / GIB:.1f} GiB)"
        text += _by_the_formula(setting_of(cfg, distiller, precision), memory)
    return f"{text}; {advice}lower {', '.join(keys)}"


def _by_the_formula(setting: StepShape, memory: float) -> str:
    try:
        images = images_that_fit(setting, memory)
    except Exception:  # a user's own network may do what fake tensors cannot: the advice holds without the number
        return ""
    return (
        f"; by docs/memory.md's formula {images} images fit with recomputation, "
        f"here are {setting.triplet_batch} + {setting.pair_batch}"
    )
