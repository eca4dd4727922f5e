"""Mean intersection over union of a segmenter: one confusion matrix over all labelled pixels (torchmetrics).

Shapes: (H, W) of an image, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmm.data import Problem
from mmm.data.annotated.maps import IGNORE, split_planes
from mmm.data.annotated.pixels import LabelledPixels
from mmm.data.transforms.crop import normalise
from mmm.dense.segmenter import Segmenter
from mmm.evaluate.batches import all_gather, check_read, read_batches


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
            raise ValueError("no evaluated pixel has a label; check data.ignore and the masks")
        seen = (counts.sum(0) + counts.sum(1)).tolist()
        iou = [value if pixels else None for value, pixels in zip(found["iou"].cpu().double().tolist(), seen, strict=True)]
        return {"miou": found["miou"].item(), "pixel_accuracy": found["pixel_accuracy"].item(), "iou": iou}


def evaluate_segmenter(
    model: Segmenter, part: LabelledPixels[Any], device: torch.device, problems: list[Problem]
) -> dict[str, Any]:
    """Scores a segmenter on each image, by windows or on whole images according to `data.whole_maps`.

    Args:
        part: images with masks.
        problems: inputs that this process could not read are added here. They are left out.

    Returns:
        The values of `SegmentationScore.result`, and `samples`, the number of images.

    Raises:
        ValueError: no image could be read.
    """
    score, read, data = SegmentationScore(part.count, device), 0, part.config
    for batch in read_batches(part, "masks", problems, batch_size=1):
        image, labels = split_planes(batch.pixels.to(device), data.channels)
        logits = model.segment(normalise(image, data.mean, data.std), whole=data.whole_maps)
        score.add(logits.argmax(1), labels)
        read += 1
    check_read(read > 0, part, problems)
    return score.result() | {"samples": sum(all_gather(read))}


def format_segmentation(found: Mapping[str, Any], names: Sequence[str] | None) -> str:
    """Returns the scores of a segmenter as text."""
    iou = found["iou"]
    titles = names or [str(number) for number in range(len(iou))]
    lines = [f"mIoU {found['miou']:.2%}, pixel accuracy {found['pixel_accuracy']:.2%}, {found['samples']:,} images"]
    lines += [f"  {title:<20} {'not there' if value is None else f'{value:.2%}'}" for title, value in zip(titles, iou, strict=True)]
    return "\n".join(lines)
