"""Reconstructions and their error."""
