"""Maskers: which tokens are visible and which are predicted."""

from mmm.maskers.base import Masker, MaskerConfig, columns, maskers
from mmm.maskers.block import BlockMasker
from mmm.maskers.random import RandomMasker
from mmm.maskers.tube import TubeMasker

__all__ = ["BlockMasker", "Masker", "MaskerConfig", "RandomMasker", "TubeMasker", "columns", "maskers"]
