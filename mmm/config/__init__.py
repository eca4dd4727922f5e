"""Configs: command line, flags, YAML files, comparison."""
