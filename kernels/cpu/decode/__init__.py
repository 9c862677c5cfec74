"""Compiled loops of ``class_stats``: rows, sampling, scores of sixteen pixels, and the vectors they are written in."""
