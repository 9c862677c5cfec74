"""Scores from files, written by any program: per-class score maps, or masks with a confidence per class.

::

    classes = ["background", "cat", "dog"]
    bundle = write_score_bundle("teacher", scores="seem/", classes=classes, background="background")
    predictor = ScoreFiles.open("teacher")
    score_map = predictor.predict(image, "photos/0001.jpg")       # reads seem/0001.npy

Calibration, labeling and evaluation then work as with any model. The scores of an image have its name, with or without
folders. Four forms are recognized by their endings:

=====================  =================================================================================================
``NAME.npy``           (C, h, w) float16 or float32: scores of the classes in order, at any resolution
``NAME.zarr``          the same as a zarr array (extra ``zarr``)
``NAME/CLASS.png``     a gray image per class, 8 or 16 bits: score x 255 or x 65535; a class without a file has score 0
``NAME/scores.json``   ``{"cat": 0.9, ...}``: ``CLASS.png`` are binary masks, and the score of a class is its confidence
                       on the pixels of its mask (not 0) and 0 elsewhere, as of a referring segmentation model
=====================  =================================================================================================

If the files lack the background class, its score is max(0, 1 - the highest score of the other classes).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...checks import name_list
from ...errors import BundleError, ImageError, UsageError
from ..backends.base import Backend
from ..backends.host import HOST
from ..inputs.names import NameIndex
from ..model.bundle import Activation, Bundle, OutputSpec, Provenance
from ..model.input_spec import InputSpec
from ..model.publishing import write_atomically
from ..model.schema import read_json_object, read_value
from .base import ScoreMap
from .score_arrays import read_array, read_maps, read_zarr

RECORD = "scores.json"
"""File of a bundle that names the folder with its scores, and of an image with confidences of its masks."""

SMALLEST = np.float32(1e-6)
"""Lower limit of probabilities before their logarithm is computed."""


def write_score_bundle(
    folder: str | os.PathLike[str],
    *,
    scores: str | os.PathLike[str],
    classes: Sequence[str],
    background: str | None = None,
    activation: Activation = "none",
    license: str = "",
) -> Bundle:
    """Write a bundle whose scores come from the files of the folder ``scores``.

    ``activation`` turns the values into scores: ``none`` for scores that are not negative, ``softmax`` or ``sigmoid``
    for logits. Raises :class:`UsageError` if the folder holds no scores, or ``background`` is not a class.
    """
    if background is not None and background not in classes:
        raise UsageError(f"the background {background!r} is not one of the classes: {name_list(classes)}")
    root = Path(scores).resolve()
    entries = _entries(root)
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    # the digest identifies the files, so that a store never mixes labels from different scores
    listing = "\n".join(f"{name} {_size(entry)}" for name, entry in sorted(entries.items()))
    digest = hashlib.sha256(listing.encode()).hexdigest()
    record = {"scores": str(root), "digest": digest}
    write_atomically(path / RECORD, (json.dumps(record, indent=2) + "\n").encode(), sync=True)
    bundle = Bundle(
        path=path,
        task="semantic",
        files=(),
        input=InputSpec(name="scores", height=1, width=1, dynamic=True),
        outputs=(OutputSpec(name="scores", activation=activation),),
        classes=tuple(classes),
        background=None if background is None else list(classes).index(background),
        source=Provenance(id=str(root), weights_sha256=digest, license=license),
    )
    bundle.save()
    return bundle


@dataclass(frozen=True, kw_only=True)
class PreparedScores:
    """Name and size of an image whose scores will be read."""

    uri: str
    """Name of the image."""
    size: tuple[int, int]
    """(height, width) in pixels."""


@dataclass(frozen=True, kw_only=True)
class Rescaling:
    """Softmax of ``scale`` z + ``offsets``, z the logits of the files."""

    activation: Activation
    """Activation of the files' own scores."""
    scale: float
    offsets: tuple[float, ...]
    """One per class."""


@dataclass(frozen=True, kw_only=True)
class _Record:
    """Form of ``scores.json`` of a bundle."""

    scores: str
    digest: str
    rescaling: Rescaling | None = None


