"""Formats in which models are stored: one a file, and the list of them in the order in which they are asked.

The general ones come last: a folder's config before the names of weights, CrossMAE's names before MAE's, which it shares, and
timm's, which others share too, at the end.
"""

# isort: off
from mmm.weights.formats.base import FORMATS, Format, Model, Options, Stored, find_format, register
from mmm.weights.formats import run, transformers, crossmae, videomae, mae_st, mae, timm, ijepa
# isort: on

__all__ = ["FORMATS", "Format", "Model", "Options", "Stored", "find_format", "register"]
__all__ += ["crossmae", "ijepa", "mae", "mae_st", "run", "timm", "transformers", "videomae"]
