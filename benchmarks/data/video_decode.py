"""The video part of `benchmarks.data.pipeline`: clips per second of each backend on one core, for decoding and for cropping.

The access pattern is VideoMAE's: open a file, read 16 frames of stride 4 from a random start, cut one multi-scale crop of 224
pixels. Times are CPU seconds of all threads of the process; backends alternate. `decord (VideoMAE)` is decord as VideoMAE calls
it, with our crop. The others do the work of a worker (`train_views`); `decord` also lists the packets, and verified the files
before. Four crops per decode means data.repeats 4. `av, device` is the work of a worker with data.resize device; it is compared
with decord's decoding alone, which assumes that decord's worker does nothing else. Growth is that of memory and of open files over
many clips.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import resource
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mmm.core.rng import sample_keys
from mmm.data import ClipsConfig, Images, open_data
from mmm.data.datasets.clip_sampling import random_frames
from mmm.data.datasets.clips import Clips
from mmm.data.decode.image import Pixels
from mmm.data.decode.video import OpenVideo
from mmm.data.decode.video.encode import EncodeConfig, write_video
from mmm.data.loading.worker_pool import load
from mmm.data.transforms.clip_crop import cut, multi_scale_boxes, resize_into
from mmm.data.transforms.crop import normalise

CONFIG = ClipsConfig(workers=0, holdout=0.0)
# name: height, width, group, fast_decode
VIDEOS = {
    "340x256 g12": (256, 340, 12, False),
    "340x256 g12 fastdecode": (256, 340, 12, True),
    "340x256 g250": (256, 340, 250, False),
    "640x480 g12": (480, 640, 12, False),
    "1280x720 g12": (720, 1280, 12, False),
}
NO_CROP = 0  # a key that means no crop
DEVICE = "av, device"  # resizes on the device
Reader = Callable[[int, Tensor], None]  # reads a video by its number, and cuts a crop for each key
TIMES = ("times_decord", "times_decord_of_four", "times_one_crop")


def make_frames(height: int, width: int, frames: int, seed: int) -> Iterator[Pixels]:
    """Yields frames of a slow movement over photographs, with simulated sensor noise."""
    from skimage import data

    generator = np.random.default_rng(seed)
    names = ("astronaut", "coffee", "chelsea", "rocket")
    views = [torch.from_numpy(getattr(data, name)()).permute(2, 0, 1)[None] for name in names]
    size = (height + 160, width + 160)
    scene = torch.nn.functional.interpolate(views[seed % len(views)], size, mode="bilinear")[0].permute(1, 2, 0).numpy()
    for i in range(frames):
        top, left = int(80 + 78 * np.sin(i / 37 + seed)), int(80 + 78 * np.cos(i / 29))
        view = scene[top : top + height, left : left + width].astype(np.int16)
        yield (view + generator.normal(0, 2, view.shape).astype(np.int16)).clip(0, 255).astype(np.uint8)


def render(folder: Path, kinds: Iterable[str], frames: int, files: int) -> dict[str, Path]:
    """Writes the videos, H.264 of quality 23, into one folder for each kind."""
    found: dict[str, Path] = {}
    for kind in kinds:
        height, width, group, fast = VIDEOS[kind]
        config = EncodeConfig(short_side=None, group=group, fast_decode=fast)
        found[kind] = folder / kind
        found[kind].mkdir()
        for seed in range(files):
            write_video(found[kind] / f"{seed}.mp4", make_frames(height, width, frames, seed), fps=30, config=config)
    return found


def ours(clips: Clips) -> Reader:
    """Returns a function that does a worker's work; without keys it only decodes."""

    def read(number: int, keys: Tensor) -> None:
        if (len(keys) > 1 or keys[0] != NO_CROP) and clips.defers_resize:
            cuts, failed = clips.deferred_train_views(torch.tensor([number]), keys)
            assert not failed, failed
            cuts.pack()
            return
        if len(keys) > 1 or keys[0] != NO_CROP:
            _, failed = clips.train_views(torch.tensor([number]), keys)
            assert not failed, failed
            return
        with OpenVideo(clips.raw(number), clips.config.backend) as video:
            for _ in video.blocks(random_frames(video.times, keys, CONFIG).ravel()):
                pass

    return read


