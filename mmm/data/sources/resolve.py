"""Opens the source that `data.source` names: built-in data, files, folders, tables, tars, addresses, the hub, or several."""

from __future__ import annotations

import glob
import os
from dataclasses import replace
from pathlib import Path, PurePath

from mmm.core.checks import suggest
from mmm.data.config import DataConfig
from mmm.data.media import FRAMES, IMAGES, VIDEOS, Medium
from mmm.data.sources import file_list as lists
from mmm.data.sources.addresses import FsspecFiles, RemoteTree, list_files, opens
from mmm.data.sources.base import Source
from mmm.data.sources.builtin_images import Photographs
from mmm.data.sources.concat import ConcatSource
from mmm.data.sources.file_list import ListFile
from mmm.data.sources.folder import FileSource, Folder, files_below
from mmm.data.sources.huggingface import Hub, Parquet, SavedDataset
from mmm.data.sources.in_memory import ArrayFile, RegisteredSource
from mmm.data.sources.webdataset.resolve import ENDINGS, expand, tars_at
from mmm.data.sources.webdataset.source import Tars

CHOICES = {
    "images": "a folder, files, a list file, parquet files, tars, an array (.npy), a name on the hub or builtin:photographs",
    "videos": "a folder, files, a list file, parquet files, tars, a name on the hub or builtin:motion",
}


def find_source(config: DataConfig) -> Source:
    """Opens the source that `data.source` names.

    Raises:
        ValueError: the source does not exist or is of no known kind.
    """
    name, medium = config.source, config.medium
    if not name:
        raise ValueError(f"data.source is not set; give {CHOICES[medium.noun]}")
    names = [name] if Path(name).expanduser().exists() else [part.strip() for part in name.split("+")]
    if config.weights and len(config.weights) != len(names):
        raise ValueError(
            f"data.weights has {len(config.weights)} numbers for {len(names)} of data.source; give one for each source of a+b"
        )
    if len(names) > 1:
        return ConcatSource([find_source(replace(config, source=part, weights=())) for part in names], names)
    if name.startswith("builtin:"):
        return _builtin(name.removeprefix("builtin:"), config)
    if name.startswith("registered:"):
        return RegisteredSource(name.removeprefix("registered:"), config)
    if opens(name):
        return _remote(name, config)
    if (tars := tars_at(name, config)) is not None:
        return tars
    path = Path(name).expanduser()
    if path.is_dir() and SavedDataset.is_at(path):
        return SavedDataset(path, config.column, config.label_column, medium)
    if path.is_dir():
        files = sorted(path.rglob("*.parquet"))
        return _parquet(files, path, config) if files else Folder(path, _video_medium(path, medium))
    if path.is_file() or glob.has_magic(name):
        files = [path] if path.is_file() else sorted(Path(file) for file in glob.glob(str(path), recursive=True))
        return _files(name, files, config)
    if name.startswith(("/", ".", "~")) or name.count("/") > 1 or path.suffix == ".parquet":
        raise ValueError(f"data.source {name} does not exist")
    return Hub(name, config.column, config.label_column, medium)


def _files(name: str, files: list[Path], config: DataConfig) -> Source:
    """Opens a single file, or the files that a glob matches."""
    medium, suffixes = config.medium, {file.suffix.lower() for file in files}
    if not files:
        raise ValueError(f"data.source {name}: no file matches")
    if suffixes == {".parquet"}:
        return _parquet(files, files[0].parent, config)
    if len(files) == 1 and suffixes == {".npy"} and medium is IMAGES:
        return ArrayFile(files[0], config)
    if len(files) == 1 and suffixes <= set(lists.SUFFIXES):
        return ListFile(files[0], medium, config.root, config.list_columns)
    if suffixes <= medium.suffixes:
        return FileSource(files, medium)
    other = ", ".join(sorted(suffix or "no extension" for suffix in suffixes - medium.suffixes))
    raise ValueError(
        f"data.source {name}: {other}: this kind of file is not read; "
        f"give {medium.noun}, lists ({', '.join(lists.SUFFIXES)}), parquet files or tars"
    )


def _builtin(name: str, config: DataConfig) -> Source:
    if config.medium is IMAGES:
        return Photographs(name, config.channels)
    if name != "motion":
        raise ValueError(f"data.source builtin:{name}: no such built-in {config.medium.noun}{suggest(name, ['motion'])}")
    from mmm.data.sources.builtin_videos import motion_folder  # here, because the video readers import this module

    return Folder(motion_folder(), VIDEOS)


def _parquet(files: list[Path], root: Path, config: DataConfig) -> Parquet:
    sizes = {str(file): file.stat().st_size for file in files}
    return Parquet(sizes, root, config.column, config.label_column, config.medium)


def _remote(name: str, config: DataConfig) -> Source:
    """Opens a source at an address that fsspec opens: tars, parquet files, or a folder of files.

    Raises:
        ValueError: the address has none of these.
    """
    sizes, folders = dict[str, int](), list[str]()
    for address in expand(name):
        found, folder = list_files(address)
        sizes |= found
        folders += [] if folder is None else [folder]
    noun, suffixes = config.medium.noun, config.medium.suffixes
    if not folders or not any(PurePath(address).suffix.lower() in suffixes for address in sizes):
        if tars := [address for address in sizes if address.endswith(ENDINGS)]:
            return Tars(FsspecFiles(tars), config, name)
        if tables := {address: size for address, size in sizes.items() if address.endswith(".parquet")}:
            return Parquet(tables, name, config.column, config.label_column, config.medium)
        raise ValueError(f"data.source {name}: only tars, parquet files and folders of {noun} can be read from an address")
    if len(folders) > 1:
        raise ValueError(f"data.source {name} names {len(folders)} folders; give one, or a+b")
    return Folder(RemoteTree(folders[0], sizes), config.medium)


def _video_medium(root: Path, medium: Medium) -> Medium:
    """Returns the medium of a folder of videos: files or folders of frames, whichever is found first."""
    if medium is not VIDEOS:
        return medium
    for path in files_below(root):
        suffix = os.path.splitext(path)[1].lower()
        if suffix in VIDEOS.suffixes:
            return VIDEOS
        if suffix in FRAMES.suffixes and not _holds_video(root / path):
            return FRAMES
    return VIDEOS


def _holds_video(image: Path) -> bool:
    """True if there is a video beside an image. The image is then its thumbnail."""
    return any(path.suffix.lower() in VIDEOS.suffixes for path in image.parent.iterdir())
