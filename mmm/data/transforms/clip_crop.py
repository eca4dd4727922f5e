"""Cuts crops from the frames of a clip: one box for all frames. Pixels stay uint8 until they are on the device.

Shapes: B samples, T frames, (H, W) of a video, (h, w) of a sample, C channels.
"""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

from mmm.core.rng import Stream, integers, stream
from mmm.data.decode.files import check_resized
from mmm.data.transforms import resize as resizing

SNAP = 3  # pixels; a side that differs from the sample's by at most this is made equal to it, and not resized
# top and left of the 13 places of a crop, in quarters of the space that it leaves: corners, middles of the sides, the middle, and
# the middles of the quarters
PLACES = ((0, 0), (0, 4), (4, 0), (4, 4), (2, 2), (2, 0), (2, 4), (4, 2), (0, 2), (1, 1), (1, 3), (3, 1), (3, 3))


def multi_scale_boxes(keys: Tensor, heights: Tensor, widths: Tensor, size: tuple[int, int], sides: tuple[float, ...]) -> Tensor:
    """Draws VideoMAE's multi-scale crops, which are TSN's (Wang et al., "Temporal Segment Networks", ECCV 2016, section 3.3).

    Height and width are shares of those of the largest box that has the aspect ratio of the sample, equal or neighbours in `sides`
    (10 pairs of 4); the place is one of 13. The box of a square sample has the short side of the video, as in the publications.

    Args:
        keys: (B,).
        heights, widths: heights and widths of the videos, pixels, int64 (B,).
        size: h, w.
        sides: shares, in falling order.

    Returns:
        int64 (B, 4): top, left, height, width.
    """
    pairs = [pair for pair in product(range(len(sides)), repeat=2) if abs(pair[0] - pair[1]) <= 1]
    draws = integers(stream(keys, Stream.CROP), torch.tensor([len(pairs), len(PLACES)]), 2).tolist()  # (B, 2)
    boxes = []
    for (pair, place), *whole in zip(draws, heights.tolist(), widths.tolist(), strict=True):
        largest = min(whole[0], whole[1] * size[0] // size[1]), min(whole[1], whole[0] * size[1] // size[0])
        cuts = [_cut_side(most, sides[i], target) for i, most, target in zip(pairs[pair], largest, size, strict=True)]
        steps = [(side - cut) // 4 for side, cut in zip(whole, cuts, strict=True)]
        boxes.append([*(step * quarters for step, quarters in zip(steps, PLACES[place], strict=True)), *cuts])
    return torch.tensor(boxes)


def _cut_side(largest: int, share: float, target: int) -> int:
    """Returns the side of a crop in pixels: a share of the largest one."""
    side = max(1, int(largest * share))
    return target if abs(side - target) < SNAP and target <= largest else side


def even_boxes(height: int, width: int, size: tuple[int, int], count: int) -> list[list[int]]:
    """Returns the crops of evaluation as (top, left, height, width). They are spread evenly over the longer side of a clip that
    just covers the sample; a single crop is in the middle.
    """
    margins = height - size[0], width - size[1]
    shares = [0.5] if count == 1 else [i / (count - 1) for i in range(count)]
    return [[*(int(share * margin) for margin in margins), *size] for share in shares]


def covering_size(height: int, width: int, size: tuple[int, int]) -> tuple[int, int]:
    """Returns the smallest size in pixels, with the video's aspect ratio, that covers the sample.

    Raises:
        Unreadable: the video is so elongated that the size is too large.
    """
    scale = max(size[0] / height, size[1] / width)
    resized = max(size[0], round(height * scale)), max(size[1], round(width * scale))
    check_resized((height, width), resized)
    return resized


def resize(clip: Tensor, size: tuple[int, int]) -> Tensor:
    """Resizes frames, bilinear and antialiased. uint8 (T, H, W, C) -> (T, h, w, C), the memory layout of decoders."""
    return resizing.resize(clip.permute(0, 3, 1, 2), size, "bilinear").permute(0, 2, 3, 1)


def resize_into(view: Tensor, clip: Tensor) -> None:
    """Resizes frames into an existing tensor. (T, h, w, C) <- (T, H, W, C)."""
    resizing.resize_into(view.permute(0, 3, 1, 2), clip.permute(0, 3, 1, 2), "bilinear")


def cut(clip: Tensor, box: list[int]) -> Tensor:
    """Cuts a box (top, left, height, width) from all frames. (T, H, W, C) -> (T, height, width, C)."""
    top, left, height, width = box
    return clip[:, top : top + height, left : left + width]
