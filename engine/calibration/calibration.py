"""The calibration record: thresholds, the conditions they hold under, the score counts they came from, and a report.

A calibration file is JSON with a seal, a hash over all other fields: a file edited by hand is refused. The score counts
answer later questions without the model: thresholds at another alpha (:meth:`Calibration.at`), and calibrations of
several image sets merged into one (:meth:`Calibration.merge`) or weighted so that they resemble another corpus
(:meth:`Calibration.resembling`).
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ...checks import check_choice
from ...errors import CalibrationError, CalibrationMismatch, UsageError
from ...kernels.types import Rule
from ..model.files import inflate
from ..model.schema import read_json_object, read_value
from ..model.storage import location_of, write_whole
from ..model.taxonomy import Taxonomy
from ..model.taxonomy_difference import mapping_difference
from ..model.verdicts import shift_between
from ..predictors.base import Predictor
from ..reading.geotiff import Windows
from .binned import BinnedScores
from .calibration_file import CalibrationFile, Control, Grid, check_thresholds, json_number
from .description import remedy_of
from .drift.statistics import pack_statistics, unpack_statistics
from .drift.weights import effective_size, fit_weights
from .scores.score_counts import UPPER, ScoreCounts
from .sharing import Fallback, Group, Unseen, share_thresholds
from .thresholds import SmallSample, Unit, alpha_text, fewest_images, parse_alpha, too_few

FORMAT_VERSION = 5

RuleChoice = Literal[Rule, "auto"]
"""A rule, or the best of them on held-out images."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Calibration:
    """Thresholds, the conditions they hold under, and their behavior on images that they were not computed from."""

    alpha: str
    """Target error rate, as it was written."""
    group: Group
    """Classes or positions that share a threshold."""
    unit: Unit
    """Exchangeable unit: pixels (a heuristic) or images (a guarantee)."""
    rule: Rule
    """How the prediction set decides the label."""
    control: Control = "miscoverage"
    """The error whose rate ``alpha`` bounds."""
    delta: str | None = None
    """Probability that the rate is exceeded (Learn then Test); None: the rate holds on average."""
    thresholds: NDArray[np.float32]
    """One per scored class (Ke,), or one per cell of the grid (gh, gw); -inf for a class that is never emitted."""
    pooled: float
    """The threshold over all classes."""
    min_images: int
    """Fewest images for a threshold of a class's own."""
    unseen: Unseen = "never"
    """Treatment of classes without a calibration pixel."""
    fallback: Fallback = "foreground"
    """Classes whose threshold a class with too few images shares."""
    on_small_n: SmallSample = "refuse"
    """Treatment of an alpha that the images are too few for."""
    targets: tuple[str, ...]
    """Names of the target classes."""
    background: int | None
    """Index of the background class."""
    made_with: Mapping[str, Any]
    """Bundle, session, batch, tiling, taxonomy and kernel form: labeling must use the same."""
    weighting: Mapping[str, Any] | None = None
    """Weights of the calibration images and the corpus that they resemble with them; None: all images count alike."""
    counts: ScoreCounts
    """Binned scores of every calibration image."""
    report: Mapping[str, Any]
    """Sample sizes, thresholds, held-out coverage and label quality, overall and for each target."""

    def check(self, predictor: Predictor, taxonomy: Taxonomy, windows: Windows | None = None) -> None:
        """Raise :class:`CalibrationMismatch` naming every condition that differs.

        ``windows`` are those by which large files are read; only their side is compared, and only if the calibration
        images were read by windows as well.
        Another artifact of the same bundle, or another runtime, is accepted if verdicts of the export gate show that
        the quantiles of its scores moved by no more than the gate's tolerance.
        """
        now = {**calibration_conditions(predictor, taxonomy), "windows": self.windows}
        if self.windows is not None and windows is not None:
            now["windows"] = windows.side
        different = [key for key in sorted(set(now) | set(self.made_with)) if now.get(key) != self.made_with.get(key)]
        if not different:
            return
        if "taxonomy" in different:
            details = mapping_difference({"targets": self.targets, "background": self.background}, taxonomy.to_json())
            settings = self._differences(now, [key for key in different if key != "taxonomy"])
            raise CalibrationMismatch(
                f"the calibration was made with another class mapping "
                f"({details or 'other model classes are mapped to the same targets'}){settings and f'; {settings}'}; "
                "give the same --taxonomy FILE as for the calibration, or calibrate again with this class mapping"
            )
        remedy = remedy_of(different)
        if set(different) <= {"artifact", "session"} and {"artifact", "session"} <= set(self.made_with):
            before, after = ((settings["artifact"], settings["session"]) for settings in (self.made_with, now))
            shift = shift_between(predictor.bundle, before, after)
            if shift is not None and shift.moved <= shift.allowed:
                return
            if shift is None:
                remedy += ", or show on photos with `maskmill gate` that the scores are the same"
            else:
                remedy += f"; its score quantiles moved by {shift.moved:.4f}, {shift.allowed:g} is allowed"
        differences = self._differences(now, different)
        raise CalibrationMismatch(f"the calibration does not hold here ({differences}); {remedy}")

    def _differences(self, now: Mapping[str, Any], keys: Sequence[str]) -> str:
        return "; ".join(
            f"{key}: calibrated with {_short(self.made_with.get(key))}, labeling with {_short(now.get(key))}"
            for key in keys
        )

    @property
    def level(self) -> Fraction:
        """Target error rate as a number."""
        return parse_alpha(self.alpha)

    @property
    def windows(self) -> int | None:
        """Side in pixels of the windows by which the calibration images were read; None: they were read whole."""
        return self.made_with.get("windows")

    def at(self, alpha: str | float, *, group: Group | None = None, unit: Unit | None = None) -> Calibration:
        """Compute thresholds at another alpha from the score counts, without the model.

        They are upper edges of bins: never below the exact thresholds, and above them by at most 6 % in odds. The
        report keeps only the sample sizes. Raises :class:`UsageError` for thresholds per position, which need the
        images, and :class:`CalibrationError` if the images are too few for alpha.
        """
        level, group, unit = parse_alpha(alpha), group or self.group, unit or self.unit
        check_choice("group", group, Group)
        check_choice("unit", unit, Unit)
        if self.on_small_n != "refuse" and self.control == "miscoverage":
            raise UsageError(
                f"the calibration was made with --on-small-n {self.on_small_n}: another alpha, also for --keep-scores, "
                "needs the images; run `maskmill calibrate` with that alpha"
            )
        is_default = self.min_images == fewest_images(self.level)
        min_images = fewest_images(level) if is_default else self.min_images
        if group == "position" or self.control != "miscoverage":
            raise UsageError("thresholds per position, or with --control, need the images; run `maskmill calibrate`")
        scores = BinnedScores(self.counts, len(self.targets))
        weights, has_pixels = self._image_weights(level), scores.pixels > 0
        num_images = has_pixels.sum(axis=0)
        if self.weighting is not None:
            num_images = np.array([int(effective_size(weights[images])) for images in has_pixels.T], np.int64)
        sharing = share_thresholds(
            group,
            num_images,
            min_images=min_images,
            background=self.background,
            counts=scores.counts,
            fallback=self.fallback,
            unseen=self.unseen,
        )
        too_small = scores.too_small(sharing, weights, alpha=level, unit=unit)
        if too_small.any():
            sizes, unit_name = (num_images, "images") if unit == "image" else (scores.pixels.sum(axis=0), "pixels")
            values = np.where(too_small, np.float32(np.inf), np.float32(0))
            raise too_few(values, sizes, int(effective_size(weights)), level, unit_name, self.targets)
        bins = scores.thresholds(sharing, weights[None], alpha=level, unit=unit)[0]
        pooled_sharing = share_thresholds(
            "pooled", num_images, min_images=1, background=self.background, unseen="pooled"
        )
        pooled = float(UPPER[scores.thresholds(pooled_sharing, weights[None], alpha=level, unit=unit)[0, 0]])
        values = np.where(bins >= 0, UPPER[bins], -np.inf)
        none_of_these = len(self.thresholds) - len(self.targets) if self.thresholds.ndim == 1 else 0
        sizes = {key: self.report[key] for key in ("num_images", "num_pixels") if key in self.report}
        report: dict[str, Any] = dict(sizes)
        if self.weighting is not None:
            names = ("like", "images", "effective_images", "separation")
            report["weighting"] = {name: self.weighting[name] for name in names}
        return replace(
            self,
            alpha=alpha_text(alpha),
            group=group,
            unit=unit,
            thresholds=np.append(values, np.full(max(none_of_these, 0), pooled)).astype(np.float32),
            pooled=pooled,
            min_images=min_images,
            report=report,
        )

    def resembling(
        self,
        corpus: NDArray[np.float64],
        name: str,
        *,
        alpha: str | float | None = None,
        group: Group | None = None,
        unit: Unit | None = None,
    ) -> Calibration:
        """Weigh the images so that they resemble a corpus, given the statistics (m, J) of its images, and refit.

        Thresholds are those of :meth:`at`. ``name`` is recorded. Raises :class:`CalibrationError` if the effective
        number of weighted images is below 1 / alpha, too few for this corpus.
        """
        weights = fit_weights(self.counts.statistics, corpus)
        weighting = {
            "like": name,
            "images": len(corpus),
            "effective_images": round(effective_size(self.counts.scene_means(weights.values)), 2),
            "separation": round(weights.separation, 4),
            "values": weights.values.tolist(),
            "statistics": pack_statistics(corpus),
        }
        return replace(self, weighting=weighting).at(alpha or self.alpha, group=group, unit=unit)

    @property
    def drift_reference(self) -> NDArray[np.float64]:
        """Statistics (n, J) that new images are compared with: of the calibration images, or of a corpus."""
        return self.counts.statistics if self.weighting is None else unpack_statistics(self.weighting["statistics"])

    def _image_weights(self, alpha: Fraction) -> NDArray[np.float64]:
        """Return the weight of each image or scene; raises :class:`CalibrationError` if they are too few for alpha."""
        if self.weighting is None:
            return np.ones(self.counts.num_draws)
        weights = self.counts.scene_means(np.array(self.weighting["values"], np.float64))
        effective = effective_size(weights)
        if effective * alpha < 1:
            remedy = f", or use --alpha {math.ceil(1e3 / effective) / 1e3:g} or more" if effective > 2 else ""
            raise CalibrationError(
                f"weighted to resemble {self.weighting['like']}, the {len(weights)} calibration images have an "
                f"effective size of {effective:.1f}, and alpha {float(alpha):g} needs {math.ceil(1 / alpha)}: they "
                f"say too little about that corpus; label some of its images and calibrate on them{remedy}"
            )
        return weights

    @classmethod
    def merge(cls, parts: Sequence[Calibration], *, names: Sequence[str] | None = None) -> Calibration:
        """Join calibrations of different images, made under the same conditions with the same options.

        ``names`` are those of the calibrations in messages. Raises :class:`CalibrationError` if they differ, or share
        an image.
        """
        if not parts:
            raise UsageError("there is no calibration to merge")
        first = parts[0]
        names = names or [f"calibration {number}" for number in range(1, len(parts) + 1)]
        options = ("targets", "background", "group", "unit", "rule", "control", "alpha", "min_images")
        for part, file in zip(parts[1:], names[1:], strict=True):
            old, new = (
                {**each.made_with, **{name: getattr(each, name) for name in (*options, *_TREATMENTS)}}
                for each in (first, part)
            )
            different = [name for name in sorted(set(old) | set(new)) if old.get(name) != new.get(name)]
            if different:
                details = "; ".join(
                    f"{name}: {_short(old.get(name))} and {_short(new.get(name))}" for name in different
                )
                raise CalibrationError(
                    f"{names[0]} and {file} differ ({details}); make them with the same options, then merge them"
                )
        if any(part.weighting is not None for part in parts) and len(parts) > 1:
            raise CalibrationError("weighted calibrations cannot be merged; merge first, then weight with --like STORE")
        owner: dict[tuple[str, str], int] = {}
        for number, part in enumerate(parts):
            scenes = part.counts.scenes or ("",) * part.counts.num_images
            images = set(zip(scenes, part.counts.ids, strict=True))  # windows of different scenes may be equal
            shared = [image for image in images if image in owner]
            if shared:
                owner_number = owner[shared[0]]
                raise CalibrationError(
                    f"{names[owner_number]} and {names[number]} share images ({len(shared)} of "
                    f"{part.counts.num_images}, by content); merge calibrations of different images"
                )
            owner.update(dict.fromkeys(images, number))
        counts = ScoreCounts.merge([part.counts for part in parts])
        report = {"num_images": counts.num_draws, "num_pixels": sum(part.report["num_pixels"] for part in parts)}
        return replace(first, counts=counts, report=report).at(first.alpha)

    @property
    def seal(self) -> str:
        """Hash of everything that a file of this calibration holds."""
        return _seal(self._fields())

    def _fields(self) -> dict[str, Any]:
        """Return the content of a file as plain data, without its seal."""
        values = self.thresholds
        packed: Any
        if values.ndim == 1:
            packed = [json_number(value) for value in values.tolist()]
        else:
            data = base64.b64encode(zlib.compress(np.ascontiguousarray(values, "<f4").tobytes())).decode()
            packed = {"grid": list(values.shape), "float32_zlib_base64": data}
        return {
            "format_version": FORMAT_VERSION,
            **{name: getattr(self, name) for name in _PLAIN},
            "targets": list(self.targets),
            "thresholds": packed,
            "pooled": json_number(self.pooled),
            "made_with": dict(self.made_with),
            "report": dict(self.report),
            "counts": self.counts.to_json(),
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the calibration as sealed JSON, atomically."""
        target, raw = location_of(path), self._fields()
        raw["seal"] = _seal(raw)
        try:
            write_whole(target, (json.dumps(raw, indent=2, allow_nan=False) + "\n").encode())
        except OSError as error:
            raise CalibrationError(f"cannot write the calibration {target}: {error}") from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Calibration:
        """Read a calibration; raises :class:`CalibrationError` if the file is no calibration, damaged, or edited."""
        try:
            raw = read_json_object(location_of(path), max_bytes=MAX_BYTES)
        except FileNotFoundError as error:
            raise CalibrationError(f"the calibration {path} does not exist").of_the_call() from error
        except UsageError as error:
            raise CalibrationError(f"cannot read the calibration {path}: {error}") from error
        if raw.get("format_version") != FORMAT_VERSION:
            raise CalibrationError(
                f"{path} is not a calibration of format version {FORMAT_VERSION}; make one with `maskmill calibrate`"
            )
        if raw.pop("seal", None) != _seal(raw):
            raise CalibrationError(
                f"the calibration {path} was edited or damaged after it was made, so its report does not describe its "
                "thresholds; make it again with `maskmill calibrate`"
            )
        try:
            file: CalibrationFile = read_value(CalibrationFile, raw)
            if isinstance(file.thresholds, Grid):
                data = inflate(base64.b64decode(file.thresholds.float32_zlib_base64), MAX_THRESHOLD_BYTES)
                thresholds = np.frombuffer(data, "<f4").reshape(file.thresholds.grid)
            else:
                thresholds = np.array([float(value) for value in file.thresholds], np.float32)
            check_thresholds(thresholds)
            counts = ScoreCounts.from_json(file.counts)
            if counts.target.max(initial=-1) >= len(file.targets) or (np.diff(counts.image) < 0).any():
                raise ValueError(f"its scores do not fit {len(file.targets)} targets")
            return cls(
                **{name: raw[name] for name in _PLAIN},
                targets=file.targets,
                thresholds=thresholds,
                pooled=float(file.pooled),
                made_with=raw["made_with"],
                counts=counts,
                report=raw["report"],
            )
        except (ValueError, IndexError, MemoryError) as error:
            raise CalibrationError(f"the calibration {path} is damaged: {error}; calibrate again") from error


MAX_BYTES = 1 << 28
"""Largest calibration file, in bytes."""
MAX_THRESHOLD_BYTES = 1 << 26
"""Largest grid of thresholds, in bytes."""
_TREATMENTS = ("unseen", "fallback", "on_small_n")
_PLAIN = ("alpha", "group", "unit", "rule", "control", "delta", "min_images", *_TREATMENTS, "background", "weighting")


def conditions(predictor: Predictor, taxonomy: Taxonomy) -> dict[str, Any]:
    """Collect the conditions that decide labels: the predictor's settings, the taxonomy, kernel form, bit depth."""
    backend = predictor.backend
    return {
        **predictor.settings,
        "taxonomy": taxonomy.fingerprint,
        "kernels": backend.form,
        "bit_depth": backend.bit_depth,
        **({} if backend.bands is None else {"bands": backend.bands.to_json()}),
    }


def calibration_conditions(predictor: Predictor, taxonomy: Taxonomy) -> dict[str, Any]:
    """Collect the conditions that thresholds depend on: those of labels, except for the file of the prompts."""
    everything = {**conditions(predictor, taxonomy), "batch": predictor.batch}
    return {name: value for name, value in everything.items() if name != "prompts_from"}


def _seal(raw: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(raw, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text[:12] + "…" if len(text) == 64 else text
