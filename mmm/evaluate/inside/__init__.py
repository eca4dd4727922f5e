"""Measures of the inside of a model: similarity of layers, attention, stability, and errors of predictions."""
