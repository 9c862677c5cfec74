"""The certificate of an export: promises, calibration, origin and hashes, checked where the labels arrive.

``labels.cert.json`` is beside the labels. ``labels.sha256`` lists the hash of every other file in the form of
``sha256sum``, and the certificate holds the hash of that list and a seal over its own text. A seal shows that a file
changed; it does not prove who wrote it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ...errors import ImageError, StoreError, UsageError
from ..calibration.calibration import Calibration
from ..formats.open import CERTIFICATE
from ..inputs.identity import content_id
from ..model.files import MAX_TEXT, sha256
from ..model.publishing import write_atomically
from ..model.schema import read_json_object, read_value
from ..model.storage import stays_below
from ..reading.local import read_local
from ..store.label_store import LabelStore
from .drift import watch_store

HASHES = "labels.sha256"
FORMAT_VERSION = 1

_PIXEL = (
    "Heuristic: each prediction set misses the true class on about {alpha} of the pixels of images like those of the "
    "calibration. Pixels of one image depend on each other, so this is measured and not guaranteed. It does not bound "
    "the error of the labels."
)
_IMAGE = (
    "Guarantee: averaged over images exchangeable with those of the calibration, at most {alpha} of an image's pixels "
    "have a prediction set that misses the true class (conformal risk control). It does not bound the error of the "
    "labels."
)
NOT_IN_ORIGIN = ("calibration", "thresholds", "drift")
"""Entries of a run record that a certificate stores under other keys."""
_IMAGE_BY_CLASS = (
    "Guarantee per class with a threshold of its own: averaged over images exchangeable with those of the calibration, "
    "at most {alpha} of the class's pixels in an image have a prediction set that misses it. Classes seen in too few "
    "images share a threshold, without a guarantee. It does not bound the error of the labels."
)
_WEIGHTED = (
    " The calibration images were weighted to resemble the images of {like}. The guarantee holds for images "
    "like those if they differ from the calibration images only in how often kinds of images occur, and if the "
    "weights are right."
)
_FALSE_LABELS = (
    "Guarantee: averaged over images exchangeable with those of the calibration, at most {alpha} of an image's labeled "
    "pixels are wrong, counting 0 for an image without labels{but}."
)
_MISSES = (
    "Guarantee per class: averaged over images exchangeable with those of the calibration that show it, at most "
    "{alpha} of its pixels are not labeled as it, or the higher rate that the calibration's report gives for the class."
)


def make_certificate(
    store: LabelStore, export: Mapping[str, Any], calibration: Calibration | None = None
) -> dict[str, Any]:
    """Return the certificate of an export as plain data, without hashes of files.

    Raises :class:`UsageError` if ``calibration`` is not the one that the labels were made with.
    """
    run = store.run
    reviews = store.current_reviews().values()
    if calibration is not None:
        check_same(run, calibration)
    drift = watch_store(store)
    return {
        "format_version": FORMAT_VERSION,
        "maskmill": version("maskmill"),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "export": dict(export),
        "promise": promise(run),
        "calibration": {
            "record": run.get("calibration"),
            "thresholds": run.get("thresholds"),
            "report": None if calibration is None else calibration.report,
        },
        "drift": None if drift is None else drift.to_json() | {"result": drift.sentence()},
        "reviews": {
            "images": len(reviews),
            "reviewers": sorted({review.reviewer for review in reviews}),
        },
        "origin": {key: value for key, value in run.items() if key not in NOT_IN_ORIGIN},
    }


def promise(run: Mapping[str, Any]) -> str:
    """Describe the guarantee of a store's labels in words."""
    if run.get("select") != "conformal":
        kind = "above a confidence that was chosen by hand" if run.get("select") == "threshold" else "of every pixel"
        return f"None; the labels are the model's best class {kind}, and nothing was calibrated."
    record = run.get("calibration") or {}
    alpha = record.get("alpha", "the calibration's alpha")
    if (control := record.get("control", "miscoverage")) != "miscoverage":
        if control == "miss-rate":
            return _MISSES.format(alpha=alpha)
        delta = record.get("delta")
        return _FALSE_LABELS.format(alpha=alpha, but="" if delta is None else f", except with probability {delta}")
    text = _PIXEL
    if record.get("unit") == "image":
        text = _IMAGE if record.get("group") == "pooled" else _IMAGE_BY_CLASS
    return text.format(alpha=alpha) + (_WEIGHTED.format(like=record["like"]) if "like" in record else "")


