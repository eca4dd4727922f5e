"""Recipes: the values of one experiment each, as named presets of a task's config."""
