"""VideoMAE's official layout (Tong et al., NeurIPS 2022; modeling_pretrain.py, modeling_finetune.py).

In a file of an encoder without a decoder, or of a classifier, the names of the encoder's weights do not start with `encoder.`.
Files do not contain the number of heads, the size of the clips, or whether targets were standardised; the released models
standardise them.

Legend: D width, t frames and p pixels of a tube's sides, C channels.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from mmm.classifier import Classifier, HeadConfig
from mmm.core.types import RequiredFeatures
from mmm.decoders import SelfAttentionDecoder
from mmm.encoders import VisionTransformer
from mmm.layers.transformer import QKVBias
from mmm.maskers import TubeMasker
from mmm.pools import MeanPool
from mmm.targets import PixelTarget
from mmm.tokenizers import Tubes
from mmm.weights.build import (
    HEADS,
    VIDEOMAE_TARGET,
    Stack,
    build,
    describe_pixels,
    find_heads,
    needed,
    official_lines,
    read_stack,
    with_head,
)
from mmm.weights.formats.base import FILE, Format, Model, Options, Stored, data_of, register
from mmm.weights.matching import Names, fill, renamed, shorten_list, tensors_under

DECODER_HEADS = {192: 3, 384: 6, 512: 8, 640: 8}
CLIP = (16, 224)  # number of frames and side of the clips of every released model
# name in mmm, name in VideoMAE; names that end in a dot are prefixes
NAMES = (
    ("encoder.patch_embed.", "encoder.patch_embed."),
    ("encoder.blocks.", "encoder.blocks."),
    ("encoder.norm.", "encoder.norm."),
    ("decoder.embed.weight", "encoder_to_decoder.weight"),
    ("decoder.mask_token", "mask_token"),
    ("decoder.blocks.", "decoder.blocks."),
    ("decoder.norm.", "decoder.norm."),
    ("decoder.head.", "decoder.head."),
    ("head.fc_norm.", "fc_norm."),
    ("head.linear.", "head."),
)
DECODED = ("encoder_to_decoder.", "mask_token", "decoder.")
TABLES = ("encoder.pos_embed", "decoder.pos_embed")  # files do not contain them
EMBEDDING = "patch_embed.proj.weight"


def names_with(prefix: str) -> Names:
    """Returns the function that maps names in mmm to VideoMAE's, with `prefix` before those of the encoder."""

    def names(ours: str) -> tuple[str, ...] | None:
        if ours in TABLES:
            return ()
        theirs = renamed(ours, NAMES)
        if theirs is None:
            return None
        theirs = re.sub(r"\.attn\.qkv\.([qv]_bias)$", r".attn.\1", theirs)
        return (prefix + theirs.removeprefix("encoder."),) if ours.startswith("encoder.") else (theirs,)

    return names


