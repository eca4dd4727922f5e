"""Encoders: what turns patches into features."""

from mmm.encoders.base import Encoder, EncoderConfig, encoders
from mmm.encoders.hiera import Hiera
from mmm.encoders.swin import Swin
from mmm.encoders.timm_model import TimmEncoder
from mmm.encoders.vit import VisionTransformer

__all__ = ["Encoder", "EncoderConfig", "Hiera", "Swin", "TimmEncoder", "VisionTransformer", "encoders"]
