"""Classify with frozen features: nearest neighbours and a linear classifier from few labels, trained against untrained.

mmm knn runs/pretrain-1
mmm knn runs/pretrain-1/checkpoints/step_00000500 --labels_per_class 10
mmm knn mae_pretrain_vit_base.pth --source /data/imagenet --train_samples 100000
mmm knn runs/pretrain-1/config.yaml                                           the same model, untrained
mmm knn --features train.parquet --test_features test.parquet                 layers that mmm extract wrote, each judged
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmm.evaluate.features.extracted import judge_extracted, read_features
from mmm.evaluate.features.frozen_eval import FrozenFeatures, RepresentationConfig, describe_representation, judge_representation
from mmm.evaluate.loaded_model import Subject, SubjectConfig, open_subject, open_test, open_train

logger = logging.getLogger(__name__)

POSITIONAL = "model"


@dataclass(frozen=True, kw_only=True)
class Config(RepresentationConfig, SubjectConfig):
    """Judge frozen features."""

    untrained: bool = True
    """Judge the same model with its random initialisation too."""

    features: str | None = None
    """File of features to know, as mmm extract writes it, in the place of a model and its data."""

    test_features: str | None = None
    """File of features to score, with --features."""

    out: str | None = None
    """JSON file for the scores; None: a line of the run's evaluations.jsonl, where the model is a run's."""


def run(config: Config) -> dict[str, Any]:
    """Judges the features, prints a table and writes the scores."""
    if config.features is not None or config.test_features is not None:
        return judge_files(config)
    subject = open_subject(config)
    train, test = open_train(subject.data), open_test(subject.data, config.test_split)
    models = {} if subject.trained is None else {"trained": subject.trained}
    if config.untrained or not models:
        models["untrained"] = subject.untrained
    logger.info("%s on %s: %s to know, %s to ask", subject.name, subject.data.source, train.where, test.where)
    device = next(subject.untrained.parameters()).device
    found = judge_representation(models, train, test, config, device=device, dtype=config.dtype, batch_size=config.batch_size)
    found |= {"model": config.model, "source": subject.data.source, "split": test.where}
    if subject.trained is not None:
        found["figures"] = FrozenFeatures(FrozenFeatures.Config()).figures(found)
    print(describe_representation(found))
    _write(config, subject, found)
    return found


def judge_files(config: Config) -> dict[str, Any]:
    """The same for features from files.

    Raises:
        ValueError: where a file is missing, or a model is named too.
    """
    if config.features is None or config.test_features is None:
        raise ValueError("--features and --test_features go together: what is known, and what is asked")
    if config.model is not None:
        raise ValueError("--features stand in the place of a model and its data; leave --model out")
    found = judge_extracted(read_features(config.features), read_features(config.test_features), config)
    found |= {"features": config.features, "test_features": config.test_features}
    print(describe_representation(found))
    _write(config, None, found)
    return found


def _write(config: Config, subject: Subject | None, found: dict[str, Any]) -> None:
    """To the file that was asked for, or beside the run's other results."""
    if config.out is not None:
        Path(config.out).parent.mkdir(parents=True, exist_ok=True)
        Path(config.out).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        print(f"scores: {config.out}")
    elif subject is not None and (file := subject.record("features", found, config.changes)) is not None:
        print(f"scores: {file}")
