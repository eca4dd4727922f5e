"""Decoders, which turn features into predictions."""

from mmm.decoders.base import Decoder, DecoderConfig, decoders
from mmm.decoders.convolution import ConvolutionDecoder
from mmm.decoders.cross_attention import CrossAttentionDecoder
from mmm.decoders.linear import LinearDecoder
from mmm.decoders.pair import PairDecoder
from mmm.decoders.self_attention import SelfAttentionDecoder

__all__ = [
    "ConvolutionDecoder",
    "CrossAttentionDecoder",
    "Decoder",
    "DecoderConfig",
    "LinearDecoder",
    "PairDecoder",
    "SelfAttentionDecoder",
    "decoders",
]
