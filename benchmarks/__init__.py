"""Benchmarks; run them from the repository's root: `python -m benchmarks.train.step`. `results/` contains dated results."""
