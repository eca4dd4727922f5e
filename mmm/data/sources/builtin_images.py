"""Real images that come inside a dependency: tiles of the photographs in scikit-image's wheel. Nothing is downloaded.

The task is to say from which photograph a tile was cut. The split is fixed by geometry: the left half of every photograph is
for training, a strip in its middle for validation, its right part for test, with gaps, so that no pixel is in two of them.
Taken are the bundled photographs whose left and right show the same kind of thing (an astronaut beside a flag would ask for
what was never shown). Tiles that are almost of one grey are left out: they show nothing. Every tile is shown in a light of its own,
drawn anew, for otherwise its brightness alone would say where it was cut: then an untrained encoder classifies two of three tiles.

Shapes: N tiles, (H, W) of a tile, C channels.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from mmm.core.registry import suggest
from mmm.core.rng import Stream, sample_keys, stream, uniform
from mmm.data.decode.image import MODES, Pixels
from mmm.data.sources.base import Table
from mmm.system.files import digest

PHOTOGRAPHS = (
    *("brick.png", "chelsea.png", "coffee.png", "coins.png", "grass.png", "gravel.png", "hubble_deep_field.jpg"),
    *("ihc.png", "moon.png", "motorcycle_left.png", "page.png", "text.png"),
)
TILE = 48  # side of a tile, pixels
STRIDE = 4  # of the corners that tiles may start from, pixels
HEIGHT = 512  # higher photographs are reduced to this
CONTRAST = 4.0  # standard deviation of its grey values that a tile must have, of 255
BRIGHTNESS = (90.0, 165.0)  # mean grey value of a tile, drawn evenly
DEVIATION = (30.0, 60.0)  # standard deviation of a tile's grey values, its logarithm drawn evenly
# share of the width where a split starts and ends, and its tiles of every photograph
STRIPS = {"train": (0.0, 0.5, 240), "validation": (0.53, 0.70, 60), "test": (0.73, 1.0, 100)}


class PixelColumn:
    """Decoded samples in memory.

    Args:
        pixels: uint8 (N, H, W, C).
        names: of the samples.
    """

    def __init__(self, pixels: Pixels, names: list[str]) -> None:
        self.pixels, self.names = pixels, names

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, row: int) -> Pixels:
        tile: Pixels = self.pixels[row]
        return tile

    def name(self, row: int) -> str:
        return self.names[row]


class Photographs:
    """`builtin:photographs`.

    Args:
        name: what stands behind `builtin:`.
        channels: 1 for grey, or 3.

    Raises:
        ValueError: for another name or another number of channels.
    """

    splits = tuple(STRIPS)

    def __init__(self, name: str, channels: int) -> None:
        if name != "photographs":
            raise ValueError(f"data.source builtin:{name}: no such built-in data{suggest(name, ['photographs'])}")
        if channels not in (1, 3):
            raise ValueError(f"data.channels {channels}: builtin:photographs has 1 (grey) or 3")
        self.channels = channels

    def table(self, split: str) -> Table:
        """DeferredCrops the tiles of one split; a pure function of its name."""
        pixels, names, labels = [], [], []
        for label, file in enumerate(PHOTOGRAPHS):
            picture = photograph(file)
            corners = _corners(np.asarray(picture.convert("L")), split)
            values = np.asarray(picture.convert(MODES[self.channels])).reshape(picture.height, picture.width, -1)
            pixels += [values[top : top + TILE, left : left + TILE] for top, left in corners]
            names += [f"{file} at {top}, {left}" for top, left in corners]
            labels += [label] * len(corners)
        classes = tuple(file.rsplit(".", 1)[0] for file in PHOTOGRAPHS)
        tiles = relit(np.stack(pixels), list(STRIPS).index(split))  # (N, TILE, TILE, C)
        return Table(
            PixelColumn(tiles, names), torch.tensor(labels), classes, digest([split, tiles.shape, BRIGHTNESS, DEVIATION, *names])
        )


def relit(tiles: NDArray[np.uint8], epoch: int) -> NDArray[np.uint8]:
    """Gives each tile the brightness and contrast that its place in the split draws; colours keep their proportions.

    Args:
        tiles: uint8 (N, H, W, C), none of one grey.
        epoch: sets the draws of one split apart from another's.
    """
    values = tiles.astype(np.float64)
    grey = values.mean(axis=3)  # (N, H, W)
    centre, spread = grey.mean(axis=(1, 2)), grey.std(axis=(1, 2))  # (N,)
    draws = uniform(stream(sample_keys(0, epoch, torch.arange(len(tiles))), Stream.AUGMENT), 2).double().numpy()  # (N, 2)
    brightness = BRIGHTNESS[0] + draws[:, 0] * (BRIGHTNESS[1] - BRIGHTNESS[0])
    deviation = DEVIATION[0] * (DEVIATION[1] / DEVIATION[0]) ** draws[:, 1]
    gain, centre, brightness = (value[:, None, None, None] for value in (deviation / spread, centre, brightness))
    return ((values - centre) * gain + brightness).round().clip(0, 255).astype(np.uint8)


def photograph(file: str) -> Image.Image:
    """One of the photographs in scikit-image's wheel, in RGB, at most HEIGHT high."""
    package = importlib.util.find_spec("skimage")  # found, not imported: only its files are wanted
    folders = package.submodule_search_locations if package else None
    path = Path(next(iter(folders or ["skimage"]))) / "data" / file
    if not path.exists():
        raise ValueError(f"built-in data needs {file} of scikit-image, which is not here; install scikit-image")
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    if image.height > HEIGHT:
        image = image.resize((round(image.width * HEIGHT / image.height), HEIGHT), Image.Resampling.BICUBIC)
    return image


def _corners(grey: Pixels, split: str) -> list[tuple[int, int]]:
    """(top, left) of a split's tiles, spread evenly over its strip of a photograph (H, W)."""
    start, end, count = STRIPS[split]
    height, width = grey.shape
    contrast = _contrast(grey)  # (H - TILE + 1, W - TILE + 1)
    corners = [
        (top, left)
        for top in range(0, height - TILE + 1, STRIDE)
        for left in range(round(start * width), round(end * width) - TILE + 1, STRIDE)
        if contrast[top, left] >= CONTRAST
    ]
    assert len(corners) >= count
    return [corners[i * len(corners) // count] for i in range(count)]


def _contrast(grey: Pixels) -> NDArray[np.float64]:
    """The standard deviation of every tile, by its top left corner: (H, W) -> (H - TILE + 1, W - TILE + 1)."""
    first, second = (_tile_sums(grey.astype(np.int64) ** power) / TILE**2 for power in (1, 2))
    return np.sqrt(second - first**2)


def _tile_sums(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """The sum over every tile, from sums over the rectangles that start at the image's corner."""
    sums = np.pad(values, ((1, 0), (1, 0))).cumsum(0).cumsum(1)  # (H + 1, W + 1)
    return sums[TILE:, TILE:] - sums[:-TILE, TILE:] - sums[TILE:, :-TILE] + sums[:-TILE, :-TILE]
