"""Maskers: which tokens are visible and which are predicted."""

from mmm.maskers.attention import AttentionMasker
from mmm.maskers.base import Masker, MaskerConfig, columns, maskers, squares
from mmm.maskers.bernoulli import BernoulliMasker
from mmm.maskers.block import BlockMasker
from mmm.maskers.frame import CausalMasker, FrameMasker
from mmm.maskers.inverse_block import InverseBlockMasker
from mmm.maskers.multi_block import BlockUnionMasker, MultiBlockMasker
from mmm.maskers.painted import PaintedMasker, mask_from_pixels
from mmm.maskers.random import RandomMasker
from mmm.maskers.tube import TubeMasker
from mmm.maskers.uniform import UniformMasker

__all__ = [
    "AttentionMasker",
    "BernoulliMasker",
    "BlockMasker",
    "BlockUnionMasker",
    "CausalMasker",
    "FrameMasker",
    "InverseBlockMasker",
    "Masker",
    "MaskerConfig",
    "MultiBlockMasker",
    "PaintedMasker",
    "RandomMasker",
    "TubeMasker",
    "UniformMasker",
    "columns",
    "mask_from_pixels",
    "maskers",
    "squares",
]
