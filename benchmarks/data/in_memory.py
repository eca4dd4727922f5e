"""The recipe's complete CIFAR-10 training from memory: the loader, crops, masks, the step and the loop, on any device.

    python -m benchmarks.data.in_memory --steps 300 [--workers 4] [--threads 1] [--out FILE.json]

It needs no files: the images are as many and as large as CIFAR-10's and contain waves that depend on the index. They cost as much
as photographs, but teach little; the result is the samples per second in the middle of the run, after the first two log lines.
"""

from __future__ import annotations

import argparse
import json
import logging
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.measure import machine
from mmm.data.datasets.images import Images
from mmm.data.datasets.mixture import Mixture
from mmm.data.sources.base import Table
from mmm.data.sources.in_memory import ArrayColumn
from mmm.objectives.masked import DataStream, MaskedObjective
from mmm.train.config import TrainConfig
from mmm.train.distributed.setup import start
from mmm.train.loop import fit
from mmm.train.optimizer import make_optimizer
from mmm.train.schedule import make_plan
from mmm.train.state import Training
from recipes.image_mae import CIFAR10
from tasks import pretrain

IMAGES, SIDE = 50_000, 32
WARMUP = 2  # log lines that are left out


def waves(count: int, side: int) -> NDArray[np.uint8]:
    """Returns images of two crossing waves, whose lengths depend on the index, uint8 (N, H, W, 3)."""
    place = np.arange(count, dtype=np.float32)[:, None]
    at = np.arange(side, dtype=np.float32)[None] / side
    down, across = (np.sin(2 * np.pi * (1 + place * share % 7) * at) for share in (0.618, 0.414))  # (N, H), (N, W)
    grey = down[:, :, None] + across[:, None, :]  # (N, H, W)
    return (np.repeat(grey[..., None], 3, axis=3) * 60 + 128).astype(np.uint8)


def measure(train: TrainConfig, workers: int) -> dict[str, Any]:
    """Trains a model, and returns the measurements of each log line."""
    data = replace(CIFAR10.data, workers=workers, cache=False)
    pixels = waves(IMAGES, SIDE)
    cells = ArrayColumn(pixels, [str(place) for place in range(IMAGES)])
    samples = Images(Table(cells, None, None, "waves"), data, torch.arange(IMAGES), "waves")
    config = replace(CIFAR10, data=data, train=train)
    model, accelerator = pretrain.build_model(config), start(train)
    stream = DataStream("", data, model.masker, 1.0, samples)
    plan = make_plan(train, samples=IMAGES, processes=accelerator.num_processes)
    training = Training.prepare(accelerator, model, make_optimizer(model, train), identity={})
    mixture = Mixture([samples], (1,), config.seed)
    updates = fit(
        training,
        mixture.batches(batch_size=plan.micro_batch_size, steps=plan.steps, accumulation=plan.accumulation),
        MaskedObjective([stream], model, accelerator.device, plan.steps).loss,
        config=train,
        plan=plan,
        seed=config.seed,
        name_samples=lambda step: mixture.name_samples(step, plan.batch_size),
    )
    lines = [update.metrics for update in updates if update.metrics]
    rates = [line["samples_per_second"] for line in lines[WARMUP:]]
    return {
        "machine": machine(accelerator.device),
        "samples_per_second": median(rates),
        "loss": [line["loss"] for line in lines],
        "lines": lines,
        "batch_size": plan.batch_size,
        "workers": workers,
    }


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--out", type=Path, help="a JSON file")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    log_every = max(1, args.steps // 10)
    train = replace(CIFAR10.train, epochs=None, steps=args.steps, log_every=log_every, threads=args.threads, compile=args.compile)
    found = measure(train, args.workers)
    print(f"{found['samples_per_second']:,.0f} samples/s, loss {found['loss'][0]:.4f} to {found['loss'][-1]:.4f}")
    if args.out is not None:
        args.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