@register("videomae")
class VideoMAE(Format):
    """Files of VideoMAE's pretraining and fine-tuning."""

    title = "VideoMAE's layout"
    options = frozenset({"heads", "decoder_heads", "image_size", "frames", "norm_pix", "predict"})

    def detect(self, stored: Stored) -> bool:
        """Returns whether only queries and values have biases, or patches have a depth, without class token and positions."""
        tensors = stored.tensors
        if "cls_token" in tensors or any(name.startswith("pos_embed") for name in tensors):
            return False
        marked = any(name.startswith("encoder_to_decoder.") or name.endswith((".attn.q_bias", ".attn.v_bias")) for name in tensors)
        return marked or (EMBEDDING in tensors and tensors[EMBEDDING].dim() == 5)

    def read(self, stored: Stored, options: Options) -> Model:
        tensors, source = stored.tensors, str(stored)
        prefix = "encoder." if any(name.startswith("encoder.") for name in tensors) else ""
        _, channels, frames, side, across = needed(tensors, prefix + EMBEDDING, 5, source).shape
        if side != across or not channels * frames * side:
            shape = tuple(tensors[prefix + EMBEDDING].shape)
            raise ValueError(f"{source} has {prefix + EMBEDDING} as {shape}; tubes must be square")
        tokenizer = Tubes.Config(size=side, frames=frames)
        size = _size(tokenizer, options, source)
        stack = read_stack(tensors, f"{prefix}blocks", source)
        inner = read_stack(tensors, "decoder.blocks", source) if any(name.startswith(DECODED) for name in tensors) else None
        if inner is None and options.decoder_heads is not None:
            raise ValueError(f"decoder_heads={options.decoder_heads} was given, but {source} holds no decoder; leave it out")
        heads = find_heads("heads", options.heads, stack.width, HEADS, source)
        biases: QKVBias = "qv" if any(name.endswith("_bias") for name in tensors) else "none"
        pooled = inner is None and "fc_norm.weight" in tensors
        masked = build(
            VisionTransformer.Config(
                width=stack.width,
                depth=stack.depth,
                heads=heads,
                mlp_ratio=stack.mlp_ratio,
                class_token=False,
                positions="flat_sine_cosine",
                qkv_bias=biases,
            ),
            tokenizer=tokenizer,
            data=stored.input(size, channels),
            required=RequiredFeatures(last=not pooled),
            decoder=None if inner is None else _decoder(inner, biases, options, source),
            target=PixelTarget.Config(standardise="none", pixels="unit") if options.norm_pix is False else VIDEOMAE_TARGET,
            masker=TubeMasker.Config(),
        )
        model: Model = masked
        if pooled and "head.weight" in tensors:
            model = with_head(masked, classes=len(tensors["head.weight"]), pool=MeanPool.Config(), head=HeadConfig(norm="layer"))
        elif inner is None:
            tensors = self.leave_out(stored, "head.", "fc_norm.", reason="it reads the first token, which no pool does")
        about = f"encoder of {stack}, tubes of {frames} frames and {side} x {side} pixels, {channels} channels"
        about += "" if inner is None else f", decoder of {inner}"
        fill(model, tensors, names_with(prefix), f"{source} (read as {self.title}: {about})")
        grid = " x ".join(map(str, masked.tokenizer.grid_of(size)))
        self.report(stored, tensors, about, f"{heads} heads, positions of {grid} tubes, {describe_pixels(data_of(model))}")
        return model

    def write(self, model: Model, folder: Path) -> list[str]:
        torch.save({"model": to_videomae(model)}, folder / FILE)
        return official_lines(folder / FILE, "modeling_pretrain or modeling_finetune")


def to_videomae(model: Model) -> dict[str, torch.Tensor]:
    """Returns a model's weights under VideoMAE's names, as views, for `torch.save({"model": ...})` or `save_file`.

    Without a decoder the names have no prefix, as in files with the initial weights of classifiers. Positions, which the layout
    computes, are left out.

    Raises:
        ValueError: the layout does not support a weight or an option.
    """
    decoder: Any = getattr(model, "decoder", None)
    for part, module in (("encoder", model.encoder), ("decoder", decoder)):
        positions = None if module is None else getattr(module.config, "positions", None)
        if module is not None and positions != "flat_sine_cosine":
            raise ValueError(f"VideoMAE's layout has flat positions; {part}.positions must be flat_sine_cosine, not {positions}")
    if isinstance(model, Classifier) and not isinstance(model.pool, MeanPool):
        raise ValueError(
            f"VideoMAE's layout pools by the mean of the tokens and norms it, not by pool.name {model.pool.config.name}"
        )
    biased = [name for name in model.state_dict() if name.endswith(".qkv.bias")]
    if biased:
        raise ValueError(f"VideoMAE's layout cannot hold {shorten_list(biased)}; encoder.qkv_bias must be qv or none")
    return tensors_under(model, names_with("" if decoder is None else "encoder."), VideoMAE.title)


def _size(tokenizer: Tubes.Config, options: Options, source: str) -> tuple[int, int, int]:
    """Returns frames, height and width of a clip: the given ones, or those of the released models.

    Raises:
        ValueError: the size of a tube does not divide that of the clip.
    """
    length = CLIP[0] if options.frames is None else options.frames
    side = CLIP[1] if options.image_size is None else options.image_size
    sides = side if isinstance(side, tuple) else (side, side)
    size, token = (length, *sides), (tokenizer.frames, tokenizer.size, tokenizer.size)
    if len(size) != 3 or min(size) < 1 or any(pixels % own for pixels, own in zip(size, token, strict=True)):
        raise ValueError(
            f"frames={length} and image_size={sides} do not fit {source}; give multiples of its tubes' {token[0]} frames and "
            f"{token[1]} pixels"
        )
    return length, sides[0], sides[1]


def _decoder(inner: Stack, biases: QKVBias, options: Options, source: str) -> SelfAttentionDecoder.Config:
    """Returns the config of the file's decoder."""
    return SelfAttentionDecoder.Config(
        width=inner.width,
        depth=inner.depth,
        heads=find_heads("decoder_heads", options.decoder_heads, inner.width, DECODER_HEADS, source),
        mlp_ratio=inner.mlp_ratio,
        positions="flat_sine_cosine",
        qkv_bias=biases,
        embed_bias=False,
    )
