"""Clips with masks of their frames: built-in scenes, DAVIS's folder, or one video with a mask of its first frame.

Shapes: T frames, (H, W) pixels, C channels.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmm.data.annotated.maps import decode_map
from mmm.data.decode.image import Pixels
from mmm.data.decode.video.reader import OpenVideo
from mmm.data.errors import Unreadable
from mmm.data.sources.scenes import COUNTS, FRAMES, render

logger = logging.getLogger(__name__)

FRAMES_FOLDER, MASKS_FOLDER, LIST = "JPEGImages/480p", "Annotations/480p", "ImageSets/2017/val.txt"  # DAVIS 2017
MOST = 255  # largest number of objects of a clip; masks are 8-bit


@dataclass(frozen=True)
class MaskedClip:
    """A clip whose objects are known in its first frame, or in all frames.

    Attributes:
        name: name of the clip.
        frames: uint8 (T, H, W, C).
        first: objects of the first frame, 0 for the background, uint8 (H, W).
        masks: objects of all frames, uint8 (T, H, W), or None.
    """

    name: str
    frames: Pixels
    first: NDArray[np.uint8]
    masks: NDArray[np.uint8] | None


def masked_clips(source: str, mask: str | None, channels: int, count: int | None) -> Iterator[MaskedClip]:
    """Yields the clips of a source. A clip that cannot be read is named in a warning and left out.

    Args:
        source: builtin:scenes, DAVIS's folder, or a video (a file, or a folder of frames).
        mask: file with the objects of a video's first frame.
        channels: number of channels.
        count: largest number of clips. None: all.

    Raises:
        ValueError: the source does not exist, or a video has no mask.
    """
    path = Path(source).expanduser()
    if source == "builtin:scenes":
        for index in range(min(count or COUNTS["test"], COUNTS["test"])):
            scene = render("test", index, FRAMES)
            frames = np.repeat(scene.pixels[..., None], channels, axis=3)
            yield MaskedClip(f"scene {index}", frames, scene.instances[0], scene.instances)
        return
    if not path.exists():
        raise ValueError(f"{source} does not exist; give builtin:scenes, DAVIS's folder, or a video with --mask")
    if (path / FRAMES_FOLDER).is_dir():
        names = (path / LIST).read_text(encoding="utf-8").split() if (path / LIST).is_file() else None
        names = names or sorted(one.name for one in (path / FRAMES_FOLDER).iterdir() if one.is_dir())
        for name in names[:count]:
            try:
                yield _davis(path, name, channels)
            except Unreadable as error:
                logger.warning("cannot read %s: %s; it is left out", name, error)
        return
    if mask is None:
        raise ValueError(f"{source} is a video; give --mask FILE, the objects of its first frame, or DAVIS's folder")
    try:
        yield _single(path, Path(mask).expanduser(), channels)
    except Unreadable as error:
        raise ValueError(f"{source} or {mask} cannot be read: {error}") from error


def _davis(root: Path, name: str, channels: int) -> MaskedClip:
    with OpenVideo(root / FRAMES_FOLDER / name) as video:
        frames = video.read(range(len(video)), channels)
    files = sorted((root / MASKS_FOLDER / name).glob("*.png"))
    if not files:
        raise Unreadable(f"has no masks in {MASKS_FOLDER}/{name}")
    masks = np.stack([_objects(file, frames.shape[1:3]) for file in files])
    if 1 < len(masks) != len(frames):
        raise Unreadable(f"has {len(frames)} frames and {len(masks)} masks; give one mask for each, or the first alone")
    return MaskedClip(name, frames, masks[0], masks if len(masks) == len(frames) else None)


def _single(path: Path, mask: Path, channels: int) -> MaskedClip:
    with OpenVideo(path) as video:
        frames = video.read(range(len(video)), channels)
    return MaskedClip(path.stem, frames, _objects(mask, frames.shape[1:3]), None)


def _objects(file: Path, size: tuple[int, ...]) -> NDArray[np.uint8]:
    """Reads the objects of a frame, uint8 (H, W).

    Raises:
        Unreadable: the mask has another size than the frame, or too many objects.
    """
    values = decode_map(file)
    if values.shape != tuple(size):
        raise Unreadable(f"{file.name} has {values.shape[0]} x {values.shape[1]} pixels and its frame {size[0]} x {size[1]}")
    values = np.where(values == 255, 0, values)  # pixels that DAVIS does not evaluate
    if values.max() > MOST or values.min() < 0:
        raise Unreadable(f"{file.name} has the label {values.max()}; 0 is the background, and 1 to {MOST} are objects")
    return values.astype(np.uint8)
