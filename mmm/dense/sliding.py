"""Scores images of any size, in windows of one size (mmsegmentation's rule) or as a whole.

Shapes: B samples, C channels, (H, W) of an image, K classes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Score = Callable[[Tensor], Tensor]  # (B, C, H, W) -> (B, K, H, W)


def window_starts(length: int, window: int) -> list[int]:
    """Returns the starts of windows along an axis, with a stride of two thirds of the window. The last one ends at the edge."""
    stride = max(1, window * 2 // 3)
    count = max(0, -(-(length - window) // stride)) + 1
    return [min(number * stride, length - window) for number in range(count)]


def slide(score: Score, x: Tensor, window: tuple[int, int]) -> Tensor:
    """Averages the scores of overlapping windows, (B, C, H, W) -> (B, K, H, W).

    Raises:
        ValueError: the image is smaller than a window.
    """
    height, width = x.shape[-2:]
    if height < window[0] or width < window[1]:
        raise ValueError(f"an image of {height} x {width} pixels is smaller than the window, {window[0]} x {window[1]}; resize it")
    total: Tensor | None = None
    count = torch.zeros(1, 1, height, width, device=x.device)
    for top in window_starts(height, window[0]):
        for left in window_starts(width, window[1]):
            rows, columns = slice(top, top + window[0]), slice(left, left + window[1])
            scores = score(x[..., rows, columns])
            if total is None:
                total = scores.new_zeros(len(x), scores.shape[1], height, width)
            total[..., rows, columns] += scores
            count[..., rows, columns] += 1
    assert total is not None
    return total / count


def score_image(score: Score, x: Tensor, window: tuple[int, int], token: tuple[int, int], *, whole: bool) -> Tensor:
    """Scores images of any size, (B, C, H, W) -> (B, K, H, W).

    The image is resized so that it just covers a window and keeps its aspect ratio. The scores are resized to the image's original
    size.

    Args:
        score: scores images whose sides are multiples of the token's.
        window: height and width in pixels.
        token: height and width in pixels.
        whole: score the resized image at once; its sides are then rounded to multiples of the token's.
    """
    height, width = x.shape[-2:]
    factor = max(window[0] / height, window[1] / width)
    size = [max(round(side * factor), least) for side, least in zip((height, width), window, strict=True)]
    if whole:
        size = [max(1, round(side / one)) * one for side, one in zip(size, token, strict=True)]
    resized = x if size == [height, width] else F.interpolate(x.float(), size, mode="bicubic", antialias=True, align_corners=False)
    scores = score(resized) if whole else slide(score, resized, window)
    return F.interpolate(scores, (height, width), mode="bilinear", align_corners=False)
