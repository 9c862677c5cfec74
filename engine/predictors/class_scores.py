"""Scores of every scored class at single pixels, in NumPy or CuPy: the arithmetic of the decode kernel in float64."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...kernels.types import Activation
from ..model.taxonomy import Taxonomy


def class_scores(values: Any, taxonomy: Taxonomy, activation: Activation, xp: Any = np) -> tuple[Any, Any]:
    """Compute rank, float64, and nonconformity score, float32, (S, Ke) each, of interpolated values (S, C).

    The rank orders the classes as their scores do. A class that no model class maps to has rank -inf and score +inf.
    """
    num_scored = taxonomy.num_scored
    groups = np.arange(num_scored) if taxonomy.groups is None else taxonomy.groups
    groups = np.where(groups < 0, taxonomy.num_targets, groups)
    values = values.astype(np.float64)
    if activation == "softmax":
        values = xp.exp(values - values.max(axis=1, keepdims=True))
    rank = values
    if taxonomy.groups is not None:
        rank = xp.full((len(values), num_scored), -np.inf if activation == "sigmoid" else 0.0)
        for channel, target in enumerate(groups.tolist()):
            if activation == "sigmoid":
                rank[:, target] = xp.maximum(rank[:, target], values[:, channel])
            else:
                rank[:, target] += values[:, channel]
    if activation == "softmax":
        total = rank.sum(axis=1, keepdims=True)
        top = rank.argmax(axis=1)
        scores = (total - rank) / total
        # the mass of all other classes, not 1 minus a number near 1
        other_ranks = rank.copy()
        other_ranks[xp.arange(len(rank)), top] = 0
        scores[xp.arange(len(rank)), top] = other_ranks.sum(axis=1) / total[:, 0]
    else:
        scores = 1 / (1 + xp.exp(rank)) if activation == "sigmoid" else 1 - rank
    unreached = xp.asarray(~np.isin(np.arange(num_scored), groups))
    return xp.where(unreached, -np.inf, rank), xp.where(unreached, np.inf, scores).astype(np.float32)
