"""Processes, devices, sharding and signals."""
