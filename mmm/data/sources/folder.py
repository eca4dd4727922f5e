"""Folders of images or videos, and single files.

The folders are listed here and not by `datasets`, whose lister takes a class named `train` for a split and drops the other classes.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import torch

from mmm.data.media import IMAGES, Medium
from mmm.data.sources.base import EVALUATION, Column, Table
from mmm.system.files import digest

logger = logging.getLogger(__name__)

HIDDEN = (".", "__MACOSX")  # first characters of the names of files and folders that are left out
SIZES = 1000  # files whose size enters the fingerprint; the sizes of a million files on a network take minutes


class FileColumn:
    """Paths relative to a root, in one Arrow array: a list of a million strings would be copied into every worker.

    Args:
        root: the folder.
        paths: paths of the samples.
        split: first part of the samples' names, so that files of two splits have different names.
    """

    def __init__(self, root: Path, paths: list[str], split: str = "") -> None:
        import pyarrow

        self.root, self.split = root, split
        self.paths = pyarrow.array([os.fsencode(path) for path in paths], pyarrow.binary())  # a name need not be UTF-8

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> Path:
        return self.root / self._path(row)

    def name(self, row: int) -> str:
        """See `Column.name`."""
        return printable(self.split + self._path(row))

    def _path(self, row: int) -> str:
        return os.fsdecode(self.paths[row].as_py())


class Tree(Protocol):
    """A folder on a disk or at an address; `LocalTree` documents the methods."""

    def folders(self, below: str = "", /) -> list[str]: ...

    def files(self, below: str = "", /) -> Iterator[str]: ...

    def size(self, path: str, /) -> int: ...

    def column(self, below: str, paths: list[str], /) -> Column: ...


class LocalTree:
    """A folder on a disk. Paths in it are relative and use `/`; the paths of folders end with `/`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __str__(self) -> str:
        return str(self.root)

    def folders(self, below: str = "") -> list[str]:
        """Lists the names of the sub-folders of a folder that are not hidden, sorted."""
        with os.scandir(self.root / below) as entries:
            return sorted(entry.name for entry in entries if _is(entry.is_dir) and not entry.name.startswith(HIDDEN))

    def files(self, below: str = "") -> Iterator[str]:
        """Lists the relative paths of all files below a folder, including broken links and pipes, so that they are counted."""
        return files_below(self.root / below, every=True)

    def size(self, path: str) -> int:
        """Returns the size of a file in bytes; -1 for a broken link."""
        try:
            return (self.root / path).stat().st_size
        except OSError:
            return -1

    def column(self, below: str, paths: list[str]) -> Column:
        """Returns the files at these paths below a folder as samples."""
        return FileColumn(self.root / below, paths, below)


