"""Pretrain a masked model on images, clips or both: from files to a checkpoint, pictures and a measured representation."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, cast

import torch

from mmm.config.serialize import to_dict
from mmm.core.registry import PartConfig
from mmm.core.rng import sample_keys
from mmm.data import DataConfig, Samples, eval_batches, open_data
from mmm.data.datasets.mixture import Mixture
from mmm.data.transforms.resize import kernel_in_use
from mmm.decoders import DecoderConfig, SelfAttentionDecoder
from mmm.encoders import EncoderConfig, VisionTransformer
from mmm.evaluate.features.frozen_eval import RepresentationConfig, describe_representation, judge_representation
from mmm.evaluate.features.online_knn import OnlineConfig, OnlineNeighbours
from mmm.evaluate.masked_loss import held_out_loss
from mmm.evaluate.plots.curves import draw_loss
from mmm.evaluate.probes.few_shot import TransferConfig
from mmm.evaluate.probes.few_shot_eval import describe_transfer, judge_transfer
from mmm.evaluate.reconstruction.gallery import GalleryConfig, describe_gallery, make_gallery
from mmm.evaluate.run_results import Record, record
from mmm.maskers import MaskerConfig, RandomMasker
from mmm.model import MaskedModel, ModelConfig
from mmm.objectives.masked import DataStream, MaskedObjective, SecondSource, connect, fingerprint
from mmm.targets import PixelTarget, Target, TargetConfig
from mmm.tokenizers import Patches
from mmm.train.config import RunConfig, TrainConfig, identity
from mmm.train.distributed.fsdp import sharding_asked
from mmm.train.distributed.setup import start, with_precision
from mmm.train.memory.usage import checkpoint_blocks
from mmm.train.optimizer import make_optimizer
from mmm.train.run.folder import RunFolder
from mmm.train.schedule import Plan, make_plan
from mmm.train.session import Session, open_session, preview
from mmm.train.state import Training
from mmm.weights.initialize import initialise_from
from mmm.weights.load import load as load_model

logger = logging.getLogger(__name__)

# choices that may differ between a stop and its resume, beside those of every run
RUNTIME = ("init", "evaluate", "held_out", "representation", "gallery", "transfer", "neighbours")

# evaluations that need labels, and how each is told
JUDGES: dict[str, Callable[[dict[str, Any]], str]] = {"features": describe_representation, "transfer": describe_transfer}


@dataclass(frozen=True, kw_only=True)
class Config(RunConfig):
    """Pretrain a masked model."""

    data: DataConfig
    tokenizer: PartConfig = Patches.Config()
    masker: MaskerConfig = RandomMasker.Config()
    encoder: EncoderConfig = VisionTransformer.Config()
    decoder: DecoderConfig = SelfAttentionDecoder.Config()
    target: TargetConfig = PixelTarget.Config()
    second: SecondSource | None = None
    """A second source, in the same training."""
    init: str | None = None
    """Weights to start from: a run folder, or a file that mmm.load reads."""
    scale_by_predicted: bool = False
    """Scale the learning rate by the share of hidden tokens that is predicted, masker.predict / masker.ratio (CrossMAE)."""
    held_out: int = 2048
    """Samples of the evaluation part whose masked loss is measured while training, with the same masks each time."""
    neighbours: OnlineConfig = OnlineConfig()
    """Nearest neighbours in the course of the training."""
    evaluate: tuple[Literal["features", "transfer", "reconstruct"], ...] = ("reconstruct",)
    """Evaluations at the end: how well frozen features classify, how well a probe does that learns from few labels (both need
    labels), pictures of reconstructions."""
    representation: RepresentationConfig = RepresentationConfig()
    """How features are judged at the end."""
    transfer: TransferConfig = TransferConfig()
    """How encoders are compared by what a probe learns from few labels."""
    gallery: GalleryConfig = GalleryConfig()
    """Which reconstructions are drawn and measured at the end."""


def run(config: Config) -> dict[str, Any]:
    """Pretrains, and returns the last metrics and the results of the evaluations that the config names."""
    model = build_model(config)  # first: what does not fit together is said before anything is opened
    accelerator = start(config.train)
    config = drop_unfit_evaluations(with_precision(config, accelerator), model)
    # ---------------------------------------------------------------------------------------------------------- data and model
    streams = open_streams(config)
    data = Mixture([stream.samples for stream in streams], config.second.updates if config.second else (1,), config.seed)
    plan = make_plan(scaled(config), samples=data.epoch, processes=accelerator.num_processes)
    if config.train.checkpoint_blocks:
        checkpoint_blocks(model)
    copied = set() if config.init is None else initialise_from(model, config.init)
    if "target" not in copied:
        model.target.begin(model, load_model)
    # ---------------------------------------------------------------------------------------------------------------- training
    fingerprints = fingerprint(model) | {stream.metric("data.fingerprint"): stream.samples.fingerprint for stream in streams}
    training = Training.prepare(
        accelerator,
        model,
        make_optimizer(model, config.train),
        identity=identity(to_dict(config), runtime=RUNTIME) | fingerprints,
        ema=config.train.ema is not None,
        sharded=sharding_asked(os.environ),
    )
    objective = MaskedObjective(streams, model.tokenizer, accelerator.device, plan.steps)
    if config.dry_run:
        return describe(config, training, objective, data, plan)
    connect(model, accelerator)
    held_out = [(stream, stream.held_out(config.held_out)) for stream in streams]
    neighbours = None if config.neighbours.every is None else OnlineNeighbours(config.neighbours, config.data)
    count = sum(len(part) for _, part in held_out)
    opened = RunFolder.open(config.folder, "pretrain", config, accelerator=accelerator, resume=config.resume)
    with opened as folder, open_session(folder, config, training, objective, data, plan, evaluated=count) as session:
        for update in session:
            model.target.update(model, update.step, plan.steps, update.made)
            if update.due(config.train.evaluate_every):
                for stream, part in held_out:
                    update.metrics[stream.metric("held_out_loss")] = measure_loss(session, objective, stream, part)
            if neighbours is not None and update.due(config.neighbours.every):
                update.metrics["neighbours_top1"] = measure_neighbours(session, neighbours)
        return finish(config, session, streams)


def build_model(config: Config) -> MaskedModel:
    """The model of a config, its weights drawn from the seed."""
    parts = ModelConfig(
        tokenizer=config.tokenizer, masker=config.masker, encoder=config.encoder, decoder=config.decoder, target=config.target
    )
    return MaskedModel.build(parts, config.data.input(), seed=config.seed)


def drop_unfit_evaluations(config: Config, model: MaskedModel) -> Config:
    """The config without the evaluations that cannot serve this model, with a warning."""
    if "reconstruct" not in config.evaluate or type(model.target).show is not Target.show:
        return config
    logger.warning("the evaluation reconstruct is left out: the target %s predicts no pixels", model.target.config.name)
    return replace(config, evaluate=tuple(name for name in config.evaluate if name != "reconstruct"))


def open_streams(config: Config) -> list[DataStream]:
    """Opens the sources.

    Raises:
        ValueError: one is missing, or has no labels for an evaluation that needs them.
    """
    streams = [DataStream.open("", config.data, config.masker)]
    if config.second is not None:
        streams.append(DataStream.open("second", config.second.data, config.second.masker, config.second.weight))
    for name in JUDGES:
        if name in config.evaluate and streams[0].samples.labels() is None:
            raise ValueError(
                f"--evaluate {name} needs labels, and {config.data.source} has none; leave it out, or give data.label_column"
            )
    return streams


def scaled(config: Config) -> TrainConfig:
    """The training choices, the learning rate scaled where the config asks for it."""
    masker = config.masker
    if not config.scale_by_predicted or masker.predict is None:
        return config.train
    return replace(config.train, learning_rate=config.train.learning_rate * masker.predict / masker.ratio)


def measure_loss(session: Session, objective: MaskedObjective, stream: DataStream, part: Samples) -> float:
    """The masked loss of a source's held-out samples."""
    accelerator, plan = session.training.accelerator, session.plan
    rank = accelerator.process_index
    batches = eval_batches(part, stream.data, batch_size=plan.micro_batch_size, world=plan.processes, rank=rank)
    loss = partial(objective.unweighted, stream)
    with session.training.gathered() as model:
        return held_out_loss(model, batches, loss, accelerator=accelerator, problems=session.bad_inputs.pending)


