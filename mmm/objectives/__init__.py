"""Objectives, which a training minimises."""
