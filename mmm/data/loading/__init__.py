"""Batches: order, workers and loader."""
