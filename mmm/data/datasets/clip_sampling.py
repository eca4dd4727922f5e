"""Chooses the frames of clips, as pure functions of the times of a video's frames and, in training, of keys.

Dense clips in frames and strides are VideoMAE's (Tong et al., NeurIPS 2022): the start is uniform over those that leave space
for frames x stride frames, and in a short video the clip's last frame is repeated. Segments are TSN's (Wang et al., "Temporal
Segment Networks", ECCV 2016, section 3.1).

Shapes: N frames of a video, V clips, T frames of a clip.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmm.core.rng import Stream, integers, stream, uniform
from mmm.data.clip_config import ClipsConfig
from mmm.data.decode.video.reader import frames_at

Times = NDArray[np.float64]
Frames = NDArray[np.int64]


def random_frames(times: Times, keys: Tensor, config: ClipsConfig) -> Frames:
    """Draws a training clip for each key.

    Args:
        times: time of each frame in seconds from the first, (N,).
        keys: keys of the clips, (V,).
        config: options; frames, stride, fps and sampling are used.

    Returns:
        Numbers of frames, (V, T).
    """
    keys, count = stream(keys, Stream.CLIP), len(times)
    if config.sampling == "segments":
        first, length = _segments(count, config.frames)
        return first + integers(keys, torch.from_numpy(length), config.frames).numpy()  # (V, T)
    if config.fps is None:
        spare = max(0, count - config.frames * config.stride)
        return _by_stride(integers(keys, spare + 1, 1).numpy(), count, config)
    room_seconds = max(0.0, _duration(times) - config.frames / config.fps)
    return _by_time(uniform(keys, 1).double().numpy() * room_seconds, times, config)


def even_frames(times: Times, config: ClipsConfig) -> Frames:
    """Spreads the clips of evaluation evenly over a video. Returns numbers of frames, (V, T) with V = eval_clips."""
    count, clips = len(times), np.arange(config.eval_clips, dtype=np.float64)[:, None]  # (V, 1)
    if config.sampling == "segments":
        first, length = _segments(count, config.frames)
        return first + (length * (clips + 0.5) / config.eval_clips).astype(np.int64)  # (V, T), interleaved
    share = clips / (config.eval_clips - 1) if config.eval_clips > 1 else np.full_like(clips, 0.5)  # from 0 to 1; 0.5 for one clip
    if config.fps is None:
        spare = max(0, count - config.frames * config.stride)
        return _by_stride((share * spare).round().astype(np.int64), count, config)
    return _by_time(share * max(0.0, _duration(times) - config.frames / config.fps), times, config)


def window_frames(times: Times, starts: Times, config: ClipsConfig) -> Frames:
    """Returns the frames of dense clips that start at given times, seconds from the first frame: (V,) to (V, T)."""
    if config.fps is None:
        return _by_stride(frames_at(times, starts)[:, None], len(times), config)
    return _by_time(starts[:, None], times, config)


def last_start(times: Times, config: ClipsConfig) -> float:
    """Returns the last time, in seconds, at which a dense clip can start without repeating its last frame; at least 0."""
    if config.fps is None:
        return float(times[max(0, len(times) - 1 - (config.frames - 1) * config.stride)])
    return max(0.0, float(times[-1]) - (config.frames - 1) / config.fps)


def _segments(count: int, parts: int) -> tuple[Frames, Frames]:
    """Cuts a video into equal parts. Returns the first frame and the length, at least 1, of each, (T,)."""
    bounds = np.arange(parts + 1) * count // parts
    return bounds[:-1], np.maximum(np.diff(bounds), 1)


def _by_stride(start: Frames, count: int, config: ClipsConfig) -> Frames:
    """Returns the frames of clips, given their first frames, (V, 1) to (V, T)."""
    last = (count - 1 - start) // config.stride  # strides until the end of the video, (V, 1)
    return start + config.stride * np.minimum(np.arange(config.frames), last)


def _by_time(start: Times, times: Times, config: ClipsConfig) -> Frames:
    """Returns the frames that are visible in clips, given their starts in seconds, (V, 1) to (V, T)."""
    assert config.fps is not None
    last = np.floor((times[-1] - start) * config.fps + 1e-6).clip(0)  # steps until the end of the video, (V, 1)
    return frames_at(times, start + np.minimum(np.arange(config.frames), last) / config.fps)


def _duration(times: Times) -> float:
    """Returns the duration in seconds. The last frame has the median interval."""
    return float(times[-1]) + (float(np.median(np.diff(times))) if len(times) > 1 else 0.0)
