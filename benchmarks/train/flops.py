"""Model FLOPs of a training step: the products that a method needs, counted from its shapes, whoever computes it.

A multiplication and an addition are two operations. The backward pass takes twice the forward, but for the input's gradient, which
nobody needs. Work that an implementation adds (embedding hidden patches, decoding tokens whose prediction is dropped, computing
something again) is not counted, nor is anything but products: with it, a share of the limit would reward waste.

Shapes: V visible, Q predicted, R prefix tokens, M = R + V encoded tokens, P values a token, D and d widths of encoder and decoder.
"""

from __future__ import annotations

from mmm import MaskedModel
from mmm.decoders import CrossAttentionDecoder, SelfAttentionDecoder
from mmm.encoders import VisionTransformer


def step_flops(model: MaskedModel, visible: int, predicted: int) -> float:
    """FLOPs of one sample's training step, forward and backward, of a ViT with an attending decoder.

    Args:
        model: any size of it.
        visible: V.
        predicted: Q.
    """
    encoder, decoder = model.encoder.config, model.decoder.config if model.decoder is not None else None
    assert isinstance(encoder, VisionTransformer.Config)
    shape, values = encoder.shape, model.tokenizer.width
    seen = shape.prefix + visible
    embed = linear(visible, values, shape.width)
    forward = shape.depth * block(seen, shape.width, encoder.hidden, gated=encoder.activation == "swiglu")
    if isinstance(decoder, SelfAttentionDecoder.Config):
        forward += linear(seen, shape.width, decoder.width)
        forward += decoder.depth * block(seen + predicted, decoder.width, round(decoder.width * decoder.mlp_ratio))
    else:
        assert isinstance(decoder, CrossAttentionDecoder.Config)
        forward += decoder.depth * cross_block(predicted, seen, decoder, shape.width)
    maps = len(decoder.required_features(shape).blocks)  # mixed for every block of the decoder that reads them
    mixtures = decoder.depth if isinstance(decoder, CrossAttentionDecoder.Config) else 1
    forward += 2.0 * maps * mixtures * seen * shape.width + linear(predicted, decoder.width, model.target.width)
    return 3 * forward + 2 * embed


def linear(tokens: int, wide: int, out: int) -> float:
    """Of a matrix (wide, out), applied to tokens."""
    return 2.0 * tokens * wide * out


def block(tokens: int, width: int, hidden: int, *, gated: bool = False) -> float:
    """Of self-attention and an MLP, which has a third matrix where it is gated."""
    mlp = (3 if gated else 2) * linear(tokens, width, hidden)
    return linear(tokens, width, 4 * width) + 4.0 * tokens * tokens * width + mlp


def cross_block(tokens: int, seen: int, decoder: CrossAttentionDecoder.Config, source: int) -> float:
    """Of tokens that read seen ones of another width, and an MLP."""
    width = decoder.width
    mlp = 2 * linear(tokens, width, int(width * decoder.mlp_ratio))
    return linear(tokens, width, 2 * width) + linear(seen, source, 2 * width) + 4.0 * tokens * seen * width + mlp
