"""Evaluate frozen features by nearest neighbours and a linear classifier on few labels, for trained and random weights.

mmm knn runs/pretrain-1
mmm knn runs/pretrain-1/checkpoints/step_00000500 --labels_per_class 10
mmm knn mae_pretrain_vit_base.pth --source /data/imagenet --train_samples 100000
mmm knn runs/pretrain-1/config.yaml                                           the same model with random weights
mmm knn --features train.parquet --test_features test.parquet                 each layer in files of mmm extract
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from mmm.evaluate.features.frozen_eval import (
    FeatureEvalConfig,
    FrozenFeatures,
    evaluate_feature_files,
    evaluate_features,
    format_features,
)
from mmm.evaluate.features.store import read_features
from mmm.evaluate.loaded_model import LoadedModel, LoadedModelConfig, load_model, open_test, open_train
from mmm.system.files import write_json

logger = logging.getLogger(__name__)

POSITIONAL = "model"


@dataclass(frozen=True, kw_only=True)
class Config(FeatureEvalConfig, LoadedModelConfig):
    """Evaluate frozen features."""

    untrained: bool = True
    """Evaluate the same model with random weights too."""

    features: str | None = None
    """File of training features from mmm extract, instead of a model and its data."""

    test_features: str | None = None
    """File of test features, with --features."""

    out: str | None = None
    """JSON file for the scores. None: they are appended to evaluations.jsonl of the run, if the model comes from a run."""


def run(config: Config) -> dict[str, Any]:
    """Evaluates the features, prints a table and writes the scores."""
    if config.features is not None or config.test_features is not None:
        return evaluate_files(config)
    loaded = load_model(config)
    train, test = open_train(loaded.data), open_test(loaded.data, config.test_split)
    models = {} if loaded.trained is None else {"trained": loaded.trained}
    if config.untrained or not models:
        models["untrained"] = loaded.untrained
    logger.info("%s on %s: neighbours from %s, queries from %s", loaded.name, loaded.data.source, train.where, test.where)
    found = evaluate_features(models, train, test, config, device=loaded.device, dtype=config.dtype, batch_size=config.batch_size)
    found |= {"model": config.model, "source": loaded.data.source, "split": test.where}
    if loaded.trained is not None:
        found["figures"] = FrozenFeatures(FrozenFeatures.Config()).figures(found)
    print(format_features(found))
    _write(config, loaded, found)
    return found


def evaluate_files(config: Config) -> dict[str, Any]:
    """Evaluates features from files.

    Raises:
        ValueError: a file is missing, or a model is given too.
    """
    if config.features is None or config.test_features is None:
        raise ValueError("--features and --test_features go together: give both")
    if config.model is not None:
        raise ValueError("--features replaces a model and its data; leave out --model")
    found = evaluate_feature_files(read_features(config.features), read_features(config.test_features), config)
    found |= {"features": config.features, "test_features": config.test_features}
    print(format_features(found))
    _write(config, None, found)
    return found


def _write(config: Config, loaded: LoadedModel | None, found: dict[str, Any]) -> None:
    """Writes the scores to the given file, or appends them to the evaluations of the run."""
    if config.out is not None:
        write_json(config.out, found)
        print(f"scores: {config.out}")
    elif loaded is not None and (file := loaded.record("features", found, config.changes)) is not None:
        print(f"scores: {file}")
