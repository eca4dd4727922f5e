"""Gain of pretraining on rendered scenes: segmentation, depth and detection, each compared with random weights.

    for seed in 0 1 2; do python recipes/image_mae.py --seed $seed --folder runs/demo-$seed; done
    python -m benchmarks.evaluate.dense_transfer --runs runs/demo-0 runs/demo-1 runs/demo-2 --out results

Every trial has the same settings for both kinds of weights, one thread, and its own seed. With a single run, all seeds start from
it. Writes all numbers (.json) and a table (.md). Trials whose results are already in the .json are not run again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from benchmarks.measure import machine, table

SEGMENT = ("segment", "segment")
# by name of the trial: the command without model, seed and folder, and the measures to read from its result
TRIALS: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "segmentation, all weights": ((*SEGMENT, "--preset", "demo"), {"mIoU": "miou"}),
    "segmentation, linear on frozen features": ((*SEGMENT, "--preset", "demo_linear"), {"mIoU": "miou"}),
    "depth, linear on frozen features": (("depth", "depth", "--preset", "demo"), {"delta1": "delta1", "RMSE, m": "rmse"}),
    "detection": (("detect", "detect", "--preset", "demo"), {"box AP50": "box.ap50", "mask AP50": "mask.ap50"}),
}


def run_trial(command: list[str], folder: Path) -> dict[str, Any]:
    """Runs one training in a separate process and returns its result.

    Raises:
        RuntimeError: the training failed; the message contains the end of its output.
    """
    begun = time.time()
    done = subprocess.run([sys.executable, "-m", "tasks", *command, "--folder", str(folder)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stdout[-500:]}{done.stderr[-1500:]}")
    return json.loads((folder / "result.json").read_text()) | {"seconds": time.time() - begun}


def trials(options: argparse.Namespace) -> list[tuple[str, str, int, list[str]]]:
    """Lists name, kind of weights, seed and command of every trial."""
    found = []
    for start in ("random weights", "pretrained"):
        for name, (command, _) in TRIALS.items():
            if options.only and not any(word in name for word in options.only):
                continue
            for seed in range(options.seeds):
                steps = ["--train.steps", str(options.steps)] if options.steps else []
                common = [*command, "--seed", str(seed), "--train.threads", "1", "--train.evaluate_every", "none", *steps]
                model = ["--model", options.runs[seed % len(options.runs)]] if start == "pretrained" else []
                found.append((name, start, seed, [*common, *model]))
    return found


def main() -> None:
    """Runs all trials and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="+", required=True, help="runs of the demonstration of recipes/image_mae.py")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="updates of each trial; none: the preset's")
    parser.add_argument("--only", nargs="*", default=(), help="words of the names of the trials to run; none: all")
    parser.add_argument("--jobs", type=int, default=1, help="trials at once")
    parser.add_argument("--out", type=Path, default=Path("dense_transfer"), help="path of the results, without a suffix")
    parser.add_argument("--keep", type=Path, help="folder in which the runs and their pictures are kept; none: they are deleted")
    options = parser.parse_args()
    known = options.out.with_suffix(".json")
    rows = json.loads(known.read_text(encoding="utf-8"))["rows"] if known.is_file() else []
    done = [(row["trial"], row["start"], row["seed"], row["command"]) for row in rows]
    every = [one for one in trials(options) if (*one[:3], _portable(one[3])) not in done]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.jobs) as pool:
        kept = options.keep or Path(folder)
        folders = [kept / "-".join([*name.replace(",", "").split(), start.split()[0], str(seed)]) for name, start, seed, _ in every]
        waiting = [pool.submit(run_trial, command, own) for (*_, command), own in zip(every, folders, strict=True)]
        for (name, start, seed, command), result in zip(every, waiting, strict=True):
            found = result.result()
            values = {title: _at(found, key) for title, key in TRIALS[name][1].items()}
            print(f"{name}, {start}, seed {seed}: {values}, {found['seconds']:.0f} s", flush=True)
            row = {"trial": name, "start": start, "seed": seed, "command": _portable(command), "seconds": found["seconds"]}
            rows.append(row | values)
            write(options.out, rows)


def _portable(command: list[str]) -> list[str]:
    """Returns a command in which absolute paths are shortened to their last part."""
    return [Path(word).name if Path(word).is_absolute() else word for word in command]


def _at(result: dict[str, Any], key: str) -> Any:
    """Returns a value by its dotted name."""
    outer, _, inner = key.partition(".")
    return result[outer][inner] if inner else result[outer]


def write(out: Path, rows: list[dict[str, Any]]) -> None:
    """Writes the results collected so far."""
    numbers = {"machine": machine(torch.device("cpu")), "rows": rows}
    out.with_suffix(".json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    lines = []
    for name, (_, measures) in TRIALS.items():
        for title in measures:
            cells = [name, title]
            for start in ("pretrained", "random weights"):
                values = [row[title] for row in rows if (row["trial"], row["start"]) == (name, start)]
                spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
                cells.append(f"{mean(values):.3f}{spread} ({len(values)})" if values else "")
            if any(cells[2:]):
                lines.append(cells)
    text = table(["trial", "measure", "pretrained", "random weights"], lines)
    out.with_suffix(".md").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
