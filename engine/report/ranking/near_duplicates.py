"""Find near-duplicate photos: resized, recompressed, slightly cropped or brightened copies of each other.

A photo's print is 512 bits, the signs of brightness differences between neighboring cells of a 17 x 17 thumbnail to the
right and downward (difference hashes), and a small thumbnail in color. Two photos are near-duplicates if at most
``MOST_BITS`` bits differ and their thumbnails are similar.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

MOST_BITS = 80
"""Largest number of differing bits, of 512."""
MOST_COLOR = 14.0
"""Largest mean difference of the thumbnails' values, [0, 255], after removing the difference of their means."""
Print = tuple[NDArray[np.uint64], NDArray[np.float32]]
"""Bits (8,) and colors (D,) of one photo."""

_CELLS = 16
_COLOR = 8
_BLOCK = 2048


@dataclass(frozen=True, eq=False)
class Prints:
    """Prints of n photos."""

    bits: NDArray[np.uint64]
    """(n, 8): difference hashes."""
    colors: NDArray[np.float32]
    """(n, D): thumbnails in color, [0, 255]."""

    @classmethod
    def gather(cls, prints: Sequence[Print]) -> Prints:
        """Join the prints of single photos."""
        if not prints:
            return cls(np.empty((0, 8), np.uint64), np.empty((0, _COLOR * _COLOR * 3), np.float32))
        bits, colors = zip(*prints, strict=True)
        return cls(np.stack(bits), np.stack(colors))


def photo_print(photo: NDArray[np.uint8]) -> Print:
    """Return the bits (8,) and the colors (D,) of a photo (H, W, 3) uint8 RGB."""
    gray = cv2.resize(photo, (_CELLS + 1, _CELLS + 1), interpolation=cv2.INTER_AREA).astype(np.float32) @ _LUMA
    right, down = gray[:-1, 1:] > gray[:-1, :-1], gray[1:, :-1] > gray[:-1, :-1]
    bits = np.packbits(np.stack([right, down]).ravel()).view(np.uint64)
    colors = cv2.resize(photo, (_COLOR, _COLOR), interpolation=cv2.INTER_AREA).astype(np.float32).ravel()
    return bits, colors


_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def pairs_between(first: Prints, second: Prints) -> list[tuple[int, int]]:
    """Return the pairs (number in ``first``, number in ``second``) of near-duplicates, in order."""
    pairs: list[tuple[int, int]] = []
    for start in range(0, len(first.bits), _BLOCK):
        for begin in range(0, len(second.bits), _BLOCK):
            rows, columns = first.bits[start : start + _BLOCK], second.bits[begin : begin + _BLOCK]
            distance = np.zeros((len(rows), len(columns)), np.uint16)
            for word in range(rows.shape[1]):
                distance += np.bitwise_count(rows[:, word, None] ^ columns[None, :, word])
            for row, column in np.argwhere(distance <= MOST_BITS).tolist():
                if _alike(first.colors[start + row], second.colors[begin + column]):
                    pairs.append((start + row, begin + column))
    return sorted(pairs)


def pairs_within(prints: Prints) -> list[tuple[int, int]]:
    """Return the pairs (smaller number, larger number) of near-duplicates among photos, in order."""
    return [(row, column) for row, column in pairs_between(prints, prints) if row < column]


def _alike(first: NDArray[np.float32], second: NDArray[np.float32]) -> bool:
    difference = first - second
    return float(np.abs(difference - difference.mean()).mean()) <= MOST_COLOR
