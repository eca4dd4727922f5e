"""The cost of clips from long videos, relative to a plain seek.

    OMP_NUM_THREADS=1 taskset -c 0 python -m benchmarks.data.long_videos
    OMP_NUM_THREADS=1 taskset -c 0 python -m benchmarks.data.long_videos --seconds 10 3600 --clips 60

A video of `--seconds` is one rendered minute, repeated by copying its packets. Each clip is 16 frames of stride 4 from a random
start, decoded to RGB, and is timed from opening the file to closing it. `plain seek` computes the position of a frame from the
average rate, seeks to the keyframe before it and decodes up to the clip's last frame; this is exact for these videos, but not for
every file. `list` lists the packets again for each clip, `disk` reads their list from the cache, as the first clip of a file in a
process does, and `memory` has the list in memory. Times are CPU milliseconds of the process; all methods read the same clips, one
after another; ratios are medians over rounds.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import av
import numpy as np

from benchmarks.data.video_decode import make_frames
from benchmarks.measure import table
from mmm.data.decode.video import OpenVideo, packets
from mmm.data.decode.video.encode import EncodeConfig, write_video

HEIGHT, WIDTH, RATE, FRAMES, STRIDE = 256, 340, 30, 16, 4


def lengthen(minute: Path, path: Path, seconds: int) -> Path:
    """Repeats the packets of a video of one minute until it has the requested length."""
    with av.open(str(minute)) as old, av.open(str(path), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        length = 60 * RATE * round(1 / (RATE * old.streams.video[0].time_base))
        for turn in range(-(-seconds // 60)):
            old.seek(0)
            for packet in old.demux(video=0):
                if packet.dts is None or (turn * 60 * RATE + packet.pts * 60 * RATE / length) >= seconds * RATE:
                    continue
                packet.pts, packet.dts, packet.stream = packet.pts + turn * length, packet.dts + turn * length, stream
                new.mux(packet)
    return path


def plain_seek(path: Path, frames: list[int]) -> None:
    """Reads frames at positions that are computed from the average rate."""
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        stream.thread_type = "NONE"
        unit = round(1 / (stream.average_rate * stream.time_base))
        requested = {(stream.start_time or 0) + number * unit for number in frames}
        file.seek(min(requested), stream=stream, backward=True)
        for packet in file.demux(stream):
            stream.codec_context.skip_frame = "DEFAULT" if packet.pts is None or packet.pts in requested else "NONREF"
            for frame in stream.codec_context.decode(packet):
                if frame.pts in requested:
                    frame.to_ndarray(format="rgb24")
                    requested.remove(frame.pts)
            if not requested:
                return
    raise AssertionError(f"{len(requested)} frames were not found")


def ours(path: Path, frames: list[int], *, memory: bool, disk: bool) -> None:
    """Reads frames as a worker does, with or without the list of packets in memory or on disk."""
    if not memory:
        packets._memory.clear()
    if not disk:
        for kept in (Path(os.environ["XDG_CACHE_HOME"]) / "mmm").rglob("*.npz"):
            kept.unlink()
    with OpenVideo(path) as video:
        video.read(frames)


def milliseconds(read: Callable[[], None]) -> float:
    """Returns the CPU time of one reading."""
    start = time.process_time()
    read()
    return 1e3 * (time.process_time() - start)


def measure(path: Path, clips: int) -> dict[str, list[float]]:
    """Returns CPU milliseconds of each method for each clip."""
    with OpenVideo(path) as video:
        starts = len(video) - FRAMES * STRIDE
    costs: dict[str, list[float]] = {name: [] for name in ("plain seek", "memory", "disk", "list")}
    for start in np.random.default_rng(0).integers(0, starts, clips + 1).tolist():
        frames = [start + STRIDE * i for i in range(FRAMES)]
        # in this order because the later ones first delete the list in memory, then that on disk
        costs["plain seek"].append(milliseconds(lambda frames=frames: plain_seek(path, frames)))
        ours(path, frames, memory=False, disk=True)
        costs["memory"].append(milliseconds(lambda frames=frames: ours(path, frames, memory=True, disk=True)))
        costs["disk"].append(milliseconds(lambda frames=frames: ours(path, frames, memory=False, disk=True)))
        costs["list"].append(milliseconds(lambda frames=frames: ours(path, frames, memory=False, disk=False)))
    return {name: values[1:] for name, values in costs.items()}  # the first clip is a warm-up


def main() -> None:
    """Measures all lengths and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, nargs="+", default=[10, 120, 600, 3600], help="lengths of the videos")
    parser.add_argument("--clips", type=int, default=30, help="clips of each video")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = str(Path(folder) / "cache")
        minute = Path(folder) / "minute.mp4"
        write_video(
            minute, make_frames(HEIGHT, WIDTH, 60 * RATE, 0), fps=RATE, config=EncodeConfig(short_side=None, fast_decode=False)
        )
        for seconds in options.seconds:
            path = lengthen(minute, Path(folder) / f"{seconds}.mp4", seconds)
            for name, values in (costs := measure(path, options.clips)).items():
                ratio = median(mine / plain for mine, plain in zip(values, costs["plain seek"], strict=True))
                size = f"{path.stat().st_size / 2**20:.0f} MiB"
                rows.append([f"{seconds} s ({size}): {name}", f"{median(values):.1f}", f"{ratio:.2f}"])
    print(table(["video and method", "CPU ms a clip", "times a plain seek"], rows))


if __name__ == "__main__":
    main()
