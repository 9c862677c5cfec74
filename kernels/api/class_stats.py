"""Public function ``class_stats``."""

from __future__ import annotations

from collections.abc import Sequence

from ..arrays import dispatch, host_array
from ..plans.class_stats import DecodeOptions
from ..types import Activation, Array, ArrayT, ClassStats, Dispersion, Layout, Rule


def class_stats(
    scores: ArrayT,
    size: tuple[int, int],
    *,
    layout: Layout = "CHW",
    activation: Activation = "softmax",
    groups: Sequence[int] | Array | None = None,
    num_targets: int | None = None,
    region: tuple[float, float, float, float] | None = None,
    truth: Array | None = None,
    thresholds: float | Array | None = None,
    rule: Rule = "argmax",
    background: int | None = None,
    ignore: int | None = None,
    dispersion: Dispersion = "official",
    outputs: Sequence[str] = ("label", "confidence"),
    out: ClassStats[ArrayT] | None = None,
) -> ClassStats[ArrayT]:
    """Decode class scores to full size in one pass: upsample, activate, group, pick, measure and select.

    Args:
        scores: (C, h, w) or (h, w, C), optionally with a leading batch axis N; float16, bfloat16 or float32, any
            strides. Logits for softmax and sigmoid, non-negative scores for none. At most 1024 classes.
        size: (H, W) of the outputs, in pixels.
        layout: position of the class axis, ``CHW`` or ``HWC``.
        activation: ``softmax`` and ``none`` (scores are used unchanged) sum the classes of a group, ``sigmoid`` takes
            the highest.
        groups: (C,) integers on the host: the target class 0..K-1 of each model class, -1 for a dropped one. Dropped
            classes form one more scored class, index K, "none of these". Default: one target per model class. A target
            that no model class maps to has score 0, belongs to no set and is never chosen.
        num_targets: K. Default: the highest target in ``groups`` + 1.
        region: (y0, x0, y1, x1), the part of the map that covers the output, in score-map pixels (float); samples are
            clamped to the map. Default: the full map, as in torch's ``interpolate(mode="bilinear")``.
        truth: (H, W) or (N, H, W) integers, the true scored classes for ``true_score``; other indices are excluded.
        thresholds: largest nonconformity score in the prediction set: a scalar, one value per scored class, float32
            (K or K + 1,), or a map, float32 (H, W). Default: no prediction set; the label is the top class.
        rule: label, given the prediction set: ``argmax`` the top class if it is a member; ``foreground`` the best
            member other than ``background``, or ``background`` if it is the only member; ``single`` the only member;
            ``agree`` the only member if it is the top class. Otherwise, and for "none of these", ``ignore``.
        background: target class that ``foreground`` avoids.
        ignore: index of pixels without a label. Default 255, or 65535 for more than 255 targets.
        dispersion: ``official`` counts the top class's empty slot as CSL's code does, ``exact`` does not; two scored
            classes always use ``official``.
        outputs: names of the :class:`ClassStats` fields to fill.
        out: arrays to fill and return instead of new ones, C-contiguous.

    The nonconformity score of a class is the mass of all other classes over the total, summed separately for the top
    class (softmax), sigmoid of the negated logit, or 1 minus the score (none). ``true_score`` and set membership come
    from the same code: a class is in the set exactly if its float32 score is at most the threshold.

    If an interpolated score is not finite, the label is ``ignore``, ``top`` and ``second`` are ``UNREACHED``,
    ``true_score`` is +inf and the other outputs are 0. If all scores sum to 0 or less, share and dispersion are 0.
    Equal scores: the lowest class wins.

    The upsampled scores are never stored. On a CPU, a call on the main thread shares a large map among
    ``NUMBA_NUM_THREADS`` threads; any other call stays on its thread and releases Python's lock. The bits are the same.

    Raises:
        UsageError: an argument is out of range or two arguments conflict; dispersion of one class; ``set_size`` without
            thresholds, ``true_score`` without truth; arrays on different devices.

    Source: prediction sets, ConformalSAM; dispersion, CSL.
    """
    options = DecodeOptions(
        layout=layout,
        activation=activation,
        groups=host_array("groups", groups),
        num_targets=num_targets,
        region=region,
        rule=rule,
        background=background,
        ignore=ignore,
        dispersion=dispersion,
        outputs=outputs,
    )
    host = {"options": options}
    return dispatch("class_stats", scores, size, host=host, truth=truth, thresholds=thresholds, out=out)
