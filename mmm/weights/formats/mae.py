"""Models from files in MAE's official layout, and such weights from models (He et al., CVPR 2022; models_mae.py). timm names the
weights of its plain vision transformers (`vit_*`) the same way, so they are read here too, as encoders.

No file says how patches were standardised: those called `mae_pretrain_*_full` were (mae#8), those called `mae_visualize_*` were
not (mae#3).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from torch import Tensor

from mmm.core.types import Reads
from mmm.decoders import SelfAttentionDecoder
from mmm.model import MaskedModel
from mmm.targets import PixelTarget
from mmm.tokenizers import Patches
from mmm.weights.formats.build import assemble, encoder_config
from mmm.weights.formats.mae_layout import CLASSIFIER, DECODER, MARKS, OTHERS, Layout, our_name, read_layout, their_name
from mmm.weights.formats.official import DECODER_HEADS, HEADS, grid_of, heads_of, is_fixed, refuse_odd
from mmm.weights.matching import listed, refuse_mismatch

logger = logging.getLogger(__name__)


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
        known = "what can be read are run folders, the layouts of MAE, CrossMAE, VideoMAE and timm, and transformers' folders"
        raise ValueError(f"{source} {seen}; {known}. Its first names: {listed(weights)}")
    trained = any(name.startswith(DECODER) for name in weights)
    left = [] if trained else [name for name in weights if name.startswith(CLASSIFIER)]
    layout = read_layout(weights, source)
    kept = {name: value for name, value in weights.items() if name not in left}
    refuse_mismatch(kept, layout.shapes, f"{source} (read as {layout})")
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
    norm_pix: bool | None = None,
) -> MaskedModel:
    """The model that a file in MAE's layout holds; the arguments are those of `mmm.load`."""
    kept, layout = read_mae(weights, source)
    grid = grid_of(layout.tokens, layout.patch, image_size, source)
    heads = heads_of("heads", heads, layout.encoder.width, HEADS, source)
    decoder = None
    if layout.decoder is not None:
        inner, depth, hidden = layout.decoder.width, layout.decoder.depth, layout.decoder.hidden
        decoder_heads = heads_of("decoder_heads", decoder_heads, inner, DECODER_HEADS, source)
        decoder = SelfAttentionDecoder.Config(width=inner, depth=depth, heads=decoder_heads, mlp_ratio=hidden / inner)
    elif decoder_heads is not None:
        raise ValueError(f"decoder_heads={decoder_heads} was given, but {source} holds no decoder; leave it out")
    fixed = is_fixed(kept["pos_embed"], grid)
    model = assemble(
        encoder_config(layout.encoder, heads, fixed),
        Reads(last=layout.normed),
        decoder,
        channels=layout.channels,
        grid=grid,
        tokenizer=Patches.Config(size=layout.patch),
        target=PixelTarget.Config(standardise="none" if norm_pix is False else "patch"),
    )
    model.load_state_dict({ours: kept[theirs] for theirs in kept if (ours := our_name(theirs))})
    what = [f"{heads} heads", "fixed positions" if fixed else "learned positions"]
    if layout.decoder is not None:
        what.append(f"{decoder_heads} decoder heads, pixels {'not ' if norm_pix is False else ''}standardised per patch")
    logger.info("%s: MAE's layout (which is timm's), all %d weights used; %s; %s", source, len(kept), layout, ", ".join(what))
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
