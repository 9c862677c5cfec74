"""Watch whether images still look like the calibration images: conformal p-values bet against exchangeability.

Each statistic of :mod:`.statistics` has a bettor of its own. The statistic of a new image is ranked among those of the
calibration images and of the images before it. If all of them are exchangeable, the randomized ranks are independent
and uniform, and no bettor's capital of 1 reaches J / level with a probability above level / J (Ville's inequality);
with J bettors the probability that any of them does is at most ``level``.

Comparing with the fixed calibration images alone is not valid: a long stream would reveal their chance difference from
the distribution of new images.

The bets are seven densities on [0, 1], among which the capital is mixed anew at every image (Vovk et al. 2021, who
call the linear ones the simple jumper); the powers p ** -1/2 and p ** -3/4 win fast on images outside the calibration's
range.

Usage::

    watch = DriftWatch(calibration.counts.statistics)
    for name, statistics in images:
        watch.update(statistics, name)
    print(watch.alarm, watch.seen)
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from heapq import heappush, heappushpop
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.05
"""Probability of an alarm without drift."""
SAMPLE = 2000
"""Number of inputs, in the order of :func:`order_key`, for which the level holds."""

_JUMP = 0.001
_SMALLEST = 1e-12  # p-values are kept away from 0 and 1, where the powers are infinite


class DriftWatch:
    """Bets on a stream of statistics (J,) against a calibration sample (n, J)."""

    def __init__(self, calibration: NDArray[Any], *, level: float = LEVEL) -> None:
        values = np.asarray(calibration, np.float64)
        self._values = [sorted(column) for column in values.T.tolist()]
        self._num_bets = len(_bets(np.full(1, 0.5)))
        self._shares = np.full((self._num_bets, len(self._values)), 1 / self._num_bets)
        self._limit = np.log(len(self._values) / level)
        self.log_capital = np.zeros(len(self._values))
        """(J,): logarithm of each bettor's capital."""
        self.seen = 0
        """Number of images so far."""
        self.alarms: list[int | None] = [None] * len(self._values)
        """Number of images at which each statistic's capital first reached J / level; None if it has not."""

    @property
    def alarm(self) -> int | None:
        """Number of images at the first alarm; None without one."""
        return min((alarm for alarm in self.alarms if alarm is not None), default=None)

    def update(self, statistics: Sequence[float] | NDArray[Any], name: str) -> NDArray[np.float64]:
        """Add one image and return its p-values (J,); ``name`` decides their random part, so that a rerun agrees."""
        p_values = np.empty(len(self._values))
        random = _uniform(name)
        for index, (values, value) in enumerate(zip(self._values, map(float, statistics), strict=True)):
            below, upto = bisect_left(values, value), bisect_right(values, value)
            p_values[index] = (below + random * (upto - below + 1)) / (len(values) + 1)
            values.insert(below, value)
        shares = ((1 - _JUMP) * self._shares + _JUMP / self._num_bets) * _bets(p_values)
        growth = shares.sum(axis=0)
        self._shares = shares / growth
        self.log_capital = self.log_capital + np.log(growth)
        self.seen += 1
        for index in np.flatnonzero(self.log_capital >= self._limit):
            if self.alarms[index] is None:
                self.alarms[index] = self.seen
        return p_values


def _bets(p_values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the densities (bets, J) at p-values (J,)."""
    low = np.clip(p_values, _SMALLEST, 1 - _SMALLEST)
    root, other_root = np.sqrt(low), np.sqrt(1 - low)
    return np.stack(
        [
            np.ones_like(low),
            2 * low,
            2 - 2 * low,
            0.5 / root,
            0.5 / other_root,
            0.25 / (low**0.75),
            0.25 / (1 - low) ** 0.75,
        ]
    )


def order_key(uri: str) -> int:
    """Return the place of an input in the order of the watch: a hash of its uri."""
    return int.from_bytes(hashlib.blake2b(uri.encode(), digest_size=8, person=b"drift order").digest(), "big")


def _uniform(name: str) -> float:
    digest = hashlib.blake2b(name.encode(), digest_size=8, person=b"drift random").digest()
    return (int.from_bytes(digest, "big") + 0.5) / 2.0**64


class Sample:
    """The first inputs, by :func:`order_key`, of those that were added."""

    def __init__(self, size: int = SAMPLE) -> None:
        self._size = size
        self._heap: list[tuple[int, str]] = []
        self._members: set[str] = set()

    def add(self, uri: str) -> None:
        """Add an input; a uri counts once."""
        key = -order_key(uri)
        if (len(self._heap) == self._size and key <= self._heap[0][0]) or uri in self._members:
            return
        self._members.add(uri)
        if len(self._heap) < self._size:
            heappush(self._heap, (key, uri))
        else:
            self._members.remove(heappushpop(self._heap, (key, uri))[1])

    def uris(self) -> list[str]:
        """Return the inputs of the sample, in order."""
        return [uri for _, uri in sorted(self._heap, reverse=True)]
