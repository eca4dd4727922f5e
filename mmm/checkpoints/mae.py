"""Models from files in MAE's official layout, and such weights from models (He et al., CVPR 2022; models_mae.py).

Heads stand in no file: the published sizes say how many a width has. So does no file say how patches were standardised: those
called `mae_pretrain_*_full` were (mae#8), those called `mae_visualize_*` were not (mae#3).

Legend: p side of a patch, C channels, N tokens of the grid, D width.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from mmm.checkpoints.account import listed, refuse_mismatch
from mmm.checkpoints.mae_layout import CLASSIFIER, DECODER, MARKS, OTHERS, Layout, Stack, our_name, read_layout, their_name
from mmm.decoders import SelfAttentionDecoder
from mmm.encoders import VisionTransformer
from mmm.encoders.vit import SIZES
from mmm.interfaces import Input, Reads
from mmm.maskers import RandomMasker
from mmm.model import MaskedModel
from mmm.targets import PixelTarget
from mmm.tokenizers import Patches
from mmm.tokens import Grid, coordinates, sine_cosine

logger = logging.getLogger(__name__)

HEADS = {width: heads for width, _, heads in SIZES.values()}
DECODER_HEADS = {256: 8, 512: 16}


def read_mae(weights: Mapping[str, Tensor], source: str) -> tuple[dict[str, Tensor], Layout]:
    """Weights of MAE's layout, all accounted for, under their own names, and what their shapes say.

    What a classifier adds (`head`, `fc_norm`) is left out with a warning that names it.

    Args:
        weights: by the file's names.
        source: where they come from, for messages.

    Raises:
        ValueError: where they are not of this layout, naming what is missing, extra or misshapen.
    """
    other = next((layout for mark, layout in OTHERS.items() if any(name.startswith(mark) for name in weights)), None)
    if other is not None or not any(mark in weights for mark in MARKS):
        seen = f"looks like {other}" if other else "is of no known layout"
        raise ValueError(f"{source} {seen}; what can be read are run folders and MAE's layout. Its first names: {listed(weights)}")
    trained = any(name.startswith(DECODER) for name in weights)
    left = [] if trained else [name for name in weights if name.startswith(CLASSIFIER)]
    layout = read_layout(weights, source)
    kept = {name: value for name, value in weights.items() if name not in left}
    refuse_mismatch(kept, layout.shapes, f"{source} (read as {layout})")
    odd = [name for name, value in kept.items() if not value.is_floating_point() or value.layout is not torch.strided]
    if odd:
        raise ValueError(f"{source} holds something else than dense real numbers under {listed(odd)}")
    if left:
        unnormed = "" if layout.normed else "; its encoder ends without a norm"
        logger.warning("%s is a classifier; left out: %s%s", source, listed(left), unnormed)
    return kept, layout


def model_of(
    weights: Mapping[str, Tensor],
    source: str,
    *,
    heads: int | None = None,
    decoder_heads: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    norm_pix: bool | None = None,
) -> MaskedModel:
    """The model that a file in MAE's layout holds; the arguments are those of `mmm.load`."""
    kept, layout = read_mae(weights, source)
    grid = _grid(layout, image_size, source)
    heads = _heads("heads", heads, layout.encoder.width, HEADS, source)
    if layout.decoder is not None:
        decoder_heads = _heads("decoder_heads", decoder_heads, layout.decoder.width, DECODER_HEADS, source)
    elif decoder_heads is not None:
        raise ValueError(f"decoder_heads={decoder_heads} was given, but {source} holds no decoder; leave it out")
    fixed = _is_fixed(kept["pos_embed"], grid)
    model = _build(layout, grid, heads, decoder_heads, fixed, norm_pix is not False)
    model.load_state_dict({ours: kept[theirs] for theirs in kept if (ours := our_name(theirs))})
    what = [f"{heads} heads", "fixed positions" if fixed else "learned positions"]
    if layout.decoder is not None:
        what.append(f"{decoder_heads} decoder heads, pixels {'not ' if norm_pix is False else ''}standardised per patch")
    logger.info("%s: MAE's layout, all %d weights used; %s; %s", source, len(kept), layout, ", ".join(what))
    return model


