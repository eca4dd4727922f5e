"""Rates of the data pipeline in images and clips per second and core, by stage, compared with other implementations.

    OMP_NUM_THREADS=1 taskset -c 0 python -m benchmarks.data.pipeline                 generated JPEGs and videos; some minutes
    OMP_NUM_THREADS=1 taskset -c 0 python -m benchmarks.data.pipeline --only images
    OMP_NUM_THREADS=1 taskset -c 0 python -m benchmarks.data.pipeline --only clips --videos /data/clips      on your own files
    python -m benchmarks.data.pipeline --rounds 1 --files 4 --clips 2 --growth 10 --small                   quick check that it runs
    python -m benchmarks.data.pipeline --save  also writes a dated table and all numbers into benchmarks/results/

Times are CPU seconds of all threads of one process, with files in the page cache. All implementations run in alternation; rates are
medians, and ratios are medians of the ratio within a round. image_files.py and video_decode.py describe the other implementations.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.data import image_files, video_decode
from benchmarks.measure import RESULTS, machine, save, table
from mmm.data import DataConfig, open_data
from mmm.data.transforms.resize import kernel_in_use
from mmm.system.malloc import keep_memory

PEERS = ("pillow", "torchvision", "simplejpeg", "av", "decord", "torchcodec", "numpy")


def images(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measures JPEGs of each size."""
    found = {}
    for name, (height, width) in image_files.SIZES.items():
        image_files.make_files(folder / name, options.files, height, width)
        found[name] = image_files.speeds(folder / name, options.rounds)
        found[name]["device_milliseconds"] = device_milliseconds(image_files.CONFIG, folder / name, options)
    return found


def clips(options: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], dict[str, float]]:
    """Measures each kind of video, and the memory and open files that remain after reading many of them."""
    if options.videos is not None:
        videos = {"given": options.videos}
    else:
        kinds = list(video_decode.VIDEOS)[: 1 if options.small else None]
        videos = video_decode.render(folder, kinds, frames=90 if options.small else 300, files=3)  # ten seconds, as in Kinetics
    found = {kind: video_decode.speeds(source, options.clips) for kind, source in videos.items()}
    for kind, source in videos.items():
        found[kind][video_decode.DEVICE]["device_milliseconds"] = device_milliseconds(video_decode.CONFIG, source, options)
    return found, video_decode.growth(next(iter(videos.values())), options.growth)


def device_milliseconds(config: DataConfig, source: Path, options: argparse.Namespace) -> float:
    """Returns the device's milliseconds per sample with data.resize device."""
    samples = open_data(replace(config, source=str(source), resize="device"), "train")
    return video_decode.device_milliseconds(samples, torch.device(options.device))


def measure(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Returns all measurements."""
    found: dict[str, Any] = {"machine": machine(device) | installed()}
    with tempfile.TemporaryDirectory() as name:
        if options.only != "clips":
            found["images"] = images(options, Path(name))
            found["transfer of an image"] = video_decode.transfer_milliseconds(image_files.CONFIG.size, device, samples=64)
        if options.only != "images":
            found["clips"], found["growth"] = clips(options, Path(name))
            found["transfer of a clip"] = video_decode.transfer_milliseconds(video_decode.CONFIG.size, device)
    return found


def installed() -> dict[str, str]:
    """Returns the resize kernel and the versions of the libraries."""
    found = {"resizing": kernel_in_use()}
    for name in PEERS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def describe(found: dict[str, Any]) -> str:
    """Formats the tables."""
    lines = ["# From files to samples", "", *(f"- {name}: {value}" for name, value in found["machine"].items()), ""]
    if "images" in found:
        lines += [table(image_files.HEAD, image_files.rows(found["images"])), "", format_device_costs(found["images"]), ""]
    if "clips" in found:
        grown = found["growth"]
        lines += [table(video_decode.HEAD, video_decode.rows(found["clips"])), ""]
        lines += [format_device_costs({kind: ways[video_decode.DEVICE] for kind, ways in found["clips"].items()}), ""]
        lines += [f"After {grown['clips']:.0f} clips: {grown['memory_kib']:+.0f} KiB, {grown['files']:+.0f} open files.", ""]
    for name, cost in found.items():
        if name.startswith("transfer"):
            lines.append(
                f"The {name}: {cost['worker_to_process']:.2f} ms from a worker (wall time), {cost['device_and_normalise']:.2f} ms "
                "to the device and normalised."
            )
    return "\n".join([*lines, "", *(__doc__ or "").split("\n\n")[2:]])


def format_device_costs(found: dict[str, dict[str, Any]]) -> str:
    """Formats the cost of the work that data.resize device moves to the device."""
    costs = ", ".join(f"{name} {one['device_milliseconds']:.2f} ms" for name, one in found.items())
    return f"With data.resize device, the transfer and the work on the device take, per sample: {costs}."


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["images", "clips"], help="default: both")
    parser.add_argument("--files", type=int, default=64, help="JPEGs of each size")
    parser.add_argument("--rounds", type=int, default=9, help="number of times that each implementation reads them")
    parser.add_argument("--clips", type=int, default=40, help="clips per backend and kind of video")
    parser.add_argument("--videos", type=Path, help="a folder of videos; default: rendered videos")
    parser.add_argument("--small", action="store_true", help="one kind of short video")
    parser.add_argument("--growth", type=int, default=2000, help="clips over which growth is measured")
    parser.add_argument("--device", default="cpu", help="device of the batches")
    parser.add_argument("--save", action="store_true", help="write the table and all numbers")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of --save")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs the measurements, prints the tables, and writes results on request."""
    options = parse(argv)
    torch.set_num_threads(1)
    keep_memory()  # as a worker does
    found = measure(options, torch.device(options.device))
    text = describe(found)
    print(text)
    if options.save:
        save(options.out, "data", text, found)
    return found


if __name__ == "__main__":
    main()
