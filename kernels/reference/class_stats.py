"""Fused decode of class scores: the specification, in float64.

Sources: half-pixel bilinear upsampling as torch's ``interpolate(align_corners=False)``; prediction sets of ConformalSAM
(the nonconformity score of a class is the mass of all others); residual dispersion of CSL.
"""

from __future__ import annotations

import numpy as np

from ..plans.class_stats import DecodePlan, decode_plan
from ..types import UNREACHED, ClassStats


def class_stats(
    scores,
    size,
    *,
    layout="CHW",
    activation="softmax",
    groups=None,
    num_targets=None,
    region=None,
    truth=None,
    thresholds=None,
    rule="argmax",
    background=None,
    ignore=None,
    dispersion="official",
    outputs=("label", "confidence"),
    out=None,
) -> ClassStats:
    """As :func:`maskmill.kernels.class_stats`, for NumPy arrays."""
    plan = decode_plan(
        scores.shape,
        size,
        layout=layout,
        activation=activation,
        groups=groups,
        num_targets=num_targets,
        region=region,
        truth_shape=None if truth is None else truth.shape,
        thresholds_shape=None if thresholds is None else np.shape(thresholds),
        rule=rule,
        background=background,
        ignore=ignore,
        dispersion=dispersion,
        outputs=outputs,
    )
    if plan.batch is None:
        found = _stats_of_one(scores, plan, truth, thresholds)
    else:
        maps = [
            _stats_of_one(scores[n], plan, None if truth is None else truth[n], thresholds) for n in range(plan.batch)
        ]
        found = {name: np.array([one[name] for one in maps]).reshape(plan.shape) for name in plan.outputs}
    filled = {}
    for name in plan.outputs:
        filled[name] = getattr(out, name, None)
        if filled[name] is None:
            filled[name] = np.empty(plan.shape, plan.dtype_of(name))
        filled[name][...] = found[name]
    return ClassStats(**filled)


def upsample(scores, plan: DecodePlan) -> np.ndarray:
    """(H, W, C) float64: one score map sampled at the output's pixels."""
    source = np.asarray(scores).astype(np.float64)
    if plan.layout == "CHW":
        source = source.transpose(1, 2, 0)
    rows, columns = plan.rows, plan.columns
    across, down = columns.weight[:, None], rows.weight[:, None, None]
    with np.errstate(invalid="ignore"):
        wide = (1 - across) * source[:, columns.lower] + across * source[:, columns.upper]
        return (1 - down) * wide[rows.lower] + down * wide[rows.upper]


def class_scores(values, plan: DecodePlan) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rank, score and nonconformity score, (..., Ke) float64 each, of finite upsampled values (..., C).

    The rank orders the classes as the score does, also where scores have saturated; -inf for a class that no model
    class maps to, whose score is 0 and whose nonconformity score is +inf.
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
        others = np.stack([np.delete(mass, k, -1).sum(-1) for k in range(plan.num_scored)], -1)
        total = mass.sum(-1, keepdims=True)
        rank, score, nonconformity = np.where(plan.reached, mass, -np.inf), mass / total, others / total
    return rank, score, np.where(plan.reached, nonconformity, np.inf)


def _sigmoid(x):
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, small) / (1 + small)


def _stats_of_one(scores, plan: DecodePlan, truth, thresholds) -> dict[str, np.ndarray]:
    """Every field asked for, (H, W) each, of one map."""
    values = upsample(scores, plan)
    finite: np.ndarray = np.all(np.isfinite(values), axis=-1)
    rank, score, nonconformity = class_scores(np.where(finite[..., None], values, 0), plan)
    # The precision in which calibration stores the scores, so that a threshold holds the score it was taken from.
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
    if "true_score" in plan.outputs:
        inside = (truth >= 0) & (truth < plan.num_scored) & (truth != plan.ignore)
        true = _pick(nonconformity, np.where(inside, truth, 0).astype(np.int64))
        result["true_score"] = np.where(inside, np.where(finite, true, np.inf), np.nan)
    return result


def _pick(values, index):
    return np.take_along_axis(values, index[..., None], -1)[..., 0]


def _dispersion(shares, top, plan: DecodePlan):
    """Variance of the other classes' shares about their mean; the official form lets the top's empty slot count."""
    others = plan.num_scored - 1
    mean = (1 - _pick(shares, top)) / others
    deviation = (shares - mean[..., None]) ** 2
    np.put_along_axis(deviation, top[..., None], 0, -1)
    squares = deviation.sum(-1)
    if plan.dispersion == "official" or plan.num_scored == 2:
        squares = squares + mean**2
    return squares / others


def _rule(rank, member, top, plan: DecodePlan):
    """Class the rule takes from the prediction set, -1 where it takes none."""
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
    only = np.where(member.sum(-1) == 1, member.argmax(-1), -1)
    return only if plan.rule == "single" else np.where(only == top, only, -1)
