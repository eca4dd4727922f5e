"""Model FLOPs of a training step: those of the matrix products that a method needs, counted from its shapes.

A multiplication and an addition are two operations. The backward pass takes twice the FLOPs of the forward pass, except for the
gradient of the input, which is not needed. Only matrix products are counted. Work that an implementation adds (embedding hidden
patches, decoding tokens whose prediction is dropped, repeated computation) is not counted, so that it lowers the measured rate.

Shapes: V visible, Q predicted, R prefix tokens, M = R + V encoded tokens, P values per token, D and d widths (encoder, decoder).
"""

from __future__ import annotations

import math
from typing import Any

from mmm import MaskedModel
from mmm.decoders import CrossAttentionDecoder, SelfAttentionDecoder
from mmm.decoders.fusion import finer_stages
from mmm.encoders import Hiera, VisionTransformer


def step_flops(model: MaskedModel, visible: int, predicted: int) -> float:
    """Returns the FLOPs of one sample's training step, forward and backward, of a ViT or Hiera with an attention decoder.

    Args:
        model: a model of any size.
        visible: V.
        predicted: Q.
    """
    encoder, decoder = model.encoder.config, model.decoder.config if model.decoder is not None else None
    shape, values = encoder.shape, model.tokenizer.width
    seen = shape.prefix + visible
    if isinstance(encoder, VisionTransformer.Config):
        embed = linear(visible, values, shape.width)
        forward = shape.depth * block(seen, shape.width, encoder.hidden, gated=encoder.activation == "swiglu")
    else:
        assert isinstance(model.encoder, Hiera)
        embed, forward = hiera(model.encoder, visible)
    if isinstance(decoder, SelfAttentionDecoder.Config):
        forward += linear(seen, shape.width, decoder.width)
        hidden = round(decoder.width * decoder.mlp_ratio)
        forward += (decoder.depth - 1) * block(seen + predicted, decoder.width, hidden)
        forward += last_block(seen + predicted, predicted, decoder.width, hidden)
    else:
        assert isinstance(decoder, CrossAttentionDecoder.Config)
        forward += decoder.depth * cross_block(predicted, seen, decoder, shape.width)
    forward += linear(predicted, decoder.width, model.target.width)
    if decoder.fusion == "stages":
        forward += sum(linear(seen, stage.width * math.prod(stage.inner), shape.width) for stage in finer_stages(shape))
    else:
        maps = len(decoder.required_features(shape).blocks)  # combined once for every decoder block that reads them
        mixtures = decoder.depth if isinstance(decoder, CrossAttentionDecoder.Config) else 1
        forward += 2.0 * maps * mixtures * seen * shape.width
    return 3 * forward + 2 * embed


def hiera(encoder: Hiera, visible: int) -> tuple[float, float]:
    """Returns the FLOPs of the convolution of all patches, as in the published encoder, and of the blocks on visible mask units."""
    convolution = encoder.patch_embed.proj
    patches = math.prod(encoder.patch_grid(encoder.home))
    embed = linear(patches, convolution.weight[0].numel(), convolution.out_channels)
    units, forward = visible // encoder.unit_tokens**2, 0.0
    tokens = visible * 4**encoder.config.pools
    for each in encoder.blocks:
        one: Any = each
        read, tokens = tokens, tokens // one.attn.q_stride
        keys = read // units if one.attn.use_mask_unit_attn else read
        wide, out = one.attn.dim, one.attn.dim_out
        forward += linear(read, wide, 3 * out) + 4.0 * tokens * keys * out + linear(tokens, out, out)
        forward += 2 * linear(tokens, out, one.mlp.fc1.out_features) + (linear(read, wide, out) if one.do_expand else 0.0)
    return embed, forward


def linear(tokens: int, wide: int, out: int) -> float:
    """Returns the FLOPs of a matrix (wide, out) applied to tokens."""
    return 2.0 * tokens * wide * out


def block(tokens: int, width: int, hidden: int, *, gated: bool = False) -> float:
    """Returns the FLOPs of self-attention and an MLP, which has a third matrix if it is gated."""
    mlp = (3 if gated else 2) * linear(tokens, width, hidden)
    return linear(tokens, width, 4 * width) + 4.0 * tokens * tokens * width + mlp


def last_block(tokens: int, last: int, width: int, hidden: int) -> float:
    """Returns the FLOPs of a block whose output is read for the last tokens only; all tokens get queries, keys and values."""
    inputs, output, mlp = linear(tokens, width, 3 * width), linear(last, width, width), 2 * linear(last, width, hidden)
    return inputs + 4.0 * last * tokens * width + output + mlp


def cross_block(tokens: int, seen: int, decoder: CrossAttentionDecoder.Config, source: int) -> float:
    """Returns the FLOPs of cross-attention to tokens of another width, and an MLP."""
    width = decoder.width
    mlp = 2 * linear(tokens, width, int(width * decoder.mlp_ratio))
    return linear(tokens, width, 2 * width) + linear(seen, source, 2 * width) + 4.0 * tokens * seen * width + mlp
