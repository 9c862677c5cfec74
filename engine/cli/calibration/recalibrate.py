"""Calibrations from the scores in calibration files, without the model: merged, at another alpha, weighted."""

from __future__ import annotations

from pathlib import Path

from ...calibration.calibration import Calibration
from ...calibration.sharing import Group
from ...calibration.thresholds import Unit
from ...report.terminal import say
from ..options.common import print_json


def recalibrate(
    files: list[Path],
    like: list[Path] | None,
    output: Path,
    alpha: str,
    group: Group | None,
    unit: Unit | None,
    as_json: bool,
) -> None:
    """Make a calibration from the images of others, without the model."""
    from ...labeling.drift import weigh_like
    from ...store.several.joined import open_stores

    calibration = Calibration.merge([Calibration.load(file) for file in files], names=[str(file) for file in files])
    if like:
        calibration = weigh_like(calibration, open_stores(like), alpha=alpha, group=group, unit=unit)
    else:
        calibration = calibration.at(alpha, group=group, unit=unit)
    _finish(calibration, output, as_json)


def weigh(calibration: Calibration, like: list[Path], output: Path, as_json: bool) -> None:
    """Weigh a calibration, write it, and report the weights."""
    from ...labeling.drift import weigh_like
    from ...store.several.joined import open_stores

    _finish(weigh_like(calibration, open_stores(like)), output, as_json)


def _finish(calibration: Calibration, output: Path, as_json: bool) -> None:
    from ...calibration.description import promise

    calibration.save(output)
    report = dict(calibration.report)
    if as_json:
        print_json(report)
        return
    images = calibration.counts.num_draws
    say(
        f"{output}: alpha {calibration.alpha}, group {calibration.group}, unit {calibration.unit}, rule "
        f"{calibration.rule}, from the scores of {images} images"
    )
    if (weighting := report.get("weighting")) is not None:
        say(
            f"weighted to resemble {weighting['images']} images of {weighting['like']}: effective sample size "
            f"{weighting['effective_images']:.1f}; a classifier tells calibration images from the corpus in "
            f"{weighting['separation']:.0%} of the pairs (50 % is chance)"
        )
        say(
            "weights restore the promise if the corpus differs in how often kinds of images occur, but not if the "
            "images themselves have changed, for example by another camera or other light"
        )
    scenes = any(calibration.counts.scenes)
    text = promise(calibration.level, calibration.group, calibration.unit, images, calibration.control, scenes=scenes)
    if "weighting" in report:
        text += "; this holds for the corpus as far as the weights are right"
    say(f"promise: {text}")
