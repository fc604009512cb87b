"""Resize, random draws and the flip-pad-crop copy, against Pillow, torchvision and hand-made cases."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import RandomErasing
from torchvision.transforms import functional as tvf

from d3still.data.draws import splitmix64, uniforms
from d3still.data.transforms import ERASE_AREA, ERASE_RATIO, View, draw_boxes, place, resize
from tests.data.helpers import picture


@pytest.mark.parametrize("source", [(300, 300), (480, 640), (33, 57), (100, 20)])
@pytest.mark.parametrize("size", [(256, 256), (128, 128), (64, 48), (320, 160)])
def test_resize_is_pillows_within_two_levels(source, size):
    noise = np.random.default_rng(0).integers(-20, 21, (*source, 3))
    pixels = np.clip(np.asarray(picture(*source)).astype(int) + noise, 0, 255).astype(np.uint8)
    expected = np.asarray(Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BILINEAR))
    found = resize(torch.from_numpy(pixels).permute(2, 0, 1), size)
    assert found.dtype == torch.uint8 and found.shape == (3, *size)
    difference = np.abs(found.permute(1, 2, 0).numpy().astype(int) - expected)
    assert difference.mean() < 0.5  # the promise is 2 of 255 on average
    assert difference.max() <= 2


def test_resize_to_the_same_size_changes_nothing():
    image = torch.randint(0, 256, (3, 7, 9), dtype=torch.uint8)
    torch.testing.assert_close(resize(image, (7, 9)), image)


def test_splitmix64_reference_outputs():
    # First outputs of the reference implementation for seed 1234567.
    states = np.uint64(1234567) + np.arange(3, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    assert splitmix64(states).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_uniforms_are_uniform_and_independent():
    numbers = uniforms(2024, 3, 1, range(4000), 8)
    assert numbers.shape == (4000, 8)
    assert numbers.min() >= 0 and numbers.max() < 1
    assert np.allclose(numbers.mean(0), 0.5, atol=0.02)
    correlation = np.corrcoef(np.concatenate([numbers[:-1], numbers[1:]], axis=1).T)
    assert np.abs(correlation - np.eye(16)).max() < 0.07


@pytest.mark.parametrize("other", [(2025, 3, 1), (2024, 4, 1), (2024, 3, 2), (-1, 3, 1)])
def test_uniforms_differ_in_every_part_of_the_key(other):
    first, second = uniforms(2024, 3, 1, range(2000), 2), uniforms(*other, range(2000), 2)
    assert abs(np.corrcoef(first[:, 0], second[:, 0])[0, 1]) < 0.08


def test_uniforms_follow_from_the_position_alone():
    whole = uniforms(1, 2, 3, range(100), 5)
    np.testing.assert_array_equal(uniforms(1, 2, 3, [70, 4, 99], 5), whole[[70, 4, 99]])


def test_place_equals_flip_pad_crop():
    image = torch.randint(1, 256, (3, 6, 8), dtype=torch.uint8)
    padding = 3
    for flip in (False, True):
        for down in range(-padding, padding + 1):
            for right in range(-padding, padding + 1):
                target = np.zeros((3, 6, 8), dtype=np.uint8)
                place(image.numpy(), target, flip, down, right)
                flipped = image.flip(2) if flip else image
                padded = torch.nn.functional.pad(flipped, [padding] * 4)
                expected = tvf.crop(padded, padding + down, padding + right, 6, 8)
                np.testing.assert_array_equal(target, expected.numpy())


@given(height=st.integers(1, 9), width=st.integers(1, 9), down=st.integers(-12, 12), right=st.integers(-12, 12))
@settings(max_examples=60, deadline=None)
def test_place_with_padding_wider_than_the_image(height, width, down, right):
    image = torch.randint(1, 256, (3, height, width), dtype=torch.uint8)
    target = np.zeros((3, height, width), dtype=np.uint8)
    place(image.numpy(), target, False, down, right)
    padded = torch.nn.functional.pad(image, [12] * 4)
    expected = tvf.crop(padded, 12 + down, 12 + right, height, width)
    np.testing.assert_array_equal(target, expected.numpy())


def test_draws_have_the_stated_probabilities_and_ranges():
    draws = View((64, 48), padding=4, flip_prob=0.5, erase_prob=0.3).draw(0, 0, range(5000))
    assert draws.flips.mean() == pytest.approx(0.5, abs=0.03)
    assert (draws.boxes[:, 2] > 0).mean() == pytest.approx(0.3, abs=0.03)
    for column in draws.shifts.T:
        assert sorted(np.unique(column)) == list(range(-4, 5))
        assert np.bincount(column + 4) / 5000 == pytest.approx(1 / 9, abs=0.02)


def test_views_and_epochs_draw_independently():
    def shifts(stream, epoch):
        return View((64, 64), 8, 0.5, 0.5, stream).draw(0, epoch, range(500)).shifts

    assert (shifts(1, 0) == shifts(2, 0)).mean() < 0.2
    assert (shifts(1, 0) == shifts(1, 1)).mean() < 0.2


def test_nothing_is_drawn_without_randomness():
    draws = View((8, 8)).draw(0, 0, range(50))
    assert not draws.flips.any() and not draws.shifts.any() and not draws.boxes.any()
    always = View((64, 64), 0, 1.0, 1.0).draw(0, 0, range(200))
    assert always.flips.all() and (always.boxes[:, 2] > 0).mean() > 0.99


def test_erased_boxes_have_torchvisions_distribution():
    size = (64, 48)
    boxes = draw_boxes(np.random.default_rng(0).random((4000, 40)), size).astype(float)
    top, left, height, width = boxes.T
    assert (top >= 0).all() and (left >= 0).all()
    assert (top + height <= size[0]).all() and (left + width <= size[1]).all()
    torch.manual_seed(0)
    image = torch.zeros(3, *size)
    theirs = np.array(
        [RandomErasing.get_params(image, ERASE_AREA, ERASE_RATIO, [0.0])[:4] for _ in range(4000)], dtype=float
    )
    ours = np.stack([top, left, height, width], axis=1)
    np.testing.assert_allclose(ours.mean(0), theirs.mean(0), rtol=0.05)
    np.testing.assert_allclose(ours.std(0), theirs.std(0), rtol=0.05)
    areas, their_areas = height * width, theirs[:, 2] * theirs[:, 3]
    deciles = [0.1, 0.5, 0.9]
    np.testing.assert_allclose(np.quantile(areas, deciles), np.quantile(their_areas, deciles), rtol=0.08)


def test_an_image_too_small_for_any_box_is_left_whole():
    boxes = draw_boxes(np.random.default_rng(0).random((20, 40)), (1, 1))
    assert not (boxes[:, 2] * boxes[:, 3]).any()
