"""Datasets: samples of images and clips, with their labels."""
