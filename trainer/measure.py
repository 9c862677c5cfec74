"""Measure the labels of a label store, of a training run's student, or of a model against true labels.

::

    quality = evaluate("labels", labels="held-out/labels")                         # a store
    quality = evaluate("run", labels="held-out/labels", images="held-out/images")  # a student
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..engine.calibration.calibration import Calibration
from ..engine.inputs.labels import LabelSource, open_labels
from ..engine.inputs.sources import Source, open_source
from ..engine.labeling.selection import Selection
from ..engine.model.bundle import MANIFEST, Bundle
from ..engine.model.storage import is_remote, location_of
from ..engine.model.taxonomy import Taxonomy
from ..engine.predictors.open import ModelOptions, open_predictor
from ..engine.reading.geotiff import cut_of
from ..engine.report.evaluate import Quality, evaluate_predictor, evaluate_store
from ..engine.runtimes.open import Provider
from ..engine.store.label_store import LabelStore
from ..engine.store.reviewed_labels import open_reviewed
from ..engine.store.several.joined import open_stores
from ..errors import UsageError
from ..kernels.processors import count_workers
from .bundle import is_run
from .data.bands import Pixels
from .data.parts import LabeledImages
from .evaluate import Scores, score_images
from .processes import resolve_device
from .students.models import Student, load_run
from .students.prediction import run_taxonomy


@dataclass(frozen=True, kw_only=True)
class StudentQuality(Quality):
    """Quality of the labels of a student, with the reliability of its confidence and of its pseudo-labels."""

    scores: Scores
    """Further figures of the student."""

    def to_json(self) -> dict[str, Any]:
        """Return plain data, those of :class:`Quality` and ``confidence``, ``ece``, ``temperature``,
        ``pseudo_labels``.
        """
        figures = self.scores.to_json()
        keys = ("confidence", "ece", "temperature", "pseudo_labels")
        return {**super().to_json(), **{key: figures[key] for key in keys if key in figures}}


def evaluate(
    target: str | os.PathLike[str] | LabelStore | Bundle | Sequence[str | os.PathLike[str]],
    labels: str | os.PathLike[str] | LabelSource | None = None,
    *,
    reviewed: bool = False,
    images: str | os.PathLike[str] | None = None,
    ids: Collection[str] | None = None,
    taxonomy: str | os.PathLike[str] | None = None,
    calibration: str | os.PathLike[str] | Calibration | None = None,
    tile: int | None = None,
    overlap: int = 0,
    windows: int | None = None,
    window_overlap: int = 0,
    image_ending: str | None = None,
    bit_depth: int | None = None,
    text: Sequence[str] = (),
    provider: Provider = "cpu",
    precision: str | None = None,
    device: str | None = None,
    allow_code: bool = False,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Quality:
    """Measure a label store, a training run or a model against true labels.

    Parameters
    ----------
    target
        A label store, or several that are read as one, the folder of a run, or a bundle. A run labels ``images`` with
        its student, a bundle with its model; both keep every pixel, unless ``calibration`` selects.
    labels, images
        True labels: a folder of label maps, or a file or folder of another format; source of the images, needed for a
        run or a bundle.
    reviewed
        Instead of ``labels``: measure the labels that a store's model made against those that people corrected.
    ids, taxonomy
        Names of the images to use (all if None); class mapping, whose ``[labels]`` table reads ``labels`` of a store
        or a run.
    calibration
        Calibration whose prediction sets and labels are measured, for a bundle.
    tile, overlap
        Side and overlap of tiles in pixels, for a run or a bundle.
    windows, window_overlap
        Side and overlap in pixels of the windows by which a run or a bundle reads larger GeoTIFF files, each with its
        part of the file's label map; a store has those that it was labeled with.
    image_ending, bit_depth
        Ending of the files of ``images`` to use (every image ending if None); bits that images of more than 8 bits
        fill, for a bundle (all bits of their type if None). A run reads images as those that it was trained on.
    text
        Class names, for a bundle that takes them when it labels, such as SAM 3.
    provider, precision, device
        Runtime and precision of a bundle; device of a run.
    allow_code
        Import and call a function that a run names as its model; see :func:`.students.models.load_run`.
    workers
        Images in progress at the same time; one per core if None.
    progress
        Called with the number of finished images and the total, for a run.

    Raises :class:`UsageError` if nothing matches, sizes differ, or an option does not apply to the target.
    """
    names = None if ids is None else frozenset(ids)
    if isinstance(target, Sequence) and not isinstance(target, str):
        target = open_stores(target)
    for_models = {
        "images": images,
        "tile": tile,
        "overlap": overlap or None,
        "windows": windows,
        "window_overlap": window_overlap or None,
        "image_ending": image_ending,
        "bit_depth": bit_depth,
        "text": text or None,
        "provider": None if provider == "cpu" else provider,
        "precision": precision,
        "device": device,
        "allow_code": allow_code or None,
    }
    if reviewed:
        _refuse({"labels": labels, "taxonomy": taxonomy, "calibration": calibration, **for_models}, "reviewed labels")
        store = (
            target
            if isinstance(target, LabelStore)
            else LabelStore.open(target.path if isinstance(target, Bundle) else target)
        )
        classes = Taxonomy.from_json(store.classes).for_own_labels()
        quality = evaluate_store(
            store, open_reviewed(store), classes, ids=names, reviewed=False, workers=count_workers(workers)
        )
        return replace(quality, notes=_notes_on_reviews(store, quality.uris))
    if labels is None:
        raise UsageError("expected true labels to measure against: give labels, or measure a store's reviewed labels")
    truth = open_labels(labels) if isinstance(labels, str | os.PathLike) else labels
    folder = target.path if isinstance(target, Bundle | LabelStore) else location_of(target)
    num_workers = count_workers(workers)
    if isinstance(target, Bundle) or (folder / MANIFEST).is_file():
        _refuse({"device": device, "allow_code": allow_code or None}, "a bundle; its runtime is chosen with provider")
        selection, batch = Selection.argmax(), 1
        if calibration is not None:
            record = calibration if isinstance(calibration, Calibration) else Calibration.load(calibration)
            selection, batch = Selection.conformal(record), int(record.made_with.get("batch", 1))
        options = ModelOptions(
            provider=provider,
            precision=precision,
            tile=tile,
            overlap=overlap,
            batch=batch,
            bit_depth=bit_depth,
            text=tuple(text),
        )
        file = None if taxonomy is None else location_of(taxonomy)
        predictor, classes = open_predictor(folder, file, options=options)
        source = open_source(
            _needed(images, "a bundle"), image_ending=image_ending, windows=cut_of(windows, window_overlap)
        )
        return evaluate_predictor(predictor, source, truth, classes, selection, ids=names, workers=num_workers)
    _refuse({"calibration": calibration}, "a label store or a run; measure the bundle with it")
    is_local = not isinstance(target, LabelStore) and not is_remote(folder)  # runs are always local
    if is_local and is_run(folder) and not (folder / "labels.lance").exists():
        of_bundles = ("precision", "provider", "text", "bit_depth")
        _refuse({name: for_models[name] for name in of_bundles}, "a training run")
        source = open_source(
            _needed(images, "a run"), image_ending=image_ending, windows=cut_of(windows, window_overlap)
        )
        student = load_run(folder, allow_code=allow_code)
        return _evaluate_student(student, source, truth, names, taxonomy, tile, overlap, device, progress)
    if is_local and not folder.exists():
        raise UsageError(f"{folder} does not exist; give a label store, a training run or a model bundle")
    _refuse(for_models, "a label store")
    store = target if isinstance(target, LabelStore) else LabelStore.open(folder)
    classes = Taxonomy.from_json(store.classes)
    if taxonomy is not None:
        classes = classes.with_labels_of(taxonomy)
    return evaluate_store(store, truth, classes, ids=names, workers=num_workers)


def _evaluate_student(
    student: Student,
    images: Source,
    labels: LabelSource,
    ids: frozenset[str] | None,
    taxonomy: str | os.PathLike[str] | None,
    tile: int | None,
    overlap: int,
    device: str | None,
    progress: Callable[[int, int], None] | None,
) -> Quality:
    torch_device = resolve_device(device)
    classes = run_taxonomy(student.run)
    if taxonomy is not None:
        classes = classes.with_labels_of(taxonomy)
    pixels = Pixels(bands=student.input.bands, bit_depth=student.run.bit_depth)
    photos = LabeledImages.pair(images, labels, classes, ids=ids, pixels=pixels)
    scores = score_images(
        student.module.to(torch_device),
        photos,
        student.run,
        device=torch_device,
        tile=tile,
        overlap=overlap,
        thresholds=student.thresholds,
        progress=progress,
    )
    confusion = np.pad(scores.confusion, ((0, 0), (0, 1)))  # a student labels every pixel
    return StudentQuality(
        confusion=confusion, targets=scores.classes, num_images=scores.num_images, source=photos.summary, scores=scores
    )


def _notes_on_reviews(store: LabelStore, uris: Sequence[str]) -> tuple[str, ...]:
    """Describe the pixels that the reviews of some inputs leave unmeasured."""
    reviews, measured_uris = store.current_reviews(), set(uris)
    verdicts = [reviews[row.id].verdict for row in store.inputs() if row.uri in measured_uris and row.id in reviews]
    if not (accepted := verdicts.count("accepted")):
        return ()
    subject = "every image was" if accepted == len(verdicts) else f"{accepted:,} of {len(verdicts):,} images were"
    note = (
        f"{subject} accepted without a change: all their labels count as right, and pixels without a label are not "
        f"measured; correct whole images to measure them, with `maskmill serve {store.path} --review` or "
        "`maskmill import-labels`"
    )
    return (note,)


def _refuse(options: Mapping[str, object], target: str) -> None:
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise UsageError(f"{', '.join(given)} does not apply to {target}; leave it out")


def _needed(images: str | os.PathLike[str] | None, target: str) -> str | os.PathLike[str]:
    if images is None:
        raise UsageError(f"{target} needs images to label: give images=SOURCE (--images SOURCE)")
    return images
