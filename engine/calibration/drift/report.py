"""Report the result of a drift watch in words and numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .statistics import STATISTICS
from .watch import LEVEL, DriftWatch

STRETCH = 200
"""Number of images in a stretch: consecutive images in the order of their names."""

_REMARKABLE = 0.25  # smallest share of far images for the sentence to mention a stretch


@dataclass(frozen=True, kw_only=True)
class Change:
    """A statistic that raised an alarm."""

    statistic: str
    """Its name, one of :data:`~maskmill.engine.calibration.drift.statistics.STATISTICS`."""
    alarm: int
    """Number of images before its alarm."""
    calibration: float
    """Its mean over the calibration images."""
    corpus: float
    """Its mean over the sample."""


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """Distances of all images from the calibration images; descriptive only, without an error level."""

    images: int
    """Number of images."""
    far: float
    """Share of the images that differ more from the calibration images than 95 % of these do from each other."""
    stretch: float
    """The highest such share of 200 consecutive images in the order of their names."""
    first: str
    """First image of that stretch."""
    last: str
    """Its last image."""


@dataclass(frozen=True, kw_only=True)
class DriftReport:
    """Result of the watch over a set of images."""

    images: int
    """Number of images in the sample that is tested at :attr:`level`."""
    level: float
    """Probability of an alarm without drift."""
    alarm: int | None
    """Number of images before the alarm; None without one."""
    changes: tuple[Change, ...] = ()
    """Statistics that raised an alarm, the first one first."""
    surroundings: Surroundings | None = None
    """All images, if there are at least twice as many as in a stretch."""

    def sentence(self) -> str:
        """Describe the result in plain words."""
        if self.alarm is None:
            text = f"no sign of drift in {self.images} images at level {self.level:g}"
        else:
            means = "; ".join(
                f"{change.statistic} {change.corpus:.3g}, {change.calibration:.3g} in calibration"
                for change in self.changes[:3]
            )
            text = (
                f"these images do not look like the calibration images: alarm after {self.alarm} of {self.images} "
                f"images at level {self.level:g} ({means}); the calibration's promise does not hold for them: label "
                "some of them and calibrate again"
            )
        near = self.surroundings
        if near is not None and near.stretch >= _REMARKABLE:
            text += (
                f"; of {STRETCH} images from {near.first} to {near.last} {near.stretch:.0%} are unlike the calibration "
                f"images, of all {near.images} images {near.far:.0%} (5 % of the calibration images are)"
            )
        return text

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {**asdict(self), "changes": [asdict(change) for change in self.changes]}


def watch_images(
    calibration: NDArray[Any], images: Iterable[tuple[str, Sequence[float] | NDArray[Any]]], *, level: float = LEVEL
) -> DriftReport | None:
    """Run the watch over images, (name, statistics), in order; None without images or calibration statistics."""
    watch, rows = DriftWatch(calibration, level=level), []
    for name, statistics in images:
        watch.update(statistics, name)
        rows.append(np.asarray(statistics, np.float64))
    if not rows or not len(calibration):
        return None
    means, expected = np.mean(rows, axis=0), np.mean(calibration, axis=0)
    changes = [
        Change(statistic=name, alarm=alarm, calibration=float(before), corpus=float(now))
        for name, alarm, before, now in zip(STATISTICS, watch.alarms, expected, means, strict=True)
        if alarm is not None
    ]
    changes.sort(key=lambda change: change.alarm)
    return DriftReport(images=len(rows), level=level, alarm=watch.alarm, changes=tuple(changes))


class Distance:
    """Distance of images from the calibration images: root mean square of their standardized statistics."""

    def __init__(self, calibration: NDArray[Any]) -> None:
        values = np.asarray(calibration, np.float64)
        self._mean, self._scale = values.mean(axis=0), _scale(values.var(axis=0))
        num = len(values)
        num_others = max(num - 1, 1)
        # mean and variance of all images but one
        means = (values.sum(axis=0) - values) / num_others
        variances = np.maximum(((values**2).sum(axis=0) - values**2) / num_others - means**2, 0)
        self.own: NDArray[np.float64] = _root_mean_square((values - means) / _scale(variances))
        """(n,): distance of each calibration image from the others."""
        self.usual = float(np.quantile(self.own, 0.95))
        """95 % of the calibration images are no farther than this from the others."""

    def of(self, statistics: Sequence[float] | NDArray[Any]) -> float:
        """Return the distance of one image, given its statistics (J,)."""
        return float(_root_mean_square((np.asarray(statistics, np.float64) - self._mean) / self._scale))


def survey(names: Sequence[str], distances: NDArray[np.float64], usual: float) -> Surroundings | None:
    """Describe distances (n,) of images in the order of their ``names``; None for fewer than two stretches."""
    if len(names) < 2 * STRETCH:
        return None
    far = distances > usual
    running = np.concatenate([[0], np.cumsum(far)])
    shares = (running[STRETCH:] - running[:-STRETCH]) / STRETCH
    start = int(shares.argmax())
    return Surroundings(
        images=len(names),
        far=float(far.mean()),
        stretch=float(shares[start]),
        first=names[start],
        last=names[start + STRETCH - 1],
    )


def _scale(variance: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.sqrt(np.maximum(variance, 1e-6))


def _root_mean_square(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.sqrt((values**2).mean(axis=-1))
