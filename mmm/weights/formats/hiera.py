"""Hiera's official files (Ryali et al., ICML 2023): masked autoencoders of images, and encoders and classifiers of images and
clips, also with timm's names.

A file contains neither the number of poolings nor the number of heads. Masked autoencoders pool twice, other models three
times, and the numbers of heads are those of the published widths. The decoder of clips predicts one frame of each tube. No target
of mmm does this, so the decoder is left out.

Legend: p side of a token, C channels.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from mmm.classifier import Classifier, HeadConfig
from mmm.core.registry import PartConfig
from mmm.core.types import RequiredFeatures
from mmm.decoders import SelfAttentionDecoder
from mmm.encoders import Hiera
from mmm.encoders.hiera import SIZES
from mmm.maskers import RandomMasker
from mmm.pools import MeanPool
from mmm.targets import PixelTarget
from mmm.tokenizers import Patches, Tubes
from mmm.weights.build import (
    MAE_DECODER_HEADS,
    build,
    count_blocks,
    describe_pixels,
    find_grid,
    find_heads,
    needed,
    read_stack,
    with_head,
)
from mmm.weights.formats.base import FILE, Format, Model, Options, Stored, register
from mmm.weights.matching import fill, renamed, tensors_under

HEADS = {width: heads for width, heads, _ in SIZES.values()}
ENCODER = tuple(
    (f"encoder.{name}", name) for name in ("patch_embed.", "pos_embed", "pos_embed_spatial", "pos_embed_temporal", "blocks.")
)
DECODER = (
    ("decoder.fusion.norm.", "encoder_norm."),
    ("decoder.embed.", "decoder_embed."),
    ("decoder.mask_token", "mask_token"),
    ("decoder.pos_embed", "decoder_pos_embed"),
    ("decoder.blocks.", "decoder_blocks."),
    ("decoder.norm.", "decoder_norm."),
    ("decoder.head.", "decoder_pred."),
)
HEADED = (("head.fc_norm.", "norm."), ("head.linear.", "head.projection."))
ALONE = (("encoder.norm.", "encoder_norm."),)
FUSION = "multi_scale_fusion_heads."
SPELLINGS = (("head.norm.", "norm."), ("head.fc.", "head.projection."))  # timm's, Hiera's


def names(ours: str) -> tuple[str, ...] | None:
    """Returns Hiera's name for a weight of mmm."""
    fusion = re.fullmatch(r"decoder\.fusion\.embeds\.(\d+)\.proj\.(.*)", ours)
    if fusion is not None:
        return (f"{FUSION}{fusion[1]}.{fusion[2]}",)
    theirs = renamed(ours, (*ENCODER, *DECODER, *HEADED, *ALONE))
    return None if theirs is None else (theirs,)


