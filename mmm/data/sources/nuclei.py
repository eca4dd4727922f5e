"""Built-in microscopy: 125 cell nuclei with one mask each, in one fluorescence image that comes with the package `stardist`.

The image is from the 2018 Data Science Bowl (Caicedo et al., Nature Methods 2019). Only the package's two files are read and none
of its code is run, so that `pip install --no-deps stardist` is enough. Tiles of the left part are for training, tiles of the right
part for testing; there is a gap between the parts, so that no pixel is in both.

Shapes: N tiles, S side of a tile in pixels.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmm.system.files import digest

FILES = ("data/images/img2d.tif", "data/images/mask2d.tif")  # paths in the package
TILE = 64  # pixels
# columns of the image where each split starts and ends, and the distance between the corners of its tiles
PARTS = {"train": (0, 240, 16), "test": (256, 512, 64)}
SMALLEST = 16  # pixels; evaluation ignores whether smaller parts of nuclei, at the edge of a tile, are found
CLASSES = ("background", "nucleus")


@dataclass(frozen=True)
class Tiles:
    """The tiles of one split.

    Attributes:
        pixels: uint8 (N, S, S), grey.
        instances: uint8 (N, S, S), 0 for the background, then the nuclei of a tile from 1.
        names: names of the tiles.
    """

    pixels: NDArray[np.uint8]
    instances: NDArray[np.uint8]
    names: list[str]


def nuclei_folder() -> Path:
    """Returns the folder of the package stardist.

    Raises:
        ValueError: the package is not installed.
    """
    package = importlib.util.find_spec("stardist")  # not imported: only its files are needed
    folders = package.submodule_search_locations if package else None
    if not folders:
        raise ValueError("data.source builtin:nuclei needs an image of the package stardist; pip install --no-deps stardist")
    return Path(next(iter(folders)))


@cache
def nuclei(split: str) -> Tiles:
    """Cuts the tiles of a split.

    Raises:
        ValueError: the package is not installed, or contains other files.
    """
    image, masks = (_read(nuclei_folder() / file) for file in FILES)
    start, end, stride = PARTS[split]
    rows, columns = range(0, image.shape[0] - TILE + 1, stride), range(start, end - TILE + 1, stride)
    corners = [(top, left) for top in rows for left in columns]
    cuts = [(slice(top, top + TILE), slice(left, left + TILE)) for top, left in corners]
    numbered = [np.unique(masks[cut], return_inverse=True) for cut in cuts]
    # a tile without background would number its first nucleus 0
    instances = [inverse.reshape(TILE, TILE) + int(found[0] > 0) for found, inverse in numbered]
    names = [f"nuclei at {top}, {left}" for top, left in corners]
    return Tiles(np.stack([image[cut] for cut in cuts]), np.stack(instances).astype(np.uint8), names)


def nuclei_fingerprint(split: str) -> str:
    """Returns a hash that changes with the tiles of a split."""
    tiles = nuclei(split)
    return digest(["nuclei", split, *tiles.names, int(tiles.pixels.sum()), int(tiles.instances.sum())])


def _read(file: Path) -> NDArray[np.uint8]:
    """Reads a file of the package, (512, 512).

    Raises:
        ValueError: the file does not exist, or has other content.
    """
    import tifffile

    if not file.is_file():
        raise ValueError(f"data.source builtin:nuclei: {file} is missing; reinstall stardist")
    values = tifffile.imread(file)
    if values.shape != (512, 512) or values.max() > 255:
        raise ValueError(f"data.source builtin:nuclei: {file} is not the image that is expected; install stardist 0.9")
    return values.astype(np.uint8)
