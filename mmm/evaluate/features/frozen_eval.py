"""Frozen-feature evaluation: the accuracy of nearest neighbours and of a linear classifier trained on few labels.

The accuracy of a trained encoder is compared with that of the same encoder with random weights and with that of raw pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from mmm.core.checks import CheckedConfig, Positive
from mmm.data import Clips, Images
from mmm.data.datasets.labelled import check_classes
from mmm.evaluate.batches import choose
from mmm.evaluate.evaluator import Column, Context, Evaluator, EvaluatorConfig, evaluators
from mmm.evaluate.features.knn import nearest_neighbours
from mmm.evaluate.features.logistic_regression import few_label_accuracy
from mmm.evaluate.features.store import StoredFeatures, refuse_others
from mmm.evaluate.features.table import Extract, FeatureTable, Pooling, encoded, extract_features, raw_pixels
from mmm.model import MaskedModel

TITLES = {"trained": "trained", "untrained": "untrained", "raw_pixels": "raw pixels"}


@dataclass(frozen=True, kw_only=True)
class FeatureEvalConfig(CheckedConfig):
    """Options of the features and of the classifiers."""

    k: Positive = 20
    """Number of nearest training samples that vote for the class of a sample."""

    labels_per_class: Positive = 200
    """Labels per class for the linear classifier, chosen by key. All labels of a class with fewer labels are used."""

    pooling: Pooling = "mean"
    """Feature of a sample: the mean of its tokens, the class token, or both concatenated."""

    train_samples: Positive | None = None
    """Training samples to use, chosen by key. None: all."""

    test_samples: Positive | None = None
    """Test samples to use, chosen by key. None: all."""

    raw_pixels: bool = True
    """Evaluate raw pixels as a feature too; large samples are averaged down to 16 frames of 32 x 32 pixels."""

    label_seed: int = 0
    """Random seed for the choice of samples and of labels."""


@evaluators.register("features")
class FrozenFeatures(Evaluator):
    """The accuracy of nearest neighbours and of a linear classifier on frozen features: trained, untrained, and raw pixels."""

    @dataclass(frozen=True, kw_only=True)
    class Config(EvaluatorConfig, FeatureEvalConfig):
        """Options of the features, of the classifiers, and of the interval between evaluations."""

    config: Config
    needs_labels = True
    columns: ClassVar[Mapping[str, Column]] = {
        "features_knn": Column("nearest neighbours", "{:.1%}"),
        "features_linear": Column("linear", "{:.1%}"),
    }

    def run(self, model: MaskedModel, context: Context) -> dict[str, Any]:
        """Returns the result of `evaluate_features`."""
        models = {"trained": model, "untrained": context.untrained()}
        return evaluate_features(models, context.train, context.test, self.config, **context.compute)

    def figures(self, found: Mapping[str, Any]) -> dict[str, float]:
        """Returns the accuracies of the trained model."""
        methods = {"features_knn": "neighbours", "features_linear": "linear"}
        return {name: found[method]["trained"]["top1"] for name, method in methods.items()}

    def format(self, found: Mapping[str, Any]) -> str:
        """Returns a table of all accuracies."""
        return format_features(found)


def evaluate_features(
    models: Mapping[str, MaskedModel],
    train: Images | Clips,
    test: Images | Clips,
    config: FeatureEvalConfig,
    *,
    device: torch.device | str,
    dtype: torch.dtype | None = None,
    batch_size: int = 256,
) -> dict[str, Any]:
    """Evaluates the features of several models, and raw pixels.

    Args:
        models: by name, for instance `trained` and `untrained`, on the device.
        train: samples whose labels may be used.
        test: samples to score. They are not used to choose any setting.
        dtype: type for autocast. None: fp32.

    Returns:
        See `score_features`.

    Raises:
        ValueError: there are no labels, no class of the test samples occurs in training, or no sample can be read.
    """
    parts = choose(train, config.train_samples, config.label_seed), choose(test, config.test_samples, config.label_seed)
    for part in parts:
        if part.labels() is None:
            raise ValueError(f"{part.title} have no labels to evaluate features with; name them with data.label_column")
    check_classes(cast(Tensor, parts[0].labels()), cast(Tensor, parts[1].labels()), test.title, train.classes)
    extracts: dict[str, Extract] = {name: encoded(model, config.pooling, dtype) for name, model in models.items()}
    extracts |= {"raw_pixels": raw_pixels} if config.raw_pixels else {}
    train_tables, test_tables = (extract_features(part, extracts, device=device, batch_size=batch_size) for part in parts)
    return score_features(train_tables, test_tables, config, pooling=config.pooling, device=device)


def score_features(
    train: Mapping[str, FeatureTable],
    test: Mapping[str, FeatureTable],
    config: FeatureEvalConfig,
    *,
    pooling: str,
    device: torch.device | str,
) -> dict[str, Any]:
    """Scores features that are already computed.

    Args:
        train: features whose labels may be used.
        test: features to score, of the same samples under every name.
        pooling: how tokens were pooled.
        device: device for the computation.

    Returns:
        `train`, `test`, `classes`: numbers of samples and classes; `largest_class`: the accuracy of always predicting the most
        frequent class of the test samples; `neighbours` and `linear`: the results of `nearest_neighbours` and `few_label_accuracy`
        by name of the feature; `k`, `labels_per_class`, `pooling`; `problems`: inputs that could not be read.
    """
    name = next(iter(train))
    labels = test[name].labelled("cpu")[1]
    found: dict[str, Any] = {
        "train": len(train[name].labelled("cpu")[1]),
        "test": len(labels),
        "classes": len(labels.unique()),
        "largest_class": labels.bincount().max().item() / len(labels),
        "k": config.k,
        "labels_per_class": config.labels_per_class,
        "pooling": pooling,
        "neighbours": {},
        "linear": {},
        "problems": [problem._asdict() for problem in train[name].problems + test[name].problems],
    }
    for name in train:
        values = (*train[name].labelled(device), *test[name].labelled(device))
        found["neighbours"][name] = nearest_neighbours(*values, config.k)
        found["linear"][name] = few_label_accuracy(*values, config.labels_per_class, config.label_seed)
    return found


def evaluate_feature_files(train: StoredFeatures, test: StoredFeatures, config: FeatureEvalConfig) -> dict[str, Any]:
    """Scores the layers in two files of features of one model on the CPU, as `score_features` does.

    Args:
        train: features whose labels may be used.
        test: features to score.

    Raises:
        ValueError: the files are from different models or from the same samples, or they have no labels or no class in common.
    """
    where = f"{train.path} and {test.path}"
    refuse_others(train.identity, test.identity, ("model", "pixels", "features"), where)
    if train.identity["data"]["fingerprint"] == test.identity["data"]["fingerprint"]:
        raise ValueError(f"{where} hold the same samples, and each would be its own nearest neighbour; extract another split")
    for one in (train, test):
        if one.table.labels is None or not (one.table.labels >= 0).any():
            raise ValueError(f"{one.path} holds no labels to evaluate features with; extract with --label_column")
    check_classes(train.table.labelled("cpu")[1], test.table.labelled("cpu")[1], str(test.path))
    return score_features(train.tables, test.tables, config, pooling=train.identity["features"]["pooling"], device="cpu")


def format_features(found: Mapping[str, Any]) -> str:
    """Returns the accuracies as a table."""
    names = list(found["neighbours"])
    rows = [
        (f"{found['k']} nearest neighbours", found["neighbours"]),
        (f"linear, {found['labels_per_class']} labels a class", found["linear"]),
    ]
    head = f"Frozen features, {found['classes']} classes, {found['train']:,} training and {found['test']:,} test samples"
    wide = max(len(title) for title, _ in rows)
    lines = [f"{head} (always predicting the most frequent class: {found['largest_class']:.1%})"]
    lines.append(" " * wide + "".join(f"{TITLES.get(name, name):>13}" for name in names))
    lines += [f"{title:<{wide}}" + "".join(f"{scores[name]['top1']:>13.1%}" for name in names) for title, scores in rows]
    if found["problems"]:
        lines.append(f"{len(found['problems'])} inputs could not be read and were left out")
    return "\n".join(lines)
