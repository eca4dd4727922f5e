"""MAE's official layout (He et al., CVPR 2022; models_mae.py) of an encoder with its decoder. An encoder without its decoder
has the names of timm's vision transformers, and is read in timm's format.

Files do not state whether patches were standardised: those of `mae_pretrain_*_full` were (mae#8), those of `mae_visualize_*` were
not (mae#3).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mmm.core.types import RequiredFeatures
from mmm.decoders import SelfAttentionDecoder
from mmm.targets import PixelTarget
from mmm.weights.build import (
    DECODER,
    ENCODER,
    MAE_DECODER_HEADS,
    build,
    describe_assumed,
    find_heads,
    official_lines,
    read_image_encoder,
    read_stack,
)
from mmm.weights.formats.base import FILE, Format, Model, Options, Stored, register
from mmm.weights.matching import fill, renamed, tensors_under

NAMES = (*ENCODER, ("decoder.embed.", "decoder_embed."), *DECODER)
DECODED = ("decoder_embed.", *(theirs for _, theirs in DECODER))  # prefixes of names that only a file with a decoder has


def names(ours: str) -> tuple[str, ...] | None:
    """Returns MAE's name for a weight of mmm."""
    theirs = renamed(ours, NAMES)
    return None if theirs is None else (theirs,)


@register("mae")
class MAE(Format):
    """Files of MAE's pretraining: mae_pretrain_vit_*_full.pth, mae_visualize_vit_*.pth, checkpoint-*.pth."""

    title = "MAE's layout"
    options = frozenset({"heads", "decoder_heads", "image_size", "norm_pix", "predict"})

    def detect(self, stored: Stored) -> bool:
        """Returns whether there is a decoder under MAE's names."""
        return any(name.startswith(DECODED) for name in stored.tensors)

    def read(self, stored: Stored, options: Options) -> Model:
        tensors, source = stored.tensors, str(stored)
        encoder = read_image_encoder(tensors, options, source, pixels=stored.processor)
        inner = read_stack(tensors, "decoder_blocks", source)
        heads = find_heads("decoder_heads", options.decoder_heads, inner.width, MAE_DECODER_HEADS, source)
        model = build(
            encoder.config,
            tokenizer=encoder.tokenizer,
            data=encoder.data,
            required=RequiredFeatures(),
            decoder=SelfAttentionDecoder.Config(width=inner.width, depth=inner.depth, heads=heads, mlp_ratio=inner.mlp_ratio),
            target=PixelTarget.Config(standardise="none" if options.norm_pix is False else "patch"),
        )
        about = f"{encoder.about}; decoder of {inner}"
        fill(model, tensors, names, f"{source} (read as {self.title}: {about})")
        self.report(stored, tensors, about, describe_assumed(encoder, heads, options))
        return model

    def write(self, model: Model, folder: Path) -> list[str]:
        torch.save({"model": to_mae(model)}, folder / FILE)
        return official_lines(folder / FILE, "models_mae.MaskedAutoencoderViT")


def to_mae(model: Model) -> dict[str, torch.Tensor]:
    """Returns a model's weights under MAE's names, as views, for `torch.save({"model": ...})` or `save_file`.

    For a model without a decoder these are the names of timm's vision transformers.

    Raises:
        ValueError: the layout does not support a weight, or the model lacks a part of it.
    """
    tensors = tensors_under(model, names, MAE.title)
    encoder: Any = model.encoder
    if len(getattr(encoder, "home", ())) != 2 or "cls_token" not in tensors:
        raise ValueError(f"{MAE.title} is for images, with a class token; this model has tokens of {model.tokenizer.size}")
    return tensors
