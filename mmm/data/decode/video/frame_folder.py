"""A video stored as a folder of images, one per frame."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmm.data.decode.image import Pixels, decode_image
from mmm.data.decode.video.reader import FrameRange, Source
from mmm.data.errors import Unreadable
from mmm.data.media import IMAGE_SUFFIXES

FEWEST, PAIRS = 16, 6  # smallest number of images for a check, and number of pairs of neighbours that it compares
# largest difference of neighbouring frames, as a share of the difference of distant frames, or in grey values from 0 to 255
ALIKE, LEAST = 0.6, 10.0
REGULAR = 0.9  # smallest share of equal steps from one number to the next


class FrameFolder:
    """The images of a folder, in the order of the numbers in their names. See `mmm.data.decode.video.reader.Video`.

    A folder does not contain the times of its frames: `times` counts them, one per second.

    Attributes:
        numbers: the last number in the name of each image, int64 (N,). If these do not ascend, the images are counted from 0.
    """

    def __init__(self, source: Source) -> None:
        if isinstance(source, bytes):
            raise Unreadable("a folder of frames is expected, not bytes")
        self.paths = _images_in(source)
        if not self.paths:
            raise Unreadable("a folder without images")
        self.times = np.arange(len(self.paths), dtype=np.float64)
        numbers = numbers_of(self.paths)
        self.numbers = numbers if numbers[0] >= 0 and (np.diff(numbers) > 0).all() else np.arange(len(numbers))

    def read(self, frames: list[int], channels: int) -> Pixels:
        images = [decode_image(self.paths[number], channels) for number in frames]
        for number, image in zip(frames, images, strict=True):
            if image.shape != images[0].shape:
                sizes = f"{images[0].shape[:2]} and {image.shape[:2]}"
                raise Unreadable(f"its frames differ in size: {sizes}, {self.paths[number].name}")
        return np.stack(images)  # (T, H, W, C)

    def close(self) -> None: ...


def check_times(source: Source | FrameRange, hint: str) -> None:
    """Raises Unreadable, with a hint what to do instead, for a folder of frames, which does not contain the times of its frames."""
    whole = source.source if isinstance(source, FrameRange) else source
    if isinstance(whole, Path) and whole.is_dir():
        raise Unreadable(f"a folder of frames has no times; {hint}")


def doubt(folder: Path) -> str | None:
    """Returns why the images of a folder do not look like the frames of a video, or None.

    The names of frames count in equal steps, and neighbouring frames differ less than distant ones. Measured by the grey values
    of 8 x 8 pixels, neighbours differ 0.1 to 0.3 times as much in videos of 6 to 30 frames per second, and 0.7 to 1.5 times as
    much in classes of CIFAR-10. In videos of one frame per second they differ 0.9 times as much; such videos are not recognised
    as frames.
    """
    paths = _images_in(folder)
    if len(paths) < FEWEST:
        return None
    numbers = numbers_of(paths)
    steps = np.diff(numbers)
    if len(np.unique(numbers)) < len(numbers) or (steps == np.median(steps)).mean() < REGULAR:
        return f"the numbers in their names do not increase in equal steps: {paths[0].name}, {paths[1].name}, {paths[2].name}"
    places = np.linspace(0, len(paths) - 2, PAIRS).round().astype(int)
    with suppress(Exception):  # an unreadable image is reported when it is read as a frame
        first, second = (np.stack([_thumbnail(paths[place + after]) for place in places]) for after in (0, 1))  # (PAIRS, 8, 8)
        near = np.median(np.abs(first - second).mean((1, 2)))
        far = np.median(np.abs(first - np.roll(first, PAIRS // 2, axis=0)).mean((1, 2)))
        if near > max(LEAST, ALIKE * far):
            return "neighbours differ as much as images far apart"
    return None


def numbers_of(paths: Sequence[Path]) -> NDArray[np.int64]:
    """Returns the last number in the name of each image, -1 for a name without one."""
    found = [re.findall(r"\d{1,18}", path.stem)[-1:] for path in paths]
    return np.array([int(words[0]) if words else -1 for words in found], np.int64)


def _thumbnail(path: Path) -> NDArray[np.float64]:
    """Returns the grey values of an image in 8 x 8 pixels."""
    image = Image.fromarray(decode_image(path, 3))
    return np.asarray(image.convert("L").resize((8, 8), Image.Resampling.BOX), np.float64)


def image_sizes(folder: Path, count: int) -> set[tuple[int, int]]:
    """Returns the heights and widths of the first images of a folder, from their headers; unreadable ones are left out."""
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
