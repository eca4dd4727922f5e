"""Evaluate a model with any of the evaluations of pretraining, or with your own evaluation.

mmm evaluate runs/pretrain-1 --evaluate features reconstruction
mmm evaluate runs/pretrain-1 --evaluate few_shot --evaluate.few_shot.labels_per_class 10
mmm evaluate mae_pretrain_vit_base.pth --source /data/imagenet --evaluate knn
mmm evaluate runs/pretrain-1 --use my_evaluation.py --evaluate mine

Results on the data of a run are appended to its evaluations.jsonl, from which mmm compare reads them.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from mmm.evaluate.builtin import FrozenFeatures
from mmm.evaluate.evaluator import Evaluations, EvaluatorSet
from mmm.evaluate.loaded_model import LoadedModelConfig, describe_data, load_model
from mmm.system.files import write_json

logger = logging.getLogger(__name__)

POSITIONAL = "model"


@dataclass(frozen=True, kw_only=True)
class Config(LoadedModelConfig):
    """Evaluate a model."""

    evaluate: EvaluatorSet = EvaluatorSet.of(FrozenFeatures.Config())
    """Evaluations, by name."""

    out: str | None = None
    """JSON file for the results. None: they are appended to evaluations.jsonl of the run, if the model comes from a run."""


def run(config: Config) -> dict[str, Any]:
    """Runs the evaluations, prints and writes the results, and returns them by name."""
    loaded = load_model(config)
    model, context = loaded.model, loaded.context(config)
    logger.info("%s on %s", loaded.name, describe_data(context.test))
    results: dict[str, Any] = {}
    for result in Evaluations(config.evaluate, model, [context]).finish(model, loaded.step, again=True):
        results[result.name] = result.found | {"figures": result.figures}
        print(result.text)
        if config.out is None and (file := loaded.record(result.name, results[result.name], config.changes)) is not None:
            print(f"result: {file}")
    if config.out is not None:
        write_json(config.out, results)
        print(f"results: {config.out}")
    if len(results) < len(config.evaluate.names):
        raise ValueError("some evaluations failed; their errors are above")
    return results
