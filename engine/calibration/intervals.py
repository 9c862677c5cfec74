"""Intervals over images for shares of pixels: coverage, accuracy, IoU, kept share.

Pixels of one image depend on each other, so the variance comes from a bootstrap over images. A share near 0 or 1, or a
class seen in few images, makes that variance too small: it is mixed with that of independent draws, one per image. The
interval is Wilson's, with the number of draws that the variance stands for and Student's quantile. With fewer than
:data:`FEWEST_IMAGES` images the variation between images is unknown, and there is no interval.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

ROUNDS = 300
"""Bootstrap rounds."""
FEWEST_IMAGES = 5
"""Fewest images for an interval."""
_Z = 1.959964
_PRIOR_IMAGES = 20.0
"""Weight of independent draws in the variance, in images."""


@lru_cache(maxsize=16)
def image_weights(num_images: int, rounds: int = ROUNDS, seed: int = 0) -> NDArray[np.float64]:
    """Draw bootstrap multiplicities (rounds, n) of n images; the array is shared and read-only."""
    shares = np.full(max(num_images, 1), 1 / max(num_images, 1))
    weights = np.random.default_rng(seed).multinomial(num_images, shares, size=rounds).astype(np.float64)
    weights.setflags(write=False)
    return weights


def student_quantile(degrees: float) -> float:
    """Approximate the 97.5 % quantile of Student's distribution for at least 1 degree of freedom."""
    z, d = _Z, max(degrees, 1.0)
    return (
        z
        + (z**3 + z) / (4 * d)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * d**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * d**3)
    )


def share_interval(share: float, variance: float, num_images: int, *, rare_misses: bool = False) -> list[float] | None:
    """Compute the 95 % interval [low, high] of a share with a bootstrap ``variance`` over ``num_images`` images.

    None for fewer than :data:`FEWEST_IMAGES` images.

    With ``rare_misses`` an image counts as one draw at most, as for coverage: images with many misses are so rare that
    few samples show one.
    """
    if num_images < FEWEST_IMAGES:
        return None
    num = float(num_images)
    center = (share * num + 1) / (num + 2)
    single = center * (1 - center) / num
    variance = (num * variance + _PRIOR_IMAGES * single) / (num + _PRIOR_IMAGES)
    if rare_misses:
        variance = max(variance, single)
    size = center * (1 - center) / variance * (num - 1) / num
    t = student_quantile(num - 1)
    middle = (share + t * t / (2 * size)) / (1 + t * t / size)
    half = t / (1 + t * t / size) * np.sqrt(share * (1 - share) / size + t * t / (4 * size * size))
    return [float(max(0.0, min(middle - half, share))), float(min(1.0, max(middle + half, share)))]


def ratio_variance(numerator: NDArray[np.float64], denominator: NDArray[np.float64]) -> NDArray[np.float64]:
    """Estimate the variance of sum(numerator) / sum(denominator) over sets of n images, per column of (n, columns)."""
    if len(numerator) == 0:
        return np.full(numerator.shape[1:], np.nan)
    weights = image_weights(len(numerator))
    return column_variance(weights @ numerator, weights @ denominator)


def column_variance(sums: NDArray[np.float64], totals: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute the variance of sums / totals over rounds (rounds, columns); NaN for columns without a total."""
    ratios = np.divide(sums, totals, out=np.full(sums.shape, np.nan), where=totals > 0)
    defined = ~np.isnan(ratios)
    num = defined.sum(axis=0)
    mean = np.where(defined, ratios, 0).sum(axis=0) / np.maximum(num, 1)
    squares = np.where(defined, (ratios - mean) ** 2, 0).sum(axis=0)
    return np.where(num > 1, squares / np.maximum(num - 1, 1), np.nan)


def blocks(ids: tuple[str, ...], num_blocks: int) -> NDArray[np.int64]:
    """Assign images (n,) to at most ``num_blocks`` folds, identical files to the same one, evenly and at random."""
    names: dict[str, int] = {}
    for name in ids:
        names.setdefault(name, len(names))
    order = np.random.default_rng(0).permutation(len(names))
    fold = np.empty(len(names), np.int64)
    fold[order] = np.arange(len(names)) % max(1, min(num_blocks, len(names)))
    return fold[[names[name] for name in ids]] if ids else np.empty(0, np.int64)


def held_out_weights(fold_of: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return weightings (folds, n) that leave out one fold each."""
    num = int(fold_of.max(initial=-1)) + 1
    return (np.arange(num)[:, None] != fold_of[None]).astype(np.float64)


def folds(fold_of: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Yield each fold's index and images."""
    for fold in range(int(fold_of.max(initial=-1)) + 1):
        yield fold, np.flatnonzero(fold_of == fold)
