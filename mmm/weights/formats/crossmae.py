"""CrossMAE's official layout (Fu et al., TMLR 2025; models_cross.py, transformer_utils.py).

It is MAE's layout without the encoder's final norm and the decoder's embedding, with fusion weights, their norms, and
cross-attention.

Files contain the number of fused maps, but not the numbers of their encoder blocks. If there are as many maps as blocks, or one
more for the encoder's input, all are fused. Files do not contain the number of tokens that were predicted in training; their names
state it, but not always correctly. The authors' tables of positions are kept; those for 448 pixels also count in tokens, and are
not rescaled.
"""

from __future__ import annotations

from pathlib import Path

import torch

from mmm.decoders import CrossAttentionDecoder
from mmm.targets import PixelTarget
from mmm.weights.build import (
    DECODER,
    ENCODER,
    MAE_DECODER_HEADS,
    build,
    describe_assumed,
    find_heads,
    needed,
    official_lines,
    read_image_encoder,
    read_stack,
)
from mmm.weights.formats.base import FILE, Format, Model, Options, Stored, register
from mmm.weights.matching import fill, renamed, tensors_under

MIX = "wfm.linear.weight"
# name in mmm, name in CrossMAE; names that end in a dot are prefixes
NAMES = (
    *(row for row in (*ENCODER, *DECODER) if row[0] != "encoder.norm."),
    ("decoder.fusion.mix.weight", MIX),
    ("decoder.fusion.norms.", "dec_norms."),
)
SELF = (".norm0.", ".self_attn.")  # further weights of blocks in which predicted tokens attend to each other


def names(ours: str) -> tuple[str, ...] | None:
    """Returns CrossMAE's name for a weight of mmm."""
    theirs = renamed(ours, NAMES)
    return None if theirs is None else (theirs,)


@register("crossmae")
class CrossMAE(Format):
    """Files of CrossMAE's pretraining."""

    title = "CrossMAE's layout"
    options = frozenset({"heads", "decoder_heads", "image_size", "norm_pix", "predict", "fusion_blocks"})

    def detect(self, stored: Stored) -> bool:
        """Returns whether there are fusion weights, their norms or cross-attention."""
        return any(name.startswith(("dec_norms.", "wfm.")) or ".cross_attn." in name for name in stored.tensors)

    def read(self, stored: Stored, options: Options) -> Model:
        tensors, source = stored.tensors, str(stored)
        encoder = read_image_encoder(tensors, options, source, pixels=stored.processor)
        inner, maps = read_stack(tensors, "decoder_blocks", source), needed(tensors, MIX, 2, source).shape[1]
        depth = encoder.config.shape.depth
        blocks, with_input = _mixed(depth, maps, options.fusion_blocks, source)
        decoder = CrossAttentionDecoder.Config(
            width=inner.width,
            depth=inner.depth,
            heads=find_heads("decoder_heads", options.decoder_heads, inner.width, MAE_DECODER_HEADS, source),
            mlp_ratio=inner.mlp_ratio,
            self_attention=any(name.startswith("decoder_blocks.") and part in name for name in tensors for part in SELF),
            fusion="linear",
            fusion_blocks=blocks,
            fusion_input=with_input,
        )
        model = build(
            encoder.config,
            tokenizer=encoder.tokenizer,
            data=encoder.data,
            required=decoder.required_features(encoder.config.shape),
            decoder=decoder,
            target=PixelTarget.Config(standardise="none" if options.norm_pix is False else "patch"),
        )
        about = f"{encoder.about}; decoder of {inner} that read mixtures of {maps} maps"
        fill(model, tensors, names, f"{source} (read as {self.title}: {about})")
        self.report(stored, tensors, about, describe_assumed(encoder, decoder.heads, options))
        return model

    def write(self, model: Model, folder: Path) -> list[str]:
        torch.save({"model": to_crossmae(model)}, folder / FILE)
        return official_lines(folder / FILE, "models_cross.MaskedAutoencoderViT")


def to_crossmae(model: Model) -> dict[str, torch.Tensor]:
    """Returns a model's weights under CrossMAE's names, as views, for `torch.save({"model": ...})` or `save_file`.

    Raises:
        ValueError: the layout does not support a weight, or the model lacks a part of it.
    """
    tensors = tensors_under(model, names, CrossMAE.title)
    if MIX not in tensors or "cls_token" not in tensors:
        lacking = "a class token" if MIX in tensors else "a decoder of cross-attention that mixes the encoder's blocks"
        raise ValueError(f"{CrossMAE.title} needs a model with {lacking}, and this one has none")
    return tensors


def _mixed(depth: int, maps: int, given: tuple[int, ...] | None, source: str) -> tuple[tuple[int, ...] | None, bool]:
    """Returns the fused blocks (None: all), and whether the encoder's input is fused too."""
    if given is None:
        if maps not in (depth, depth + 1):
            raise ValueError(
                f"{source} fuses {maps} maps of an encoder of {depth} blocks, but does not contain their numbers; give "
                "fusion_blocks=, the blocks counted from 1 in order, preceded by 0 if the encoder's input is fused too"
            )
        return None, maps == depth + 1
    with_input = given[:1] == (0,)
    if len(given) != maps:
        raise ValueError(f"fusion_blocks={given} gives {len(given)} numbers, but {source} mixes {maps} maps")
    return given[1:] if with_input else given, with_input
