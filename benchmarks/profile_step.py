"""Where the time of one training step goes: its kernels by the time that they take themselves, as a table.

    python -m benchmarks.profile_step --methods mae --size large --batch 256 [--compile] [--top 20] [--out FILE.md]

On a GPU the kernels' own time, on a CPU the operators'. The profiler slows a CPU's small operators; shares are what to read.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.measure import Step, machine, table, wait
from benchmarks.methods import METHODS, Setting, ours
from mmm.train.config import TrainConfig
from mmm.train.devices import start

WARMUP = 5  # steps, of which the first compiles and all but the last allocate


def top_kernels(step: Step, device: torch.device, top: int) -> str:
    """Profiles one step after a few others."""
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


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["mae"])
    parser.add_argument("--size", default="base")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--clips", type=int, default=2)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--top", type=int, default=20)
    parser.add_argument("--out", type=Path, help="a Markdown file")
    args = parser.parse_args()
    setting = Setting(size=args.size, batch=args.batch, clips=args.clips, precision=args.precision, compile=args.compile)
    device = start(TrainConfig(batch_size=1, learning_rate=1.0, precision=args.precision, compile=args.compile)).device
    text = "\n".join(f"- {name}: {value}" for name, value in machine(device).items())
    for method in args.methods:
        way = ours(method, setting)
        text += f"\n\n## {way.name}, ViT-{args.size}, {way.samples} samples\n\n{top_kernels(way.step, device, args.top)}"
    print(text)
    if args.out is not None:
        args.out.write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
