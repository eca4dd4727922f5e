"""Probes: small classifiers trained on frozen features."""
