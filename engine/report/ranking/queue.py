"""Order images by the value of labeling them: doubt, classes that calibration lacks, and novelty.

Images are chosen one after the other. Each step chooses the image with the largest sum of three terms: the rank of its
doubt, the need for the classes that it seems to show, and its distance from the images chosen before. The need for a
class decreases with each chosen image that shows it.

A queue is not a random sample: its images are harder than the rest, so thresholds from them alone are wider than
necessary, and give no guarantee for other images. Draw a part of the images to label at random.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SHOWS = 0.005
"""Smallest share of an image's pixels with a class that counts as showing it."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Weights of the three parts of an image's value, each of which is in [0, 1]."""

    doubt: float = 0.5
    """Weight of the doubt."""
    need: float = 1.0
    """Weight of the need for its classes."""
    novelty: float = 0.5
    """Weight of the distance from the images chosen before."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidates:
    """Figures of the n images that a queue is chosen from."""

    doubt: NDArray[np.float64]
    """(n,): doubt about the labels, larger is more; only the order matters."""
    shares: NDArray[np.float64]
    """(n, K): share of the pixels that seem to show each class."""
    descriptors: NDArray[np.float32]
    """(n, D): vectors whose distances measure how different images are."""


@dataclass(frozen=True, kw_only=True)
class Pick:
    """An image of the queue."""

    image: int
    """Number of the image."""
    doubt_rank: float
    """Share of the candidates with less doubt, in [0, 1]."""
    need: float
    """Need for its classes when it was chosen, in [0, 1]."""
    novelty: float
    """Distance from the images chosen before, in [0, 1]."""
    classes: tuple[int, ...]
    """Classes that it seems to show and calibration lacks, the most needed first."""


def plan_queue(
    candidates: Candidates,
    budget: int,
    *,
    calibrated: NDArray[np.int64],
    enough: int,
    weights: Weights | None = None,
    twins: Collection[tuple[int, int]] = (),
) -> list[Pick]:
    """Choose up to ``budget`` images in the order of their value.

    ``calibrated`` (K,) is the number of calibration images that show each class, ``enough`` the number that is
    sufficient per class. Of each pair of near-duplicates in ``twins`` at most one image is chosen.
    """
    weights = weights or Weights()
    num = len(candidates.doubt)
    doubt_rank = np.argsort(np.argsort(candidates.doubt, kind="stable"), kind="stable") / max(num - 1, 1)
    shows = candidates.shares >= SHOWS
    scale = _spread(candidates.descriptors)
    distance = np.ones(num)
    available = np.ones(num, bool)
    counts = calibrated.astype(np.float64).copy()
    twins_of: dict[int, list[int]] = {}
    for first, second in twins:
        twins_of.setdefault(first, []).append(second)
        twins_of.setdefault(second, []).append(first)
    picks: list[Pick] = []
    while len(picks) < budget and available.any():
        lack = np.clip(1 - counts / max(enough, 1), 0, 1)
        need = 1 - np.prod(np.where(shows, 1 - lack, 1), axis=1)
        value = weights.doubt * doubt_rank + weights.need * need + weights.novelty * distance
        image = int(np.argmax(np.where(available, value, -np.inf)))
        lacking = [int(target) for target in np.argsort(-lack, kind="stable") if lack[target] > 0]
        picks.append(
            Pick(
                image=image,
                doubt_rank=float(doubt_rank[image]),
                need=float(need[image]),
                novelty=float(distance[image]),
                classes=tuple(target for target in lacking if shows[image, target]),
            )
        )
        available[[image, *twins_of.get(image, ())]] = False
        counts += shows[image]
        step = np.linalg.norm(candidates.descriptors - candidates.descriptors[image], axis=1) / scale
        distance = np.minimum(distance, np.clip(step, 0, 1))
    return picks


def _spread(descriptors: NDArray[np.float32]) -> float:
    """Return twice the mean distance from the center, the distance at which images count as entirely different."""
    if not descriptors.size:
        return 1.0
    return max(2 * float(np.linalg.norm(descriptors - descriptors.mean(axis=0), axis=1).mean()), 1e-9)
