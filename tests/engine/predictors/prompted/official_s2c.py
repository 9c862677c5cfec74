"""Scores and pseudo-labels as S2C's authors compute them, at the image's size: a reference to compare with.

Labeling uses :mod:`maskmill.engine.predictors.prompted.class_masks` instead: here a pixel outside its class's mask
holds -1e5, a sentinel that
must not be interpolated, so these scores exist at full resolution only.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

SENTINEL = -1e5
"""Score outside a mask."""


def official_scores(
    logits: NDArray[np.float32], cams: NDArray[np.float32], size: tuple[int, int]
) -> NDArray[np.float32]:
    """Scores (C, H, W) of low-resolution logits (C, h, w) of one mask per class and maps (C, H, W), one per class.

    The logits must cover the image alone. Inside a mask, where the resized logit is positive, the score is the resized
    logit times the mean of the map inside the mask; an empty mask has no score.
    """
    height, width = size
    scores = np.full((len(logits), height, width), SENTINEL, np.float32)
    for score, logit, cam in zip(scores, logits, cams, strict=True):
        resized = cv2.resize(np.asarray(logit, np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
        inside = resized > 0
        if inside.any():
            score[inside] = resized[inside] * cam[inside].mean(dtype=np.float64)
    return scores


def official_labels(scores: NDArray[np.float32]) -> NDArray[np.int64]:
    """(H, W): 0 where no class has a score of at least 0, else 1 + the first class of the highest score."""
    if len(scores) == 0:
        return np.zeros(scores.shape[1:], np.int64)
    return np.where(scores.max(axis=0) < 0, 0, scores.argmax(axis=0) + 1)
