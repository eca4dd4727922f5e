"""Configs: the command line, flags, YAML."""
