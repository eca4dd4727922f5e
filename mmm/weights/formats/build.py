"""Models put together to be filled with what a file holds."""

from __future__ import annotations

import math

import torch
from torch import nn

from mmm.core.registry import PartConfig
from mmm.core.tokens import Grid, flat_sine_cosine
from mmm.core.types import Input, Reads
from mmm.decoders import DecoderConfig, decoders
from mmm.encoders import VisionTransformer
from mmm.maskers import MaskerConfig, RandomMasker, maskers
from mmm.model import MaskedModel
from mmm.targets import PixelTarget
from mmm.tokenizers import tokenizers
from mmm.weights.formats.shapes import Stack

VIDEOMAE_TARGET = PixelTarget.Config(standardise="channel", epsilon_inside=False, pixels="unit")


def encoder_config(stack: Stack, heads: int, fixed: bool) -> VisionTransformer.Config:
    """The choices that make an encoder of this stack, as MAE's is."""
    return VisionTransformer.Config(
        width=stack.width,
        depth=stack.depth,
        heads=heads,
        mlp_ratio=stack.hidden / stack.width,
        positions="sine_cosine" if fixed else "learned",
    )


def assemble(
    encoder: VisionTransformer.Config,
    reads: Reads,
    decoder: DecoderConfig | None,
    *,
    tokenizer: PartConfig,
    channels: int,
    grid: Grid,
    target: PixelTarget.Config,
    masker: MaskerConfig | None = None,
) -> MaskedModel:
    """The model of these choices, its encoder's and decoder's weights still to be filled: none keeps what memory held.

    Flat positions, which no file holds, are filled already. Colours are taken as MAE normalises them; of other channels a file
    does not say, and pixels are taken as they come.
    """
    cutter = tokenizers.build(tokenizer, channels=channels)
    size = tuple(token * places for token, places in zip(cutter.size, grid, strict=True))
    plain = {"mean": (0.0,) * channels, "std": (1.0,) * channels}
    data = Input(size=size) if channels == 3 else Input(size=size, channels=channels, **plain)
    with torch.device("meta"):  # without memory, so that no initialisation is computed only to be overwritten
        vit = VisionTransformer(encoder, token=cutter.size, channels=channels, grid=grid, reads=reads)
        head = None
        if decoder is not None:
            head = decoders.build(decoder, encoder=vit.shape, grid=grid, outputs=(cutter.width,))
    for part in (vit, head):
        if part is not None:
            assert not list(part.buffers()), "not in a state dict, it would not be filled"
            part.to_empty(device="cpu")
            _fill_positions(part, grid)
    wanted = PixelTarget(target, token=cutter.size, data=data, encoder=vit)
    return MaskedModel(cutter, maskers.build(masker or RandomMasker.Config()), vit, head, wanted)


@torch.no_grad()
def _fill_positions(part: nn.Module, grid: Grid) -> None:
    """Writes flat positions into a part that has such."""
    table = part.get_parameter("pos_embed") if hasattr(part, "pos_embed") else None
    if table is not None and getattr(part.config, "positions", None) == "flat_sine_cosine":
        tokens = math.prod(grid)
        table.zero_()
        table[0, table.shape[1] - tokens :] = flat_sine_cosine(tokens, table.shape[2]).float()
