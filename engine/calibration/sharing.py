"""Decide which classes share a threshold, and which threshold a class with too few images uses.

``pooled`` has one threshold for all classes, ``class`` one per class (Mondrian), ``cluster`` one per group of classes
with similar scores (clustered conformal prediction, Ding et al. 2023), ``shrunk`` one per class, moved a quarter of the
way (in the logit) to the constant threshold that keeps as many pixels, and ``position`` one per cell of a fixed grid
(ConformalSAM).

A class seen in fewer than ``min_images`` images uses the threshold of the pooled foreground classes. The background is
never pooled with them: its scores are far lower, and would distort their threshold. A class that calibration has never
seen is not emitted, or, with ``unseen`` "confident", at the constant threshold that keeps as many pixels as the
thresholds of the other classes do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .scores.score_counts import NUM_BINS, ScoreCounts

Group = Literal["pooled", "class", "cluster", "shrunk", "position"]
Fallback = Literal["foreground", "pooled"]
Unseen = Literal["never", "confident", "pooled"]

FOREGROUND, POOLED, NEVER, CONFIDENT = -1, -2, -3, -4
"""Values of :attr:`Sharing.group_of`: pooled foreground classes, all classes, no threshold, constant threshold."""

SHRINKAGE = 0.25
"""Weight of the constant threshold in a ``shrunk`` one."""

_LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True, kw_only=True, eq=False)
class Sharing:
    """Assignment of the K classes to the scores that decide their thresholds."""

    group: Group
    """The grouping that was requested."""
    group_of: NDArray[np.int64]
    """(K,): index of the class's group from 0, or FOREGROUND, POOLED, NEVER or CONFIDENT."""
    background: int | None
    """Background class, which is not a member of the foreground pool."""

    @property
    def num_groups(self) -> int:
        """Number of groups with scores of their own."""
        return int(self.group_of.max(initial=-1)) + 1

    def members(self, source: int) -> NDArray[np.bool_]:
        """Return (K,), True for classes whose scores decide the threshold of ``source``, as in :attr:`group_of`."""
        if source == POOLED:
            return np.ones(len(self.group_of), bool)
        if source == FOREGROUND:
            return np.arange(len(self.group_of)) != (-1 if self.background is None else self.background)
        return self.group_of == source

    def source_name(self, target: int, names: tuple[str, ...]) -> str:
        """Describe the source of a class's threshold: own, pooled, foreground, confident, cluster members, or never."""
        source = int(self.group_of[target])
        if source < 0:
            return {FOREGROUND: "foreground", POOLED: "pooled", NEVER: "never", CONFIDENT: "confident"}[source]
        members = np.flatnonzero(self.members(source))
        if len(members) > 1:
            return "+".join(names[index] for index in members)
        return "shrunk" if self.group == "shrunk" else "own"


def share_thresholds(
    group: Group,
    num_images: NDArray[np.int64],
    *,
    min_images: int,
    background: int | None,
    counts: ScoreCounts | None = None,
    fallback: Fallback = "foreground",
    unseen: Unseen = "never",
) -> Sharing:
    """Assign every class to a threshold, given its number of images (K,); ``cluster`` needs ``counts`` as well."""
    num = len(num_images)
    group_of = np.full(num, POOLED, np.int64)
    starved = num_images < min_images
    if group in ("class", "shrunk"):
        group_of[~starved] = np.arange(int((~starved).sum()))
    elif group == "cluster":
        assert counts is not None, "clusters need the scores"
        group_of = _clusters(counts, num_images, min_images, background)
    if group in ("class", "cluster", "shrunk") and fallback == "foreground":
        foreground = np.arange(num) != (-1 if background is None else background)
        if (foreground & (num_images > 0)).any():
            group_of[starved & foreground & (group_of < 0)] = FOREGROUND
    sources = {"never": NEVER, "confident": POOLED if group == "position" else CONFIDENT, "pooled": POOLED}
    group_of[num_images == 0] = sources[unseen]
    return Sharing(group=group, group_of=group_of, background=background)


def _clusters(
    counts: ScoreCounts, num_images: NDArray[np.int64], min_images: int, background: int | None
) -> NDArray[np.int64]:
    """Merge the class with the fewest images into the most similar foreground cluster until all have enough images.

    Clusters are compared by quantiles of their binned scores. Every class counts with equal weight per image.
    """
    calibrated = [int(target) for target in np.flatnonzero(num_images > 0)]
    clusters = [[target] for target in calibrated]
    shares = np.zeros((len(num_images), NUM_BINS))
    np.add.at(shares, counts.target, counts.true / np.maximum(counts.true.sum(axis=1, keepdims=True), 1))
    seen_images = counts.pixels(len(num_images)) > 0

    def images(cluster: list[int]) -> int:
        return int(seen_images[:, cluster].any(axis=1).sum())

    def quantiles(cluster: list[int]) -> NDArray[np.int64]:
        running = np.cumsum(shares[cluster].sum(axis=0))
        return np.searchsorted(running, np.array(_LEVELS) * running[-1])

    while True:
        small = sorted(
            (cluster for cluster in clusters if images(cluster) < min_images and cluster != [background]), key=images
        )
        neighbors = [cluster for cluster in clusters if cluster not in small[:1] and cluster != [background]]
        if not small or not neighbors:
            break
        place = quantiles(small[0])
        nearest = min(neighbors, key=lambda cluster: float(np.abs(quantiles(cluster) - place).sum()))
        clusters = [cluster for cluster in clusters if cluster not in (small[0], nearest)] + [small[0] + nearest]
    group_of = np.full(len(num_images), POOLED, np.int64)
    for index, cluster in enumerate(sorted(clusters, key=min)):
        group_of[cluster] = index
    return group_of
