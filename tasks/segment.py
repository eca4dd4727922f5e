"""Segment images: train a head or all weights from a pretrained encoder, or label patches by their neighbours without training.

mmm segment segment --model runs/pretrain-1                                    the demonstration on rendered scenes
mmm segment segment --preset linear --model mae_pretrain_vit_base.pth --data.source ADEChallengeData2016
mmm segment segment --preset uper_net --model mae_pretrain_vit_base.pth --data.source ADEChallengeData2016
mmm segment segment --knn --model runs/pretrain-1
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from mmm.core.checks import Positive
from mmm.data.annotated.maps import split_planes
from mmm.data.annotated.pixels import LabelledPixels, open_pixels
from mmm.data.datasets.mixture import Mixture
from mmm.data.loading.loader import eval_batches
from mmm.data.transforms.crop import normalise
from mmm.dense.segmenter import Segmenter
from mmm.evaluate.batches import spread
from mmm.evaluate.dense.patch_knn import patch_knn
from mmm.evaluate.dense.pictures import SHOWN, draw_beside, paint_classes
from mmm.evaluate.dense.segmentation import evaluate_segmenter, format_segmentation
from mmm.evaluate.loaded_model import LoadedModelConfig, choose_device, load_model
from mmm.objectives.adapt_encoder import start_from
from mmm.objectives.segment import DenseConfig, SegmentConfig, SegmentObjective, build_dense
from mmm.train.distributed.setup import start, with_precision
from mmm.train.run.folder import RunFolder
from mmm.train.schedule import Plan, make_plan
from mmm.train.session import Session, open_session, preview
from mmm.train.state import Training

logger = logging.getLogger(__name__)

POSITIONAL = "model"
# options that may differ when a run is resumed, in addition to those of every run
RUNTIME = ("model", "test_split", "data.whole_maps")


@dataclass(frozen=True, kw_only=True)
class Config(SegmentConfig):
    """Segment images."""

    knn: bool = False
    """Label patches by their nearest neighbours among training patches (CAPI's protocol) instead of training a head."""
    knn_patches: Positive | None = 50000
    """Number of training patches among which neighbours are searched, chosen by key. None: all."""


def run(config: Config) -> dict[str, Any]:
    """Trains, writes result.json and a picture into the run folder, and prints the scores on the test split."""
    if config.knn:
        return run_knn(config)
    accelerator = start(config.train)
    config = with_precision(config, accelerator)
    # ---------------------------------------------------------------------------------------------------------- data and model
    config, pretrained = start_from(config, config.data.input())
    config, train, test = open_parts(config)
    data = Mixture([train], (1,), config.seed)
    plan = make_plan(config.train, samples=data.epoch, processes=accelerator.num_processes)
    model = build_dense(config, pretrained, train.count, train.classes)
    check_batch(config, model, plan)
    if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
        model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    # ---------------------------------------------------------------------------------------------------------------- training
    fingerprints = {"data.fingerprint": train.fingerprint}
    training = Training.begin(
        accelerator, model, config, runtime=RUNTIME, fingerprints=fingerprints, layer_decay=config.layer_decay
    )
    objective = SegmentObjective(config.data, model.head.weights, accelerator.device)
    if config.dry_run:
        accelerator.print(text := preview(config, training, objective, data, plan, unit=None))
        return {"dry_run": text}
    logger.info("from %s, %d classes; %s images to score", config.model or "scratch", train.count, f"{len(test):,}")
    opened = RunFolder.open(config.folder, "segment", config, accelerator=accelerator, resume=config.resume)
    with (
        opened as folder,
        # batch norms depend on the micro-batch, so that the user chooses its size, and no size is searched
        open_session(folder, config, training, objective, data, plan, evaluated=len(test), unit=None) as session,
    ):
        for update in session:
            if update.due(config.train.evaluate_every) and not update.last:
                found = score(session, model, test)
                update.metrics |= {"test_miou": found["miou"], "test_pixel_accuracy": found["pixel_accuracy"]}
        return finish(config, session, model, test)


def open_parts(config: Config) -> tuple[Config, LabelledPixels[Any], LabelledPixels[Any]]:
    """Opens the training and test images, and writes the number of classes into the config.

    Raises:
        ValueError: training and test images have different classes.
    """
    train = open_pixels(config.data, "train")
    test = open_pixels(config.data, config.test_split or "eval", train.count)
    if train.classes != test.classes:
        raise ValueError(f"{train.title} and {test.title} do not name the same classes; give another split")
    return replace(config, data=replace(config.data, classes=train.count)), train, test


def check_batch(config: DenseConfig, model: Segmenter, plan: Plan) -> None:
    """Raises ValueError if a micro-batch is too small for the head's batch norms."""
    least = model.head.smallest_batch
    if plan.micro_batch_size < least:
        raise ValueError(
            f"head.name {config.head.name} needs micro-batches of at least {least} samples, not {plan.micro_batch_size}; raise "
            "train.micro_batch_size or train.batch_size"
        )


def score(session: Session, model: Segmenter, test: LabelledPixels[Any]) -> dict[str, Any]:
    """Scores the weights, or their moving average if the run has one."""
    with session.training.averaged():
        return evaluate_segmenter(model, test, session.training.accelerator.device, session.bad_inputs.pending)


def finish(config: Config, session: Session, model: Segmenter, test: LabelledPixels[Any]) -> dict[str, Any]:
    """Scores the last weights, and draws some test images with their masks."""
    found = score(session, model, test)
    names = None if test.classes is None else list(test.classes)
    result = session.write_result({"classes": names, **found})
    if session.main:
        with session.training.averaged():
            picture = draw(config, model, test, session)
        print(format_segmentation(found, names))
        print(f"picture: {picture}")
    return result


def draw(config: Config, model: Segmenter, test: LabelledPixels[Any], session: Session) -> Any:
    """Draws images that are evenly spread over the test split, with true and predicted masks."""
    device, data = session.training.accelerator.device, config.data
    images, truth, predicted = [], [], []
    for batch in eval_batches(spread(test, SHOWN), replace(data, workers=0), batch_size=1):
        if len(batch):
            image, labels = split_planes(batch.pixels, data.channels)
            x = normalise(image.to(device), data.mean, data.std)
            images.append(image[0].permute(1, 2, 0).numpy())
            truth.append(labels[0])
            predicted.append(model.segment(x, whole=data.whole_maps).argmax(1)[0].cpu())
    path = session.folder.path / "pictures" / f"segmentation_{session.training.step:08d}.png"
    title = f"{session.folder.path.name}, step {session.training.step:,}: predicted classes"
    columns = {"truth": truth, "predicted": predicted}
    return draw_beside(images, columns, path, partial(paint_classes, classes=model.classes), title=title)


def run_knn(config: Config) -> dict[str, Any]:
    """Labels the patches of the test images by their neighbours, and prints the scores.

    Raises:
        ValueError: no model is named, or its run had another normalisation of pixels.
    """
    if config.model is None:
        raise ValueError("--knn needs features: give --model, or the config.yaml of a run for its model with random weights")
    frozen = LoadedModelConfig(model=config.model, source=config.data.source, device="cpu")
    loaded = load_model(frozen, source_flag="--data.source")
    loaded.check_pixels(config.data.input())
    model = loaded.model.to(choose_device(None))
    config, train, test = open_parts(config)
    problems: list[Any] = []
    found, _, _ = patch_knn(model, train, test, most=config.knn_patches, problems=problems)
    for problem in problems:
        logger.warning("cannot read %s: %s; it is left out", problem.name, problem.reason)
    names = None if test.classes is None else list(test.classes)
    print(f"nearest patches, k {found['k']}, {found['distance']} distance, {found['patches']:,} training patches")
    print(format_segmentation(found, names))
    return {"classes": names, "unreadable": len(problems), **found}