class Folder:
    """A folder whose sub-folders are the classes; without sub-folders the samples have no labels.

    Sub-folders `train` and `validation`, `val`, `test`, ... (EVALUATION) are splits if no other sub-folder contains samples.
    The classes are then those of all splits together, so that labels agree. Links are followed. Hidden files are left out.

    Args:
        root: the folder.
        medium: kind of the samples: files, or folders of the frames of a video.

    Raises:
        ValueError: the folder cannot be listed.
    """

    def __init__(self, root: Path | Tree, medium: Medium = IMAGES) -> None:
        self.tree: Tree = LocalTree(root) if isinstance(root, Path) else root
        self.medium = medium
        folders = self.tree.folders()
        known = [name for name in folders if name in ("train", *EVALUATION)]
        others = [name for name in folders if name not in known] if known else []
        others = [name for name in others if any(self._fits(path) for path in self.tree.files(f"{name}/"))]
        self.split_folders = "train" in known and (len(known) > 1 or len(folders) == 1) and not others
        if known and others:
            message = "%s: %s are classes and not splits, because there is also the folder %s"
            logger.warning(message, self.tree, ", ".join(known), others[0])
        self.splits: tuple[str, ...] = tuple(known) if self.split_folders else ("train",)

    def table(self, split: str) -> Table:
        """Lists a split.

        Raises:
            ValueError: the split contains no sample.
        """
        tree, below = self.tree, f"{split}/" if self.split_folders else ""
        parents = [f"{name}/" for name in self.splits] if self.split_folders else [""]
        classes = tuple(sorted({name for parent in parents for name in tree.folders(parent)}))
        labelled = self._has_classes(below)  # a test split often has no classes although the other splits have them
        paths = self._sample_paths(below, labelled)
        labels = None
        if labelled:
            number = {name: i for i, name in enumerate(classes)}
            names = [path.split("/", 1)[0] for path in paths]
            labels = torch.tensor([number[name] for name in names], dtype=torch.int64)
            if empty := sorted(set(tree.folders(below)) - set(names)):
                where, listed = os.path.join(str(tree), below), ", ".join(empty)
                logger.warning("%s: classes without %s: %s (each folder is a class)", where, self.medium.noun, listed)
        sizes = [tree.size(below + path) for path in paths[:: max(1, len(paths) // SIZES)]]
        fingerprint = digest([split, len(paths), *paths, *sizes])
        return Table(tree.column(below, paths), labels, classes if labels is not None else None, fingerprint)

    def _has_classes(self, below: str) -> bool:
        """True if there are sub-folders and, if a sample is itself a folder, sub-folders in those."""
        folders = self.tree.folders(below)
        return any(self.tree.folders(f"{below}{name}/") for name in folders) if self.medium.is_folder else bool(folders)

    def _sample_paths(self, below: str, with_classes: bool) -> list[str]:
        """Lists the samples' paths from a folder, sorted. Logs the number of files of each kind that are left out."""
        noun = self.medium.noun
        paths, left = set(), Counter[str]()
        for path in self.tree.files(below):
            sample = path.rpartition("/")[0] if self.medium.is_folder else path
            if not self._fits(path):
                left[os.path.splitext(path)[1].lower() or "no extension"] += 1
            elif not sample or (with_classes and "/" not in sample):
                left[f"{noun} beside the class folders"] += 1
            else:
                paths.add(sample)
        where, listed = os.path.join(str(self.tree), below), ", ".join(f"{count} x {kind}" for kind, count in left.most_common())
        if not paths:
            raise ValueError(f"data.source {where} holds no {noun}" + (f", only {listed}" if left else "; it is empty"))
        if left:
            logger.warning("%s: %d %s found; left out: %s", where, len(paths), noun, listed)
        return sorted(paths)

    def _fits(self, path: str) -> bool:
        return os.path.splitext(path)[1].lower() in self.medium.suffixes


class FileSource:
    """A list of files without labels: a single file, or the files that a glob matches.

    Args:
        files: at least one.
        medium: kind of the files.

    Raises:
        ValueError: a file is of another kind.
    """

    splits: tuple[str, ...] = ("train",)

    def __init__(self, files: Sequence[Path], medium: Medium) -> None:
        if other := [file for file in files if file.suffix.lower() not in medium.suffixes]:
            raise ValueError(f"data.source {other[0]} is not one of the {medium.noun} that can be read")
        self.files = files

    def table(self, split: str) -> Table:
        """Returns the files in the given order."""
        paths, tree = [str(file) for file in self.files], LocalTree(Path())
        sizes = [tree.size(path) for path in paths[:: max(1, len(paths) // SIZES)]]
        return Table(FileColumn(tree.root, paths), None, None, digest([split, len(paths), *paths, *sizes]))


def files_below(root: Path, below: str = "", seen: frozenset[str] = frozenset(), *, every: bool = False) -> Iterator[str]:
    """Yields the regular files below a root as relative paths with `/`; links are followed, cycles of links are not.

    Args:
        root: the folder.
        below: a folder in it; its path ends with `/`.
        seen: the folders above it.
        every: whether to also yield pipes and broken links, which cannot be read.

    Raises:
        ValueError: a folder cannot be listed.
    """
    here = root / below
    real = os.path.realpath(here)
    if real in seen:
        return
    try:
        entries = os.scandir(here)
    except OSError as error:
        raise ValueError(f"data.source {here} cannot be listed: {error.strerror}") from error
    with entries:
        for entry in entries:
            if entry.name.startswith(HIDDEN):
                continue
            if _is(entry.is_dir):
                yield from files_below(root, f"{below}{entry.name}/", seen | {real}, every=every)
            elif every or _is(entry.is_file):
                yield below + entry.name


def printable(name: str) -> str:
    """Converts a name to one line of UTF-8; line breaks and bytes of another encoding become \\x0a."""
    text = name.encode("utf-8", "backslashreplace").decode()
    return text if text.isprintable() else "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def _is(test: Callable[[], bool]) -> bool:
    try:
        return test()
    except OSError:  # a link that points to itself
        return False