def write_certificate(folder: Path, certificate: Mapping[str, Any], hashes: Iterator[tuple[str, str]]) -> None:
    """Write ``labels.sha256`` from (file, hash) pairs, then the sealed certificate, which completes the export."""
    temporary = folder / f"{HASHES}.tmp"
    digest, number = hashlib.sha256(), 0
    with temporary.open("wb") as stream:
        for name, value in hashes:
            line = f"{value}  {name}\n".encode()
            stream.write(line)
            digest.update(line)
            number += 1
    os.replace(temporary, folder / HASHES)
    record = {**certificate, "files": {"list": HASHES, "number": number, "sha256": digest.hexdigest()}}
    text = json.dumps({**record, "seal": _seal(record)}, indent=2, ensure_ascii=False)
    write_atomically(folder / CERTIFICATE, f"{text}\n".encode())


@dataclass(frozen=True)
class _Files:
    """Form of the certificate's entry about files."""

    list: str
    number: int
    sha256: str


@dataclass(frozen=True)
class ExportCheck:
    """Result of :func:`verify_export`."""

    certificate: Mapping[str, Any]
    """The certificate."""
    num_files: int
    """Number of files that were compared with their hashes."""
    faults: tuple[str, ...]
    """One line per damaged or missing file; empty if no file changed."""


def verify_export(folder: Path) -> ExportCheck:
    """Compare every file of an export with its recorded hash; raises :class:`StoreError` without records."""
    try:
        raw = read_json_object(folder / CERTIFICATE)
        seal, files = raw.pop("seal", None), read_value(_Files, raw.get("files"), "files")
        lines = read_local(str(folder / HASHES), MAX_TEXT)
    except (OSError, ImageError, UsageError) as error:
        raise StoreError(f"{folder} has no certificate that can be read: {error}; ask for the export again") from error
    faults = []
    if seal != _seal(raw):
        faults.append(f"{CERTIFICATE} was changed after it was written")
    if hashlib.sha256(lines).hexdigest() != files.sha256:
        faults.append(f"{HASHES} was changed after it was written")
    number = 0
    for line in lines.decode("utf-8", "replace").splitlines():
        value, _, name = line.partition("  ")
        number += 1
        if fault := _fault(folder, name, value):
            faults.append(f"{name} {fault}")
    return ExportCheck(raw, number, tuple(faults))


def _fault(folder: Path, name: str, value: str) -> str:
    """Return what is wrong with a file of an export; empty if its hash is ``value``."""
    if not stays_below(name):
        return "is not in the export: the list of hashes was made to read other files"
    try:
        if not (folder / name).is_file():
            return "is missing"
        return "" if sha256(folder / name) == value else "was changed after it was written"
    except (OSError, ValueError) as error:
        return f"cannot be read: {error}"


def _seal(record: Mapping[str, Any]) -> str:
    text = json.dumps(record, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def check_same(run: Mapping[str, Any], calibration: Calibration) -> None:
    """Raise :class:`UsageError` unless the labels of a run record were made with ``calibration``."""
    made_with = (run.get("thresholds") or {}).get("sha")
    if made_with != content_id(calibration.thresholds.tobytes()):
        raise UsageError(
            "the calibration is not the one that the labels were made with: its thresholds differ; give that one, or "
            "leave out --calibration"
        )
