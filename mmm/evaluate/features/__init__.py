"""Frozen features, and evaluations of them."""
