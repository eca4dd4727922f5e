"""`builtin:motion`: short videos, rendered once into the user's cache: a window that moves over photographs, in one of eight
directions, which is the class.

The photographs come with scikit-image; nothing is downloaded. Training shows the left half of each and validation a strip of its
right half, with a gap between them; the test videos show other photographs, so that no texture is in two splits.

A single frame does not reveal the class, by construction: mirror images extend a part of a photograph to an infinite plane, and a
video starts at a position drawn uniformly over one period of it. In each frame of each class the position is therefore also
uniform. No position is excluded because of its content. All videos have the same brightness and contrast.

The folder gets its final name when it is complete. The name contains a hash of everything that the videos depend on. A list of file
sizes in the folder shows whether it is still complete; if it is not, the videos are rendered again.

Shapes: T frames, (H, W) of a part of a photograph, (h, w) of a video.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from mmm.core.rng import Stream, sample_keys, stream, uniform
from mmm.data.decode.image import Pixels
from mmm.data.decode.video.encode import EncodeConfig, write_video
from mmm.data.loading.scan import map_inputs
from mmm.data.sources.builtin_images import PHOTOGRAPHS, photograph
from mmm.system.files import digest, replacing, user_cache

logger = logging.getLogger(__name__)

VERSION = 1  # increase it when the videos change
COUNTS = {"train": 1600, "validation": 400, "test": 800}  # videos of each split
SIZES = "sizes.json"

UNSEEN = ("astronaut.png", "camera.png", "cell.png", "retina.jpg", "rocket.jpg")
# by split: the photographs, and the shares of their width between which they are shown
PARTS = {"train": (PHOTOGRAPHS, 0.0, 0.5), "validation": (PHOTOGRAPHS, 0.53, 0.72), "test": (UNSEEN, 0.0, 1.0)}
DIAGONAL = 0.5**0.5
# direction in which the content moves, as (down, right)
DIRECTIONS = {
    "right": (0.0, 1.0),
    "down_right": (DIAGONAL, DIAGONAL),
    "down": (1.0, 0.0),
    "down_left": (DIAGONAL, -DIAGONAL),
    "left": (0.0, -1.0),
    "up_left": (-DIAGONAL, -DIAGONAL),
    "up": (-1.0, 0.0),
    "up_right": (-DIAGONAL, DIAGONAL),
}
SIDE, FRAMES, RATE = 40, 20, 10.0  # pixels, frames, frames per second
SPEED = (0.9, 2.0)  # pixels per frame, drawn uniformly
# of 255: mean and standard deviation of each video, and a value added to the original deviation so that noise is not amplified
BRIGHTNESS, CONTRAST, FLOOR = 128.0, 48.0, 2.0
ENCODING = EncodeConfig(short_side=None, crf=23, preset="superfast")  # with slower presets libx264 is not deterministic


def motion_folder(cache: Path | None = None, counts: Mapping[str, int] | None = None) -> Path:
    """Returns the folder of the videos, which are rendered if they are missing: about 15 s on two cores, 20 MB.

    Args:
        cache: parent folder; None: the user's cache.
        counts: number of videos of each split; None: COUNTS.

    Returns:
        A folder of `SPLIT/DIRECTION/NUMBER.mp4`.
    """
    cache, counts = user_cache() if cache is None else cache, COUNTS if counts is None else counts
    folder = cache / f"motion-{_hash(counts)}"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f".{folder.name}.lock"):  # waits for another process that renders them
        if not _is_complete(folder):
            _render(folder, counts)
    return folder


def _hash(counts: Mapping[str, int]) -> str:
    looks = (SIDE, FRAMES, RATE, SPEED, BRIGHTNESS, CONTRAST, FLOOR)
    return digest([VERSION, dict(counts), PARTS, DIRECTIONS, looks, ENCODING])


def _is_complete(folder: Path) -> bool:
    """True if all files exist with the listed sizes."""
    try:
        sizes: dict[str, int] = json.loads((folder / SIZES).read_text(encoding="utf-8"))
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (FileNotFoundError, ValueError):
        return False


def _render(folder: Path, counts: Mapping[str, int]) -> None:
    """Encodes all videos into a temporary folder, which then replaces the old one."""
    for left in folder.parent.glob(f".{folder.name}.*tmp"):  # left by a killed process, because this process holds the lock
        shutil.rmtree(left, ignore_errors=True)
    names = [(split, index) for split, count in counts.items() for index in range(count)]
    logger.info("rendering %d short videos into %s, once", len(names), folder)
    classes = list(DIRECTIONS)
    with replacing(folder) as temporary:
        paths = [temporary / split / classes[index % len(classes)] / f"{index:05d}.mp4" for split, index in names]

        def work(number: int) -> dict[str, int]:
            write_motion_video(paths[number], *names[number])
            return {}

        for finding in map_inputs(lambda number: str(paths[number]), work, len(paths), workers=None, title="videos"):
            assert finding.reason is None
        sizes = {path.relative_to(temporary).as_posix(): path.stat().st_size for path in paths}
        (temporary / SIZES).write_text(json.dumps(sizes), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)


def write_motion_video(path: Path, split: str, index: int) -> None:
    """Encodes one video; see `motion_frames`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = motion_frames(split, index)
    write_video(path, (np.repeat(frame[..., None], 3, axis=2) for frame in frames), fps=RATE, config=ENCODING)


