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
from mmm.data.video.config import ClipsConfig
from mmm.data.video.crops import covering_size, cut, even_boxes, multi_scale_boxes, resize, resize_into
from mmm.data.video.probe import inspect
from mmm.data.video.reader import OpenVideo, Source
from mmm.data.video.sampling import Frames, Times, drawn_frames, even_frames


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
        pixels, place = self._decode(index, lambda times: drawn_frames(times, drawn, config))
        height, width = (torch.full_like(keys, side) for side in pixels.shape[1:3])
        if config.crop == "multi_scale":
            boxes = multi_scale_boxes(keys, height, width, config.frame_size, config.crop_sides)
        else:
            boxes = crop_boxes(keys, height, width, config.crop_scale, config.crop_ratio)
        for i, box in enumerate(boxes.tolist()):
            frames, part = place[min(i, len(place) - 1)], cut(pixels, box)
            if frames == list(range(frames[0], frames[0] + len(frames))):
                resize_into(views[i], part[frames[0] : frames[0] + len(frames)])
            else:  # of a video that is shorter than a clip, a frame comes again
                for view, frame in zip(views[i], frames, strict=True):
                    resize_into(view[None], part[frame : frame + 1])
            if config.augment is not None:
                rand_augment(views[i], keys[i], config.augment, config.mean)

    def _eval(self, index: int, views: Tensor) -> None:
        """The crops of a clip follow each other."""
        config = self.config
        pixels, place = self._decode(index, lambda times: even_frames(times, config))
        size = covering_size(pixels.shape[1], pixels.shape[2], config.frame_size)
        pixels = resize(pixels, size)
        boxes = even_boxes(*size, config.frame_size, config.eval_crops)
        for i, (frames, box) in enumerate(product(place, boxes)):
            views[i] = cut(pixels, box)[frames]

    def _decode(self, index: int, choose: Callable[[Times], Frames]) -> tuple[Tensor, list[list[int]]]:
        """The frames of one or several clips, each decoded once.

        Args:
            index: which video.
            choose: from the times of its frames to the frames of the clips, (V, T).

        Returns:
            uint8 (U, H, W, C), and for each of the V clips which T of them it takes.
        """
        source = self._source(index)
        with in_hand(index, self.config.deadline), OpenVideo(source, self.config.backend) as video:
            chosen = choose(video.times)  # (V, T)
            wanted, place = np.unique(chosen, return_inverse=True)
            pixels = torch.from_numpy(video.read(wanted, self.config.channels))
        clips: Any = place.reshape(chosen.shape).tolist()
        return pixels, clips

    def _source(self, index: int) -> Source:
        source: Source = self.cell(index)
        if self.config.fps is not None and isinstance(source, Path) and source.is_dir():
            raise Unreadable("a folder of frames does not say when they are shown; take data.stride, not data.fps")
        return source


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
