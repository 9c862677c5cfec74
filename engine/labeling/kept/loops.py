"""Compiled loops that restore maps from their differences: one thread, Python's lock released."""

from __future__ import annotations

import numpy as np

from ....kernels.cpu.compiled import compiled


@compiled()
def integrate_bytes(differences, out):
    """Sum uint8 differences of differences along rows and columns into ``out`` (H, W)."""
    height, width = out.shape
    for y in range(height):
        along = np.uint8(0)
        for x in range(width):
            along = np.uint8(along + differences[y * width + x])
            out[y, x] = along + out[y - 1, x] if y > 0 else along


@compiled()
def integrate_words(low, high, center, out):
    """Sum 16-bit differences of differences, given as low and high bytes above ``center``, into ``out`` (H, W)."""
    height, width = out.shape
    for y in range(height):
        along = np.uint16(0)
        for x in range(width):
            at = y * width + x
            along = np.uint16(along + (np.uint16(low[at]) | (np.uint16(high[at]) << np.uint16(8))) - center)
            out[y, x] = along + out[y - 1, x] if y > 0 else along
