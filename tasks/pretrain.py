"""Pretrain a masked model on images, clips or both: from files to a checkpoint, pictures and a measured representation."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from mmm.config.cli import to_dict
from mmm.core.registry import PartConfig
from mmm.core.rng import sample_keys
from mmm.data import BadInputs, Batch, DataConfig, Problem, Samples, eval_batches, open_data, train_batches
from mmm.data.datasets.mixture import Mixture
from mmm.data.transforms.resize import kernel_in_use
from mmm.decoders import DecoderConfig, SelfAttentionDecoder
from mmm.encoders import EncoderConfig, VisionTransformer
from mmm.evaluate.features.frozen_eval import FeatureEvalConfig, evaluate_features, format_features
from mmm.evaluate.features.online_knn import OnlineConfig, OnlineNeighbours
from mmm.evaluate.masked_loss import held_out_loss
from mmm.evaluate.plots.curves import draw_loss
from mmm.evaluate.probes.few_shot import FewShotConfig
from mmm.evaluate.probes.few_shot_eval import evaluate_few_shot, format_few_shot
from mmm.evaluate.reconstruction.gallery import GalleryConfig, format_gallery, make_gallery
from mmm.evaluate.run_results import Record, record
from mmm.maskers import MaskerConfig, RandomMasker
from mmm.model import MaskedModel, ModelConfig
from mmm.objectives.masked import Feed, SecondSource, connect, fingerprint
from mmm.targets import PixelTarget, Target, TargetConfig
from mmm.tokenizers import Patches
from mmm.train.config import TrainConfig, identity
from mmm.train.distributed.fsdp import sharding_asked
from mmm.train.distributed.setup import precision_of, start
from mmm.train.loop import LossOf, fit
from mmm.train.memory.batch_size_finder import settle
from mmm.train.memory.dry_run import dry_run
from mmm.train.memory.fitting import Trial
from mmm.train.memory.usage import checkpoint_blocks, naming_the_cure
from mmm.train.optimizer import make_optimizer
from mmm.train.progress import show_progress
from mmm.train.run.folder import RunFolder
from mmm.train.run.place import Resume
from mmm.train.schedule import Plan, due, make_plan
from mmm.train.trackers import start_tracker
from mmm.train.training import Training
from mmm.train.watchdog.watchdog import Ranks
from mmm.weights.initialize import initialise_from
from mmm.weights.load import load as load_model

logger = logging.getLogger(__name__)

# of the config, what may differ between a stop and its resume: where things are, not what is computed (the data's content is
# compared by its fingerprint)
RUNTIME = (
    *("folder", "resume", "allow", "dry_run", "init", "evaluate", "held_out"),
    *(f"{place}data.{name}" for place in ("", "also.") for name in ("source", "workers", "cache", "max_bad", "deadline")),
    *(f"representation.{field.name}" for field in fields(FeatureEvalConfig)),
    *(f"gallery.{field.name}" for field in fields(GalleryConfig)),
    *(f"transfer.{field.name}" for field in fields(FewShotConfig)),
    *(f"neighbours.{field.name}" for field in fields(OnlineConfig)),
)

# evaluations that need labels, and how each is told
JUDGES: dict[str, Callable[[dict[str, Any]], str]] = {"features": format_features, "transfer": format_few_shot}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Pretrain a masked model."""

    data: DataConfig
    tokenizer: PartConfig = Patches.Config()
    masker: MaskerConfig = RandomMasker.Config()
    encoder: EncoderConfig = VisionTransformer.Config()
    decoder: DecoderConfig = SelfAttentionDecoder.Config()
    target: TargetConfig = PixelTarget.Config()
    also: SecondSource | None = None
    """A second source, in the same training."""
    train: TrainConfig
    seed: int = 0
    """Of everything that is drawn: weights, order, crops, masks."""
    folder: str | None = None
    """Folder of the run; none: runs/pretrain-N."""
    resume: Resume = False
    """Go on from the newest whole checkpoint in the run's folder; auto: start the run where the folder holds none yet, so that the
    same command does both."""
    allow: tuple[str, ...] = ()
    """Choices that may differ from those of the run that is resumed, by name, for instance train.steps; data.fingerprint for the
    data's content. Such a run is no longer the one that its first command describes."""
    init: str | None = None
    """Weights to start from: a run folder, or a file that mmm.load reads."""
    scale_by_predicted: bool = False
    """Scale the learning rate by the share of hidden tokens that is predicted, masker.predict / masker.ratio (CrossMAE)."""
    held_out: int = 2048
    """Samples of the evaluation part whose masked loss is watched, with the same masks each time."""
    neighbours: OnlineConfig = OnlineConfig()
    """Nearest neighbours in the course of the training."""
    evaluate: tuple[Literal["features", "transfer", "reconstruct"], ...] = ("reconstruct",)
    """What the run ends with: how well frozen features classify, how well a probe does that learns from few labels (both need
    labels), pictures of reconstructions."""
    representation: FeatureEvalConfig = FeatureEvalConfig()
    """How features are judged at the end."""
    transfer: FewShotConfig = FewShotConfig()
    """How encoders are compared by what a probe learns from few labels."""
    gallery: GalleryConfig = GalleryConfig()
    """Which reconstructions are drawn and measured at the end."""
    dry_run: bool = False
    """Print what the run would take, and end."""


