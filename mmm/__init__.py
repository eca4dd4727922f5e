"""mmm: masked modelling of images and videos. One code path: tokenizer, masker, encoder, decoder, target."""

from mmm.checkpoints.load import load
from mmm.interfaces import Features, Input
from mmm.mask import Mask
from mmm.model import MaskedModel, ModelConfig, Output

__version__ = "0.1.0"

__all__ = ["Features", "Input", "Mask", "MaskedModel", "ModelConfig", "Output", "load"]
