"""Fine-tune a classifier of images or clips: all its weights, from a pretrained encoder or from scratch.

accelerate launch recipes/image_finetune.py --model runs/pretrain-1                                    the demonstration's data
accelerate launch recipes/image_finetune.py --model mae_pretrain_vit_base.pth --data.source /data/imagenet
accelerate launch recipes/video_finetune.py --model runs/pretrain-2 --data.source kinetics_train.csv
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from mmm.config.cli import to_dict
from mmm.data import BadInputs, Batch, Problem, train_batches
from mmm.data.datasets.labelled import open_lessons
from mmm.evaluate.classification import format_classification
from mmm.evaluate.protocol import weights_fingerprint
from mmm.objectives.adapt_encoder import load_pretrained, run_data
from mmm.objectives.finetune import FineTuneConfig, build_classifier, soft_loss, with_pretrained
from mmm.objectives.finetune_run import FineTuning
from mmm.train.best_weights import Best
from mmm.train.config import identity
from mmm.train.distributed.setup import precision_of, start
from mmm.train.loop import fit
from mmm.train.memory.batch_size_finder import settle
from mmm.train.memory.dry_run import dry_run
from mmm.train.memory.fitting import Trial
from mmm.train.memory.usage import checkpoint_blocks, naming_the_cure
from mmm.train.mixup import SoftConfig, check_mixing
from mmm.train.optimizer import make_optimizer
from mmm.train.progress import show_progress
from mmm.train.run.folder import RunFolder
from mmm.train.schedule import due, make_plan
from mmm.train.trackers import start_tracker
from mmm.train.training import Training
from mmm.train.watchdog.watchdog import Ranks

logger = logging.getLogger(__name__)

POSITIONAL = "model"
RESULT = "result.json"
# of the config, what may differ between a stop and its resume; the data's content is compared by its fingerprint
RUNTIME = (
    *("folder", "resume", "allow", "dry_run", "model", "test_split"),
    *(f"data.{name}" for name in ("source", "workers", "cache", "max_bad", "deadline", "eval_clips", "eval_crops")),
)


@dataclass(frozen=True, kw_only=True)
class Config(FineTuneConfig):
    """Fine-tune a classifier."""


def defaults(flags: Mapping[str, list[str]]) -> Config:
    """The config that flags change: the data of the run that they name as the model; of another source, its pixels alone."""
    model = flags.get("model")
    data = run_data(model[-1]) if model else None
    if data is None:
        return Config()
    if "data.source" in flags:  # which has names of its own
        column = data.medium.flag.removeprefix("data.")
        names: dict[str, Any] = dict.fromkeys(("eval_split", "eval_source", "root", "label_column", column)) | {"split": "train"}
        data = replace(data, **names)
    return Config(data=data)


def run(config: Config) -> dict[str, Any]:
    """Fine-tunes, writes result.json into the run's folder, and prints the scores of the test part."""
    accelerator = start(config.train)
    pretrained = None if config.model is None else load_pretrained(config.model, config.data.input())
    config = config if pretrained is None else with_pretrained(config, pretrained)
    lessons = open_lessons(config.data, test_split=config.test_split, held_back=config.held_back, seed=config.seed)
    samples = len(lessons.train) * config.data.repeats  # an epoch reads each input once, and gives so many samples of it
    plan = make_plan(config.train, samples=samples, processes=accelerator.num_processes)
    check_mixing(config.soft, plan.micro_batch_size)
    model = build_classifier(config, pretrained, lessons.classes)
    if config.train.checkpoint_blocks:
        checkpoint_blocks(model)
    weights = weights_fingerprint(model.encoder)  # before a resume puts others in their place
    config = replace(config, train=replace(config.train, precision=precision_of(accelerator)))
    training = Training.prepare(
        accelerator,
        model,
        make_optimizer(model, config.train, layer_decay=config.layer_decay),
        identity=identity(to_dict(config), runtime=RUNTIME) | {"data.fingerprint": lessons.train.fingerprint},
        ema=config.train.ema is not None,
    )
    tuning = FineTuning(config, lessons, plan, training, weights)
    if config.dry_run:
        return describe(tuning)
    opened = RunFolder.open(config.folder, "finetune", config, accelerator=accelerator, resume=config.resume)
    with opened as folder, Ranks(training, config.train.timeout):
        unit = math.lcm(2, config.data.repeats)  # what is mixed, is mixed within a micro-batch, in pairs
        trials = [Trial(tuning.some, soft_loss(config, config.soft, lessons.classes, accelerator.device))]
        plan = settle(training, plan, trials, asked=config.train.micro_batch_size, unit=unit, folder=folder.path)
        with naming_the_cure(plan, checkpointed=config.train.checkpoint_blocks, unit=unit):
            return train(replace(tuning, plan=plan), folder)


