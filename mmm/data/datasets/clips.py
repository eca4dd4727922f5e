"""Clips of the videos of one split; a video is decoded once for all samples that are cut from it.

Shapes: b videos, V clips of each, T frames, (H, W) of a video, (h, w) of a sample, C channels. Pixels are kept in the memory layout
of decoders, channels last.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from mmm.data.clip_config import ClipsConfig
from mmm.data.datasets.clip_sampling import Frames, Times, even_frames, random_frames
from mmm.data.datasets.dataset import Dataset, select_rows
from mmm.data.decode.video.backends import require
from mmm.data.decode.video.frame_folder import check_times, doubt, image_sizes
from mmm.data.decode.video.info import inspect, probe
from mmm.data.decode.video.reader import FrameRange, OpenVideo, Source
from mmm.data.errors import Unreadable
from mmm.data.loading.worker_watchdog import watched
from mmm.data.sources.file_list import RangeColumn
from mmm.data.sources.folder import FileColumn
from mmm.data.transforms.clip_crop import covering_size, cut, even_boxes, multi_scale_boxes, resize, resize_into
from mmm.data.transforms.crop import crop_boxes
from mmm.data.transforms.device_resize import Box, DeferredCrop, DeferredCrops, bounding_box

logger = logging.getLogger(__name__)

ENOUGH = 16  # videos that are read before a warning that all are shorter than a clip
FOLDERS, IMAGES = 3, 6  # number of folders of frames that are checked when the data is opened, and of images in each


class Lengths:
    """Sums the lengths of videos and clips over all worker processes. Warns once if all videos are shorter than a clip.

    Attributes:
        sums: number of videos, number of those at least as long as a clip, seconds of clips, seconds of videos; float64 (4,),
            in shared memory.
    """

    def __init__(self) -> None:
        self.sums = torch.zeros(4, dtype=torch.float64).share_memory_()
        self.warned = torch.zeros(1, dtype=torch.bool).share_memory_()

    def add(self, times: Times, clips: Frames, total: int) -> None:
        """Adds a video, given the times of its frames, (N,), the frames of its clips, (V, T), and the number of videos."""
        long = len(np.unique(clips[0])) == clips.shape[1]
        self.sums += torch.tensor([1.0, long, (times[clips[:, -1]] - times[clips[:, 0]]).sum(), times[-1]])
        videos, long_ones = self.sums[:2].tolist()
        if videos >= min(total, ENOUGH) and not long_ones and not self.warned:
            self.warned.fill_(True)
            logger.warning(
                "all of the %d videos that were read are shorter than a clip of %d frames, which repeats their last frame; "
                "lower data.frames, or data.stride (raise data.fps)",
                videos,
                clips.shape[1],
            )


class Clips(Dataset[ClipsConfig]):
    """Videos of one split, and the clips that are cut from them."""

    lengths: Lengths | None = None  # lengths of the videos that have been read

    def subset(self, index: Tensor) -> Self:
        part = super().subset(index)
        part.lengths = self.lengths
        return part

    def train_views(self, index: Tensor, keys: Tensor) -> tuple[Tensor, dict[int, str]]:
        """Cuts random clips and crops, which depend only on the videos and the keys.

        Args:
            index: numbers of the videos, int64 (b,).
            keys: one key for each of the R samples of a video, video after video, (b R,).

        Returns:
            uint8 (b R, C, T, h, w), and the reason for each unreadable video, by row. Samples of unreadable videos are zero.
        """
        groups = keys.view(len(index), -1)  # (b, R)
        return self._views(index, groups.shape[1], lambda row, views: self._train(int(index[row]), groups[row], views))

    def eval_views(self, index: Tensor) -> tuple[Tensor, dict[int, str]]:
        """Cuts clips spread evenly over the videos, with crops spread evenly over each; returns them as `train_views` does."""
        spread = partial(even_frames, config=self.config)
        return self._views(index, self.config.views, lambda row, views: self._eval(int(index[row]), views, spread))

    def inspect(self, index: int) -> dict[str, Any]:
        """Checks a whole video and returns facts about it; see `mmm.data.decode.video.info.inspect`.

        Raises:
            Unreadable: reading fails; the message gives the reason.
        """
        with watched(index, self.config.deadline):
            return inspect(self._source(index))

    def shape_of(self, index: int) -> dict[str, float]:
        """Returns frames, seconds (of a whole file), height and width of a video, without decoding all of it.

        Raises:
            Unreadable: reading fails; the message gives the reason.
        """
        source = self._source(index)
        with watched(index, self.config.deadline):
            if isinstance(source, FrameRange) or (isinstance(source, Path) and source.is_dir()):
                with OpenVideo(source) as video:
                    height, width = video.read([0]).shape[1:3]
                    return {"frames": len(video), "height": height, "width": width}
            info = probe(source)
            return {"frames": info.frames, "seconds": info.duration, "height": info.height, "width": info.width}

    def _views(self, index: Tensor, count: int, fill: Callable[[int, Tensor], None]) -> tuple[Tensor, dict[int, str]]:
        """Returns `count` views of each video, which `fill` writes row by row, (V, T, h, w, C)."""
        frames, height, width = self.config.size
        views = torch.empty(len(index), count, frames, height, width, self.config.channels, dtype=torch.uint8)
        failed = self.each(index, lambda row, _: fill(row, views[row]))
        views[list(failed)] = 0
        return views.flatten(0, 1).permute(0, 4, 1, 2, 3), failed  # (b V, C, T, h, w)

    def _train(self, index: int, keys: Tensor, views: Tensor) -> None:
        boxes: list[Box] = []
        for frames, places in self._blocks(index, keys):
            boxes = boxes or self._boxes(keys, frames.shape[1], frames.shape[2])
            runs = [_runs(where) for where in places]
            for i, box in enumerate(boxes):
                part = cut(frames, box)
                for t, k, count in runs[min(i, len(runs) - 1)]:
                    resize_into(views[i, t : t + count], part[k : k + count])
        for view, key in zip(views, keys, strict=True):
            self.augment(index, view, key)

    @property
    def defers_resize(self) -> bool:
        return self.config.resize == "device"

    def deferred_train_views(self, index: Tensor, keys: Tensor) -> tuple[DeferredCrops, dict[int, str]]:
        """Cuts the regions from which a device makes the samples of `train_views`; the arguments are the same. Samples of a
        video that share their frames share one region."""
        config = self.config
        inputs: list[list[DeferredCrop]] = []
        failed: dict[int, str] = {}
        self.prefetch(index)
        for row, (number, mine) in enumerate(zip(index.tolist(), keys.view(len(index), -1), strict=True)):
            inputs.append([])
            try:
                for frames, places in self._blocks(number, mine):
                    if not inputs[row]:
                        boxes = self._boxes(mine, frames.shape[1], frames.shape[2])
                        shared = [boxes] if len(places) == 1 else [[box] for box in boxes]
                        around = [bounding_box(group) for group in shared]
                        size = [(config.frames, height, width, config.channels) for (_, _, height, width), _ in around]
                        inputs[row] = [
                            DeferredCrop(torch.empty(shape, dtype=torch.uint8), inside)
                            for shape, (_, inside) in zip(size, around, strict=True)
                        ]
                    for part, (whole, _), where in zip(inputs[row], around, places, strict=True):
                        seen = cut(frames, whole)
                        for t, k in where:
                            part.pixels[t] = seen[k]
            except Unreadable as error:
                failed[row] = str(error)
                inputs[row] = []
        return DeferredCrops(inputs, (config.channels, *config.size), "bilinear"), failed

    def _blocks(self, index: int, keys: Tensor) -> Iterator[tuple[Tensor, list[list[tuple[int, int]]]]]:
        """Yields the frames that samples need, (n, H, W, C) at a time, and their places in each clip. Samples that differ only
        in the crop share one clip."""
        config = self.config
        drawn = keys if config.repeat == "clip" else keys[:1]
        with watched(index, config.deadline), OpenVideo(self._source(index), config.backend) as video:
            chosen = random_frames(video.times, drawn, config)  # (V, T)
            self._add_lengths(video, chosen)
            clips: list[list[int]] = chosen.tolist()
            for numbers, pixels in video.blocks(chosen.ravel(), config.channels):
                yield torch.from_numpy(pixels), [_places(clip, numbers) for clip in clips]

    def _boxes(self, keys: Tensor, height: int, width: int) -> list[Box]:
        """Draws a crop for each key."""
        config = self.config
        heights, widths = torch.full_like(keys, height), torch.full_like(keys, width)
        if config.crop == "multi_scale":
            return multi_scale_boxes(keys, heights, widths, config.frame_size, config.crop_sides).tolist()
        return crop_boxes(keys, heights, widths, config.crop_scale, config.crop_ratio).tolist()

    def _eval(self, index: int, views: Tensor, choose: Callable[[Times], Frames]) -> None:
        """Fills the views of a video, crop after crop of each clip; `choose` returns the frames of the clips, (V, T), from the
        times of all frames."""
        config = self.config
        small = torch.empty(0)
        with watched(index, config.deadline), OpenVideo(self._source(index), config.backend) as video:
            chosen = choose(video.times)  # (V, T)
            self._add_lengths(video, chosen)
            requested, place = np.unique(chosen, return_inverse=True)
            for numbers, pixels in video.blocks(requested, config.channels):
                if not len(small):
                    size = covering_size(pixels.shape[1], pixels.shape[2], config.frame_size)
                    small = torch.empty(len(requested), *size, config.channels, dtype=torch.uint8)
                small[np.searchsorted(requested, numbers)] = resize(torch.from_numpy(pixels), size)
        boxes = even_boxes(*size, config.frame_size, config.eval_crops)
        clips: Any = place.reshape(-1, config.frames).tolist()  # (V, T)
        for i, (frames, box) in enumerate(product(clips, boxes)):
            views[i] = cut(small, box)[frames]

    def _add_lengths(self, video: OpenVideo, clips: Frames) -> None:
        if self.lengths is not None:
            self.lengths.add(video.times, clips, len(self))

    def _source(self, index: int) -> Source | FrameRange:
        source: Source | FrameRange = self.raw(index)
        if self.config.fps is not None:
            check_times(source, "set data.stride, not data.fps")
        return source


def _places(clip: list[int], numbers: list[int]) -> list[tuple[int, int]]:
    """Returns the frames that a block and a clip share: pairs of a place in the clip and a place in the block."""
    found = {number: place for place, number in enumerate(numbers)}
    return [(t, found[number]) for t, number in enumerate(clip) if number in found]


def _runs(places: list[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """Joins places that are adjacent both in the clip and in the block. Returns the first place in each and the number of
    places. A repeated frame, at the end of a short video, starts a new run."""
    found: list[tuple[int, int, int]] = []
    for t, k in places:
        if found and (t, k) == (found[-1][0] + found[-1][2], found[-1][1] + found[-1][2]):
            found[-1] = (*found[-1][:2], found[-1][2] + 1)
        else:
            found.append((t, k, 1))
    return found


def open_clips(config: ClipsConfig, split: str) -> Clips:
    """Opens the videos of a split; see `select_rows` for the arguments and errors. The library of `data.backend` must be
    installed."""
    table, rows, where = select_rows(config, split)
    require(config.backend)
    clips = Clips(table, config, rows, where)
    _check_folders(clips)
    clips.lengths = Lengths()
    return clips


def _check_folders(clips: Clips) -> None:
    """Raises ValueError if the first few folders of images are not the frames of videos, or do not look like them. The second
    check is left out with `data.frame_folders`."""
    cells = clips.table.column
    cells = cells.files if isinstance(cells, RangeColumn) else cells
    paths = [cells[row] for row in clips.rows[:FOLDERS].tolist()] if isinstance(cells, FileColumn) else []
    folders = [path for path in paths if path.is_dir()]
    sizes = [image_sizes(folder, IMAGES) for folder in folders]
    if folders and all(len(found) > 1 for found in sizes):
        listed = ", ".join(f"{height} x {width}" for height, width in sorted(sizes[0])[:3])
        raise ValueError(
            f"data.source {clips.config.source}: the images in {folders[0]} differ in size ({listed}), so they are not the frames "
            "of a video; take a recipe for images"
        )
    doubts = [] if clips.config.frame_folders else [doubt(folder) for folder in folders]
    if doubts and all(doubts):
        raise ValueError(
            f"data.source {clips.config.source}: the images in {folders[0]} do not look like the frames of a video ({doubts[0]}); "
            "take a recipe for images, or set data.frame_folders true if they are frames"
        )
    if folders:
        logger.info(
            "data.source %s: each of its folders of images is read as a video, and each image as a frame", clips.config.source
        )
