"""From labelled images to thresholds: conformal calibration, with a coverage report.

The model runs once per image. Nonconformity scores of the true class are spilled to a temporary file; thresholds are
exact order statistics of them, so memory does not depend on the number of pixels::

    calibration = calibrate(predictor, source, LabelFolder("labels"), taxonomy, alpha="0.05", group="class")
    calibration.save("calibration.json")

Groups: ``pooled`` has one threshold, ``class`` one for each target (Mondrian), ``position`` one for each cell of a
fixed grid (ConformalSAM). Units: ``pixel`` takes the rank ceil((n + 1)(1 - alpha)) among pixels, a heuristic since
pixels of one image depend on each other; ``image`` controls the mean over images of the share of pixels that miss
their true class, with the finite-sample correction over images (conformal risk control, Angelopoulos et al. 2024).

Coverage is reported out of sample: the images are split into folds, and each fold is scored with thresholds computed
from the others, the same way as the final thresholds from all of them.
"""

from __future__ import annotations

import base64
import json
import os
import tempfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import kernels
from ...errors import CalibrationError, CalibrationMismatch, ImageError, UsageError
from ..model.bundle import write_atomically
from ..model.verdicts import shift_between
from ...kernels.decode import RULES
from ...kernels.types import Activation, Rule
from .coverage import CoverageReport, SampleSpill
from ..inputs.label_maps import LabelFolder, read_label_map, select_ids
from ..predictors.semantic import Predictor, ScoreMap
from ..labeling.selection import resample_nearest
from ..inputs.sources import Item, Source
from ..model.taxonomy import Taxonomy
from .thresholds import GROUPS, NO_CLASS, UNITS, Group, ScoreSpill, Thresholds, Unit, fit_thresholds
from ..inputs.ordered_map import ordered_map

FORMAT_VERSION = 1
DEFAULT_GRID = (512, 512)
DEFAULT_FOLDS = 5


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Thresholds, the conditions they hold under, and what they do on images they were not computed from."""

    alpha: str
    """Miscoverage level, as it was written."""
    group: Group
    """What shares a threshold: every pixel, a class, or a position."""
    unit: Unit
    """What is exchangeable: pixels (heuristic) or images (guarantee)."""
    rule: Rule
    """How the prediction set decides the label."""
    thresholds: NDArray[np.float32]
    """One per scored class (Ke,), or one per cell of the grid (gh, gw)."""
    pooled: float
    """The threshold over everything."""
    made_with: Mapping[str, Any]
    """Bundle, session, tiling, taxonomy and kernel form: labelling must use the same."""
    report: Mapping[str, Any]
    """Sample sizes, thresholds and held-out coverage, overall and for each target."""

    def check(self, predictor: Predictor, taxonomy: Taxonomy) -> None:
        """Raise :class:`CalibrationMismatch` naming every condition that differs.

        Another artefact of the same bundle, or another runtime, is accepted where verdicts of the export gate say that
        the quantiles of its scores moved by no more than the gate's tolerance.
        """
        now = conditions(predictor, taxonomy)
        different = [key for key in sorted(set(now) | set(self.made_with)) if now.get(key) != self.made_with.get(key)]
        if not different:
            return
        remedy = "calibrate again under these conditions"
        if set(different) <= {"artefact", "session"} and "artefact" in self.made_with:
            made, used = ((kept["artefact"], kept["session"]) for kept in (self.made_with, now))
            shift = shift_between(predictor.bundle, made, used)
            if shift is not None and shift.moved <= shift.allowed:
                return
            if shift is None:
                remedy += ", or prove on photos with `maskmill gate` that the scores are the same"
            else:
                remedy += f"; its score quantiles moved by {shift.moved:.4f}, {shift.allowed:g} is allowed"
        said = "; ".join(
            f"{key}: calibrated with {_short(self.made_with.get(key))}, labelling with {_short(now.get(key))}"
            for key in different
        )
        raise CalibrationMismatch(f"the calibration does not hold here ({said}); {remedy}")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the calibration as JSON, atomically."""
        target = Path(path)
        values = self.thresholds
        packed: Any
        if values.ndim == 1:
            packed = [_finite(value) for value in values.tolist()]
        else:
            data = base64.b64encode(zlib.compress(np.ascontiguousarray(values, "<f4").tobytes())).decode()
            packed = {"grid": list(values.shape), "float32_zlib_base64": data}
        raw = {
            "format_version": FORMAT_VERSION,
            "alpha": self.alpha,
            "group": self.group,
            "unit": self.unit,
            "rule": self.rule,
            "thresholds": packed,
            "pooled": _finite(self.pooled),
            "made_with": dict(self.made_with),
            "report": self.report,
        }
        try:
            write_atomically(target, (json.dumps(raw, indent=2, allow_nan=False) + "\n").encode())
        except OSError as error:
            raise CalibrationError(f"cannot write the calibration {target}: {error}") from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Calibration:
        """Read a calibration; raises :class:`CalibrationError`."""
        try:
            raw = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise CalibrationError(f"cannot read the calibration {path}: {error}") from error
        if not isinstance(raw, dict) or raw.get("format_version") != FORMAT_VERSION:
            raise CalibrationError(
                f"{path} is not a calibration of format version {FORMAT_VERSION}; make one with `maskmill calibrate`"
            )
        try:
            packed = raw["thresholds"]
            if isinstance(packed, dict):
                data = zlib.decompress(base64.b64decode(packed["float32_zlib_base64"]))
                thresholds = np.frombuffer(data, "<f4").reshape(packed["grid"])
            else:
                thresholds = np.array([float(value) for value in packed], np.float32)
            return cls(
                alpha=raw["alpha"],
                group=raw["group"],
                unit=raw["unit"],
                rule=raw["rule"],
                thresholds=thresholds,
                pooled=float(raw["pooled"]),
                made_with=raw["made_with"],
                report=raw["report"],
            )
        except (KeyError, TypeError, ValueError, zlib.error) as error:
            raise CalibrationError(f"the calibration {path} is damaged: {error}; calibrate again") from error


