"""Attention of decoders."""
