"""Sliding windows over videos: clips that start at regular times, each a separate sample.

Shapes: N windows, b of a batch, V crops of each, T frames, C channels, (h, w) of a sample.
"""

from __future__ import annotations

from functools import partial
from itertools import groupby
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from mmm.data.clip_config import ClipsConfig
from mmm.data.datasets.clip_sampling import last_start, window_frames
from mmm.data.datasets.clips import Clips
from mmm.data.decode.video.frame_folder import check_times
from mmm.data.decode.video.reader import FrameRange, OpenVideo, Source
from mmm.data.errors import Unreadable
from mmm.data.loading.scan import map_inputs
from mmm.data.loading.worker_pool import TIMEOUT
from mmm.data.loading.worker_watchdog import watched
from mmm.data.sources.base import Table

HINT = "leave out --every, because windows start at times"  # for folders of frames
TOGETHER = 8  # windows of a video that are decoded together: neighbours share frames, and all stay in memory after resizing


class Windows(Clips):
    """Windows of the videos of one split, video after video.

    Args:
        table, config, rows, where: see `Dataset`; `rows` contains the row of each window's video.
        times: seconds from a video's first frame to the first of the window, float64 (N,).
    """

    def __init__(self, table: Table, config: ClipsConfig, rows: Tensor, where: str, times: Tensor) -> None:
        super().__init__(table, config, rows, where)
        self.times = times

    def subset(self, index: Tensor) -> Self:
        return type(self)(self.table, self.config, self.rows[index], self.where, self.times[index])

    def eval_views(self, index: Tensor) -> tuple[Tensor, dict[int, str]]:
        """Cuts windows, with crops spread evenly over each; see `Clips.eval_views`."""
        frames, height, width = self.config.size
        views = torch.zeros(len(index), self.config.views, frames, height, width, self.config.channels, dtype=torch.uint8)
        failed: dict[int, str] = {}
        self.prefetch(index)
        for _, group in groupby(range(len(index)), lambda place: int(self.rows[index[place]])):
            places = list(group)
            for some in (places[at : at + TOGETHER] for at in range(0, len(places), TOGETHER)):
                times = self.times[index[some]].numpy()
                try:
                    here = views[some[0] : some[-1] + 1].flatten(0, 1)
                    self._eval(int(index[some[0]]), here, partial(window_frames, starts=times, config=self.config))
                except Unreadable as error:
                    failed |= dict.fromkeys(some, str(error))
                    views[some] = 0
        return views.flatten(0, 1).permute(0, 4, 1, 2, 3), failed

    def _source(self, index: int) -> Source | FrameRange:
        source: Source | FrameRange = self.raw(index)
        check_times(source, HINT)
        return source


def open_windows(clips: Clips, every: float) -> Windows:
    """Returns the windows of videos. Each window fits into its video; a video shorter than a window has one.

    Args:
        clips: the videos.
        every: seconds between the starts of two windows.

    Raises:
        ValueError: the clips are not dense, or more than one is read from each video.
    """
    config = clips.config
    if config.sampling != "dense" or config.eval_clips != 1:
        raise ValueError("sliding windows are dense clips: set data.sampling dense and eval_clips 1")

    def work(index: int) -> dict[str, Any]:
        with watched(index, config.deadline):
            source = clips.raw(index)
            check_times(source, HINT)
            with OpenVideo(source, config.backend) as video:
                return {"windows": 1 + int(last_start(video.times, config) / every + 1e-6)}

    timeout = config.deadline + TIMEOUT
    findings = map_inputs(clips.name, work, len(clips), workers=config.workers, title="lengths of videos", timeout=timeout)
    counts = torch.tensor([finding.facts.get("windows", 1) for finding in findings])  # an unreadable video is reported later
    rows = clips.rows.repeat_interleave(counts)
    times = np.concatenate([np.arange(count) * every for count in counts.tolist()])
    return Windows(clips.table, config, rows, f"{clips.where}, a window every {every:g} s", torch.from_numpy(times))