def decord_as_videomae(clips: Clips) -> Reader:
    """Returns a function that reads clips as VideoMAE's loader does."""
    import decord

    def read(number: int, keys: Tensor) -> None:
        reader = decord.VideoReader(str(clips.raw(number)), num_threads=1)
        (frames,) = random_frames(np.arange(len(reader)) / 30, keys[:1], CONFIG)
        clip = torch.from_numpy(reader.get_batch(frames).asnumpy())
        if len(keys) > 1 or keys[0] != NO_CROP:
            crop(clip, keys)

    return read


def open_readers(source: Path) -> dict[str, Reader]:
    """Opens a folder with each installed backend, and returns the readers by name."""

    def opened(backend: str, **options: Any) -> Clips:
        clips = open_data(replace(CONFIG, source=str(source), backend=backend, **options), "train")
        assert isinstance(clips, Clips)
        return clips

    found = {"av": ours(opened("av")), DEVICE: ours(opened("av", resize="device"))}
    if importlib.util.find_spec("decord") is not None:
        found |= {"decord (VideoMAE)": decord_as_videomae(opened("av")), "decord": ours(opened("decord"))}
    if importlib.util.find_spec("torchcodec") is not None:
        found["torchcodec"] = ours(opened("torchcodec"))
    return found


def crop(clip: Tensor, keys: Tensor) -> None:
    """Cuts a multi-scale crop for each key, into uint8 (R, T, h, w, C)."""
    height, width = (torch.full_like(keys, side) for side in clip.shape[1:3])
    boxes = multi_scale_boxes(keys, height, width, CONFIG.frame_size, CONFIG.crop_sides).tolist()
    for views, box in zip(torch.empty(len(keys), *CONFIG.size, 3, dtype=torch.uint8), boxes, strict=True):
        resize_into(views, cut(clip, box))


def read_once(reader: Reader, number: int, turn: int) -> dict[str, float]:
    """Returns CPU milliseconds of one clip, including opening the file: decoding alone, with one crop, with four crops."""
    keys = sample_keys(0, turn, torch.tensor([[number]]), repeat=torch.arange(4)).flatten()
    costs = {}
    for name, drawn in (("decode", torch.tensor([NO_CROP])), ("one", keys[:1]), ("four", keys)):
        start = time.process_time()
        reader(number, drawn)
        costs[name] = 1e3 * (time.process_time() - start)
    return costs


def speeds(source: Path, clips: int) -> dict[str, dict[str, float]]:
    """Returns median milliseconds and clips per second of each backend, which read the same clips in alternation."""
    readers = open_readers(source)
    numbers = readable(source)
    rounds = {name: list[dict[str, float]]() for name in readers}
    for reader in readers.values():
        for number in numbers:
            read_once(reader, number, 0)  # warm-up: the first import, our verification for decord, the page cache
    for turn in range(clips):
        for name, reader in readers.items():
            rounds[name].append(read_once(reader, numbers[turn % len(numbers)], turn + 1))
    found = {}
    for name, seen in rounds.items():
        cost = {part: median(row[part] for row in seen) for part in seen[0]}
        found[name] = cost | {
            "crop": median(row["one"] - row["decode"] for row in seen),
            "clips_per_second": 1e3 / cost["one"],
            "clips_per_second_of_four": 4e3 / cost["four"],
            "times_one_crop": median(4 * row["one"] / row["four"] for row in seen),
        }
    for name, seen in rounds.items():
        for base in (base for base in rounds if base == "decord (VideoMAE)"):
            pairs = list(zip(rounds[base], seen, strict=True))
            part = "decode" if name == DEVICE else "one"  # with resize on the device, workers only decode
            found[name]["times_decord"] = median(theirs[part] / mine["one"] for theirs, mine in pairs)
            found[name]["times_decord_of_four"] = median(4 * theirs[part] / mine["four"] for theirs, mine in pairs)
    return found


