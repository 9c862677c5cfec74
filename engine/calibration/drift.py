"""Watch whether images still look like the calibration images: conformal p-values bet against exchangeability.

One number per image, the mean score of its top class over all pixels, is compared with those of the calibration images
and of the images before it. If all of them are exchangeable, the randomized ranks are independent and uniform, and a
bettor against that cannot grow a capital of 1 to 1 / level with a probability above ``level`` (Ville's inequality). The
bets are those of the simple jumper (Vovk et al. 2021).

Comparing with the fixed calibration images alone would not do: a long stream would show whatever they differ by from
new images by chance.

Usage::

    watch = DriftWatch(calibration.counts.confidence)
    for name, value in images:
        watch.update(value, name)
    print(watch.alarm, watch.seen)
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.05
"""Probability of an alarm without drift."""
SAMPLE = 2000
"""Images, in the order of their names' hashes, that carry the level."""

_SLOPES = np.array([-1.0, -0.5, 0.0, 0.5, 1.0])
_JUMP = 0.01


class DriftWatch:
    """Bets on a stream of numbers against a calibration sample (n,)."""

    def __init__(self, calibration: Sequence[float] | NDArray[Any], *, level: float = LEVEL) -> None:
        self._values = sorted(float(value) for value in calibration)
        self._level = level
        self._capitals = np.full(len(_SLOPES), 1 / len(_SLOPES))
        self.seen = 0
        """Images so far."""
        self.alarm: int | None = None
        """Number of images at which the capital first reached 1 / level; None if it has not."""

    @property
    def capital(self) -> float:
        """The bettor's capital, 1 at the start."""
        return float(self._capitals.sum())

    def update(self, value: float, name: str) -> float:
        """Add one image and return its p-value; ``name`` decides the random part, so that a rerun gives the same."""
        below, upto = bisect_left(self._values, value), bisect_right(self._values, value)
        p_value = (below + _uniform(name) * (upto - below + 1)) / (len(self._values) + 1)
        insort(self._values, value)
        mixed = (1 - _JUMP) * self._capitals + _JUMP * self._capitals.sum() / len(_SLOPES)
        self._capitals = mixed * (1 + _SLOPES * (p_value - 0.5))
        self.seen += 1
        if self.alarm is None and self.capital >= 1 / self._level:
            self.alarm = self.seen
        return p_value


def _uniform(name: str) -> float:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") / 2.0**64


@dataclass(frozen=True, kw_only=True)
class DriftReport:
    """Result of the watch over a set of images."""

    images: int
    """Images in the sample that carries the level."""
    level: float
    """Probability of an alarm without drift."""
    alarm: int | None
    """Images until the alarm; None without one."""
    calibration_mean: float
    """Mean top score of the calibration images."""
    mean: float
    """Mean top score of the sample."""

    def sentence(self) -> str:
        """Describe the result in plain words."""
        means = f"mean top score {self.mean:.3f}, {self.calibration_mean:.3f} in calibration"
        if self.alarm is None:
            return f"no sign of drift in {self.images} images at level {self.level:g} ({means})"
        return (
            f"these images do not look like the calibration images: alarm after {self.alarm} of {self.images} images "
            f"at level {self.level:g} ({means}); the calibration's promise does not hold here: label some of them and "
            "calibrate again"
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return dict(vars(self))


def watch_images(
    calibration: Sequence[float] | NDArray[Any], images: Iterable[tuple[str, float]], *, level: float = LEVEL
) -> DriftReport | None:
    """Watch up to ``SAMPLE`` images, (name, number), in the order of their names' hashes; None without images.

    The order does not depend on that of a run, so that resume and several workers give the same report.
    """
    stream = sorted(images, key=lambda image: hashlib.blake2b(b"order" + image[0].encode(), digest_size=8).digest())
    sample = stream[:SAMPLE]
    if not sample or not len(calibration):
        return None
    watch = DriftWatch(calibration, level=level)
    for name, value in sample:
        watch.update(value, name)
    return DriftReport(
        images=len(sample),
        level=level,
        alarm=watch.alarm,
        calibration_mean=float(np.mean(calibration)),
        mean=float(np.mean([value for _, value in sample])),
    )
