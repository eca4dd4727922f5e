"""Tests of reliability on real trainings: one script for each promise in `docs/reliability.md`."""
