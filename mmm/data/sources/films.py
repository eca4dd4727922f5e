"""Real video files that are made on the spot: a window that glides over photographs, in one of eight directions, its class.

The photographs come with scikit-image; nothing is downloaded. The left half of each is for training and a strip of its right for
validation, with a gap; the test films are of photographs that no other part shows, so that no texture is in two of them.

A single frame says nothing of the class, by construction: a part of a photograph is continued by its mirror images to a plane
without end, and a film starts at a place that is drawn evenly over one period of it. So each frame of each class shows an evenly
drawn place too. No place is left out for how it looks; every film is given the same brightness and contrast.

`mmm.data.sources.builtin_videos` encodes them, once.

Shapes: T frames, (H, W) of a part of a photograph, (h, w) of a film.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmm.core.rng import Stream, sample_keys, stream, uniform
from mmm.data.decode.image import Pixels
from mmm.data.decode.video.encode import EncodeConfig, write_video
from mmm.data.sources.builtin_images import PHOTOGRAPHS, photograph

UNSEEN = ("astronaut.png", "camera.png", "cell.png", "retina.jpg", "rocket.jpg")
# of a split: the photographs, and the share of their width where it starts and ends
PARTS = {"train": (PHOTOGRAPHS, 0.0, 0.5), "validation": (PHOTOGRAPHS, 0.53, 0.72), "test": (UNSEEN, 0.0, 1.0)}
DIAGONAL = 0.5**0.5
# where what is seen moves to, as (down, right)
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
SIDE, FRAMES, RATE = 40, 20, 10.0  # pixels, frames, frames a second
SPEED = (0.9, 2.0)  # pixels a frame, drawn evenly
# of 255: the mean and deviation that every film gets, and what is added to its own deviation so that no noise is blown up
BRIGHTNESS, CONTRAST, FLOOR = 128.0, 48.0, 2.0
ENCODING = EncodeConfig(short_side=None, crf=23, preset="superfast")  # with slower presets libx264 makes other bits each time


def write_film(path: Path, split: str, index: int) -> None:
    """Encodes one film; see `film`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = film(split, index)
    write_video(path, (np.repeat(frame[..., None], 3, axis=2) for frame in frames), fps=RATE, config=ENCODING)


def film(split: str, index: int) -> Pixels:
    """The pictures of one film, a pure function of its place in its split; the class is the place modulo eight. uint8 (T, h, w)."""
    key = stream(sample_keys(0, list(PARTS).index(split), index), Stream.AUGMENT)
    which, top, left, fast = uniform(key, 4)[0].double().tolist()
    down, right = list(DIRECTIONS.values())[index % len(DIRECTIONS)]
    photographs = PARTS[split][0]
    plane = _plane(photographs[int(which * len(photographs))], split)  # (2 H, 2 W)
    # the window goes against what is seen
    moved = np.arange(FRAMES) * (SPEED[0] + fast * (SPEED[1] - SPEED[0]))
    rows = (top * plane.shape[0] - down * moved)[:, None] + np.arange(SIDE)  # (T, h)
    columns = (left * plane.shape[1] - right * moved)[:, None] + np.arange(SIDE)  # (T, w)
    seen = _look(plane, rows, columns)
    even = BRIGHTNESS + CONTRAST * (seen - seen.mean()) / (seen.std() + FLOOR)
    return even.round().clip(0, 255).astype(np.uint8)


def _look(plane: NDArray[np.float64], rows: NDArray[np.float64], columns: NDArray[np.float64]) -> NDArray[np.float64]:
    """The values between the pixels, bilinear, of a plane that repeats: at rows (T, h) and columns (T, w) to (T, h, w)."""
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
    """One period of the plane that a split's part of a photograph is continued to, (H, W) -> (2 H, 2 W)."""
    _, start, end = PARTS[split]
    grey = np.asarray(photograph(file).convert("L"), dtype=np.float64)
    part = grey[:, round(start * grey.shape[1]) : round(end * grey.shape[1])]
    half = np.concatenate([part, part[:, ::-1]], axis=1)
    return np.concatenate([half, half[::-1]], axis=0)
