"""Recipes. Each contains the values of an experiment, as named presets of a task's config."""
