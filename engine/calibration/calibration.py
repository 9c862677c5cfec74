"""The calibration record: thresholds, the conditions they hold under, and the coverage report."""

from __future__ import annotations

import base64
import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import CalibrationError, CalibrationMismatch
from ...kernels.types import Rule
from ..model.publishing import write_atomically
from ..model.taxonomy import Taxonomy
from ..model.verdicts import shift_between
from ..predictors.base import Predictor
from .thresholds import Group, Unit

FORMAT_VERSION = 1


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
    """Bundle, session, tiling, taxonomy and kernel form: labeling must use the same."""
    report: Mapping[str, Any]
    """Sample sizes, thresholds and held-out coverage, overall and for each target."""

    def check(self, predictor: Predictor, taxonomy: Taxonomy) -> None:
        """Raise :class:`CalibrationMismatch` naming every condition that differs.

        Another artifact of the same bundle, or another runtime, is accepted where verdicts of the export gate say that
        the quantiles of its scores moved by no more than the gate's tolerance.
        """
        now = conditions(predictor, taxonomy)
        different = [key for key in sorted(set(now) | set(self.made_with)) if now.get(key) != self.made_with.get(key)]
        if not different:
            return
        remedy = "calibrate again under these conditions"
        if set(different) <= {"artifact", "session"} and "artifact" in self.made_with:
            made, used = ((kept["artifact"], kept["session"]) for kept in (self.made_with, now))
            shift = shift_between(predictor.bundle, made, used)
            if shift is not None and shift.moved <= shift.allowed:
                return
            if shift is None:
                remedy += ", or prove on photos with `maskmill gate` that the scores are the same"
            else:
                remedy += f"; its score quantiles moved by {shift.moved:.4f}, {shift.allowed:g} is allowed"
        said = "; ".join(
            f"{key}: calibrated with {_short(self.made_with.get(key))}, labeling with {_short(now.get(key))}"
            for key in different
        )
        raise CalibrationMismatch(f"the calibration does not hold here ({said}); {remedy}")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the calibration as JSON, atomically."""
        target = Path(path)
        values = self.thresholds
        packed: Any
        if values.ndim == 1:
            packed = [json_number(value) for value in values.tolist()]
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
            "pooled": json_number(self.pooled),
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
    return {**predictor.settings, "taxonomy": taxonomy.fingerprint, "kernels": predictor.backend.form}


def json_number(value: float) -> float | str:
    """A number for JSON, which has no infinity."""
    return float(value) if np.isfinite(value) else "inf"


def _short(value: Any) -> str:
    text = str(value)
    return text[:12] + "…" if len(text) == 64 else text
