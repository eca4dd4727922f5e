"""Models from files in CrossMAE's official layout, and such weights from models (Fu et al., TMLR 2025; models_cross.py).

No file says which of the encoder's blocks are mixed, only how many maps are: all of them, with the encoder's input or without, are
told by the number. Nor does one say how many tokens were predicted in training; the files' names do, and not always rightly.
The authors' tables of positions are kept as they are; those for 448 pixels count tokens, too, and are rescaled to no other range.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from torch import Tensor

from mmm.decoders import CrossAttentionDecoder
from mmm.model import MaskedModel
from mmm.targets import PixelTarget
from mmm.tokenizers import Patches
from mmm.weights.formats.build import assemble, encoder_config
from mmm.weights.formats.crossmae_layout import CrossLayout, our_name, read_layout, their_name
from mmm.weights.formats.official import DECODER_HEADS, HEADS, grid_of, heads_of, is_fixed, refuse_odd
from mmm.weights.matching import listed, refuse_mismatch

logger = logging.getLogger(__name__)


def read_crossmae(weights: Mapping[str, Tensor], source: str) -> tuple[dict[str, Tensor], CrossLayout]:
    """Weights of CrossMAE's layout, all accounted for, under their own names, and what their shapes say.

    Args:
        weights: by the file's names.
        source: where they come from, for messages.

    Raises:
        ValueError: naming what is missing, extra or misshapen.
    """
    layout = read_layout(weights, source)
    refuse_mismatch(weights, layout.shapes, f"{source} (read as CrossMAE's layout: {layout})")
    refuse_odd(weights, source)
    return dict(weights), layout


def model_of(
    weights: Mapping[str, Tensor],
    source: str,
    *,
    heads: int | None = None,
    decoder_heads: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    norm_pix: bool | None = None,
    fusion_blocks: tuple[int, ...] | None = None,
) -> MaskedModel:
    """The model that a file in CrossMAE's layout holds; the arguments are those of `mmm.load`."""
    kept, layout = read_crossmae(weights, source)
    grid = grid_of(layout.tokens, layout.patch, image_size, source)
    heads = heads_of("heads", heads, layout.encoder.width, HEADS, source)
    decoder_heads = heads_of("decoder_heads", decoder_heads, layout.decoder.width, DECODER_HEADS, source)
    chosen, with_input = _mixed(layout, fusion_blocks, source)
    decoder = CrossAttentionDecoder.Config(
        width=layout.decoder.width,
        depth=layout.decoder.depth,
        heads=decoder_heads,
        mlp_ratio=layout.decoder.hidden / layout.decoder.width,
        self_attention=layout.self_attention,
        fusion="linear",
        fusion_blocks=chosen,
        fusion_input=with_input,
    )
    fixed = is_fixed(kept["pos_embed"], grid)
    model = assemble(
        encoder_config(layout.encoder, heads, fixed),
        decoder.reads(layout.encoder.depth),
        decoder,
        channels=layout.channels,
        grid=grid,
        tokenizer=Patches.Config(size=layout.patch),
        target=PixelTarget.Config(standardise="none" if norm_pix is False else "patch"),
    )
    model.load_state_dict({ours: kept[theirs] for theirs in kept if (ours := our_name(theirs))})
    what = [f"{heads} heads", f"{decoder_heads} decoder heads", "fixed positions" if fixed else "learned positions"]
    what.append(f"pixels {'not ' if norm_pix is False else ''}standardised per patch")
    logger.info("%s: CrossMAE's layout, all %d weights used; %s; %s", source, len(kept), layout, ", ".join(what))
    return model


def to_crossmae(model: MaskedModel) -> dict[str, Tensor]:
    """A model's weights under CrossMAE's names, as views: what `torch.save({"model": ...})` or safetensors' `save_file` takes.

    Raises:
        ValueError: naming the weights for which that layout has no place, or that it has and the model lacks.
    """
    weights = {their_name(name) or name: value for name, value in model.state_dict().items()}
    foreign = [name for name in model.state_dict() if their_name(name) is None]
    if foreign:
        raise ValueError(f"CrossMAE's layout has no place for {listed(foreign)}")
    source = "this model, in CrossMAE's layout,"
    refuse_mismatch(weights, read_layout(weights, source).shapes, source)
    return weights


def _mixed(layout: CrossLayout, given: tuple[int, ...] | None, source: str) -> tuple[tuple[int, ...] | None, bool]:
    """The blocks that are mixed, none for all, and whether the encoder's input is."""
    depth, maps = layout.encoder.depth, layout.maps
    if given is None:
        if maps not in (depth, depth + 1):
            raise ValueError(
                f"{source} mixes {maps} maps of an encoder of {depth} blocks, and no shape says which; give fusion_blocks=, the "
                "blocks counted from 1 in their order, after a 0 where the encoder's input is mixed too"
            )
        return None, maps == depth + 1
    with_input = given[:1] == (0,)
    if len(given) != maps:
        raise ValueError(f"fusion_blocks={given} are {len(given)}, and {source} mixes {maps} maps")
    return given[1:] if with_input else given, with_input
