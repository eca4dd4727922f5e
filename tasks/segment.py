"""Segment images: train a head or all weights from a pretrained encoder, or label patches by their neighbours without training.

python recipes/segment.py --model runs/pretrain-1                                    the demonstration on rendered scenes
python recipes/segment.py --preset linear --model mae_pretrain_vit_base.pth --data.source ADEChallengeData2016
mmm segment segment --preset uper_net --model mae_pretrain_vit_base.pth --data.source ADEChallengeData2016
mmm segment segment --knn --model runs/pretrain-1
"""

from __future__ import annotations

import json
import logging
import math
from dataclasses import dataclass, replace
from typing import Any

import torch

from mmm.core.checks import Positive
from mmm.data.annotated.maps import split_planes
from mmm.data.annotated.pixels import LabelledPixels, open_pixels
from mmm.data.datasets.mixture import Mixture
from mmm.data.loading.loader import eval_batches
from mmm.data.transforms.crop import normalise
from mmm.dense.segmenter import Segmenter
from mmm.evaluate.dense.patch_knn import patch_knn
from mmm.evaluate.dense.pictures import SHOWN, draw_maps
from mmm.evaluate.dense.segmentation import evaluate_segmenter, format_segmentation
from mmm.evaluate.loaded_model import choose_device
from mmm.objectives.adapt_encoder import load_pretrained
from mmm.objectives.finetune import with_pretrained
from mmm.objectives.segment import DenseConfig, SegmentConfig, SegmentObjective, build_dense
from mmm.train.distributed.setup import start, with_precision
from mmm.train.run.folder import RunFolder
from mmm.train.schedule import Plan, make_plan
from mmm.train.session import Session, open_session, preview
from mmm.train.state import Training

logger = logging.getLogger(__name__)

POSITIONAL = "model"
RESULT = "result.json"
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
    pretrained = None if config.model is None else load_pretrained(config.model, config.data.input())
    config = config if pretrained is None else with_pretrained(config, pretrained)
    config, train, test = open_parts(config)
    data = Mixture([train], (1,), config.seed)
    plan = make_plan(config.train, samples=data.epoch, processes=accelerator.num_processes)
    model = build_dense(config, pretrained, train.count, train.classes)
    check_batch(config, model, plan)
    if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
        model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    # ---------------------------------------------------------------------------------------------------------------- training
    training = Training.begin(
        accelerator,
        model,
        config,
        runtime=RUNTIME,
        fingerprints={"data.fingerprint": train.fingerprint},
        layer_decay=config.layer_decay,
    )
    objective = SegmentObjective(config.data, model.head.weights, accelerator.device)
    if config.dry_run:
        tokens = {"of a sample": math.prod(model.tokenizer.grid_of(config.data.size))}
        text = preview(config, training, objective, data, plan, tokens=tokens, unit=None)
        if accelerator.is_main_process:
            print(text)
        return {"dry_run": text}
    logger.info("from %s, %d classes; %s images to score", config.model or "scratch", train.count, f"{len(test):,}")
    opened = RunFolder.open(config.folder, "segment", config, accelerator=accelerator, resume=config.resume)
    with (
        opened as folder,
        # batch norms see a micro-batch, so that its size is a choice and not what fits
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
        return evaluate_segmenter(model, test, session.training.accelerator, session.bad_inputs.pending)


def finish(config: Config, session: Session, model: Segmenter, test: LabelledPixels[Any]) -> dict[str, Any]:
    """Scores the last weights, and draws some test images with their masks."""
    found = score(session, model, test)
    session.bad_inputs.share()
    session.bad_inputs.check()
    logger.info("%s", session.bad_inputs.report())
    names = None if test.classes is None else list(test.classes)
    result = {"run": str(session.folder.path), "step": session.training.step, "classes": names, **found}
    if session.main:
        (session.folder.path / RESULT).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        with session.training.averaged():
            picture = draw(config, model, test, session)
        print(format_segmentation(found, names))
        print(f"picture: {picture}")
    return result


def draw(config: Config, model: Segmenter, test: LabelledPixels[Any], session: Session) -> Any:
    """Draws images that are evenly spread over the test split, with true and predicted masks."""
    device, data = session.training.accelerator.device, config.data
    index = torch.arange(min(SHOWN, len(test))) * len(test) // min(SHOWN, len(test))
    images, truth, predicted = [], [], []
    for batch in eval_batches(test.subset(index), replace(data, workers=0), batch_size=1):
        if len(batch):
            image, labels = split_planes(batch.pixels, data.channels)
            x = normalise(image.to(device), data.mean, data.std)
            images.append(image[0].permute(1, 2, 0).numpy())
            truth.append(labels[0])
            predicted.append(model.segment(x, whole=data.whole_maps).argmax(1)[0].cpu())
    path = session.folder.path / "pictures" / f"segmentation_{session.training.step:08d}.png"
    title = f"{session.folder.path.name}, step {session.training.step:,}: predicted classes"
    return draw_maps(images, {"truth": truth, "predicted": predicted}, path, classes=model.classes, title=title)


def run_knn(config: Config) -> dict[str, Any]:
    """Labels the patches of the test images by their neighbours, and prints the scores.

    Raises:
        ValueError: no model is named.
    """
    if config.model is None:
        raise ValueError("--knn needs features: give --model, or the config.yaml of a run for its model with random weights")
    model = load_frozen(config).to(choose_device(None))
    config, train, test = open_parts(config)
    problems: list[Any] = []
    found, _, _ = patch_knn(model, train, test, most=config.knn_patches, problems=problems)
    for problem in problems:
        logger.warning("cannot read %s: %s; it is left out", problem.name, problem.reason)
    names = None if test.classes is None else list(test.classes)
    print(f"nearest patches, k {found['k']}, {found['distance']} distance, {found['patches']:,} training patches")
    print(format_segmentation(found, names))
    return {"classes": names, "unreadable": len(problems), **found}


def load_frozen(config: Config) -> Any:
    """Loads the model whose features are used; the config.yaml of a run means its model with random weights."""
    from mmm.evaluate.loaded_model import LoadedModelConfig, load_model

    loaded = load_model(LoadedModelConfig(model=config.model, source=config.data.source, device="cpu"))
    return loaded.trained or loaded.untrained
