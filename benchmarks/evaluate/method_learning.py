"""Compares the features of all methods after equal training time, with the same data, the same size of encoder and one thread.

    python -m benchmarks.evaluate.method_learning --source CIFAR10_PARQUET --minutes 6 --seeds 0 1      all image methods
    python -m benchmarks.evaluate.method_learning --videos --minutes 6 --seeds 0 1                      all video methods
    python -m benchmarks.evaluate.method_learning --source CIFAR10_PARQUET --minutes 0.2 --methods image_mae --out /tmp

A method with another encoder has the encoder's name after a plus: image_mae+hiera, image_simmim+swin. The training loop of another
library with a recipe's settings has the library's name after an at sign, and runs only if --methods names it:
--methods image_mae image_mae@lightly (lightly is not installed by this project),
--videos --methods video_mae video_mae@transformers.

Equal time is an equal product of updates and seconds of processor time per update. The times of all methods are measured first, in
turns, because the speed of a machine changes from minute to minute. From then on the number of updates of each method is fixed:
it does not matter how fast the machine is later, or whether it is another one. Each method trains with the same number of updates
for every seed, with a warm-up of a twentieth of them. The peak learning rate is that of the recipe's demonstration for videos, and
one rate for all methods for images, which was tuned for none. Frozen features are evaluated by 20 nearest neighbours and by a
linear classifier on 100 labels per class, and compared with those of the same encoder with random weights and with raw pixels. All
results are kept in one JSON file, which is updated after each method: a run that was stopped continues, and several processes with
different methods or seeds may run at once."""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

import mmm
from benchmarks.evaluate.other_loops import LOOPS
from benchmarks.measure import machine, table
from mmm.data import open_data
from mmm.encoders import EncoderConfig, Hiera, Swin
from mmm.evaluate.builtin import MaskedLoss
from mmm.evaluate.evaluator import EvaluatorSet
from mmm.evaluate.features.frozen_eval import FeatureEvalConfig, evaluate_features
from mmm.targets import LatentTarget
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
ROUNDS, TIMED = 3, 24  # turns in which the time of an update is measured, and the updates of each


def config_of(
    name: str, options: argparse.Namespace, steps: int, seed: int, folder: Path, *, teacher: bool = False
) -> pretrain.Config:
    """Returns the demonstration of a recipe, on CIFAR-10 or on clips, with the given number of updates.

    Args:
        teacher: return the config of the frozen teacher of a method, and not that of its student.
    """
    recipe, _, encoder = name.partition("@")[0].partition("+")
    presets = importlib.import_module(f"recipes.{recipe}").PRESETS
    preset: pretrain.Config = presets["demo"] if teacher else presets.get("demo_student", presets["demo"])
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


def train(name: str, options: argparse.Namespace, steps: int, seed: int, folder: Path) -> int:
    """Trains a model and returns the number of its updates. For a frozen latent target, the first sixth of the updates trains the
    teacher."""
    config = config_of(name, options, steps, seed, folder)
    if library := name.partition("@")[2]:
        torch.manual_seed(seed)
        LOOPS[library](config, folder)
        return steps
    if isinstance(config.target, LatentTarget.Config) and config.target.teacher.endswith("-teacher"):
        first = max(1, steps // 6)
        pretrain.run(config_of(name, options, first, seed, Path(config.target.teacher), teacher=True))
        steps -= first
        config = config_of(name, options, steps, seed, folder)
    pretrain.run(config)
    return steps


def time_update(name: str, options: argparse.Namespace, folder: Path) -> float:
    """Returns the processor time of an update in seconds, without what precedes the first one and follows the last one."""
    times: list[float] = []
    hook = register_optimizer_step_post_hook(lambda *_: times.append(time.process_time()))
    try:
        train(name, options, TIMED, 0, folder)
    finally:
        hook.remove()
    spans = [after - before for before, after in pairwise(times)]
    return mean(span for span in spans if span < 3 * median(spans))  # one span may contain the preparation of a second training


def measure_paces(names: Sequence[str], options: argparse.Namespace, known: dict[str, float]) -> dict[str, float]:
    """Returns the seconds per update of methods, measured in turns.

    Args:
        names: the methods.
        known: times that were measured earlier, maybe on another machine. New times are then given in proportion to the first of
            these, which is measured again with them.
    """
    reference = next(iter(known), None)
    taken: dict[str, list[float]] = {name: [] for name in dict.fromkeys([*([reference] if reference else []), *names])}
    for _ in range(ROUNDS):
        for name, found in taken.items():
            with tempfile.TemporaryDirectory() as scratch:
                found.append(time_update(name, options, Path(scratch) / "run"))
    paces = {name: median(found) for name, found in taken.items()}
    factor = 1.0 if reference is None else known[reference] / paces[reference]
    return {name: factor * paces[name] for name in names}


def measure(name: str, options: argparse.Namespace, seed: int, scratch: Path, found: dict[str, Any]) -> dict[str, Any]:
    """Returns the result of one method and seed.

    Args:
        found: all earlier results, with the seconds of an update of this method. The features of random weights of the same
            encoder are not evaluated again if they are there; otherwise they are added.
    """
    steps = max(1, round(60 * options.minutes / found["paces"][name]))
    folder = scratch / f"{name}-{seed}"
    updates = train(name, options, steps, seed, folder)
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
    return {"updates": updates, **{measured: {"trained": top[measured]["trained"], **baseline[measured]} for measured in MEASURED}}


def describe(found: dict[str, Any]) -> str:
    """Formats the table of all methods. With several seeds, ± is half of the range of their values."""
    rows, order = [], [f"{medium}_{name}" for medium, names in (("image", IMAGES), ("video", VIDEOS)) for name in names]
    for name in sorted(found["methods"], key=lambda one: (order.index(one) if one in order else len(order), one)):
        runs = list(found["methods"][name].values())
        row = [f"`{name}`", f"{mean(run['updates'] for run in runs):,.0f}"]
        for measured in MEASURED:
            row += [spread([run[measured][model] for run in runs]) for model in ("trained", "untrained")]
        rows.append(row)
    head = ["recipe", "updates", "neighbours, %", "random weights", "linear, %", "random weights"]
    return table(head, rows)


def save(found: dict[str, Any], file: Path) -> None:
    """Writes the JSON file, with the results that other processes have added to it."""
    other = json.loads(file.read_text()) if file.exists() else {}
    for name, seeds in other.get("methods", {}).items():
        found["methods"][name] = seeds | found["methods"].get(name, {})
    found["baselines"] = other.get("baselines", {}) | found["baselines"]
    file.write_text(json.dumps(found, indent=2, default=str) + "\n", encoding="utf-8")


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
    methods = options.methods or [f"{prefix}{one}" for one in known]
    if new := [method for method in methods if method not in found["paces"]]:
        found["paces"] |= measure_paces(new, options, found["paces"])
        save(found, file)
    for seed in options.seeds:
        for method in methods:
            if str(seed) in found["methods"].get(method, {}):
                continue
            with tempfile.TemporaryDirectory() as scratch:
                result = measure(method, options, seed, Path(scratch), found)
            found["methods"].setdefault(method, {})[str(seed)] = result
            save(found, file)
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
