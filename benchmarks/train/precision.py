"""Compares the loss of the same training in bf16 and in fp32, update by update, on real photographs.

    python -m benchmarks.train.precision                    the image demonstration's training, some minutes on two cores
    python -m benchmarks.train.precision --steps 20 --seeds 0        quick check that it runs
    python -m benchmarks.train.precision --save             also writes a dated table and all numbers into benchmarks/results/

The initial weights, the samples, the masks and the schedule are the same. The held-out loss is computed with fixed masks. The
effect of the precision is compared with the effect of another seed in fp32.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import RESULTS, machine, save, table
from mmm.evaluate.builtin import MaskedLoss
from mmm.evaluate.evaluator import EvaluatorSet
from mmm.evaluate.run_results import Record
from recipes.image_mae import DEMO
from tasks import pretrain

PRECISIONS = ("fp32", "bf16")
LINES = 10  # rows of the table


def train(precision: str, seed: int, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Trains a model and returns the metrics of its run."""
    every = max(1, options.steps // LINES)
    config = replace(
        DEMO,
        train=replace(
            DEMO.train,
            epochs=None,
            steps=options.steps,
            precision=precision,
            threads=options.threads,
            log_every=every,
            save_every=options.steps,
        ),
        seed=seed,
        folder=str(folder),
        evaluate=EvaluatorSet.of(MaskedLoss.Config()),
    )
    result = pretrain.run(config)
    record = Record.read(folder)
    steps, losses = record.series("loss")
    return {"steps": steps, "loss": losses, "held_out": result["held_out_loss"], "seconds": record.seconds}


def describe(found: dict[str, Any]) -> str:
    """Formats the table: one row for each log line, one column for each run."""
    runs: dict[str, dict[str, Any]] = found["runs"]
    steps = next(iter(runs.values()))["steps"]
    rows = [[f"{step:,}", *(f"{run['loss'][i]:.5f}" for run in runs.values())] for i, step in enumerate(steps)]
    rows.append(["held out, at the end", *(f"{run['held_out']:.5f}" for run in runs.values())])
    where = [f"- {name}: {value}" for name, value in found["machine"].items()]
    lines = ["# bf16 beside fp32", "", *where, "", table(["loss, mean since the line before", *runs], rows), "", summary(runs), ""]
    return "\n".join([*lines, *(__doc__ or "").split("\n\n")[2:]])


def summary(runs: dict[str, dict[str, Any]]) -> str:
    """Returns the differences between precisions and between seeds."""
    seeds = sorted({name.split()[-1] for name in runs})
    apart = [abs(runs[f"bf16, seed {seed}"]["held_out"] / runs[f"fp32, seed {seed}"]["held_out"] - 1) for seed in seeds]
    text = f"Held-out loss in bf16, relative to fp32's: at most {max(apart):.2%} away."
    if len(seeds) > 1:
        of_seeds = [runs[f"fp32, seed {seed}"]["held_out"] for seed in seeds]
        text += f" Of the seeds, in fp32: {max(of_seeds) / min(of_seeds) - 1:.2%} apart."
    return text


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=800, help="updates")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--threads", type=int, help="of a CPU; none: the cores that there are")
    parser.add_argument("--save", action="store_true", help="write the table and all numbers")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where to")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Trains the models, prints the table, and writes results on request."""
    options = parse(argv)
    runs = {}
    # a separate process for each run, because Accelerate keeps one precision for the lifetime of a process
    fresh = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=1)
    with tempfile.TemporaryDirectory() as name, fresh:
        for seed in options.seeds:
            for precision in PRECISIONS:
                folder = Path(name) / f"{precision}-{seed}"
                runs[f"{precision}, seed {seed}"] = fresh.submit(train, precision, seed, options, folder).result()
    found = {"machine": machine(torch.device("cuda" if torch.cuda.is_available() else "cpu")), "runs": runs}
    text = describe(found)
    print(text)
    if options.save:
        save(options.out, "precision", text, found)
    return found


if __name__ == "__main__":
    main()
