"""MAE-ST's official layout (Feichtenhofer et al., NeurIPS 2022; models_mae.py, models_vit.py), encoders and classifiers of clips.

The decoder predicts one frame of each tube. No target of mmm does this, so the decoder is left out.

Legend: D width, N positions in space, T positions in time, t frames and p pixels of a tube's sides, C channels.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import nn

from mmm.classifier import Classifier, HeadConfig
from mmm.core.types import RequiredFeatures
from mmm.encoders import VisionTransformer
from mmm.pools import MeanPool
from mmm.tokenizers import Tubes
from mmm.weights.build import (
    ENCODER,
    HEADS,
    build,
    describe_pixels,
    find_grid,
    find_heads,
    needed,
    official_lines,
    read_stack,
    with_head,
)
from mmm.weights.formats.base import FILE, Format, Model, Options, Stored, find_input, register
from mmm.weights.matching import fill, renamed, tensors_under

MEAN, STD = (0.45,) * 3, (0.225,) * 3  # normalisation of the released models
CHOICES = {"positions": "separate", "qkv_bias": "all", "class_token": True}
SPATIAL, TEMPORAL, CLASS = "pos_embed_spatial", "pos_embed_temporal", "pos_embed_class"
POSITIONS = tuple((f"encoder.{name}", name) for name in (SPATIAL, TEMPORAL, CLASS))
PLAIN = (*POSITIONS, *(row for row in ENCODER if row[0] != "encoder.pos_embed"))
POOLED = (*(row for row in PLAIN if row[0] != "encoder.norm."), ("head.fc_norm.", "norm."), ("head.linear.", "head."))


def names(ours: str, *, headed: bool) -> tuple[str, ...] | None:
    """Returns MAE-ST's names for a weight of mmm; a classifier's `norm` follows the mean of its tokens."""
    theirs = renamed(ours, POOLED if headed else PLAIN)
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
        """Returns whether positions in space and in time are stored separately."""
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
        size = (times * frames, grid[0] * side, grid[1] * side)
        published = channels == len(MEAN) and "image_mean" not in stored.processor
        data = find_input(size, channels, MEAN, STD) if published else stored.input(size, channels)
        config = VisionTransformer.Config(
            width=stack.width, depth=stack.depth, heads=heads, mlp_ratio=stack.mlp_ratio, positions="separate"
        )
        headed = "head.weight" in tensors
        masked = build(
            config, tokenizer=Tubes.Config(size=side, frames=frames), data=data, required=RequiredFeatures(last=not headed)
        )
        model: Model = masked
        if headed:
            model = with_head(masked, classes=len(tensors["head.weight"]), pool=MeanPool.Config(), head=HeadConfig(norm="layer"))
        about = f"encoder of {stack}, tubes of {frames} frames and {side} x {side} pixels, {channels} channels"
        fill(model, tensors, lambda ours: names(ours, headed=headed), f"{source} (read as {self.title}: {about})")
        self.report(stored, tensors, about, f"{heads} heads, {describe_pixels(data)}")
        return model

    def write(self, model: Model, folder: Path) -> list[str]:
        encoder = model.encoder
        if not isinstance(encoder, VisionTransformer) or len(encoder.home) != 3:
            raise ValueError(f"{self.title} takes encoder.name vit of clips; export --to folder")
        for name, value in CHOICES.items():
            own = getattr(encoder.config, name)
            if own != value:
                raise ValueError(f"{self.title} cannot hold encoder.{name} {own}; export --to folder")
        parts: dict[str, nn.Module] = {"encoder": encoder}
        if isinstance(model, Classifier):
            if not isinstance(model.pool, MeanPool):
                raise ValueError(f"{self.title} cannot hold pool.name {model.pool.config.name}; export --to folder")
            parts["head"] = model.head
        elif model.decoder is not None:
            raise ValueError(f"{self.title} holds only an encoder or a classifier; load the model without its decoder")
        weights = tensors_under(nn.ModuleDict(parts), lambda ours: names(ours, headed="head" in parts), self.title)
        torch.save({"model_state": {name: value.clone() for name, value in weights.items()}}, folder / FILE)
        return official_lines(folder / FILE, "models_vit.VisionTransformer", "model_state")
