"""Predictions of segmenters and detectors for images of any size.

Shapes: (H, W) pixels of an image, C channels, n objects.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmm.data.annotated.detection import empty_canvas, fitted, paint
from mmm.data.annotated.objects import paste_masks
from mmm.data.decode.image import Pixels
from mmm.data.transforms.crop import normalise
from mmm.dense.detector import Detector
from mmm.dense.segmenter import Segmenter
from mmm.evaluate.dense.detection import Found, detect
from mmm.evaluate.dense.pictures import paint_classes, paint_objects


def find_classes(model: Segmenter, image: Pixels, *, whole: bool = False) -> Tensor:
    """Predicts the classes of the pixels of an image, int64 (H, W), on the CPU.

    Args:
        image: uint8 (H, W, C).
        whole: see `Segmenter.segment`.
    """
    data = model.data
    assert data is not None
    device = next(model.parameters()).device
    x = normalise(torch.from_numpy(image).permute(2, 0, 1)[None].to(device), data.mean, data.std)
    return model.segment(x, whole=whole).argmax(1)[0].cpu()


def find_objects(model: Detector, image: Pixels, *, least: float = 0.5) -> Found:
    """Detects objects in an image.

    Args:
        image: uint8 (H, W, C).
        least: smallest score.

    Returns:
        `boxes` (n, 4) in pixels of the image, `scores`, `labels` from 0 and, if there are any, `masks` bool (n, H, W).
    """
    data = model.data
    assert data is not None
    size, canvas = (image.shape[0], image.shape[1]), (data.size[0], data.size[1])
    placement = fitted(size, canvas)
    sample = empty_canvas(data.mean, canvas)
    paint(sample, image, placement)
    x = normalise(sample[None].to(next(model.parameters()).device), data.mean, data.std)
    (found,) = detect(model, x)
    likely = found["scores"] >= least
    found = {name: value[likely].cpu() for name, value in found.items()}
    found["boxes"] = placement.original(found["boxes"], size)
    if "masks" in found:
        found["masks"] = paste_masks(found["masks"], found["boxes"], size)
    return found


def dense_row(model: Segmenter | Detector, image: Pixels, stem: Path | None, *, least: float, top: int) -> dict[str, Any]:
    """Returns the prediction for an image as plain values.

    Args:
        stem: path of the files to write, without their endings: the classes of pixels or the numbers of objects (`_mask.png`),
            and a picture (`_picture.png`). None: no files.
        least: smallest score of an object.
        top: number of classes of a segmenter that are returned, those with the largest shares of the pixels.

    Returns:
        `classes` with their shares of the pixels, or `objects` with `class`, `score` and `box` (left, top, right, bottom).
    """
    count = model.classes
    names = model.labels or tuple(str(number) for number in range(count))
    if isinstance(model, Segmenter):
        labels = find_classes(model, image)
        shares = labels.flatten().bincount(minlength=count).double() / labels.numel()
        order = shares.argsort(descending=True, stable=True)[:top].tolist()
        row: dict[str, Any] = {"classes": {names[number]: shares[number].item() for number in order if shares[number]}}
        numbers, picture = labels, paint_classes(image, labels, count)
    else:
        found = find_objects(model, image, least=least)
        values = zip(found["labels"].tolist(), found["scores"].tolist(), found["boxes"].tolist(), strict=True)
        row = {"objects": [{"class": names[label], "score": score, "box": box} for label, score, box in values]}
        numbers, picture = torch.zeros(image.shape[:2], dtype=torch.int64), paint_objects(image, found, count)
        for number in reversed(range(len(found["labels"]) if "masks" in found else 0)):  # the highest score last
            numbers[found["masks"][number]] = number + 1
    if stem is not None:
        _write(numbers, picture, stem)
        row["files"] = [f"{stem}_mask.png", f"{stem}_picture.png"]
    return row


def _write(numbers: Tensor, picture: Tensor, stem: Path) -> None:
    from PIL import Image

    stem.parent.mkdir(parents=True, exist_ok=True)
    kind = np.uint8 if int(numbers.max()) < 256 else np.uint16
    Image.fromarray(numbers.numpy().astype(kind)).save(f"{stem}_mask.png")
    pixels = (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(np.ascontiguousarray(pixels)).save(f"{stem}_picture.png")