def build_model(config: Config) -> MaskedModel:
    """The model of a config, its weights drawn from the seed."""
    parts = ModelConfig(
        tokenizer=config.tokenizer, masker=config.masker, encoder=config.encoder, decoder=config.decoder, target=config.target
    )
    return MaskedModel.build(parts, config.data.input(), seed=config.seed)


def run(config: Config) -> dict[str, Any]:
    """Pretrains, and returns the last metrics and the results of the evaluations that the config names."""
    model = build_model(config)  # first: what does not fit together is said before anything is opened
    accelerator = start(config.train)
    config = drop_unfit_evaluations(config, model)
    feeds = open_feeds(config)
    mixture = Mixture([feed.samples for feed in feeds], (1,) if config.also is None else config.also.updates, config.seed)
    plan = make_plan(scaled(config), samples=mixture.epoch, processes=accelerator.num_processes)
    if config.train.checkpoint_blocks:
        checkpoint_blocks(model)
    for feed in feeds:  # an epoch reads each input once, and gives so many samples of it
        if plan.micro_batch_size % feed.data.repeats:
            raise ValueError(
                f"data.repeats {feed.data.repeats} does not divide the {plan.micro_batch_size} samples of a micro-batch; change one"
            )
    copied = set() if config.init is None else initialise_from(model, config.init)
    if "target" not in copied:
        model.target.begin(model, load_model)
    config = replace(config, train=replace(config.train, precision=precision_of(accelerator)))
    training = Training.prepare(
        accelerator,
        model,
        make_optimizer(model, config.train),
        identity=identity(to_dict(config), runtime=RUNTIME)
        | {feed.called("data.fingerprint"): feed.samples.fingerprint for feed in feeds}
        | fingerprint(model),
        ema=config.train.ema is not None,
        sharded=sharding_asked(os.environ),
    )
    unit, asked, tried = (
        math.lcm(*(feed.data.repeats for feed in feeds)),
        config.train.micro_batch_size,
        trials(config, feeds, training),
    )
    if config.dry_run:
        return describe(config, training, feeds[0], settle(training, plan, tried, asked=asked, unit=unit))
    opened = RunFolder.open(config.folder, "pretrain", config, accelerator=accelerator, resume=config.resume)
    with opened as folder, Ranks(training, config.train.timeout):
        plan = settle(training, plan, tried, asked=asked, unit=unit, folder=folder.path)
        with naming_the_cure(plan, checkpointed=config.train.checkpoint_blocks, unit=unit):
            return train(config, training, feeds, mixture, plan, folder)


