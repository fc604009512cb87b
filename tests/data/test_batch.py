"""Batches and the normalising step, against torchvision's transforms."""

import pickle

import numpy as np
import pytest
import torch
from torchvision.transforms import functional as tvf

from d3still.data import ImageBatch, Normalizer, PairBatch
from d3still.data.batch import _erase, box_mask

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def batch(count=5, height=12, width=10, erase=True):
    generator = torch.Generator().manual_seed(0)
    boxes = torch.tensor([[2, 3, 4, 5], [0, 0, 0, 0], [0, 0, 11, 9], [11, 9, 1, 1], [0, 0, 0, 7]])[:count]
    return ImageBatch(
        pixels=torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator),
        erase=boxes if erase else torch.zeros_like(boxes),
        labels=torch.arange(count),
        indices=torch.arange(count) + 100,
        skipped=["gone.jpg"],
    )


def expected(images):
    """Image by image with torchvision's functions: to tensor, normalise, then erase with the mean."""
    out = []
    for pixels, (top, left, height, width) in zip(images.pixels, images.erase.tolist(), strict=True):
        image = tvf.normalize(pixels.double() / 255, MEAN, STD)
        if height:
            fill = torch.tensor(MEAN, dtype=torch.float64)[:, None, None]
            image = tvf.erase(image, top, left, height, width, fill.expand(3, height, width))
        out.append(image)
    return torch.stack(out)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 1e-6), (torch.float64, 1e-12), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)],
)
def test_normalizer_is_torchvisions_normalise_then_erase(dtype, tolerance):
    images = Normalizer(MEAN, STD)(batch(), dtype)
    assert images.dtype == dtype
    assert images.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(images.double(), expected(batch()), rtol=0, atol=tolerance)


def test_erased_boxes_hold_the_mean_itself():
    images = Normalizer(MEAN, STD)(batch())
    torch.testing.assert_close(images[0, :, 2:6, 3:8], torch.tensor(MEAN)[:, None, None].expand(3, 4, 5))


def test_without_erasing_and_without_images():
    plain = batch(erase=False)
    torch.testing.assert_close(Normalizer(MEAN, STD)(plain).double(), expected(plain), rtol=0, atol=1e-6)
    empty = ImageBatch(*(t[:0] for t in (plain.pixels, plain.erase, plain.labels, plain.indices)))
    assert Normalizer(MEAN, STD)(empty).shape == (0, 3, 12, 10)


def test_the_devices_way_of_erasing_is_the_cpus():
    images, boxes = torch.rand(5, 3, 12, 10), batch().erase
    fill = torch.tensor(MEAN).view(1, 3, 1, 1)
    masked = torch.where(box_mask(boxes, (12, 10)), fill, images)
    torch.testing.assert_close(_erase(images.clone(), boxes, fill), masked, rtol=0, atol=0)


def test_pixels_are_left_as_they_were():
    images = batch()
    before = images.pixels.clone()
    Normalizer(MEAN, STD)(images)
    assert torch.equal(images.pixels, before)


def test_moving_and_pickling_keep_everything():
    pair = PairBatch(batch(), batch(count=5, height=24))
    for moved in (pair.to("cpu"), pickle.loads(pickle.dumps(pair))):
        assert len(moved) == 5 and moved.skipped == ["gone.jpg"]
        for one, other in ((moved.low, pair.low), (moved.high, pair.high)):
            for name in ("pixels", "erase", "labels", "indices"):
                assert torch.equal(getattr(one, name), getattr(other, name))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu():
    pinned = PairBatch(batch(), batch()).pin_memory()
    assert pinned.low.pixels.is_pinned()
    images = Normalizer(MEAN, STD)(pinned.low.to("cuda", non_blocking=True))
    np.testing.assert_allclose(images.cpu().double().numpy(), expected(batch()).numpy(), atol=1e-6)
