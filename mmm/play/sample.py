"""Images and short films that a person gives to a model, and the built-in ones.

Shapes: T frames, (H, W) of a frame, C channels, s... a sample's axes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from mmm.core.types import Input
from mmm.data.clip_config import ClipsConfig
from mmm.data.decode.files import read_file
from mmm.data.decode.image import Pixels, decode_image
from mmm.data.decode.video.reader import OpenVideo
from mmm.data.errors import Unreadable
from mmm.data.media import VIDEO_SUFFIXES
from mmm.data.sources.builtin_images import photograph
from mmm.transform import Transform

MAX_BYTES = 64 * 2**20  # of an upload
MAX_FRAMES = 3600  # of a film: two minutes at 30 frames a second
MAX_FRAME_PIXELS = 9_000_000  # of a frame of a film: a little more than 4K has
PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "retina.jpg", "camera.png")
PANNED = ("astronaut.png", "coffee.png")  # photographs over which a built-in film moves
WINDOW, STEP, LENGTH = 256, 3, 64  # side of a built-in film, pixels that it moves from frame to frame, and its frames


@dataclass(frozen=True)
class Sample:
    """An image or a film.

    Attributes:
        name: shown to the person.
        source: the encoded bytes, or the frames of a built-in one, uint8 (T, H, W, C).
        film: whether it is a film.
        digest: 16 hexadecimal digits that change with the content.
    """

    name: str
    source: bytes | Pixels
    film: bool
    digest: str

    def prepare(self, data: Input) -> Tensor:
        """Returns what a model takes, normalised, (1, C, s...): as evaluation prepares the same file.

        A model of images gets the middle frame of a film; a model of clips gets an image as a film in which nothing moves.

        Raises:
            Unreadable: the file has no pixels for this model.
        """
        transform = Transform(data)
        try:
            if len(data.size) == 2:
                return transform(self._middle_frame(data.channels) if self.film else self._image(data))
            if not self.film:
                image = decode_image(self._image(data), data.channels)
                return transform(np.broadcast_to(image, (data.size[0], *image.shape)).copy())
            if isinstance(self.source, bytes):  # the clip that a task reads of the same file
                return Transform(data if data.stride is not None else replace(data, stride=ClipsConfig.stride))(self.source)
            numbers = np.arange(data.size[0]) * (len(self.source) - 1) // max(data.size[0] - 1, 1)
            return transform([decode_image(self.source[number], data.channels) for number in numbers])
        except ValueError as error:
            raise Unreadable(str(error)) from error

    def _image(self, data: Input) -> Any:
        return self.source if isinstance(self.source, bytes) else decode_image(self.source[0], data.channels)

    def _middle_frame(self, channels: int) -> Pixels:
        if not isinstance(self.source, bytes):
            return decode_image(self.source[len(self.source) // 2], channels)
        with OpenVideo(self.source) as video:
            return video.read([len(video) // 2], channels)[0]


def read_sample(path: str | Path, name: str | None = None) -> Sample:
    """Reads an uploaded file by its content, whatever its name says; at most MAX_BYTES and MAX_FRAMES.

    Raises:
        Unreadable: with the reason, in a line.
    """
    path = Path(path)
    name = name or path.name
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise Unreadable(f"{size / 2**20:,.0f} MB, more than the {MAX_BYTES // 2**20} MB that are taken")
    data = read_file(path)
    digest = hashlib.sha256(data).hexdigest()[:16]
    try:
        decode_image(data, 3)
        return Sample(name, data, False, digest)
    except Unreadable as error:
        reason = error
    try:
        with OpenVideo(data) as video:
            if len(video) > MAX_FRAMES:
                raise Unreadable(f"a film of {len(video):,} frames; at most {MAX_FRAMES:,} are taken, so cut it first")
            height, width = video.read([0]).shape[1:3]
            if height * width > MAX_FRAME_PIXELS:
                raise Unreadable(f"a film of {height} x {width} pixels; at most {MAX_FRAME_PIXELS:,} are taken, so reduce it first")
        return Sample(name, data, True, digest)
    except Unreadable as error:
        wanted_film = path.suffix.lower() in VIDEO_SUFFIXES or str(error).startswith("a film of")
        raise Unreadable(str(error if wanted_film else reason)) from None


def builtin_names() -> list[str]:
    """Returns the names of the built-in images, then those of the built-in films."""
    return [Path(file).stem for file in PHOTOGRAPHS] + [f"{Path(file).stem} (film)" for file in PANNED]


def builtin(name: str) -> Sample:
    """Returns a built-in image or film: photographs that come with scikit-image, and a window that moves over one.

    Raises:
        ValueError: there is none of this name.
    """
    film = name.endswith(" (film)")
    stem = name.removesuffix(" (film)")
    file = next((file for file in (PANNED if film else PHOTOGRAPHS) if Path(file).stem == stem), None)
    if file is None:
        raise ValueError(f"no built-in sample is called {name!r}; there are: {', '.join(builtin_names())}")
    pixels = np.array(photograph(file))  # (H, W, 3)
    if film:
        top = (pixels.shape[0] - WINDOW) // 2
        lefts = [min(STEP * number, pixels.shape[1] - WINDOW) for number in range(LENGTH)]
        pixels = np.stack([pixels[top : top + WINDOW, left : left + WINDOW] for left in lefts])
    else:
        pixels = pixels[None]
    return Sample(name, pixels, film, f"builtin-{name}")
