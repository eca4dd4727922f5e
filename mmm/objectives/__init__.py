"""Objectives: what a training minimises."""
