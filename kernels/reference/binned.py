"""Binned score counts: the specification."""

from __future__ import annotations

import numpy as np

from ..plans.binned import check_binned


def binned_counts(
    scores: np.ndarray,
    truth: np.ndarray,
    top: np.ndarray,
    top_scores: np.ndarray,
    edges: np.ndarray,
    *,
    num_classes: int,
    ignore: int = 255,
) -> np.ndarray:
    """Count pixels by class and bin of a score, uint32 (3, num_classes, B).

    A score belongs to the first bin whose edge is at least the score, and to the last bin if there is none or it is
    NaN. Pixels whose truth is ``ignore``, or outside [0, num_classes), are excluded. The tables are: by true class and
    its score; those of them whose top class is the truth; the others whose top class is below ``num_classes``, by top
    class and ``top_scores``.
    """
    scores, truth, top, top_scores, edges = map(np.asarray, (scores, truth, top, top_scores, edges))
    check_binned(scores, truth, top, top_scores, edges, num_classes)
    counts = np.zeros((3, num_classes, len(edges)), np.uint32)
    has_class = (truth >= 0) & (truth < num_classes) & (truth != ignore)
    truth, top = truth[has_class].astype(np.int64), top[has_class].astype(np.int64)
    score_bin, best = (
        np.minimum(np.searchsorted(edges, values[has_class].astype(np.float32)), len(edges) - 1)
        for values in (scores, top_scores)
    )
    hit, wrong = top == truth, (top != truth) & (top >= 0) & (top < num_classes)
    np.add.at(counts[0], (truth, score_bin), 1)
    np.add.at(counts[1], (truth[hit], score_bin[hit]), 1)
    np.add.at(counts[2], (top[wrong], best[wrong]), 1)
    return counts
