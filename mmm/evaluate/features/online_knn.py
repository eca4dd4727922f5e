"""Nearest-neighbour accuracy in the course of a training: whether features get better, long before anybody fine-tunes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from mmm.data import Clips, DataConfig, Images, Problem, open_data
from mmm.evaluate.evaluator import Column, Context, Evaluator, EvaluatorConfig, evaluators
from mmm.evaluate.features.knn import nearest_neighbours
from mmm.evaluate.features.table import Pool, choose, encoded, extract_features, rank_and_world
from mmm.evaluate.metrics import check_classes
from mmm.model import MaskedModel


@dataclass(frozen=True, kw_only=True)
class OnlineConfig:
    """How often neighbours are asked while training, and how many."""

    every: int | None = None
    """Updates between two nearest-neighbour accuracies of the features so far; None: never. Needs labels."""

    train_samples: int = 2000
    """Training samples that vote, chosen by key."""

    test_samples: int = 1000
    """Samples of the evaluation part that are asked about, chosen by key."""

    k: int = 20
    """Nearest training samples that vote."""

    pool: Pool = "mean"
    """What of a sample's tokens is its feature."""

    def __post_init__(self) -> None:
        for name in ("every", "train_samples", "test_samples", "k"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"neighbours.{name} {value} must be at least 1")


@evaluators.register("knn")
class OnlineKnn(Evaluator):
    """The accuracy of nearest neighbours on the features so far: the same neighbours and queries each time, middle crops."""

    @dataclass(frozen=True, kw_only=True)
    class Config(EvaluatorConfig):
        every: int | None = None
        """Updates between two of these evaluations in the course of a training; None: as many as train.evaluate_every says."""

        train_samples: int = 2000
        """Training samples that vote, chosen by key."""

        test_samples: int = 1000
        """Samples of the evaluation part that are classified, chosen by key."""

        k: int = 20
        """Nearest training samples that vote for the class of a sample."""

        pool: Pool = "mean"
        """Feature of a sample: the mean of its tokens, the class token, or both one behind the other."""

        def __post_init__(self) -> None:
            super().__post_init__()
            for name in ("train_samples", "test_samples", "k"):
                if getattr(self, name) < 1:
                    raise ValueError(f"evaluate.knn.{name} {getattr(self, name)} must be at least 1")

    config: Config
    needs_labels = True
    online = True
    columns: ClassVar[Mapping[str, Column]] = {"knn_top1": Column("online nearest neighbours", "{:.1%}")}

    def why_not(self, model: MaskedModel, context: Context) -> str | None:
        """Labels of which no class is trained on."""
        train, test = self._samples(context)
        check_classes(cast(Tensor, train.labels()), cast(Tensor, test.labels()), test.title, train.classes)
        return None

    def run(self, model: MaskedModel, context: Context) -> dict[str, Any]:
        """Returns `knn_top1`, the accuracy in [0, 1], the same on all processes, each of which reads its share of the samples."""
        extracts = {"own": encoded(model, self.config.pool, context.dtype)}
        device = context.device
        tables = [extract_features(part, extracts, device=device, batch_size=context.batch_size) for part in self._samples(context)]
        train, test = (table["own"] for table in tables)
        if rank_and_world()[0] == 0:  # all processes know of the same
            context.problems += train.problems + test.problems
        scores = nearest_neighbours(*train.labelled(device), *test.labelled(device), self.config.k)
        return {"knn_top1": scores["top1"]}

    def _samples(self, context: Context) -> tuple[Images | Clips, Images | Clips]:
        return choose(context.train, self.config.train_samples), choose(context.test, self.config.test_samples)


class OnlineNeighbours:
    """Asks the same neighbours about the same samples each time, in evaluation's middle crops.

    Args:
        config: how many.
        data: the run's; nothing is kept in memory of it.

    Raises:
        ValueError: where the data has no labels.
    """

    def __init__(self, config: OnlineConfig, data: DataConfig) -> None:
        self.config = config
        self.train = choose(open_data(data, "train"), config.train_samples)
        self.test = choose(open_data(data, "eval"), config.test_samples)
        labels = [part.labels() for part in (self.train, self.test)]
        for part, own in zip((self.train, self.test), labels, strict=True):
            if own is None:
                raise ValueError(
                    f"--neighbours.every needs labels, and {part.title} have none; give data.label_column, or leave it out"
                )
        check_classes(cast(Tensor, labels[0]), cast(Tensor, labels[1]), self.test.title, self.train.classes)

    def accuracy(self, model: MaskedModel, device: torch.device, batch_size: int) -> tuple[float, list[Problem]]:
        """Top-1 accuracy in [0, 1], the same on all processes, each of which reads its part; and what could not be read."""
        extracts = {"own": encoded(model, self.config.pool)}
        parts: tuple[Images | Clips, ...] = (self.train, self.test)
        known, asked = (extract_features(part, extracts, device=device, batch_size=batch_size)["own"] for part in parts)
        found = nearest_neighbours(*known.labelled(device), *asked.labelled(device), self.config.k)
        return found["top1"], known.problems + asked.problems
