"""Crops, resizing and augmentation."""
