"""Samples per second on 1, 2 and 4 processes of this machine, with the same work for each process.

    python -m benchmarks.train.scale --processes 1 2 4 --repeats 3 [--out benchmarks/results]

Every measurement runs the recipe itself, `torchrun recipes/image_mae.py`, on its built-in photographs. Each process has one thread
and its own micro-batch, so the global batch grows with the number of processes. Runs of different sizes alternate. Processes beyond
the number of cores share cores; efficiency is samples per second and core in use, relative to that of one process.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.measure import REPOSITORY, machine, spread, table
from mmm.train.distributed.setup import usable_cores

STEADY = 2  # log lines left out at the start, because they include imports and the first allocations


def samples_per_second(folder: Path, processes: int, args: argparse.Namespace) -> list[float]:
    """Returns the rates of the log lines of a run, without the first ones."""
    values = {
        "data.workers": 0,
        "train.threads": 1,
        "train.batch_size": args.micro_batch * processes,
        "train.micro_batch_size": args.micro_batch,
        "train.steps": args.steps,
        "train.log_every": args.log_every,
        "train.save_every": 10 * args.steps,
        "folder": folder,
    }
    flags = [word for name, value in values.items() for word in (f"--{name}", str(value))]
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command += [str(REPOSITORY / "recipes" / "image_mae.py"), "--preset", "demo", "--evaluate", *flags]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *command], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the run on {processes} processes ended with {done.returncode}:\n{done.stderr[-2000:]}")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rates = [line["clock"]["samples_per_second"] for line in lines if "clock" in line]
    return rates[STEADY:]


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Measures each number of processes once per round."""
    found: dict[int, list[float]] = {processes: [] for processes in args.processes}
    with tempfile.TemporaryDirectory() as place:
        for turn in range(args.repeats):
            for processes in args.processes:
                found[processes].append(median(samples_per_second(Path(place) / f"{turn}-{processes}", processes, args)))
    cores = usable_cores()
    alone = median(found[args.processes[0]]) / min(args.processes[0], cores)
    rows = {
        str(processes): {
            "samples_per_second": spread(rates),
            "cores_in_use": min(processes, cores),
            "efficiency": median(rates) / min(processes, cores) / alone,
        }
        for processes, rates in found.items()
    }
    return {"machine": machine(torch.device("cpu")), "cores": cores, "micro_batch": args.micro_batch, "processes": rows}


def describe(found: dict[str, Any]) -> str:
    """Formats the table."""
    rows = [
        [name, f"{row['samples_per_second']['median']:.0f}", str(row["cores_in_use"]), f"{row['efficiency']:.2f}"]
        for name, row in found["processes"].items()
    ]
    return table(["processes", "samples/s", "cores in use", "efficiency per core in use"], rows)


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--log_every", type=int, default=10)
    parser.add_argument("--micro_batch", type=int, default=64, help="samples of one process at once")
    parser.add_argument("--out", type=Path, help="a folder for the dated table and JSON")
    args = parser.parse_args()
    found = measure(args)
    text = describe(found)
    print(text)
    if args.out is not None:
        name = args.out / f"{found['machine']['date']}-scale"
        name.with_suffix(".json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        name.with_suffix(".md").write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
