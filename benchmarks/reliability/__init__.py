"""What a run survives, tried out on real trainings: one script for each goal, see `docs/reliability.md`."""
