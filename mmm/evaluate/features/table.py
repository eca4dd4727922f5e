"""Frozen features: each sample once, its middle crop, what the encoder makes of all its tokens, and nothing trained on top.

Of a video, the mean over its views (data.eval_clips x data.eval_crops), which are cut from one decode.

Every process reads its part, and all get the whole table, in the data's order: what follows needs no further exchange.

Shapes: B samples of a batch, n of a table, C channels, (H, W) of a sample, R prefix tokens, N tokens, D values a feature.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from mmm.core.rng import sample_keys, scores
from mmm.data import Clips, Images
from mmm.data.errors import Problem
from mmm.data.loading.loader import eval_batches
from mmm.data.transforms.crop import normalise
from mmm.evaluate.progress import progress
from mmm.model import MaskedModel

logger = logging.getLogger(__name__)

T = TypeVar("T")
Samples = TypeVar("Samples", Images, Clips, Images | Clips)
Pooling = Literal["mean", "class", "both"]
Extract = Callable[[Tensor], Tensor]  # normalised (B, C, s...) -> (B, D)
# raw pixels of larger samples are averaged down to this: at 224, a linear classifier would get 150,528 values of an image
RAW_SIDE, RAW_FRAMES = 32, 16


@dataclass(frozen=True)
class FeatureTable:
    """Features of a part of the data.

    Attributes:
        values: fp32 (n, D), on the CPU.
        labels: int64 (n,), or None.
        index: of each sample in the data, int64 (n,), ascending.
        problems: the samples that could not be read and so are not here.
    """

    values: Tensor
    labels: Tensor | None
    index: Tensor
    problems: list[Problem]

    def labelled(self, device: torch.device | str) -> tuple[Tensor, Tensor]:
        """Features and labels of the samples that have a label, on a device."""
        assert self.labels is not None
        has = self.labels >= 0
        return self.values[has].to(device), self.labels[has].to(device)


@contextmanager
def inference(model: nn.Module, dtype: torch.dtype | None = None) -> Iterator[None]:
    """Evaluation mode, no gradient, and autocast to `dtype` (None: fp32); restores the mode afterwards."""
    training, device = model.training, next(model.parameters()).device
    model.eval()
    try:
        with torch.no_grad(), torch.autocast(device.type, dtype, enabled=dtype is not None):
            yield
    finally:
        model.train(training)


def encoded(model: MaskedModel, pooling: Pooling, dtype: torch.dtype | None = None) -> Extract:
    """A model's features: the mean of its tokens, its class token, or one behind the other.

    It raises a ValueError where a class token is wanted of an encoder that has none.
    """

    def extract(x: Tensor) -> Tensor:
        with inference(model, dtype):
            return model.encode(x).pooled(pooling)

    return extract


def raw_pixels(x: Tensor) -> Tensor:
    """The trivial feature: the pixels themselves, of large samples averaged. (B, C, s...) -> (B, D)."""
    clip = x if x.dim() == 5 else x[:, :, None]  # (B, C, T, H, W)
    limits = (RAW_FRAMES, RAW_SIDE, RAW_SIDE)
    frames, height, width = (min(side, limit) for side, limit in zip(clip.shape[2:], limits, strict=True))
    return F.adaptive_avg_pool3d(clip, (frames, height, width)).flatten(1)


def extract_features(
    images: Images | Clips, extracts: Mapping[str, Extract], *, device: torch.device | str, batch_size: int = 256
) -> dict[str, FeatureTable]:
    """Several features of the same samples, which are read once.

    Args:
        images: what to read; each sample once, none put in an unreadable one's place.
        extracts: by the name of the feature.
        device: of the models.
        batch_size: of a process, samples.

    Raises:
        ValueError: where not one sample can be read.
    """
    rank, world = rank_and_world()
    values: dict[str, list[Tensor]] = {name: [] for name in extracts}
    index, problems, views = [torch.empty(0, dtype=torch.int64)], [], images.config.views
    batches = eval_batches(images, images.config, batch_size=batch_size, world=world, rank=rank)
    what = f"features of {images.title}"
    for batch in progress(batches, -(-len(images) // world), what, lambda batch: len(batch.index) // views + len(batch.problems)):
        problems += batch.problems
        index.append(batch.index[::views])
        if len(batch):
            x = normalise(batch.pixels.to(device, non_blocking=True), images.config.mean, images.config.std)
            for name, extract in extracts.items():
                values[name].append(extract(x).unflatten(0, (-1, views)).mean(1).cpu())  # (b V, D) -> (b, D)
    own = ({name: torch.cat(parts) for name, parts in values.items() if parts}, torch.cat(index), problems)
    tables, where, unread = zip(*all_gather(own), strict=True)
    found, bad = torch.cat(where), [problem for part in unread for problem in part]
    for problem in bad if rank == 0 else []:
        logger.warning("cannot read %s: %s; it is left out of this evaluation", problem.name, problem.reason)
    if not len(found):
        raise ValueError(f"not one of {images.title} can be read; the first: {bad[0].reason}")
    labels = images.labels()
    labels = None if labels is None else labels[found]
    return {name: FeatureTable(torch.cat([part[name] for part in tables if part]), labels, found, bad) for name in extracts}


def choose(images: Samples, count: int | None, seed: int = 0) -> Samples:
    """At most `count` of the samples, chosen by key, in the data's order; None: all."""
    if count is None or count >= len(images):
        return images
    chance = scores(sample_keys(seed, 0, torch.arange(len(images))), 1)[:, 0]  # (N,)
    return images.subset(chance.argsort()[:count].sort().values)


def rank_and_world() -> tuple[int, int]:
    """The number of this process, and how many there are."""
    together = distributed.is_available() and distributed.is_initialized()
    return (distributed.get_rank(), distributed.get_world_size()) if together else (0, 1)


def all_gather(own: T) -> list[T]:
    """The values of all processes, in the order of their ranks."""
    if rank_and_world()[1] == 1:
        return [own]
    parts: list[T] = [own] * distributed.get_world_size()
    distributed.all_gather_object(parts, own)
    return parts
