"""Checkpoints: written, read and verified."""
