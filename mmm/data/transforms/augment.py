"""RandAugment and random erasing by timm, with random numbers from each sample's key.

RandAugment: Cubuk et al., NeurIPS 2020. Resampling is bicubic, and empty pixels get the data's mean colour, as in the
fine-tuning of MAE and VideoMAE. Random erasing: Zhong et al., AAAI 2020.

Shapes: B samples, T frames (1 for an image), (h, w) of a sample, C channels.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mmm.core.rng import Stream, kept, seed, seeded, stream, uniform

# timm ignores parts that it does not support, so that `rand-9` would mean `rand-m10`
PART = re.compile(r"(m|n|mmax)\d+|(p|mstd)\d+(\.\d+)?|inc[01]|t(weights|3a|3aw)")


def rand_augment(frames: Tensor, key: Tensor, policy: str, mean: tuple[float, ...]) -> None:
    """Applies the same operations to all frames of a sample, in place.

    Args:
        frames: uint8 (T, h, w, C), C 1 or 3.
        key: the sample's key, int64 ().
        policy: the operations in timm's notation.
        mean: the mean of each channel, from 0 to 1.

    Raises:
        ValueError: an operation failed; the message names it.
    """
    transform = _policy(policy, mean)
    drawn = stream(key[None], Stream.POLICY)[0]
    with kept():
        for frame in frames:
            seed(drawn)
            frame.copy_(_transformed(frame, transform))


def erase(x: Tensor, keys: Tensor, probability: float) -> Tensor:
    """Fills a box of some samples with normal noise, in place; in a clip, the same box of all frames.

    Args:
        x: normalised, float (B, C, ..., h, w).
        keys: keys of the samples, int64 (B,), on the CPU, so that the choice of samples needs no synchronization.
        probability: probability that a sample is changed.

    Returns:
        x.
    """
    from timm.data.random_erasing import RandomErasing  # here, because it imports torchvision

    keys = stream(keys, Stream.ERASE)
    chosen = uniform(keys, 1)[:, 0] < probability  # (B,)
    transform: Any = RandomErasing(probability=1.0, mode="pixel", device=x.device)
    for row in chosen.nonzero().flatten().tolist():
        with seeded(keys[row], x.device):
            x[row] = transform(x[row].flatten(0, -3)).view(x.shape[1:])  # frames are treated as channels, (C T, h, w)
    return x


def check_policy(policy: str, channels: int) -> None:
    """Raises ValueError for a policy that timm does not support, or a number of channels that it does not support."""
    first, *parts = policy.split("-")
    wrong = [part for part in parts if not PART.fullmatch(part)] if first == "rand" else [first]
    if wrong:
        raise ValueError(
            f"data.augment {policy}: {wrong[0]!r} is not understood; give RandAugment in timm's notation, "
            "such as rand-m9-mstd0.5-inc1"
        )
    if channels not in (1, 3):
        raise ValueError(f"data.augment supports grey and RGB pixels, not data.channels {channels}; leave it out")


def _transformed(frame: Tensor, transform: Callable[[Any], Any]) -> Tensor:
    """Transforms a frame, uint8 (h, w, C) -> uint8 (h, w, C)."""
    pixels = frame.squeeze(2) if frame.shape[2] == 1 else frame  # Pillow's grey images have no channel axis
    result = transform(Image.fromarray(pixels.numpy()))
    return torch.frombuffer(bytearray(result.tobytes()), dtype=torch.uint8).view(frame.shape)


@lru_cache
def _policy(policy: str, mean: tuple[float, ...]) -> Callable[[Any], Any]:
    from timm.data.auto_augment import rand_augment_transform  # here, because it imports torchvision

    fill = tuple(min(255, round(255 * value)) for value in mean)
    transform: Callable[[Any], Any] = rand_augment_transform(policy, {"img_mean": fill, "interpolation": Image.Resampling.BICUBIC})
    for operation in transform.ops:  # type: ignore[attr-defined]
        operation.aug_fn = partial(_apply, operation.name, operation.aug_fn)
    return transform


def _apply(name: str, function: Callable[..., Any], image: Image.Image, *arguments: Any, **options: Any) -> Any:
    """Runs one of timm's operations.

    Posterizing to 0 bits returns a black image. Pillow did so before version 13, which raises an error below 1 bit.
    """
    if name.startswith("Posterize") and arguments[0] < 1:
        return Image.new(image.mode, image.size)
    try:
        return function(image, *arguments, **options)
    except Exception as error:  # Pillow raises errors of many kinds
        listed = ", ".join(f"{value:g}" for value in arguments)
        raise ValueError(f"the operation {name}({listed}) of data.augment failed: {type(error).__name__}: {error}") from error
