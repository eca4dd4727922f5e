"""MAE and CrossMAE at equal time: the same encoder, data and seconds of training; which features are worth more?

    python -m benchmarks.evaluate.equal_time --source CIFAR10_PARQUET                          about an hour of one core
    python -m benchmarks.evaluate.equal_time --source CIFAR10_PARQUET --steps 4 --pace 2 --seeds 0 --train_samples 500 --out /tmp

First both train a few steps in turn, which gives the ratio of their speeds; then MAE trains `--steps` updates and CrossMAE as many
more as it has time for, each with its whole schedule. Both learning rates are the recipes' `cifar10` preset's, of which neither was
tuned on this comparison. Frozen features of all models are judged in one pass over the data. Writes a table (.md) and all numbers
(.json).
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import torch

import mmm
from benchmarks.measure import machine, table
from mmm.data import open_data
from mmm.decoders import CrossAttentionDecoder, SelfAttentionDecoder
from mmm.encoders import VisionTransformer
from mmm.evaluate.builtin import MaskedLoss
from mmm.evaluate.evaluator import EvaluatorSet
from mmm.evaluate.features.frozen_eval import FeatureEvalConfig, evaluate_features
from mmm.evaluate.run_results import Record
from mmm.model import MaskedModel
from tasks import pretrain

RECIPES = {"MAE": "recipes.image_mae", "CrossMAE": "recipes.image_crossmae"}
# the published decoders' proportion, 8 blocks of self-attention to 12 of cross-attention, at the size that fits this encoder
DECODERS = {
    "MAE": SelfAttentionDecoder.Config(width=96, depth=2, heads=3),
    "CrossMAE": CrossAttentionDecoder.Config(width=96, depth=3, heads=3, fusion="linear"),
}


def config_of(name: str, options: argparse.Namespace, steps: int, seed: int, folder: Path) -> pretrain.Config:
    """Returns the recipe's cifar10 preset, reduced for two cores."""
    preset: pretrain.Config = importlib.import_module(RECIPES[name]).PRESETS["cifar10"]
    log_every = max(1, min(50, steps // 4))
    train = replace(
        preset.train,
        epochs=None,
        steps=steps,
        batch_size=128,
        learning_rate=1.2e-3,
        scale_learning_rate=None,
        precision="fp32",
        threads=1,
        log_every=log_every,
        save_every=steps,
    )
    return replace(
        preset,
        data=replace(preset.data, source=options.source, workers=0),
        encoder=VisionTransformer.Config(size="tiny", depth=4),
        decoder=DECODERS[name],
        train=train,
        seed=seed,
        folder=str(folder),
        evaluate=EvaluatorSet.of(MaskedLoss.Config(samples=128)),
    )


def seconds_a_step(run: Path) -> float:
    """Returns the median over the log lines in the second half of a short run."""
    record = Record.read(run)
    lines = [line for line in record.metrics if line["step"] > record.steps / 2]
    return median(record.config["train.batch_size"] / line["clock"]["samples_per_second"] for line in lines)


def pace(options: argparse.Namespace, scratch: Path) -> dict[str, float]:
    """Measures the seconds per step of both, in turn."""
    found: dict[str, list[float]] = {name: [] for name in RECIPES}
    for turn in range(options.turns):
        for name in RECIPES:
            folder = scratch / f"pace-{name}-{turn}"
            pretrain.run(config_of(name, options, options.pace, 100 + turn, folder))
            found[name].append(seconds_a_step(folder))
    ratios = [slow / fast for slow, fast in zip(found["MAE"], found["CrossMAE"], strict=True)]
    return {name: median(values) for name, values in found.items()} | {"ratio": median(ratios)}


def train_all(options: argparse.Namespace, scratch: Path, ratio: float) -> dict[str, dict[str, Any]]:
    """Trains each model with each seed. Returns the path, the steps, and the seconds of each."""
    steps = {"MAE": options.steps, "CrossMAE": round(options.steps * ratio)}
    found = {}
    for seed in options.seeds:
        for name in RECIPES if seed % 2 == 0 else reversed(RECIPES):  # who goes first changes
            folder = scratch / f"{name}-{seed}"
            result = pretrain.run(config_of(name, options, steps[name], seed, folder))
            seconds = Record.read(folder).seconds
            found[f"{name} {seed}"] = {
                "folder": folder,
                "steps": steps[name],
                "seconds": seconds,
                "held_out": result["held_out_loss"],
            }
            print(f"{name}, seed {seed}: {steps[name]} steps in {seconds:.0f} s", flush=True)
    return found


def compare_features(options: argparse.Namespace, runs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Evaluates the frozen features of all models and of the untrained encoders on the test split, which chooses nothing."""
    config = config_of("MAE", options, options.steps, 0, Path("."))
    models: dict[str, MaskedModel] = {name: mmm.load(run["folder"]) for name, run in runs.items()}
    models |= {f"untrained {seed}": pretrain.build_model(replace(config, seed=seed)) for seed in options.seeds}
    data = replace(config.data, cache=False)
    judged = FeatureEvalConfig(labels_per_class=100, train_samples=options.train_samples)
    return evaluate_features(models, open_data(data, "train"), open_data(data, "eval"), judged, device="cpu")


def describe(found: dict[str, Any], options: argparse.Namespace) -> str:
    """Formats the tables."""
    scores, rows = found["features"], []
    for name in (*RECIPES, "untrained"):
        of_seed = [f"{name} {seed}" for seed in options.seeds]
        runs = [found["runs"].get(key) for key in of_seed]
        cells = [f"{runs[0]['steps']:,}", f"{mean(run['seconds'] for run in runs):.0f}"] if runs[0] else ["0", "0"]
        for measure in ("neighbours", "linear"):
            values = [100 * scores[measure][key]["top1"] for key in of_seed]
            cells.append(
                f"{mean(values):.1f} ± {stdev(values) if len(values) > 1 else 0:.1f} ({', '.join(f'{v:.1f}' for v in values)})"
            )
        rows.append([name, *cells])
    raw = [f"{100 * scores[measure]['raw_pixels']['top1']:.1f}" for measure in ("neighbours", "linear")]
    rows.append(["raw pixels", "", "", *raw])
    head = ["model", "steps", "seconds", "20 nearest neighbours, %", "linear, 100 labels a class, %"]
    lines = ["# MAE and CrossMAE at equal time, CIFAR-10", ""]
    lines += [f"- {name}: {value}" for name, value in found["machine"].items()]
    pace_ = found["pace"]
    lines += ["", f"A step takes MAE {1e3 * pace_['MAE']:.0f} ms and CrossMAE (25 % predicted) {1e3 * pace_['CrossMAE']:.0f} ms,"]
    lines += [
        f"a ratio of {pace_['ratio']:.2f}; batch 128, one thread, fp32, encoder 192 wide with 4 blocks. Neighbours are sought"
    ]
    lines += [
        f"among {scores['train']:,} training images, for {scores['test']:,} test images. Mean ± deviation over seeds (each).",
        "",
    ]
    return "\n".join([*lines, table(head, rows), ""])


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="CIFAR-10: a folder of parquet files, or uoft-cs/cifar10")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1000, help="of MAE")
    parser.add_argument("--pace", type=int, default=24, help="steps of a run that measures the speed")
    parser.add_argument("--turns", type=int, default=3, help="such runs of each")
    parser.add_argument("--train_samples", type=int, default=10000, help="that neighbours and labels are chosen from")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder for the results")
    options = parser.parse_args()
    logging.disable(logging.INFO)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        found: dict[str, Any] = {"machine": machine(torch.device("cpu")), "pace": pace(options, Path(name))}
        found["runs"] = train_all(options, Path(name), found["pace"]["ratio"])
        found["features"] = compare_features(options, found["runs"])
    text = describe(found, options)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "equal_time.md").write_text(text, encoding="utf-8")
    for run in found["runs"].values():
        del run["folder"]  # gone
    (options.out / "equal_time.json").write_text(json.dumps(found, indent=2, default=str) + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
