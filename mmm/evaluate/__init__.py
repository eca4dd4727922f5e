"""Evaluation of models: frozen features, probes, reconstructions, attention, and comparison of runs."""