def readable(source: Path) -> list[int]:
    """Returns the indices of the readable videos of a folder."""
    clips = open_data(replace(CONFIG, source=str(source)), "train")
    assert isinstance(clips, Clips)
    return [n for n in range(len(clips)) if not clips.train_views(torch.tensor([n]), sample_keys(0, 0, torch.tensor([n])))[1]]


class ConstantBatches(Dataset[Any]):
    """A dataset whose batches are ready, so that reading them takes no time."""

    def __init__(self, batch: Tensor) -> None:
        self.batch = batch

    def __getitems__(self, request: Any) -> Tensor:
        return self.batch.clone()


def device_milliseconds(samples: Images | Clips, device: torch.device, rounds: int = 12) -> float:
    """Returns the wall time per sample of the work that data.resize device leaves to the device, including the transfer."""
    costs = []
    for turn in range(rounds):
        cuts, failed = samples.deferred_train_views(torch.tensor([turn % len(samples)]), sample_keys(0, turn, torch.tensor([0])))
        assert not failed, failed
        packed = cuts.pack()
        start = time.perf_counter()
        packed.resize(device)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        costs.append(1e3 * (time.perf_counter() - start))
    return median(costs)


def transfer_milliseconds(size: tuple[int, ...], device: torch.device, samples: int = 8, batches: int = 12) -> dict[str, float]:
    """Returns milliseconds per uint8 sample of this size: from a worker to this process (wall time), and from there to the device,
    including normalisation."""
    batch = torch.zeros(samples, *size, 3, dtype=torch.uint8).movedim(-1, 1)  # (B, C, ...)
    ends, costs = [], []
    for received in load(ConstantBatches(batch), lambda: iter(range(batches)), 1):
        start = time.perf_counter()
        normalise(received.to(device), CONFIG.mean, CONFIG.std)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        ends.append(time.perf_counter())
        costs.append(ends[-1] - start)
    gaps = np.diff(ends) - np.array(costs[1:])
    return {"worker_to_process": 1e3 * float(np.median(gaps)) / samples, "device_and_normalise": 1e3 * median(costs) / samples}


def growth(source: Path, clips: int) -> dict[str, float]:
    """Returns the memory (KiB) and open files that remain after reading many clips; the first fifth of them is a warm-up."""
    samples = open_data(replace(CONFIG, source=str(source)), "train")
    assert isinstance(samples, Clips)
    before = (0.0, 0)
    for number in range(clips):
        samples.train_views(torch.tensor([number % len(samples)]), sample_keys(0, number, 0))
        if number == clips // 5:
            before = _memory_and_files()
    after = _memory_and_files()
    return {
        "clips": clips - clips // 5,
        "memory_kib": after[0] - before[0],
        "files": after[1] - before[1],
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def _memory_and_files() -> tuple[float, int]:
    """Returns resident memory in KiB, and the number of open files."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1024, len(list(Path("/proc/self/fd").iterdir()))


def rows(found: dict[str, dict[str, dict[str, float]]]) -> list[list[str]]:
    """Returns the rows of the table."""
    lines = []
    for kind, by_backend in found.items():
        for name, cost in by_backend.items():
            times = [
                f"{cost[key]:.2f}" if key in cost else "" for key in ("times_decord", "times_decord_of_four", "times_one_crop")
            ]
            parts = [f"{cost['decode']:.1f}", f"{cost['crop']:.1f}"]
            rates = [f"{cost['clips_per_second']:.1f}", f"{cost['clips_per_second_of_four']:.1f}"]
            lines.append([f"{kind}: {name}", *parts, *rates, *times])
    return lines


HEAD = [
    "videos and backend",
    "open, decode (ms)",
    "crop (ms)",
    "clips/s",
    "four crops a decode",
    "times decord",
    "four, times decord",
    "four, times its own one",
]
