"""Preparation of images and clips in the usual forms for a model: decoding, resizing, cropping and normalisation.

Shapes: B samples, C channels, (H, W) of a sample, T frames.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from mmm.core.rng import sample_keys
from mmm.core.types import Input
from mmm.data.clip_config import ClipsConfig
from mmm.data.datasets.clip_sampling import even_frames
from mmm.data.decode.image import Pixels, decode_image
from mmm.data.errors import Unreadable
from mmm.data.media import IMAGE_SUFFIXES
from mmm.data.transforms import clip_crop
from mmm.data.transforms.crop import center_crop, covering_size, crop_boxes, flip, normalise, resized_crop

T = TypeVar("T")

SCALE, RATIO, FLIP = (0.2, 1.0), (3 / 4, 4 / 3), 0.5  # the crop of MAE's pretraining
ANIMATED = {".gif", ".webp", ".avif"}  # suffixes of images that may have several frames


class Transform:
    """Prepares samples for one model, with its own size, channels, mean and standard deviation.

    An image may be a Pillow image, the path of a file, encoded bytes, an array or a tensor: uint8, or floating point from 0 to 1;
    (H, W), (H, W, C) or (C, H, W). A clip may be the path or the encoded bytes of a video, an array or a tensor (T, H, W, C) or
    (T, C, H, W), or a list of images, which are its frames. For a video, the middle clip is used, as in evaluation. If there are
    more frames than the model takes, evenly spaced frames are used. Several samples are given as a list or along an additional
    first axis; the bytes of a video are given one at a time. A single sample becomes a batch of one. Without `training` the pixels
    are those of evaluation.

    Methods of models, such as `encode`, take a floating-point tensor with a batch axis as already normalised: (B, C, H, W) for a
    model of images, (B, C, T, H, W) for a model of clips. Everything else they pass through this class.

    Example:
        x = model.transform(Image.open("cat.jpg"))              # (1, 3, 224, 224)
        x = model.transform([first, second, third])             # (3, 3, 224, 224)
        x = Transform(model.data, training=True)(images)        # random crops and flips, drawn from torch's generator
    """

    def __init__(self, data: Input, *, training: bool = False) -> None:
        """Prepares samples of this size and normalisation.

        Args:
            data: properties of the model's samples.
            training: random resized crops and horizontal flips instead of the middle crop of evaluation.
        """
        self.data, self.training = data, training

    def __call__(self, samples: Any) -> Tensor:
        """Returns normalised samples, fp32 (B, C, H, W) or (B, C, T, H, W), on the CPU.

        Raises:
            ValueError: the model does not accept the form, the number of channels or the number of frames of a sample.
        """
        try:
            clips = self._read(samples, self._frames)
            seed = int(torch.randint(2**62, ())) if self.training else 0  # an evaluation leaves torch's generator alone
            keys = sample_keys(seed, 0, torch.arange(len(clips)))
            pixels = torch.stack([self._crop(frames, key) for frames, key in zip(clips, keys, strict=True)])  # (B, C, T, H, W)
        except Unreadable as error:  # for instance an image that would be huge after it is resized
            raise ValueError(f"a sample cannot be read: {error}") from error
        x = normalise(flip(pixels, keys, FLIP) if self.training else pixels, self.data.mean, self.data.std)
        return x if len(self.data.size) == 3 else x[:, :, 0]

    def images(self, samples: Any) -> list[Pixels]:
        """Returns images at their own size, uint8 (H, W, C) each, for models that score pixels or find objects.

        Raises:
            ValueError: an image has a form or a number of channels that the model does not accept.
        """
        return self._read(samples, lambda sample: decode_image(sample, self.data.channels))

    def _read(self, samples: Any, read: Callable[[Any], T]) -> list[T]:
        """Returns what `read` makes of each sample."""
        found, listed = list[T](), self._listed(samples)
        if not listed:
            raise ValueError("there are no samples; give at least one image or clip")
        for number, sample in enumerate(listed):
            try:
                found.append(read(sample))
            except Unreadable as error:
                name = "a sample" if len(listed) == 1 else f"samples[{number}]"
                name += f", {sample}," if isinstance(sample, (str, Path)) else ""
                raise ValueError(f"{name} cannot be read: {error}") from error
        return found

    def _listed(self, samples: Any) -> list[Any]:
        """Returns a list of the samples."""
        axes = len(self.data.size) + 1  # number of axes of one sample with its channels
        if isinstance(samples, (np.ndarray, Tensor)):
            return list(samples) if samples.ndim == axes + 1 else [samples]
        if not isinstance(samples, Sequence) or isinstance(samples, (str, bytes)):
            return [samples]
        frames = axes == 4 and all(not isinstance(one, (str, Path, list, tuple)) and np.ndim(_array(one)) <= 3 for one in samples)
        return [list(samples)] if frames and len(samples) else list(samples)

    def _frames(self, sample: Any) -> list[np.ndarray[Any, Any]]:
        """Returns the frames of one sample, uint8 (h, w, C) of one size each. An image has one frame."""
        if len(self.data.size) == 2:
            hint = None if self.training else max(covering_size(1, 1, self.data.size))
            return [decode_image(sample, self.data.channels, hint)]
        frames = self.data.size[0]
        takes = f"this model takes clips of {frames} frames: give a video, a list of frames, or an array (T, H, W, C)"
        if isinstance(sample, (str, Path)) and Path(sample).suffix.lower() in IMAGE_SUFFIXES - ANIMATED:
            raise Unreadable(f"{takes}; the paths of the frames of one clip go into a list of their own, [[first, second, ...]]")
        if isinstance(sample, (str, Path, bytes)):
            return self._film(sample if isinstance(sample, bytes) else Path(sample), frames)
        if not (isinstance(sample, (list, tuple)) or np.ndim(_array(sample)) == 4):
            shape = f", not {tuple(sample.shape)}" if isinstance(sample, (np.ndarray, Tensor)) else ""
            raise Unreadable(takes + shape)
        if len(sample) < frames:
            raise Unreadable(f"the clip has {len(sample)} frames, and this model takes {frames}; give a longer one")
        found = [decode_image(sample[number], self.data.channels) for number in _even(len(sample), frames)]
        if len(sizes := dict.fromkeys(f"{height} x {width}" for height, width, _ in (one.shape for one in found))) > 1:
            raise Unreadable(f"its frames have the sizes {' and '.join(sizes)} pixels; resize the frames of a clip to one size")
        return found

    def _film(self, source: Path | bytes, frames: int) -> list[np.ndarray[Any, Any]]:
        """Returns the frames of the middle clip of a video. If the stride of the model is not known, they are evenly spaced."""
        from mmm.data.decode.video import OpenVideo
        from mmm.data.decode.video.frame_folder import check_times

        if self.data.fps is not None:
            check_times(source, f"this model reads {self.data.fps:g} frames per second: give a video, or the frames of a clip")
        with OpenVideo(source) as video:
            numbers = _even(len(video), frames) if self.data.stride is None else even_frames(video.times, self._clip())[0]
            return list(video.read(numbers, self.data.channels))  # (T, h, w, C)

    def _clip(self) -> ClipsConfig:
        """Returns the config that chooses the middle clip of a video, as in evaluation."""
        data = self.data
        assert data.stride is not None
        sampling: Any = data.sampling or "dense"
        return ClipsConfig(frames=data.size[0], stride=data.stride, fps=data.fps, sampling=sampling, eval_clips=1)

    def _crop(self, frames: list[np.ndarray[Any, Any]], key: Tensor) -> Tensor:
        """Returns one sample, uint8 (C, T, H, W), with the same crop for all frames."""
        size = (self.data.size[-2], self.data.size[-1])
        if not self.training and len(self.data.size) == 2:
            return center_crop(frames[0], size)[:, None]
        if not self.training:
            return _middle(torch.from_numpy(np.stack(frames)), size).permute(3, 0, 1, 2)
        heights, widths = (torch.tensor([frames[0].shape[axis]]) for axis in (0, 1))
        box = crop_boxes(key[None], heights, widths, SCALE, RATIO)[0].tolist()
        sample = torch.empty(self.data.channels, len(frames), *size, dtype=torch.uint8)
        for number, frame in enumerate(frames):
            resized_crop(frame, box, sample[:, number])
        return sample


def _middle(clip: Tensor, size: tuple[int, int]) -> Tensor:
    """Returns the middle crop of evaluation, uint8 (T, h, w, C), of a clip (T, H, W, C)."""
    covering = clip_crop.covering_size(clip.shape[1], clip.shape[2], size)
    return clip_crop.cut(clip_crop.resize(clip, covering), clip_crop.even_boxes(*covering, size, 1)[0])


def _array(value: Any) -> Any:
    """Returns the value, or an empty array if it is not an array."""
    return value if isinstance(value, (np.ndarray, Tensor)) else np.empty(())


def _even(count: int, frames: int) -> list[int]:
    """Returns evenly spaced numbers below `count`, each in the middle of an equal part."""
    return [(2 * number + 1) * count // (2 * frames) for number in range(frames)]
