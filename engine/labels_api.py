"""Public functions for labels that exist: exchange with other programs, pictures, reports.

They are thin layers over the modules of this package, like those of :mod:`maskmill.engine.api`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..checks import check_count
from ..errors import UsageError
from ..kernels.processors import count_workers, usable_processors
from .arguments import Location, calibration_of, counter_if, image_of, store_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .calibration.calibration import Calibration
    from .calibration.objects import ObjectThresholds, Ranking
    from .cluster.status import Status
    from .formats.base import Ignored, ImageMode
    from .formats.open import InputFormat, OutputFormat
    from .inputs.labels import LabelSource
    from .labeling.export_labels import ExportSummary
    from .labeling.import_labels import ImportSummary
    from .report.overlay import Overlay
    from .report.ranking.rank import Queue
    from .runtimes.open import Provider
    from .store.label_store import LabelStore
    from .store.several.merge import MergeCounts


def export_labels(
    store: Location | LabelStore | Sequence[Location],
    output: Location,
    format: OutputFormat = "png",
    *,
    images: ImageMode | None = None,
    min_kept: float = 0.0,
    weights: bool = False,
    ignored: Ignored | None = None,
    ids: Location | Sequence[str] | None = None,
    instances: bool = False,
    object_thresholds: Location | ObjectThresholds | None = None,
    calibration: Location | Calibration | None = None,
    progress: bool = False,
) -> ExportSummary:
    """Write the labels of a store as files that other tools read; ``progress`` shows a progress bar.

    Several stores made with the same options are read as one.

    ``ids`` are names of the images to write, or a file of them, such as a queue of :func:`rank`; all if None. The
    other parameters and the errors are those of :func:`maskmill.engine.labeling.export_labels.export_labels`.
    """
    from .calibration import objects
    from .inputs.names import read_ids
    from .labeling import export_labels as exporting

    if object_thresholds is not None and not isinstance(object_thresholds, objects.ObjectThresholds):
        object_thresholds = objects.ObjectThresholds.load(object_thresholds)
    with counter_if("exporting", progress) as observer:
        return exporting.export_labels(
            store_of(store),
            output,
            format,
            images=images,
            min_kept=min_kept,
            weights=weights,
            ignored=ignored,
            ids=read_ids(ids) if isinstance(ids, str | os.PathLike) else None if ids is None else frozenset(ids),
            instances=instances,
            object_thresholds=object_thresholds,
            calibration=calibration_of(calibration),
            progress=observer,
        )


def calibrate_objects(
    store: Location | LabelStore | Sequence[Location],
    labels: Location,
    *,
    alpha: float | str,
    iou: float = 0.5,
    by: Ranking = "both",
    splits: int = 20,
) -> ObjectThresholds:
    """Choose the lowest score and mask quality of an object by class, so that few that are kept are wrong.

    ``labels`` is a COCO file with the true objects of some of the store's images. The other parameters and the errors
    are those of :func:`maskmill.engine.calibration.objects.calibrate_objects`.
    """
    from .calibration import objects

    return objects.calibrate_objects(store_of(store), labels, alpha=str(alpha), iou=iou, by=by, splits=splits)


def import_labels(
    store: Location | LabelStore | Sequence[Location],
    reviewed: Location,
    *,
    reviewer: str,
    format: InputFormat | None = None,
    note: str | None = None,
    progress: bool = False,
) -> ImportSummary:
    """Read corrected labels of any input format into the reviews of a store; ``progress`` shows a progress bar.

    Of several stores made with the same options, each receives the reviews of the images that it holds.

    The other parameters and the errors are those of :func:`maskmill.engine.labeling.import_labels.import_labels`.
    """
    from .labeling import import_labels as importing

    with counter_if("importing", progress) as observer:
        return importing.import_labels(
            store_of(store),
            reviewed,
            format=format,
            reviewer=reviewer,
            note=note,
            workers=usable_processors(),
            progress=observer,
        )


def overlay(
    image: Location | NDArray[np.uint8],
    label: NDArray[np.uint8] | NDArray[np.uint16],
    classes: Sequence[str],
    *,
    background: int | None = None,
    opacity: float = 0.6,
) -> Overlay:
    """Draw labels over a photo, with a legend of the classes present; a notebook shows the result.

    ``image`` is a path or an array (H, W, 3) uint8 RGB, ``label`` (H, W) class indices; ignored pixels are hatched in
    white, the background class shows the photo. ``opacity`` is in [0, 1].
    """
    from .report.overlay import Overlay
    from .report.overlay import overlay as draw

    return Overlay(draw(image_of(image), label, classes, background=background, opacity=opacity))


def report(
    store: Location | LabelStore | Sequence[Location],
    output: Location = "report.html",
    *,
    labels: Location | LabelSource | None = None,
    calibration: Location | Calibration | None = None,
    model: Location | None = None,
    taxonomy: Location | None = None,
    pictures: int = 8,
    provider: Provider = "cpu",
    workers: int | None = None,
    progress: bool = False,
) -> Path:
    """Write one HTML page that shows if the labels of a store are good enough, and which are not.

    Parameters
    ----------
    store, output
        The label store, or several made with the same options; the page to write, which loads nothing from the network.
    labels, taxonomy
        True labels of some of its images, and the class mapping that reads them (the store's own if None).
    calibration
        The calibration that the labels were made with: shows coverage per class, risk and drift.
    model, provider
        Bundle of the model that made the labels, run again on a sample: shows the labels before selection, set sizes
        and PCOS' plane; and its runtime.
    pictures, workers
        Images of each kind in the gallery; images in progress at the same time (one per core if None).
    progress
        Show a progress bar.

    Returns ``output``. Raises :class:`UsageError` if the store holds no labels or segments without classes, or the
    labels were made with another model or calibration; :class:`StoreError`.
    """
    from .inputs.labels import open_labels
    from .model.storage import location_of
    from .model.taxonomy import Taxonomy
    from .report.page.model_view import open_model
    from .report.page.render import write_report

    opened = store_of(store)
    classes = None if taxonomy is None else Taxonomy.from_json(opened.classes).with_labels_of(taxonomy)
    with counter_if("drawing", progress) as observer:
        return write_report(
            opened,
            Path(output),
            labels=open_labels(labels) if isinstance(labels, str | os.PathLike) else labels,
            taxonomy=classes,
            calibration=calibration_of(calibration),
            predictor=None if model is None else open_model(opened, location_of(model), provider),
            num_pictures=pictures,
            workers=count_workers(workers),
            progress=observer,
        )


def rank(
    store: Location | LabelStore | Sequence[Location],
    budget: int = 100,
    *,
    output: Location | None = None,
    calibration: Location | Calibration | None = None,
    images: Location | None = None,
    model: Location | None = None,
    labels: Location | LabelSource | None = None,
    ids: Sequence[str] | None = None,
    provider: Provider = "cpu",
    workers: int | None = None,
    progress: bool = False,
) -> Queue:
    """Choose the images of a store that people should label next, and find likely errors in labels that they made.

    Parameters
    ----------
    store, budget
        The label store, or several made with the same options; number of images to choose, 0 for none.
    output
        File (.json) to write the queue to, which ``export_labels`` reads as ``ids``; None: no file.
    calibration
        The calibration that the labels were made with: classes that few of its images show come first.
    images
        Labeled images, such as those of the calibration: near-duplicates of them are named, and left out of the queue.
    model, provider
        Bundle of the model that made the labels, run again on the candidates: classes before selection and sizes of
        prediction sets decide then; and its runtime. Without it the scores that the store keeps decide; without both,
        the images are random.
    labels, ids
        True labels of ``images`` to look for errors in, which needs ``model``; names of the images to look at.
    workers, progress
        Images in progress at the same time (one per core if None); show a progress bar.

    Returns the queue. Raises :class:`UsageError` if no image is left to choose from, or the labels were made with
    another model or calibration; :class:`StoreError`.
    """
    from .inputs.labeled_source import pair_images
    from .inputs.labels import open_labels
    from .inputs.sources import open_source
    from .labeling.certificate import check_same
    from .model.storage import location_of
    from .model.taxonomy import Taxonomy
    from .report.page.model_view import open_model
    from .report.ranking.label_errors import doubt_labels
    from .report.ranking.rank import Queue, rank_store, save_queue

    if labels is not None and (images is None or model is None):
        raise UsageError("labels need the images that they belong to, and the model that judges them")
    check_count("budget", budget)
    opened, threads = store_of(store), count_workers(workers)
    loaded = calibration_of(calibration)
    if loaded is not None:
        check_same(opened.run, loaded)
    predictor = None if model is None else open_model(opened, location_of(model), provider)
    queue = Queue(images=(), num_candidates=0)
    if budget:
        with counter_if("looking", progress) as observer:
            queue = rank_store(
                opened,
                budget,
                calibration=loaded,
                calibration_images=None if images is None else open_source(images, windows=opened.windows),
                predictor=predictor,
                workers=threads,
                progress=observer,
            )
    if labels is not None and predictor is not None and images is not None:
        classes, source = Taxonomy.from_json(opened.classes), open_source(images, windows=opened.windows)
        truth = open_labels(labels) if isinstance(labels, str | os.PathLike) else labels
        labeled = pair_images(source, truth, classes, ids=ids)
        doubts = doubt_labels(predictor, source, labeled, classes, workers=threads)
        queue = replace(queue, label_errors=tuple(doubts))
    if output is not None:
        save_queue(queue, Path(output))
    return queue


def merge_stores(stores: Sequence[Location], output: Location, *, progress: bool = False) -> MergeCounts:
    """Merge stores made with the same options into ``output``; ``progress`` shows a progress bar.

    The errors are those of :func:`maskmill.engine.store.several.merge.merge_stores`.
    """
    from .store.several import merge

    with counter_if("merging", progress) as observer:
        return merge.merge_stores(stores, output, progress=observer)


def status(store: Location) -> Status:
    """Read how far the runs into a store are, from any machine; raises :class:`StoreError`."""
    from .cluster.status import read_status

    return read_status(store)


def write_manifest(images: Location, output: Location, *, progress: bool = False) -> int:
    """List a source into a Parquet file, which is itself a source that lists nothing; returns the number of images.

    Raises :class:`SourceError`.
    """
    from .inputs.sources import open_source
    from .model.publishing import published_file
    from .reading import manifest

    with counter_if("listing", progress) as observer, published_file(Path(output)) as path:
        return manifest.write_manifest(open_source(images), path, progress=observer)
