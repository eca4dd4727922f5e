"""Frozen features: the output of the encoder for all tokens of each sample, without augmentation.

Images are cropped at the centre. For videos, the features are averaged over the views (data.eval_clips x data.eval_crops).

Each process reads its share of the samples, and all processes get the whole table in the order of the data.

Shapes: B samples of a batch, n samples of a table, C channels, (H, W) of a sample, R prefix tokens, N tokens, D values a feature.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmm.core.modes import evaluating
from mmm.data import Clips, Images
from mmm.data.errors import Problem
from mmm.data.transforms.crop import normalise
from mmm.evaluate.batches import all_gather, rank_and_world, read_batches
from mmm.layers.cpu_bf16 import use_cpu_bf16_kernels
from mmm.model import MaskedModel

logger = logging.getLogger(__name__)

Pooling = Literal["mean", "class", "both"]
Extract = Callable[[Tensor], Tensor]  # normalised (B, C, s...) -> (B, D)
# raw pixels of larger samples are averaged down to this size: an image of 224 x 224 has 150,528 values
RAW_SIDE, RAW_FRAMES = 32, 16


@dataclass(frozen=True)
class FeatureTable:
    """Features of a part of the data.

    Attributes:
        values: fp32 (n, D), on the CPU.
        labels: int64 (n,), or None.
        index: index of each sample in the data, int64 (n,), ascending.
        problems: the unreadable samples, which are not in the table.
    """

    values: Tensor
    labels: Tensor | None
    index: Tensor
    problems: list[Problem]

    def labelled(self, device: torch.device | str) -> tuple[Tensor, Tensor]:
        """Returns features and labels of the samples that have a label, on a device."""
        assert self.labels is not None
        has = self.labels >= 0
        return self.values[has].to(device), self.labels[has].to(device)


@contextmanager
def inference(model: nn.Module, dtype: torch.dtype | None = None) -> Iterator[None]:
    """Context of inference: evaluation mode, no gradient, and autocast to `dtype` (None: fp32). Restores the modes afterwards."""
    device = next(model.parameters()).device
    if dtype == torch.bfloat16 and device.type == "cpu":
        use_cpu_bf16_kernels(model)
    with evaluating(model), torch.no_grad(), torch.autocast(device.type, dtype, enabled=dtype is not None):
        yield


def encoded(model: MaskedModel, pooling: Pooling, dtype: torch.dtype | None = None) -> Extract:
    """Returns a function that computes features: the mean of the tokens, the class token, or both concatenated.

    The function raises ValueError if it needs a class token and the encoder has none.
    """

    def extract(x: Tensor) -> Tensor:
        with inference(model, dtype):
            return model.encode(model.tokenizer.lift(x)).pooled(pooling)

    return extract


def raw_pixels(x: Tensor) -> Tensor:
    """Returns the pixels as features, averaged for large samples. (B, C, s...) -> (B, D)."""
    clip = x if x.dim() == 5 else x[:, :, None]  # (B, C, T, H, W)
    limits = (RAW_FRAMES, RAW_SIDE, RAW_SIDE)
    frames, height, width = (min(side, limit) for side, limit in zip(clip.shape[2:], limits, strict=True))
    return F.adaptive_avg_pool3d(clip, (frames, height, width)).flatten(1)


def extract_features(
    images: Images | Clips, extracts: Mapping[str, Extract], *, device: torch.device | str, batch_size: int = 256
) -> dict[str, FeatureTable]:
    """Computes several features of the same samples, which are read once.

    Args:
        images: the samples. Each is read once; unreadable samples are left out.
        extracts: functions that compute features, by name.
        device: device of the models.
        batch_size: number of samples per process and batch.

    Raises:
        ValueError: no sample can be read.
    """
    values: dict[str, list[Tensor]] = {name: [] for name in extracts}
    index, problems, views = [torch.empty(0, dtype=torch.int64)], list[Problem](), images.config.views
    for batch in read_batches(images, "features", problems, batch_size=batch_size):
        index.append(batch.index[::views])
        x = normalise(batch.pixels.to(device, non_blocking=True), images.config.mean, images.config.std)
        for name, extract in extracts.items():
            values[name].append(extract(x).unflatten(0, (-1, views)).mean(1).cpu())  # (b V, D) -> (b, D)
    own = ({name: torch.cat(parts) for name, parts in values.items() if parts}, torch.cat(index), problems)
    tables, where, unread = zip(*all_gather(own), strict=True)
    found, bad = torch.cat(where), [problem for part in unread for problem in part]
    for problem in bad if rank_and_world()[0] == 0 else []:
        logger.warning("cannot read %s: %s; it is left out of this evaluation", problem.name, problem.reason)
    if not len(found):
        raise ValueError(f"none of {images.title} can be read; the first: {bad[0].reason}")
    labels = images.labels()
    labels = None if labels is None else labels[found]
    return {name: FeatureTable(torch.cat([part[name] for part in tables if part]), labels, found, bad) for name in extracts}
