"""What `data.source` names: built-in data, a folder, a list, parquet files, tars, a name on the hub, or several of these."""

from __future__ import annotations

import glob
import os
from dataclasses import replace
from pathlib import Path

from mmm.data.config import DataConfig
from mmm.data.sources import file_list as lists
from mmm.data.sources.base import FRAMES, IMAGES, VIDEOS, Medium, Source, nearest
from mmm.data.sources.builtin_images import Photographs
from mmm.data.sources.concat import Several
from mmm.data.sources.file_list import ListFile
from mmm.data.sources.folder import Folder, files_below
from mmm.data.sources.huggingface import Hub, Parquet
from mmm.data.sources.webdataset.resolve import tars_at

GIVE = {
    "images": "a folder, parquet files, tars, a name on the hub or builtin:photographs",
    "videos": "a folder, a list file, parquet files, tars, a name on the hub or builtin:motion",
}


def find_source(config: DataConfig) -> Source:
    """Finds the data.

    Raises:
        ValueError: where there is nothing.
    """
    name, medium = config.source, config.medium
    if not name:
        raise ValueError(f"data.source is not set; give {GIVE[medium.noun]}")
    names = [name] if Path(name).expanduser().exists() else [part.strip() for part in name.split("+")]
    if config.weights and len(config.weights) != len(names):
        raise ValueError(f"data.weights has {len(config.weights)} numbers for {len(names)} of data.source; give each of a+b one")
    if len(names) > 1:
        return Several([find_source(replace(config, source=part, weights=())) for part in names], names)
    if name.startswith("builtin:"):
        return _builtin(name.removeprefix("builtin:"), config)
    if (tars := tars_at(name, config)) is not None:
        return tars
    path = Path(name).expanduser()
    if path.is_dir():
        files = sorted(path.rglob("*.parquet"))
        return _parquet(files, path, config) if files else Folder(path, _kind(path, medium))
    if medium is VIDEOS and path.is_file() and path.suffix.lower() in lists.SUFFIXES:
        return ListFile(path, medium)
    if path.is_file() or glob.has_magic(name):
        files = [path] if path.is_file() else sorted(Path(file) for file in glob.glob(str(path), recursive=True))
        if not files or any(file.suffix != ".parquet" for file in files):
            also = "" if medium is IMAGES else f", and lists ({', '.join(lists.SUFFIXES)})"
            raise ValueError(
                f"data.source {name}: " + (f"only parquet files and tars are read{also}" if files else "no file matches")
            )
        return _parquet(files, files[0].parent, config)
    if name.startswith(("/", ".", "~")) or name.count("/") > 1 or path.suffix == ".parquet":
        raise ValueError(f"data.source {name} does not exist")
    return Hub(name, config.column, config.label_column, medium)


def _builtin(name: str, config: DataConfig) -> Source:
    if config.medium is IMAGES:
        return Photographs(name, config.channels)
    if name != "motion":
        raise ValueError(f"data.source builtin:{name}: no such built-in {config.medium.noun}; {nearest(name, ['motion'])}")
    from mmm.data.sources.builtin_videos import film_folder  # here, for it imports the readers, and they what is above

    return Folder(film_folder(), VIDEOS)


def _parquet(files: list[Path], root: Path, config: DataConfig) -> Parquet:
    return Parquet(files, root, config.column, config.label_column, config.medium)


def _kind(root: Path, medium: Medium) -> Medium:
    """Videos may be files, or folders of frames: what comes first in the tree says which."""
    if medium is not VIDEOS:
        return medium
    for path in files_below(root):
        suffix = os.path.splitext(path)[1].lower()
        if suffix in VIDEOS.suffixes:
            return VIDEOS
        if suffix in FRAMES.suffixes and not _holds_video(root / path):
            return FRAMES
    return VIDEOS


def _holds_video(picture: Path) -> bool:
    """Whether a picture is only the thumbnail of a video beside it."""
    return any(path.suffix.lower() in VIDEOS.suffixes for path in picture.parent.iterdir())
