"""Nearest-neighbour accuracy during training, a quick measure of the quality of the features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

from torch import Tensor

from mmm.core.checks import Positive
from mmm.data import Clips, Images
from mmm.data.datasets.labelled import check_classes
from mmm.evaluate.batches import choose, rank_and_world
from mmm.evaluate.evaluator import Column, Context, Evaluator, EvaluatorConfig, evaluators
from mmm.evaluate.features.knn import nearest_neighbours
from mmm.evaluate.features.table import Pooling, encoded, extract_features
from mmm.model import MaskedModel


@evaluators.register("knn")
class OnlineKnn(Evaluator):
    """The accuracy of nearest neighbours on the features of centre crops, with the same samples in each evaluation."""

    @dataclass(frozen=True, kw_only=True)
    class Config(EvaluatorConfig):
        every: Positive | None = None
        """Updates between two of these evaluations during training. None: train.evaluate_every."""

        train_samples: Positive = 2000
        """Number of training samples, chosen by key."""

        test_samples: Positive = 1000
        """Number of evaluation samples that are classified, chosen by key."""

        k: Positive = 20
        """Number of nearest training samples that vote for the class of a sample."""

        pooling: Pooling = "mean"
        """Feature of a sample: the mean of its tokens, the class token, or both concatenated."""

    config: Config
    needs_labels = True
    online = True
    columns: ClassVar[Mapping[str, Column]] = {"knn_top1": Column("online nearest neighbours", "{:.1%}")}

    def why_not(self, model: MaskedModel, context: Context) -> str | None:
        """Raises ValueError if no class of the evaluation samples occurs in training."""
        train, test = self._samples(context)
        check_classes(cast(Tensor, train.labels()), cast(Tensor, test.labels()), test.title, train.classes)
        return None

    def run(self, model: MaskedModel, context: Context) -> dict[str, Any]:
        """Returns `knn_top1`, the accuracy in [0, 1]. Each process reads its share of the samples, and all return the same
        value."""
        extracts = {"own": encoded(model, self.config.pooling, context.dtype)}
        device = context.device
        tables = [extract_features(part, extracts, device=device, batch_size=context.batch_size) for part in self._samples(context)]
        train, test = (table["own"] for table in tables)
        if rank_and_world()[0] == 0:  # all processes have the same lists
            context.problems += train.problems + test.problems
        scores = nearest_neighbours(*train.labelled(device), *test.labelled(device), self.config.k)
        return {"knn_top1": scores["top1"]}

    def _samples(self, context: Context) -> tuple[Images | Clips, Images | Clips]:
        return choose(context.train, self.config.train_samples), choose(context.test, self.config.test_samples)