def to_mae(model: MaskedModel) -> dict[str, Tensor]:
    """A model's weights under MAE's names, as views: what `torch.save({"model": ...})` or safetensors' `save_file` takes.

    Raises:
        ValueError: naming the weights for which that layout has no place, or that it has and the model lacks.
    """
    weights = {their_name(name) or name: value for name, value in model.state_dict().items()}
    foreign = [name for name in model.state_dict() if their_name(name) is None]
    if foreign:
        raise ValueError(f"MAE's layout has no place for {listed(foreign)}")
    refuse_mismatch(weights, read_layout(weights, "this model, in MAE's layout,").shapes, "this model, in MAE's layout,")
    return weights


def _build(layout: Layout, grid: Grid, heads: int, decoder_heads: int | None, fixed: bool, norm_pix: bool) -> MaskedModel:
    """The model, its encoder's and decoder's weights still to be filled: none keeps what memory held."""
    size, channels = layout.patch, layout.channels
    tokenizer = Patches(Patches.Config(size=size), channels=channels)
    choices = PixelTarget.Config(standardise="patch" if norm_pix else "none")
    config = _encoder_config(layout.encoder, heads, fixed)
    decoder = None
    with torch.device("meta"):  # without memory, so that no initialisation is computed only to be overwritten
        encoder = VisionTransformer(config, token=(size, size), channels=channels, grid=grid, reads=Reads(last=layout.normed))
        if layout.decoder is not None and decoder_heads is not None:
            inner = _decoder_config(layout.decoder, decoder_heads)
            decoder = SelfAttentionDecoder(inner, encoder=encoder.shape, grid=grid, outputs=tokenizer.width)
    for part in (encoder, decoder):
        if part is not None:
            assert not list(part.buffers()), "not in a state dict, it would not be filled"
            part.to_empty(device="cpu")
    target = PixelTarget(choices, width=tokenizer.width, data=_input(layout, grid), encoder=encoder)
    return MaskedModel(tokenizer, RandomMasker(RandomMasker.Config()), encoder, decoder, target)


def _encoder_config(stack: Stack, heads: int, fixed: bool) -> VisionTransformer.Config:
    ratio = stack.hidden / stack.width
    positions: Literal["sine_cosine", "learned"] = "sine_cosine" if fixed else "learned"
    return VisionTransformer.Config(width=stack.width, depth=stack.depth, heads=heads, mlp_ratio=ratio, positions=positions)


def _decoder_config(stack: Stack, heads: int) -> SelfAttentionDecoder.Config:
    ratio = stack.hidden / stack.width
    return SelfAttentionDecoder.Config(width=stack.width, depth=stack.depth, heads=heads, mlp_ratio=ratio)


def _input(layout: Layout, grid: Grid) -> Input:
    """Colours as MAE normalises them; of other channels the file does not say, and pixels are taken as they come."""
    size, channels = tuple(layout.patch * side for side in grid), layout.channels
    return Input(size=size) if channels == 3 else Input(size=size, channels=channels, mean=(0.0,) * channels, std=(1.0,) * channels)


def _grid(layout: Layout, image_size: int | tuple[int, int] | None, source: str) -> Grid:
    """The grid (H', W') that the table of positions is for."""
    tokens, patch = layout.tokens, layout.patch
    if image_size is None:
        side = math.isqrt(tokens)
        if side * side != tokens or not tokens:
            raise ValueError(f"{source} has positions for {tokens} tokens, which make no square; give image_size=(height, width)")
        return side, side
    sides = (image_size, image_size) if isinstance(image_size, int) else image_size
    grid = tuple(side // patch for side in sides)
    if len(sides) != 2 or min(grid) < 1 or any(side % patch for side in sides) or math.prod(grid) != tokens:
        raise ValueError(f"image_size={image_size} does not fit {source}, which has {tokens} patches of {patch} x {patch} pixels")
    return grid


def _heads(argument: str, given: int | None, width: int, published: Mapping[int, int], source: str) -> int:
    heads = published.get(width) if given is None else given
    if heads is None:
        raise ValueError(f"{source} has a width of {width}, and no published size says how many heads that has; give {argument}=")
    if heads < 1 or width % heads:
        raise ValueError(f"{argument}={heads} does not divide the width of {width} in {source}; give a divisor")
    return heads


def _is_fixed(table: Tensor, grid: Grid) -> bool:
    """Whether the table (1, 1 + N, D) holds sines and cosines of this grid, to half precision."""
    if table.shape[2] % 2:
        return False
    fixed = sine_cosine(coordinates(grid), table.shape[2])
    return torch.allclose(table[0, 1:].double(), fixed, atol=1e-3)
