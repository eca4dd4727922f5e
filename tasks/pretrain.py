"""Pretrain a masked model on images: from files to a checkpoint, pictures and a measured representation."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn

from mmm.checkpoints.load import initialise_from
from mmm.config import to_dict
from mmm.data import BadInputs, Batch, Images, ImagesConfig, Order, Problem, eval_batches, open_images, train_batches
from mmm.data.prepare import prepare
from mmm.decoders import DecoderConfig, SelfAttentionDecoder
from mmm.encoders import EncoderConfig, VisionTransformer
from mmm.evaluate.curve import draw_loss
from mmm.evaluate.gallery import GalleryConfig, describe_gallery, make_gallery
from mmm.evaluate.held_out import held_out_loss
from mmm.evaluate.record import Record, record
from mmm.evaluate.representation import RepresentationConfig, describe_representation, judge_representation
from mmm.keys import sample_keys
from mmm.maskers import MaskerConfig, RandomMasker
from mmm.model import MaskedModel, ModelConfig
from mmm.registry import PartConfig
from mmm.targets import PixelTarget
from mmm.tokenizers import Patches
from mmm.train.config import TrainConfig, identity
from mmm.train.devices import precision_of, start
from mmm.train.dry_run import dry_run
from mmm.train.loop import LossOf, fit
from mmm.train.optimizer import make_optimizer
from mmm.train.progress import show_progress
from mmm.train.run import RunFolder
from mmm.train.schedule import Plan, due, make_plan
from mmm.train.tracking import start_tracker
from mmm.train.training import Training

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

# of the config, what may differ between a stop and its resume: where things are, not what is computed (the data's content is
# compared by its fingerprint)
RUNTIME = (
    *("folder", "resume", "dry_run", "init", "evaluate", "held_out", "data.source", "data.workers", "data.cache", "data.max_bad"),
    *(f"representation.{field.name}" for field in fields(RepresentationConfig)),
    *(f"gallery.{field.name}" for field in fields(GalleryConfig)),
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Pretrain a masked model."""

    data: ImagesConfig
    tokenizer: PartConfig = Patches.Config()
    masker: MaskerConfig = RandomMasker.Config()
    encoder: EncoderConfig = VisionTransformer.Config()
    decoder: DecoderConfig = SelfAttentionDecoder.Config()
    target: PartConfig = PixelTarget.Config()
    train: TrainConfig
    seed: int = 0
    """Of everything that is drawn: weights, order, crops, masks."""
    folder: str | None = None
    """Folder of the run; none: runs/pretrain-N."""
    resume: bool = False
    """Go on from the newest whole checkpoint in the run's folder."""
    init: str | None = None
    """Weights to start from: a run folder, or a file that mmm.load reads."""
    scale_by_predicted: bool = False
    """Scale the learning rate by the share of hidden tokens that is predicted, masker.predict / masker.ratio (CrossMAE)."""
    held_out: int = 2048
    """Samples of the evaluation part whose masked loss is watched, with the same masks each time."""
    evaluate: tuple[Literal["features", "reconstruct"], ...] = ("reconstruct",)
    """What the run ends with: how well frozen features classify (needs labels), pictures of reconstructions."""
    representation: RepresentationConfig = RepresentationConfig()
    """How features are judged at the end."""
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
    images = open_images(config.data, "train")
    if "features" in config.evaluate and images.labels() is None:
        raise ValueError(
            f"--evaluate features needs labels, and {config.data.source} has none; leave it out, or give data.label_column"
        )
    repeats = config.data.repeats  # an epoch reads each image once, and gives so many samples of it
    plan = make_plan(scaled(config), samples=len(images) * repeats, processes=accelerator.num_processes)
    if plan.micro_batch_size % repeats:
        raise ValueError(f"data.repeats {repeats} does not divide the {plan.micro_batch_size} samples of a micro-batch; change one")
    if config.init is not None:
        initialise_from(model, config.init)
    config = replace(config, train=replace(config.train, precision=precision_of(accelerator)))
    training = Training.prepare(
        accelerator,
        model,
        make_optimizer(model, config.train),
        identity=identity(to_dict(config), runtime=RUNTIME) | {"data.fingerprint": images.fingerprint},
        ema=config.train.ema is not None,
    )
    loss_of = masked_loss(bare(training), config.data, accelerator.device, plan.steps)
    if config.dry_run:
        return describe(config, training, images, plan, loss_of)
    with RunFolder.open(config.folder, "pretrain", config, accelerator=accelerator, resume=config.resume) as folder:
        return train(config, training, images, plan, loss_of, folder)


