"""Speed of the recipes with real files: how long the training waits for data, for several numbers of worker processes.

    python -m benchmarks.train.end_to_end                              small encoders on a CPU, the recipes' own on a GPU
    python -m benchmarks.train.end_to_end --size base --batch 256 --steps 60 --workers 0 4 8 16
    python -m benchmarks.train.end_to_end --size tiny --batch 4 --steps 3 --files 8 --workers 0        quick check that it runs
    python -m benchmarks.train.end_to_end --save     also writes a dated table and all numbers into benchmarks/results/

Runs `recipes/image_mae.py` and `recipes/video_mae.py` with their published settings, except for encoder size, batch size and
length, on generated files in the page cache: JPEGs of 500 x 375 and videos of 340 x 256 (groups of 12 frames, as mmm prepare_video
writes them). `waiting` is the run's own metric `data_wait`: the share of the time in which the training waited for a batch; the
first quarter of the updates, in which workers start, is left out. `files alone` is the rate of samples that the same workers reach
without training. A GPU computes while the host waits, so on a GPU `waiting` is an upper limit of the device's waiting time.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from benchmarks.data.image_files import SIZES, make_files
from benchmarks.data.video_decode import render
from benchmarks.measure import RESULTS, machine, save, table
from mmm.data import open_data, train_batches
from mmm.encoders import VisionTransformer
from mmm.evaluate.builtin import MaskedLoss
from mmm.evaluate.evaluator import EvaluatorSet
from recipes import image_mae, video_mae
from tasks import pretrain


def config_of(recipe: pretrain.Config, source: Path, folder: Path, options: argparse.Namespace, workers: int) -> pretrain.Config:
    """Returns the config of a recipe's run on these files."""
    assert isinstance(recipe.encoder, VisionTransformer.Config)
    return replace(
        recipe,
        data=replace(recipe.data, source=str(source), workers=workers, repeats=options.repeats, holdout=0.01),
        encoder=replace(recipe.encoder, size=options.size),
        train=replace(
            recipe.train,
            steps=options.steps,
            epochs=None,
            batch_size=options.batch,
            micro_batch_size=options.batch,
            log_every=1,
            save_every=options.steps,
        ),
        folder=str(folder),
        evaluate=EvaluatorSet.of(MaskedLoss.Config(samples=1)),
    )


def trained(config: pretrain.Config) -> dict[str, float]:
    """Returns the run's own metrics, without those of its first quarter."""
    pretrain.run(config)
    lines = (Path(str(config.folder)) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    clocks = [line["clock"] for line in map(json.loads, lines) if "data_wait" in line.get("clock", {})]
    clocks = clocks[-(-len(clocks) // 4) :]
    seconds = [config.train.batch_size / clock["samples_per_second"] for clock in clocks]
    waited = sum(clock["data_wait"] * took for clock, took in zip(clocks, seconds, strict=True))
    return {"samples_per_second": len(clocks) * config.train.batch_size / sum(seconds), "waiting": waited / sum(seconds)}


def alone(config: pretrain.Config) -> float:
    """Returns the samples per second of the loader without training, after its first batches."""
    steps, batch = config.train.steps or 1, config.train.batch_size
    batches = train_batches(open_data(config.data, "train"), config.data, seed=0, batch_size=batch, steps=steps)
    first = max(1, steps // 4)
    for _ in islice(batches, first):
        pass
    start, count = time.perf_counter(), sum(len(got) for got in batches)
    return count / (time.perf_counter() - start)


def measure(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Returns one row for each recipe and number of workers."""
    make_files(folder / "jpegs", options.files, *SIZES["500x375"])
    (videos,) = render(folder, ["340x256 g12 fastdecode"], frames=150, files=max(2, options.files // 8)).values()
    found = []
    for name, recipe, source in (("image_mae", image_mae.IMAGENET, folder / "jpegs"), ("video_mae", video_mae.KINETICS, videos)):
        for workers in options.workers if name in options.recipes else []:
            config = config_of(recipe, source, folder / f"{name}-{workers}", options, workers)
            found.append({"recipe": name, "workers": workers, "size": options.size} | trained(config))
            found[-1]["files_alone"] = alone(config)
    return found


def describe(found: dict[str, Any]) -> str:
    """Formats the table."""
    head = ["recipe, encoder, workers", "samples/s", "waiting for data", "files alone, samples/s"]
    rows = [
        [
            f"{one['recipe']}, {one['size']}, {one['workers']}",
            f"{one['samples_per_second']:.1f}",
            f"{one['waiting']:.1%}",
            f"{one['files_alone']:.1f}",
        ]
        for one in found["found"]
    ]
    lines = ["# Training from files", "", *(f"- {name}: {value}" for name, value in found["machine"].items()), ""]
    return "\n".join([*lines, table(head, rows), "", *(__doc__ or "").split("\n\n")[2:]])


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", choices=["image_mae", "video_mae"], default=["image_mae", "video_mae"])
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 1, 2])
    size = "base" if torch.cuda.is_available() else "tiny"
    parser.add_argument("--size", default=size, help="of the encoder; else tiny on a CPU, base on a GPU")
    parser.add_argument("--batch", type=int, default=16, help="samples an update")
    parser.add_argument("--repeats", type=int, default=1, help="samples of a decoded input")
    parser.add_argument("--steps", type=int, default=12, help="updates")
    parser.add_argument("--files", type=int, default=256, help="JPEGs, and an eighth as many videos")
    parser.add_argument("--save", action="store_true", help="write the table and all numbers")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where to")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs the measurements, prints the table, and writes results on request."""
    options = parse(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as name:
        found: dict[str, Any] = {"found": measure(options, Path(name)), "machine": machine(device)}
    text = describe(found)
    print(text)
    if options.save:
        save(options.out, "end_to_end", text, found)
    return found


if __name__ == "__main__":
    main()
