"""Fine-tune all weights of a classifier of images or clips, from a pretrained encoder or from scratch.

mmm finetune runs/pretrain-1                                                      the data of that run
mmm finetune image_finetune --model runs/pretrain-1                               the demonstration's data
mmm finetune image_finetune --model mae_pretrain_vit_base.pth --data.source /data/imagenet
mmm finetune video_finetune --model runs/pretrain-2 --data.source kinetics_train.csv
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmm.classifier import Classifier
from mmm.config.serialize import to_dict
from mmm.data import Clips, Images
from mmm.data.datasets.labelled import LabelledSplits, open_labelled_splits
from mmm.data.datasets.mixture import Mixture
from mmm.evaluate.classification import classify, format_classification
from mmm.evaluate.protocol import evaluation_protocol, sampling_of, weights_fingerprint
from mmm.objectives.adapt_encoder import run_data, start_from
from mmm.objectives.finetune import FineTuneConfig, FineTuneObjective, build_classifier
from mmm.train.best_weights import BestWeights
from mmm.train.distributed.setup import start, with_precision
from mmm.train.mixup import SoftConfig, check_mixing
from mmm.train.run.folder import RunFolder
from mmm.train.schedule import make_plan
from mmm.train.session import Session, open_session, preview
from mmm.train.state import Training

logger = logging.getLogger(__name__)

POSITIONAL = "model"
PAIRS = 2  # samples are mixed within a micro-batch, in pairs
# options that may differ when a run is resumed, in addition to those of every run
RUNTIME = ("model", "test_split", "data.eval_clips", "data.eval_crops")
# options of the training of a classifier; the other values of a protocol describe the samples and the scores
SCHEDULE = ("train", "soft", "layer_decay", "train_positions", "encoder", "held_back", "seed")


@dataclass(frozen=True, kw_only=True)
class Config(FineTuneConfig):
    """Fine-tune a classifier."""


def defaults(flags: Mapping[str, list[str]]) -> Config:
    """Returns the config that the flags change. If the model is from a run, the data is that of the run; see `run_data`."""
    data = run_data(flags)
    return Config() if data is None else Config(data=data)


def run(config: Config) -> dict[str, Any]:
    """Fine-tunes, writes result.json into the run folder, and prints the test scores."""
    accelerator = start(config.train)
    config = with_precision(config, accelerator)
    # ---------------------------------------------------------------------------------------------------------- data and model
    config, pretrained = start_from(config, config.data.input())
    splits = open_labelled_splits(config.data, test_split=config.test_split, held_back=config.held_back, seed=config.seed)
    data = Mixture([splits.train], (1,), config.seed)
    plan = make_plan(config.train, samples=data.epoch, processes=accelerator.num_processes)
    check_mixing(config.soft, plan.micro_batch_size)
    model = build_classifier(config, pretrained, splits.classes)
    weights = weights_fingerprint(model.encoder)  # before a resume replaces them
    # ---------------------------------------------------------------------------------------------------------------- training
    fingerprints = {"data.fingerprint": splits.train.fingerprint}
    training = Training.begin(
        accelerator, model, config, runtime=RUNTIME, fingerprints=fingerprints, layer_decay=config.layer_decay
    )
    objective = FineTuneObjective(config.data, config.soft, splits.classes, accelerator.device)
    if config.dry_run:  # a dry run does not mix its few samples
        unmixed = FineTuneObjective(config.data, SoftConfig(), splits.classes, accelerator.device)
        accelerator.print(text := preview(config, training, unmixed, data, plan, unit=PAIRS))
        return {"dry_run": text}
    announce(config, splits, training, plan.peak)
    evaluated = splits.inputs - len(splits.train)
    opened = RunFolder.open(config.folder, "finetune", config, accelerator=accelerator, resume=config.resume)
    with (
        opened as folder,
        open_session(folder, config, training, objective, data, plan, evaluated=evaluated, unit=PAIRS) as session,
    ):
        best = None if splits.validation is None else BestWeights(folder, training, "held_back_top1")
        for update in session:
            if update.due(config.train.evaluate_every):
                update.metrics |= evaluate(session, model, splits, best)
        return finish(config, session, model, splits, best, weights)


def evaluate(session: Session, model: Classifier, splits: LabelledSplits, best: BestWeights | None) -> dict[str, float]:
    """Scores the model on one view of each evaluation sample. Held-back samples, if any, choose the best weights."""
    with session.training.averaged():
        found = score(session, model, splits.watched)
        if best is not None:
            best.offer(found["top1"])
    part = "test" if best is None else "held_back"
    return {f"{part}_{name}": found[name] for name in ("top1", "top5", "loss")}


def score(session: Session, model: Classifier, part: Images | Clips) -> dict[str, Any]:
    """Scores the model on samples with its current weights."""
    size, device = session.plan.micro_batch_size, session.training.accelerator.device
    return classify(model, part, batch_size=size, device=device, problems=session.bad_inputs.pending)


def finish(
    config: Config, session: Session, model: Classifier, splits: LabelledSplits, best: BestWeights | None, weights: str
) -> dict[str, Any]:
    """Scores the test samples with all views. Uses the weights with the best score on held-back samples, or the last weights if no
    samples were held back."""
    step = session.training.step
    with session.training.averaged():
        if best is not None and best.step is not None:
            best.load(model)
            step = best.step
        found = score(session, model, splits.test)
    protocol = describe_protocol(config, session.training, splits, weights)
    result = session.write_result({"step": step, "classes": splits.names, **found, "protocol": protocol})
    if session.main:
        print(format_classification(result))
    return result


def announce(config: Config, splits: LabelledSplits, training: Training, peak: float) -> None:
    """Logs the source of the weights, the numbers of samples, and the learning rate."""
    held_back = "" if splits.validation is None else f"; {len(splits.validation):,} samples held back to choose the weights"
    embedding = peak * min(group.get("lr_scale", 1.0) for group in training.optimizer.param_groups)
    logger.info("from %s, %d classes%s; %s to score", config.model or "scratch", splits.classes, held_back, f"{len(splits.test):,}")
    logger.info("peak learning rate of the embedding %.3g", embedding)


def describe_protocol(config: Config, training: Training, splits: LabelledSplits, weights: str) -> dict[str, Any]:
    """Returns the conditions under which the scores are measured.

    Args:
        weights: fingerprint of the encoder before fine-tuning.
    """
    return evaluation_protocol(
        training.accelerator,
        config.data,
        splits,
        conditions={
            "task": "finetune",
            "sampling": sampling_of(config.data) | {"augment": config.data.augment},
            "pool": to_dict(config.pool),
            "head": to_dict(config.head),
            "schedule": {name: value for name, value in training.identity.items() if name.split(".")[0] in SCHEDULE},
            "precision": config.train.precision,
            "model": config.model or "scratch",
            "step": None,
            "weights": weights,
        },
    )
