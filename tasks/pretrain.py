"""Pretrain a masked model on images, clips or both, and evaluate its features."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any, cast

from mmm.contract import check_own_parts
from mmm.core.registry import PartConfig
from mmm.core.rng import sample_keys
from mmm.data import DataConfig
from mmm.data.loading.sizes import train_sizes
from mmm.decoders import DecoderConfig, SelfAttentionDecoder
from mmm.encoders import EncoderConfig, VisionTransformer
from mmm.evaluate.builtin import MaskedLoss, ReconstructionGallery
from mmm.evaluate.evaluator import Context, Evaluations, EvaluatorSet
from mmm.evaluate.health import with_health
from mmm.evaluate.plots.curves import draw_loss
from mmm.maskers import Masker, MaskerConfig, RandomMasker, maskers
from mmm.model import MaskedModel, ModelConfig
from mmm.objectives.masked import DataStream, MaskedObjective, SecondSource, fingerprints, initialise, open_streams
from mmm.targets import PixelTarget, TargetConfig
from mmm.tokenizers import Patches
from mmm.train.config import RunConfig, TrainConfig
from mmm.train.distributed.setup import start, with_precision
from mmm.train.run.folder import RunFolder
from mmm.train.schedule import make_plan
from mmm.train.session import Session, open_session, preview
from mmm.train.state import Training
from mmm.weights.fit import Inflation

logger = logging.getLogger(__name__)

RUNTIME = ("init", "inflate", "evaluate")  # options that may differ when a run is resumed, in addition to those of every run


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
    """Options of a second source for the same training."""
    init: str | None = None
    """Initial weights: a run folder, or a file that mmm.load reads. Positions for another size are resized."""
    inflate: Inflation | None = None
    """Initialise an encoder of clips from one of images. average: every frame of a tube gets the weights of a patch, divided by the
    number of frames (I3D). centre: the middle frame gets these weights, and the others get zeros (ViViT)."""
    scale_by_predicted: bool = False
    """Multiply the learning rate by the share of hidden tokens that are predicted, masker.predict / masker.ratio (CrossMAE)."""
    evaluate: EvaluatorSet = EvaluatorSet.of(MaskedLoss.Config(), ReconstructionGallery.Config())
    """Names of evaluations during or after training. `health` is added if the target may collapse."""


def run(config: Config) -> dict[str, Any]:
    """Pretrains, and returns the last metrics and the results of the evaluations that the config names."""
    model = build_model(config)  # first, so that parts that do not fit together are refused before any data is opened
    check_own_parts(model)
    check_sizes(config, model)
    check_repeats(config, model)
    accelerator = start(config.train)
    config = with_precision(config, accelerator)
    # ------------------------------------------------------------------------------------------------- data, model and optimizer
    streams, data = open_streams(config.data, config.masker, config.second, config.seed)
    plan = make_plan(scaled(config), samples=data.epoch, processes=accelerator.num_processes)
    initialise(model, config.init, streams[0], accelerator.device, config.inflate)
    training = Training.begin(
        accelerator, model, config, runtime=RUNTIME, fingerprints=fingerprints(model, streams, plan), can_shard=True
    )
    objective = MaskedObjective(streams, model, accelerator.device, plan.steps)
    unit = None if model.target.across_batch else 1  # no search if the target depends on the whole micro-batch
    if config.dry_run:
        tokens = objective.count_tokens(config.seed)
        accelerator.print(text := preview(config, training, objective, data, plan, tokens=tokens, unit=unit))
        return {"dry_run": text}
    # -------------------------------------------------------------------------------------------------------------- evaluations
    contexts = [make_context(config, stream, training, plan.steps) for stream in streams]
    evaluations = Evaluations(with_health(config.evaluate, model.target), model, contexts, every=config.train.evaluate_every)
    # ----------------------------------------------------------------------------------------------------------------- training
    opened = RunFolder.open(config.folder, "pretrain", config, accelerator=accelerator, resume=config.resume)
    count = evaluations.inputs
    with opened as folder, open_session(folder, config, training, objective, data, plan, evaluated=count, unit=unit) as session:
        objective.connect(training)
        evaluations.write_to(folder.path.name, folder.pictures if session.main else None)
        followed = model.target.has_update
        for update in session:
            if followed:
                model.target.update(model, update.step, plan.steps, update.made)
            if any(map(update.due, evaluations.intervals)) and (due := evaluations.due(update.step, plan.steps)):
                size = session.plan.micro_batch_size
                with training.gathered() as gathered:
                    update.metrics |= evaluations.measure(due, cast(MaskedModel, gathered), update.step, batch_size=size)
                session.bad_inputs.pending += evaluations.take_problems()
        return finish(session, evaluations)


def build_model(config: Config) -> MaskedModel:
    """Builds the model of a config. Its weights are drawn from the seed."""
    parts = ModelConfig(
        tokenizer=config.tokenizer, masker=config.masker, encoder=config.encoder, decoder=config.decoder, target=config.target
    )
    return MaskedModel.build(parts, config.data.input(), seed=config.seed)


def check_sizes(config: Config, model: MaskedModel) -> None:
    """Refuses sizes of training samples with which a run would fail later.

    Raises:
        ValueError: a size is not possible; the message names the flag.
    """
    for name, data, masker in named_sources(config):
        if not data.varies:
            continue
        side = model.tokenizer.size[-1]
        if data.keep_aspect and data.size_step % side:
            raise ValueError(f"{name}.size_step {data.size_step} is not a multiple of a token's side, {side}; set it to {side}")
        for height, width in train_sizes(data):
            try:
                grid = model.tokenizer.grid_of((*data.size[:-2], height, width))
                if not masker.needs_scores:
                    masker(sample_keys(config.seed, 0, 0), grid)
            except ValueError as error:
                raise ValueError(f"{name}.sides, {name}.aspects: samples of {height} x {width} pixels: {error}") from error
        if data.pack and model.target.across_batch:
            raise ValueError(f"{name}.pack: target.name {config.target.name} compares samples of one grid; leave it out")
        if data.pack and config.train.compile:
            raise ValueError(
                f"{name}.pack: the lengths of a sequence change in each update, so train.compile would never finish; leave one out"
            )


def check_repeats(config: Config, model: MaskedModel) -> None:
    """Refuses a second source with another number of samples of an input if the target compares these samples.

    Raises:
        ValueError: the numbers differ; the message names the flags.
    """
    second, repeats = config.second, config.data.repeats
    if second is not None and second.data.repeats != repeats and model.target.compares_repeats:
        raise ValueError(
            f"second.data.repeats {second.data.repeats} is not data.repeats {repeats}, but target.class_weight compares the "
            f"samples of an input; set second.data.repeats {repeats}, or target.class_weight 0"
        )


def named_sources(config: Config) -> list[tuple[str, DataConfig, Masker]]:
    """Returns the flag, the options and the masker of each source."""
    first = ("data", config.data, maskers.build(config.masker))
    second = config.second
    return [first] if second is None else [first, ("second.data", second.data, maskers.build(second.masker))]


def scaled(config: Config) -> TrainConfig:
    """Returns the options of training, with a scaled learning rate if the config requests it."""
    masker = config.masker
    if not config.scale_by_predicted or masker.predict is None:
        return config.train
    return replace(config.train, learning_rate=config.train.learning_rate * masker.predict / masker.ratio)


def make_context(config: Config, stream: DataStream, training: Training, steps: int) -> Context:
    """Returns the context of the evaluations for a source. The run's folder need not be open yet."""
    device = training.accelerator.device
    return Context(
        data=stream.data,
        masker=stream.masker,
        device=device,
        title="",
        untrained=lambda: build_model(config).to(device),
        source=stream.name,
        steps=steps,
        train_samples=stream.samples,
    )


def finish(session: Session, evaluations: Evaluations) -> dict[str, Any]:
    """Ends the run with its last evaluations and the loss curve."""
    training, folder = session.training, session.folder
    logger.info("%s", session.bad_inputs.report())
    results: dict[str, Any] = {}
    with training.averaged(), training.gathered() as model:
        for result in evaluations.finish(cast(MaskedModel, model), training.step):
            results[result.name] = result.found
            session.log(training.step, result.figures)
            if session.main:
                result.record(folder.path, training.step, averaged=training.ema is not None)
                print(result.text)
    if session.main:
        logger.info("loss curve: %s", draw_loss(folder.path, folder.pictures / "loss.png"))
    return {"run": str(folder.path), "step": training.step, **session.metrics, **results}
