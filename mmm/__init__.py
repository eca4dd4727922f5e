"""mmm: masked modelling of images and videos. One code path: tokenizer, masker, encoder, decoder, target."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mmm.core.mask import Mask
from mmm.core.types import Features, Input
from mmm.model import MaskedModel, ModelConfig, Output
from mmm.weights.load import load

if TYPE_CHECKING:
    from mmm.evaluate.reconstruction.draw import draw as draw
    from mmm.transform import Transform as Transform

__version__ = "0.1.0"

__all__ = ["Features", "Input", "Mask", "MaskedModel", "ModelConfig", "Output", "Transform", "draw", "load"]

_LATER = {
    "Transform": "mmm.transform",
    "draw": "mmm.evaluate.reconstruction.draw",
}  # imported on first use


def __getattr__(name: str) -> Any:
    """Imports further names on first use."""
    if name in _LATER:
        return getattr(import_module(_LATER[name]), name)
    raise AttributeError(f"module 'mmm' has no attribute {name!r}")