def bare(training: Training) -> MaskedModel:
    """The model inside what DDP, precision and compilation put around it."""
    return cast(MaskedModel, training.bare)


def scaled(config: Config) -> TrainConfig:
    """How to train, its learning rate scaled where the config asks for it."""
    masker = config.masker
    if not config.scale_by_predicted or masker.predict is None:
        return config.train
    return replace(config.train, learning_rate=config.train.learning_rate * masker.predict / masker.ratio)


def masked_loss(model: MaskedModel, data: ImagesConfig, device: torch.device, steps: int) -> LossOf:
    """The loss of a batch, its masks drawn outside the graph from the samples' keys."""

    def loss_of(wrapped: nn.Module, batch: Batch, step: int) -> Tensor:
        batch = batch.to(device)
        x = prepare(batch, data, train=wrapped.training)  # (B, C, h, w)
        mask = model.masker(batch.keys, model.tokenizer.grid(x), step=step, steps=steps)
        return wrapped(x, mask=mask).loss

    return loss_of


def train(config: Config, training: Training, images: Images, plan: Plan, loss_of: LossOf, folder: RunFolder) -> dict[str, Any]:
    """Trains from where the run stands to its end, and evaluates."""
    from accelerate.utils import gather_object

    accelerator, main, model = training.accelerator, training.accelerator.is_main_process, bare(training)
    if config.resume:
        training.restore(folder.checkpoints)
        folder.cut_metrics(training.step)  # also where the run was killed before its first checkpoint
    start_tracker(accelerator, config.train.tracker, folder.path, identity(to_dict(config)))
    watched = watched_part(config)
    bad = BadInputs(folder.path / "bad_inputs.jsonl", len(images) + len(watched), config.data.max_bad, write=main)
    met: list[Problem] = []  # by this process since the last line of metrics
    announce(config, images, plan, folder)
    order = Order(len(images), config.seed)
    updates = fit(
        training,
        note_problems(load(config, images, plan, training), met),
        loss_of,
        config=config.train,
        plan=plan,
        seed=config.seed,
        name_samples=lambda step: name_samples(order, step, plan.batch_size, config.data.repeats),
    )
    metrics: dict[str, float] = {}
    for update in show_progress(updates, plan, start=training.step, main=main):
        model.target.update(model, update.step)
        line = dict(update.metrics or {})
        if due(update.step, config.train.evaluate_every, plan.steps):
            line["held_out_loss"] = watch(model, watched, config, loss_of, accelerator, met)
        if line:
            bad.add(gather_object(met))  # all processes hear what any of them met, so that all stop where it is too much
            met.clear()
            folder.log(update.step, line)
            accelerator.log(line, step=update.step)
            metrics |= line
        if due(update.step, config.train.save_every, plan.steps):
            training.save(folder.checkpoints, config.train.keep_last)
    accelerator.end_training()
    return finish(config, training, folder, bad, metrics)


def load(config: Config, images: Images, plan: Plan, training: Training) -> Iterator[Batch]:
    """The micro-batches of this process, from the step where the run stands."""
    accelerator = training.accelerator
    return train_batches(
        images,
        config.data,
        seed=config.seed,
        batch_size=plan.micro_batch_size,
        steps=plan.steps,
        start_step=training.step,
        accumulation=plan.accumulation,
        world=accelerator.num_processes,
        rank=accelerator.process_index,
    )