class ScoreFiles:
    """Predictor that reads the scores of each image from files; see the module docstring."""

    batch = 1
    threads = 1

    def __init__(self, bundle: Bundle, root: Path, digest: str, rescaling: Rescaling | None = None) -> None:
        self.bundle = bundle
        self._digest = digest
        self._rescaling = rescaling
        self._index = NameIndex(_entries(root), f"score files in {root}")
        self._root = root

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> ScoreFiles:
        """Open a bundle that :func:`write_score_bundle` made; raises :class:`BundleError` if its record is damaged."""
        bundle, path = Bundle.load(folder), Path(folder) / RECORD
        try:
            raw = read_json_object(path)
        except (FileNotFoundError, UsageError) as error:
            raise BundleError(f"{error}; import the scores again") from error
        try:
            record = read_value(_Record, raw)
        except UsageError as error:
            raise BundleError(f"{path}: {error}; import the scores again") from error
        rescaling = record.rescaling
        if rescaling is not None and len(rescaling.offsets) != len(bundle.classes):
            numbers = f"{len(rescaling.offsets)} offsets for {len(bundle.classes)} classes"
            raise BundleError(f"{path}: {numbers}; rescale the scores again")
        return cls(bundle, Path(record.scores), record.digest, rescaling)

    def rescaled(self, folder: str | os.PathLike[str], *, scale: float, offsets: Sequence[float]) -> Bundle:
        """Write a bundle whose scores are a softmax of ``scale`` z + ``offsets``, z the logits of this one's files.

        Probabilities, at least 1e-6, become logits by their logarithm.
        """
        if self._rescaling is not None:
            raise UsageError("these scores are rescaled already; rescale the bundle that they come from")
        rescaling = {"activation": self.bundle.outputs[0].activation, "scale": scale, "offsets": list(offsets)}
        digest = hashlib.sha256(f"{self._digest} {json.dumps(rescaling)}".encode()).hexdigest()
        path = Path(folder)
        path.mkdir(parents=True)
        record = {"scores": str(self._root), "digest": digest, "rescaling": rescaling}
        write_atomically(path / RECORD, (json.dumps(record, indent=2) + "\n").encode(), sync=True)
        bundle = replace(
            self.bundle,
            path=path,
            outputs=(replace(self.bundle.outputs[0], activation="softmax"),),
            source=replace(self.bundle.source, weights_sha256=digest, changes=("the scores are rescaled",)),
        )
        bundle.save()
        return bundle

    @property
    def settings(self) -> dict[str, Any]:
        """Return the bundle and the digest of its files, which decide the scores."""
        return {"bundle": self.bundle.fingerprint, "scores": self._digest}

    @property
    def backend(self) -> Backend:
        """Return the host, where scores are read."""
        return HOST

    def predict(self, image: NDArray[np.uint8], uri: str) -> ScoreMap:
        """Read the scores of an image, HWC uint8 RGB, by its name."""
        return self.run([self.prepare(image, uri)])[0]

    def condition(self, uri: str) -> str:
        """Return the name and bytes of the scores of an image: they decide its labels, whatever its pixels."""
        entry = self._index.find(uri)
        return "" if entry is None else f"{entry.relative_to(self._root).as_posix()} {_size(entry)}"

    def prepare(self, image: Any, uri: str = "") -> PreparedScores:
        """Note the name and size of an image, HWC uint8 RGB; its pixels are not used."""
        return PreparedScores(uri=uri, size=(image.shape[0], image.shape[1]))

    def run(self, prepared: Sequence[PreparedScores]) -> list[ScoreMap]:
        """Read score maps; raises :class:`ImageError` if an image has no scores or they cannot be read."""
        return [self._read(image) for image in prepared]

    def _read(self, image: PreparedScores) -> ScoreMap:
        entry = self._index.find(image.uri)
        if entry is None:
            raise ImageError("no-scores", f"{self._root} holds no scores for it; the names must match")
        activation = self.bundle.outputs[0].activation
        stored_activation = activation if self._rescaling is None else self._rescaling.activation
        try:
            scores = _load(entry, self.bundle, image.size)
        except ImageError as error:
            raise ImageError(error.kind, f"cannot read {entry}: {error}") from error
        except (OSError, ValueError, UsageError) as error:
            raise ImageError("no-scores", f"cannot read {entry}: {error}") from error
        if scores.ndim != 3:
            raise ImageError("no-scores", f"{entry} has the shape {scores.shape}; expected (classes, height, width)")
        num_classes, background = len(self.bundle.classes), self.bundle.background
        if len(scores) == num_classes - 1 and background is not None and stored_activation == "none":
            remainder = np.maximum(0, 1 - scores.max(axis=0, keepdims=True))
            scores = np.concatenate([scores[:background], remainder, scores[background:]])
        if len(scores) != num_classes:
            raise ImageError("no-scores", f"{entry} has {len(scores)} score maps for {num_classes} classes")
        if self._rescaling is not None:
            logits = np.log(np.maximum(scores, SMALLEST)) if stored_activation == "none" else scores
            offsets = np.asarray(self._rescaling.offsets, np.float32)[:, None, None]
            scores = np.float32(self._rescaling.scale) * logits + offsets
        height, width = scores.shape[1:]
        return ScoreMap(
            scores=scores, layout="CHW", activation=activation, size=image.size,
            region=(0.0, 0.0, float(height), float(width)),
        )  # fmt: skip


def _entries(root: Path) -> dict[str, Path]:
    """Find the files and folders with the scores of an image, by name."""
    if not root.is_dir():
        raise UsageError(f"the folder of scores {root} does not exist")
    entries: dict[str, Path] = {}
    for folder, folders, files in os.walk(root):
        directory = Path(folder)
        for name in [name for name in folders if name.endswith(".zarr")]:
            entries[(directory / name).relative_to(root).with_suffix("").as_posix()] = directory / name
            folders.remove(name)
        for name in files:
            if name.endswith(".npy"):
                entries[(directory / name).relative_to(root).with_suffix("").as_posix()] = directory / name
        if directory != root and any(name == RECORD or name.endswith(".png") for name in files):
            entries[directory.relative_to(root).as_posix()] = directory
    if not entries:
        raise UsageError(f"{root} holds no scores: NAME.npy, NAME.zarr, or folders NAME with a CLASS.png per class")
    return entries


def _size(entry: Path) -> int:
    """Return the bytes of a file, or of all files of a folder."""
    return entry.stat().st_size if entry.is_file() else sum(file.stat().st_size for file in sorted(entry.rglob("*")))


def _load(entry: Path, bundle: Bundle, size: tuple[int, int]) -> NDArray[np.float32]:
    """Read the scores (C, h, w) of an entry, without the background if its files lack it."""
    if entry.suffix == ".npy":
        return read_array(entry)
    if entry.suffix == ".zarr":
        return read_zarr(entry)
    confidences = entry / RECORD
    maps = read_maps(entry, bundle.classes, confidences if confidences.is_file() else None)
    shape = next(iter(maps.values())).shape if maps else size
    background = None if bundle.background is None else bundle.classes[bundle.background]
    names = [name for name in bundle.classes if name != background or name in maps]
    return np.stack([maps.get(name, np.zeros(shape, np.float32)) for name in names])
