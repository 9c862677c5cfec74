"""Drift: statistics of an image, a sequential test of exchangeability, and weights for another corpus."""
