"""Labelled samples in three parts: to learn from, to choose weights by, and to be scored on."""

from __future__ import annotations

from dataclasses import dataclass, replace

from mmm.data import Clips, DataConfig, Images, open_data
from mmm.evaluate.metrics import check_classes
from mmm.evaluate.probes.setup import hold_back, labelled


@dataclass(frozen=True)
class Lessons:
    """Labelled samples in three parts.

    Attributes:
        train: to train on.
        choice: held back to choose the weights, or None.
        test: to score.
        classes: K.
    """

    train: Images | Clips
    choice: Images | Clips | None
    test: Images | Clips
    classes: int

    @property
    def inputs(self) -> int:
        """Of all parts."""
        return len(self.train) + len(self.choice or ()) + len(self.test)

    @property
    def names(self) -> list[str] | None:
        """Of the classes, in the labels' order."""
        return None if self.train.classes is None else list(self.train.classes)

    @property
    def watched(self) -> Images | Clips:
        """What is looked at while training: the samples that choose, else those of the test; one view of each."""
        part = self.test if self.choice is None else self.choice
        if isinstance(part, Clips):
            return Clips(part.table, replace(part.config, eval_clips=1, eval_crops=1), part.rows, part.where)
        return part


def open_lessons(data: DataConfig, *, test_split: str | None, held_back: float, seed: int) -> Lessons:
    """Opens the samples.

    Args:
        data: where they are.
        test_split: to score; none: the evaluation part.
        held_back: share of the training samples that chooses the weights.
        seed: of which ones are.

    Raises:
        ValueError: where there are none, without labels, or where the parts do not count the same classes.
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
    rest, choice = hold_back(train, held_back, seed)
    return Lessons(rest, choice, test, classes)
