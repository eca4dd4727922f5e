"""A video stored as a folder of images, one per frame."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image

from mmm.data.decode.image import Pixels, decode_image
from mmm.data.decode.video.reader import Source
from mmm.data.errors import Unreadable
from mmm.data.media import IMAGE_SUFFIXES


class FrameFolder:
    """The images of a folder, in the order of the numbers in their names. See `mmm.data.decode.video.reader.Video`.

    A folder does not say when its frames are shown: `times` counts them, one a second.

    Attributes:
        numbers: the last number in the name of each image, int64 (N,); where they do not ascend, the images are counted from 0.
    """

    def __init__(self, source: Source) -> None:
        if isinstance(source, bytes):
            raise Unreadable("a folder of frames is expected, not bytes")
        self.paths = _images_in(source)
        if not self.paths:
            raise Unreadable("a folder without images")
        self.times = np.arange(len(self.paths), dtype=np.float64)
        found = [re.findall(r"\d{1,18}", path.stem)[-1:] for path in self.paths]
        numbers = np.array([int(words[0]) if words else -1 for words in found], np.int64)
        self.numbers = numbers if numbers[0] >= 0 and (np.diff(numbers) > 0).all() else np.arange(len(numbers))

    def read(self, frames: list[int], channels: int) -> Pixels:
        images = [decode_image(self.paths[number], channels) for number in frames]
        for number, image in zip(frames, images, strict=True):
            if image.shape != images[0].shape:
                sizes = f"{images[0].shape[:2]} and {image.shape[:2]}"
                raise Unreadable(f"its frames differ in size: {sizes}, {self.paths[number].name}")
        return np.stack(images)  # (T, H, W, C)

    def close(self) -> None: ...


def image_sizes(folder: Path, count: int) -> set[tuple[int, int]]:
    """Returns the heights and widths of the first images of a folder, by their headers; unreadable ones are left out."""
    sizes = set()
    for path in _images_in(folder)[:count]:
        with suppress(Exception), Image.open(path) as image:
            sizes.add((image.height, image.width))
    return sizes


def _images_in(folder: Path) -> list[Path]:
    """Returns the images of a folder, frame2.jpg before frame10.jpg."""
    names = [name for name in os.listdir(folder) if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and name[0] != "."]
    return [folder / name for name in sorted(names, key=_natural)]


def _natural(name: str) -> list[tuple[int, str]]:
    """Returns a sort key by which numbers in names count as numbers."""
    parts = re.findall(r"\d+|\D+", name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]
