"""Scripts that measure, run from the repository's root: `python -m benchmarks.train.step`. Results lie in `results/`, dated."""
