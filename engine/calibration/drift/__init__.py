"""Drift: numbers that describe an image, a watch that bets against exchangeability, weights for another corpus."""
