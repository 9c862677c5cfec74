"""Constants of PCOS, shared by every form."""

from __future__ import annotations

DEGENERATE = 1e-13
"""Share of ac below which the determinant ac - b² of the Gram matrix is rounding error: all pixels are on one line."""

TIE = 1e-12
"""Relative difference below which a mean equals another mean, or a pixel's value, up to the rounding of its sum."""