def drop_unfit_evaluations(config: Config, model: MaskedModel) -> Config:
    """The config without the evaluations that cannot serve this model, with a warning."""
    if "reconstruct" not in config.evaluate or type(model.target).show is not Target.show:
        return config
    logger.warning("the evaluation reconstruct is left out: the target %s predicts no pixels", model.target.config.name)
    return replace(config, evaluate=tuple(name for name in config.evaluate if name != "reconstruct"))


def trials(config: Config, feeds: list[Feed], training: Training) -> list[Trial]:
    """The kinds of micro-batches that the run computes: one of each source."""

    def trial(feed: Feed) -> Trial:
        data = replace(feed.data, workers=0, repeats=1)

        def make_batch(samples: int) -> Batch:
            return next(train_batches(feed.samples, data, seed=config.seed, batch_size=samples, steps=1))

        return Trial(make_batch, feed.loss(bare(training), training.accelerator.device, steps=1))

    return [trial(feed) for feed in feeds]


def open_feeds(config: Config) -> list[Feed]:
    """The sources, opened.

    Raises:
        ValueError: where one is missing, or has no labels for an evaluation that needs them.
    """
    also = config.also
    feeds = [Feed.open("", config.data, config.masker)]
    feeds += [] if also is None else [Feed.open("also", also.data, also.masker, also.weight)]
    for name in ("features", "transfer"):
        if name in config.evaluate and feeds[0].samples.labels() is None:
            raise ValueError(
                f"--evaluate {name} needs labels, and {config.data.source} has none; leave it out, or give data.label_column"
            )
    return feeds


def bare(training: Training) -> MaskedModel:
    """The model inside what DDP, precision and compilation put around it."""
    return cast(MaskedModel, training.bare)


def scaled(config: Config) -> TrainConfig:
    """How to train, its learning rate scaled where the config asks for it."""
    masker = config.masker
    if not config.scale_by_predicted or masker.predict is None:
        return config.train
    return replace(config.train, learning_rate=config.train.learning_rate * masker.predict / masker.ratio)


def train(config: Config, training: Training, feeds: list[Feed], mixture: Mixture, plan: Plan, folder: RunFolder) -> dict[str, Any]:
    """Trains from where the run stands to its end, and evaluates."""
    accelerator, main, model = training.accelerator, training.accelerator.is_main_process, bare(training)
    if config.resume:
        folder.adopt(training.restore(folder.checkpoints, config.allow), training.step, config)
        folder.cut_metrics(training.step)  # also where the run was killed before its first checkpoint
    start_tracker(accelerator, config.train.tracker, folder.path, identity(to_dict(config)))
    watched = [(feed, feed.watched(config.held_out)) for feed in feeds]
    inputs = sum(len(feed.samples) + len(part) for feed, part in watched)
    bad = BadInputs(folder.path / "bad_inputs.jsonl", inputs, config.data.max_bad, write=main)
    neighbours = None if config.neighbours.every is None else OnlineNeighbours(config.neighbours, config.data)
    announce(feeds, plan, folder)
    connect(model, accelerator)
    updates = fit(
        training,
        bad.watch(load(mixture, plan, training)),
        masked_loss(feeds, mixture, model, accelerator.device, plan.steps),
        config=config.train,
        plan=plan,
        seed=config.seed,
        name_samples=lambda step: mixture.name_samples(step, plan.batch_size),
    )
    metrics: dict[str, float] = {}
    for update in show_progress(updates, plan, start=training.step, main=main):
        model.target.update(model, update.step, plan.steps, update.made)
        line = dict(update.metrics or {})
        if due(update.step, config.train.evaluate_every, plan.steps):
            for feed, part in watched:
                line[feed.called("held_out_loss")] = watch(training, feed, part, plan, bad.pending)
        if neighbours is not None and due(update.step, config.neighbours.every, plan.steps):
            with training.whole() as whole:
                line["neighbours_top1"], unread = neighbours.accuracy(
                    cast(MaskedModel, whole), accelerator.device, plan.micro_batch_size
                )
            bad.pending += unread if main else []  # all processes know of the same
        folder.note_skipped(update.skipped)
        if line or update.save or update.last:
            bad.share()
        if line:
            folder.log(update.step, line)
            accelerator.log(line, step=update.step)
            metrics |= line
        if update.save:
            keep_last, keep_every = config.train.keep_last, config.train.keep_every
            training.save(folder.checkpoints, keep_last, keep_every=keep_every, needed=update.last)
        bad.check()  # after the checkpoint, so that a run that stops here keeps it
    results = finish(config, training, feeds, folder, bad, metrics)
    accelerator.end_training()  # last: it ends the process group too, through which evaluations share their work
    return results


