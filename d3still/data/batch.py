"""A batch of images on its way from the files to a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

# Values normalised at a time on a CPU: on more, mapping fresh memory takes longer than the arithmetic.
_CPU_CHUNK = 2**18


@dataclass
class ImageBatch:
    """B images before normalising.

    Attributes:
        pixels: uint8 (B, 3, H, W).
        erase: int64 (B, 4), the box to erase as top, left, height, width; height 0 = none.
        labels: int64 (B,), the samples' identities.
        indices: int64 (B,), the samples' places in the dataset's list.
        skipped: paths of images that could not be read and were left out or replaced.
    """

    pixels: torch.Tensor
    erase: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor
    skipped: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return self.pixels.shape[0]

    def __getitem__(self, part: slice) -> ImageBatch:
        """The images of a slice; paths of skipped ones belong to the whole."""
        return ImageBatch(*(t[part] for t in self._tensors()))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> ImageBatch:
        """The batch with its tensors on ``device``."""
        moved = (t.to(device, non_blocking=non_blocking) for t in self._tensors())
        return ImageBatch(*moved, skipped=self.skipped)

    def pin_memory(self) -> ImageBatch:
        """The batch in page-locked memory, from which copies to a GPU run asynchronously."""
        return ImageBatch(*(t.pin_memory() for t in self._tensors()), skipped=self.skipped)

    def share_memory(self) -> ImageBatch:
        """The batch in memory that processes share."""
        return ImageBatch(*(t.share_memory_() for t in self._tensors()), skipped=self.skipped)

    def _tensors(self) -> tuple[torch.Tensor, ...]:
        return self.pixels, self.erase, self.labels, self.indices


@dataclass
class PairBatch:
    """The same images as two independently augmented views, one a resolution."""

    low: ImageBatch
    high: ImageBatch

    def __len__(self) -> int:
        return len(self.low)

    @property
    def skipped(self) -> list[str]:
        """Paths of images that could not be read and were replaced."""
        return self.low.skipped

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PairBatch:
        """Both views on ``device``."""
        return PairBatch(self.low.to(device, non_blocking), self.high.to(device, non_blocking))

    def pin_memory(self) -> PairBatch:
        """Both views in page-locked memory."""
        return PairBatch(self.low.pin_memory(), self.high.pin_memory())

    def share_memory(self) -> PairBatch:
        """Both views in memory that processes share."""
        return PairBatch(self.low.share_memory(), self.high.share_memory())


class Normalizer:
    """Pixels to network input: (x / 255 − mean) / std, then erased boxes filled with ``mean``.

    The fill is the mean itself, unnormalised, as the published code applies it after normalising.
    Runs where the batch is, in one batched step without host synchronisation on a GPU.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self._mean = torch.tensor(mean, dtype=torch.float64).view(1, -1, 1, 1)
        self._std = torch.tensor(std, dtype=torch.float64).view(1, -1, 1, 1)

    def __call__(self, batch: ImageBatch, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Images (B, 3, H, W) in ``dtype`` and channels-last memory; computed in at least float32."""
        pixels, device, exact = batch.pixels, batch.pixels.device, torch.promote_types(dtype, torch.float32)
        scale = (1 / (255 * self._std)).to(device, exact)
        offset, fill = (self._mean / self._std).to(device, exact), self._mean.to(device, exact)
        images = torch.empty(pixels.shape, dtype=dtype, device=device, memory_format=torch.channels_last)
        step = len(pixels) if device.type != "cpu" else max(1, _CPU_CHUNK // max(1, pixels[:1].numel()))
        for start in range(0, len(pixels), max(1, step)):
            part = slice(start, start + step)
            # The layout changes last: broadcasting a channel's number over channels-last memory is slow.
            values = pixels[part].to(exact).mul_(scale).sub_(offset)
            images[part] = _erase(values, batch.erase[part], fill)
        return images


def _erase(images: torch.Tensor, boxes: torch.Tensor, fill: torch.Tensor) -> torch.Tensor:
    if boxes.device.type != "cpu":  # reading the boxes would wait for the device
        return torch.where(box_mask(boxes, images.shape[2:]), fill, images)
    for image, (top, left, height, width) in zip(images, boxes.tolist(), strict=True):
        if height:
            image[:, top : top + height, left : left + width] = fill[0]
    return images


def box_mask(boxes: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Boolean (B, 1, H, W), true inside each image's box (top, left, height, width)."""
    top, left, height, width = boxes[:, :, None].unbind(dim=1)
    rows = torch.arange(size[0], device=boxes.device)
    columns = torch.arange(size[1], device=boxes.device)
    inside_rows = (rows >= top) & (rows < top + height)
    inside_columns = (columns >= left) & (columns < left + width)
    return (inside_rows[:, :, None] & inside_columns[:, None, :])[:, None]
