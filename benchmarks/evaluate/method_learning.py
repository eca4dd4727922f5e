"""Compares the features of all methods after equal training time, with the same data, the same size of encoder and one thread.

    python -m benchmarks.evaluate.method_learning --source CIFAR10_PARQUET --minutes 6 --seeds 0 1      all image methods
    python -m benchmarks.evaluate.method_learning --videos --minutes 6 --seeds 0 1                      all video methods
    python -m benchmarks.evaluate.method_learning --source CIFAR10_PARQUET --minutes 0.2 --methods image_mae --out /tmp

A method with another encoder has the encoder's name after a plus: image_mae+hiera, image_simmim+swin. The training loop of another
library with a recipe's settings has the library's name after an at sign, and runs only if --methods names it:
--methods image_mae image_mae@lightly (lightly is not installed by this project),
--videos --methods video_mae video_mae@transformers.

Time is processor time of this process. The time of one update is measured first, as the difference of two short runs; then each
method trains for as many updates as fit, the same number for every seed, with a warm-up of a twentieth of them and one learning
rate for all methods, which was tuned for none. Frozen features are evaluated by 20 nearest neighbours and by a linear classifier on
100 labels per class, and compared with those of the same encoder with random weights and with raw pixels. All results are kept in
one JSON file, which is updated after each method: a run that was stopped continues."""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch

import mmm
from benchmarks.evaluate.other_loops import LOOPS
from benchmarks.measure import machine, table
from mmm.data import open_data
from mmm.encoders import EncoderConfig, Hiera, Swin
from mmm.evaluate.builtin import MaskedLoss
from mmm.evaluate.evaluator import EvaluatorSet
from mmm.evaluate.features.frozen_eval import FeatureEvalConfig, evaluate_features
from mmm.targets import LatentTarget, PixelTarget
from recipes.image_mae import CIFAR10
from tasks import pretrain

IMAGES = (
    *("mae", "crossmae", "simmim", "maskfeat", "beit", "umae", "selfdistill", "data2vec", "ijepa", "capi", "pixio", "salt"),
    *("mae+hiera", "simmim+swin"),
)
VIDEOS = ("mae", "crossmae", "mae_v2", "maskfeat", "umt", "vjepa", "salt")
ENCODERS: dict[str, EncoderConfig] = {  # of methods with a plus in their name; as wide at the output as the vision transformer
    "hiera": Hiera.Config(width=32, heads=1, stages=(1, 1, 3), patch=2, mask_unit=2, pools=1),
    "swin": Swin.Config(width=64, heads=2, stages=(1, 3), patch=2, window=4),
}
BATCH, RATE = 64, 1.2e-3  # images of an update, and its peak learning rate
MEASURED = ("neighbours", "linear")
PACE = (8, 72)  # updates of the two runs whose difference gives the time of an update


