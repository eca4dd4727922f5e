"""A folder of images or of videos.

Listed by us: the hub library's own lister takes a class called `train` for a split and loses the rest.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from pathlib import Path

import torch

from mmm.data.sources.base import EVALUATION, IMAGES, Medium, Table, digest
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

    def __init__(self, root: Path, medium: Medium = IMAGES) -> None:
        self.root, self.medium = root, medium
        folders = folders_in(root)
        known = [name for name in folders if name in ("train", *EVALUATION)]
        others = [name for name in folders if name not in known] if known else []
        others = [name for name in others if any(self._is_one(path) for path in files_below(root / name))]
        self.split_folders = "train" in known and (len(known) > 1 or len(folders) == 1) and not others
        if known and others:
            logger.warning("%s: %s taken as classes, not as splits, because %s is beside", root, ", ".join(known), others[0])
        self.splits: tuple[str, ...] = tuple(known) if self.split_folders else ("train",)

    def table(self, split: str) -> Table:
        """Lists a split.

        Raises:
            ValueError: where there is no sample in it.
        """
        top = self.root / split if self.split_folders else self.root
        parents = [self.root / name for name in self.splits] if self.split_folders else [self.root]
        classes = tuple(sorted({name for parent in parents for name in folders_in(parent)}))
        labelled = self._has_classes(top)  # a test split often has none, where the others have
        taken = self._take(top, labelled)
        labels = None
        if labelled:
            number = {name: i for i, name in enumerate(classes)}
            labels = torch.tensor([number[path.split("/", 1)[0]] for path in taken], dtype=torch.int64)
        every = max(1, len(taken) // SIZES)
        sizes = [size_of(top / path) for path in taken[::every]]
        return Table(
            FolderCells(top, taken, f"{split}/" if self.split_folders else ""),
            labels,
            classes if labels is not None else None,
            digest([split, len(taken), *taken, *sizes]),
        )

    def _has_classes(self, top: Path) -> bool:
        """Whether there are sub-folders and, where each is a sample itself, sub-folders of those."""
        folders = folders_in(top)
        return any(folders_in(top / name) for name in folders) if self.medium.whole else bool(folders)

    def _take(self, top: Path, with_classes: bool) -> list[str]:
        """The samples' paths below `top`, sorted; logs what was left out, and why."""
        noun, whole = self.medium.noun, self.medium.whole
        taken, left = set(), Counter[str]()
        for path in files_below(top, every=True):
            sample = path.rpartition("/")[0] if whole else path
            if not self._is_one(path):
                left[os.path.splitext(path)[1].lower() or "no extension"] += 1
            elif not sample or (with_classes and "/" not in sample):
                left[f"{noun} beside the class folders"] += 1
            else:
                taken.add(sample)
        listed = ", ".join(f"{count} x {what}" for what, count in left.most_common())
        if not taken:
            raise ValueError(f"data.source {top} holds no {noun}" + (f", only {listed}" if left else "; it is empty"))
        if left:
            logger.warning("%s: %d %s taken; left out: %s", top, len(taken), noun, listed)
        return sorted(taken)

    def _is_one(self, path: str) -> bool:
        return os.path.splitext(path)[1].lower() in self.medium.suffixes
