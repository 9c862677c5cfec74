"""Quantize nonconformity scores such that later thresholds decide almost as on exact scores.

The cells are 1/64 wide in the logit of the score from -9 on, and 1/16 below, where only confidences of 0.9999 differ.
Each class has one more boundary at the threshold that the labels were made with. The upper edges of calibration's score
bins are boundaries as well, so a threshold of :meth:`~maskmill.engine.calibration.calibration.Calibration.at` decides
every pixel as on exact scores; any other threshold is off by at most half a cell, 1/128 in the logit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....kernels.types import BackendArray
from ...calibration.scores.score_counts import UPPER

_FINEST = -9.0
_CELLS_PER_BIN = 4


def _boundaries() -> NDArray[np.float32]:
    """Return the largest score in each cell, (E,) float32, ascending; the last cells end at 1 and at infinity."""
    bins = UPPER[:-2]
    logits = np.linspace(-20, 14, len(bins))
    first = int(np.searchsorted(logits, _FINEST))
    fine_logits = np.linspace(_FINEST, 14, _CELLS_PER_BIN * (len(bins) - 1 - first) + 1)
    fine = (1 / (1 + np.exp(-fine_logits))).astype(np.float32)
    fine[::_CELLS_PER_BIN] = bins[first:]
    edges = np.concatenate([bins[0:first], fine, UPPER[-2:]])
    return np.maximum.accumulate(edges)


EDGES: NDArray[np.float32] = _boundaries()
"""(E,) float32: largest score in each cell, without the boundaries of single classes."""


def _middle(low: Any, high: Any) -> NDArray[np.float64]:
    """Return the scores halfway, in the logit, between the boundaries of cells."""
    low, high = np.clip(low, 1e-12, 1 - 1e-9), np.clip(high, 1e-12, 1 - 1e-9)
    logit = (np.log(low / (1 - low)) + np.log(high / (1 - high))) / 2
    return 1 / (1 + np.exp(-logit))


def _values() -> NDArray[np.float32]:
    values = _middle(np.append(0.0, EDGES[:-1].astype(np.float64)), EDGES.astype(np.float64))
    values[0], values[-2:] = 0.0, 1.0
    return values.astype(np.float32)


VALUES: NDArray[np.float32] = _values()
"""(E,) float32: score that stands for each cell; 0 for the first, 1 for scores above the last finite boundary."""


NO_DATA = len(EDGES) + 1
"""Code of pixels without data, above that of every score: no threshold accepts it, not even an infinite one."""


def cells_of(scores: Any, xp: Any = np) -> BackendArray:
    """Return the cell of each score, int64, in the array library ``xp``."""
    return xp.searchsorted(xp.asarray(EDGES), scores)


class ScoreLevels:
    """Codes of nonconformity scores; ``splits`` (Ke,) is one more boundary for each scored class.

    The code of a score is its cell, plus one if the score is above the boundary of its class.
    """

    def __init__(self, splits: NDArray[np.float32]) -> None:
        self.splits = np.asarray(splits, np.float32)
        self.split_cells: NDArray[np.uint16] = np.searchsorted(EDGES, self.splits).astype(np.uint16)
        """(Ke,): cell of each class's own boundary."""

    def codes(self, scores: Any, classes: Any, xp: Any = np) -> BackendArray:
        """Return the uint16 codes of scores; ``classes`` are their scored classes, of the same shape."""
        above = scores > xp.asarray(self.splits)[classes]
        return (cells_of(scores, xp) + above).astype(np.uint16)

    def limits(self, thresholds: NDArray[np.float32]) -> NDArray[np.int32]:
        """Return the largest code (Ke,) that each class's threshold accepts; -1 if it accepts none."""
        limits = np.full(len(self.splits), -1, np.int32)
        for target, (split, threshold) in enumerate(zip(self.splits, thresholds, strict=True)):
            edges = np.insert(EDGES, int(self.split_cells[target]), split)
            last = int(np.searchsorted(edges, threshold, side="right")) - 1
            inside = last + 1 < len(edges) and (last < 0 or threshold > edges[last])
            if inside and threshold >= 0:
                low = float(edges[last]) if last >= 0 else 0.0
                last += bool(threshold >= _middle(low, float(edges[last + 1])))
            limits[target] = last
        return limits