@register("hiera")
class HieraFormat(Format):
    """Files like mae_hiera_base_224.pth, hiera_base_224.pth, hiera_base_16x224.pth."""

    title = "Hiera's layout"
    options = frozenset({"heads", "decoder_heads", "image_size"})

    def detect(self, stored: Stored) -> bool:
        """Returns whether there are blocks under Hiera's names, and one of them increases the width of its tokens."""
        widening = any(re.fullmatch(r"blocks\.\d+\.proj\.weight", name) for name in stored.tensors)
        return widening and "patch_embed.proj.weight" in stored.tensors and "pos_embed_win" not in stored.tensors

    def read(self, stored: Stored, options: Options) -> Model:
        source = str(stored)
        tensors = {_spelled(name): value for name, value in stored.tensors.items()}
        embedding = needed(tensors, "patch_embed.proj.weight", 5 if "pos_embed_spatial" in tensors else 4, source)
        width, channels, *kernel = embedding.shape
        clips, patch = len(kernel) == 3, (kernel[-1] + 1) // 2
        if clips:
            why = "it predicts one frame of each tube, which no target does"
            tensors = self.leave_out(stored, "decoder_", "mask_token", FUSION, reason=why, what="decoder", tensors=tensors)
        decoded, headed = "decoder_pred.weight" in tensors, "head.projection.weight" in tensors
        pools = 2 if decoded else 3
        stages = _stages(tensors, source)
        config = Hiera.Config(
            width=width,
            heads=find_heads("heads", options.heads, width, HEADS, source),
            stages=stages,
            patch=patch,
            pools=pools,
        )
        table = needed(tensors, "pos_embed_spatial" if clips else "pos_embed", 3, source)
        patches = find_grid(table.shape[1], patch, options.image_size, source)
        size = tuple(axis * patch for axis in patches)
        token: PartConfig = Patches.Config(size=config.token)
        if clips:
            frames = (kernel[0] + 1) // 2
            size = (needed(tensors, "pos_embed_temporal", 3, source).shape[1] * frames, *size)
            token = Tubes.Config(size=config.token, frames=frames)
        decoder = _decoder(tensors, options, source) if decoded else None
        data = stored.input(size, channels)
        alone = not decoded and not headed
        masked = build(
            config,
            tokenizer=token,
            data=data,
            required=RequiredFeatures(last=alone) if decoder is None else decoder.required_features(config.shape),
            decoder=decoder,
            target=PixelTarget.Config(),
            masker=RandomMasker.Config(ratio=0.9 if clips else 0.6, unit=config.mask_unit // 2**pools),
        )
        model: Model = masked
        if headed:
            classes = len(tensors["head.projection.weight"])
            model = with_head(masked, classes=classes, pool=MeanPool.Config(), head=HeadConfig(norm="layer"))
        elif alone:
            tensors = {"encoder_" + name if name.startswith("norm.") else name: value for name, value in tensors.items()}
        about = f"stages of {stages} blocks from a width of {width}, samples of {size}, tokens of {config.token} pixels"
        order = _pixel_order(config.token, channels)
        found = {name: value[order.argsort()] if name.startswith("decoder_pred.") else value for name, value in tensors.items()}
        fill(model, found, names, f"{source} (read as {self.title}: {about})")
        self.report(stored, tensors, about, f"{config.first[1]} heads in the first stage, {describe_pixels(data)}")
        return model

    def write(self, model: Model, folder: Path) -> list[str]:
        encoder = model.encoder
        if not isinstance(encoder, Hiera):
            raise ValueError(f"{self.title} cannot hold the encoder {encoder.config.name}; export --to folder")
        weights = tensors_under(model, names, self.title)
        order = _pixel_order(encoder.config.token, model.tokenizer.channels)
        whole = {name: value[order] if name.startswith("decoder_pred.") else value.clone() for name, value in weights.items()}
        if not isinstance(model, Classifier) and model.decoder is None:
            whole = {name.replace("encoder_norm.", "norm."): value for name, value in whole.items()}
        torch.save({"model_state": whole}, folder / FILE)
        return [
            "import torch",
            f"weights = torch.load({str(folder / FILE)!r}, weights_only=True)['model_state']  # for Hiera's code",
        ]


def _spelled(name: str) -> str:
    name = name.removeprefix("model_state.")
    for theirs, usual in SPELLINGS:
        name = usual + name.removeprefix(theirs) if name.startswith(theirs) else name
    return name


def _stages(tensors: Mapping[str, Tensor], source: str) -> tuple[int, ...]:
    """Returns the number of blocks of each stage: the first block of each later stage increases the width of its tokens."""
    depth = count_blocks(tensors, "blocks.", source)
    starts = sorted(int(found[1]) for name in tensors if (found := re.fullmatch(r"blocks\.(\d+)\.proj\.weight", name)))
    bounds = [0, *starts, depth]
    return tuple(end - start for start, end in pairwise(bounds))


def _decoder(tensors: Mapping[str, Tensor], options: Options, source: str) -> SelfAttentionDecoder.Config:
    inner = read_stack(tensors, "decoder_blocks", source)
    heads = find_heads("decoder_heads", options.decoder_heads, inner.width, MAE_DECODER_HEADS, source)
    return SelfAttentionDecoder.Config(
        width=inner.width, depth=inner.depth, heads=heads, mlp_ratio=inner.mlp_ratio, fusion="stages", positions="learned"
    )


def _pixel_order(side: int, channels: int) -> Tensor:
    """Returns, for each value of a token in Hiera's order (C, p, p), its index in the order of mmm, (p, p, C)."""
    return torch.arange(side * side * channels).view(side * side, channels).T.flatten()
