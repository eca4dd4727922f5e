"""How fast clips are read, by each backend on one core: opening and decoding, cropping and resizing, and handing over, apart.

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/video_decode.py                      on films that it renders; some minutes
    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/video_decode.py --source /data/clips   on your own files
    python benchmarks/video_decode.py --clips 8 --growth 50 --films small                    does it run at all?

The pattern is VideoMAE's: open a file, take 16 frames of stride 4 from a random start, one multi-scale crop, 224 pixels. Times are
CPU seconds of the process, all threads, backends in turn. `decord (bare)` is decord as VideoMAE calls it, with our crop; `decord`
is our backend, which lists the packets too and has checked the files before. Four crops a decode is data.repeats 4. Growth is that
of memory and of open files over many clips. Writes a table (.md) and all numbers (.json).
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from measure import machine, table
from torch import Tensor
from torch.utils.data import Dataset

from mmm.data import ClipsConfig, Unreadable, open_data
from mmm.data.decode import Pixels
from mmm.data.source import RECORDINGS
from mmm.data.transforms import normalise
from mmm.data.video import Clips, OpenVideo
from mmm.data.video.crops import cut, multi_scale_boxes, resize_into
from mmm.data.video.encode import EncodeConfig, write_video
from mmm.data.video.sampling import drawn_frames
from mmm.data.workers import load
from mmm.keys import sample_keys

CONFIG = ClipsConfig(workers=0, holdout=0.0)
# name: height, width, group, fast_decode
FILMS = {
    "340x256 g12": (256, 340, 12, False),
    "340x256 g12 fastdecode": (256, 340, 12, True),
    "340x256 g250": (256, 340, 250, False),
    "640x480 g12": (480, 640, 12, False),
    "1280x720 g12": (720, 1280, 12, False),
}
Read = Callable[[Path, Tensor], Tensor]


def film(height: int, width: int, frames: int, seed: int) -> Iterator[Pixels]:
    """A slow flight over photographs, with the noise of a sensor."""
    from skimage import data

    generator = np.random.default_rng(seed)
    names = ("astronaut", "coffee", "chelsea", "rocket")
    views = [torch.from_numpy(getattr(data, name)()).permute(2, 0, 1)[None] for name in names]
    size = (height + 160, width + 160)
    ground = torch.nn.functional.interpolate(views[seed % len(views)], size, mode="bilinear")[0].permute(1, 2, 0).numpy()
    for i in range(frames):
        top, left = int(80 + 78 * np.sin(i / 37 + seed)), int(80 + 78 * np.cos(i / 29))
        view = ground[top : top + height, left : left + width].astype(np.int16)
        yield (view + generator.normal(0, 2, view.shape).astype(np.int16)).clip(0, 255).astype(np.uint8)


def render(folder: Path, kinds: Iterable[str], frames: int, files: int) -> dict[str, list[Path]]:
    """The films, H.264 of quality 23, by kind."""
    found: dict[str, list[Path]] = {}
    for kind in kinds:
        height, width, group, fast = FILMS[kind]
        config = EncodeConfig(short_side=None, group=group, fast_decode=fast)
        paths = [folder / f"{kind} {seed}.mp4" for seed in range(files)]
        for seed, path in enumerate(paths):
            write_video(path, film(height, width, frames, seed), fps=30, config=config)
        found[kind] = paths
    return found


def ours(backend: str) -> Read:
    """Opens and decodes as training does. (T, H, W, C)."""

    def read(path: Path, key: Tensor) -> Tensor:
        with OpenVideo(path, backend) as video:
            (frames,) = drawn_frames(video.times, key, CONFIG)
            return torch.from_numpy(video.read(frames))

    return read


def bare_decord(path: Path, key: Tensor) -> Tensor:
    """As VideoMAE's loader."""
    import decord

    reader = decord.VideoReader(str(path), num_threads=1)
    (frames,) = drawn_frames(np.arange(len(reader)) / 30, key, CONFIG)
    return torch.from_numpy(reader.get_batch(frames).asnumpy())


def backends() -> dict[str, Read]:
    """What is installed here."""
    found: dict[str, Read] = {"av": ours("av")}
    if importlib.util.find_spec("decord") is not None:
        found |= {"decord (bare)": bare_decord, "decord": ours("decord")}
    if importlib.util.find_spec("torchcodec") is not None:
        found["torchcodec"] = ours("torchcodec")
    return found


def crop(clip: Tensor, keys: Tensor, out: Tensor) -> None:
    """A multi-scale crop for each key, into uint8 (R, T, h, w, C)."""
    height, width = (torch.full_like(keys, side) for side in clip.shape[1:3])
    boxes = multi_scale_boxes(keys, height, width, CONFIG.frame_size, CONFIG.crop_sides).tolist()
    for views, box in zip(out, boxes, strict=True):
        resize_into(views, cut(clip, box))


def one(read: Read, path: Path, number: int) -> dict[str, float]:
    """CPU milliseconds of one clip: its decode, one crop, and four crops."""
    keys = sample_keys(0, number, torch.tensor([[0]]), repeat=torch.arange(4)).flatten()
    moments = [time.process_time()]
    clip = read(path, keys[:1])
    moments.append(time.process_time())
    for count in (1, 4):
        crop(clip, keys[:count], torch.empty(count, *CONFIG.size, 3, dtype=torch.uint8))
        moments.append(time.process_time())
    return dict(zip(("decode", "crop", "four"), (1e3 * float(step) for step in np.diff(moments)), strict=True))


