"""Compares the time of a recipe's training step in two versions of this repository.

    git worktree add --detach ../before COMMIT
    python -m benchmarks.train.two_trees ../before . --preset demo
    python -m benchmarks.train.two_trees ../before . --preset cifar10 --data.source DIR --encoder.depth 2 --train.batch_size 128

Each version trains in a separate process, a few updates at a time and in alternation, so that a slow phase of the machine affects
both. Prints the time of an update in each, and the ratio first / second: the median over the rounds and its quartiles. CPU time is
that of the process, which depends less on other processes than wall time does. The loss after the last update shows whether both
compute the same. `--evaluate` is passed without values, so that only updates are timed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median, quantiles

from benchmarks.measure import table

# Runs a recipe like its command. After each block of updates it writes CPU seconds and wall seconds, and waits for a line.
CHILD = """
import json, os, runpy, sys, time
from torch.optim.optimizer import register_optimizer_step_post_hook
recipe, block, report, argv = sys.argv[1], int(sys.argv[2]), os.fdopen(int(sys.argv[3]), "w"), sys.argv[4:]
made, since = 0, None
def now():
    return time.process_time(), time.perf_counter()
def after(*_):
    global made, since
    made += 1
    if made % block == 0:
        spent = [0, 0] if since is None else [b - a for a, b in zip(since, now())]
        report.write(json.dumps(spent) + chr(10)); report.flush()
        sys.stdin.readline()
        since = now()
register_optimizer_step_post_hook(after)
sys.argv = [recipe, *argv]
sys.path.insert(0, os.path.dirname(recipe))
runpy.run_path(recipe, run_name="__main__")
"""


class Tree:
    """A training with the code of one version, which runs one block of updates on request."""

    def __init__(self, tree: Path, recipe: str, block: int, folder: Path, flags: Sequence[str]) -> None:
        self.folder, self.block = folder, block
        reader, writer = os.pipe()
        self.reports = os.fdopen(reader)
        argv = [str(tree / "recipes" / f"{recipe}.py"), str(block), str(writer), "--folder", str(folder), *flags]
        environment = os.environ | {"PYTHONPATH": str(tree)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD, *argv],
            env=environment,
            cwd=tree,  # Python puts this folder first into its path
            pass_fds=[writer],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=folder.with_suffix(".log").open("w"),
            text=True,
        )
        os.close(writer)

    def wait(self) -> tuple[float, float]:
        """Waits for the end of a block, and returns the CPU seconds and wall seconds of one of its updates."""
        line = self.reports.readline()
        if not line:
            raise RuntimeError(self.folder.with_suffix(".log").read_text()[-2000:])
        cpu, clock = json.loads(line)
        return cpu / self.block, clock / self.block

    def go(self) -> None:
        """Starts the next block."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def loss(self) -> float:
        """Lets the training end, and returns the loss of its last line of metrics."""
        self.go()
        self.process.wait()
        lines = [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]
        return float([line["loss"] for line in lines if "loss" in line][-1])


def compare(trees: Sequence[Path], recipe: str, flags: Sequence[str], *, rounds: int, block: int, work: Path) -> str:
    """Trains both versions in alternation, and returns a table."""
    steps = [
        *("--train.steps", str((rounds + 2) * block), "--train.log_every", str((rounds + 2) * block)),
        *("--train.save_every", "1000000", "--evaluate"),
    ]
    sides = [Tree(tree.resolve(), recipe, block, work / str(side), [*flags, *steps]) for side, tree in enumerate(trees)]
    for side in sides:
        side.wait()  # the first block is warm-up
    times: list[list[tuple[float, float]]] = [[], []]
    for turn in range(rounds + 1):
        for number in (0, 1) if turn % 2 else (1, 0):
            sides[number].go()
            found = sides[number].wait()
            if turn:  # the second block is not counted either
                times[number].append(found)
    rows = []
    for what, place in (("CPU time", 0), ("time on the clock", 1)):
        ratios = [first[place] / second[place] for first, second in zip(*times, strict=True)]
        low, _, high = quantiles(ratios, n=4)
        each = [f"{1000 * median(one[place] for one in side):.1f} ms" for side in times]
        rows.append([what, *each, f"{median(ratios):.3f} ({low:.3f} to {high:.3f})"])
    rows.append(["loss after the last update", *(f"{side.loss():.6f}" for side in sides), ""])
    return table(["", *map(str, trees), "first / second"], rows)


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trees", nargs=2, type=Path, help="two folders that hold this repository")
    parser.add_argument("--recipe", default="image_mae", help="a file in recipes/, without its ending")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--block", type=int, default=5, help="updates between two turns")
    args, flags = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as work:
        print(compare(args.trees, args.recipe, flags, rounds=args.rounds, block=args.block, work=Path(work)))


if __name__ == "__main__":
    main()
