"""Crops, flips and normalisation: torchvision's statistics and pixels, which do not depend on the batch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import ks_2samp
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.v2 import CenterCrop, Compose, Resize

from mmm.core.rng import sample_keys
from mmm.data.errors import Unreadable
from mmm.data.transforms import clip_crop
from mmm.data.transforms.crop import (
    SMALL_SIDE,
    center_crop,
    crop_boxes,
    crop_small,
    decode_hint,
    flip,
    is_small,
    lighting,
    normalise,
    resized_crop,
)

SCALE, RATIO = (0.2, 1.0), (3 / 4, 4 / 3)


def draw(count: int, height: int, width: int) -> torch.Tensor:
    keys = sample_keys(1, 0, torch.arange(count))
    return crop_boxes(keys, torch.full((count,), height), torch.full((count,), width), SCALE, RATIO)


@pytest.mark.parametrize(("height", "width"), [(375, 500), (32, 32), (300, 90)])
def test_boxes_are_distributed_as_torchvisions(height: int, width: int) -> None:
    mine = draw(3000, height, width).double()
    image = torch.empty(1, height, width)
    theirs = torch.tensor([RandomResizedCrop.get_params(image, list(SCALE), list(RATIO)) for _ in range(3000)]).double()
    for statistic in (
        lambda box: box[:, 2] * box[:, 3],
        lambda box: box[:, 3] / box[:, 2],
        lambda box: box[:, 0],
        lambda box: box[:, 1],
    ):
        assert ks_2samp(statistic(mine).numpy(), statistic(theirs).numpy()).pvalue > 1e-3


def test_boxes_lie_in_the_image_whatever_its_shape() -> None:
    keys = sample_keys(0, 0, torch.arange(4000))
    heights, widths = (torch.randint(1, 60, (4000,)) for _ in range(2))
    top, left, height, width = crop_boxes(keys, heights, widths, SCALE, RATIO).unbind(1)
    assert (torch.stack([top, left]) >= 0).all()
    assert (torch.stack([height, width]) >= 1).all()
    assert (top + height <= heights).all()
    assert (left + width <= widths).all()


@pytest.mark.parametrize(("height", "width"), [(10, 400), (400, 10)])
def test_no_box_fits_a_strip_so_its_middle_is_taken_as_torchvision_does(height: int, width: int) -> None:
    want = RandomResizedCrop.get_params(torch.empty(1, height, width), list(SCALE), list(RATIO))
    assert draw(20, height, width).tolist() == [list(want)] * 20


def test_a_box_depends_on_its_sample_alone() -> None:
    keys = sample_keys(0, 3, torch.arange(50))
    heights, widths = torch.arange(50) + 20, torch.arange(50) * 2 + 11
    together = crop_boxes(keys, heights, widths, SCALE, RATIO)
    single = [crop_boxes(keys[i : i + 1], heights[i : i + 1], widths[i : i + 1], SCALE, RATIO) for i in range(50)]
    assert torch.equal(together, torch.cat(single))


def cropped(image: NDArray[np.uint8], box: list[int], size: tuple[int, int]) -> Tensor:
    sample = torch.empty(image.shape[2], *size, dtype=torch.uint8)
    resized_crop(image, box, sample)
    return sample


@pytest.mark.parametrize(
    ("height", "width", "channels", "size"), [(32, 32, 3, (32, 32)), (48, 40, 1, (32, 32)), (9, 30, 4, (48, 20))]
)
def test_small_crops_are_bit_for_bit_the_large_ones(height: int, width: int, channels: int, size: tuple[int, int]) -> None:
    assert is_small(height, width, size)
    images = torch.randint(0, 256, (200, height, width, channels), dtype=torch.uint8)
    images[:100] = images[:100] // 128 * 255  # hard edges overshoot, so that clipping matters
    boxes = draw(200, height, width)
    one_by_one = [cropped(image.numpy(), box, size) for image, box in zip(images, boxes.tolist(), strict=True)]
    assert torch.equal(crop_small(images, boxes, size), torch.stack(one_by_one))
    assert torch.equal(crop_small(images[7:9], boxes[7:9], size), torch.stack(one_by_one[7:9]))


def test_what_would_not_be_exact_is_not_small() -> None:
    assert not is_small(SMALL_SIDE + 1, 32, (32, 32))
    assert not is_small(48, 48, (16, 16))  # weights of a strong reduction have more bits than float32 sums exactly


def test_crops_are_pillows_to_rounding() -> None:
    image = np.array(Image.effect_noise((90, 70), 60).resize((180, 140)).convert("RGB"))
    want = np.asarray(Image.fromarray(image[10:110, 20:140]).resize((64, 48), Image.Resampling.BICUBIC))
    got = cropped(image, [10, 20, 100, 120], (48, 64)).permute(1, 2, 0).numpy()
    assert np.abs(got.astype(int) - want).max() <= 1


@pytest.mark.parametrize(("size", "resized"), [(224, 256), (192, 219), (240, 240), (448, 448)])
@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 333), (80, 100), (256, 256)])
def test_evaluation_sees_what_mae_s_transform_shows(height: int, width: int, size: int, resized: int) -> None:
    """MAE resizes to 256/224 of the input size up to 224 pixels, and to the input size above."""
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    usual = Compose([Resize(resized, InterpolationMode.BICUBIC, antialias=True), CenterCrop(size)])
    want = usual(torch.from_numpy(image).permute(2, 0, 1))
    assert torch.equal(center_crop(image, (size, size)), want)


def test_small_samples_are_evaluated_without_a_margin() -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert torch.equal(center_crop(image, (32, 32)), torch.from_numpy(image).permute(2, 0, 1))
    assert center_crop(image[:, :20], (24, 48)).shape == (3, 24, 48)
    assert center_crop(image[:3], (128, 64)).shape == (3, 128, 64)


@pytest.mark.parametrize(("height", "width"), [(1, 20000), (20000, 1)])
def test_an_elongated_image_is_refused_before_it_is_resized(height: int, width: int) -> None:
    """The image is resized as a whole: a side of 1 pixel to 64, and a side of 20,000 to 1,280,000."""
    large = f"{64 * height} x {64 * width}"
    reason = f"{height} x {width} pixels become {large} when they are resized, more than the limit of 50,000,000 pixels"
    with pytest.raises(Unreadable, match=reason):
        center_crop(np.zeros((height, width, 3), np.uint8), (64, 64))
    with pytest.raises(Unreadable, match=reason):
        clip_crop.covering_size(height, width, (64, 64))
    assert center_crop(np.zeros((height, width, 3), np.uint8), (16, 16)).shape == (3, 16, 16)


def test_a_hinted_image_is_never_enlarged_by_its_smallest_crop() -> None:
    hint = decode_hint((224, 224), SCALE, RATIO)
    boxes = draw(5000, hint, hint)
    assert hint == 579
    assert boxes[:, 2:].min() >= 223  # up to rounding


def test_flips_follow_the_key() -> None:
    x, keys = torch.arange(4000.0).reshape(1000, 1, 2, 2), sample_keys(0, 0, torch.arange(1000))
    flipped = (flip(x, keys, 0.5) != x).flatten(1).any(1)
    assert 430 < flipped.sum() < 570
    assert torch.equal(flip(x, keys, 0.5)[flipped], x[flipped].flip(-1))
    assert torch.equal(flip(x[3:9], keys[3:9], 0.5), flip(x, keys, 0.5)[3:9])
    assert torch.equal(flip(x, keys, 0.0), x)
    assert torch.equal(flip(x, keys, 1.0), x.flip(-1))


def test_lighting_keeps_the_range_and_follows_the_key() -> None:
    x, keys = torch.randint(0, 256, (300, 1, 8, 8)).float(), sample_keys(0, 0, torch.arange(300))
    lit = lighting(x, keys, 0.4)
    assert lit.min() >= 0
    assert lit.max() <= 255
    brightness = lit.mean((1, 2, 3)) / x.mean((1, 2, 3))
    assert 0.6 <= brightness.min() < 0.65
    assert 1.2 < brightness.max() <= 1.4
    assert torch.allclose(lighting(x[5:6], keys[5:6], 0.4), lit[5:6])
    assert torch.allclose(lighting(x, keys, 0.0), x, atol=1e-4)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 3, 6, 4, 5)])
def test_normalise(shape: tuple[int, ...]) -> None:
    x = torch.randint(0, 256, shape, dtype=torch.uint8)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    want = torch.stack([(x[:, c].double() / 255 - mean[c]) / std[c] for c in range(3)], 1)
    got = normalise(x, mean, std)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), want, rtol=0, atol=1e-6)
    assert math.isclose(float(normalise(x[:, :1], (0.5,), (0.5,)).max()), float(x[:, 0].max()) / 127.5 - 1, abs_tol=1e-6)
