"""Peak training memory of a stage-2 step, worked out without a GPU and checked on the CPU.

    python benchmarks/memory.py            # the table of docs/memory.md: every VeRi pair
    python benchmarks/memory.py --check    # the same count against what the CPU allocator hands out

The step is run with its true batch sizes on fake tensors: PyTorch does everything but the arithmetic,
and a counter follows which storages are alive. So what autograd keeps, what a block needs while it is
recomputed and what the backward pass creates are counted, not guessed. Not seen are the workspaces
inside a kernel, the CUDA context and the allocator's unused remainders; CONTEXT and SLACK stand for
them.
"""

from __future__ import annotations

import argparse
from typing import NamedTuple
from weakref import finalize

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from d3still.modeling import RetrievalModel, build_model

GIB = 2**30
CLASSES = 576  # VeRi-776's training identities
TRIPLET_BATCH = 96
CARD = 24.0  # GiB
#: Assumed, not measured: GiB of the CUDA context with cuDNN; a tenth for workspaces and fragmentation.
CONTEXT, SLACK = 0.7, 1.1


class Setting(NamedTuple):
    """One stage-2 step. Sizes are heights = widths; a bfloat16 step is an autocast one."""

    gallery: str
    gallery_size: int
    query: str
    query_size: int
    pair_batch: int
    dtype: torch.dtype = torch.float32
    recompute: bool = False
    triplet_batch: int = TRIPLET_BATCH


#: The four pairs of the published VeRi-776 table, and for comparison a published one with Swin.
PAIRS = (
    Setting("ResNet101", 256, "ResNet18", 128, 256),
    Setting("ResNet101", 384, "ResNet18", 128, 128),
    Setting("ResNet101", 256, "MobileNetV3_Small", 128, 256),
    Setting("ResNet101_ibn_a", 256, "ResNet18", 128, 256),
    Setting("Swin_Transformer_V2_Small", 256, "ResNet18", 64, 128),
)
#: Small enough for a CPU, large enough that activations outweigh the weights.
CHECKED = (
    Setting("ResNet18", 128, "ResNet18", 64, 24, triplet_batch=12),
    Setting("ResNet50", 128, "MobileNetV3_Small", 64, 12, triplet_batch=6),
    Setting("ResNet50_ibn_a", 96, "ResNet18", 64, 12, triplet_batch=6),
    Setting("Swin_Transformer_V2_Tiny", 128, "ResNet18", 64, 8, triplet_batch=4),
)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that are alive, and their highest sum."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
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


def estimated_peak(setting: Setting) -> int:
    """Bytes alive at the fullest moment of the step, by fake tensors."""
    with torch.device("meta"):
        networks = networks_of(setting)
    with FakeTensorMode(allow_non_fake_inputs=True), LiveBytes() as live:
        gallery, query = (network.to_empty(device="cpu") for network in networks)
        step(gallery, query, setting)
    return live.peak


def measured_peak(setting: Setting) -> int:
    """Bytes that the CPU allocator had handed out at the fullest moment of the real step."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step(*networks_of(setting), setting)
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def networks_of(setting: Setting) -> tuple[RetrievalModel, RetrievalModel]:
    """The gallery network, which learns, and the query network, which does not."""
    gallery = build_model(setting.gallery, CLASSES, checkpoint_activations=setting.recompute).train()
    return gallery, build_model(setting.query, CLASSES).eval().requires_grad_(False)


def step(gallery: RetrievalModel, query: RetrievalModel, setting: Setting) -> None:
    """Forward on X^t, X^h and X^l, one loss, one backward, with SGD's momentum from the step before.

    The loss stands for all of them: what they keep is small beside the activations, but for RKD's B³
    angles (docs/memory.md).
    """
    momentum = [torch.zeros_like(parameter) for parameter in gallery.parameters()]
    images = torch.zeros(setting.triplet_batch, 3, setting.gallery_size, setting.gallery_size)
    high = torch.zeros(setting.pair_batch, 3, setting.gallery_size, setting.gallery_size)
    low = torch.zeros(setting.pair_batch, 3, setting.query_size, setting.query_size)
    labels = torch.zeros(setting.triplet_batch, dtype=torch.long)
    with torch.autocast("cpu", torch.bfloat16, enabled=setting.dtype == torch.bfloat16):
        supervised = gallery(images)
        with torch.no_grad():
            target = query(low)
        learner = gallery(high)
        loss = F.cross_entropy(supervised.logits, labels) + supervised.pooled_feat.float().square().mean()
        loss = loss + F.mse_loss(learner.retrieval_feat.float(), target.retrieval_feat.float())
        loss = loss + F.mse_loss(learner.logits.float(), target.logits.float())
    loss.backward()
    del momentum


def variants(setting: Setting) -> list[Setting]:
    """Both precisions, each with and without recomputation."""
    return [
        setting._replace(dtype=dtype, recompute=recompute)
        for dtype in (torch.float32, torch.bfloat16)
        for recompute in (False, True)
    ]


def per_image(setting: Setting) -> tuple[float, float]:
    """(fixed bytes, bytes an image) of the line through the peaks at the setting's batches and at half."""
    half = setting._replace(pair_batch=setting.pair_batch // 2, triplet_batch=setting.triplet_batch // 2)
    images = [s.pair_batch + s.triplet_batch for s in (half, setting)]
    low, high = estimated_peak(half), estimated_peak(setting)
    slope = (high - low) / (images[1] - images[0])
    return high - slope * images[1], slope


def print_table() -> None:
    print("| gallery ← query | X^t + pair | precision | recompute | fixed, MiB | an image, MiB | peak, GiB | card |")
    print("|---|---|---|---|---|---|---|---|")
    for setting in (variant for pair in PAIRS for variant in variants(pair)):
        fixed, slope = per_image(setting)
        peak = (fixed + slope * (setting.pair_batch + setting.triplet_batch)) / GIB
        card = peak * SLACK + CONTEXT
        print(
            f"| {setting.gallery} {setting.gallery_size} ← {setting.query} {setting.query_size} "
            f"| {setting.triplet_batch} + {setting.pair_batch} | {_name(setting.dtype)} "
            f"| {'yes' if setting.recompute else 'no'} | {fixed / 2**20:.0f} | {slope / 2**20:.1f} | {peak:.1f} "
            f"| {card:.1f} GiB, {'fits' if card <= CARD else 'too large'} |"
        )


def print_check() -> None:
    print("| gallery | images | precision | recompute | estimated, MiB | measured, MiB | measured / estimated |")
    print("|---|---|---|---|---|---|---|")
    for setting in (variant for pair in CHECKED for variant in variants(pair)):
        estimated, measured = estimated_peak(setting) / 2**20, measured_peak(setting) / 2**20
        print(
            f"| {setting.gallery} {setting.gallery_size} | {setting.triplet_batch} + {setting.pair_batch} "
            f"| {_name(setting.dtype)} | {'yes' if setting.recompute else 'no'} "
            f"| {estimated:.0f} | {measured:.0f} | {measured / estimated:.3f} |"
        )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare the count with the CPU allocator's")
    print_check() if parser.parse_args().check else print_table()
