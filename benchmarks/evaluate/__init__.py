"""Benchmarks of what models learn."""
