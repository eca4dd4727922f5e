"""Scripts that measure, run from the repository's root: `python -m benchmarks.step`. Results lie in `results/`, dated."""
