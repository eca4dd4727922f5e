"""Reads videos with torchcodec, an optional library. It needs FFmpeg's libraries, and its PyPI wheel for x86_64 also CUDA's.

In its mode `exact` it scans a file when it opens it; this was also the faster mode for clips. With MPEG-TS, version 0.17 returned
other frames than a full decode. PyAV reads the files for which it is not exact.
"""

from __future__ import annotations

from torchcodec.decoders import VideoDecoder

from mmm.data.decode.image import Pixels
from mmm.data.decode.video.pyav import AvVideo
from mmm.data.decode.video.reader import Source, Video
from mmm.data.decode.video.verify import open_verified
from mmm.data.errors import Unreadable


class TorchcodecVideo:
    """One open file that torchcodec reads correctly. See `mmm.data.decode.video.reader.Video`."""

    def __init__(self, source: Source, exact: AvVideo) -> None:
        self.times = exact.times
        file = source if isinstance(source, bytes) else str(source)
        self.decoder = VideoDecoder(file, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact")
        if len(self.decoder) != len(self.times):
            raise Unreadable(f"torchcodec counts {len(self.decoder)} of its {len(self.times)} frames")

    def read(self, frames: list[int], channels: int) -> Pixels:
        if channels != 3:
            raise Unreadable(f"data.channels is {channels}; torchcodec reads 3 only, and data.backend av also reads 1")
        clip: Pixels = self.decoder.get_frames_at(indices=frames).data.numpy()  # (T, H, W, C)
        return clip

    def close(self) -> None:
        del self.decoder


def open_torchcodec(source: Source) -> Video:
    """Opens a file with torchcodec, or with PyAV if torchcodec is not exact."""
    return open_verified(source, "torchcodec", TorchcodecVideo)
