"""Settings of video data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from mmm.core.types import Input
from mmm.data.config import DataConfig
from mmm.data.decode.video.reader import find_backend
from mmm.data.media import VIDEOS, Medium


@dataclass(frozen=True, kw_only=True)
class ClipsConfig(DataConfig):
    """Videos, and how clips are cut from them.

    A dense clip has `frames` frames at a constant distance from a random start; a clip of segments has a frame from each of
    `frames` equal segments of the video. In a video that is shorter than a clip, the last frame of the clip is repeated. Evaluation
    spreads its clips evenly over the video, resizes them to just cover the sample, and spreads its crops evenly along the long
    side; all come from one decode.
    """

    medium: ClassVar[Medium] = VIDEOS

    source: str | None = None
    """a folder of videos, or of folders of frames (its sub-folders are the classes), a list file of `path label` lines,
    parquet or WebDataset tars (file, folder, glob, {000..146}, for tars https addresses too), a name on the hub, or
    builtin:motion (short films, rendered once); a hub name may end in `:subset`; a+b takes several"""
    frame_folders: bool = False
    """the images in a folder are the frames of a video, even if they do not look like it: names that do not count in equal steps,
    neighbours that differ as much as images far apart; without this, such folders are refused"""
    video_column: str | None = None
    """column of videos in a table; None finds it"""
    frames: int = 16
    """frames of a clip"""
    stride: int = 4
    """distance from one frame of a dense clip to the next, in frames of the video"""
    fps: float | None = None
    """frames a second of a dense clip, by the times at which the video shows them, at any rate of its own; replaces stride"""
    sampling: Literal["dense", "segments"] = "dense"
    """dense: frames at a constant distance; segments: one random frame from each equal segment of the video"""
    repeat: Literal["crop", "clip"] = "crop"
    """difference between the samples of one decode (data.repeats): the crop only, or also the frames"""
    crop: Literal["multi_scale", "random_resized"] = "multi_scale"
    """multi_scale: a side of the crop is a share of the short side (crop_sides), at one of 13 places;
    random_resized: area (crop_scale), shape (crop_ratio) and place are random"""
    crop_sides: tuple[float, ...] = (1.0, 0.875, 0.75, 0.66)
    """height and width of a multi_scale crop as shares of the short side, in falling order; the two are equal or neighbours"""
    flip: float = 0.0
    """probability that a training clip is mirrored left to right; leave it at 0 if left and right have a meaning"""
    eval_clips: int = 1
    """clips of a video in evaluation"""
    eval_crops: int = 1
    """crops of a clip in evaluation"""
    backend: str = "av"
    """decoder: av (exact, everywhere), decord (PyAV reads the files for which it is not exact) or torchcodec (needs FFmpeg)"""

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
        shares = list(self.crop_sides)
        rules = {
            "frames": (self.frames >= 1, "give at least 1"),
            "stride": (self.stride >= 1, "give at least 1"),
            "fps": (self.fps is None or self.fps > 0, "give a number above 0, or None for data.stride"),
            "channels": (self.channels == 3 or self.backend == "av", f"data.backend {self.backend} reads 3; take av"),
            "crop_sides": (
                bool(shares) and shares == sorted(shares, reverse=True) and shares[-1] > 0 and shares[0] <= 1,
                "give shares above 0, of at most 1, in falling order",
            ),
            "eval_clips": (self.eval_clips >= 1, "give at least 1"),
            "eval_crops": (self.eval_crops >= 1, "give at least 1"),
        }
        for name, (fine, advice) in rules.items():
            if not fine:
                raise ValueError(f"data.{name} cannot be {getattr(self, name)}: {advice}")
