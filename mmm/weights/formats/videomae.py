"""Models from files in VideoMAE's official layout, and such weights from models (Tong et al., NeurIPS 2022).

No file says heads, the clip that its positions are for, or how pixels were standardised; the released ones standardise them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from mmm.core.tokens import Grid
from mmm.core.types import Reads
from mmm.decoders import SelfAttentionDecoder
from mmm.encoders import VisionTransformer
from mmm.maskers import TubeMasker
from mmm.model import MaskedModel
from mmm.targets import PixelTarget
from mmm.tokenizers import Tubes
from mmm.weights.formats.build import VIDEOMAE_TARGET, assemble
from mmm.weights.formats.official import HEADS, heads_of, refuse_odd
from mmm.weights.formats.videomae_layout import CLASSIFIER, VideoLayout, our_name, read_layout, their_name
from mmm.weights.matching import listed, refuse_mismatch

logger = logging.getLogger(__name__)

DECODER_HEADS = {192: 3, 384: 6, 512: 8, 640: 8}
CLIP = (16, 224)  # frames and side of every released model's clips
TABLES = ("encoder.pos_embed", "decoder.pos_embed")


def read_videomae(weights: Mapping[str, Tensor], source: str) -> tuple[dict[str, Tensor], VideoLayout]:
    """Weights of VideoMAE's layout, all accounted for, under their own names, and what their shapes say.

    What a classifier adds (`head`, `fc_norm`) is left out with a warning that names it.

    Args:
        weights: by the file's names.
        source: where they come from, for messages.

    Raises:
        ValueError: naming what is missing, extra or misshapen.
    """
    layout = read_layout(weights, source)
    left = [] if layout.decoder else [name for name in weights if name.startswith(CLASSIFIER)]
    kept = {name: value for name, value in weights.items() if name not in left}
    refuse_mismatch(kept, layout.shapes, f"{source} (read as VideoMAE's layout: {layout})")
    refuse_odd(kept, source)
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
    frames: int | None = None,
    norm_pix: bool | None = None,
) -> MaskedModel:
    """The model that a file in VideoMAE's layout holds; the arguments are those of `mmm.load`."""
    kept, layout = read_videomae(weights, source)
    grid = grid_of(layout.tube, image_size, frames, source)
    heads = heads_of("heads", heads, layout.encoder.width, HEADS, source)
    encoder = VisionTransformer.Config(
        width=layout.encoder.width,
        depth=layout.encoder.depth,
        heads=heads,
        mlp_ratio=layout.encoder.hidden / layout.encoder.width,
        class_token=False,
        positions="flat_sine_cosine",
        qkv_bias=layout.biases,
    )
    model = assemble(
        encoder,
        Reads(last=layout.normed),
        _decoder(layout, decoder_heads, source),
        tokenizer=Tubes.Config(frames=layout.tube[0], size=layout.tube[1]),
        channels=layout.channels,
        grid=grid,
        target=PixelTarget.Config(standardise="none", pixels="unit") if norm_pix is False else VIDEOMAE_TARGET,
        masker=TubeMasker.Config(),
    )
    found = {ours: value for name, value in kept.items() if (ours := our_name(name, layout.prefix))}
    tables = {name: value for name, value in model.state_dict().items() if name in TABLES}
    model.load_state_dict(tables | found)
    what = f"{layout}; {heads} heads; positions of {' x '.join(map(str, grid))} tubes"
    logger.info("%s: VideoMAE's layout, all %d weights used; %s", source, len(kept), what)
    return model


def to_videomae(model: MaskedModel) -> dict[str, Tensor]:
    """A model's weights under VideoMAE's names, as views: what `torch.save({"model": ...})` or safetensors' `save_file` takes.

    Without a decoder, the encoder's names stand alone, as classifiers are started from. Positions, which that layout computes, are
    left out.

    Raises:
        ValueError: naming the weights for which that layout has no place, or that it has and the model lacks.
    """
    for part, kind in (("encoder", model.encoder), ("decoder", model.decoder)):
        if kind is not None and getattr(kind.config, "positions", None) != "flat_sine_cosine":
            raise ValueError(f"VideoMAE's layout has flat positions; {part}.positions must be flat_sine_cosine")
    own = {name: value for name, value in model.state_dict().items() if name not in TABLES}
    foreign = [name for name in own if their_name(name) is None]
    if foreign:
        raise ValueError(f"VideoMAE's layout has no place for {listed(foreign)}")
    alone = "encoder." if model.decoder is None else ""
    weights = {(their_name(name) or name).removeprefix(alone): value for name, value in own.items()}
    source = "this model, in VideoMAE's layout,"
    layout = replace(read_layout(weights, source), normed=any(name.startswith("encoder.norm.") for name in own))
    refuse_mismatch(weights, layout.shapes, source)
    return weights


def grid_of(tube: tuple[int, int], image_size: int | tuple[int, int] | None, frames: int | None, source: str) -> Grid:
    """The grid (T', H', W') of clips of this size, or of the released models'.

    Raises:
        ValueError: where tubes do not divide the clip.
    """
    length = CLIP[0] if frames is None else frames
    side = CLIP[1] if image_size is None else image_size
    sides = side if isinstance(side, tuple) else (side, side)
    size, token = (length, *sides), (tube[0], tube[1], tube[1])
    if len(size) != 3 or min(size) < 1 or any(pixels % own for pixels, own in zip(size, token, strict=True)):
        raise ValueError(
            f"frames={length} and image_size={sides} do not fit {source}; give multiples of its tubes' {tube[0]} frames and "
            f"{tube[1]} pixels"
        )
    return tuple(pixels // own for pixels, own in zip(size, token, strict=True))


def _decoder(layout: VideoLayout, heads: int | None, source: str) -> SelfAttentionDecoder.Config | None:
    """The choices that make the file's decoder, if it has one."""
    if layout.decoder is None:
        if heads is not None:
            raise ValueError(f"decoder_heads={heads} was given, but {source} holds no decoder; leave it out")
        return None
    inner = layout.decoder
    return SelfAttentionDecoder.Config(
        width=inner.width,
        depth=inner.depth,
        heads=heads_of("decoder_heads", heads, inner.width, DECODER_HEADS, source),
        mlp_ratio=inner.hidden / inner.width,
        positions="flat_sine_cosine",
        qkv_bias=layout.biases,
        embed_bias=False,
    )
