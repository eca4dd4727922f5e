"""Memory of a step, and the micro-batch that fits."""
