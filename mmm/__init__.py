"""mmm: masked modelling of images and videos. One code path: tokenizer, masker, encoder, decoder, target."""

from mmm.core.mask import Mask
from mmm.core.types import Features, Input
from mmm.model import MaskedModel, ModelConfig, Output
from mmm.weights.load import load

__version__ = "0.1.0"

__all__ = ["Features", "Input", "Mask", "MaskedModel", "ModelConfig", "Output", "load"]
