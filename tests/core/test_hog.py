"""Compares histograms of oriented gradients with scikit-image, and with MaskFeat's convention stated pixel by pixel."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from skimage.feature import hog
from torch import Tensor

from mmm import Input
from mmm.targets import HogTarget


def target(size: tuple[int, ...], token: tuple[int, ...], channels: int = 3, **options: int) -> HogTarget:
    data = Input(size=size, channels=channels, mean=(0.5,) * channels, std=(0.5,) * channels)
    return HogTarget(HogTarget.Config(**options), token=token, data=data, encoder=torch.nn.Identity())


def histograms(part: HogTarget, x: Tensor) -> Tensor:
    sides = x.shape[2:] if len(part.token) == x.dim() - 2 else (part.token[0], *x.shape[2:])
    grid = tuple(side // own for side, own in zip(sides, part.token, strict=True))
    return part.teach(x, torch.empty(0), grid).tokens


def test_it_equals_scikit_image_where_both_take_the_same_gradients() -> None:
    """For f(x) + g(y) Sobel's kernels return 4 times the central differences. scikit-image counts bins in the other direction, from
    the vertical; at its border gradients are 0, the limit of two bins."""
    x = torch.randn(1, 1, 1, 40, dtype=torch.float64) + torch.randn(1, 1, 32, 1, dtype=torch.float64)
    ours = histograms(target((32, 40), (8, 8), 1, orientations=8), x).view(4, 5, 8)
    theirs = hog(x[0, 0].numpy(), orientations=8, pixels_per_cell=(8, 8), cells_per_block=(1, 1), block_norm="L2")
    same = torch.from_numpy(theirs).view(4, 5, 8)[..., (3 - torch.arange(8)) % 8]
    assert torch.allclose(ours[1:3, 1:4], same[1:3, 1:4], atol=1e-6)


def test_it_equals_maskfeats_convention_pixel_by_pixel() -> None:
    """A token of 16 pixels has 108 values: channel, orientation, row and column of the cell."""
    x = torch.randn(2, 3, 32, 16, dtype=torch.float64)
    ours = histograms(target((32, 16), (16, 16)), x)
    assert ours.shape == (2, 2, 108)
    padded = np.pad(x.numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)), mode="reflect")
    plain = np.zeros((2, 3, 9, 4, 2))
    for b, c, row, column in np.ndindex(2, 3, 32, 16):
        (tl, t, tr), (le, _, r), (bl, bo, br) = padded[b, c, row : row + 3, column : column + 3]
        across, down = (tl + 2 * le + bl) - (tr + 2 * r + br), (tl + 2 * t + tr) - (bl + 2 * bo + br)  # exactly 0 at the border
        plain[b, c, math.floor(9 * math.atan2(across, down) / math.pi) % 9, row // 8, column // 8] += math.hypot(across, down)
    plain /= np.sqrt((plain**2).sum(2, keepdims=True))
    for token in range(2):
        expected = plain[:, :, :, 2 * token : 2 * token + 2].reshape(2, 108)
        assert np.abs(ours[:, token].numpy() - expected).max() < 1e-12


def test_of_a_tube_the_first_frame_counts() -> None:
    clip = torch.randn(2, 3, 4, 16, 24)
    part = target((4, 16, 24), (2, 8, 8))
    ours = histograms(part, clip)
    assert ours.shape == (2, 12, 27)
    images = target((16, 24), (8, 8))
    for slot, frame in enumerate((0, 2)):
        assert torch.equal(ours[:, 6 * slot : 6 * slot + 6], histograms(images, clip[:, :, frame]))
    assert torch.equal(histograms(part, clip[:, :, 0]), histograms(images, clip[:, :, 0]))  # an image as input of tubes


def test_flat_pixels_are_zero_and_not_a_division_by_zero() -> None:
    assert not histograms(target((16, 16), (8, 8)), torch.ones(1, 3, 16, 16)).any()


def test_a_cell_that_does_not_divide_a_token_is_refused() -> None:
    with pytest.raises(ValueError, match=r"target\.cell 8 does not divide the token's side 12"):
        target((24, 24), (12, 12))
    with pytest.raises(ValueError, match=r"target\.orientations 0"):
        HogTarget.Config(orientations=0)
    with pytest.raises(ValueError, match=r"target\.loss"):
        HogTarget.Config(loss="cross_entropy")
