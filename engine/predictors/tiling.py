"""Cut an image into tiles and blend the score maps of its tiles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...checks import check_count
from ...errors import UsageError
from ...kernels.types import BackendArray
from .resampling import bilinear_matrix


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """One preprocessed image."""

    tensors: tuple[Any, ...]
    """One input per tile, float32, without the batch axis, on the predictor's backend."""
    size: tuple[int, int]
    """(height, width) of the image."""
    covers: tuple[float, float]
    """Fractions of the input's height and width that the image (or tile) covers."""
    tile: tuple[int, int]
    """(height, width) of a tile in image pixels; the image's size if it was not cut."""
    corners: tuple[tuple[int, int], ...]
    """(top, left) of each tile, in image pixels."""
    with_data: NDArray[np.bool_] | None = None
    """(height, width) of the image: False for pixels without data; None if all have data."""


SMALLEST_TILE = 16
"""Smallest side of a tile, in pixels."""


def check_tiles(tile: int | None, overlap: int) -> None:
    """Refuse a side and an overlap of tiles that cannot cover an image; raises :class:`UsageError`."""
    check_count("overlap", overlap)
    if tile is None:
        if overlap:
            raise UsageError(f"the overlap of {overlap} px is that of tiles: give their side as tile, or leave it out")
        return
    check_count("tile", tile, least=SMALLEST_TILE)
    if overlap >= tile:
        raise UsageError(f"overlap must be less than the tile of {tile} px, got {overlap}")


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """Return the first pixels of the fewest evenly spaced tiles that cover ``length`` and overlap by ``overlap``."""
    if length <= tile:
        return [0]
    num = -(-(length - overlap) // (tile - overlap))
    return [round(index * (length - tile) / (num - 1)) for index in range(num)]


def blend_tiles(image: Prepared, scores: list[Any], layout: str, overlap: int, xp: Any) -> BackendArray:
    """Blend the tiles' score maps into one (h, w, C) float32 map of the whole image, at the tiles' resolution.

    ``xp`` is the array library of the scores.
    """
    tiles = [xp.asarray(tile, np.float32) if layout == "HWC" else xp.moveaxis(tile, 0, -1) for tile in scores]
    num_y, num_x = tiles[0].shape[0] * image.covers[0], tiles[0].shape[1] * image.covers[1]
    height = max(1, round(image.size[0] / image.tile[0] * num_y))
    width = max(1, round(image.size[1] / image.tile[1] * num_x))
    total = xp.zeros((height, width, tiles[0].shape[2]), np.float32)
    weights = xp.zeros((height, width, 1), np.float32)
    for (top, left), tile in zip(image.corners, tiles, strict=True):
        rows, row_weights, row_matrix = _placement(height, image.size[0], top, image.tile[0], num_y, len(tile), overlap)
        columns, column_weights, column_matrix = _placement(
            width, image.size[1], left, image.tile[1], num_x, tile.shape[1], overlap
        )
        resampled = xp.einsum("yh,hwc->ywc", xp.asarray(row_matrix), tile, optimize=True)
        resampled = xp.einsum("xw,ywc->yxc", xp.asarray(column_matrix), resampled, optimize=True)
        weight = xp.asarray(row_weights[:, None, None] * column_weights[None, :, None])
        total[rows, columns] += weight * resampled
        weights[rows, columns] += weight
    return total / weights


def _placement(
    cells: int, length: int, start: int, tile: int, covered: float, samples: int, overlap: int
) -> tuple[slice, NDArray[np.float32], NDArray[np.float32]]:
    """Place one tile along one axis: the cells of the whole map it covers, their blend weights, interpolation matrix.

    ``cells`` of the whole map cover ``length`` pixels; the tile covers ``tile`` pixels from ``start`` with the first
    ``covered`` of its ``samples``. Weights fall linearly over ``overlap`` pixels towards inner edges.
    """
    centers = (np.arange(cells) + 0.5) * length / cells
    inside = np.flatnonzero((centers >= start) & (centers < start + tile))
    span = slice(int(inside[0]), int(inside[-1]) + 1)
    offset = centers[span] - start
    weights = np.ones(len(offset))
    ramp = max(overlap, 1)
    if start > 0:
        weights = np.minimum(weights, offset / ramp)
    if start + tile < length:
        weights = np.minimum(weights, (tile - offset) / ramp)
    matrix = bilinear_matrix(offset / tile * covered - 0.5, samples)
    return span, np.maximum(weights, 1e-3).astype(np.float32), matrix
