"""Built-in images: tiles of the photographs in scikit-image's wheel. Nothing is downloaded.

The label of a tile is the photograph that it was cut from. The splits are regions: the left half of each photograph is for
training, a strip in its middle for validation, and its right part for test, with gaps between, so that no pixel is in two splits.
In each photograph the left and right parts show the same kind of content, so that test tiles resemble training tiles. Tiles of
almost uniform grey are left out. Each tile gets a random brightness and contrast. Otherwise the brightness would reveal the
photograph, and an untrained encoder would classify two of three tiles correctly.

Shapes: N tiles, (H, W) of a tile, C channels.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from mmm.core.checks import suggest
from mmm.core.rng import Stream, sample_keys, stream, uniform
from mmm.data.decode.image import MODES, Pixels
from mmm.data.sources.base import Table
from mmm.data.sources.in_memory import ArrayColumn
from mmm.system.files import digest

PHOTOGRAPHS = (
    *("brick.png", "chelsea.png", "coffee.png", "coins.png", "grass.png", "gravel.png", "hubble_deep_field.jpg"),
    *("ihc.png", "moon.png", "motorcycle_left.png", "page.png", "text.png"),
)
TILE = 48  # side of a tile in pixels
STRIDE = 4  # distance in pixels between the corners of possible tiles
HEIGHT = 512  # larger photographs are reduced to this height in pixels
CONTRAST = 4.0  # smallest standard deviation of a tile's grey values, of 255
BRIGHTNESS = (90.0, 165.0)  # range of a tile's mean grey value, uniformly distributed
DEVIATION = (30.0, 60.0)  # range of the standard deviation of a tile's grey values, with a uniformly distributed logarithm
# where each split starts and ends, as a share of the width, and its number of tiles from each photograph
STRIPS = {"train": (0.0, 0.5, 240), "validation": (0.53, 0.70, 60), "test": (0.73, 1.0, 100)}


class Photographs:
    """`builtin:photographs`.

    Args:
        name: the text after `builtin:`.
        channels: 1 for grey, or 3.

    Raises:
        ValueError: the name is unknown, or the tiles do not have this number of channels.
    """

    splits = tuple(STRIPS)

    def __init__(self, name: str, channels: int) -> None:
        if name != "photographs":
            raise ValueError(f"data.source builtin:{name}: no such built-in data{suggest(name, ['photographs'])}")
        if channels not in (1, 3):
            raise ValueError(f"data.channels {channels}: builtin:photographs has 1 (grey) or 3")
        self.channels = channels

    def table(self, split: str) -> Table:
        """Returns the tiles of one split, a pure function of its name."""
        pixels, names, labels = [], [], []
        for label, file in enumerate(PHOTOGRAPHS):
            picture = photograph(file)
            corners = _corners(np.asarray(picture.convert("L")), split)
            values = np.asarray(picture.convert(MODES[self.channels])).reshape(picture.height, picture.width, -1)
            pixels += [values[top : top + TILE, left : left + TILE] for top, left in corners]
            names += [f"{file} at {top}, {left}" for top, left in corners]
            labels += [label] * len(corners)
        classes = tuple(file.rsplit(".", 1)[0] for file in PHOTOGRAPHS)
        tiles = relight(np.stack(pixels), list(STRIPS).index(split))  # (N, TILE, TILE, C)
        return Table(
            ArrayColumn(tiles, names), torch.tensor(labels), classes, digest([split, tiles.shape, BRIGHTNESS, DEVIATION, *names])
        )


def relight(tiles: NDArray[np.uint8], epoch: int) -> NDArray[np.uint8]:
    """Gives each tile a random brightness and contrast by its index in the split. The ratios of channels stay the same.

    Args:
        tiles: uint8 (N, H, W, C), none of uniform grey.
        epoch: a number that differs between splits, so that their random numbers differ.
    """
    values = tiles.astype(np.float64)
    grey = values.mean(axis=3)  # (N, H, W)
    centre, spread = grey.mean(axis=(1, 2)), grey.std(axis=(1, 2))  # (N,)
    draws = uniform(stream(sample_keys(0, epoch, torch.arange(len(tiles))), Stream.AUGMENT), 2).double().numpy()  # (N, 2)
    brightness = BRIGHTNESS[0] + draws[:, 0] * (BRIGHTNESS[1] - BRIGHTNESS[0])
    deviation = DEVIATION[0] * (DEVIATION[1] / DEVIATION[0]) ** draws[:, 1]
    gain, centre, brightness = (value[:, None, None, None] for value in (deviation / spread, centre, brightness))
    return ((values - centre) * gain + brightness).round().clip(0, 255).astype(np.uint8)


def photograph_path(file: str) -> Path:
    """Returns the path of a file among the photographs in scikit-image's wheel.

    Raises:
        ValueError: the file does not exist.
    """
    package = importlib.util.find_spec("skimage")  # not imported: only its files are needed
    folders = package.submodule_search_locations if package else None
    path = Path(next(iter(folders or ["skimage"]))) / "data" / file
    if not path.exists():
        raise ValueError(f"built-in data needs {file} of scikit-image, which is not installed; install scikit-image")
    return path


def photograph(file: str) -> Image.Image:
    """Reads a photograph from scikit-image's wheel in RGB, at most HEIGHT pixels high."""
    with Image.open(photograph_path(file)) as opened:
        image = opened.convert("RGB")
    if image.height > HEIGHT:
        image = image.resize((round(image.width * HEIGHT / image.height), HEIGHT), Image.Resampling.BICUBIC)
    return image


def _corners(grey: Pixels, split: str) -> list[tuple[int, int]]:
    """Chooses tiles, evenly spread over a split's strip of a photograph (H, W). Returns (top, left) of each."""
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
    """Computes the standard deviation of each tile, by its top left corner: (H, W) -> (H - TILE + 1, W - TILE + 1)."""
    first, second = (_tile_sums(grey.astype(np.int64) ** power) / TILE**2 for power in (1, 2))
    return np.sqrt(second - first**2)


def _tile_sums(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Computes the sum over each tile from sums over the rectangles that start at the image's corner."""
    sums = np.pad(values, ((1, 0), (1, 0))).cumsum(0).cumsum(1)  # (H + 1, W + 1)
    return sums[TILE:, TILE:] - sums[:-TILE, TILE:] - sums[TILE:, :-TILE] + sums[:-TILE, :-TILE]
