"""Pretrain a masked model on images, clips or both: from files to a checkpoint, pictures and a measured representation."""

from __future__ import annotations

import logging
import math
import os
from dataclasses import dataclass, replace
from typing import Any, cast

import torch

from mmm.config.serialize import to_dict
from mmm.core.registry import PartConfig
from mmm.core.rng import sample_keys
from mmm.data import DataConfig
from mmm.data.datasets.mixture import Mixture
from mmm.data.transforms.resize import kernel_in_use
from mmm.decoders import DecoderConfig, SelfAttentionDecoder
from mmm.encoders import EncoderConfig, VisionTransformer
from mmm.evaluate.builtin import MaskedLoss, ReconstructionGallery
from mmm.evaluate.evaluator import Context, Due, Evaluations, EvaluatorSet
from mmm.evaluate.plots.curves import draw_loss
from mmm.evaluate.run_results import Record, record
from mmm.maskers import MaskerConfig, RandomMasker
from mmm.model import MaskedModel, ModelConfig
from mmm.objectives.masked import DataStream, MaskedObjective, SecondSource, connect, fingerprint
from mmm.targets import PixelTarget, TargetConfig
from mmm.tokenizers import Patches
from mmm.train import (
    Plan,
    RunConfig,
    RunFolder,
    Session,
    TrainConfig,
    Training,
    checkpoint_blocks,
    identity,
    make_optimizer,
    make_plan,
    open_session,
    preview,
    sharding_asked,
    start,
    with_precision,
)
from mmm.weights.initialize import initialise_from
from mmm.weights.load import load as load_model

logger = logging.getLogger(__name__)

# choices that may differ between a stop and its resume, beside those of every run
RUNTIME = ("init", "evaluate")


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
    evaluate: EvaluatorSet = EvaluatorSet.of(MaskedLoss.Config(), ReconstructionGallery.Config())
    """Evaluations in the course of the training and at its end, by name."""


def run(config: Config) -> dict[str, Any]:
    """Pretrains, and returns the last metrics and the results of the evaluations that the config names."""
    model = build_model(config)  # first: what does not fit together is said before anything is opened
    accelerator = start(config.train)
    config = with_precision(config, accelerator)
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
    contexts = [open_context(config, stream, accelerator.device, plan.steps) for stream in streams]
    evaluations = Evaluations(config.evaluate, model, contexts, every=config.train.evaluate_every)
    opened = RunFolder.open(config.folder, "pretrain", config, accelerator=accelerator, resume=config.resume)
    with opened as folder, open_session(folder, config, training, objective, data, plan, evaluated=evaluations.inputs) as session:
        evaluations.write_to(folder.path.name, folder.pictures if session.main else None)
        for update in session:
            model.target.update(model, update.step, plan.steps, update.made)
            if due := evaluations.due(update.step, plan.steps):
                update.metrics |= measure(session, evaluations, due)
        return finish(session, evaluations)


def build_model(config: Config) -> MaskedModel:
    """The model of a config, its weights drawn from the seed."""
    parts = ModelConfig(
        tokenizer=config.tokenizer, masker=config.masker, encoder=config.encoder, decoder=config.decoder, target=config.target
    )
    return MaskedModel.build(parts, config.data.input(), seed=config.seed)


def open_streams(config: Config) -> list[DataStream]:
    """Opens the sources.

    Raises:
        ValueError: one is missing.
    """
    streams = [DataStream.open("", config.data, config.masker)]
    if config.second is not None:
        streams.append(DataStream.open("second", config.second.data, config.second.masker, config.second.weight))
    return streams


def scaled(config: Config) -> TrainConfig:
    """The training choices, the learning rate scaled where the config asks for it."""
    masker = config.masker
    if not config.scale_by_predicted or masker.predict is None:
        return config.train
    return replace(config.train, learning_rate=config.train.learning_rate * masker.predict / masker.ratio)


def open_context(config: Config, stream: DataStream, device: torch.device, steps: int) -> Context:
    """The context of evaluations on one source."""
    return Context(
        data=stream.data,
        masker=stream.masker,
        device=device,
        title="",
        untrained=lambda: build_model(config).to(device),
        source=stream.name,
        steps=steps,
    )


def measure(session: Session, evaluations: Evaluations, due: list[Due]) -> dict[str, float]:
    """Makes the evaluations that are due in the course of the training."""
    training = session.training
    with training.gathered() as model:
        size = session.plan.micro_batch_size
        figures = evaluations.measure(due, cast(MaskedModel, model), training.step, batch_size=size)
    session.bad_inputs.pending += evaluations.take_problems()
    return figures


def finish(session: Session, evaluations: Evaluations) -> dict[str, Any]:
    """Makes the evaluations that a run ends with, records and prints them, and draws the loss curve."""
    training, folder = session.training, session.folder
    logger.info("%s", session.bad_inputs.report())
    results: dict[str, Any] = {"run": str(folder.path), "step": training.step}
    figures: dict[str, float] = {}
    with training.averaged(), training.gathered() as model:
        for result in evaluations.finish(cast(MaskedModel, model), training.step):
            results[result.name] = result.found
            figures |= result.figures
            if session.main:
                record(folder.path, result.name, training.step, result.found | {"figures": result.figures})
                print(result.text)
    session.log(training.step, figures)
    if session.main:
        logger.info("loss curve: %s", draw_loss(Record.read(folder.path), folder.pictures / "loss.png"))
    return session.metrics | results


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
