"""Tokenizers: what a token is."""

from mmm.tokenizers.grid import GridTokenizer, Patches, Tubes, tokenizers

__all__ = ["GridTokenizer", "Patches", "Tubes", "tokenizers"]
