"""Compute thresholds from labeled images: conformal calibration, with a report measured on held-out images.

The model runs once per image. Nonconformity scores of the true class are spilled to a temporary file; thresholds are
exact order statistics of them, so memory does not depend on the number of pixels::

    calibration = calibrate(predictor, source, open_labels("labels"), taxonomy, alpha="0.05")
    calibration.save("calibration.json")

Unit ``pixel`` takes the rank ceil((n + 1)(1 - alpha)) among pixels, a heuristic since pixels of one image depend on
each other; ``image`` controls the mean over images of the share of pixels that miss their true class, with the
finite-sample correction over images (conformal risk control, Angelopoulos et al. 2024): a guarantee for a new image
like these.
:mod:`maskmill.engine.calibration.sharing` describes which classes share a threshold.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from ...checks import check_choice, check_count
from ...errors import CalibrationError, UsageError
from ...kernels.types import Rule
from ..inputs.labeled_source import pair_images
from ..inputs.labels import LabelSource
from ..inputs.sources import Source
from ..model.taxonomy import Taxonomy
from ..predictors.base import Predictor
from ..reading.geotiff import Windows
from .binned import BinnedScores, bins_of
from .calibration import (
    Calibration,
    Control,
    RuleChoice,
    calibration_conditions,
)
from .coverage import HeldOut, argmax_rows, hold_out, hold_out_positions
from .description import describe, promise, scenes_note
from .risk import LabelLosses, control_false_labels, control_misses, false_label_report, false_label_threshold
from .scores.observe import Observations
from .scores.score_counts import UPPER, ScoreCounts
from .sharing import CONFIDENT, NEVER, Fallback, Group, Unseen, share_thresholds
from .thresholds import SmallSample, Unit, alpha_text, count_classes, fewest_images, fit_thresholds, parse_alpha

DEFAULT_GRID = (512, 512)
Collect = Callable[..., None]
"""Function with the parameters of :meth:`Observations.collect`, observations first."""


def calibrate(
    predictor: Predictor,
    source: Source,
    labels: LabelSource,
    taxonomy: Taxonomy,
    *,
    alpha: str | float,
    group: Group | None = None,
    unit: Unit = "pixel",
    rule: RuleChoice | None = None,
    control: Control = "miscoverage",
    delta: str | float | None = None,
    ids: frozenset[str] | None = None,
    min_images: int | None = None,
    fallback: Fallback = "foreground",
    unseen: Unseen = "never",
    on_small_n: SmallSample = "refuse",
    grid: tuple[int, int] = DEFAULT_GRID,
    clusters: int | None = None,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
    collect: Collect = Observations.collect,
) -> Calibration:
    """Compute thresholds from labeled images.

    Parameters
    ----------
    predictor, taxonomy
        The model and the target classes; labeling must use the same.
    source, labels
        Images, and the folder of their label maps (same name, same size). Images without a label map are left out
        and counted.
    alpha
        Error rate to aim for, above 0 and below 1; a string is read literally. With 0.05 the true class is ruled out on
        up to 5 % of the pixels.
    group
        Classes or positions that share a threshold. None: ``class`` for the pixel unit, and ``pooled`` for the image
        unit, whose guarantee then holds for all pixels of an image.
    unit
        ``pixel`` is a heuristic, ``image`` a guarantee for the average over new images.
    rule
        How the prediction set decides the label; recorded for labeling. None: ``agree``, or ``argmax`` for another
        control. ``auto`` takes the rule with the best held-out
        mIoU among those whose labels are no less accurate than the top class of every pixel.
    control, delta
        The error whose rate ``alpha`` bounds: pixels whose set misses their class (``miscoverage``), or per image as
        :mod:`maskmill.engine.calibration.risk` describes, ``false-label-rate`` and ``miss-rate``; these take the rule
        ``argmax``. With ``delta`` the false-label rate holds except with that probability.
    ids
        Names of the images to calibrate on; all if None.
    min_images
        Fewest images for a threshold of a class's own; ceil(1 / alpha) - 1 if None.
    fallback
        Threshold of a class with fewer images: of the pooled ``foreground`` classes, or of all classes (``pooled``).
    unseen
        Threshold of a class without a calibration pixel: ``never`` emits none, ``confident`` takes the constant
        threshold that keeps as many pixels as the thresholds of the other classes, ``pooled`` the pooled threshold.
    on_small_n
        Treatment of thresholds that the number of images does not allow; see
        :func:`maskmill.engine.calibration.thresholds.fit_thresholds`.
    grid
        (height, width) to which scores are resampled for ``position``.
    clusters
        Number of clusters of positions with similar scores that share a threshold (k-means); None: each position has
        its own.
    workers
        Number of images processed at once.
    progress
        Called with (images done, all images).
    collect
        Function that runs the model on every image; others than the default let several processes share the work.

    Raises :class:`CalibrationError`, :class:`UsageError` or :class:`TaxonomyError`; an image that cannot be decoded is
    an error here, since leaving it out would change the sample.
    """
    parse_alpha(alpha)
    if control == "miscoverage":
        group, rule = group or ("class" if unit == "pixel" else "pooled"), rule or "agree"
    else:
        group, unit, rule = _control_options(control, group, rule)
    if delta is not None and control != "false-label-rate":
        raise UsageError(
            "delta applies to the false-label rate only; leave it out, or choose --control false-label-rate"
        )
    for name, value, kind in (
        ("group", group, Group),
        ("unit", unit, Unit),
        ("rule", rule, RuleChoice),
        ("fallback", fallback, Fallback),
        ("unseen", unseen, Unseen),
        ("control", control, Control),
        ("on_small_n", on_small_n, SmallSample),
    ):
        check_choice(name, value, kind)
    if min_images is not None:
        check_count("min_images", min_images, least=1)
    for side in grid:
        check_count("grid", side, least=1)
    position = group == "position"
    if position and unit == "image":
        raise UsageError("thresholds per position work with --unit pixel only; choose it, or another --group")
    if position and source.windows is not None:
        raise UsageError(
            "thresholds per position need whole images, not windows of a file; leave the windows out, or choose "
            "another group"
        )
    if clusters is not None and not (position and clusters >= 1):
        raise UsageError(
            f"clusters must be at least 1 and need the group position; got {clusters} with the group {group}"
        )
    options: dict[str, Any] = {
        "alpha": alpha_text(alpha),
        "group": group,
        "unit": unit,
        "rule": rule,
        "min_images": min_images,
        "fallback": fallback,
        "unseen": unseen,
        "on_small_n": on_small_n,
        "control": control,
        "delta": None if delta is None else alpha_text(delta),
        "clusters": clusters,
    }
    labeled_source = pair_images(source, labels, taxonomy, ids=ids)
    with (
        tempfile.TemporaryDirectory(prefix="maskmill-calibrate-") as folder,
        Observations(Path(folder), taxonomy, grid=grid if position else None, options=options) as observations,
    ):
        collect(observations, predictor, source, labeled_source, workers=workers, progress=progress)
        fitting = {**options, "alpha": alpha, "delta": delta, "windows": source.windows}
        calibration = fit_calibration(observations, predictor, taxonomy, **fitting)
    report = dict(calibration.report)
    if doubt := labeled_source.summary.doubt(report["argmax"]["accuracy"]):
        report["warnings"] = [doubt, *report["warnings"]]
    return replace(calibration, report={**report, "source": labeled_source.summary.to_json()})


def _control_options(control: Control, group: Group | None, rule: RuleChoice | None) -> tuple[Group, Unit, RuleChoice]:
    """Return the group, unit and rule that a control per image requires; raises :class:`UsageError` for other ones."""
    required_group: Group = "pooled" if control == "false-label-rate" else "class"
    if rule not in (None, "argmax"):
        raise UsageError(
            f"--control {control} works with the rule argmax only (with {rule} a looser threshold can remove labels); "
            "leave --rule out"
        )
    if group not in (None, required_group):
        raise UsageError(f"--control {control} works with the group {required_group} only; leave --group out")
    return required_group, "image", "argmax"


def fit_calibration(
    observations: Observations,
    predictor: Predictor,
    taxonomy: Taxonomy,
    *,
    alpha: str | float,
    group: Group,
    unit: Unit,
    rule: RuleChoice,
    min_images: int | None = None,
    fallback: Fallback = "foreground",
    unseen: Unseen = "never",
    on_small_n: SmallSample = "refuse",
    control: Control = "miscoverage",
    delta: str | float | None = None,
    clusters: int | None = None,
    windows: Windows | None = None,
) -> Calibration:
    """Fit thresholds to collected scores and measure them; the parameters are those of :func:`calibrate`.

    ``windows`` are those by which the images were read.
    """
    level, position = parse_alpha(alpha), group == "position"
    min_images = fewest_images(level) if min_images is None else min_images
    scores = BinnedScores(observations.counts, taxonomy.num_targets)
    total = scores.counts.num_images
    all_images = list(range(total))
    num_pixels, num_images = count_classes(observations.spill, all_images, taxonomy.num_targets)
    if not num_pixels.any():
        raise CalibrationError("no pixel of the label maps has a target class; check [labels] in the taxonomy")
    sharing = share_thresholds(
        group,
        num_images,
        min_images=min_images,
        background=taxonomy.background,
        counts=scores.counts,
        fallback=fallback,
        unseen=unseen,
    )
    fit_bins = partial(scores.thresholds, sharing, alpha=level, unit=unit, match_level=True)
    risks: dict[str, Any] = {}
    with _with_scenes(observations.counts):
        final = fit_thresholds(
            observations.spill,
            all_images,
            sharing,
            num_scored=taxonomy.num_scored,
            alpha=level,
            unit=unit,
            on_small_n=on_small_n if control == "miscoverage" else "max",
            names=taxonomy.targets,
            clusters=clusters,
        )
        if control != "miscoverage":
            fit_bins, risks = _controlled(scores, sharing.group_of == NEVER, level, control, delta)
    if group == "shrunk" or control != "miscoverage":
        bins = fit_bins(np.ones((1, total)))[0]
        final.values[: taxonomy.num_targets] = np.where(bins >= 0, UPPER[bins], -np.inf)
    elif (confident := sharing.group_of == CONFIDENT).any():
        bins = np.where(confident, -1, bins_of(final.values[: taxonomy.num_targets]))[None]
        final.values[: taxonomy.num_targets][confident] = UPPER[scores.constant_bins(bins, np.ones((1, total)))[0]]

    def measure(rule: Rule) -> HeldOut | None:
        if total < 2:
            return None
        if position:
            return hold_out_positions(
                observations.spill,
                observations.samples,
                sharing,
                ids=scores.counts.ids,
                num_scored=taxonomy.num_scored,
                alpha=level,
                rule=rule,
                on_small_n=on_small_n,
                clusters=clusters,
            )
        return hold_out(scores, observations.samples, fit_bins, final, rule=rule)

    raw = observations.samples.tally(all_images, None, "argmax")
    if rule == "auto":
        rules: tuple[Rule, ...] = get_args(Rule)
        rule, held_out = _best_rule({name: measure(name) for name in rules}, argmax_rows(raw)[0])
    else:
        held_out = measure(rule)
    report = describe(final, held_out, scores, sharing, taxonomy, level, min_images, raw, control)
    return Calibration(
        alpha=alpha_text(alpha),
        group=group,
        unit=unit,
        rule=rule,
        thresholds=final.values,
        pooled=final.pooled,
        min_images=min_images,
        unseen=unseen,
        fallback=fallback,
        on_small_n=on_small_n,
        targets=taxonomy.targets,
        background=taxonomy.background,
        made_with={
            **calibration_conditions(predictor, taxonomy),
            **({} if windows is None else {"windows": windows.side}),
        },
        counts=observations.counts,
        control=control,
        delta=None if delta is None else alpha_text(delta),
        report={
            **report,
            **risks,
            **({} if clusters is None else {"position_clusters": clusters}),
            "promise": promise(
                level,
                group,
                unit,
                total,
                control,
                None if delta is None else alpha_text(delta),
                scenes=any(observations.counts.scenes),
            ),
        },
    )


@contextmanager
def _with_scenes(counts: ScoreCounts) -> Iterator[None]:
    """Extend an error about too few images by how windows count, if some images are windows."""
    try:
        yield
    except CalibrationError as error:
        note = scenes_note(counts)
        raise CalibrationError(f"{error} ({note})" if note else str(error)) from error


def _best_rule(held_out_labels: dict[Rule, HeldOut | None], argmax: dict[str, Any]) -> tuple[Rule, HeldOut | None]:
    """Choose the rule with the best held-out mIoU, among those whose labels are no less accurate than the raw ones."""
    ranked: list[tuple[bool, float, Rule]] = []
    for rule, held_out in held_out_labels.items():
        summary = {} if held_out is None else held_out.tally.summary()
        if summary.get("kept"):
            ranked.append((summary["accuracy_kept"] >= argmax["accuracy"], summary["miou_kept"], rule))
    best: Rule = max(ranked, key=lambda entry: entry[:2])[2] if ranked else "agree"
    return best, held_out_labels[best]


def _controlled(
    scores: BinnedScores, never: NDArray[np.bool_], alpha: Fraction, control: Control, delta: str | float | None
) -> tuple[Callable[[NDArray[np.float64]], NDArray[np.int64]], dict[str, Any]]:
    """Return the function that fits bins (m, K) to weightings (m, n) under a control, and its report."""
    num = scores.num_targets
    if control == "miss-rate":
        rates = {
            target: float(control_misses(scores.counts, target, np.ones((1, len(scores.pixels))), float(alpha))[1][0])
            for target in np.flatnonzero(~never).tolist()
        }

        def fit_misses(weights: NDArray[np.float64]) -> NDArray[np.int64]:
            bins = np.full((len(weights), num), -1, np.int64)
            for target in rates:
                bins[:, target] = control_misses(scores.counts, target, weights, float(alpha))[0]
            return bins

        return fit_misses, {"guaranteed_miss_rates": [rates.get(target) for target in range(num)]}
    losses, level = LabelLosses.of_counts(scores.counts), float(alpha)
    bound = None if delta is None else float(parse_alpha(delta))
    last_bin = false_label_threshold(losses, alpha, bound)

    def fit_false_labels(weights: NDArray[np.float64]) -> NDArray[np.int64]:
        # folds of a threshold that holds with probability 1 - delta are not fitted anew
        fixed = bound is not None or (weights == 1).all()
        bins = np.full(len(weights), last_bin) if fixed else control_false_labels(losses, weights, level)
        return np.where(never, -1, bins[:, None])

    return fit_false_labels, {"false_labels": false_label_report(scores.counts, losses, level, last_bin, delta=bound)}
