"""Clips behind one table: opened by split, decoded once for all the samples that are cut from a video.

Shapes: b videos, V clips of each, T frames, (H, W) of a video, (h, w) of a sample, C channels. Pixels lie in memory as the decoder
gives them, channels last; the device turns them.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmm.data.augment import rand_augment
from mmm.data.bad_inputs import Unreadable
from mmm.data.desk import in_hand
from mmm.data.part import Part, find_part
from mmm.data.transforms import crop_boxes
from mmm.data.video.backends import require
from mmm.data.video.blocks import blocks
from mmm.data.video.config import ClipsConfig
from mmm.data.video.crops import covering_size, cut, even_boxes, multi_scale_boxes, resize, resize_into
from mmm.data.video.probe import inspect
from mmm.data.video.reader import OpenVideo, Source
from mmm.data.video.sampling import drawn_frames, even_frames


class Clips(Part[ClipsConfig]):
    """Videos, and the clips that are cut from them: a part of one split."""

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
        return self._views(index, self.config.views, lambda row, views: self._eval(int(index[row]), views))

    def inspect(self, index: int) -> dict[str, Any]:
        """Decodes all of a video, and says what it is.

        Raises:
            Unreadable: at the first thing that is wrong with it.
        """
        with in_hand(index, self.config.deadline):
            return inspect(self._source(index))

    def _views(self, index: Tensor, count: int, fill: Callable[[int, Tensor], None]) -> tuple[Tensor, dict[int, str]]:
        """`count` views of each video; `fill` puts those of a row, (V, T, h, w, C), where they belong."""
        frames, height, width = self.config.size
        views = torch.empty(len(index), count, frames, height, width, self.config.channels, dtype=torch.uint8)
        failed: dict[int, str] = {}
        self.expect(index)
        for row in range(len(index)):
            try:
                fill(row, views[row])
            except Unreadable as error:
                failed[row] = str(error)
                views[row] = 0
        return views.flatten(0, 1).permute(0, 4, 1, 2, 3), failed  # (b V, C, T, h, w)

    def _train(self, index: int, keys: Tensor, views: Tensor) -> None:
        config = self.config
        drawn = keys if config.repeat == "clip" else keys[:1]
        boxes: list[list[int]] = []
        with in_hand(index, config.deadline), OpenVideo(self._source(index), config.backend) as video:
            chosen = drawn_frames(video.times, drawn, config)  # (V, T)
            clips: list[list[int]] = chosen.tolist()
            for numbers, pixels in blocks(video, chosen.ravel(), config.channels):
                boxes = boxes or self._boxes(keys, pixels.shape[1], pixels.shape[2])
                frames = torch.from_numpy(pixels)
                places = [_places(clip, numbers) for clip in clips]
                for i, box in enumerate(boxes):
                    _fill(views[i], cut(frames, box), places[min(i, len(places) - 1)])
        if config.augment is not None:
            for view, key in zip(views, keys, strict=True):
                rand_augment(view, key, config.augment, config.mean)

    def _boxes(self, keys: Tensor, height: int, width: int) -> list[list[int]]:
        """A crop for each key."""
        config = self.config
        heights, widths = torch.full_like(keys, height), torch.full_like(keys, width)
        if config.crop == "multi_scale":
            return multi_scale_boxes(keys, heights, widths, config.frame_size, config.crop_sides).tolist()
        return crop_boxes(keys, heights, widths, config.crop_scale, config.crop_ratio).tolist()

    def _eval(self, index: int, views: Tensor) -> None:
        """The crops of a clip follow each other."""
        config = self.config
        with in_hand(index, config.deadline), OpenVideo(self._source(index), config.backend) as video:
            wanted, place = np.unique(even_frames(video.times, config), return_inverse=True)
            pixels = torch.from_numpy(video.read(wanted, config.channels))
        size = covering_size(pixels.shape[1], pixels.shape[2], config.frame_size)
        pixels = resize(pixels, size)
        boxes = even_boxes(*size, config.frame_size, config.eval_crops)
        clips: Any = place.reshape(-1, config.frames).tolist()  # (V, T)
        for i, (frames, box) in enumerate(product(clips, boxes)):
            views[i] = cut(pixels, box)[frames]

    def _source(self, index: int) -> Source:
        source: Source = self.cell(index)
        if self.config.fps is not None and isinstance(source, Path) and source.is_dir():
            raise Unreadable("a folder of frames does not say when they are shown; take data.stride, not data.fps")
        return source


def _places(clip: list[int], numbers: list[int]) -> list[tuple[int, int]]:
    """Where frames of a block stand in a clip: the clip's place, and the block's."""
    found = {number: place for place, number in enumerate(numbers)}
    return [(t, found[number]) for t, number in enumerate(clip) if number in found]


def _fill(view: Tensor, part: Tensor, places: list[tuple[int, int]]) -> None:
    """Resizes what a sample, (T, h, w, C), takes of a block, (n, H, W, C)."""
    if not places:
        return
    count, (t, k) = len(places), places[0]
    if places == list(zip(range(t, t + count), range(k, k + count), strict=True)):
        resize_into(view[t : t + count], part[k : k + count])
        return
    for t, k in places:  # of a video that is shorter than a clip, a frame comes again
        resize_into(view[t : t + 1], part[k : k + 1])


def open_clips(config: ClipsConfig, split: str) -> Clips:
    """Opens one part of the data.

    Args:
        config: where the videos are, and how clips are cut from them.
        split: `train` and `eval` are the parts that DataConfig describes; any other name is a split of the source.

    Raises:
        ValueError: of one line, for a source that is missing or empty, a split or a column that does not exist, ...
    """
    table, rows, where = find_part(config, split)
    require(config.backend)
    return Clips(table, config, rows, where)
