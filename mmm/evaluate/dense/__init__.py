"""Evaluations with an output for each pixel or object: segmentation, depth, detection, propagation through video."""
