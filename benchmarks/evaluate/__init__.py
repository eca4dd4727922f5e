"""Benchmarks of the features and predictions of trained models."""