def config_of(name: str, options: argparse.Namespace, steps: int, seed: int, folder: Path) -> pretrain.Config:
    """Returns the demonstration of a recipe, on CIFAR-10 or on clips, with the given number of updates."""
    recipe, _, encoder = name.partition("@")[0].partition("+")
    presets = importlib.import_module(f"recipes.{recipe}").PRESETS
    preset: pretrain.Config = presets.get("demo_student", presets["demo"])
    changes: dict[str, Any] = {"data": replace(preset.data, workers=0)}  # so that reading counts
    if not options.videos:
        changes["data"] = replace(CIFAR10.data, source=options.source, workers=0)
    if encoder:
        changes["encoder"] = ENCODERS[encoder]
    if isinstance(preset.target, LatentTarget.Config) and preset.target.teacher.startswith("runs/"):
        changes["target"] = replace(preset.target, teacher=str(folder.parent / f"{folder.name}-teacher"))
    train = replace(
        preset.train,
        epochs=None,
        steps=steps,
        warmup_epochs=None,
        warmup_steps=max(1, steps // 20),
        precision="fp32",
        threads=1,
        log_every=max(1, steps // 4),
        save_every=steps,
        evaluate_every=None,
    )
    if not options.videos:
        train = replace(train, batch_size=BATCH, learning_rate=RATE, scale_learning_rate=None)
    evaluate = EvaluatorSet.of(MaskedLoss.Config(samples=128))
    return replace(preset, **changes, train=train, seed=seed, folder=str(folder), evaluate=evaluate)


def train(name: str, options: argparse.Namespace, steps: int, seed: int, folder: Path) -> tuple[float, int]:
    """Trains a model and returns processor seconds and the number of the model's updates. For a frozen latent target, the first
    sixth of the updates trains the teacher."""
    config = config_of(name, options, steps, seed, folder)
    began = time.process_time()
    if library := name.partition("@")[2]:
        torch.manual_seed(seed)
        LOOPS[library](config, folder)
        return time.process_time() - began, steps
    if isinstance(config.target, LatentTarget.Config) and config.target.teacher.endswith("-teacher"):
        first = max(1, steps // 6)
        pixels = PixelTarget.Config(standardise="none")
        teacher = replace(
            config, target=pixels, folder=config.target.teacher, train=replace(config.train, steps=first, save_every=first)
        )
        pretrain.run(teacher)
        steps -= first
        config = replace(config, train=replace(config.train, steps=steps, save_every=steps))
    pretrain.run(config)
    return time.process_time() - began, steps


def measure(name: str, options: argparse.Namespace, seed: int, scratch: Path, found: dict[str, Any]) -> dict[str, Any]:
    """Returns the result of one method and seed.

    Args:
        found: all earlier results. The seconds of an update of this method, and the features of random weights of the same
            encoder, are not measured again if they are there; otherwise they are added.
    """
    pace = found["paces"].get(name)
    if pace is None:
        train(name, options, 2, seed, scratch / f"{name}-{seed}-2")  # imports; two updates, the first of which may be a teacher's
        few, more = (train(name, options, steps, seed, scratch / f"{name}-{seed}-{steps}")[0] for steps in PACE)
        pace = found["paces"][name] = (more - few) / (PACE[1] - PACE[0])
    steps = max(1, round(60 * options.minutes / pace))
    folder = scratch / f"{name}-{seed}"
    seconds, updates = train(name, options, steps, seed, folder)
    config = config_of(name, options, steps, seed, folder)
    data = replace(config.data, cache=False) if not options.videos else config.data  # type: ignore[call-arg]
    parts = open_data(data, "train"), open_data(data, "eval")
    judged = FeatureEvalConfig(labels_per_class=100, train_samples=options.train_samples, test_samples=options.test_samples)
    baseline = found["baselines"].get(key := f"{seed}: {config.tokenizer}, {config.encoder}")
    models = {"trained": mmm.load(folder)}
    if baseline is None:
        models["untrained"] = pretrain.build_model(replace(config, seed=seed))
    scores = evaluate_features(models, *parts, replace(judged, raw_pixels=baseline is None), device="cpu")
    top = {measured: {model: 100 * one["top1"] for model, one in scores[measured].items()} for measured in MEASURED}
    if baseline is None:
        baseline = {measured: {model: top[measured][model] for model in ("untrained", "raw_pixels")} for measured in MEASURED}
        found["baselines"][key] = baseline
    figures = {measured: {"trained": top[measured]["trained"], **baseline[measured]} for measured in MEASURED}
    return {"updates": updates, "seconds": seconds, **figures}


def describe(found: dict[str, Any]) -> str:
    """Formats the table of all methods. With several seeds, ± is half of the range of their values."""
    rows = []
    for name, seeds in found["methods"].items():
        runs = list(seeds.values())
        row = [f"`{name}`", f"{mean(run['updates'] for run in runs):,.0f}", f"{mean(run['seconds'] for run in runs):.0f}"]
        for measured in MEASURED:
            row += [spread([run[measured][model] for run in runs]) for model in ("trained", "untrained")]
        rows.append(row)
    head = ["recipe", "updates", "seconds", "neighbours, %", "random weights", "linear, %", "random weights"]
    return table(head, rows)


def spread(values: list[float]) -> str:
    """Formats a mean and half of the range."""
    return f"{mean(values):.1f}" + (f" ± {(max(values) - min(values)) / 2:.1f}" if len(values) > 1 else "")


def main() -> None:
    """Runs the missing measurements and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", help="CIFAR-10: a folder of parquet files, or uoft-cs/cifar10")
    parser.add_argument("--videos", action="store_true", help="the video methods, on builtin:motion")
    parser.add_argument("--methods", nargs="+", help="recipes; all by default")
    parser.add_argument("--minutes", type=float, default=6.0, help="processor time of a training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--train_samples", type=int, default=5000, help="images that neighbours and labels are chosen from")
    parser.add_argument("--test_samples", type=int, default=5000, help="images whose class is to be found")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results", help="folder for the results")
    options = parser.parse_args()
    if not options.videos and not options.source:
        parser.error("--source is missing")
    logging.disable(logging.INFO)
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    name = f"methods_{'videos' if options.videos else 'images'}_{options.minutes:g}min"
    file = options.out / f"{name}.json"
    begun = {"machine": machine(torch.device("cpu")), "paces": {}, "baselines": {}, "methods": {}}
    found = json.loads(file.read_text()) if file.exists() else begun
    prefix, known = ("video_", VIDEOS) if options.videos else ("image_", IMAGES)
    for method in options.methods or [f"{prefix}{one}" for one in known]:
        for seed in options.seeds:
            if str(seed) in found["methods"].setdefault(method, {}):
                continue
            with tempfile.TemporaryDirectory() as scratch:
                found["methods"][method][str(seed)] = result = measure(method, options, seed, Path(scratch), found)
            file.write_text(json.dumps(found, indent=2, default=str) + "\n", encoding="utf-8")
            print(f"{method}, seed {seed}: {result}", flush=True)
    kind = "builtin:motion" if options.videos else "CIFAR-10"
    raw = [spread([one[measured]["raw_pixels"] for one in found["baselines"].values()]) for measured in MEASURED]
    lines = [f"# Methods at {options.minutes:g} minutes of one thread, {kind}", ""]
    lines += [f"- {name}: {value}" for name, value in found["machine"].items()]
    lines += ["", f"Raw pixels: {raw[0]} % by neighbours, {raw[1]} % linear.", ""]
    text = "\n".join([*lines, describe(found), ""])
    (options.out / f"{name}.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
