"""Profile of one training step: a table of its kernels by self time.

    python -m benchmarks.train.profile_step --methods mae --size large --batch 256 [--compile] [--top 20] [--out FILE.md]
    OMP_NUM_THREADS=1 python -m benchmarks.train.profile_step --perf       functions of the process, sampled by Linux's perf

The table shows the own time of the kernels on a GPU, and of the operators on a CPU. On a CPU the profiler slows down small
operators, and its allocations cause page faults for large results (a product of 6 ms was shown as one of 60); --perf does neither.
Code that oneDNN generates at run time (its products and GELU) has no function names in perf, and is shown as one line.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.measure import Step, machine, table, wait
from benchmarks.train.methods import METHODS, Setting, ours
from mmm.train.config import TrainConfig
from mmm.train.distributed.setup import start

WARMUP = 5  # steps before the profile; the first one compiles and allocates memory
SAMPLED = 4  # steps under perf
SEPARATOR = "\x1f"  # between perf's columns; function names may contain any other character


def top_kernels(step: Step, device: torch.device, top: int) -> str:
    """Profiles one step after some warm-up steps, and returns a table."""
    for _ in range(WARMUP):
        step()
    wait(device)
    cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as seen:
        step()
        wait(device)
    took = {
        event.key: (event.self_device_time_total if cuda else event.self_cpu_time_total, event.count)
        for event in seen.key_averages()
        if not cuda or event.device_type == torch.autograd.DeviceType.CUDA
    }
    whole = sum(time for time, _ in took.values())
    first = sorted(took.items(), key=lambda item: -item[1][0])[:top]
    rows = [[f"`{name[:90]}`", f"{time / 1000:.2f}", f"{time / whole:.1%}", str(count)] for name, (time, count) in first]
    rows.append(["all", f"{whole / 1000:.2f}", "100%", str(sum(count for _, count in took.values()))])
    return table(["kernel", "own time, ms", "share", "calls"], rows)


def top_functions(step: Step, top: int) -> str:
    """Samples some steps of this process with perf after some warm-up steps, and returns a table."""
    for _ in range(WARMUP):
        step()
    with tempfile.NamedTemporaryFile() as file:
        command = ["perf", "record", "-F", "999", "-p", str(os.getpid()), "-o", file.name]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as perf:
            time.sleep(1)  # perf needs time to start
            for _ in range(SAMPLED):
                step()
            perf.send_signal(signal.SIGINT)
        report = ["perf", "report", "-i", file.name, "--no-children", "--sort", "dso,symbol", "-t", SEPARATOR, "-w", "0,0"]
        lines = subprocess.run(report, capture_output=True, text=True, check=True).stdout.splitlines()
    shares: dict[str, float] = {}
    for line in lines:
        fields = [field.strip() for field in line.split(SEPARATOR)]
        if len(fields) < 3 or not fields[0].endswith("%"):
            continue
        made = fields[1].startswith("[JIT]")
        name = "oneDNN's own code, made as it ran" if made else f"`{fields[2].removeprefix('[.] ')[:90]}` of {fields[1]}"
        shares[name] = shares.get(name, 0.0) + float(fields[0].rstrip("%"))
    first = sorted(shares.items(), key=lambda item: -item[1])[:top]
    return table(["function", "share"], [[name, f"{share:.1f}%"] for name, share in first])


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["mae"])
    parser.add_argument("--size", default="base")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--clips", type=int, default=2)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--perf", action="store_true", help="sample the process's functions, on a CPU; needs Linux's perf")
    parser.add_argument("--top", type=int, default=20)
    parser.add_argument("--out", type=Path, help="a Markdown file")
    args = parser.parse_args()
    if args.perf and shutil.which("perf") is None:
        parser.error("--perf: there is no command perf here; leave it out, or install it (Debian: linux-perf)")
    setting = Setting(size=args.size, batch=args.batch, clips=args.clips, precision=args.precision, compile=args.compile)
    device = start(TrainConfig(batch_size=1, learning_rate=1.0, precision=args.precision, compile=args.compile)).device
    text = "\n".join(f"- {name}: {value}" for name, value in machine(device).items())
    for method in args.methods:
        way = ours(method, setting)
        where = top_functions(way.step, args.top) if args.perf else top_kernels(way.step, device, args.top)
        text += f"\n\n## {way.name}, ViT-{args.size}, {way.samples} samples\n\n{where}"
    print(text)
    if args.out is not None:
        args.out.write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
