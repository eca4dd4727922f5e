"""Cost of CrossMAE compared with MAE: step time and peak memory in one process, on the same blocks at the same precision.

    OMP_NUM_THREADS=2 python -m benchmarks.train.crossmae_cost                                        on a CPU, about half an hour
    python -m benchmarks.train.crossmae_cost --device cuda --batch 256 --precision fp32 bf16 --compile
    python -m benchmarks.train.crossmae_cost --size tiny --image 64 --batch 2 --repeats 2 --out /tmp  quick check that it runs

A step is forward, backward and AdamW on one batch that is already on the device. Variants share weights where possible, and run in
alternation, so that a slow phase of the machine affects all of them. Writes a table (.md) and all numbers (.json).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import RESULTS, interleaved, machine, peak_bytes, spread, table
from benchmarks.train.crossmae_variants import DTYPES, Variant, fusion_alone, variants

# Fu et al., TMLR 2025: two A100 of 80 GB, ViT-B; minutes per epoch of ImageNet, MB per GPU
MINUTES = {"MAE": 9.35, "CrossMAE 75 %": 8.41, "CrossMAE 25 %": 6.32}
MEGABYTES = {"MAE": 68386, "CrossMAE 75 %": 57987, "CrossMAE 25 %": 36805}
NOTES = """A step is forward, backward and AdamW. Published: Fu et al., TMLR 2025, two A100, 9.35 (MAE), 8.41 and 6.32 minutes an
epoch; 68, 58 and 37 GB a GPU. Speed and the share of fusion are medians over rounds of the ratio within a round. A step's memory is
what torch allocates above the weights and AdamW's averages: activations and gradients.
"""


def make_step(variant: Variant, optimizer: torch.optim.Optimizer, x: Tensor, dtype: torch.dtype | None) -> Callable[[], None]:
    """Makes a step of forward, backward and update."""

    def step() -> None:
        with torch.autocast(x.device.type, dtype, enabled=dtype is not None):
            loss = variant.loss(x)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure(options: argparse.Namespace, precision: str) -> dict[str, dict[str, Any]]:
    """Returns times and memory of every variant, by name."""
    torch.compiler.reset()  # all variants share one forward function, and torch limits the compilations per function
    device = torch.device(options.device)
    x = torch.randn(options.batch, 3, options.image, options.image, generator=torch.Generator().manual_seed(0)).to(device)
    every = variants(options, x)
    owners = {id(variant.model): variant.model for variant in every}
    optimizers = {key: torch.optim.AdamW([w for w in m.parameters() if w.requires_grad], fused=True) for key, m in owners.items()}
    steps = {v.name: make_step(v, optimizers[id(v.model)], x, DTYPES[precision]) for v in every}
    seconds = interleaved(steps, repeats=options.repeats, warmup=options.warmup, device=device)
    first = every[1].name
    found: dict[str, dict[str, Any]] = {}
    for variant in every:
        name, weights = variant.name, sum(w.numel() * w.element_size() for w in variant.model.parameters())
        # a ratio within each round, so that a slow round does not matter
        against = [theirs / mine for theirs, mine in zip(seconds[first], seconds[name], strict=True)]
        found[name] = {
            "seconds": seconds[name],
            **spread(seconds[name]),
            "faster_than_mae": median(against),
            "step_bytes": peak_bytes(steps[name], device),
            "held_bytes": 3 * weights,  # the weights and AdamW's two averages
        }
    return found


def shares_of_fusion(found: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Returns the share of fusion in a step: the time that a step without fusion saves, as a median over rounds."""
    shares = {}
    for name in (name for name in found if name.startswith("CrossMAE") and "no fusion" not in name):
        without = found[f"{name.split(',')[0]}, no fusion"]["seconds"]
        shares[name] = median(1 - plain / whole for plain, whole in zip(without, found[name]["seconds"], strict=True))
    return shares


def describe(found: dict[str, dict[str, Any]], alone: dict[str, float], precision: str, options: argparse.Namespace) -> str:
    """Formats the table of one precision."""
    base, shares = found["MAE"], shares_of_fusion(found)
    rows = []
    for name, one in found.items():
        memory, whole = one["step_bytes"] / 2**20, (one["step_bytes"] + one["held_bytes"]) / 2**20
        relative = one["step_bytes"] / base["step_bytes"]
        times = f"{MINUTES['MAE'] / MINUTES[name]:.2f} x" if name in MINUTES else ""
        published = f"{MEGABYTES[name] / MEGABYTES['MAE']:.2f}" if name in MEGABYTES else ""
        rows.append(
            [
                name,
                f"{one['median'] * 1000:,.1f}",
                f"{one['lower_quartile'] * 1000:,.1f} - {one['upper_quartile'] * 1000:,.1f}",
                f"{one['faster_than_mae']:.2f} x",
                times,
                f"{shares[name]:.1%}" if name in shares else "",
                f"{memory:,.0f}",
                f"{relative:.2f}",
                published,
                f"{whole:,.0f}",
            ]
        )
    head = ["step", "median, ms", "quartiles, ms", "speed to MAE", "published", "of it fusion"]
    head += ["step's memory, MiB", "to MAE", "published", "with weights and AdamW, MiB"]
    setting = f"ViT-{options.size} at {options.image} pixels, batch {options.batch}, {options.repeats} rounds"
    step = found["CrossMAE 25 %"]["median"]
    parts = [f"{way} {1000 * alone[way]:,.1f} ms, {(alone[way] - alone['norm']) / step:.1%}" for way in ("ours", "published")]
    by_itself = f"Fusion by itself, eager, and without one norm as a part of the step with 25 % predicted: {'; '.join(parts)}."
    return f"## {precision}{', compiled' if options.compile else ''}\n\n{setting}. {by_itself}\n\n{table(head, rows)}\n"


def main() -> None:
    """Runs the measurements, prints the table and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", nargs="+", choices=DTYPES, default=["fp32", "bf16"])
    parser.add_argument("--size", default="base", help="of the encoder; the decoder is the published one")
    parser.add_argument("--image", type=int, default=224, help="side, in pixels")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=9, help="rounds that are timed")
    parser.add_argument("--warmup", type=int, default=2, help="rounds before")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--name", default="crossmae_cost", help="of the files")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    where = machine(torch.device(options.device))
    found = {precision: measure(options, precision) for precision in options.precision}
    alone = {precision: fusion_alone(options, precision) for precision in options.precision}
    shares = {precision: shares_of_fusion(one) for precision, one in found.items()}
    about = "\n".join(f"- {name}: {value}" for name, value in where.items())
    text = f"# What CrossMAE costs beside MAE\n\n{about}\n\n"
    text += "\n".join(describe(one, alone[precision], precision, options) for precision, one in found.items())
    text += f"\n{NOTES}"
    print(text)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{options.name}.md").write_text(text, encoding="utf-8")
    numbers = {"machine": where, "options": vars(options) | {"out": None}, "found": found, "share_of_fusion": shares}
    numbers["fusion_alone_seconds"] = alone
    (options.out / f"{options.name}.json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
