"""Decoders: what turns features into predictions."""

from mmm.decoders.base import Decoder, DecoderConfig, decoders
from mmm.decoders.cross_attention import CrossAttentionDecoder
from mmm.decoders.linear import LinearDecoder
from mmm.decoders.pair import PairDecoder
from mmm.decoders.self_attention import SelfAttentionDecoder

__all__ = ["CrossAttentionDecoder", "Decoder", "DecoderConfig", "LinearDecoder", "PairDecoder", "SelfAttentionDecoder", "decoders"]
