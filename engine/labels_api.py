"""Public functions for labels that already exist: exchange with other programs, pictures, reports.

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
from .arguments import Location, calibration_of, counter_if, image_of, labels_of, store_of

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
    """Write the labels of a store, reviewed pixels included, as files that other tools read.

    Parameters
    ----------
    store
        The label store, or several made with the same options, which are read as one.
    output
        A new or empty folder, or that of an interrupted export with the same options, which is continued.
    format
        Format of the files, such as ``png``, ``coco`` or ``yolo-seg``.
    images
        How photos are added to the labels: copies, links or none; if None, the format decides.
    min_kept
        Smallest share of labeled pixels, in [0, 1]; images below it are left out, unless a person reviewed them.
    weights
        Also write the weight maps, if the format has a place for them.
    ignored
        How ignored pixels are written in formats that cannot mark them.
    ids
        Names of the images to write, or a file of names, such as a queue of :func:`rank`; all if None.
    instances, object_thresholds
        Write single objects instead of class masks, and the result of :func:`calibrate_objects`, or its file, that
        selects them; if None, all objects.
    calibration
        The calibration of the labels, or its file, whose coverage report is added to the certificate.
    progress
        Show a progress bar.

    Returns the counts of the export. Raises :class:`UsageError` for options that the format does not support or a
    folder that holds something else, and :class:`StoreError` if the store cannot be read or the folder cannot be
    written.
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
    """Choose, for each class, the lowest score or mask quality of an object, so that few of the kept objects are wrong.

    Parameters
    ----------
    store
        A store with objects, or several made with the same options; label with a low ``min_score``.
    labels
        COCO file with the true objects of some of the store's images.
    alpha
        Largest mean share of wrong objects per image, in (0, 1).
    iou
        Smallest IoU with a true object of the same class for an object to count as right, in (0, 1].
    by
        Value that is compared with the threshold: ``score``, mask ``quality``, or ``both`` (their product).
    splits
        Number of random halves of the images on which thresholds from the other half are measured.

    Raises :class:`UsageError` for a store without objects, a file of another format, or images that cannot be paired.
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
    """Read corrected labels of any input format into the reviews of a store.

    Parameters
    ----------
    store
        The label store; of several made with the same options, each receives the reviews of the images that it holds.
    reviewed
        File, folder or URL with the corrected labels.
    reviewer
        Name of the person who corrected them, kept with every review.
    format
        Format of ``reviewed``; detected if None.
    note
        Remark to keep with every review.
    progress
        Show a progress bar.

    Returns the counts of the import. Raises :class:`UsageError` if no image matches, a size differs, or a class is not
    one of the store's; reviews committed before the error stay, and the same call may be repeated.
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

    Parameters
    ----------
    image
        A path, or an array (H, W, 3) uint8 RGB.
    label
        (H, W) class indices, uint8 or uint16; pixels of the ignore index (255 or 65535) are hatched in white.
    classes
        Class names in the order of their indices.
    background
        Index of the background class, whose pixels show the photo; None: every class is drawn.
    opacity
        Opacity of the class colors, in [0, 1].

    Raises :class:`UsageError` if the file cannot be read, :class:`ImageError` if it cannot be decoded.
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
    """Write one HTML page that shows whether the labels of a store are good enough, and which are not.

    Parameters
    ----------
    store, output
        The label store, or several made with the same options; the page to write, which loads nothing from the network.
    labels, taxonomy
        True labels of some of its images, and the class mapping that reads them; if None, the store's own.
    calibration
        The calibration that the labels were made with; adds coverage per class, risk and drift.
    model, provider
        Bundle of the model that made the labels, and its runtime. The model runs again on a sample; this adds the
        labels before selection, prediction set sizes, and the plane of confidence and dispersion that PCOS weights are
        based on.
    pictures
        Number of images of each kind in the gallery.
    workers
        Number of images processed in parallel; if None, one per core.
    progress
        Show a progress bar.

    Returns ``output``. Raises :class:`UsageError` if the store holds no labels, or segments without classes, or if the
    labels were made with another model or calibration; :class:`StoreError` if the store cannot be read.
    """
    from .model.storage import location_of
    from .model.taxonomy import Taxonomy
    from .report.page.model_view import open_model
    from .report.page.render import write_report

    opened_store = store_of(store)
    classes = None if taxonomy is None else Taxonomy.from_json(opened_store.classes).with_labels_of(taxonomy)
    with counter_if("drawing", progress) as observer:
        return write_report(
            opened_store,
            Path(output),
            labels=None if labels is None else labels_of(labels),
            taxonomy=classes,
            calibration=calibration_of(calibration),
            predictor=None if model is None else open_model(opened_store, location_of(model), provider),
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
    store
        The label store, or several made with the same options.
    budget
        Number of images to choose; 0 for none.
    output
        File (.json) to write the queue to, which :func:`export_labels` reads as ``ids``; if None, no file is written.
    calibration
        The calibration that the labels were made with; classes that few of its images show are preferred.
    images
        Images that are already labeled, such as those of the calibration; near-duplicates of them are reported and left
        out of the queue.
    model, provider
        Bundle of the model that made the labels, and its runtime. The model runs again on the candidates; the order
        then depends on the classes before selection and on prediction set sizes. Without it the order depends on the
        scores that the store keeps, and without those it is random.
    labels, ids
        True labels of ``images`` to search for errors, which needs ``model``, and the names of the images to search.
    workers
        Number of images processed in parallel; if None, one per core.
    progress
        Show a progress bar.

    Returns the queue. Raises :class:`UsageError` if no image is left to choose from, or if the labels were made with
    another model or calibration; :class:`StoreError` if the store cannot be read.
    """
    from .inputs.labeled_source import pair_images
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
    opened_store, threads = store_of(store), count_workers(workers)
    loaded_calibration = calibration_of(calibration)
    if loaded_calibration is not None:
        check_same(opened_store.run, loaded_calibration)
    predictor = None if model is None else open_model(opened_store, location_of(model), provider)
    queue = Queue(images=(), num_candidates=0)
    if budget:
        with counter_if("looking", progress) as observer:
            queue = rank_store(
                opened_store,
                budget,
                calibration=loaded_calibration,
                calibration_images=None if images is None else open_source(images, windows=opened_store.windows),
                predictor=predictor,
                workers=threads,
                progress=observer,
            )
    if labels is not None and predictor is not None and images is not None:
        classes, source = Taxonomy.from_json(opened_store.classes), open_source(images, windows=opened_store.windows)
        truth = labels_of(labels)
        labeled_source = pair_images(source, truth, classes, ids=ids)
        doubts = doubt_labels(predictor, source, labeled_source, classes, workers=threads)
        queue = replace(queue, label_errors=tuple(doubts))
    if output is not None:
        save_queue(queue, Path(output))
    return queue


def merge_stores(stores: Sequence[Location], output: Location, *, progress: bool = False) -> MergeCounts:
    """Merge stores made with the same options into ``output``; calling it again continues the merge.

    Parameters
    ----------
    stores, output
        Folders or URLs of the stores; a new folder, or a store made with the same options.
    progress
        Show a progress bar.

    Returns the row counts of the merged store. Raises :class:`StoreMismatch` if the stores were made with different
    options, :class:`StoreError`, and :class:`UsageError` if there is nothing to merge.
    """
    from .store.several import merge

    with counter_if("merging", progress) as observer:
        return merge.merge_stores(stores, output, progress=observer)


def status(store: Location) -> Status:
    """Read the progress of the runs that write into ``store``, from any machine; raises :class:`StoreError`."""
    from .cluster.status import read_status

    return read_status(store)


def write_manifest(
    images: Location, output: Location, *, image_ending: str | None = None, progress: bool = False
) -> int:
    """List the source ``images`` into the Parquet file ``output``, which later calls read instead of listing again.

    ``image_ending`` is the ending of the files of folders and archives to list; if None, every image ending.
    ``progress`` shows a progress bar. Returns the number of images. Raises :class:`SourceError` if the source cannot be
    listed or holds no image, or if the file cannot be written.
    """
    from .inputs.sources import open_source
    from .model.publishing import published_file
    from .reading import manifest

    with counter_if("listing", progress) as observer, published_file(Path(output)) as path:
        return manifest.write_manifest(open_source(images, image_ending=image_ending), path, progress=observer)
