"""The cover of trusted mask perturbation with Numba."""

from __future__ import annotations

import numpy as np

from ..plans.cover import cell_of_pixel
from ..plans.outputs import output, spread
from ..types import Nearest
from .compiled import compiled


@compiled()
def _cover(cells, rows, columns, reliable, out):
    line = np.empty(columns.size, np.bool_)
    for n in range(out.shape[0]):
        for y in range(rows.size):
            if y == 0 or rows[y] != rows[y - 1]:
                for x in range(columns.size):
                    line[x] = cells[n, rows[y], columns[x]]
            for x in range(columns.size):
                out[n, y, x] = line[x] if reliable is None else line[x] & reliable[n, y, x]


def perturbation_cover(
    cells: np.ndarray,
    size: tuple[int, int],
    reliable: np.ndarray | None = None,
    *,
    nearest: Nearest = "pil",
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Run :func:`maskmill.kernels.perturbation_cover` on NumPy arrays."""
    shape = (*cells.shape[:-2], *size)
    result = output(out, shape, np.bool_)
    maps = (-1, *size)
    _cover(
        np.ascontiguousarray(cells, np.bool_).reshape(-1, *cells.shape[-2:]),
        cell_of_pixel(size[0], cells.shape[-2], nearest),
        cell_of_pixel(size[1], cells.shape[-1], nearest),
        None if reliable is None else spread(reliable, shape, np.bool_).reshape(maps),
        result.reshape(maps),
    )
    return result
