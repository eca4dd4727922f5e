"""MAE-ST's official layout (Feichtenhofer et al., NeurIPS 2022; models_mae.py, models_vit.py), encoders and classifiers of clips.

Positions are learned, and stored separately for places, times and the class token; here they are one table. The decoder
predicts one frame of each tube, which no target here does, and is left out.

Legend: D width, N places, T times, t frames and p pixels of a tube's sides, C channels.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from mmm.classifier import HeadConfig
from mmm.core.types import RequiredFeatures
from mmm.encoders import VisionTransformer
from mmm.pools import MeanPool
from mmm.tokenizers import Tubes
from mmm.weights.formats.base import Format, Model, Options, Stored, find_input, register
from mmm.weights.formats.build import (
    ENCODER,
    HEADS,
    build,
    describe_pixels,
    find_grid,
    find_heads,
    needed,
    read_stack,
    with_head,
)
from mmm.weights.matching import fill, renamed

MEAN, STD = (0.45,) * 3, (0.225,) * 3  # of the released models
SPATIAL, TEMPORAL, CLASS = "pos_embed_spatial", "pos_embed_temporal", "pos_embed_class"
POOLED = (*(row for row in ENCODER if row[0] != "encoder.norm."), ("head.fc_norm.", "norm."), ("head.linear.", "head."))


def names(ours: str, *, headed: bool) -> tuple[str, ...] | None:
    """Returns MAE-ST's names of one of our weights; a classifier's `norm` follows the mean of its tokens."""
    theirs = renamed(ours, POOLED if headed else ENCODER)
    if theirs is None:
        return None
    attention = re.fullmatch(r"(blocks\.\d+\.attn\.)qkv(\..*)", theirs)
    return (theirs,) if attention is None else tuple(f"{attention[1]}{one}{attention[2]}" for one in "qkv")


@register("mae_st")
class MAEST(Format):
    """Files of MAE-ST's pretraining and fine-tuning."""

    title = "MAE-ST's layout"
    options = frozenset({"heads", "image_size"})

    def detect(self, stored: Stored) -> bool:
        """Returns whether positions of places and of times are stored separately."""
        return any(name in stored.tensors for name in (SPATIAL, TEMPORAL, CLASS))

    def read(self, stored: Stored, options: Options) -> Model:
        source = str(stored)
        tensors = self.leave_out(
            stored, "decoder_", "mask_token", reason="it predicts one frame of each tube, which no target does", what="decoder"
        )
        _, channels, frames, side, across = needed(tensors, "patch_embed.proj.weight", 5, source).shape
        if side != across or not channels * frames * side:
            shape = tuple(tensors["patch_embed.proj.weight"].shape)
            raise ValueError(f"{source} has patch_embed.proj.weight as {shape}; tubes must be square")
        places, times = (needed(tensors, name, 3, source).shape[1] for name in (SPATIAL, TEMPORAL))
        grid = find_grid(places, side, options.image_size, source)
        stack = read_stack(tensors, "blocks", source)
        heads = find_heads("heads", options.heads, stack.width, HEADS, source)
        usual = channels == len(MEAN)
        data = find_input(
            (times * frames, grid[0] * side, grid[1] * side), channels, MEAN if usual else None, STD if usual else None
        )
        config = VisionTransformer.Config(
            width=stack.width, depth=stack.depth, heads=heads, mlp_ratio=stack.mlp_ratio, positions="learned"
        )
        headed = "head.weight" in tensors
        masked = build(
            config, tokenizer=Tubes.Config(size=side, frames=frames), data=data, required=RequiredFeatures(last=not headed)
        )
        model: Model = masked
        if headed:
            model = with_head(masked, classes=len(tensors["head.weight"]), pool=MeanPool.Config(), head=HeadConfig(norm="layer"))
        joined = _join_positions(tensors, source)
        about = f"encoder of {stack}, tubes of {frames} frames and {side} x {side} pixels, {channels} channels"
        fill(model, joined, lambda ours: names(ours, headed=headed), f"{source} (read as {self.title}: {about})")
        self.report(stored, tensors, about, f"{heads} heads, {describe_pixels(data)}")
        return model

    def write(self, model: Model, folder: Path) -> list[str]:
        raise ValueError(f"{self.title} stores positions of places and times apart, into which a table cannot be taken; use folder")


def _join_positions(tensors: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Returns the tensors with one table of positions (1, 1 + T N, D), the sum of those of its place and of its time."""
    spatial, temporal, first = (needed(tensors, name, 3, source) for name in (SPATIAL, TEMPORAL, CLASS))
    if not spatial.shape[2] == temporal.shape[2] == first.shape[2] or first.shape[1] != 1:
        shapes = {name: tuple(tensors[name].shape) for name in (SPATIAL, TEMPORAL, CLASS)}
        raise ValueError(f"{source} has positions that do not fit each other: {shapes}")
    body = (temporal[:, :, None] + spatial[:, None]).flatten(1, 2)  # (1, T, 1, D) + (1, 1, N, D) -> (1, T N, D)
    others = {name: value for name, value in tensors.items() if name not in (SPATIAL, TEMPORAL, CLASS)}
    return others | {"pos_embed": torch.cat([first, body], dim=1)}
