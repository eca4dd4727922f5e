"""Measures of what a model computes inside: similarity of layers, attention, stability, and where predictions err."""
