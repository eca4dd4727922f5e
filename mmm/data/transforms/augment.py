"""RandAugment of training crops (Cubuk et al., "RandAugment", NeurIPS 2020), by timm, each sample's draws from its own key.

Resampling is bicubic and what moves in is filled with the data's mean colour, as MAE's and VideoMAE's fine-tuning have it.

Shapes: T frames (1 of an image), (h, w) of a sample, C channels.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mmm.core.generators import kept, seed
from mmm.core.rng import Stream, stream

# timm itself passes over what it does not know, so that `rand-9` would mean `rand-m10`
PART = re.compile(r"(m|n|mmax)\d+|(p|mstd)\d+(\.\d+)?|inc[01]|t(weights|3a|3aw)")


def rand_augment(frames: Tensor, key: Tensor, policy: str, mean: tuple[float, ...]) -> None:
    """Changes a sample in place, all its frames by the same operations.

    Args:
        frames: uint8 (T, h, w, C), C 1 or 3.
        key: of the sample, int64 ().
        policy: in timm's words.
        mean: of each channel, in units of [0, 1].

    Raises:
        ValueError: naming the operation that failed.
    """
    change = _policy(policy, mean)
    drawn = stream(key[None], Stream.POLICY)[0]
    with kept():
        for frame in frames:
            seed(drawn)
            frame.copy_(_changed(frame, change))


def check_policy(policy: str, channels: int) -> None:
    """Raises ValueError where timm would not understand the policy, or the pixels are not what it works on."""
    first, *parts = policy.split("-")
    wrong = [part for part in parts if not PART.fullmatch(part)] if first == "rand" else [first]
    if wrong:
        raise ValueError(
            f"data.augment {policy}: {wrong[0]!r} is not understood; give RandAugment in timm's words, such as rand-m9-mstd0.5-inc1"
        )
    if channels not in (1, 3):
        raise ValueError(f"data.augment works on grey and RGB pixels, not on data.channels {channels}; leave it out")


def _changed(frame: Tensor, change: Callable[[Any], Any]) -> Tensor:
    """uint8 (h, w, C) -> the same."""
    pixels = frame.squeeze(2) if frame.shape[2] == 1 else frame  # Pillow's grey pictures have no channel
    result = change(Image.fromarray(pixels.numpy()))
    return torch.frombuffer(bytearray(result.tobytes()), dtype=torch.uint8).view(frame.shape)


@lru_cache
def _policy(policy: str, mean: tuple[float, ...]) -> Callable[[Any], Any]:
    from timm.data.auto_augment import rand_augment_transform  # here: it brings in torchvision

    fill = tuple(min(255, round(255 * value)) for value in mean)
    change: Callable[[Any], Any] = rand_augment_transform(policy, {"img_mean": fill, "interpolation": Image.Resampling.BICUBIC})
    for operation in change.ops:  # type: ignore[attr-defined]
        operation.aug_fn = partial(_apply, operation.name, operation.aug_fn)
    return change


def _apply(name: str, function: Callable[..., Any], image: Image.Image, *arguments: Any, **options: Any) -> Any:
    """Runs one of timm's operations.

    Posterizing to 0 bits returns a black image. Pillow did so before version 13, which raises an error below 1 bit.
    """
    if name.startswith("Posterize") and arguments[0] < 1:
        return Image.new(image.mode, image.size)
    try:
        return function(image, *arguments, **options)
    except Exception as error:  # whatever Pillow raises
        listed = ", ".join(f"{value:g}" for value in arguments)
        raise ValueError(f"the operation {name}({listed}) of data.augment failed: {type(error).__name__}: {error}") from error