def measure_neighbours(session: Session, neighbours: OnlineNeighbours) -> float:
    """The nearest-neighbour accuracy of the features so far."""
    with session.training.gathered() as model:
        device, size = session.training.accelerator.device, session.plan.micro_batch_size
        top1, unreadable = neighbours.accuracy(cast(MaskedModel, model), device, size)
    session.bad_inputs.pending += unreadable if session.main else []  # all processes know of the same
    return top1


def finish(config: Config, session: Session, streams: list[DataStream]) -> dict[str, Any]:
    """Ends the run with the evaluations that its config names, and the loss curve."""
    training, folder = session.training, session.folder
    logger.info("%s", session.bad_inputs.report())
    results: dict[str, Any] = {"run": str(folder.path), "step": training.step, **session.metrics}
    with training.averaged(), training.gathered() as gathered:
        model = cast(MaskedModel, gathered)
        for stream in streams:
            for name in (name for name in JUDGES if name in config.evaluate and stream.samples.labels() is not None):
                with evaluation(stream.metric(name)):
                    found = judge(config, name, stream, model, training.accelerator.device)
                    results[stream.metric(name)] = found
                    conclude(session, stream.metric(name), found, JUDGES[name])
            if "reconstruct" in config.evaluate and session.main:  # a few hundred samples: one process does it
                with evaluation(stream.metric("reconstruct")):
                    picture = folder.pictures / f"{stream.metric('reconstruction')}_{training.step:08d}.png"
                    title = f"{folder.path.name}, step {training.step:,}: hidden tokens, predicted"
                    part = open_data(stream.data, "eval")
                    found = make_gallery(stream.with_masker(model), part, config.gallery, path=picture, title=title)
                    results[stream.metric("reconstruct")] = found
                    conclude(session, stream.metric("reconstruct"), found, describe_gallery)
    if session.main:
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


