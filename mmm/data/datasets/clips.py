"""Clips behind one table: opened by split, decoded once for all the samples that are cut from a video.

Shapes: b videos, V clips of each, T frames, (H, W) of a video, (h, w) of a sample, C channels. Pixels lie in memory as the decoder
gives them, channels last; the device turns them.
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
from mmm.data.datasets.clip_sampling import Frames, Times, drawn_frames, even_frames
from mmm.data.datasets.dataset import Dataset, select_rows
from mmm.data.decode.video.backends import require
from mmm.data.decode.video.frame_blocks import blocks
from mmm.data.decode.video.frame_folder import image_sizes
from mmm.data.decode.video.info import inspect
from mmm.data.decode.video.reader import OpenVideo, Source
from mmm.data.errors import Unreadable
from mmm.data.loading.worker_watchdog import watched
from mmm.data.sources.folder import FileColumn
from mmm.data.transforms.clip_crop import covering_size, cut, even_boxes, multi_scale_boxes, resize, resize_into
from mmm.data.transforms.crop import crop_boxes
from mmm.data.transforms.device_resize import Box, DeferredCrop, DeferredCrops, bounding_box

logger = logging.getLogger(__name__)

LOOKED_AT = 16  # videos after which a process says that all are shorter than a clip
FOLDERS, IMAGES = 3, 6  # folders of frames that are looked at when they are opened, and images of each


class Lengths:
    """Compares videos with the clips that are read from them, in all worker processes together, and warns once.

    Attributes:
        sums: videos, those at least as long as a clip, seconds of clips, seconds of videos; float64 (4,), in shared memory.
    """

    def __init__(self) -> None:
        self.sums = torch.zeros(4, dtype=torch.float64).share_memory_()
        self.said = torch.zeros(1, dtype=torch.bool).share_memory_()

    def add(self, times: Times, clips: Frames, total: int) -> None:
        """Adds one video of a data set of `total`: the times of its frames, (N,), and the frames of its clips, (V, T)."""
        long = len(np.unique(clips[0])) == clips.shape[1]
        self.sums += torch.tensor([1.0, long, (times[clips[:, -1]] - times[clips[:, 0]]).sum(), times[-1]])
        videos, long_ones = self.sums[:2].tolist()
        if videos >= min(total, LOOKED_AT) and not long_ones and not self.said:
            self.said.fill_(True)
            logger.warning(
                "all of the %d videos that were read are shorter than a clip of %d frames, which repeats their last frame; "
                "lower data.frames, or data.stride (raise data.fps)",
                videos,
                clips.shape[1],
            )


class Clips(Dataset[ClipsConfig]):
    """Videos, and the clips that are cut from them: a part of one split."""

    lengths: Lengths | None = None  # of the videos that have been read

    def subset(self, index: Tensor) -> Self:
        part = super().subset(index)
        part.lengths = self.lengths
        return part

    def train_views(self, index: Tensor, keys: Tensor) -> tuple[Tensor, dict[int, str]]:
        """Random clips and crops, a pure function of the videos and the keys.

        Args:
            index: which videos, int64 (b,).
            keys: one for each of the R samples of a video, one video after the other, (b R,).

        Returns:
            uint8 (b R, C, T, h, w), and for the videos that could not be read, whose samples are left at zero, the reason, by row.
        """
        groups = keys.view(len(index), -1)  # (b, R)
        return self._views(index, groups.shape[1], lambda row, views: self._train(int(index[row]), groups[row], views))

    def eval_views(self, index: Tensor) -> tuple[Tensor, dict[int, str]]:
        """Clips evenly spread over the videos, with crops evenly spread over each, as `train_views` returns them."""
        spread = partial(even_frames, config=self.config)
        return self._views(index, self.config.views, lambda row, views: self._eval(int(index[row]), views, spread))

    def inspect(self, index: int) -> dict[str, Any]:
        """Decodes all of a video, and says what it is.

        Raises:
            Unreadable: at the first thing that is wrong with it.
        """
        with watched(index, self.config.deadline):
            return inspect(self._source(index))

    def _views(self, index: Tensor, count: int, fill: Callable[[int, Tensor], None]) -> tuple[Tensor, dict[int, str]]:
        """`count` views of each video; `fill` puts those of a row, (V, T, h, w, C), where they belong."""
        frames, height, width = self.config.size
        views = torch.empty(len(index), count, frames, height, width, self.config.channels, dtype=torch.uint8)
        failed: dict[int, str] = {}
        self.prefetch(index)
        for row in range(len(index)):
            try:
                fill(row, views[row])
            except Unreadable as error:
                failed[row] = str(error)
                views[row] = 0
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
        """The parts of videos from which a device makes what `train_views` gives: one where samples share their frames, else one
        for each; the arguments are the same."""
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
        """The frames of a video that samples need, (n, H, W, C) at a time, and where they stand in each clip; samples that differ
        in the crop only have one clip."""
        config = self.config
        drawn = keys if config.repeat == "clip" else keys[:1]
        with watched(index, config.deadline), OpenVideo(self._source(index), config.backend) as video:
            chosen = drawn_frames(video.times, drawn, config)  # (V, T)
            self._add_lengths(video, chosen)
            clips: list[list[int]] = chosen.tolist()
            for numbers, pixels in blocks(video, chosen.ravel(), config.channels):
                yield torch.from_numpy(pixels), [_places(clip, numbers) for clip in clips]

    def _boxes(self, keys: Tensor, height: int, width: int) -> list[Box]:
        """A crop for each key."""
        config = self.config
        heights, widths = torch.full_like(keys, height), torch.full_like(keys, width)
        if config.crop == "multi_scale":
            return multi_scale_boxes(keys, heights, widths, config.frame_size, config.crop_sides).tolist()
        return crop_boxes(keys, heights, widths, config.crop_scale, config.crop_ratio).tolist()

    def _eval(self, index: int, views: Tensor, choose: Callable[[Times], Frames]) -> None:
        """Fills the views of a video, the crops of a clip after each other; `choose` chooses the clips, (V, T), by the times."""
        config = self.config
        small = torch.empty(0)
        with watched(index, config.deadline), OpenVideo(self._source(index), config.backend) as video:
            chosen = choose(video.times)  # (V, T)
            self._add_lengths(video, chosen)
            wanted, place = np.unique(chosen, return_inverse=True)
            for numbers, pixels in blocks(video, wanted, config.channels):
                if not len(small):
                    size = covering_size(pixels.shape[1], pixels.shape[2], config.frame_size)
                    small = torch.empty(len(wanted), *size, config.channels, dtype=torch.uint8)
                small[np.searchsorted(wanted, numbers)] = resize(torch.from_numpy(pixels), size)
        boxes = even_boxes(*size, config.frame_size, config.eval_crops)
        clips: Any = place.reshape(-1, config.frames).tolist()  # (V, T)
        for i, (frames, box) in enumerate(product(clips, boxes)):
            views[i] = cut(small, box)[frames]

    def _add_lengths(self, video: OpenVideo, clips: Frames) -> None:
        if self.lengths is not None:
            self.lengths.add(video.times, clips, len(self))

    def _source(self, index: int) -> Source:
        source: Source = self.raw(index)
        if self.config.fps is not None and isinstance(source, Path) and source.is_dir():
            raise Unreadable("a folder of frames does not say when they are shown; take data.stride, not data.fps")
        return source


def _places(clip: list[int], numbers: list[int]) -> list[tuple[int, int]]:
    """Where frames of a block stand in a clip: the clip's place, and the block's."""
    found = {number: place for place, number in enumerate(numbers)}
    return [(t, found[number]) for t, number in enumerate(clip) if number in found]


def _runs(places: list[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """Places that follow each other in the clip and in the block, as one: the first in each, and how many. Of a video that is
    shorter than a clip a frame comes again, and starts another."""
    found: list[tuple[int, int, int]] = []
    for t, k in places:
        if found and (t, k) == (found[-1][0] + found[-1][2], found[-1][1] + found[-1][2]):
            found[-1] = (*found[-1][:2], found[-1][2] + 1)
        else:
            found.append((t, k, 1))
    return found


def open_clips(config: ClipsConfig, split: str) -> Clips:
    """Opens one part of the data.

    Args:
        config: where the videos are, and how clips are cut from them.
        split: `train` and `eval` are the parts that DataConfig describes; any other name is a split of the source.

    Raises:
        ValueError: of one line, for a source that is missing or empty, a split or a column that does not exist, ...
    """
    table, rows, where = select_rows(config, split)
    require(config.backend)
    clips = Clips(table, config, rows, where)
    _check_folders(clips)
    clips.lengths = Lengths()
    return clips


def _check_folders(clips: Clips) -> None:
    """Refuses folders of images that cannot be the frames of videos, because their sizes differ in each that is looked at."""
    cells = clips.table.column
    paths = [cells[row] for row in clips.rows[:FOLDERS].tolist()] if isinstance(cells, FileColumn) else []
    folders = [path for path in paths if path.is_dir()]
    sizes = [image_sizes(folder, IMAGES) for folder in folders]
    if folders and all(len(found) > 1 for found in sizes):
        listed = ", ".join(f"{height} x {width}" for height, width in sorted(sizes[0])[:3])
        raise ValueError(
            f"data.source {clips.config.source}: the images in {folders[0]} differ in size ({listed}), so they are not the frames "
            "of a video; take a recipe for images"
        )
    if folders:
        logger.info("data.source %s: each of its folders of images is read as a video, an image as a frame", clips.config.source)
