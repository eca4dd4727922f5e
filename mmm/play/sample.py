"""Images and short videos of visitors, and built-in ones.

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

MAX_BYTES = 64 * 2**20  # largest size of an upload
MAX_FRAMES = 3600  # largest number of frames of a video: two minutes at 30 frames per second
MAX_FRAME_PIXELS = 9_000_000  # largest number of pixels of a frame of a video: a little more than 4K
PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "retina.jpg", "camera.png")
PANNED = ("astronaut.png", "coffee.png")  # photographs over which a built-in video moves
WINDOW, STEP, LENGTH = 256, 3, 64  # side of a built-in video, pixels that it moves from frame to frame, and its frames


@dataclass(frozen=True)
class Sample:
    """An image or a video.

    Attributes:
        name: name on the page.
        source: the encoded bytes, or the frames of a built-in sample, uint8 (T, H, W, C).
        video: whether it is a video.
        digest: 16 hexadecimal digits that change with the content.
    """

    name: str
    source: bytes | Pixels
    video: bool
    digest: str

    def prepare(self, data: Input) -> Tensor:
        """Returns the input of a model, normalised, (1, C, s...), as evaluation prepares the same file.

        A model of images gets the middle frame of a video. A model of clips gets an image as a constant clip.

        Raises:
            Unreadable: the file has no pixels for this model.
        """
        transform = Transform(data)
        try:
            if len(data.size) == 2:
                return transform(self._middle_frame(data.channels) if self.video else self._image(data))
            if not self.video:
                image = decode_image(self._image(data), data.channels)
                return transform(np.broadcast_to(image, (data.size[0], *image.shape)).copy())
            if isinstance(self.source, bytes):  # the clip that a task reads from the same file
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
    """Reads an uploaded file by its content, not by its name; at most MAX_BYTES and MAX_FRAMES.

    Raises:
        Unreadable: reading fails; the message gives the reason.
    """
    path = Path(path)
    name = name or path.name
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise Unreadable(f"the file has {size / 2**20:,.0f} MB; at most {MAX_BYTES // 2**20} MB are accepted")
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
                raise Unreadable(f"a video of {len(video):,} frames; at most {MAX_FRAMES:,} are taken, so cut it first")
            height, width = video.read([0]).shape[1:3]
            if height * width > MAX_FRAME_PIXELS:
                raise Unreadable(
                    f"a video of {height} x {width} pixels; at most {MAX_FRAME_PIXELS:,} are taken, so reduce it first"
                )
        return Sample(name, data, True, digest)
    except Unreadable as error:
        is_video = path.suffix.lower() in VIDEO_SUFFIXES or str(error).startswith("a video of")
        raise Unreadable(str(error if is_video else reason)) from None


def builtin_names() -> list[str]:
    """Returns the names of the built-in images, then those of the built-in videos."""
    return [Path(file).stem for file in PHOTOGRAPHS] + [f"{Path(file).stem} (video)" for file in PANNED]


def builtin(name: str) -> Sample:
    """Returns a built-in image or video: a photograph that comes with scikit-image, or a window that moves over one.

    Raises:
        ValueError: there is no sample of this name.
    """
    video = name.endswith(" (video)")
    stem = name.removesuffix(" (video)")
    file = next((file for file in (PANNED if video else PHOTOGRAPHS) if Path(file).stem == stem), None)
    if file is None:
        raise ValueError(f"no built-in sample is called {name!r}; there are: {', '.join(builtin_names())}")
    pixels = np.array(photograph(file))  # (H, W, 3)
    if video:
        top = (pixels.shape[0] - WINDOW) // 2
        lefts = [min(STEP * number, pixels.shape[1] - WINDOW) for number in range(LENGTH)]
        pixels = np.stack([pixels[top : top + WINDOW, left : left + WINDOW] for left in lefts])
    else:
        pixels = pixels[None]
    return Sample(name, pixels, video, f"builtin-{name}")