def name_samples(order: Order, step: int, batch_size: int, repeats: int) -> list[int]:
    """The images of an update, in the order of its samples: each as often as it is repeated."""
    _, index = order.at(step * batch_size // repeats, batch_size // repeats)
    return index.repeat_interleave(repeats).tolist()


def note_problems(batches: Iterator[Batch], met: list[Problem]) -> Iterator[Batch]:
    """Passes batches on, and notes what could not be read."""
    for batch in batches:
        met += batch.problems
        yield batch


def watched_part(config: Config) -> Images:
    """The samples whose loss is watched: evenly spread over the evaluation part."""
    images = open_images(config.data, "eval")
    count = min(config.held_out, len(images))
    return images.subset(torch.arange(count) * len(images) // count)


def watch(
    model: nn.Module, images: Images, config: Config, loss_of: LossOf, accelerator: Accelerator, problems: list[Problem]
) -> float:
    """The masked loss of the watched part."""
    share = config.train.micro_batch_size or max(1, config.train.batch_size // accelerator.num_processes)
    batches = eval_batches(images, config.data, batch_size=share, world=accelerator.num_processes, rank=accelerator.process_index)
    return held_out_loss(model, batches, loss_of, accelerator=accelerator, problems=problems)


def announce(config: Config, images: Images, plan: Plan, folder: RunFolder) -> None:
    """Says what is about to run."""
    classes = "" if images.classes is None else f" of {len(images.classes)} classes"
    logger.info("%s: %s images%s (%s); run folder %s", config.data.source, f"{len(images):,}", classes, images.where, folder.path)
    logger.info(
        "%s steps of %s images (%.4g epochs), peak learning rate %.3g",
        f"{plan.steps:,}",
        f"{plan.batch_size:,}",
        plan.epoch(plan.steps),
        plan.peak,
    )


def describe(config: Config, training: Training, images: Images, plan: Plan, loss_of: LossOf) -> dict[str, Any]:
    """The dry run: what the run would take, on real samples of the data."""
    model = bare(training)

    def make_batch(samples: int) -> Batch:
        return next(
            train_batches(images, replace(config.data, workers=0, repeats=1), seed=config.seed, batch_size=samples, steps=1)
        )

    grid = model.tokenizer.grid_of(config.data.size)
    mask = model.masker(sample_keys(config.seed, 0, 0), grid)
    tokens = {
        "of a sample": math.prod(grid),
        "seen by the encoder": mask.visible.shape[1],
        "predicted": mask.predict.shape[1],
    }
    text = dry_run(training, make_batch, loss_of, plan=plan, tokens=tokens)
    if training.accelerator.is_main_process:
        print(text)
    return {"dry_run": text}


def finish(config: Config, training: Training, folder: RunFolder, bad: BadInputs, metrics: dict[str, float]) -> dict[str, Any]:
    """Ends the run with the evaluations that its config names, and the loss curve."""
    logger.info("%s", bad.report())
    model, main = bare(training), training.accelerator.is_main_process
    average = nullcontext() if training.ema is None else training.ema.applied(model)
    results: dict[str, Any] = {"run": str(folder.path), "step": training.step, **metrics}
    with average:
        if "features" in config.evaluate:
            results["features"] = judge(config, model, training.accelerator.device)
            conclude(folder, "features", training.step, results["features"], describe_representation, main)
        if "reconstruct" in config.evaluate and main:  # a few hundred images: one process does it
            picture = folder.pictures / f"reconstruction_{training.step:08d}.png"
            results["reconstruct"] = make_gallery(model, open_images(config.data, "eval"), config.gallery, path=picture)
            conclude(folder, "reconstruct", training.step, results["reconstruct"], describe_gallery, main)
    if main:
        logger.info("loss curve: %s", draw_loss(Record.read(folder.path), folder.pictures / "loss.png"))
    return results


def judge(config: Config, model: MaskedModel, device: torch.device) -> dict[str, Any]:
    """How well frozen features classify, of this model, of the same untrained, and raw pixels."""
    models = {"trained": model, "untrained": build_model(config).to(device)}
    train, test = open_images(config.data, "train"), open_images(config.data, "eval")
    return judge_representation(models, train, test, config.representation, device=device)


def conclude(
    folder: RunFolder, kind: str, step: int, found: dict[str, Any], words: Callable[[dict[str, Any]], str], main: bool
) -> None:
    """Keeps an evaluation's result in the run's folder, and shows it."""
    if main:
        record(folder.path, kind, step, found)
        print(words(found))
