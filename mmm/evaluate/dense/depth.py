"""Errors of depth maps: computed for each image, then averaged over the images.

Shapes: (H, W) of an image.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmm.data import Problem
from mmm.data.annotated.maps import metres_of, split_planes
from mmm.data.annotated.pixels import LabelledPixels
from mmm.data.transforms.crop import normalise
from mmm.dense.bins import depth_of
from mmm.dense.segmenter import Segmenter
from mmm.evaluate.batches import all_gather, check_read, read_batches

NAMES = ("delta1", "rmse", "absrel")


def depth_errors(depth: Tensor, truth: Tensor) -> Tensor:
    """Computes the share of pixels with a ratio below 1.25, the root mean squared error in metres, and the mean relative error.

    Args:
        depth: predicted metres, (H, W).
        truth: true metres, (H, W); NaN where unknown.

    Returns:
        float64 (3,).
    """
    known = truth.isfinite()
    predicted, true = depth[known].cpu().double(), truth[known].cpu().double()  # not every device has fp64
    ratio = torch.maximum(predicted / true, true / predicted)
    return torch.stack(
        [(ratio < 1.25).double().mean(), (predicted - true).square().mean().sqrt(), ((predicted - true).abs() / true).mean()]
    )


@torch.no_grad()
def evaluate_depth(model: Segmenter, part: LabelledPixels[Any], device: torch.device, problems: list[Problem]) -> dict[str, Any]:
    """Scores a depth probe. Images that cannot be read, or that have no depth at all, are left out and reported.

    Returns:
        `delta1`, `rmse` in metres, `absrel`, and `samples`, the number of images.

    Raises:
        ValueError: no image could be scored.
    """
    data, errors = part.config, list[Tensor]()
    for batch in read_batches(part, "depths", problems, batch_size=1):
        image, numbers = split_planes(batch.pixels.to(device), data.channels)
        truth = metres_of(numbers[0], data.range)
        if not bool(truth.isfinite().any()):
            index = int(batch.index[0])
            problems.append(Problem(index, part.name(index), "has no pixel whose depth lies in data.range"))
            continue
        logits = model.segment(normalise(image, data.mean, data.std), whole=data.whole_maps)
        errors.append(depth_errors(depth_of(logits, data.range)[0], truth))
    check_read(bool(errors), part, problems)
    every = torch.stack([error for own in all_gather(errors) for error in own])  # (images, 3)
    return dict(zip(NAMES, every.mean(0).tolist(), strict=True)) | {"samples": len(every)}
