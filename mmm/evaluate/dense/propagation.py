"""Propagation of masks through a video by features of single frames, without training (Jabri et al., NeurIPS 2020; DINO's values).

A patch of a frame gets the labels of the most similar patches in the first frame and in the preceding frames, within a window
around its position. Labels are propagated as probabilities.

Shapes: T frames, C channels, (H, W) pixels, (h, w) the grid of a frame, N = h w, D width, K labels, the background first.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from mmm.core.checks import AboveZero, CheckedConfig, Positive
from mmm.evaluate.features.table import inference
from mmm.model import MaskedModel

Labels = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class PropagationConfig(CheckedConfig):
    """Options of a propagation. The defaults are DINO's for DAVIS 2017 (eval_video_segmentation.py)."""

    neighbours: Positive = 5
    """Number of similar patches, from all frames together, whose labels are averaged for a patch."""
    temperature: AboveZero = 0.1
    """Temperature of the softmax over the cosine similarities of these patches."""
    radius: Positive = 12
    """Largest distance of these patches from the patch, in rows and columns, in every frame."""
    frames: Positive = 7
    """Number of frames before the current one that are searched, in addition to the first frame."""

    @property
    def flag(self) -> str:
        return "propagation"


@torch.no_grad()
def frame_features(model: MaskedModel, frames: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Encodes frames one by one, as images. With a tokenizer of tubes, an image is one constant tube.

    Args:
        frames: normalised, (T, C, H, W).

    Returns:
        Patches of unit length, float32 (T, N, D), and the grid of a frame.
    """
    found = []
    for frame in frames:
        with inference(model):
            tokens = model.encode(model.tokenizer.lift(frame[None])).tokens
        grid = model.tokenizer.grid(frame[None])
        found.append(tokens.unflatten(1, (-1, grid[-2] * grid[-1])).mean(1)[0].float())  # (N, D)
    return F.normalize(torch.stack(found), dim=2), (grid[-2], grid[-1])


def near(grid: tuple[int, int], radius: int, device: torch.device | str = "cpu") -> Tensor:
    """Marks the pairs of patches that are at most `radius` rows and columns apart, bool (N, N)."""
    rows, columns = (torch.arange(length, device=device) for length in grid)
    close = [(places[:, None] - places).abs() <= radius for places in (rows, columns)]  # (h, h), (w, w)
    return (close[0][:, None, :, None] & close[1][None, :, None, :]).flatten(0, 1).flatten(1, 2)


def propagate(features: Tensor, grid: tuple[int, int], first: Tensor, config: PropagationConfig) -> Tensor:
    """Propagates soft labels from the first frame to all others.

    Args:
        features: features of unit length, (T, N, D).
        first: labels of the first frame's patches, float (N, K).

    Returns:
        float32 (T, N, K).
    """
    inside = near(grid, config.radius, features.device)
    labels, context = [first], deque([0], maxlen=config.frames)
    for frame in range(1, len(features)):
        kept = [0, *(number for number in context if number != 0)]
        keys = features[kept].flatten(0, 1)  # (F N, D)
        similar = features[frame] @ keys.T / config.temperature  # (N, F N)
        similar = similar.masked_fill(~inside.repeat(1, len(kept)), -math.inf)
        value, place = similar.topk(min(config.neighbours, similar.shape[1]), dim=1)
        weight = value.softmax(1)  # the window contains the patch's own position, so at least one value is finite
        source = torch.cat([labels[number] for number in kept])  # (F N, K)
        labels.append((weight[:, :, None] * source[place]).sum(1))
        context.append(frame)
    return torch.stack(labels)


def patch_shares(mask: Labels, grid: tuple[int, int], count: int) -> Tensor:
    """Returns the label of the pixel in the middle of each patch, as one-hot float (N, K)."""
    rows, columns = (((np.arange(new) + 0.5) * old / new).astype(np.int64) for new, old in zip(grid, mask.shape, strict=True))
    return F.one_hot(torch.from_numpy(mask[rows[:, None], columns].astype(np.int64)), count).flatten(0, 1).float()


def to_pixels(labels: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Labels:
    """Computes masks of frames from soft labels of patches, each scaled to [0, 1] in each frame (DINO). (T, N, K) -> (T, H, W)."""
    maps = labels.unflatten(1, grid).movedim(-1, 1)  # (T, K, h, w)
    maps = F.interpolate(maps, size, mode="bilinear", align_corners=False)
    low, high = maps.amin((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)
    stretched = torch.where(high > 0, (maps - low) / (high - low).clamp(min=1e-9), maps)
    found: Labels = stretched.argmax(1).to(torch.uint8).cpu().numpy()
    return found


def propagate_mask(model: MaskedModel, frames: Tensor, mask: Labels, size: tuple[int, int], config: PropagationConfig) -> Labels:
    """Propagates the mask of the first frame to all frames of a clip.

    Args:
        frames: normalised, (T, C, H', W').
        mask: mask of the first frame, 0 for the background, uint8 (H, W).
        size: (H, W) of the result.

    Raises:
        ValueError: the mask has no object.
    """
    count = int(mask.max()) + 1
    if count == 1:
        raise ValueError("the first frame's mask has no object; 0 is the background")
    features, grid = frame_features(model, frames)
    first = patch_shares(mask, grid, count).to(features.device)
    found = to_pixels(propagate(features, grid, first, config), grid, size)
    found[0] = mask if mask.shape == size else found[0]
    return found


# --- J and F ----------------------------------------------------------------------------------------------------------------


def region_similarity(predicted: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """Computes J, the intersection over union of two masks (H, W); 1 if both are empty."""
    union = int((predicted | truth).sum())
    return int((predicted & truth).sum()) / union if union else 1.0


def contour_accuracy(predicted: NDArray[np.bool_], truth: NDArray[np.bool_], tolerance: float = 0.008) -> float:
    """Computes F, the harmonic mean of precision and recall of boundaries (Perazzi et al., "DAVIS", CVPR 2016); 1 if both are
    empty.

    Args:
        predicted, truth: (H, W).
        tolerance: largest distance of two boundaries, as a share of the image's diagonal; rounded up to pixels.
    """
    from skimage.morphology import dilation, disk

    near = disk(math.ceil(tolerance * math.hypot(*truth.shape)))
    edges = [boundary(mask) for mask in (predicted, truth)]
    counts = [int(edge.sum()) for edge in edges]
    if not all(counts):
        return float(counts[0] == counts[1])
    precision = int((edges[0] & dilation(edges[1], near)).sum()) / counts[0]
    recall = int((edges[1] & dilation(edges[0], near)).sum()) / counts[1]
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def boundary(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Marks the boundaries of a mask, one pixel wide, (H, W): a neighbour to the right or below has another value (DAVIS)."""
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    found: NDArray[np.bool_] = (mask != padded[:-1, 1:]) | (mask != padded[1:, :-1]) | (mask != padded[1:, 1:])
    found[-1, -1] = False
    return found


def score_clip(predicted: Labels, truth: Labels) -> dict[str, float]:
    """Computes J and F of a clip, each the mean over objects of the mean over frames, without the first and the last (DAVIS 2017).

    Args:
        predicted, truth: (T, H, W), 0 for the background; the objects are those of the first frame's truth.

    Raises:
        ValueError: there are fewer than three frames.
    """
    if len(truth) < 3:
        raise ValueError(f"{len(truth)} frames: the first and the last are not scored, so at least three are needed")
    objects = [int(number) for number in np.unique(truth[0]) if number]
    pairs = [[(predicted[t] == number, truth[t] == number) for t in range(1, len(truth) - 1)] for number in objects]
    j = [float(np.mean([region_similarity(*pair) for pair in one])) for one in pairs]
    f = [float(np.mean([contour_accuracy(*pair) for pair in one])) for one in pairs]
    return {
        "j": float(np.mean(j)),
        "f": float(np.mean(f)),
        "j_and_f": float((np.mean(j) + np.mean(f)) / 2),
        "objects": len(objects),
    }


def mean_scores(clips: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Computes the means over all objects of all clips, as DAVIS does."""
    weights = [clip["objects"] for clip in clips]
    return {name: float(np.average([clip[name] for clip in clips], weights=weights)) for name in ("j", "f", "j_and_f")}
