"""Errors of depth maps: computed for each image, then averaged over the images.

Shapes: (H, W) of an image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmm.data import Problem, eval_batches
from mmm.data.annotated.maps import metres_of, split_planes
from mmm.data.annotated.pixels import LabelledPixels
from mmm.data.transforms.crop import normalise
from mmm.dense.bins import depth_of
from mmm.dense.segmenter import Segmenter
from mmm.evaluate.features.table import all_gather
from mmm.evaluate.progress import progress

if TYPE_CHECKING:
    from accelerate import Accelerator

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
def evaluate_depth(
    model: Segmenter, part: LabelledPixels[Any], accelerator: Accelerator, problems: list[Problem]
) -> dict[str, Any]:
    """Scores a depth probe. Unreadable images and images without any depth are left out and named.

    Returns:
        `delta1`, `rmse` in metres, `absrel`, and `samples`, the number of images.

    Raises:
        ValueError: no image could be scored.
    """
    data, device = part.config, accelerator.device
    world, rank = accelerator.num_processes, accelerator.process_index
    total = torch.zeros(len(NAMES) + 1, dtype=torch.float64)
    batches = eval_batches(part, data, batch_size=1, world=world, rank=rank)
    for batch in progress(batches, -(-len(part) // world), f"depths of {part.title}"):
        problems += batch.problems
        if not len(batch):
            continue
        image, numbers = split_planes(batch.pixels.to(device), data.channels)
        truth = metres_of(numbers[0], data.range)
        if not bool(truth.isfinite().any()):
            index = int(batch.index[0])
            problems.append(Problem(index, part.name(index), "has no pixel whose depth lies in data.range"))
            continue
        logits = model.segment(normalise(image, data.mean, data.std), whole=data.whole_maps)
        total[:-1] += depth_errors(depth_of(logits, data.range)[0], truth)
        total[-1] += 1
    total = torch.stack(all_gather(total)).sum(0)
    if not int(total[-1]):
        raise ValueError(f"not one of {part.title} can be scored; the first: {problems[0].reason if problems else 'elsewhere'}")
    means = (total[:-1] / total[-1]).tolist()
    return dict(zip(NAMES, means, strict=True)) | {"samples": int(total[-1])}
