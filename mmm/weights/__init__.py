"""Weights in and out: our own run folders, and other people's layouts."""