def conditions(predictor: Predictor, taxonomy: Taxonomy) -> dict[str, Any]:
    """What a calibration holds under: the predictor's settings, the taxonomy and the kernel form."""
    return {**predictor.settings, "taxonomy": taxonomy.fingerprint, "kernels": predictor.place.form}


@dataclass(frozen=True)
class _Scored:
    score_map: ScoreMap
    size: tuple[int, int]
    truth: NDArray[Any]
    scores: NDArray[np.float32]


def calibrate(
    predictor: Predictor,
    source: Source,
    labels: LabelFolder,
    taxonomy: Taxonomy,
    *,
    alpha: str | float,
    group: Group = "class",
    unit: Unit = "pixel",
    rule: Rule = "agree",
    ids: frozenset[str] | None = None,
    min_images: int | None = None,
    folds: int = DEFAULT_FOLDS,
    grid: tuple[int, int] = DEFAULT_GRID,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Calibration:
    """Compute thresholds from labelled images.

    Parameters
    ----------
    predictor, taxonomy
        The model and the target classes; labelling must use the same.
    source, labels
        Images, and the folder of their label maps (same name, same size). An image without a label map is an error.
    alpha
        Share of true classes that may miss the prediction set, above 0 and below 1; a string is taken literally.
    group, unit, rule
        See the module's text; the rule is recorded for labelling.
    ids
        Names of the images to calibrate on; all where None.
    min_images
        Fewest images a class must be seen in to get its own threshold; ceil(1 / alpha) - 1 where None.
    folds
        Parts the images are split into for the coverage report, at least 2.
    grid
        (height, width) that scores are resampled to for ``position``.
    workers
        Images in work at once.
    progress
        Called with (images done, images in all).

    Raises :class:`CalibrationError`, :class:`UsageError` or :class:`TaxonomyError`; an image that cannot be decoded is
    an error here, since leaving it out would change the sample.
    """
    level = _parse_alpha(alpha)
    for name, value, choices in (("group", group, GROUPS), ("unit", unit, UNITS), ("rule", rule, RULES)):
        if value not in choices:
            raise UsageError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
    if folds < 2:
        raise UsageError(f"the coverage report needs at least 2 folds, got {folds}")
    if min_images is None:
        min_images = -(-level.denominator // level.numerator) - 1
    pairs = _pair(source, labels, ids)
    position = group == "position"

    def score(pair: tuple[Item, Path]) -> _Scored:
        item, label_path = pair
        try:
            image = predictor.place.decode(source.read(item))
            prepared = predictor.prepare(image, item.uri)
        except ImageError as error:
            raise CalibrationError(f"cannot calibrate on {item.uri}: {error}; mend it or leave it out") from error
        truth = taxonomy.encode(read_label_map(label_path), str(label_path))
        if truth.shape != image.shape[:2]:
            raise CalibrationError(
                f"{label_path} is {truth.shape[1]}x{truth.shape[0]} px and its image {item.uri} is "
                f"{image.shape[1]}x{image.shape[0]} px; they must be the same size"
            )
        score_map = predictor.run([prepared])[0]
        size = grid if position else truth.shape
        if position:
            truth = resample_nearest(truth, grid)
        scores = true_scores(score_map, truth, taxonomy)
        return _Scored(score_map.on_host(), (size[0], size[1]), truth, scores)

    with (
        tempfile.TemporaryDirectory(prefix="maskmill-calibrate-") as folder,
        ScoreSpill(Path(folder), grid=grid if position else None) as spill,
        SampleSpill(Path(folder), len(taxonomy.model)) as samples,
    ):
        activation: Activation = "softmax"
        for done, scored in enumerate(ordered_map(score, pairs, workers), start=1):
            activation = scored.score_map.activation
            classes = scored.truth.ravel().astype(np.uint16)
            classes[scored.truth.ravel() == taxonomy.ignore_index] = NO_CLASS
            kept = slice(None) if position else classes != NO_CLASS
            spill.append(scored.scores.ravel()[kept], classes[kept])
            samples.append(scored.score_map, scored.size, scored.truth, taxonomy.ignore_index)
            if progress is not None:
                progress(done, len(pairs))
        spill.finish()
        samples.finish()
        everything = list(range(len(pairs)))
        options: dict[str, Any] = {
            "num_targets": taxonomy.num_targets,
            "num_scored": taxonomy.num_scored,
            "alpha": level,
            "group": group,
            "unit": unit,
            "min_images": min_images,
        }
        final = fit_thresholds(spill, everything, **options)
        if not final.num_pixels.any():
            raise CalibrationError("no pixel of the label maps has a target class; check [labels] in the taxonomy")
        coverage = CoverageReport(taxonomy, activation, len(pairs))
        fold_of = np.random.default_rng(0).permutation(len(pairs)) % folds
        if len(pairs) >= 2:
            for fold in range(min(folds, len(pairs))):
                held_out = np.flatnonzero(fold_of == fold).tolist()
                rest = np.flatnonzero(fold_of != fold).tolist()
                coverage.add(fit_thresholds(spill, rest, **options), spill, samples, held_out)
        report = _report(final, coverage, taxonomy, len(pairs), folds, min_images, group)
    return Calibration(
        alpha=str(alpha),
        group=group,
        unit=unit,
        rule=rule,
        thresholds=final.values,
        pooled=final.pooled,
        made_with=conditions(predictor, taxonomy),
        report=report,
    )


def true_scores(score_map: ScoreMap, truth: NDArray[Any], taxonomy: Taxonomy) -> NDArray[np.float32]:
    """Nonconformity score of every pixel's true class (H, W) float32, NaN where ``truth`` is the ignore index."""
    place = score_map.place
    with place.queue():
        stats = kernels.class_stats(
            score_map.scores,
            truth.shape,
            layout=score_map.layout,
            activation=score_map.activation,
            groups=taxonomy.groups,
            num_targets=taxonomy.num_targets,
            region=score_map.region,
            truth=place.xp.asarray(truth),
            ignore=taxonomy.ignore_index,
            outputs=("true_score",),
        )
        return place.download(stats.true_score)[0]


def _parse_alpha(alpha: str | float) -> Fraction:
    try:
        level = Fraction(str(alpha))
    except ValueError:
        raise UsageError(f"alpha must be a number above 0 and below 1, got {alpha!r}") from None
    if not 0 < level < 1:
        raise UsageError(f"alpha must be above 0 and below 1, got {alpha}")
    return level


def _pair(source: Source, labels: LabelFolder, ids: frozenset[str] | None) -> list[tuple[Item, Path]]:
    items = {item.uri: item for item in source}
    if not items:
        raise UsageError("there is no image to calibrate on")
    pairs = []
    for uri in select_ids(items, ids):
        if (label_path := labels.find(uri)) is None:
            raise UsageError(f"{uri} has no label map in {labels.path}; add it, or list the labelled images in --ids")
        pairs.append((items[uri], label_path))
    return pairs


def _report(
    final: Thresholds,
    coverage: CoverageReport,
    taxonomy: Taxonomy,
    num_images: int,
    folds: int,
    min_images: int,
    group: str,
) -> dict[str, Any]:
    held_out = coverage.to_json()
    by_class = []
    for index, name in enumerate(taxonomy.targets):
        row = {
            "class": name,
            "pixels": int(final.num_pixels[index]),
            "images": int(final.num_images[index]),
            "starved": bool(final.starved[index]),
            "held_out": held_out["classes"][index],
        }
        if final.values.ndim == 1:
            row["threshold"] = _finite(final.values[index])
        by_class.append(row)
    report: dict[str, Any] = {
        "num_images": num_images,
        "num_pixels": int(final.num_pixels.sum()),
        "folds": min(folds, num_images) if num_images >= 2 else None,
        "min_images": min_images,
        "overall": held_out["overall"],
        "image_mean_coverage": held_out["image_mean_coverage"],
        "classes": by_class,
    }
    if group == "position":
        report["infinite_positions"] = int(np.isinf(final.values).sum())
    return report


def _finite(value: float) -> float | str:
    """A number for JSON, which has no infinity."""
    return float(value) if np.isfinite(value) else "inf"


def _short(value: Any) -> str:
    text = str(value)
    return text[:12] + "…" if len(text) == 64 else text
