"""Models with an output for each pixel or object, on a pretrained encoder: segmenters and detectors."""
