"""A calculated plan for 8, 64 and 512 GPUs: communication and computation of a step, and the data that it needs.

    python -m benchmarks.train.scaling_plan --images_per_core 995 --clips_per_core 48 [--out benchmarks/results]

Parameters and FLOPs of the recipes' own models are counted with torch's counter. Each of these is given by a flag: the peak rate of
a GPU and the share of it that a step reaches, the bandwidth of one GPU to the others of its machine of eight, the joint bandwidth
of the network cards of a machine (collectives run one ring over each card), the share of both bandwidths that is reached, and the
samples per second that one core decodes (`python -m benchmarks.data.pipeline` measures them). Data parallel training sends an fp32
gradient of P values in rings, 8 P (n - 1) / n bytes per GPU; sharded training (FSDP2 over all GPUs) gathers bf16 weights twice and
scatters an fp32 gradient, which is the same number of bytes, with 1/n of the memory. `hidden` means that the communication takes
less time than the backward pass, during which it can run. Each GPU computes its share of the recipe's batch.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import machine, table
from mmm.decoders import SelfAttentionDecoder
from mmm.encoders import VisionTransformer
from recipes import image_mae, video_mae
from tasks import pretrain

MACHINE = 8  # GPUs of one machine
STATE = 16  # bytes per parameter: fp32 weight, gradient and AdamW's two moments


@dataclass(frozen=True)
class Model:
    """Properties of a recipe's model that the plan needs.

    Attributes:
        parameters: number of all trained parameters.
        flops: FLOPs per sample, forward and backward.
        batch: samples per update.
        clips: whether samples are clips.
    """

    parameters: int
    flops: int
    batch: int
    clips: bool


def recipes() -> Iterator[tuple[str, pretrain.Config]]:
    """Returns the published settings, with their names."""
    for size in ("base", "large", "huge"):
        yield f"MAE {size}", _sized(image_mae.IMAGENET, size)
    yield "VideoMAE base", video_mae.KINETICS
    large = _sized(video_mae.KINETICS, "large")
    assert isinstance(large.decoder, SelfAttentionDecoder.Config)
    yield "VideoMAE large", replace(large, decoder=replace(large.decoder, width=512, depth=12, heads=8))


def _sized(config: pretrain.Config, size: Any) -> pretrain.Config:
    assert isinstance(config.encoder, VisionTransformer.Config)
    return replace(config, encoder=replace(config.encoder, size=size))


def count(config: pretrain.Config) -> Model:
    """Counts the parameters and FLOPs of one sample's step on the meta device, where nothing is computed."""
    with torch.device("meta"):
        model = pretrain.build_model(replace(config, seed=0))
    data = config.data.input()
    sample = torch.zeros(1, data.channels, *data.size, device="meta")
    grid = model.tokenizer.grid(sample)
    mask = model.masker(torch.zeros(1, dtype=torch.int64), grid).to("meta")
    with FlopCounterMode(display=False) as counter:
        model(sample, mask).loss.backward()
    parameters = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    return Model(parameters, counter.get_total_flops(), config.train.batch_size, len(data.size) == 3)


def reckon(model: Model, gpus: int, args: argparse.Namespace) -> dict[str, float]:
    """Returns a row: seconds of computation and communication, GiB of state, samples per second and cores that decode them."""
    samples = model.batch / gpus
    compute = samples * model.flops / (args.peak * 1e12 * args.share)
    bandwidth = (args.inside if gpus <= MACHINE else args.between) * 1e9 * args.reach
    sent = 8 * model.parameters * (gpus - 1) / gpus
    rate = model.batch / max(compute, sent / bandwidth)
    per_core = args.clips_per_core if model.clips else args.images_per_core
    return {
        "samples_per_gpu": samples,
        "compute_seconds": compute,
        "sending_seconds": sent / bandwidth,
        "sending_over_compute": sent / bandwidth / compute,
        "state_gib": STATE * model.parameters / 2**30,
        "sharded_state_gib": STATE * model.parameters / gpus / 2**30,
        "samples_per_second": rate,
        "cores_per_gpu": rate / per_core / gpus,
    }


def plan(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the rows for all models and numbers of GPUs."""
    rows: dict[str, dict[str, dict[str, float]]] = {}
    models: dict[str, dict[str, Any]] = {}
    for name, config in recipes():
        model = count(config)
        models[name] = vars(model)
        rows[name] = {str(gpus): reckon(model, gpus, args) for gpus in args.gpus}
    given = {name: value for name, value in vars(args).items() if name not in ("out", "gpus")}
    return {"machine": machine(torch.device("cpu")), "given": given, "models": models, "rows": rows}


def describe(found: dict[str, Any]) -> str:
    """Formats the table."""
    head = ["model", "GPUs", "samples a GPU", "compute, ms", "sending, ms", "hidden"]
    head += ["state, GiB", "sharded", "samples/s", "cores a GPU"]
    rows = []
    for name, numbers in found["rows"].items():
        for gpus, row in numbers.items():
            backward = row["compute_seconds"] * 2 / 3
            rows.append(
                [
                    *(name, gpus, f"{row['samples_per_gpu']:g}", f"{row['compute_seconds'] * 1e3:.0f}"),
                    *(f"{row['sending_seconds'] * 1e3:.1f}", "yes" if row["sending_seconds"] < backward else "no"),
                    *(f"{row['state_gib']:.1f}", f"{row['sharded_state_gib']:.3f}"),
                    *(f"{row['samples_per_second']:,.0f}", f"{row['cores_per_gpu']:.1f}"),
                ]
            )
    return table(head, rows)


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, nargs="+", default=[8, 64, 512])
    parser.add_argument("--peak", type=float, default=989, help="TFLOP/s of a GPU in bf16, dense (an H100 SXM's data sheet)")
    parser.add_argument("--share", type=float, default=0.5, help="share of it that a step reaches")
    parser.add_argument("--inside", type=float, default=450, help="GB/s between GPUs of one machine (NVLink 4)")
    parser.add_argument("--between", type=float, default=400, help="GB/s of a machine to others (eight cards of 400 Gbit/s)")
    parser.add_argument("--reach", type=float, default=0.7, help="share of a bandwidth that collectives reach")
    parser.add_argument("--images_per_core", type=float, required=True, help="decoded and cropped a second")
    parser.add_argument("--clips_per_core", type=float, required=True, help="decoded and cropped a second")
    parser.add_argument("--out", type=Path, help="a folder for the dated table and JSON")
    args = parser.parse_args()
    found = plan(args)
    text = describe(found)
    print(text)
    if args.out is not None:
        name = args.out / f"{found['machine']['date']}-scaling_plan"
        name.with_suffix(".json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        name.with_suffix(".md").write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
