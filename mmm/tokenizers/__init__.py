"""Tokenizers, which split samples into tokens."""

from mmm.tokenizers.grid import GridTokenizer, Patches, Tubes, tokenizers

__all__ = ["GridTokenizer", "Patches", "Tubes", "tokenizers"]
