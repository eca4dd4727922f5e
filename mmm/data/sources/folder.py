"""A folder of images or of videos.

Listed by us: the hub library's own lister takes a class called `train` for a split and loses the rest.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import torch

from mmm.data.sources.base import EVALUATION, IMAGES, Cells, Medium, Table, digest
from mmm.data.sources.listing import files_below as files_below
from mmm.data.sources.listing import folders_in, printable, size_of

logger = logging.getLogger(__name__)

SIZES = 1000  # files whose size enters the fingerprint; to ask for all of a million takes minutes on a network


class FolderCells:
    """Paths relative to a root. Kept in one Arrow array: a list of a million strings is copied into every worker that reads it."""

    def __init__(self, root: Path, paths: list[str], split: str = "") -> None:
        import pyarrow

        self.root, self.split = root, split
        self.paths = pyarrow.array([os.fsencode(path) for path in paths], pyarrow.binary())  # a name need not be UTF-8

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> Path:
        return self.root / self._path(row)

    def name(self, row: int) -> str:
        """Below the source, so that files of two splits have two names."""
        return printable(self.split + self._path(row))

    def _path(self, row: int) -> str:
        return os.fsdecode(self.paths[row].as_py())


class Tree(Protocol):
    """A folder somewhere: `LocalTree` documents the methods."""

    def folders(self, below: str = "", /) -> list[str]: ...

    def files(self, below: str = "", /) -> Iterator[str]: ...

    def size(self, path: str, /) -> int: ...

    def cells(self, below: str, paths: list[str], /) -> Cells: ...


class LocalTree:
    """A folder on a disk. Paths within it are relative, with `/`; those of folders end with it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __str__(self) -> str:
        return str(self.root)

    def folders(self, below: str = "") -> list[str]:
        """Names of the folders in one, sorted."""
        return folders_in(self.root / below)

    def files(self, below: str = "") -> Iterator[str]:
        """All files below a folder, by their paths from it, and what can only be refused: pipes, links to nothing."""
        return files_below(self.root / below, every=True)

    def size(self, path: str) -> int:
        """Bytes of a file; -1 of a link to nothing."""
        return size_of(self.root / path)

    def cells(self, below: str, paths: list[str]) -> Cells:
        """Files below a folder as samples."""
        return FolderCells(self.root / below, paths, below)


class Folder:
    """A tree whose first sub-folders are the classes; without sub-folders the samples have no labels.

    Sub-folders `train` and `validation`, `val`, `test` ... (EVALUATION) are splits, if no other sub-folder holds samples; then the
    classes are those of all splits together, so that their numbers agree. Links are followed. Hidden files are left out.

    Args:
        root: the folder.
        medium: what a sample is: a file of some kind, or a whole folder of such files, as of a video's frames.

    Raises:
        ValueError: if it is empty.
    """

    def __init__(self, root: Path | Tree, medium: Medium = IMAGES) -> None:
        self.tree: Tree = LocalTree(root) if isinstance(root, Path) else root
        self.medium = medium
        folders = self.tree.folders()
        known = [name for name in folders if name in ("train", *EVALUATION)]
        others = [name for name in folders if name not in known] if known else []
        others = [name for name in others if any(self._is_one(path) for path in self.tree.files(f"{name}/"))]
        self.split_folders = "train" in known and (len(known) > 1 or len(folders) == 1) and not others
        if known and others:
            message = "%s: %s taken as classes, not as splits, because %s is beside"
            logger.warning(message, self.tree, ", ".join(known), others[0])
        self.splits: tuple[str, ...] = tuple(known) if self.split_folders else ("train",)

    def table(self, split: str) -> Table:
        """Lists a split.

        Raises:
            ValueError: where there is no sample in it.
        """
        tree, below = self.tree, f"{split}/" if self.split_folders else ""
        parents = [f"{name}/" for name in self.splits] if self.split_folders else [""]
        classes = tuple(sorted({name for parent in parents for name in tree.folders(parent)}))
        labelled = self._has_classes(below)  # a test split often has none, where the others have
        taken = self._take(below, labelled)
        labels = None
        if labelled:
            number = {name: i for i, name in enumerate(classes)}
            labels = torch.tensor([number[path.split("/", 1)[0]] for path in taken], dtype=torch.int64)
        every = max(1, len(taken) // SIZES)
        sizes = [tree.size(below + path) for path in taken[::every]]
        fingerprint = digest([split, len(taken), *taken, *sizes])
        return Table(tree.cells(below, taken), labels, classes if labels is not None else None, fingerprint)

    def _has_classes(self, below: str) -> bool:
        """Whether there are sub-folders and, where each is a sample itself, sub-folders of those."""
        folders = self.tree.folders(below)
        return any(self.tree.folders(f"{below}{name}/") for name in folders) if self.medium.whole else bool(folders)

    def _take(self, below: str, with_classes: bool) -> list[str]:
        """The samples' paths from a folder, sorted; logs what was left out, and why."""
        noun, whole = self.medium.noun, self.medium.whole
        taken, left = set(), Counter[str]()
        for path in self.tree.files(below):
            sample = path.rpartition("/")[0] if whole else path
            if not self._is_one(path):
                left[os.path.splitext(path)[1].lower() or "no extension"] += 1
            elif not sample or (with_classes and "/" not in sample):
                left[f"{noun} beside the class folders"] += 1
            else:
                taken.add(sample)
        where, listed = os.path.join(str(self.tree), below), ", ".join(f"{count} x {what}" for what, count in left.most_common())
        if not taken:
            raise ValueError(f"data.source {where} holds no {noun}" + (f", only {listed}" if left else "; it is empty"))
        if left:
            logger.warning("%s: %d %s taken; left out: %s", where, len(taken), noun, listed)
        return sorted(taken)

    def _is_one(self, path: str) -> bool:
        return os.path.splitext(path)[1].lower() in self.medium.suffixes


class FileSource:
    """Files that are named one by one.

    Args:
        files: at least one.
        medium: what a sample is.

    Raises:
        ValueError: for a file that is none of the medium's.
    """

    splits: tuple[str, ...] = ("train",)

    def __init__(self, files: Sequence[Path], medium: Medium) -> None:
        if other := [file for file in files if file.suffix.lower() not in medium.suffixes]:
            raise ValueError(f"data.source {other[0]} is not one of the {medium.noun} that are read")
        self.files = files

    def table(self, split: str) -> Table:
        """The files, in the order in which they are given, without labels."""
        paths = [str(file) for file in self.files]
        sizes = [size_of(file) for file in self.files[:: max(1, len(paths) // SIZES)]]
        return Table(FolderCells(Path(), paths), None, None, digest([split, len(paths), *paths, *sizes]))
