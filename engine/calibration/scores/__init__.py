"""Scores of calibration images: collected from a model, exact in a file, counted in bins, sampled by pixel."""
