"""Videos through torchcodec, a plug-in: it needs FFmpeg's libraries on the system, and its PyPI wheel for x86_64 needs CUDA's.

It scans a file when it opens it (`exact`), which was also the faster mode for clips, and finds frames by presentation time.
"""

from __future__ import annotations

import numpy as np
from torchcodec.decoders import VideoDecoder

from mmm.data.bad_inputs import Unreadable
from mmm.data.decode import Pixels
from mmm.data.video.packet_reader import list_packets, open_container, open_stream
from mmm.data.video.reader import Source


class TorchcodecVideo:
    """One open file. See `mmm.data.video.reader.Video`. PyAV lists the packets, so that both number frames alike."""

    def __init__(self, source: Source) -> None:
        with open_container(source) as container:
            stream = open_stream(container)
            packets, unit = list_packets(container, stream), float(stream.time_base or 0)
        self.times = (np.array(packets.stamps, dtype=np.float64) - packets.stamps[0]) * unit
        self.decoder = VideoDecoder(
            source if isinstance(source, bytes) else str(source), dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact"
        )
        if len(self.decoder) != len(self.times) or not packets.ordered:
            raise Unreadable(f"torchcodec counts {len(self.decoder)} of its {len(self.times)} frames; read it with data.backend av")

    def read(self, frames: list[int], channels: int) -> Pixels:
        if channels != 3:
            raise Unreadable(f"data.channels is {channels}; torchcodec reads 3, data.backend av also 1")
        clip: Pixels = self.decoder.get_frames_at(indices=frames).data.numpy()  # (T, H, W, C)
        return clip

    def close(self) -> None:
        del self.decoder
