"""Speed of a training step compared with other implementations, which alternate in one process on the same machine.

    python -m benchmarks.train.step                                           on the GPU if there is one, else on the CPU
    python -m benchmarks.train.step --methods mae --size large --batch 256 --compile
    python -m benchmarks.train.step --grow                                    cost of ours by image size, clip length and model
    python -m benchmarks.train.step --save                   also writes a dated table and all numbers to benchmarks/results/

A step is forward, backward and update on a batch that is already on the device. Speed is the median over rounds of the ratio within
a round. The limit is the fastest product of square matrices in the same rounds and precision. The share of the limit counts only
the products that the method needs (flops.py), not those that an implementation adds. A step's memory is the memory that torch
allocates in addition to weights and AdamW's averages: activations and gradients. `published` is models_mae.py rewritten
(published.py), in fp32 on a CPU and in fp16 on a GPU, with its AdamW, which is not fused. MAE is also measured with a ViT with
rotary positions, SwiGLU and RMSNorm (mae_today), and with Hiera at its own ratio of 0.6 (mae_hiera).
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.measure import RESULTS, interleaved, machine, peak_bytes, save, spread, table
from benchmarks.train.methods import METHODS, Setting, Way, ours
from benchmarks.train.peers import DTYPES, peers
from mmm.train.config import TrainConfig
from mmm.train.distributed.setup import start

SIDE = 4096  # of the square matrices whose product is the limit
GROWTH: dict[str, list[tuple[str, Setting]]] = {
    "image size": [("mae", Setting(image=side, batch=4)) for side in (112, 224, 336, 448)],
    "clip length": [("videomae", Setting(frames=frames, clips=1)) for frames in (4, 8, 16, 32)],
    "model": [("mae", Setting(size=size, batch=4)) for size in ("tiny", "small", "base", "large")],
}


def limits(precisions: set[str], device: torch.device) -> dict[str, Any]:
    """Returns steps that consist of one large matrix product, by name."""
    steps = {}
    for precision in sorted(precisions):
        matrix = torch.randn(SIDE, SIDE, device=device).to(DTYPES[precision] or torch.float32)
        steps[f"limit, {precision}"] = partial(torch.mm, matrix, matrix)
    return steps


def measure(ways: Sequence[Way], options: argparse.Namespace, device: torch.device) -> dict[str, dict[str, Any]]:
    """Returns times, memory and rates of every implementation, by name."""
    products = limits({way.precision for way in ways}, device)
    steps = {way.name: way.step for way in ways} | products
    seconds = interleaved(steps, repeats=options.repeats, warmup=options.warmup, device=device)
    found = {}
    for way in ways:
        took, limit = seconds[way.name], 2 * SIDE**3 / min(seconds[f"limit, {way.precision}"])
        found[way.name] = spread(took) | {
            "seconds": took,
            "samples_per_second": way.samples / median(took),
            "flops": way.flops,
            "limit_flops_per_second": limit,
            "share_of_limit": way.flops / median(took) / limit,
            "step_bytes": peak_bytes(way.step, device),
            "held_bytes": way.held,
        }
    return found


def compare(options: argparse.Namespace, setting: Setting, device: torch.device) -> tuple[dict[str, Any], list[str]]:
    """Compares our implementation with others; images and clips are measured separately, to keep fewer models in memory."""
    found: dict[str, Any] = {}
    notes: list[str] = []
    for group in (("mae", "mae_today", "mae_hiera", "crossmae_75", "crossmae_25"), ("videomae",)):
        ways: list[Way] = []
        for method in (method for method in group if method in options.methods):
            mine = ours(method, setting)
            others, absent = ([], []) if options.alone else peers(method, setting, mine, device)
            ways, notes = [*ways, mine, *others], notes + absent
        found |= measure(ways, options, device) if ways else {}
        del ways
        gc.collect()
    return found, notes


def grow(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Measures our implementation at other sizes, one at a time."""
    found = {}
    for what, points in GROWTH.items():
        for method, point in points:
            point = replace(point, precision=options.precision, compile=options.compile)
            way = ours(method, point)
            (one,) = measure([way], options, device).values()
            value = {"image size": point.image, "clip length": point.frames, "model": point.size}[what]
            found[f"{what} {value}"] = one | {"samples": way.samples}
    return found


