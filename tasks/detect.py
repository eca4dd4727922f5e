"""Detect objects: train Mask R-CNN on a pretrained vision transformer (ViTDet).

mmm detect detect --model runs/pretrain-1                                     the demonstration on rendered scenes
mmm detect detect --preset base --model mae_pretrain_vit_base.pth --data.source /data/coco
mmm detect detect --preset base --model mae.pth --data.source my_images --data.annotations labels.json \\
    --data.split train --data.eval_split none

The presets read COCO's splits train2017 and val2017. A single file of annotations has the single split train, of which a share is
held out for evaluation.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mmm.data.annotated.detection import AnnotatedObjects, open_objects, with_classes
from mmm.data.annotated.objects import as_pixels
from mmm.data.datasets.mixture import Mixture
from mmm.data.loading.loader import eval_batches
from mmm.data.transforms.crop import normalise
from mmm.dense.detector import Detector
from mmm.evaluate.batches import spread
from mmm.evaluate.dense.detection import detect, evaluate_detector, format_detection, in_image
from mmm.evaluate.dense.pictures import SHOWN, draw_beside, paint_objects
from mmm.objectives.adapt_encoder import start_from
from mmm.objectives.detect import DetectConfig, DetectObjective, build_detector
from mmm.train.distributed.setup import start, with_precision
from mmm.train.run.folder import RunFolder
from mmm.train.schedule import make_plan
from mmm.train.session import Session, open_session, preview
from mmm.train.state import Training

logger = logging.getLogger(__name__)

POSITIONAL = "model"
RUNTIME = ("model", "test_split")


@dataclass(frozen=True, kw_only=True)
class Config(DetectConfig):
    """Detect objects."""


def run(config: Config) -> dict[str, Any]:
    """Trains, writes result.json and a picture into the run folder, and prints the scores on the test split."""
    accelerator = start(config.train)
    config = with_precision(config, accelerator)
    # ---------------------------------------------------------------------------------------------------------- data and model
    config, pretrained = start_from(config, config.data.input())
    masks = config.detector.predicts_masks
    train, test = (open_objects(config.data, split, masks=masks) for split in ("train", config.test_split or "eval"))
    config = replace(config, data=with_classes(config.data, train))
    names = train.classes
    assert names is not None
    if names != test.classes:
        raise ValueError(f"{train.title} and {test.title} do not name the same classes; give another split")
    data = Mixture([train], (1,), config.seed)
    plan = make_plan(config.train, samples=data.epoch, processes=accelerator.num_processes)
    model = build_detector(config, pretrained, len(names), names)
    # ---------------------------------------------------------------------------------------------------------------- training
    fingerprints = {"data.fingerprint": train.fingerprint}
    training = Training.begin(
        accelerator, model, config, runtime=RUNTIME, fingerprints=fingerprints, layer_decay=config.layer_decay
    )
    objective = DetectObjective(config.data, accelerator.device)
    if config.dry_run:
        accelerator.print(text := preview(config, training, objective, data, plan))
        return {"dry_run": text}
    logger.info("from %s, %d classes; %s images to score", config.model or "scratch", len(names), f"{len(test):,}")
    opened = RunFolder.open(config.folder, "detect", config, accelerator=accelerator, resume=config.resume)
    with (
        opened as folder,
        open_session(folder, config, training, objective, data, plan, evaluated=len(test)) as session,
    ):
        for update in session:
            if update.due(config.train.evaluate_every) and not update.last:
                found = score(session, model, test)
                update.metrics |= {f"test_{kind}_ap": found[kind]["ap"] or 0.0 for kind in ("box", "mask") if kind in found}
        return finish(session, model, test)


def score(session: Session, model: Detector, test: AnnotatedObjects) -> dict[str, Any]:
    """Scores the weights, or their moving average if the run has one."""
    with session.training.averaged():
        size, bad = session.plan.micro_batch_size, session.bad_inputs.pending
        return evaluate_detector(model, test, session.training.accelerator.device, bad, batch_size=size)


def finish(session: Session, model: Detector, test: AnnotatedObjects) -> dict[str, Any]:
    """Scores the last weights, and draws some test images with their objects."""
    found = score(session, model, test)
    names = list(test.classes or ())
    result = session.write_result({"classes": names, **found})
    if session.main:
        with session.training.averaged():
            picture = draw(session, model, test)
        print(format_detection(found, names))
        print(f"picture: {picture}")
    return result


def draw(session: Session, model: Detector, test: AnnotatedObjects) -> Path:
    """Draws images that are evenly spread over the test split, with true and detected objects."""
    device, step = session.training.accelerator.device, session.training.step
    part, config = spread(test, SHOWN), replace(test.config, workers=0)
    images, truth, found = [], [], []
    for batch in eval_batches(part, config, batch_size=1):
        for index in batch.index.tolist():
            objects = part.objects(index)
            images.append(part.read(index))
            truth.append({"boxes": objects.boxes, "labels": objects.labels})
            if model.config.predicts_masks and len(objects.masks):
                truth[-1]["masks"] = torch.stack([torch.from_numpy(as_pixels(mask, objects.size)).bool() for mask in objects.masks])
            (one,) = detect(model, normalise(batch.pixels.to(device), config.mean, config.std))
            likely = one["scores"].topk(min(len(objects.boxes), len(one["scores"]))).indices  # scores are low after short training
            found.append(in_image({name: value[likely] for name, value in one.items()}, part, index))
    path = session.folder.path / "pictures" / f"detection_{step:08d}.png"
    title = f"{session.folder.path.name}, step {step:,}: the likeliest objects, as many as are annotated"
    paint = partial(paint_objects, classes=model.classes)
    return draw_beside(images, {"truth": truth, "found": found}, path, paint, title=title)
