"""Benchmarks of the data path."""
