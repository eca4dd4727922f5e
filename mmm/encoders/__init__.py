"""Encoders: what turns patches into features."""

from mmm.encoders.vit import EncoderConfig, VisionTransformer, encoders

__all__ = ["EncoderConfig", "VisionTransformer", "encoders"]
