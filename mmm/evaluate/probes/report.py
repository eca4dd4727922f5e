"""Results of a probe: result.json, with the protocol of each number, and a few lines of text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mmm.config.serialize import to_dict
from mmm.evaluate.probes.setup import ProbeConfig, ProbeSetup
from mmm.evaluate.protocol import evaluation_protocol
from mmm.evaluate.run_results import record
from mmm.train.config import identity
from mmm.train.distributed.setup import precision_of
from mmm.train.run.folder import RunFolder

RESULT = "result.json"


def protocol_of(config: ProbeConfig, setup: ProbeSetup, *, weights: str, conditions: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the protocol of a probe; see `mmm.evaluate.protocol.evaluation_protocol`."""
    return evaluation_protocol(
        setup.accelerator,
        setup.data,
        train=setup.train,
        validation=setup.validation,
        test=setup.test,
        classes=setup.classes,
        conditions={
            "pool": to_dict(config.pool),
            "precision": precision_of(setup.accelerator),
            "model": str(config.model),
            "step": setup.loaded.step,
            "weights": weights,
            **conditions,
        },
    )


def schedule_of(config: ProbeConfig) -> dict[str, Any]:
    """Returns the options of the training of heads that change its result."""
    momentum = {"momentum": config.momentum} if config.optimizer == "lars" else {}
    chosen = {"optimizer": config.optimizer, "rates": list(config.rates), "seed": config.seed} | momentum
    return chosen | {name: value for name, value in identity({"train": to_dict(config.train)}).items() if name != "train.precision"}


def write_result(folder: RunFolder, task: str, setup: ProbeSetup, found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Writes the results of a probe by method into its run folder, and appends them to the evaluations of the pretraining run.

    Returns:
        `run`, the folder; `classes`, their names; and the results by method.
    """
    result = {"run": str(folder.path), "classes": setup.names} | found
    if setup.accelerator.is_main_process:
        (folder.path / RESULT).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        loaded = setup.loaded
        if loaded.run is not None and loaded.trained is not None and loaded.step is not None:
            record(loaded.run, task, loaded.step, result)
    return result


def format_probe(found: Mapping[str, Any]) -> str:
    """Returns the scores of a probe as text."""
    lines = []
    for method in [name for name in ("trained", "exact") if name in found]:
        scores = found[method]
        protocol = scores["protocol"]
        head = f"{protocol['task']}, {method}: top-1 {scores['top1']:.2%}, top-5 {scores['top5']:.2%}, mean over classes "
        lines.append(f"{head}{scores['mean_per_class']:.2%} of {scores['samples']:,} test samples ({protocol['test']['where']})")
        for place, tried in enumerate(scores["tried"]):
            lines.append(f"  {_tried(tried)}{' (chosen)' * (place == scores['chosen'])}")
        if scores["unreadable"]:
            lines.append(f"  {scores['unreadable']} inputs could not be read")
    return "\n".join(lines)


def _tried(tried: Mapping[str, Any]) -> str:
    """Returns one line: a setting, with its accuracy on the held-back samples and on the test samples."""
    name = f"learning rate {tried['learning_rate']:.3g}" if "learning_rate" in tried else f"penalty {tried['penalty']:g}"
    named = {"held_back": "held back", "test": "test"}
    parts = [f"{words} {tried[part]['top1']:.2%}" for part, words in named.items() if part in tried]
    return f"{name}: {', '.join(parts)}"
