"""Compares the compiled resize with torch's kernel: the results must be bit-identical; prints the time of each.

    OMP_NUM_THREADS=1 taskset -c 0 python -m benchmarks.data.resize
    python -m benchmarks.data.resize --rounds 1        quick check that it runs
    python -m benchmarks.data.resize --save            also writes a dated table and all numbers into benchmarks/results/

Resizes 16 frames to 224 x 224 pixels, in blocks as a worker has them (mmm/data/decode/video/reader.py), for the sides of VideoMAE's
multi-scale crop. Times are wall times, as medians over rounds in which the two alternate.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.measure import RESULTS, machine, save, table
from mmm.data import ClipsConfig
from mmm.data.decode.video.reader import BLOCK
from mmm.data.transforms.resize import compiled, resize_into

CONFIG = ClipsConfig()
SIZES = {"340x256": (256, 340), "640x480": (480, 640), "1280x720": (720, 1280)}
KERNELS = ("bilinear", "bicubic")


def measure(height: int, width: int, share: float, kernel: str, rounds: int) -> dict[str, float]:
    """Returns the milliseconds of both for 16 frames and a crop of a given share of the short side, slightly narrower than high."""
    count = max(1, min(CONFIG.frames, BLOCK // (height * width * 3)))
    frames = torch.randint(0, 256, (count, height, width, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    side = int(height * share)
    part = frames[:, :, :side, 8 : 8 + int(0.95 * side)]
    ours = torch.empty(count, *CONFIG.frame_size, 3, dtype=torch.uint8).permute(0, 3, 1, 2)

    def by_torch() -> Tensor:
        return F.interpolate(part, CONFIG.frame_size, mode=kernel, antialias=True)

    ways = {"compiled": lambda: resize_into(ours, part, kernel), "torch": by_torch}  # type: ignore[arg-type]
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    assert torch.equal(ours, by_torch())
    return {name: 1e3 * CONFIG.frames / count * median(took[1:]) for name, took in seconds.items()}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs the measurements, prints the table, and writes results on request."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--save", action="store_true", help="write the table and all numbers")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where to")
    options = parser.parse_args(argv)
    if compiled() is None:
        parser.error("there is no compiled resize here: install mmm where a C compiler is, on x86 with AVX-512 VBMI and VNNI")
    torch.set_num_threads(1)
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, (height, width) in SIZES.items():
        for share in CONFIG.crop_sides:
            line = f"{name}, side {int(height * share)}"
            found[line] = {kernel: measure(height, width, share, kernel, options.rounds) for kernel in KERNELS}
    head = [
        "picture and crop",
        *(f"{kernel}: {way}, ms" for kernel in KERNELS for way in ("compiled", "torch")),
        "torch / compiled",
    ]
    rows = []
    for line, by_kernel in found.items():
        times = [f"{by_kernel[kernel][way]:.2f}" for kernel in KERNELS for way in ("compiled", "torch")]
        ratios = " and ".join(f"{one['torch'] / one['compiled']:.1f}" for one in by_kernel.values())
        rows.append([line, *times, ratios])
    where = machine(torch.device("cpu"))
    lines = ["# Resizing", "", *(f"- {name}: {value}" for name, value in where.items()), "", table(head, rows), ""]
    text = "\n".join([*lines, *(__doc__ or "").split("\n\n")[2:]])
    print(text)
    if options.save:
        save(options.out, "resize", text, {"machine": where, "found": found})
    return found


if __name__ == "__main__":
    main()
