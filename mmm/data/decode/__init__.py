"""Decoding of files to pixels."""
