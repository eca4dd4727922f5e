"""Probe an encoder for monocular depth: a linear head on frozen features, scored by delta1 and RMSE (DINOv2's protocol).

mmm depth depth --model runs/pretrain-1                                     the demonstration on rendered scenes
mmm depth depth --preset nyu --model mae_pretrain_vit_base.pth --data.source nyu_folder
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mmm.data.annotated.maps import metres_of, split_planes
from mmm.data.annotated.pixels import LabelledPixels, open_pixels
from mmm.data.datasets.mixture import Mixture
from mmm.data.loading.loader import eval_batches
from mmm.data.transforms.crop import normalise
from mmm.dense.bins import depth_of
from mmm.dense.segmenter import Segmenter
from mmm.evaluate.batches import spread
from mmm.evaluate.dense.depth import evaluate_depth
from mmm.evaluate.dense.pictures import SHOWN, as_picture, same_size
from mmm.evaluate.plots.image_grid import draw_grid
from mmm.objectives.adapt_encoder import start_from
from mmm.objectives.depth import DepthObjective, DepthProbeConfig
from mmm.objectives.segment import build_dense
from mmm.train.distributed.setup import start, with_precision
from mmm.train.run.folder import RunFolder
from mmm.train.schedule import make_plan
from mmm.train.session import Session, open_session, preview
from mmm.train.state import Training

logger = logging.getLogger(__name__)

POSITIONAL = "model"
RUNTIME = ("model", "test_split", "data.whole_maps")


@dataclass(frozen=True, kw_only=True)
class Config(DepthProbeConfig):
    """Probe an encoder for depth."""


def run(config: Config) -> dict[str, Any]:
    """Trains the head, writes result.json and a picture into the run folder, and prints the errors on the test split."""
    accelerator = start(config.train)
    config = with_precision(config, accelerator)
    config, pretrained = start_from(config, config.data.input())
    train, test = (open_pixels(config.data, split) for split in ("train", config.test_split or "eval"))
    data = Mixture([train], (1,), config.seed)
    plan = make_plan(config.train, samples=data.epoch, processes=accelerator.num_processes)
    model = build_dense(config, pretrained, config.bins, None)
    fingerprints = {"data.fingerprint": train.fingerprint}
    training = Training.begin(
        accelerator, model, config, runtime=RUNTIME, fingerprints=fingerprints, layer_decay=config.layer_decay
    )
    objective = DepthObjective(config.data, accelerator.device)
    if config.dry_run:
        accelerator.print(text := preview(config, training, objective, data, plan, unit=None))
        return {"dry_run": text}
    opened = RunFolder.open(config.folder, "depth", config, accelerator=accelerator, resume=config.resume)
    with (
        opened as folder,
        open_session(folder, config, training, objective, data, plan, evaluated=len(test), unit=None) as session,
    ):
        for update in session:
            if update.due(config.train.evaluate_every) and not update.last:
                found = score(session, model, test)
                update.metrics |= {"test_delta1": found["delta1"], "test_rmse": found["rmse"]}
        return finish(session, model, test)


def score(session: Session, model: Segmenter, test: LabelledPixels[Any]) -> dict[str, Any]:
    """Scores the weights, or their moving average if the run has one."""
    with session.training.averaged():
        return evaluate_depth(model, test, session.training.accelerator.device, session.bad_inputs.pending)


def finish(session: Session, model: Segmenter, test: LabelledPixels[Any]) -> dict[str, Any]:
    """Scores the last weights, and draws some test images with their depths."""
    found = score(session, model, test)
    result = session.write_result(found)
    if session.main:
        with session.training.averaged():
            picture = draw(session, model, test)
        errors = f"RMSE {found['rmse']:.3f} m, relative error {found['absrel']:.2%}"
        print(f"delta1 {found['delta1']:.2%}, {errors}, {found['samples']:,} images")
        print(f"picture: {picture}")
    return result


def draw(session: Session, model: Segmenter, test: LabelledPixels[Any]) -> Path:
    """Draws images that are evenly spread over the test split, with true and predicted depths. Near pixels are dark."""
    device, data = session.training.accelerator.device, test.config
    columns: list[list[Tensor]] = [[], [], []]
    for batch in eval_batches(spread(test, SHOWN), data, batch_size=1):
        if len(batch):
            image, numbers = split_planes(batch.pixels, data.channels)
            logits = model.segment(normalise(image.to(device), data.mean, data.std), whole=data.whole_maps)
            columns[0].append(as_picture(image[0].permute(1, 2, 0).numpy()))
            for column, depth in zip(
                columns[1:], (metres_of(numbers[0], data.range), depth_of(logits, data.range)[0]), strict=True
            ):
                shade = (depth.cpu() - data.range[0]) / (data.range[1] - data.range[0])
                column.append(shade[None].expand(3, -1, -1))
    path = session.folder.path / "pictures" / f"depth_{session.training.step:08d}.png"
    titles = ("image", "depth", "predicted")
    return draw_grid(
        [(title, same_size(column)) for title, column in zip(titles, columns, strict=True)],
        path,
        title=f"{session.folder.path.name}, step {session.training.step:,}: depth",
        notes=[f"Black is {data.range[0]:g} m, white {data.range[1]:g} m."],
    )