def train(tuning: FineTuning, folder: RunFolder) -> dict[str, Any]:
    """Trains from where the run stands to its end, and scores."""
    config, lessons, plan, training = tuning.config, tuning.lessons, tuning.plan, tuning.training
    accelerator, main = training.accelerator, training.accelerator.is_main_process
    if config.resume:
        folder.adopt(training.restore(folder.checkpoints, config.allow), training.step, config)
        folder.cut_metrics(training.step)  # also where the run was killed before its first checkpoint
    start_tracker(accelerator, config.train.tracker, folder.path, training.identity)
    best = None if lessons.choice is None else Best(folder, training, "held_back_top1")
    bad = BadInputs(folder.path / "bad_inputs.jsonl", lessons.inputs, config.data.max_bad, write=main)
    announce(tuning, folder)
    updates = fit(
        training,
        bad.watch(tuning.batches()),
        soft_loss(config, config.soft, lessons.classes, accelerator.device),
        config=config.train,
        plan=plan,
        seed=config.seed,
        name_samples=tuning.name_samples,
    )
    for update in show_progress(updates, plan, start=training.step, main=main):
        line = dict(update.metrics or {})
        if due(update.step, config.train.evaluate_every, plan.steps):
            line |= watch(tuning, best, bad.pending)
        folder.note_skipped(update.skipped)
        if line or update.save or update.last:
            bad.share()
        if line:
            folder.log(update.step, line)
            accelerator.log(line, step=update.step)
        if update.save:
            keep_last, keep_every = config.train.keep_last, config.train.keep_every
            training.save(folder.checkpoints, keep_last, keep_every=keep_every, needed=update.last)
        bad.check()  # after the checkpoint, so that a run that stops here keeps it
    result = finish(tuning, folder, best, bad)
    accelerator.end_training()  # last: it takes the processes apart
    return result


def watch(tuning: FineTuning, best: Best | None, problems: list[Problem]) -> dict[str, float]:
    """Scores the model on one view of each of the samples that are looked at while training; those held back choose the best."""
    with tuning.averaged():
        found = tuning.scores(tuning.lessons.watched, problems)
        if best is not None:
            best.offer(found["top1"])
    part = "test" if best is None else "held_back"
    return {f"{part}_{name}": found[name] for name in ("top1", "top5", "loss")}


def finish(tuning: FineTuning, folder: RunFolder, best: Best | None, bad: BadInputs) -> dict[str, Any]:
    """Scores the test part, by all views: the weights that did best on the samples held back, else the last."""
    chosen = best is not None and best.step is not None
    with tuning.averaged():
        if best is not None and chosen:
            best.load(tuning.model)
        found = tuning.scores(tuning.lessons.test, bad.pending)
    bad.share()
    bad.check()
    logger.info("%s", bad.report())
    step = best.step if best is not None and chosen else tuning.training.step
    result = {"run": str(folder.path), "step": step, "classes": tuning.lessons.names, **found}
    result["protocol"] = tuning.protocol().plain()
    if tuning.training.accelerator.is_main_process:
        (folder.path / RESULT).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        print(format_classification(result))
    return result


def announce(tuning: FineTuning, folder: RunFolder) -> None:
    """Says what is about to run."""
    lessons, plan = tuning.lessons, tuning.plan
    held = "" if lessons.choice is None else f", {len(lessons.choice):,} held back to choose the weights"
    what = f"{len(lessons.train):,} {lessons.train.config.medium.noun} of {lessons.classes} classes"
    logger.info(
        "%s: %s%s, %s to score; run folder %s", lessons.train.config.source, what, held, f"{len(lessons.test):,}", folder.path
    )
    logger.info(
        "from %s; %s steps of %s samples (%.4g epochs), peak learning rate %.3g, of the embedding %.3g",
        tuning.config.model or "scratch",
        f"{plan.steps:,}",
        f"{plan.batch_size:,}",
        plan.epoch(plan.steps),
        plan.peak,
        plan.peak * min(group.get("lr_scale", 1.0) for group in tuning.training.optimizer.param_groups),
    )


def describe(tuning: FineTuning) -> dict[str, Any]:
    """The dry run: what the run would take, on real samples of the data; they are not mixed."""
    config, lessons, training = tuning.config, tuning.lessons, tuning.training
    data = replace(config.data, workers=0, repeats=1)

    def make_batch(samples: int) -> Batch:
        return next(train_batches(lessons.train, data, seed=config.seed, batch_size=samples, steps=1))

    tokens = {"of a sample": math.prod(tuning.model.tokenizer.grid_of(data.size))}
    loss_of = soft_loss(config, SoftConfig(), lessons.classes, training.accelerator.device)
    text = dry_run(training, make_batch, loss_of, plan=tuning.plan, tokens=tokens, notes={})
    if training.accelerator.is_main_process:
        print(text)
    return {"dry_run": text}
