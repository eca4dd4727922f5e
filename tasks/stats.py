"""Measure the sizes, mean and standard deviation of a data set, and propose a recipe and flags for it.

mmm stats my_images
mmm stats /data/kinetics --samples 500
mmm stats my_images --out stats.json
"""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass, replace
from typing import Any

from mmm.core.checks import CheckedConfig, Count, Positive
from mmm.data import ClipsConfig, ImagesConfig, open_data
from mmm.data.datasets.detect import MediumName, describe_source, with_split
from mmm.data.loading.statistics import Statistics, measure
from mmm.data.loading.worker_pool import cores
from mmm.system.files import write_json

POSITIONAL = "source"

FEW = 20_000  # with fewer inputs, the proposed length of a run is in updates, and not in passes over the data
# limit of the shorter side of inputs, then sizes of a sample and of a token in pixels; the last row is for all larger inputs
SIZES = ((48, 32, 4), (96, 64, 8), (192, 96, 8), (10**9, 128, 16))
CLIP_SIZES = ((96, 32, 8), (10**9, 64, 8))
LARGE_SIZE = (224, 16)  # sizes for many inputs
LEAST_STD = 0.001  # smallest standard deviation that is proposed, for images of one colour
MAX_BAD = ImagesConfig.max_bad  # largest share of unreadable inputs with which a training goes on
SAMPLE, FRAMES = 128, 4  # pixels of a side, and frames of a clip, for computing mean and standard deviation


@dataclass(frozen=True, kw_only=True)
class Config(CheckedConfig):
    """Measure a data set."""

    source: str | None = None
    """The data to measure, in the form of data.source of a recipe."""

    root: str | None = None
    """Folder from which relative paths in a list file start. None: the list's own folder."""

    list_columns: tuple[str, ...] = ()
    """Meaning of the columns of a list file, in the form of data.list_columns of a recipe."""

    medium: MediumName | None = None
    """Type of the inputs. None: determined from the files; folders of images are read as images."""

    column: str | None = None
    """Column of videos or images in a table. None: found by type."""

    split: str | None = None
    """Split to measure. None: train, or the only split."""

    channels: Positive = 3
    """Number of channels of a sample, as in data.channels of a recipe."""

    samples: Positive = 2000
    """Largest number of inputs to read, chosen at random."""

    workers: Count | None = None
    """Worker processes. None: one for each core."""

    out: str | None = None
    """File for the result, as JSON. None: no file."""


def run(config: Config) -> dict[str, Any]:
    """Measures one split, prints the result and returns it."""
    options: dict[str, Any] = {"channels": config.channels, "holdout": 0.0, "image_size": SAMPLE}
    options |= {"list_columns": config.list_columns, "mean": (0.0,) * config.channels, "std": (1.0,) * config.channels}
    data = describe_source(config.source, options, medium=config.medium, root=config.root, column=config.column)
    if isinstance(data, ClipsConfig):
        data = replace(data, frames=FRAMES, eval_clips=1, eval_crops=1)
    data = with_split(data, config.split, usual="train")
    samples = open_data(data, "train")
    noun = data.medium.noun
    found = measure(samples, count=config.samples, workers=config.workers)
    classes = None if samples.classes is None else len(samples.classes)
    command = propose(found, noun, replace(config, split=data.split))
    print(format_statistics(found, noun, f"{config.source}, {samples.where}", classes))
    print(f"a recipe for them:\n  {command}")
    result = {"source": config.source, "medium": noun, "classes": classes, **asdict(found), "proposal": command}
    if config.out is not None:
        write_json(config.out, result)
        print(f"result: {config.out}")
    return result


def propose(found: Statistics, noun: str, config: Config) -> str:
    """Returns the command of a recipe with sizes, channels, mean and standard deviation that fit the data."""
    images, few = noun == "images", found.inputs < FEW
    side = min(found.facts["height"][1], found.facts["width"][1])
    flags: list[str] = [] if config.root is None else ["--data.root", config.root]
    flags += ["--data.list_columns", *config.list_columns] if config.list_columns else []
    flags += [] if config.split in (None, "train") else ["--data.split", config.split]
    flags += [] if config.column is None else [f"--data.{'image' if images else 'video'}_column", config.column]
    if few:
        size, token = next((size, token) for limit, size, token in (SIZES if images else CLIP_SIZES) if side < limit)
        flags += ["--preset", "small", "--data.image_size", str(size), "--tokenizer.size", str(token)]
    else:
        flags += ["--data.image_size", str(LARGE_SIZE[0]), "--tokenizer.size", str(LARGE_SIZE[1])]
    channels = 1 if found.grey else config.channels
    if channels != 3:
        flags += ["--data.channels", str(channels)]
    deviations = [max(value, LEAST_STD) for value in found.std]
    for name, values in (("mean", found.mean), ("std", deviations)):
        flags += [f"--data.{name}", *(f"{value:.3f}" for value in values[:channels])]
    flags += ["--data.workers", str(cores())]
    return shlex.join(["mmm", "pretrain", "image_mae" if images else "video_mae", "--data.source", str(config.source), *flags])


def format_statistics(found: Statistics, noun: str, where: str, classes: int | None) -> str:
    """Returns the table of a data set's statistics."""
    number = "" if classes is None else f" of {classes} classes"
    lines = [f"{where}: {found.inputs:,} {noun}{number}; {found.read:,} were read"]
    if found.unreadable:
        name, reason = next(iter(found.unreadable.items()))
        lines.append(f"  {len(found.unreadable)} cannot be read, for instance {name}: {reason} (mmm scan names all)")
        if len(found.unreadable) > MAX_BAD * (found.read + len(found.unreadable)):
            lines.append(f"  a training stops at more than data.max_bad {MAX_BAD}: repair them, or raise data.max_bad")
    for name, (least, median, largest) in found.facts.items():
        lines.append(f"  {name:<8}least {least:,.6g}, median {median:,.6g}, largest {largest:,.6g}")
    lines += [
        f"  {name:<8}{' '.join(f'{value:.3f}' for value in values)}" for name, values in (("mean", found.mean), ("std", found.std))
    ]
    if found.grey and len(found.mean) > 1:
        lines.append("  all are grey: their channels are equal")
    return "\n".join(lines)
