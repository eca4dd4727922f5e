"""Image grids and curves."""