def describe(found: dict[str, Any]) -> str:
    """Formats a table. Images are compared with the published step, in its precision and in ours; clips with transformers."""
    image = [name for name in found if ", published, " in name]
    clip = [name for name in found if name.startswith("videomae, transformers")]
    rows = []
    for name, one in found.items():
        against = clip if name.startswith("videomae") else image
        times = [f"{ratio(found[base], one):.2f} x" if base in against else "" for base in (*image, *clip)]
        rows.append(
            [
                name,
                f"{1000 * one['median']:,.0f}",
                f"{1000 * one['lower_quartile']:,.0f} - {1000 * one['upper_quartile']:,.0f}",
                f"{one['samples_per_second']:,.2f}",
                *times,
                f"{one['flops'] / 1e9:,.0f}",
                f"{one['share_of_limit']:.0%}",
                f"{one['step_bytes'] / 2**20:,.0f}",
                f"{(one['step_bytes'] + one['held_bytes']) / 2**20:,.0f}",
            ]
        )
    head = ["step", "median, ms", "quartiles, ms", "samples/s", *(f"speed to {base}" for base in (*image, *clip))]
    head += ["model GFLOP", "of the limit", "step's memory, MiB", "with weights and AdamW, MiB"]
    return table(head, rows)


def ratio(base: dict[str, Any], one: dict[str, Any]) -> float:
    """Returns the median ratio of speed within a round, so that a slow round does not matter."""
    return median(theirs / mine for theirs, mine in zip(base["seconds"], one["seconds"], strict=True))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--size", default="base", help="of the encoder: small, base, large or huge")
    parser.add_argument("--image", type=int, default=224, help="side, in pixels")
    parser.add_argument("--frames", type=int, default=16, help="of a clip")
    parser.add_argument("--batch", type=int, default=16, help="images of a step")
    parser.add_argument("--clips", type=int, default=2, help="clips of a step")
    parser.add_argument("--precision", default="auto", choices=["auto", *DTYPES], help="ours and the peers'")
    parser.add_argument("--compile", action="store_true", help="ours")
    parser.add_argument("--alone", action="store_true", help="ours only")
    parser.add_argument("--grow", action="store_true", help="ours at other image sizes, clip lengths and model sizes")
    parser.add_argument("--repeats", type=int, default=7, help="rounds that are timed")
    parser.add_argument("--warmup", type=int, default=2, help="rounds before")
    parser.add_argument("--save", action="store_true", help="write the table and all numbers")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where to")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs the measurements, prints the table, and writes results on request."""
    options = parse(argv)
    setting = Setting(**{name: getattr(options, name) for name in Setting.__dataclass_fields__})
    device = start(TrainConfig(batch_size=1, learning_rate=1.0, precision=options.precision, compile=options.compile)).device
    where = machine(device)
    found, notes = (grow(options, device), []) if options.grow else compare(options, setting, device)
    lines = ["# A training step", "", *(f"- {name}: {value}" for name, value in where.items()), ""]
    if not options.grow:
        samples = f"{setting.batch} images, or {setting.clips} clips of {setting.frames} frames, a step"
        lines += [f"ViT-{setting.size} at {setting.image} pixels; {samples}.", ""]
    text = "\n".join([*lines, describe(found), "", *notes, *(__doc__ or "").split("\n\n")[2:]])
    print(text)
    numbers = {"machine": where, "setting": asdict(setting), "repeats": options.repeats, "notes": notes, "found": found}
    if options.save:
        save(options.out, "step-growth" if options.grow else "step", text, numbers)
    return numbers


if __name__ == "__main__":
    main()
