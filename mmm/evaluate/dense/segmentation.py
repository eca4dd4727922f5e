"""Mean intersection over union of a segmenter: one confusion matrix over all labelled pixels (torchmetrics).

Shapes: (H, W) of an image, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmm.data import Problem, eval_batches
from mmm.data.annotated.maps import IGNORE, split_planes
from mmm.data.annotated.pixels import LabelledPixels
from mmm.data.transforms.crop import normalise
from mmm.dense.segmenter import Segmenter
from mmm.evaluate.progress import progress

if TYPE_CHECKING:
    from accelerate import Accelerator

Predict = Callable[[Tensor], Tensor]  # normalised (1, C, H, W) -> classes int64 (1, H, W)


class SegmentationScore:
    """Counts pixels by true and predicted class, over all processes.

    A class that is neither labelled nor predicted has no IoU and is left out of the mean. A class that is predicted but never
    labelled has the IoU 0 and counts, as in mmsegmentation.
    """

    def __init__(self, classes: int, device: torch.device | str = "cpu") -> None:
        """Starts with no pixel."""
        from torchmetrics import MetricCollection
        from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix, MulticlassJaccardIndex

        common: Any = {"num_classes": classes, "ignore_index": IGNORE, "validate_args": False}
        self.metrics = MetricCollection(
            {
                "iou": MulticlassJaccardIndex(average="none", **common),
                "miou": MulticlassJaccardIndex(average="macro", **common),
                "pixel_accuracy": MulticlassAccuracy(average="micro", **common),
                "counts": MulticlassConfusionMatrix(**common),
            }
        ).to(device)

    def add(self, predicted: Tensor, labels: Tensor) -> None:
        """Counts pixels, int64 (B, H, W) each. Pixels with the label IGNORE are left out."""
        if bool((labels != IGNORE).any()):
            self.metrics.update(predicted, labels)

    def result(self) -> dict[str, Any]:
        """Returns `miou`, `pixel_accuracy` and `iou`, one per class, None for classes that are neither labelled nor predicted.

        Raises:
            ValueError: no pixel has a label.
        """
        found = self.metrics.compute()
        counts = found["counts"]  # (K, K)
        if not bool(counts.sum()):
            raise ValueError("not one pixel that is evaluated has a label; check data.ignore and the masks")
        seen = (counts.sum(0) + counts.sum(1)).tolist()
        iou = [value if pixels else None for value, pixels in zip(found["iou"].cpu().double().tolist(), seen, strict=True)]
        return {"miou": found["miou"].item(), "pixel_accuracy": found["pixel_accuracy"].item(), "iou": iou}


def evaluate_segmentation(
    predict: Predict,
    part: LabelledPixels[Any],
    *,
    device: torch.device | str,
    problems: list[Problem],
    rank: int = 0,
    world: int = 1,
) -> dict[str, Any]:
    """Scores predictions for each image of a split. Unreadable images are left out and named.

    Args:
        predict: predicts the classes of a whole image.
        part: images with masks.
        problems: unreadable images of this process are added here.
        rank, world: number of this process, and of all processes.

    Returns:
        The values of `SegmentationScore.result`, and `samples`, the number of images.

    Raises:
        ValueError: no image could be read.
    """
    score, read, data = SegmentationScore(part.count, device), torch.zeros((), dtype=torch.int64, device=device), part.config
    batches = eval_batches(part, data, batch_size=1, world=world, rank=rank)
    for batch in progress(batches, -(-len(part) // world), f"masks of {part.title}"):
        problems += batch.problems
        if len(batch):
            image, labels = split_planes(batch.pixels.to(device), data.channels)
            score.add(predict(normalise(image, data.mean, data.std)), labels)
            read += 1
    if world > 1:
        torch.distributed.all_reduce(read)
    if not int(read):
        reason = problems[0].reason if problems else "see the other processes"
        raise ValueError(f"not one of {part.title} can be read; the first: {reason}")
    return score.result() | {"samples": int(read)}


def evaluate_segmenter(
    model: Segmenter, part: LabelledPixels[Any], accelerator: Accelerator, problems: list[Problem]
) -> dict[str, Any]:
    """Scores a segmenter, in windows or on whole images (`data.whole_maps`); see `evaluate_segmentation`."""

    def predict(x: Tensor) -> Tensor:
        return model.segment(x, whole=part.config.whole_maps).argmax(1)

    return evaluate_segmentation(
        predict, part, device=accelerator.device, problems=problems, rank=accelerator.process_index, world=accelerator.num_processes
    )


def format_segmentation(found: Mapping[str, Any], names: Sequence[str] | None) -> str:
    """Returns the scores of a segmenter as text."""
    iou = found["iou"]
    titles = names or [str(number) for number in range(len(iou))]
    lines = [f"mIoU {found['miou']:.2%}, pixel accuracy {found['pixel_accuracy']:.2%}, {found['samples']:,} images"]
    lines += [f"  {title:<20} {'not there' if value is None else f'{value:.2%}'}" for title, value in zip(titles, iou, strict=True)]
    return "\n".join(lines)
