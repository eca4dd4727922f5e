"""Settings of video data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from mmm.core.checks import AboveZero, Positive, Share, ZeroToOne
from mmm.core.types import Input
from mmm.data.config import DataConfig
from mmm.data.decode.video.reader import find_backend
from mmm.data.media import VIDEOS, Medium


@dataclass(frozen=True, kw_only=True)
class ClipsConfig(DataConfig):
    """Options of videos and of the clips that are cut from them.

    A dense clip has `frames` frames at a constant distance, from a random start. A clip of segments has one frame from each of
    `frames` equal segments of the video. In a video that is shorter than a clip, the last frame of the clip is repeated. Evaluation
    spreads its clips evenly over the video, resizes them so that they just cover the sample, and spreads its crops evenly along the
    long side. A video is decoded once for all its clips and crops.
    """

    medium: ClassVar[Medium] = VIDEOS

    source: str | None = None
    """A folder of videos or of folders of frames (its sub-folders are the classes), a list file of `path label` lines, parquet
    files, WebDataset tars (file, folder, glob, {000..146}), a name on the hub (with `:subset` if it has several), or builtin:motion
    (short videos, rendered once). Tars, parquet files and folders are also read at addresses, as for images. a+b names several
    sources."""
    frame_folders: bool = False
    """Read the images of a folder as the frames of a video without a check. False: raise an error if their names do not count in
    equal steps and neighbouring images differ as much as distant ones."""
    video_column: str | None = None
    """Column of videos in a table. None: found by type."""
    frames: Positive = 16
    """Number of frames of a clip."""
    stride: Positive = 4
    """Distance between two frames of a dense clip, in frames of the video."""
    fps: AboveZero | None = None
    """Frames per second of a dense clip, independent of the rate of the video; replaces `stride`. None: `stride` is used."""
    sampling: Literal["dense", "segments"] = "dense"
    """dense: frames at a constant distance. segments: one random frame from each of equal segments of the video."""
    repeat: Literal["crop", "clip"] = "crop"
    """Difference between the samples of one decoded video (data.repeats). crop: they differ in the crop only. clip: also in the
    frames."""
    crop: Literal["multi_scale", "random_resized"] = "multi_scale"
    """multi_scale: height and width are shares (`crop_sides`) of those of the largest box with the sample's aspect ratio, which is
    a square of the short side for square samples; the box is at one of 13 places. random_resized: area (`crop_scale`), ratio
    (`crop_ratio`) and place are random."""
    crop_sides: tuple[Share, ...] = (1.0, 0.875, 0.75, 0.66)
    """Possible heights and widths of a multi_scale crop as shares of the largest ones, in falling order. The shares of height and
    width are equal, or neighbours in this list."""
    flip: ZeroToOne = 0.0
    """Probability that a training clip is flipped horizontally. Leave it at 0 if left and right have a meaning."""
    eval_clips: Positive = 1
    """Number of clips of each video in evaluation."""
    eval_crops: Positive = 1
    """Number of crops of each clip in evaluation."""
    backend: str = "av"
    """Decoder. av: PyAV, which is exact for all files. decord, torchcodec (needs FFmpeg): other libraries; PyAV reads the files for
    which they are not exact."""

    @property
    def size(self) -> tuple[int, int, int]:
        """Frames, height and width of a clip."""
        return (self.frames, *self.frame_size)

    @property
    def views(self) -> int:
        return self.eval_clips * self.eval_crops

    @property
    def column(self) -> str | None:
        return self.video_column

    def input(self) -> Input:
        return replace(super().input(), stride=self.stride, fps=self.fps, sampling=self.sampling)

    def check(self) -> None:
        super().check()
        find_backend(self.backend)
        if self.channels != 3 and self.backend != "av":
            raise ValueError(f"data.channels {self.channels}: data.backend {self.backend} reads 3 only; set data.backend av")
        if not self.crop_sides or list(self.crop_sides) != sorted(self.crop_sides, reverse=True):
            raise ValueError(f"data.crop_sides {' '.join(map(str, self.crop_sides))}: give shares in falling order")
