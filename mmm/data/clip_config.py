"""What a user says about videos."""

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

    A clip is dense, `frames` frames at a constant distance from a start that is drawn, or takes one frame from each of `frames`
    equal segments of the whole video. A video that is shorter than a clip repeats the clip's last frame that it has.
    Evaluation spreads its clips evenly over the video, resizes so that the sample is just covered, and spreads its crops evenly
    along the long side; all come from one decode.
    """

    medium: ClassVar[Medium] = VIDEOS

    source: str | None = None
    """a folder of videos, or of folders of frames (its sub-folders are the classes), a list file of `path label` lines,
    parquet or WebDataset tars (file, folder, glob, {000..146}, for tars https addresses too), a name on the hub, or
    builtin:motion (short films, rendered once); a hub name may end in `:subset`; a+b takes several"""
    video_column: str | None = None
    """the table's column of videos; none finds it"""
    frames: int = 16
    """of a clip"""
    stride: int = 4
    """of a dense clip: the distance from one of its frames to the next, in frames of the video"""
    fps: float | None = None
    """of a dense clip: its frames a second, by the times at which the video shows them, whatever its own rate; replaces stride"""
    sampling: Literal["dense", "segments"] = "dense"
    """dense: at a constant distance; segments: one frame, drawn anew, from each equal segment of the video"""
    repeat: Literal["crop", "clip"] = "crop"
    """what differs between the samples of one decode (data.repeats): the crop only, or the frames too"""
    crop: Literal["multi_scale", "random_resized"] = "multi_scale"
    """multi_scale: a side of the crop is a share of the short side (crop_sides), at one of 13 places;
    random_resized: its area (crop_scale) and shape (crop_ratio) are drawn, at any place"""
    crop_sides: tuple[float, ...] = (1.0, 0.875, 0.75, 0.66)
    """of a multi_scale crop: height and width as shares of the short side, in falling order; the two are equal or neighbours"""
    flip: float = 0.0
    """probability that a training clip is mirrored left to right; where left and right have a meaning, leave it at 0"""
    eval_clips: int = 1
    """clips of a video in evaluation"""
    eval_crops: int = 1
    """crops of a clip in evaluation"""
    backend: str = "av"
    """what decodes: av (exact, everywhere), decord (PyAV reads where it is not exact) or torchcodec (needs FFmpeg)"""

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
            "fps": (self.fps is None or self.fps > 0, "give a number above 0, or none for data.stride"),
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
