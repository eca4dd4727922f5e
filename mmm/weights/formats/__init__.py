"""Formats of stored models, one in each file, and their list in the order of detection.

Specific formats come before general ones: first formats with a config in the folder, then CrossMAE, which has MAE's names too, then
MAE, and at the end timm, whose names occur in other formats too.
"""

# isort: off
from mmm.weights.formats.base import FORMATS, Format, Model, Options, Stored, find_format, register, written_formats
from mmm.weights.formats import run, transformers, onnx, hiera, timm_backbone, beit, dinov2, dinov3, pixio, vjepa2, capi
from mmm.weights.formats import crossmae, videomae, mae_st, mae, timm, ijepa, transformers_model
# isort: on

__all__ = ["FORMATS", "Format", "Model", "Options", "Stored", "find_format", "register", "written_formats"]
__all__ += ["beit", "capi", "crossmae", "dinov2", "dinov3", "hiera", "ijepa", "mae", "mae_st", "onnx", "pixio", "run"]
__all__ += ["timm", "timm_backbone", "transformers", "transformers_model", "videomae", "vjepa2"]
