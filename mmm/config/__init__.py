"""Configs: command line, flags, YAML files and comparison."""
