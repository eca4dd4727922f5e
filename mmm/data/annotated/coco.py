"""Objects in COCO's format: one JSON file of images, categories and annotations for each split.

Small faults of annotations are corrected and counted in a warning: a box that ends outside its image is cut, and a box without
an area is left out. Faults that would change the meaning of labels are errors.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmm.data.annotated.config import ObjectsConfig
from mmm.data.annotated.objects import Objects
from mmm.data.annotated.pairs import SceneColumn
from mmm.data.sources import nuclei
from mmm.data.sources.base import Column
from mmm.data.sources.folder import FileColumn
from mmm.data.sources.in_memory import ArrayColumn
from mmm.data.sources.scenes import CLASSES, COUNTS, check_scenes, object_masks, scenes, scenes_fingerprint
from mmm.system.files import digest

logger = logging.getLogger(__name__)

PREFIX = "instances_"  # start of the names of annotation files


@dataclass(frozen=True)
class ObjectTable:
    """Images of one split with their objects.

    Attributes:
        images: encoded images.
        objects: the objects of each image.
        classes: names of the classes, in the order of their labels.
        fingerprint: a hash that changes with the data.
    """

    images: Column
    objects: list[Objects]
    classes: tuple[str, ...]
    fingerprint: str


class SceneObjects:
    """`builtin:scenes`, with the visible part of each object."""

    splits = tuple(COUNTS)

    def __init__(self, name: str, config: ObjectsConfig) -> None:
        check_scenes(name, config.channels)

    def table(self, split: str) -> ObjectTable:
        """Returns the scenes of one split, a pure function of its name."""
        found = [objects_of(object_masks(scene), [label - 1 for label in scene.labels]) for scene in scenes(split)]
        return ObjectTable(SceneColumn(split, attrgetter("pixels")), found, CLASSES[1:], scenes_fingerprint(split))


class NucleiObjects:
    """`builtin:nuclei`, with the part of each nucleus that is visible in a tile. Very small parts count as crowds: they are not
    trained on, and evaluation ignores whether they are found."""

    splits = tuple(nuclei.PARTS)

    def __init__(self) -> None:
        nuclei.nuclei_folder()

    def table(self, split: str) -> ObjectTable:
        """Returns the tiles of one split."""
        tiles, found = nuclei.nuclei(split), []
        for instances in tiles.instances:
            masks = torch.from_numpy(instances == np.arange(1, int(instances.max()) + 1)[:, None, None])  # (n, S, S)
            found.append(objects_of(masks, [0] * len(masks), masks.flatten(1).sum(1) < nuclei.SMALLEST))
        return ObjectTable(ArrayColumn(tiles.pixels, tiles.names), found, nuclei.CLASSES[1:], nuclei.nuclei_fingerprint(split))


def objects_of(masks: torch.Tensor, labels: list[int], crowd: torch.Tensor | None = None) -> Objects:
    """Returns objects with the smallest boxes that contain their masks.

    Args:
        masks: bool (n, H, W), none of them empty.
        labels: classes, counted from 0, (n,).
        crowd: bool (n,), True for an object that is a group of several. None: there are no groups.
    """
    rows, columns = (masks.any(axis) for axis in (2, 1))  # (n, H), (n, W)
    boxes = [[_first(wide), _first(high), _last(wide), _last(high)] for high, wide in zip(rows, columns, strict=True)]
    crowd = torch.zeros(len(masks), dtype=torch.bool) if crowd is None else crowd
    corners = torch.tensor(boxes, dtype=torch.float32).view(-1, 4)
    return Objects((masks.shape[1], masks.shape[2]), corners, torch.tensor(labels, dtype=torch.int64), crowd, tuple(masks.numpy()))


def _first(line: torch.Tensor) -> int:
    return int(line.byte().argmax())


def _last(line: torch.Tensor) -> int:
    return len(line) - int(line.flip(0).byte().argmax())


class Coco:
    """A folder in COCO's layout, or a folder of images with one annotation file.

    Args:
        root: the folder.
        annotations: the annotation file, for a folder in another layout.

    Raises:
        ValueError: there is no annotation file.
    """

    def __init__(self, root: Path, annotations: str | None) -> None:
        self.root = root
        if annotations is not None:
            file = Path(annotations).expanduser()
            file = file if file.is_file() else root / annotations
            if not file.is_file():
                raise ValueError(f"data.annotations {annotations} is not a file")
            self.files, self.folders = {"train": file}, {"train": root}
        else:
            found = sorted((root / "annotations").glob(f"{PREFIX}*.json"))
            if not found:
                raise ValueError(f"data.source {root} has no annotations/{PREFIX}SPLIT.json; name the file with data.annotations")
            self.files = {file.stem.removeprefix(PREFIX): file for file in found}
            self.folders = {
                name: next((one for one in (root / name, root / "images" / name) if one.is_dir()), root) for name in self.files
            }
        self.splits = tuple(self.files)

    def table(self, split: str) -> ObjectTable:
        """Reads one split; see `read_coco`."""
        return read_coco(self.files[split], self.folders[split], split)


def find_objects(config: ObjectsConfig) -> SceneObjects | NucleiObjects | Coco:
    """Opens the source that `data.source` names.

    Raises:
        ValueError: the source does not exist, or has no annotations.
    """
    name = config.source
    if not name:
        raise ValueError("data.source is not set; give builtin:scenes or a folder in COCO's layout")
    if name == "builtin:nuclei":
        return NucleiObjects()
    if name.startswith("builtin:"):
        return SceneObjects(name.removeprefix("builtin:"), config)
    path = Path(name).expanduser()
    if not path.is_dir():
        raise ValueError(f"data.source {name} is not a folder; give builtin:scenes or a folder in COCO's layout")
    return Coco(path, config.annotations)


def read_coco(file: Path, folder: Path, split: str) -> ObjectTable:
    """Reads an annotation file.

    Args:
        folder: folder of the images.
        split: first part of the images' names in messages.

    Raises:
        ValueError: the file is not an annotation file or has no objects, or an annotation names an image or a category that the
            file does not list.
    """
    tree = _read(file)
    images = sorted(tree["images"], key=lambda one: one["id"])
    categories = sorted(tree["categories"], key=lambda one: one["id"])
    numbers = {one["id"]: label for label, one in enumerate(categories)}
    rows: dict[Any, list[dict[str, Any]]] = {one["id"]: [] for one in images}
    if not images or not tree["annotations"]:
        what = "images" if not images else "annotations"
        raise ValueError(f"{file} has no {what}; there is nothing to train on or to score")
    if len(rows) != len(images) or len(numbers) != len(categories):
        raise ValueError(f"{file} has several images or categories with the same id")
    for one in tree["annotations"]:
        for key, known in (("image_id", rows), ("category_id", numbers)):
            if one.get(key) not in known:
                raise ValueError(f"{file}: annotation {one.get('id')} has {key} {one.get(key)!r}, which the file does not list")
        rows[one["image_id"]].append(one)
    problems: Counter[str] = Counter()
    first: dict[str, Any] = {}
    found = [_objects(image, rows[image["id"]], numbers, problems, first) for image in images]
    for words, count in problems.items():
        logger.warning("%s: %d annotations %s, the first is annotation %s", file, count, words, first[words])
    empty = sum(not len(one.labels) for one in found)
    if empty:
        logger.warning("%s: %d of %d images have no object; they are trained on and scored as background", file, empty, len(images))
    if empty == len(images):
        raise ValueError(f"{file}: not one annotation can be used; see the warnings above")
    names = tuple(str(one["name"]) for one in categories)
    paths = [str(one["file_name"]) for one in images]
    fingerprint = digest([split, *paths, *names, len(tree["annotations"]), *(one.boxes.sum().item() for one in found[:1000])])
    return ObjectTable(FileColumn(folder, paths, f"{split}/"), found, names, fingerprint)


def _read(file: Path) -> dict[str, Any]:
    """Reads an annotation file.

    Raises:
        ValueError: the file is not JSON, or lacks a list that COCO's files have.
    """
    text = file.read_text(encoding="utf-8", errors="replace")
    if not text.strip():
        raise ValueError(f"{file} is empty; a file in COCO's format has images, categories and annotations")
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is no JSON: {error}") from error
    for name in ("images", "categories", "annotations"):
        if not isinstance(tree, dict) or not isinstance(tree.get(name), list):
            raise ValueError(f"{file} has no list `{name}`; a file in COCO's format has images, categories and annotations")
        needed = {"images": ("id", "file_name", "width", "height"), "categories": ("id", "name")}.get(name, ())
        for one in tree[name]:
            if not isinstance(one, dict) or (missing := [key for key in needed if key not in one]):
                raise ValueError(f"{file}: an entry of `{name}` has no {', '.join(missing) if isinstance(one, dict) else 'names'}")
    return tree


def _objects(
    image: dict[str, Any], rows: list[dict[str, Any]], numbers: dict[Any, int], problems: Counter[str], first: dict[str, Any]
) -> Objects:
    """Returns the usable objects of an image, and counts the faults of the others in `problems`."""
    width, height = int(image["width"]), int(image["height"])
    boxes, labels, crowd, masks = [], [], [], []

    def note(words: str, row: dict[str, Any]) -> None:
        problems[words] += 1
        first.setdefault(words, f"{row.get('id')} of {image['file_name']}")

    for row in rows:
        box = row.get("bbox")
        if not isinstance(box, list) or len(box) != 4 or not all(isinstance(value, (int, float)) for value in box):
            note("have no box of four numbers and are left out", row)
            continue
        left, top, wide, high = (float(value) for value in box)
        ends = [left, top, left + wide, top + high]
        cut = [min(max(value, 0.0), float(limit)) for value, limit in zip(ends, (width, height, width, height), strict=True)]
        if not np.isfinite(ends).all() or cut[2] <= cut[0] or cut[3] <= cut[1]:
            note("have a box without an area inside the image and are left out", row)
            continue
        if max(abs(one - other) for one, other in zip(ends, cut, strict=True)) > 1:  # COCO's own boxes end up to a pixel outside
            note("have a box that ends outside the image, where it is cut", row)
        boxes.append(cut)
        labels.append(numbers[row["category_id"]])
        crowd.append(bool(row.get("iscrowd", 0)))
        masks.append(_segmentation(row.get("segmentation"), (height, width), lambda words, row=row: note(words, row)))
    return Objects(
        (height, width),
        torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
        torch.tensor(labels, dtype=torch.int64),
        torch.tensor(crowd, dtype=torch.bool),
        tuple(masks),
    )


def _segmentation(value: Any, size: tuple[int, int], note: Any) -> Any:
    """Returns an object's mask as stored, or None if it has none."""
    if isinstance(value, dict):
        if list(value.get("size", ())) == list(size) and value.get("counts"):
            return value
        note("have a mask of another size than their image, which is left out")
        return None
    polygons = [one for one in value or [] if isinstance(one, list) and len(one) >= 6 and len(one) % 2 == 0]
    if value and len(polygons) != len(value):
        note("have a polygon of fewer than three corners, which is left out")
    return polygons or None
