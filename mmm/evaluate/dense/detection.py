"""Average precision of boxes and masks, as COCO computes it (torchmetrics on faster-coco-eval).

Shapes: n objects, (H, W) pixels of an image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from mmm.core.modes import evaluating
from mmm.data import Problem
from mmm.data.annotated.detection import AnnotatedObjects
from mmm.data.annotated.objects import Objects, as_pixels, mask_api, paste_masks
from mmm.data.transforms.crop import normalise
from mmm.dense.detector import Detector
from mmm.evaluate.batches import all_gather, check_read, read_batches

Found = dict[str, Tensor]
SUMMARY = {
    "ap": "map",
    "ap50": "map_50",
    "ap75": "map_75",
    "ap_small": "map_small",
    "ap_medium": "map_medium",
    "ap_large": "map_large",
}


class DetectionScore:
    """Compares detected objects with annotated ones, over all processes. Detections of crowds are ignored.

    Args:
        classes: number of classes.
        masks: whether masks are compared too.
    """

    def __init__(self, classes: int, *, masks: bool) -> None:
        """Starts with no image."""
        mask_api()  # raises an error that names a missing package
        from torchmetrics.detection import MeanAveragePrecision

        self.classes = classes
        self.kinds: tuple[Literal["bbox", "segm"], ...] = ("bbox", "segm") if masks else ("bbox",)
        self.metric = MeanAveragePrecision(iou_type=self.kinds, class_metrics=True, backend="faster_coco_eval")
        self.metric.warn_on_many_detections = False

    def add(self, found: Found, objects: Objects) -> None:
        """Adds an image.

        Args:
            found: `boxes` (n, 4) in pixels of the image, `scores` (n,), `labels` (n,) from 0 and, if they are compared, `masks`
                bool (n, H, W).
            objects: the annotated objects of the image.
        """
        truth: dict[str, Tensor] = {"boxes": objects.boxes, "labels": objects.labels, "iscrowd": objects.crowd.long()}
        if "segm" in self.kinds:
            drawn = [torch.from_numpy(as_pixels(mask, objects.size)).bool() for mask in objects.masks]
            truth["masks"] = torch.stack(drawn) if drawn else torch.zeros(0, *objects.size, dtype=torch.bool)
            truth["area"] = truth["masks"].flatten(1).sum(1).float()
        self.metric.update([{name: value.cpu() for name, value in found.items()}], [truth])

    def result(self) -> dict[str, Any]:
        """Returns for `box` (and `mask`) AP at IoU .50:.95, at .50 and .75, of small, medium and large objects, and of each class.

        A value is None if nothing is annotated.
        """
        found = self.metric.compute()
        numbers = found["classes"].reshape(-1).tolist()
        result: dict[str, Any] = {}
        for kind, title in (("bbox", "box"), ("segm", "mask")):
            if kind not in self.kinds:
                continue
            prefix = f"{kind}_" if f"{kind}_map" in found else ""
            values = {name: _plain(found[prefix + key].item()) for name, key in SUMMARY.items()}
            each = dict(zip(numbers, found[f"{prefix}map_per_class"].reshape(-1).tolist(), strict=True))
            result[title] = values | {"ap_per_class": [_plain(each.get(number, -1.0)) for number in range(self.classes)]}
        return result


def _plain(value: float) -> float | None:
    """Converts a precision of COCO's code, which is -1 if nothing is annotated, to a number or None."""
    return None if value < 0 else value


@torch.no_grad()
def detect(model: Detector, x: Tensor) -> list[Found]:
    """Finds the objects of normalised images (B, C, H, W); labels count from 0, masks are those of torchvision."""
    with evaluating(model):
        return [one | {"labels": one["labels"] - 1} for one in model(x)]


def in_image(found: Found, part: AnnotatedObjects, index: int) -> Found:
    """Moves the objects of a sample into its image: boxes in its pixels, masks of its size."""
    size = part.objects(index).size
    boxes = part.placement(index, None).original(found["boxes"], size)
    moved = found | {"boxes": boxes}
    if "masks" in found:
        moved["masks"] = paste_masks(found["masks"].float(), boxes, size)
    return moved


def evaluate_detector(
    model: Detector, part: AnnotatedObjects, device: torch.device, problems: list[Problem], *, batch_size: int
) -> dict[str, Any]:
    """Scores a detector. Unreadable images are left out and reported.

    Returns:
        The values of `DetectionScore.result`, and `samples`, the number of images.

    Raises:
        ValueError: no image could be read.
    """
    score, data, read = DetectionScore(model.classes, masks=model.config.predicts_masks), part.config, 0
    for batch in read_batches(part, "objects", problems, batch_size=batch_size):
        x = normalise(batch.pixels.to(device), data.mean, data.std)
        for index, found in zip(batch.index.tolist(), detect(model, x), strict=True):
            score.add(in_image(found, part, index), part.objects(index))
        read += len(batch)
    check_read(read > 0, part, problems)
    return score.result() | {"samples": sum(all_gather(read))}


def format_detection(found: Mapping[str, Any], names: Sequence[str]) -> str:
    """Returns the scores of a detector as text."""

    def share(value: float | None) -> str:
        return "none" if value is None else f"{value:.2%}"

    lines = []
    for title in ("box", "mask"):
        if title in found:
            one = found[title]
            lines.append(f"{title} AP {share(one['ap'])}, AP50 {share(one['ap50'])}, AP75 {share(one['ap75'])}")
            lines += [f"  {name:<20} {share(value)}" for name, value in zip(names, one["ap_per_class"], strict=True)]
    return "\n".join([*lines, f"{found['samples']:,} images"])
