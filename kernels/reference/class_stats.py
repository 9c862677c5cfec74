"""Fused decode of class scores: the specification, in float64.

Sources: half-pixel bilinear upsampling as torch's ``interpolate(align_corners=False)``; prediction sets of ConformalSAM
(the nonconformity score of a class is the mass of all others); residual dispersion of CSL.
"""

from __future__ import annotations

import numpy as np

from ..plans.class_stats import DEFAULTS, DecodeOptions, DecodePlan, decode_plan
from ..types import UNREACHED, ClassStats


def class_stats(
    scores: np.ndarray,
    size: tuple[int, int],
    options: DecodeOptions = DEFAULTS,
    *,
    truth: np.ndarray | None = None,
    thresholds: float | np.ndarray | None = None,
    out: ClassStats[np.ndarray] | None = None,
) -> ClassStats[np.ndarray]:
    """Specify :func:`maskmill.kernels.class_stats`, for NumPy arrays."""
    plan = decode_plan(scores.shape, size, options, truth, thresholds)
    if plan.batch is None:
        stats = _stats_of_map(scores, plan, truth, thresholds)
    else:
        maps = [
            _stats_of_map(scores[n], plan, None if truth is None else truth[n], thresholds) for n in range(plan.batch)
        ]
        stats = {name: np.array([fields[name] for fields in maps]).reshape(plan.shape) for name in plan.outputs}
    arrays = {}
    for name in plan.outputs:
        arrays[name] = getattr(out, name, None)
        if arrays[name] is None:
            arrays[name] = np.empty(plan.shape, plan.dtype_of(name))
        arrays[name][...] = stats[name]
    return ClassStats(**arrays)


def upsample(scores: np.ndarray, plan: DecodePlan) -> np.ndarray:
    """Sample one score map at the output's pixels: float64 (H, W, C)."""
    source = np.asarray(scores).astype(np.float64)
    if plan.layout == "CHW":
        source = source.transpose(1, 2, 0)
    rows, columns = plan.rows, plan.columns
    across, down = columns.weight[:, None], rows.weight[:, None, None]
    with np.errstate(invalid="ignore"):
        columns_blended = (1 - across) * source[:, columns.lower] + across * source[:, columns.upper]
        return (1 - down) * columns_blended[rows.lower] + down * columns_blended[rows.upper]


def class_scores(values: np.ndarray, plan: DecodePlan) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute rank, score and nonconformity score, float64 (..., Ke) each, of finite upsampled values (..., C).

    The rank orders the classes as the score does, even if scores have saturated. A class that no model class maps to
    has rank -inf, score 0 and nonconformity score +inf.
    """
    members = [
        np.arange(plan.channels) == k if plan.groups is None else plan.groups == k for k in range(plan.num_scored)
    ]
    if plan.activation == "sigmoid":
        rank = np.stack([values[..., m].max(-1, initial=-np.inf) for m in members], -1)
        score, nonconformity = _sigmoid(rank), _sigmoid(-rank)
    elif plan.activation == "none":
        score = np.stack([values[..., m].sum(-1) for m in members], -1)
        rank, nonconformity = np.where(plan.reached, score, -np.inf), 1 - score
    else:
        exponential = np.exp(values - values.max(-1, keepdims=True))
        mass = np.stack([exponential[..., m].sum(-1) for m in members], -1)
        other_mass = np.stack([np.delete(mass, k, -1).sum(-1) for k in range(plan.num_scored)], -1)
        total = mass.sum(-1, keepdims=True)
        rank, score, nonconformity = np.where(plan.reached, mass, -np.inf), mass / total, other_mass / total
    return rank, score, np.where(plan.reached, nonconformity, np.inf)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, small) / (1 + small)


def _stats_of_map(
    scores: np.ndarray, plan: DecodePlan, truth: np.ndarray | None, thresholds: float | np.ndarray | None
) -> dict[str, np.ndarray]:
    """Compute the requested fields of one map, (H, W) each."""
    values = upsample(scores, plan)
    finite: np.ndarray = np.all(np.isfinite(values), axis=-1)
    rank, score, nonconformity = class_scores(np.where(finite[..., None], values, 0), plan)
    # Calibration stores float32 scores, so a threshold taken from a score includes that score.
    nonconformity = nonconformity.astype(np.float32)

    top = rank.argmax(-1)
    top_score = _pick(score, top)
    total = score.sum(-1)
    positive = total > 0
    shares = np.divide(score, total[..., None], out=np.zeros_like(score), where=positive[..., None])
    share = _pick(shares, top)
    without_top = rank.copy()
    np.put_along_axis(without_top, top[..., None], -np.inf, -1)
    second = without_top.argmax(-1)
    has_second = finite & (_pick(without_top, second) > -np.inf)

    result = {
        "top": np.where(finite, top, UNREACHED),
        "confidence": np.where(finite, top_score, 0),
        "share": np.where(finite, share, 0),
        "second": np.where(has_second, second, UNREACHED),
        "second_confidence": np.where(has_second, _pick(score, second), 0),
    }
    if "dispersion" in plan.outputs:
        spread = _dispersion(shares, top, plan)
        result["dispersion"] = np.where(finite & positive, spread, 0)
    if thresholds is None:
        label = top
    else:
        limit = np.asarray(thresholds, np.float32)
        member = nonconformity <= (limit[..., None] if limit.ndim == 2 else limit)
        member &= plan.reached
        result["set_size"] = np.where(finite, member.sum(-1), 0)
        label = _rule(rank, member, top, plan)
    emitted = finite & (label >= 0) & (label < plan.num_targets)
    result["label"] = np.where(emitted, label, plan.ignore)
    if truth is not None and "true_score" in plan.outputs:
        inside = (truth >= 0) & (truth < plan.num_scored) & (truth != plan.ignore)
        true = _pick(nonconformity, np.where(inside, truth, 0).astype(np.int64))
        result["true_score"] = np.where(inside, np.where(finite, true, np.inf), np.nan)
    return result


def _pick(values: np.ndarray, index: np.ndarray) -> np.ndarray:
    return np.take_along_axis(values, index[..., None], -1)[..., 0]


def _dispersion(shares: np.ndarray, top: np.ndarray, plan: DecodePlan) -> np.ndarray:
    """Compute the variance of the other classes' shares; the official form also counts the top's empty slot."""
    num_others = plan.num_scored - 1
    mean = (1 - _pick(shares, top)) / num_others
    deviation = (shares - mean[..., None]) ** 2
    np.put_along_axis(deviation, top[..., None], 0, -1)
    squares = deviation.sum(-1)
    if not plan.exact_dispersion:
        squares = squares + mean**2
    return squares / num_others


def _rule(rank: np.ndarray, member: np.ndarray, top: np.ndarray, plan: DecodePlan) -> np.ndarray:
    """Return the class that the rule selects from the prediction set, -1 for none."""
    in_set = np.where(member, rank, -np.inf)
    if plan.rule == "argmax":
        return np.where(_pick(member, top), top, -1)
    if plan.rule == "foreground":
        if plan.background is not None:
            foreground = in_set.copy()
            foreground[..., plan.background] = -np.inf
            only_background = (foreground == -np.inf).all(-1)
            in_set = np.where(only_background[..., None], in_set, foreground)
        return np.where(member.any(-1), in_set.argmax(-1), -1)
    sole_member = np.where(member.sum(-1) == 1, member.argmax(-1), -1)
    return sole_member if plan.rule == "single" else np.where(sole_member == top, sole_member, -1)