def masked_loss(feeds: list[Feed], mixture: Mixture, model: MaskedModel, device: torch.device, steps: int) -> LossOf:
    """The loss of a batch of the source whose turn it is, times the source's weight."""
    losses = [feed.loss(model, device, steps) for feed in feeds]

    def loss_of(wrapped: nn.Module, batch: Batch, step: int) -> Tensor:
        source = mixture.source(step)
        return losses[source](wrapped, batch, step) * feeds[source].weight

    return loss_of


def load(mixture: Mixture, plan: Plan, training: Training) -> Iterator[Batch]:
    """The micro-batches of this process, from the step where the run stands."""
    return mixture.batches(
        batch_size=plan.micro_batch_size,
        steps=plan.steps,
        start_step=training.step,
        accumulation=plan.accumulation,
        world=training.accelerator.num_processes,
        rank=training.accelerator.process_index,
    )


def watch(training: Training, feed: Feed, part: Samples, plan: Plan, problems: list[Problem]) -> float:
    """The masked loss of a source's watched part."""
    accelerator = training.accelerator
    rank = accelerator.process_index
    batches = eval_batches(part, feed.data, batch_size=plan.micro_batch_size, world=plan.processes, rank=rank)
    loss_of = feed.loss(bare(training), accelerator.device, plan.steps)
    with training.whole() as model:
        return held_out_loss(model, batches, loss_of, accelerator=accelerator, problems=problems)


def announce(feeds: list[Feed], plan: Plan, folder: RunFolder) -> None:
    """Says what is about to run."""
    for feed in feeds:
        samples = feed.samples
        what = feed.data.medium.noun + ("" if samples.classes is None else f" of {len(samples.classes)} classes")
        logger.info("%s: %s %s (%s); run folder %s", feed.data.source, f"{len(samples):,}", what, samples.where, folder.path)
    logger.info(
        "%s steps of %s samples (%.4g epochs), peak learning rate %.3g",
        f"{plan.steps:,}",
        f"{plan.batch_size:,}",
        plan.epoch(plan.steps),
        plan.peak,
    )


def describe(config: Config, training: Training, feed: Feed, plan: Plan) -> dict[str, Any]:
    """The dry run: what the run would take, on real samples of its first source."""
    model, data = bare(training), feed.data

    def make_batch(samples: int) -> Batch:
        return next(train_batches(feed.samples, replace(data, workers=0, repeats=1), seed=config.seed, batch_size=samples, steps=1))

    grid = model.tokenizer.grid_of(data.size)
    mask = feed.masker(sample_keys(config.seed, 0, 0), grid)
    tokens = {
        "of a sample": math.prod(grid),
        "seen by the encoder": mask.visible.shape[1],
        "predicted": mask.predict.shape[1],
    }
    text = dry_run(
        training,
        make_batch,
        feed.loss(model, training.accelerator.device, plan.steps),
        plan=plan,
        tokens=tokens,
        notes={"resizing": kernel_in_use()} | about_repeats(data, plan) | about_sources(config),
    )
    if training.accelerator.is_main_process:
        print(text)
    return {"dry_run": text}