def judge(config: Config, name: str, stream: DataStream, model: MaskedModel, device: torch.device) -> dict[str, Any]:
    """How well samples are classified by the features of this encoder, of the same untrained, and by raw pixels."""
    models = {"trained": model, "untrained": build_model(config).to(device)}
    train, test = open_data(stream.data, "train"), open_data(stream.data, "eval")
    if name == "transfer":
        return judge_transfer(models, train, test, config.transfer, device=device)
    return judge_representation(models, train, test, config.representation, device=device)


def conclude(session: Session, kind: str, found: dict[str, Any], words: Callable[[dict[str, Any]], str]) -> None:
    """Keeps an evaluation's result in the run's folder, and shows it."""
    if session.main:
        record(session.folder.path, kind, session.training.step, found)
        print(words(found))


def describe(config: Config, training: Training, objective: MaskedObjective, data: Mixture, plan: Plan) -> dict[str, Any]:
    """The dry run: what the run would take, on real samples of its first source."""
    stream, model = objective.streams[0], cast(MaskedModel, training.unwrapped)
    grid = model.tokenizer.grid_of(stream.data.size)
    mask = stream.masker(sample_keys(config.seed, 0, 0), grid)
    tokens = {
        "of a sample": math.prod(grid),
        "seen by the encoder": mask.visible.shape[1],
        "predicted": mask.predict.shape[1],
    }
    notes = {"resizing": kernel_in_use()} | about_repeats(stream.data, plan) | about_sources(config)
    text = preview(config, training, objective, data, plan, tokens=tokens, notes=notes)
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
    if config.second is None:
        return {}
    first, second = config.second.updates
    return {
        "two sources": f"of {first + second} updates {first} on {config.data.source}, which this table is of, "
        f"and {second} on {config.second.data.source}; an epoch passes once over the first"
    }
