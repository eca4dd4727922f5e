"""Reliability tests with real trainings: one script for each promise in `docs/reliability.md`."""
