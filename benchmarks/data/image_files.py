"""The image part of `benchmarks.data.pipeline`: from JPEGs to samples, ours compared with the published pipeline, which is MAE's.

Published: the worker decodes with Pillow, and torchvision cuts a random resized crop (bicubic), flips, converts to float and
normalises. Ours: the worker runs `train_views`, which returns uint8 and decodes at 1/2, 1/4 or 1/8 where this enlarges no crop;
flip and normalisation follow on the device (`transfer`). `device`: the work of a worker with data.resize device, where the device
also resizes. The files are parts of scikit-image's photographs with simulated sensor noise.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmm.core.rng import sample_keys
from mmm.data import ImagesConfig, open_data
from mmm.data.datasets.images import Images
from mmm.data.decode.image import decode_image
from mmm.data.transforms.crop import crop_boxes, decode_hint, resized_crop

SIZES = {"500x375": (375, 500), "1600x1200": (1200, 1600)}  # ImageNet's usual file, and a photograph: height, width
QUALITY = 90
NAMES = ("astronaut", "coffee", "chelsea", "rocket")
CONFIG = ImagesConfig(workers=0, holdout=0.0)


def make_files(folder: Path, count: int, height: int, width: int) -> None:
    """Writes JPEGs into two subfolders."""
    from skimage import data

    generator = np.random.default_rng(0)
    for number in range(count):
        view = Image.fromarray(getattr(data, NAMES[number % len(NAMES)])())
        share = generator.uniform(0.6, 1.0)
        sides = [int(side * share) for side in view.size]
        left, top = (int(generator.integers(0, whole - side + 1)) for whole, side in zip(view.size, sides, strict=True))
        part = view.resize((width, height), Image.Resampling.BICUBIC, box=(left, top, left + sides[0], top + sides[1]))
        pixels = np.asarray(part).astype(np.int16) + generator.normal(0, 3, (height, width, 1)).astype(np.int16)
        path = folder / str(number % 2) / f"{number:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=QUALITY)


def published(size: tuple[int, int]) -> Callable[[Path], Tensor]:
    """Returns a function that reads a path to a float sample, (C, h, w)."""
    from torchvision import transforms

    change = transforms.Compose(
        [
            transforms.RandomResizedCrop(size, CONFIG.crop_scale, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(CONFIG.mean, CONFIG.std),
        ]
    )

    def load(path: Path) -> Tensor:
        with Image.open(path) as image:
            sample: Tensor = change(image.convert("RGB"))
        return sample

    return load


def speeds(folder: Path, rounds: int) -> dict[str, Any]:
    """Returns CPU milliseconds per sample by implementation and stage: medians over rounds in which all implementations read the
    same files, one after another."""
    images = open_data(ImagesConfig(source=str(folder), workers=0, holdout=0.0), "train")
    assert isinstance(images, Images)
    paths = sorted(folder.rglob("*.jpg"))
    index, theirs = torch.arange(len(images)), published(CONFIG.frame_size)

    def ours(repeats: int, turn: int) -> None:
        keys = sample_keys(0, turn, index[:, None], repeat=torch.arange(repeats)).flatten()
        _, failed = images.train_views(index, keys)
        assert not failed

    later = open_data(replace(CONFIG, source=str(folder), resize="device"), "train")
    assert isinstance(later, Images)

    def cuts(repeats: int, turn: int) -> None:
        keys = sample_keys(0, turn, index[:, None], repeat=torch.arange(repeats)).flatten()
        found, failed = later.deferred_train_views(index, keys)
        assert not failed
        found.pack()

    def each(reads: Callable[[Any], Any], sources: Sequence[Any] = paths) -> None:
        for source in sources:
            reads(source)

    hint = decode_hint(CONFIG.size, CONFIG.crop_scale, CONFIG.crop_ratio)
    encoded = [path.read_bytes() for path in paths]
    ways: dict[str, Callable[[int], None]] = {
        "published": lambda turn: each(theirs),
        "ours": lambda turn: ours(1, turn),
        "ours, four crops a decode": lambda turn: ours(4, turn),
        "device": lambda turn: cuts(1, turn),
        "device, four crops a decode": lambda turn: cuts(4, turn),
        "read": lambda turn: each(Path.read_bytes),
        "decode": lambda turn: each(lambda data: decode_image(data, 3, hint), encoded),
        "published: decode": lambda turn: each(_pillow),
    }
    seen: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            start = time.process_time()
            way(turn)
            if turn:  # the first round is a warm-up
                seen[name].append(1e3 * (time.process_time() - start) / len(paths))
    cost = {name: median(values) for name, values in seen.items()}

    def times(way: str, crops: int = 1) -> float:
        return median(crops * theirs / mine for theirs, mine in zip(seen["published"], seen[way], strict=True))

    return {
        "milliseconds": cost | {"crop": cost["ours"] - cost["read"] - cost["decode"]},
        "published_per_second": 1e3 / cost["published"],
        "ours_per_second": 1e3 / cost["ours"],
        "four_per_second": 4e3 / cost["ours, four crops a decode"],
        "device_per_second": 1e3 / cost["device"],
        "times_published": times("ours"),
        "times_published_four": times("ours, four crops a decode", 4),
        "times_published_device": times("device"),
        "times_published_device_four": times("device, four crops a decode", 4),
        "kib_a_file": sum(map(len, encoded)) / len(encoded) / 1024,
        "difference": difference(images, min(len(images), 32)),
    }


def _pillow(path: Path) -> None:
    with Image.open(path) as image:
        image.convert("RGB").load()


def difference(images: Images, count: int) -> dict[str, float]:
    """Returns the differences between our samples and those of Pillow and torchvision for the same boxes, in levels of 255."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import pil_to_tensor
    from torchvision.transforms.functional import resized_crop as by_pillow

    hint, off = decode_hint(CONFIG.size, CONFIG.crop_scale, CONFIG.crop_ratio), []
    scaled = 1.0
    for number in range(count):
        key = sample_keys(0, 0, torch.tensor([number]))
        mine = images.read(number, hint)
        whole = Image.fromarray(images.read(number))
        scaled = whole.height / mine.shape[0]
        heights, widths = (torch.tensor([side]) for side in mine.shape[:2])
        (box,) = crop_boxes(key, heights, widths, CONFIG.crop_scale, CONFIG.crop_ratio).tolist()
        sample = torch.empty(3, *CONFIG.size, dtype=torch.uint8)
        resized_crop(mine, box, sample)
        places = [round(side * scaled) for side in box]
        truth = by_pillow(whole, *places, list(CONFIG.size), InterpolationMode.BICUBIC)
        off.append(sample.double() - pil_to_tensor(truth).double())
    every = torch.stack(off)
    return {"mean": every.mean().item(), "mean_absolute": every.abs().mean().item(), "decoded_at_one_in": scaled}


def rows(found: dict[str, dict[str, Any]]) -> list[list[str]]:
    """Returns the rows of the table, without its header."""
    lines = []
    for size, one in found.items():
        cost, off = one["milliseconds"], one["difference"]
        lines.append(
            [
                f"{size}, {one['kib_a_file']:.0f} KiB",
                *(f"{cost[stage]:.2f}" for stage in ("read", "decode", "crop")),
                *(f"{one[name]:.0f}" for name in RATES),
                *(f"{one[name]:.2f}" for name in TIMES),
                f"{off['mean']:+.3f}, {off['mean_absolute']:.2f} at 1/{off['decoded_at_one_in']:.0f}",
            ]
        )
    return lines


RATES = ("published_per_second", "ours_per_second", "four_per_second", "device_per_second")
TIMES = ("times_published", "times_published_four", "times_published_device", "times_published_device_four")
HEAD = [
    "JPEGs",
    "read (ms)",
    "decode",
    "crop",
    "published, samples/s",
    "ours",
    "four crops a decode",
    "resized on the device",
    "times published",
    "four",
    "device",
    "device, four",
    "pixels, ours less theirs of 255: mean, mean absolute",
]
