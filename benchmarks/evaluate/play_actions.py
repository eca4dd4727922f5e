"""Measures the response time of each action of `mmm play`, for base models in published layouts, with random weights.

    python -m benchmarks.evaluate.play_actions
    python -m benchmarks.evaluate.play_actions --repeats 3 --models mae

Each model is written in a published layout and loaded as `mmm play` loads it: MAE's official file, a timm folder (an encoder
without decoder), transformers' ViTMAE, and VideoMAE's official file, a model of 16 frames. Prints wall seconds and processor
seconds of each action, as the median of the repeats.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from benchmarks.measure import machine, table
from mmm import Input
from mmm.model import MaskedModel, ModelConfig
from mmm.play.models import Models
from mmm.play.player import Player
from mmm.play.sample import builtin, builtin_names
from mmm.weights.formats import FORMATS
from recipes.image_mae import IMAGENET
from recipes.video_mae import KINETICS
from tasks import pretrain

LAYOUTS = {"mae": IMAGENET, "timm": IMAGENET, "transformers": IMAGENET, "videomae": KINETICS}


def written(name: str, config: pretrain.Config, folder: Path) -> str:
    """Writes a model in a published layout, and returns its path."""
    parts = ModelConfig(
        tokenizer=config.tokenizer, masker=config.masker, encoder=config.encoder, decoder=config.decoder, target=config.target
    )
    data: Input = config.data.input()
    model = MaskedModel.build(parts, data, seed=0)
    if name == "timm":
        model = MaskedModel(model.tokenizer, model.masker, model.encoder, None, model.target, data=data)
    folder.mkdir()
    FORMATS[name].write(model, folder)
    files = [path for path in folder.iterdir() if path.suffix == ".pth"]
    return str(files[0] if files else folder)


def timed(action: Callable[[], object]) -> tuple[float, float]:
    """Returns wall seconds and processor seconds."""
    clock, processor = time.perf_counter(), time.process_time()
    action()
    return time.perf_counter() - clock, time.process_time() - processor


def measure(path: str, repeats: int) -> dict[str, tuple[float, float]]:
    """Returns the times of each action of one model."""
    player = Player(Models([path]))
    name = player.models.names[0]
    sample = builtin(builtin_names()[0])
    player.open("warm", sample, name)
    found: dict[str, list[tuple[float, float]]] = {}
    for turn in range(repeats):
        session = str(turn)
        actions: dict[str, Callable[[], object]] = {
            "open": lambda session=session: player.open(session, sample, name),
            "draw a mask": lambda session=session: player.draw(session, name, "random", 0.75, 1, {}),
            "reconstruct": lambda session=session: player.show(session, [name]),
            "first click": lambda session=session: player.look(session, name, 6, None, token=40),
            "next click": lambda session=session: player.look(session, name, 3, 2, token=90),
        }
        for title, action in actions.items():
            found.setdefault(title, []).append(timed(action))
        player.leave(session)
    return {title: (median(one[0] for one in times), median(one[1] for one in times)) for title, times in found.items()}


def main() -> None:
    """Runs the measurements and prints them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(LAYOUTS), choices=list(LAYOUTS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.models:
            times = measure(written(name, LAYOUTS[name], Path(scratch) / name), options.repeats)
            rows.append([name, *(f"{clock:.2f} ({processor:.2f})" for clock, processor in times.values())])
            head = ["layout", *times]
    for key, value in machine(torch.device("cpu")).items():
        print(f"{key}: {value}")
    print(f"\nSeconds of the clock (of the processor), {options.threads} thread, ViT-B, fp32\n")
    print(table(head, rows))


if __name__ == "__main__":
    main()
