"""Configs for sources that are named without a recipe: detects whether they contain images or videos, and chooses their split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from mmm.core.checks import suggest
from mmm.data.clip_config import ClipsConfig
from mmm.data.config import DataConfig, ImagesConfig
from mmm.data.decode.image import decode_image
from mmm.data.decode.video.reader import FrameRange, OpenVideo
from mmm.data.errors import Unreadable
from mmm.data.media import FRAMES, IMAGE_SUFFIXES, VIDEO_SUFFIXES
from mmm.data.sources.concat import ConcatSource
from mmm.data.sources.folder import Folder
from mmm.data.sources.resolve import find_source

MediumName = Literal["videos", "images"]


def describe_source(
    source: str | None,
    options: Mapping[str, Any],
    *,
    medium: MediumName | None = None,
    root: str | None = None,
    column: str | None = None,
) -> DataConfig:
    """Returns the config that reads a source.

    Args:
        source: value of `data.source`.
        options: values of other fields of `DataConfig`, by name.
        medium: type of the inputs. None: found from the files.
        root: value of `data.root`.
        column: column of images or videos in a table. None: found by type.
    """
    if (medium or detect_medium(source, root, options.get("list_columns", ()))) == "images":
        return ImagesConfig(source=source, root=root, image_column=column, **options)
    return ClipsConfig(source=source, root=root, video_column=column, frame_folders=medium == "videos", **options)


def with_split(data: DataConfig, split: str | None, *, usual: str | None = None) -> DataConfig:
    """Returns the config that reads a split of its source as the training split.

    Args:
        data: names the source.
        split: a split of the source. None: the only split, or `usual` if there are several.
        usual: None: `split` must be given if there are several.

    Raises:
        ValueError: the source has no such split, or `split` is missing.
    """
    splits = find_source(data).splits
    wanted = split or (splits[0] if len(splits) == 1 else usual)
    if wanted is None:
        raise ValueError(f"{data.source} has the splits {', '.join(splits)}; choose one, for instance --split {splits[0]}")
    if wanted not in splits:
        raise ValueError(f"--split {wanted}: {data.source} has no such split{suggest(wanted, splits)}")
    return replace(data, split=wanted)


def detect_medium(source: str | None, root: str | None = None, list_columns: tuple[str, ...] = ()) -> MediumName:
    """Returns "videos" or "images", found from the files of a folder or from the first input of any other source."""
    try:
        found = find_source(ClipsConfig(source=source, root=root, list_columns=list_columns))
        found = found.sources[0] if isinstance(found, ConcatSource) else found
        if isinstance(found, Folder):
            return "images" if found.medium is FRAMES else "videos"
        first = found.table(found.splits[0]).column[0]
    except (ValueError, Unreadable):
        return "images"  # errors of the source are reported when it is opened
    if isinstance(first, FrameRange):
        return "videos"
    if not isinstance(first, (bytes, Path)):  # decoded pixels
        return "images"
    if isinstance(first, Path) and first.is_dir():  # frames
        return "videos"
    if isinstance(first, Path) and first.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES:
        return "videos" if first.suffix.lower() in VIDEO_SUFFIXES else "images"
    return "videos" if _opens_as_video(first) and not _is_image(first) else "images"


def _is_image(sample: bytes | Path) -> bool:
    try:
        decode_image(sample, 3)
    except Unreadable:
        return False
    return True


def _opens_as_video(sample: bytes | Path) -> bool:
    try:
        with OpenVideo(sample):
            return True
    except Unreadable:
        return False
