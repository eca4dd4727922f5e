"""Counter-based random numbers: each draw is a pure function of a sample.

A key is an int64 that identifies one draw: (seed, source, epoch, sample, repeat). There is no generator state, so a crop or a mask
is the same on any device, in any batch, on any number of processes and after any resume.

The hash is splitmix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014) in int64 tensors,
whose multiplication overflows like that of uint64; 256 masks of 196 tokens take about 0.2 ms.

Code of other libraries draws from global generators: timm's augmentations from those of Python and NumPy, and from torch's for
erased areas. `seeded` seeds these from a key, and restores them.

Shapes: B samples, n draws per sample.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

# splitmix64's golden-ratio increment and its two multipliers, as signed 64-bit integers
INCREMENT, FIRST, SECOND = -7046029254386353131, -4658895280553007687, -7723592293110705685


class Stream(IntEnum):
    """A constant for each purpose, so that the random decisions about a sample are independent. Do not change the numbers, because
    runs depend on them."""

    ORDER = 1
    CROP = 2
    FLIP = 3
    MASK = 4
    CLIP = 5
    AUGMENT = 6
    HOLDOUT = 7
    SUBSTITUTE = 8
    BATCH = 9
    NOISE = 10
    POLICY = 11
    ERASE = 12
    MIX = 13
    MASKS = 14  # each of several masks of a sample
    PHOTOMETRIC = 15
    SIZE = 16


def _shift(x: Tensor, bits: int) -> Tensor:
    """Shifts right without the sign; torch's `>>` on int64 copies the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """Applies splitmix64's finaliser elementwise, a bijection on 64 bits."""
    x = (x ^ _shift(x, 30)) * FIRST
    x = (x ^ _shift(x, 27)) * SECOND
    return x ^ _shift(x, 31)


def _int64(value: int | Tensor, device: torch.device | str | None = None) -> Tensor:
    """Returns an int64 tensor. Tensors wrap on overflow, in contrast to Python's integers."""
    return torch.as_tensor(value, dtype=torch.int64, device=device)


def _increments(number: int | Tensor, device: torch.device) -> int | Tensor:
    """Returns number * INCREMENT in 64 bits. A Python number stays one, because a tensor would make the host wait for a GPU."""
    if isinstance(number, Tensor):
        return _int64(number, device) * INCREMENT
    return (number * INCREMENT + 2**63) % 2**64 - 2**63


def sample_keys(
    seed: int, epoch: int | Tensor, index: int | Tensor, *, source: int | Tensor = 0, repeat: int | Tensor = 0
) -> Tensor:
    """Returns the keys of samples, from which all their random numbers are derived.

    Args:
        seed: random seed of the run.
        epoch: number of completed passes over the dataset, () or (B,).
        index: index of each sample in its dataset, () or (B,).
        source: index of the dataset, if a run mixes several.
        repeat: index of the draw, if several are drawn of one decoded sample.

    Returns:
        int64 (B,), on the device of `index`.
    """
    where = torch.atleast_1d(_int64(index))
    keys = _mix(torch.full_like(where, seed) + INCREMENT)
    for part in (source, epoch, where, repeat):
        keys = _mix(keys + _increments(part, where.device))
    return keys


def stream(keys: Tensor, purpose: int) -> Tensor:
    """Returns the keys for one purpose, independent of those for other purposes. (B,) -> (B,)."""
    return _mix(keys + _increments(int(purpose), keys.device))


def scores(keys: Tensor, n: int) -> Tensor:
    """Returns n uniformly distributed int64 per key, (B,) -> (B, n). Sort these rather than floats, of which some can be equal."""
    counter = torch.arange(1, n + 1, dtype=torch.int64, device=keys.device)
    return _mix(keys[:, None] + counter * INCREMENT)  # (B, n)


def uniform(keys: Tensor, n: int) -> Tensor:
    """Returns n draws from [0, 1) per key, float32 (B, n). They are the upper 24 bits of the scores, and so do not depend on the
    device."""
    return _shift(scores(keys, n), 40).to(torch.float32) * 2.0**-24


def integers(keys: Tensor, high: int | Tensor, n: int) -> Tensor:
    """Returns n draws from 0 .. high - 1 per key, int64 (B, n); `high` is a number or broadcasts over (B, n)."""
    return _shift(scores(keys, n), 1) % high  # the bias is less than high / 2^63


def permutation(keys: Tensor, n: int) -> Tensor:
    """Returns a permutation of 0 .. n - 1 per key, int64 (B, n)."""
    return scores(keys, n).argsort(dim=1, stable=True)


# --- global generators ----------------------------------------------------------------------------------------------------------


@contextmanager
def seeded(key: Tensor, device: torch.device | None = None) -> Iterator[None]:
    """Seeds the global generators from a key inside the context, and restores them afterwards.

    This takes about 0.1 ms.

    Args:
        key: int64 (), on the CPU.
        device: device whose generator is seeded in addition to that of the CPU.
    """
    with kept(device):
        seed(key, device)
        yield


@contextmanager
def kept(device: torch.device | None = None) -> Iterator[None]:
    """Restores the states of the global generators at the end of the context."""
    python, numbers = random.getstate(), np.random.get_state()
    others = [] if device is None or device.type == "cpu" else [device]
    try:
        with torch.random.fork_rng(others, device_type=others[0].type if others else "cuda"):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numbers)


def seed(key: Tensor, device: torch.device | None = None) -> None:
    """Seeds the global generators; for use inside `kept`."""
    number = int(key) % 2**64  # because Python's generator ignores the sign
    random.seed(number)
    np.random.seed([number >> 32, number % 2**32])
    torch.default_generator.manual_seed(number)
    if device is not None and device.type != "cpu":
        getattr(torch, device.type).manual_seed(number)
