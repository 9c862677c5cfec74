"""The headline of the page: a few sentences about the run, and notices to read before the labels are used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

from ....checks import name_list
from ...calibration.calibration import Calibration
from .overview import Overview
from .sections import percent

_NAMED = 4


def headline(
    overview: Overview,
    calibration: Calibration | None,
    coverage: Mapping[str, Any] | None,
    truth: Mapping[str, Any] | None,
    run: Mapping[str, Any],
) -> list[Markup]:
    """Describe the labels in one to three sentences; ``run`` is the store's run record."""
    number = Markup("<b>{}</b>")
    images = f"{overview.num_images:,} image{'' if overview.num_images == 1 else 's'}"
    if overview.kept_share >= 0.9995:
        sentences = [Markup("Every pixel of {} has a label.").format(number.format(images))]
    else:
        share = percent(overview.kept_share, 0 if 0.1 < overview.kept_share < 0.995 else 1)
        sentences = [Markup("In {}, {} of the pixels have a label.").format(images, number.format(share))]
    if truth is not None and truth["accuracy"] is not None:
        sentences.append(
            Markup("Compared with the true labels of {}, {} of these labels are right.").format(
                f"{truth['num_images']:,} images", number.format(percent(truth["accuracy"]))
            )
        )
    if calibration is not None and coverage is not None:
        sentences.append(_calibrated(calibration, coverage, number, short=truth is not None))
    elif truth is None and run.get("select") == "conformal":
        alpha = (run.get("calibration") or {}).get("alpha")
        level = "" if alpha is None else f" at alpha {alpha}"
        sentences.append(
            Markup(
                "They were selected with a calibration{}; <code>--calibration FILE</code> adds how many labels were "
                "right on its held-out images."
            ).format(level)
        )
    elif truth is None:
        sentences.append(
            Markup("It is unknown how many of them are right: neither a calibration nor true labels were given.")
        )
    return sentences


def _calibrated(calibration: Calibration, coverage: Mapping[str, Any], number: Markup, *, short: bool) -> Markup:
    report, alpha = calibration.report, float(calibration.level)
    if (rates := report.get("false_labels")) is not None:
        return Markup("On held-out images, {} of an image’s labels were wrong; the target is at most {}.").format(
            number.format(percent(rates["risk"])), percent(alpha, 0)
        )
    accuracy = coverage["total"]["accuracy"]
    if calibration.control != "miscoverage":
        return Markup("On held-out images, {} of the kept labels were right.").format(number.format(percent(accuracy)))
    sentence = Markup("On held-out images, prediction sets covered {} of the pixels; the target is {}").format(
        number.format(percent(coverage["total"]["coverage"])), percent(1 - alpha, 0)
    )
    if short or accuracy is None:
        return sentence + "."
    return sentence + Markup(", and {} of the kept labels were right.").format(number.format(percent(accuracy)))


def notices(
    overview: Overview,
    coverage: Mapping[str, Any] | None,
    truth: Mapping[str, Any] | None,
    drift: Mapping[str, Any] | None,
) -> list[dict[str, Any]]:
    """List the most important notices: missed coverage, drift, rejects; ``good`` marks good news."""
    lines: list[dict[str, Any]] = []
    if coverage is not None and coverage["target"] is not None:
        missed = coverage["missed"]
        text = Markup("No class is below its target by more than its interval.")
        if unjudged := sum(row["interval"] is None for row in coverage["rows"]):
            text += Markup(" {} of {} classes have too few images for an interval.").format(
                unjudged, len(coverage["rows"])
            )
        if missed:
            text = Markup("Coverage is below its target by more than its interval for {}.").format(names(missed))
        lines.append({"good": not missed, "text": text, "link": "coverage"})
    if coverage is not None and coverage["unseen"]:
        text = Markup("No calibration image shows {}.").format(names(coverage["unseen"]))
        lines.append({"good": False, "text": text, "link": "coverage"})
    poor = [] if truth is None else [row["name"] for row in truth["rows"] if (row["accuracy"] or 1) < 0.5]
    if poor:
        text = Markup("Most labels of {} are wrong.").format(names(poor))
        lines.append({"good": False, "text": text, "link": "truth"})
    if drift is not None:
        text = "No sign of drift from the calibration images."
        if drift["alarm"]:
            text = "These images do not look like the calibration images: the promise does not hold here."
        lines.append({"good": not drift["alarm"], "text": text, "link": "drift"})
    if rejects := sum(overview.rejects.values()):
        text = f"{rejects:,} of {overview.num_inputs:,} inputs could not be read."
        lines.append({"good": False, "text": text, "link": "rejects"})
    empty = int((overview.kept == 0).sum())
    if empty:
        text = f"{empty:,} image{' has' if empty == 1 else 's have'} no label at all."
        lines.append({"good": False, "text": text, "link": "kept"})
    return lines


def names(words: Sequence[str]) -> Markup:
    """Join names for a sentence, the first four and the number of the others."""
    return escape(name_list(words, most=_NAMED))
