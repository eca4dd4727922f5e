"""Segmentation by nearest patches, without training (the protocol of CAPI, Darcet et al., 2025).

Every image is resized to one square. A pixel of a patch gets the most frequent label of the pixels at the same position in the k
nearest training patches. Features are standardised on the training patches; k and the distance are chosen on a tenth of the
training images.

Shapes: n patches, D width, p side of a patch in pixels, k neighbours, K classes.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mmm.core.rng import sample_keys, scores
from mmm.data.annotated.maps import IGNORE, Numbers
from mmm.data.annotated.pixels import LabelledPixels
from mmm.data.errors import Problem, Unreadable
from mmm.data.transforms.crop import normalise
from mmm.data.transforms.resize import resize
from mmm.evaluate.dense.segmentation import SegmentationScore
from mmm.evaluate.features.table import inference
from mmm.evaluate.progress import progress
from mmm.model import MaskedModel

logger = logging.getLogger(__name__)

Distance = Literal["cosine", "euclidean"]
KS = (1, 3, 10, 30)
CHOICE = 0.1  # share of the training images on which k and the distance are chosen
BLOCK = 1024  # patches whose neighbours are searched at once


@dataclass(frozen=True)
class Patches:
    """Patches of a part of the data.

    Attributes:
        features: float32 (n, D).
        labels: int64 (n, p * p), IGNORE for pixels without a label.
        images: image of each patch, int64 (n,).
    """

    features: Tensor
    labels: Tensor
    images: Tensor


def patch_labels(numbers: Numbers, grid: tuple[int, int], token: tuple[int, int]) -> Tensor:
    """Returns the labels of the pixels of each patch of a resized mask, int64 (h w, p * p)."""
    size = (grid[0] * token[0], grid[1] * token[1])
    rows, columns = (((np.arange(new) + 0.5) * old / new).astype(np.int64) for new, old in zip(size, numbers.shape, strict=True))
    mask = torch.from_numpy(numbers[rows[:, None], columns].astype(np.int64))
    blocks = mask.view(grid[0], token[0], grid[1], token[1]).transpose(1, 2)  # (h, w, p, p)
    return blocks.reshape(grid[0] * grid[1], -1)


@torch.no_grad()
def read_patches(model: MaskedModel, part: LabelledPixels[Any], problems: list[Problem]) -> Patches:
    """Encodes all images of a split, resized to the size of the data's crops. Unreadable images are left out and reported.

    Raises:
        ValueError: no image can be read.
    """
    config, token = part.config, (model.tokenizer.size[-2], model.tokenizer.size[-1])
    device = next(model.parameters()).device
    features, labels, images = [], [], []
    for index in progress(range(len(part)), len(part), f"patches of {part.title}"):
        try:
            image, numbers = part.read(index)
        except Unreadable as error:
            problems.append(Problem(index, part.name(index), str(error)))
            continue
        squashed = resize(torch.from_numpy(image).permute(2, 0, 1)[None], config.frame_size, "bicubic")
        x = normalise(squashed.to(device), config.mean, config.std)
        with inference(model):
            encoded = model.encode(model.tokenizer.lift(x))
        grid = model.tokenizer.grid(x)
        tokens = encoded.tokens[0].unflatten(0, grid)
        features.append((tokens if len(grid) == 2 else tokens.mean(0)).flatten(0, 1).float().cpu())
        labels.append(patch_labels(numbers, (grid[-2], grid[-1]), token))
        images.append(torch.full((len(labels[-1]),), index))
    if not features:
        raise ValueError(f"not one of {part.title} can be read; the first: {problems[0].reason}")
    return Patches(torch.cat(features), torch.cat(labels), torch.cat(images))


def labelled_patches(patches: Patches, most: int | None, seed: int = 0) -> Patches:
    """Leaves out patches in which most pixels have no label, and keeps at most `most` of the others, chosen by key."""
    rows = ((patches.labels == IGNORE).float().mean(1) <= 0.5).nonzero()[:, 0]
    if most is not None and len(rows) > most:
        chance = scores(sample_keys(seed, 0, rows), 1)[:, 0]
        rows = rows[chance.argsort()[:most]].sort().values
    return Patches(patches.features[rows], patches.labels[rows], patches.images[rows])


def vote(train: Patches, queries: Tensor, *, distance: Distance, ks: tuple[int, ...], classes: int) -> dict[int, Tensor]:
    """Labels the pixels of patches by their nearest training patches.

    Args:
        train: training patches with standardised features.
        queries: features standardised in the same way, (m, D).
        ks: numbers of neighbours.

    Returns:
        int64 (m, p * p) for each k; the lower of two classes with equal votes.
    """
    keys = F.normalize(train.features, dim=1) if distance == "cosine" else train.features
    squares = keys.square().sum(1)
    found: dict[int, list[Tensor]] = {k: [] for k in ks}
    for block in queries.split(BLOCK):
        block = F.normalize(block, dim=1) if distance == "cosine" else block
        near = (2 * block @ keys.T - squares).topk(min(max(ks), len(keys)), dim=1).indices  # (m, k)
        labels = train.labels[near]  # (m, k, p * p)
        for k in ks:
            chosen = labels[:, :k].clamp(max=classes)  # IGNORE becomes an additional class, which gets no vote
            votes = torch.zeros(len(block), classes + 1, chosen.shape[2])
            votes.scatter_add_(1, chosen, torch.ones_like(chosen, dtype=votes.dtype))
            found[k].append(votes[:, :classes].argmax(1))
    return {k: torch.cat(parts) for k, parts in found.items()}


def patch_knn(
    model: MaskedModel, train: LabelledPixels[Any], test: LabelledPixels[Any], *, most: int | None, problems: list[Problem]
) -> tuple[dict[str, Any], Patches, Tensor]:
    """Segments the test images by nearest patches of the training images.

    Args:
        most: largest number of training patches, chosen by key.
        problems: unreadable images are added here.

    Returns:
        The values of `SegmentationScore.result` at the resized size, with `k`, `distance`, `samples` and `patches`; the test
        patches; and their predicted labels, int64 (m, p * p).
    """
    train_patches = labelled_patches(read_patches(model, train, problems), most)
    test_patches = read_patches(model, test, problems)
    mean, std = train_patches.features.mean(0), train_patches.features.std(0).clamp(min=1e-6)
    train_patches = Patches((train_patches.features - mean) / std, train_patches.labels, train_patches.images)
    k, distance = _choose(train_patches, train.count)
    logger.info("nearest patches: k %d and %s distance did best on a tenth of the training images", k, distance)
    predicted = vote(train_patches, (test_patches.features - mean) / std, distance=distance, ks=(k,), classes=train.count)[k]
    score = SegmentationScore(train.count)
    score.add(predicted, test_patches.labels)
    extra = {"k": k, "distance": distance, "samples": len(test_patches.images.unique()), "patches": len(train_patches.images)}
    return score.result() | extra, test_patches, predicted


def _choose(patches: Patches, classes: int) -> tuple[int, Distance]:
    """Chooses k and the distance by the mIoU on a tenth of the training images."""
    images = patches.images.unique()
    held = images[scores(sample_keys(1, 0, images), 1)[:, 0].argsort()[: max(1, round(CHOICE * len(images)))]]
    mine = torch.isin(patches.images, held)
    if mine.all():
        return 1, "cosine"
    rest = Patches(patches.features[~mine], patches.labels[~mine], patches.images[~mine])
    best: tuple[float, int, Distance] = (-1.0, 1, "cosine")
    distances: tuple[Distance, ...] = ("cosine", "euclidean")
    for distance in distances:
        for k, predicted in vote(rest, patches.features[mine], distance=distance, ks=KS, classes=classes).items():
            score = SegmentationScore(classes)
            score.add(predicted, patches.labels[mine])
            best = max(best, (score.result()["miou"], k, distance), key=lambda one: one[0])
    return best[1], best[2]
