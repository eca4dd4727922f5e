"""Labelled samples in three splits: training, validation (to choose weights) and test.

Shapes: N samples.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mmm.core.rng import sample_keys, scores, stream
from mmm.data.config import DataConfig
from mmm.data.datasets.clips import Clips
from mmm.data.datasets.images import Images
from mmm.data.datasets.open import open_data

logger = logging.getLogger(__name__)

HELD_BACK = 102  # stream of random numbers of this file


@dataclass(frozen=True)
class LabelledSplits:
    """Labelled samples in three splits.

    Attributes:
        train: the training samples.
        validation: samples that are held back from training to choose the weights, or None.
        test: the samples to score.
        classes: number of classes.
    """

    train: Images | Clips
    validation: Images | Clips | None
    test: Images | Clips
    classes: int

    @property
    def inputs(self) -> int:
        """Number of samples in all splits."""
        return len(self.train) + len(self.validation or ()) + len(self.test)

    @property
    def names(self) -> list[str] | None:
        """Names of the classes, in the order of the labels."""
        return None if self.train.classes is None else list(self.train.classes)

    @property
    def watched(self) -> Images | Clips:
        """The samples that are scored during training, with one view of each: the validation split, or else the test split."""
        part = self.test if self.validation is None else self.validation
        if isinstance(part, Clips):
            return Clips(part.table, replace(part.config, eval_clips=1, eval_crops=1), part.rows, part.where)
        return part


def open_labelled_splits(data: DataConfig, *, test_split: str | None, held_back: float, seed: int) -> LabelledSplits:
    """Opens the samples of a source.

    Args:
        data: options of the data.
        test_split: the split to score. None: the evaluation split.
        held_back: share of the training samples for validation.
        seed: random seed of the choice of these samples.

    Raises:
        ValueError: there are no samples or no labels, or the splits do not have the same classes.
    """
    train, test = labelled(open_data(data, "train")), labelled(open_data(data, test_split or "eval"))
    if train.classes is not None and test.classes is not None and list(train.classes) != list(test.classes):
        differ = sorted(set(train.classes) ^ set(test.classes)) or ["their order"]
        raise ValueError(
            f"{train.title} and {test.title} do not have the same classes: {', '.join(differ[:5])}; give another split"
        )
    check_classes(train.labels(), test.labels(), test.title, train.classes)
    top = max(int(part.labels().max()) for part in (train, test))
    classes = max(top + 1, 0 if train.classes is None else len(train.classes))
    rest, validation = hold_back(train, held_back, seed)
    return LabelledSplits(rest, validation, test, classes)


def labelled(part: Any) -> Any:
    """Returns the samples of a data set that have a label.

    Raises:
        ValueError: no sample has one.
    """
    labels = part.labels()
    if labels is None or not (labels >= 0).any():
        raise ValueError(f"{part.title} have no labels to probe with; name them with data.label_column")
    return part if (labels >= 0).all() else part.subset((labels >= 0).nonzero()[:, 0])


def hold_back(part: Any, share: float, seed: int) -> tuple[Any, Any]:
    """Splits samples by their keys into those for training and those for validation (None if the share is 0).

    Raises:
        ValueError: one of the two would be empty.
    """
    if share == 0:
        return part, None
    count = round(share * len(part))
    if not 0 < count < len(part):
        raise ValueError(f"held_back {share} of {len(part)} samples is {count}; give another share")
    chance = scores(stream(sample_keys(seed, 0, torch.arange(len(part))), HELD_BACK), 1)[:, 0]  # (N,)
    order = chance.argsort()
    return part.subset(order[count:].sort().values), part.subset(order[:count].sort().values)


def check_classes(train: Tensor, test: Tensor, where: str, names: Sequence[str] | None = None) -> None:
    """Compares the classes of the training samples with those of the test samples. Logs classes without training samples.

    Args:
        train, test: labels, int64 (N,) and (M,); negative labels are missing.
        where: name of the test samples in messages.
        names: names of the classes.

    Raises:
        ValueError: they have no class in common, so that each accuracy would be 0.
    """
    known, scored = (set(labels[labels >= 0].unique().tolist()) for labels in (train, test))
    if missing := sorted(scored - known):
        shown = ", ".join(str(label) if names is None else names[label] for label in missing[:5])
        if len(missing) == len(scored):
            hint = "give data.label_column with several samples of each class, or another split to score"
            raise ValueError(
                f"{where}: none of their classes occurs in the training samples ({shown}), so that each accuracy would be 0; {hint}"
            )
        logger.warning("%s: %d classes are never trained on: %s", where, len(missing), shown)
