"""Predictions of segmenters and detectors for images of any size.

Shapes: (H, W) pixels of an image, C channels, n objects.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmm.core.pretrained import class_names, is_normalised, like_weights
from mmm.data.annotated.detection import empty_canvas, fitted, paint
from mmm.data.annotated.objects import Placement, paste_masks
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
    (found,) = detect(model, like_weights(x, model))
    return _moved(found, placement, size, least)


def _moved(found: Found, placement: Placement, size: tuple[int, int], least: float) -> Found:
    """Returns the objects with a score of at least `least`, moved from a canvas into its image of this size (H, W)."""
    likely = found["scores"] >= least
    found = {name: value[likely].cpu() for name, value in found.items()}
    found["boxes"] = placement.original(found["boxes"], size)
    if "masks" in found:
        found["masks"] = paste_masks(found["masks"], found["boxes"], size)
    return found


def predict_classes(model: Segmenter, x: Any, *, whole: bool = False) -> list[dict[str, Any]]:
    """Predicts the classes of the pixels of images; see `Segmenter.predict`."""
    if is_normalised(x):
        maps = list(model.segment(model.prepared(x), whole=whole).argmax(1).cpu())  # (H, W) each
    else:
        maps = [find_classes(model, image, whole=whole) for image in model.transform.images(x)]
    return [{"labels": labels, "classes": class_shares(model, labels)} for labels in maps]


def predict_objects(model: Detector, x: Any, *, least: float = 0.5) -> list[list[dict[str, Any]]]:
    """Finds the objects in images; see `Detector.predict`."""
    if is_normalised(x):
        x = model.prepared(x)
        size = (x.shape[-2], x.shape[-1])
        found = [_moved(one, fitted(size, size), size, least) for one in detect(model, x)]
    else:
        found = [find_objects(model, image, least=least) for image in model.transform.images(x)]
    return [named_objects(model, one, masks="masks" in one) for one in found]


def class_shares(model: Segmenter, labels: Tensor) -> dict[str, float]:
    """Returns the share of the pixels (H, W) of each class that occurs, by name, in falling order."""
    shares, names = (
        labels.flatten().bincount(minlength=model.classes).double() / labels.numel(),
        class_names(model.labels, model.classes),
    )
    order = shares.argsort(descending=True, stable=True).tolist()
    return {names[number]: shares[number].item() for number in order if shares[number]}


def named_objects(model: Detector, found: Found, *, masks: bool = False) -> list[dict[str, Any]]:
    """Returns for each object its `class`, `score` and `box` (left, top, right, bottom) as plain values, and its `mask` if
    requested."""
    names = class_names(model.labels, model.classes)
    values = zip(found["labels"].tolist(), found["scores"].tolist(), found["boxes"].tolist(), strict=True)
    objects: list[dict[str, Any]] = [{"class": names[label], "score": score, "box": box} for label, score, box in values]
    return [one | {"mask": mask} for one, mask in zip(objects, found["masks"], strict=True)] if masks else objects


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
    if isinstance(model, Segmenter):
        labels = find_classes(model, image)
        row: dict[str, Any] = {"classes": dict(list(class_shares(model, labels).items())[:top])}
        numbers, picture = labels, paint_classes(image, labels, count)
    else:
        found = find_objects(model, image, least=least)
        row = {"objects": named_objects(model, found)}
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
