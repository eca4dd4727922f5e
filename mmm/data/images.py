"""Images behind one table: opened by split, read one by one, cut into samples.

Shapes: B samples, C channels, (h, w) of a sample.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mmm.data import transforms
from mmm.data.bad_inputs import Unreadable
from mmm.data.builtin import Photographs
from mmm.data.cache import CachedCells
from mmm.data.config import ImagesConfig
from mmm.data.decode import Pixels, decode_image
from mmm.data.folder import Folder
from mmm.data.small import crop_small, is_small
from mmm.data.source import EVALUATION, Source, Table, digest, nearest
from mmm.data.tables import Hub, Parquet
from mmm.keys import Stream, sample_keys, scores, stream

TOGETHER = 64  # small images that are cropped at once: more leave the processor's cache (32 x 32: 12 us each, 17 with 256)
HELD = 2**26  # bytes of decoded images that a process holds at once; their boxes are drawn together


class Images:
    """A part of one split.

    Args:
        table: the split.
        config: how it is read.
        rows: the table's rows that belong to the part, int64 (N,).
        where: what the part is called, for messages.

    Attributes:
        classes: the names that the labels count, or None.
        fingerprint: 16 hexadecimal digits that change with the data.
    """

    def __init__(self, table: Table, config: ImagesConfig, rows: Tensor, where: str) -> None:
        self.table, self.config, self.rows, self.where = table, config, rows, where
        self.classes = table.classes
        whole = torch.equal(rows, torch.arange(len(table.cells)))
        self.fingerprint = table.fingerprint if whole else digest([table.fingerprint, *rows.tolist()])

    def __len__(self) -> int:
        return len(self.rows)

    def labels(self) -> Tensor | None:
        """int64 (N,), without decoding anything; None where there are none."""
        return None if self.table.labels is None else self.table.labels[self.rows]

    def name(self, index: int) -> str:
        """What a person would call the sample: a path, or a row of a table."""
        return self.table.cells.name(int(self.rows[index]))

    def subset(self, index: Tensor) -> Images:
        """The images at these places, int64 (K,), in that order."""
        return Images(self.table, self.config, self.rows[index], self.where)

    def read(self, index: int, size_hint: int | None = None) -> Pixels:
        """One image, uint8 (H, W, C).

        Args:
            index: which.
            size_hint: allows a smaller version, with neither side below this many pixels.

        Raises:
            Unreadable: with the reason.
        """
        cell = self.table.cells[int(self.rows[index])]
        return cell if isinstance(cell, np.ndarray) else decode_image(cell, self.config.channels, size_hint)

    def train_views(self, index: Tensor, keys: Tensor) -> tuple[Tensor, dict[int, str]]:
        """Random resized crops, a pure function of the images and the keys.

        Args:
            index: which images, int64 (B,).
            keys: one a sample, (B,).

        Returns:
            uint8 (B, C, h, w), and for the rows that could not be read, left at zero, the reason.
        """
        config = self.config
        hint = transforms.decode_hint(config.size, config.crop_scale, config.crop_ratio)
        views = torch.zeros(len(index), config.channels, *config.size, dtype=torch.uint8)
        failed: dict[int, str] = {}
        for images in self._readable(index, hint, failed):
            heights, widths = (torch.tensor([image.shape[side] for image in images.values()]) for side in (0, 1))
            boxes = transforms.crop_boxes(keys[list(images)], heights, widths, config.crop_scale, config.crop_ratio)
            _crop(images, boxes, config.size, views)
        return views, failed

    def eval_views(self, index: Tensor) -> tuple[Tensor, dict[int, str]]:
        """The middles of the images, as `train_views` returns them."""
        config = self.config
        hint = max(transforms.covering_size(1, 1, config.size))
        views = torch.zeros(len(index), config.channels, *config.size, dtype=torch.uint8)
        failed: dict[int, str] = {}
        for images in self._readable(index, hint, failed):
            for row, image in images.items():
                views[row] = transforms.center_crop(image, config.size)
        return views, failed

    def _readable(self, index: Tensor, hint: int, failed: dict[int, str]) -> Iterator[dict[int, Pixels]]:
        """The images that can be read, by row, as many at a time as HELD allows; why the others cannot goes into `failed`."""
        images: dict[int, Pixels] = {}
        held = 0
        for row, place in enumerate(index.tolist()):
            try:
                images[row] = image = self.read(place, hint)
            except Unreadable as error:
                failed[row] = str(error)
                continue
            held += image.size
            if held >= HELD:
                yield images
                images, held = {}, 0
        if images:
            yield images


def _crop(images: dict[int, Pixels], boxes: Tensor, size: tuple[int, int], views: Tensor) -> None:
    """Crops each image and puts it into its row. Which way it goes depends on its own size, never on its neighbours."""
    together: dict[tuple[int, ...], list[int]] = {}
    for place, (row, image) in enumerate(images.items()):
        if is_small(image.shape[0], image.shape[1], size):
            together.setdefault(image.shape, []).append(place)
        else:
            views[row] = transforms.resized_crop(image, boxes[place].tolist(), size)
    rows = list(images)
    for places in together.values():
        for start in range(0, len(places), TOGETHER):
            part = places[start : start + TOGETHER]
            group = [rows[place] for place in part]
            pixels = torch.from_numpy(np.stack([images[row] for row in group]))  # (b, H, W, C)
            views[group] = crop_small(pixels, boxes[part], size)


def open_images(config: ImagesConfig, split: str) -> Images:
    """Opens one part of the data.

    Args:
        config: where the images are, and how they are read.
        split: `train` and `eval` are the parts that ImagesConfig describes; any other name is a split of the source.

    Raises:
        ValueError: of one line, for a source that is missing or empty, a split or a column that does not exist, ...
    """
    config.check()
    source = find_source(config)
    name, part = _choose(source.splits, config, split)
    table = source.table(name)
    if len(table.cells) == 0:
        raise ValueError(f"data.source {config.source}: the split {name} is empty")
    if config.cache:
        table = Table(CachedCells(table.cells, config.channels), table.labels, table.classes, table.fingerprint)
    return Images(table, config, _rows(len(table.cells), config.holdout, part), name if part == "all" else f"{name} ({part})")


def find_source(config: ImagesConfig) -> Source:
    """What `data.source` names: built-in data, a folder, parquet files, or a name on the hub.

    Raises:
        ValueError: where there is nothing.
    """
    name, columns = config.source, (config.image_column, config.label_column)
    if not name:
        raise ValueError("data.source is not set; give a folder, parquet files, a name on the hub or builtin:photographs")
    if name.startswith("builtin:"):
        return Photographs(name.removeprefix("builtin:"), config.channels)
    path = Path(name).expanduser()
    if path.is_dir():
        files = sorted(path.rglob("*.parquet"))
        return Parquet(files, path, *columns) if files else Folder(path)
    if path.is_file() or glob.has_magic(name):
        files = [path] if path.is_file() else sorted(Path(file) for file in glob.glob(str(path), recursive=True))
        if not files or any(file.suffix != ".parquet" for file in files):
            raise ValueError(f"data.source {name}: " + ("only parquet files are read" if files else "no file matches"))
        return Parquet(files, files[0].parent, *columns)
    if name.startswith(("/", ".", "~")) or name.count("/") > 1 or path.suffix == ".parquet":
        raise ValueError(f"data.source {name} does not exist")
    return Hub(name, *columns)


def _choose(splits: tuple[str, ...], config: ImagesConfig, wanted: str) -> tuple[str, str]:
    """The split of the source, and which part of it: all, the rest, or what is held out.

    Raises:
        ValueError: where there is none.
    """
    own = config.eval_split or next((name for name in EVALUATION if name in splits and name != config.split), None)
    flags = {"train": ("data.split", config.split), "eval": ("data.eval_split", own) if own else ("data.split", config.split)}
    flag, name = flags.get(wanted, ("split", wanted))
    if name not in splits:
        raise ValueError(f"{flag} {name}: data.source {config.source} has no such split; {nearest(name, splits)}")
    if own or wanted not in flags:
        return name, "all"
    if wanted == "eval" and config.holdout == 0:
        raise ValueError(f"data.source {config.source} has no split for evaluation and data.holdout is 0; give a share of it")
    return name, "rest" if wanted == "train" else "held out"


def _rows(n: int, holdout: float, part: str) -> Tensor:
    """The rows of a part, in order. The held-out ones are those with the smallest hashes, so that their number is exact."""
    if part == "all" or holdout == 0:
        return torch.arange(n)
    held = max(1, round(n * holdout))
    if held >= n:
        raise ValueError(f"data.holdout {holdout} of {n} samples leaves none to train on")
    keys = stream(sample_keys(0, 0, torch.arange(n)), Stream.HOLDOUT)
    order = scores(keys, 1)[:, 0].argsort()  # (N,)
    return (order[:held] if part == "held out" else order[held:]).sort().values
