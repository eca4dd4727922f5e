"""Gain of pretraining on CIFAR-10: neighbours, linear and attentive probe, and fine-tuning, each compared with random weights.

    for seed in 0 1 2; do python recipes/image_mae.py --preset cifar10 --data.source CIFAR10 --seed $seed --folder runs/c-$seed \\
        --encoder.depth 4 --decoder.depth 2 --train.steps 1000 --train.batch_size 128 --train.scale_learning_rate none \\
        --train.learning_rate 1.2e-3 --train.precision fp32 --train.threads 1 --data.workers 0 --evaluate; done
    python -m benchmarks.evaluate.after_pretraining --source CIFAR10 --runs runs/c-0 runs/c-1 runs/c-2 --jobs 2

Every task uses the same few labelled images, the same settings and the same trials for the pretrained and the random weights: three
learning rates of the attentive probe and two of fine-tuning, chosen on a tenth of the labelled images, and seven penalties of the
linear probe, chosen on a fifth. Each chosen setting is evaluated once on the test images. Writes a table (.md) and all numbers
(.json).
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from benchmarks.measure import RESULTS, machine, table
from mmm.config.serialize import load
from mmm.data import ImagesConfig, open_images
from mmm.encoders import VisionTransformer
from mmm.evaluate.batches import choose
from mmm.evaluate.run_results import Record
from mmm.train.config import TrainConfig
from mmm.train.mixup import SoftConfig
from tasks import attentive_probe, finetune, knn, linear_probe, pretrain

TASKS = ("20 nearest neighbours", "linear probe", "attentive probe", "fine-tuning")
BATCH = 64


def write_subset(options: argparse.Namespace, folder: Path) -> None:
    """Writes labelled images and test images, drawn from the two splits with a fixed key, as parquet files."""
    from datasets import Dataset, Features, Image, Value

    source = ImagesConfig(source=options.source, image_size=32)
    for split, count in (("train", options.labelled), ("test", options.test)):
        part = choose(open_images(source, split), count, seed=7)
        labels = part.labels()
        assert labels is not None
        rows = {"image": [{"bytes": part.raw(i), "path": None} for i in range(len(part))], "label": labels.tolist()}
        kinds = Features({"image": Image(), "label": Value("int64")})
        Dataset.from_dict(rows, features=kinds).to_parquet(str(folder / f"{split}-00000-of-00001.parquet"))


def training(epochs: float, rate: float) -> TrainConfig:
    """Returns the options of a training in one thread; its duration is part of the result."""
    return TrainConfig(
        epochs=epochs,
        batch_size=BATCH,
        learning_rate=rate,
        scale_learning_rate=None,
        warmup_epochs=0.1 * epochs,
        precision="fp32",
        threads=1,
        save_every=10**6,
    )


def evaluate_start(
    model: str, data: ImagesConfig, options: argparse.Namespace, seed: int, scratch: Path
) -> dict[str, dict[str, Any]]:
    """Returns accuracy and seconds of each task, for the weights of a run, or for random weights if `model` is its config.yaml."""
    trained = not model.endswith(".yaml")
    found: dict[str, dict[str, Any]] = {}

    def timed(task: str, top1: Any) -> None:
        began = time.perf_counter()
        found[task] = {"top1": top1(), "seconds": time.perf_counter() - began}

    def neighbours() -> float:
        asked = knn.Config(
            model=model, source=data.source, untrained=False, raw_pixels=False, device="cpu", out=str(scratch / "knn.json")
        )
        (scores,) = knn.run(asked)["neighbours"].values()
        return float(scores["top1"])

    def linear() -> float:
        config = linear_probe.Config(model=model, data=data, train=training(1, 0.1), seed=seed, folder=str(scratch / "linear"))
        return float(linear_probe.run(config)["exact"]["top1"])

    def attentive() -> float:
        config = attentive_probe.Config(
            model=model,
            data=data,
            train=training(options.epochs, 1e-3),
            rates=(0.3, 1.0, 3.0),
            held_back=0.1,
            seed=seed,
            folder=str(scratch / "attentive"),
        )
        return float(attentive_probe.run(config)["trained"]["top1"])

    def tuned() -> float:
        own: Any = load(pretrain.Config, Path(model) / "config.yaml" if trained else model)
        tries = []
        for rate in (5e-4, 1.5e-3):
            folder = scratch / f"finetune-{rate}"
            config = finetune.Config(
                model=model if trained else None,
                data=data,
                tokenizer=own.tokenizer,
                encoder=replace(own.encoder, drop_path=0.0),
                soft=SoftConfig(smoothing=0.1),
                train=replace(training(options.epochs, rate), evaluate_every=options.labelled // BATCH),
                held_back=0.1,
                seed=seed,
                folder=str(folder),
            )
            result = finetune.run(config)
            tries.append((max(Record.read(folder).series("held_back_top1")[1]), float(result["top1"])))
        return max(tries)[1]

    for task, top1 in zip(TASKS, (neighbours, linear, attentive, tuned), strict=True):
        timed(task, top1)
    return found


def one_run(task: tuple[str, argparse.Namespace, ImagesConfig]) -> dict[str, dict[str, dict[str, Any]]]:
    """Evaluates the pretrained and the random weights of one seed."""
    run, options, data = task
    logging.disable(logging.INFO)
    torch.set_num_threads(1)
    seed = load(pretrain.Config, Path(run) / "config.yaml").seed
    found = {}
    for start, model in (("pretrained", run), ("random", f"{run}/config.yaml")):
        with tempfile.TemporaryDirectory() as name:
            found[start] = evaluate_start(model, data, options, seed, Path(name))
    return found


def describe(found: dict[str, Any], options: argparse.Namespace) -> str:
    """Formats the table."""
    rows = []
    for task in TASKS:
        cells, means = [], []
        for start in ("pretrained", "random"):
            values = [100 * run[start][task]["top1"] for run in found["runs"]]
            spread = stdev(values) if len(values) > 1 else 0.0
            means.append((mean(values), spread))
            cells.append(f"{mean(values):.1f} ± {spread:.1f} ({', '.join(f'{value:.1f}' for value in values)})")
        gain = means[0][0] - means[1][0]
        largest = max(spread for _, spread in means)
        seconds = mean(run["pretrained"][task]["seconds"] for run in found["runs"])
        rows.append([task, *cells, f"{gain:+.1f}", f"{gain / largest:.1f}" if largest else "", f"{seconds:.0f}"])
    head = ["top-1, %", "pretrained", "random weights", "gain", "gain / larger deviation", "seconds"]
    lines = ["# After pretraining, CIFAR-10", "", *(f"- {name}: {value}" for name, value in found["machine"].items()), ""]
    lines += [f"{options.labelled:,} labelled images, {options.test:,} test images; mean ± deviation over seeds (each). Probes and"]
    lines += [f"fine-tuning take {options.epochs:g} epochs. Seconds are of one thread, all trials of a task together.", ""]
    return "\n".join([*lines, table(head, rows), ""])


def main() -> None:
    """Runs the measurements and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="CIFAR-10: a folder of parquet files, or uoft-cs/cifar10")
    parser.add_argument("--runs", nargs="+", required=True, help="folders of pretrainings, a seed each")
    parser.add_argument("--labelled", type=int, default=2000, help="training images whose labels are used")
    parser.add_argument("--test", type=int, default=4000, help="images to score")
    parser.add_argument("--epochs", type=float, default=8, help="of the attentive probe and of fine-tuning")
    parser.add_argument("--jobs", type=int, default=1, help="processes, of one thread each")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the results")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        write_subset(options, Path(name))
        own = load(pretrain.Config, Path(options.runs[0]) / "config.yaml")
        assert isinstance(own.data, ImagesConfig)
        assert isinstance(own.encoder, VisionTransformer.Config)
        data = replace(own.data, source=name, cache=True)
        work = [(run, options, data) for run in options.runs]
        with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
            runs = pool.map(one_run, work, chunksize=1)
    found: dict[str, Any] = {"machine": machine(torch.device("cpu")), "runs": runs}
    text = describe(found, options)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "after_pretraining.md").write_text(text, encoding="utf-8")
    (options.out / "after_pretraining.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