def about_repeats(data: DataConfig, plan: Plan) -> dict[str, str]:
    """What decoding once and cutting several samples does to epochs, batches and the learning rate."""
    if data.repeats == 1:
        return {}
    noun, epochs = data.medium.noun, plan.epoch(plan.steps)
    return {
        "data.repeats": f"{data.repeats} samples of each decoded input",
        "effective epochs": f"{epochs * data.repeats:.4g} samples of each of the {noun}; each is decoded {epochs:.4g} times",
        "inputs an update": f"{plan.batch_size // data.repeats:,}, for {plan.batch_size:,} samples",
        "learning rate": "scaled by the samples of an update, repeats among them",
    }


def about_sources(config: Config) -> dict[str, str]:
    """How often each of two sources has its turn."""
    if config.also is None:
        return {}
    first, second = config.also.updates
    return {
        "two sources": f"of {first + second} updates {first} on {config.data.source}, which this table is of, "
        f"and {second} on {config.also.data.source}; an epoch passes once over the first"
    }


def finish(
    config: Config, training: Training, feeds: list[Feed], folder: RunFolder, bad: BadInputs, metrics: dict[str, float]
) -> dict[str, Any]:
    """Ends the run with the evaluations that its config names, and the loss curve."""
    logger.info("%s", bad.report())
    main = training.accelerator.is_main_process
    average = nullcontext() if training.ema is None else training.ema.applied(training.bare)
    results: dict[str, Any] = {"run": str(folder.path), "step": training.step, **metrics}
    with average, training.whole() as whole:
        model = cast(MaskedModel, whole)
        for feed in feeds:
            for name in (name for name in JUDGES if name in config.evaluate and feed.samples.labels() is not None):
                with evaluation(feed.called(name)):
                    found = judge(config, name, feed, model, training.accelerator.device)
                    results[feed.called(name)] = found
                    conclude(folder, feed.called(name), training.step, found, JUDGES[name], main)
            if "reconstruct" in config.evaluate and main:  # a few hundred samples: one process does it
                with evaluation(feed.called("reconstruct")):
                    picture = folder.pictures / f"{feed.called('reconstruction')}_{training.step:08d}.png"
                    title = f"{folder.path.name}, step {training.step:,}: hidden tokens, predicted"
                    shown = open_data(feed.data, "eval")
                    found = make_gallery(feed.masking(model), shown, config.gallery, path=picture, title=title)
                    results[feed.called("reconstruct")] = found
                    conclude(folder, feed.called("reconstruct"), training.step, found, format_gallery, main)
    if main:
        logger.info("loss curve: %s", draw_loss(Record.read(folder.path), folder.pictures / "loss.png"))
    return results


@contextmanager
def evaluation(name: str) -> Iterator[None]:
    """Announces an evaluation. One that fails is an error message, and the finished training keeps its exit code 0."""
    logger.info("evaluation %s", name)
    try:
        yield
    except ValueError as error:
        logger.error("the training is complete, and its evaluation %s failed: %s", name, error)


def judge(config: Config, name: str, feed: Feed, model: MaskedModel, device: torch.device) -> dict[str, Any]:
    """How well samples are classified by what this encoder makes of them, by the same untrained, and by raw pixels."""
    models = {"trained": model, "untrained": build_model(config).to(device)}
    train, test = open_data(feed.data, "train"), open_data(feed.data, "eval")
    if name == "transfer":
        return evaluate_few_shot(models, train, test, config.transfer, device=device)
    return evaluate_features(models, train, test, config.representation, device=device)


def conclude(
    folder: RunFolder, kind: str, step: int, found: dict[str, Any], words: Callable[[dict[str, Any]], str], main: bool
) -> None:
    """Keeps an evaluation's result in the run's folder, and shows it."""
    if main:
        record(folder.path, kind, step, found)
        print(words(found))
