"""Constants of PCOS, shared by every form."""

from __future__ import annotations

DEGENERATE = 1e-13
"""Below this share of ac, the determinant ac - b² of the Gram matrix is rounding: the pixels lie on one line."""


TIE = 1e-12
"""Nearer than this, relatively, a mean equals another mean or a pixel's value but for the rounding of its sum."""
