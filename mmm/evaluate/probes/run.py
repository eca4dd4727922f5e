"""Runs a probe from its start to result.json, which states the protocol of each number, and formats the result as text."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mmm.config.serialize import to_dict
from mmm.evaluate.probes.logistic_sweep import SweepConfig, sweep
from mmm.evaluate.probes.setup import ProbeConfig, ProbeSetup, open_probe_setup
from mmm.evaluate.probes.train import ProbeTraining
from mmm.evaluate.protocol import evaluation_protocol, weights_fingerprint
from mmm.system.files import write_json
from mmm.train.config import identity
from mmm.train.distributed.setup import precision_of, start, with_precision
from mmm.train.run.folder import RESULT, RunFolder
from mmm.weights.formats.run import CONFIG, read_data


def run_probe(
    config: ProbeConfig, task: str, methods: Collection[str] = ("trained",), exact: SweepConfig | None = None
) -> tuple[dict[str, Any], str]:
    """Trains or fits a probe, and writes result.json into its run folder.

    Args:
        task: name of the task.
        methods: `trained`, `exact` or both.
        exact: options of the exact method.

    Returns:
        The content of the file, and a text to print, which is empty in processes other than the main one. The content is empty
        after a dry run.
    """
    accelerator = start(config.train)
    config = with_precision(config, accelerator)
    setup = open_probe_setup(config, accelerator)
    config = replace(config, data=setup.data)  # so that config.yaml states the source of the run
    weights = weights_fingerprint(setup.model.encoder)
    training = ProbeTraining.prepare(config, setup, weights=weights) if "trained" in methods else None
    if config.dry_run:
        return {}, "nothing is trained by gradient" if training is None else training.preview()
    found: dict[str, dict[str, Any]] = {}
    with RunFolder.open(config.folder, task, config, accelerator=accelerator, resume=config.resume) as folder:
        if training is not None:
            conditions = {"task": task, "head": to_dict(config.head), "schedule": schedule_of(config)}
            protocol = protocol_of(config, setup, weights=weights, conditions=conditions)
            found["trained"] = training.run(folder) | {"protocol": protocol}
        if exact is not None and "exact" in methods:
            schedule = {"optimizer": "L-BFGS", "chosen_by": "a fifth of all samples except the test samples", "seed": config.seed}
            conditions = {"task": task, "head": {"norm": "standardised"}, "schedule": schedule | asdict(exact)}
            protocol = protocol_of(config, setup, weights=weights, conditions=conditions)
            batch_size = config.train.micro_batch_size or config.train.batch_size
            found["exact"] = sweep(setup, config.pool, exact, batch_size=batch_size, seed=config.seed) | {"protocol": protocol}
        result = {"run": str(folder.path), "classes": setup.splits.names} | found
        if accelerator.is_main_process:
            write_json(folder.path / RESULT, result)
            run = setup.loaded.run
            setup.loaded.record(task, result, {} if run is None else data_changes(config, run))
    text = f"{format_probe(result)}\nscores and protocol: {folder.path / RESULT}"
    return result, text if accelerator.is_main_process else ""


def data_changes(config: ProbeConfig, run: Path) -> dict[str, Any]:
    """Returns the options in which the data of a probe differs from that of a run, by name; see `LoadedModel.record`."""
    data, own = config.data, read_data(run / CONFIG)
    names = (*data.source_options(), "size", "eval_clips", "eval_crops")
    changes = {name: getattr(data, name, None) for name in names if getattr(data, name, None) != getattr(own, name, None)}
    usual = own.eval_split if own.eval_source is None else None
    return changes | ({} if config.test_split in (None, usual) else {"test_split": config.test_split})


def protocol_of(config: ProbeConfig, setup: ProbeSetup, *, weights: str, conditions: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the protocol of a probe; see `mmm.evaluate.protocol.evaluation_protocol`."""
    return evaluation_protocol(
        setup.accelerator,
        setup.data,
        setup.splits,
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