def speeds(paths: list[Path], clips: int) -> dict[str, dict[str, float]]:
    """Median milliseconds and clips a second of each backend, in turn on the same clips."""
    readers, rounds = backends(), {name: list[dict[str, float]]() for name in backends()}
    for read in readers.values():
        for path in paths:
            one(read, path, 0)  # warm: the first import, our check of decord, the page cache
    for number in range(clips):
        for name, read in readers.items():
            rounds[name].append(one(read, paths[number % len(paths)], number + 1))
    found = {}
    for name, seen in rounds.items():
        cost = {part: median(row[part] for row in seen) for part in seen[0]}
        mean = {part: sum(row[part] for row in seen) / len(seen) for part in seen[0]}
        found[name] = cost | {
            "clips_per_second": 1e3 / (mean["decode"] + mean["crop"]),
            "clips_per_second_of_four": 4e3 / (mean["decode"] + mean["four"]),
        }
    return found


class Ready(Dataset[Any]):
    """A batch that costs nothing to make."""

    def __init__(self, batch: Tensor) -> None:
        self.batch = batch

    def __getitems__(self, request: Any) -> Tensor:
        return self.batch.clone()


def handing_over(device: torch.device, samples: int = 8, batches: int = 12) -> dict[str, float]:
    """Milliseconds a clip: from a worker process to this one (wall time), and to the device and normalised."""
    batch = torch.zeros(samples, *CONFIG.size, 3, dtype=torch.uint8).permute(0, 4, 1, 2, 3)
    moments, costs = [], []
    for got in load(Ready(batch), lambda: iter(range(batches)), 1):
        start = time.perf_counter()
        normalise(got.to(device), CONFIG.mean, CONFIG.std)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        moments.append(time.perf_counter())
        costs.append(moments[-1] - start)
    gaps = np.diff(moments) - np.array(costs[1:])
    return {"worker_to_process": 1e3 * float(np.median(gaps)) / samples, "device_and_normalise": 1e3 * median(costs) / samples}


def growth(paths: list[Path], clips: int) -> dict[str, float]:
    """Memory (KiB) and open files that reading many clips leaves behind, after a fifth of them as a warm-up."""
    with tempfile.TemporaryDirectory() as name:
        for number, path in enumerate(paths):
            (Path(name) / f"{number}{path.suffix}").symlink_to(path.resolve())
        samples = open_data(ClipsConfig(source=name, workers=0, holdout=0.0), "train")
        assert isinstance(samples, Clips)
        before = (0.0, 0)
        for number in range(clips):
            samples.train_views(torch.tensor([number % len(samples)]), sample_keys(0, number, 0))
            if number == clips // 5:
                before = _held()
        after = _held()
    return {
        "clips": clips - clips // 5,
        "memory_kib": after[0] - before[0],
        "files": after[1] - before[1],
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def _held() -> tuple[float, int]:
    """Resident memory in KiB, and open files."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1024, len(list(Path("/proc/self/fd").iterdir()))


def describe(found: dict[str, Any]) -> str:
    """The tables."""
    head = [
        "films and backend",
        "open, decode (ms)",
        "crop (ms)",
        "clips/s",
        "clips/s, four a decode",
        "times decord",
        "four times",
    ]
    rows = []
    for kind, by_backend in found["films"].items():
        bare = by_backend.get("decord (bare)", {}).get("clips_per_second")
        for name, cost in by_backend.items():
            single, four = cost["clips_per_second"], cost["clips_per_second_of_four"]
            times = "" if bare is None else f"{single / bare:.2f}"
            parts = [f"{cost['decode']:.1f}", f"{cost['crop']:.1f}", f"{single:.1f}", f"{four:.1f}", times, f"{four / single:.2f}"]
            rows.append([f"{kind}: {name}", *parts])
    hand, grown = found["handing_over"], found["growth"]
    return "\n".join(
        [
            f"# Reading clips, {found['machine']['date']}",
            "",
            *(f"- {name}: {value}" for name, value in found["machine"].items()),
            "",
            table(head, rows),
            "",
            f"Handing over, ms a clip: {hand['worker_to_process']:.2f} from a worker, {hand['device_and_normalise']:.2f} to the "
            f"device and normalised. After {grown['clips']} clips: {grown['memory_kib']:+.0f} KiB, {grown['files']:+d} open files.",
            "",
        ]
    )


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, help="a folder of videos; none renders films")
    parser.add_argument("--films", choices=["all", "small"], default="all", help="which are rendered")
    parser.add_argument("--clips", type=int, default=40, help="clips a backend and kind of film")
    parser.add_argument("--growth", type=int, default=2000, help="clips over which growth is measured")
    parser.add_argument("--device", default="cpu", help="where batches go")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder for the results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(options.device)
    with tempfile.TemporaryDirectory() as name:
        if options.source is not None:
            paths = [path for path in sorted(options.source.rglob("*")) if path.suffix.lower() in RECORDINGS]
            films = {"given": [path for path in paths if _readable(path)]}
        else:
            kinds = list(FILMS) if options.films == "all" else list(FILMS)[:1]
            films = render(Path(name), kinds, frames=300, files=3)  # ten seconds, as Kinetics has
        found = {
            "machine": machine(device),
            "films": {kind: speeds(paths, options.clips) for kind, paths in films.items()},
            "handing_over": handing_over(device),
            "growth": growth(next(iter(films.values())), options.growth),
        }
    text = describe(found)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "video_decode.md").write_text(text, encoding="utf-8")
    (options.out / "video_decode.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(text)


def _readable(path: Path) -> bool:
    try:
        ours("av")(path, sample_keys(0, 0, 0))
    except Unreadable:
        return False
    return True


if __name__ == "__main__":
    main()