def motion_frames(split: str, index: int) -> Pixels:
    """Renders one video, a pure function of its split and index; the class is the index modulo eight. uint8 (T, h, w)."""
    key = stream(sample_keys(0, list(PARTS).index(split), index), Stream.AUGMENT)
    which, top, left, fast = uniform(key, 4)[0].double().tolist()
    down, right = list(DIRECTIONS.values())[index % len(DIRECTIONS)]
    photographs = PARTS[split][0]
    plane = _plane(photographs[int(which * len(photographs))], split)  # (2 H, 2 W)
    # the window moves in the direction opposite to that of the content
    moved = np.arange(FRAMES) * (SPEED[0] + fast * (SPEED[1] - SPEED[0]))
    rows = (top * plane.shape[0] - down * moved)[:, None] + np.arange(SIDE)  # (T, h)
    columns = (left * plane.shape[1] - right * moved)[:, None] + np.arange(SIDE)  # (T, w)
    frames = _interpolate(plane, rows, columns)
    normalised = BRIGHTNESS + CONTRAST * (frames - frames.mean()) / (frames.std() + FLOOR)
    return normalised.round().clip(0, 255).astype(np.uint8)


def _interpolate(plane: NDArray[np.float64], rows: NDArray[np.float64], columns: NDArray[np.float64]) -> NDArray[np.float64]:
    """Interpolates a repeating plane bilinearly at rows (T, h) and columns (T, w), to (T, h, w)."""
    down, across = (np.floor(places).astype(np.int64) for places in (rows, columns))
    below, beside = (rows - down)[:, :, None], (columns - across)[:, None]  # (T, h, 1), (T, 1, w)

    def at(row: int, column: int) -> NDArray[np.float64]:
        values: NDArray[np.float64] = plane[
            ((down + row) % plane.shape[0])[:, :, None], ((across + column) % plane.shape[1])[:, None]
        ]
        return values

    upper = at(0, 0) * (1 - beside) + at(0, 1) * beside
    lower = at(1, 0) * (1 - beside) + at(1, 1) * beside
    return upper * (1 - below) + lower * below


@cache
def _plane(file: str, split: str) -> NDArray[np.float64]:
    """Returns one period of the plane to which a split's part of a photograph is continued, (H, W) -> (2 H, 2 W)."""
    _, start, end = PARTS[split]
    grey = np.asarray(photograph(file).convert("L"), dtype=np.float64)
    part = grey[:, round(start * grey.shape[1]) : round(end * grey.shape[1])]
    half = np.concatenate([part, part[:, ::-1]], axis=1)
    return np.concatenate([half, half[::-1]], axis=0)
