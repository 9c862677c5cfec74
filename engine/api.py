"""Public functions of the engine: class mapping, calibration, labeling, exchange of labels, and pictures.

Paths may be strings or :class:`os.PathLike`; image sources may be folders, lists, globs, WebDataset tars or URLs. The
functions are thin layers over the modules of this package; `maskmill` exports them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UsageError
from ..kernels.processors import usable_processors

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from .calibration.calibration import Calibration, Control, RuleChoice
    from .calibration.sharing import Group, Unseen
    from .calibration.thresholds import SmallSample, Unit
    from .formats.base import Ignored, ImageMode
    from .formats.open import InputFormat, OutputFormat
    from .inputs.labels import LabelSource
    from .labeling.export_labels import ExportSummary
    from .labeling.import_labels import ImportSummary
    from .labeling.progress import Progress
    from .labeling.selection import Weight
    from .model.bundle import Bundle
    from .model.taxonomy import Taxonomy
    from .model.taxonomy_draft import Unmatched
    from .predictors.base import Predictor
    from .report.overlay import Overlay
    from .runtimes.open import Provider
    from .store.label_store import LabelStore

Location = str | os.PathLike[str]
"""A path, or a URL as a string."""


def draft_taxonomy(
    model: Location | Bundle,
    labels: Location | None = None,
    label_names: Location | Mapping[int, str] | None = None,
    *,
    unmatched: Unmatched = "ignore",
) -> str:
    """Draft a class mapping (TOML) from matching names; review every line, then save it.

    ``labels`` are true labels of a data set in any format, ``label_names`` the names of its label values (a mapping, a
    class list, or a data set's name such as ``voc``); without both, the model's own classes are mapped. Names without a
    match become ``unmatched``. Raises :class:`UsageError`, :class:`TaxonomyError`.
    """
    from .inputs.labeled_source import value_names
    from .inputs.labels import open_labels
    from .model.taxonomy_draft import draft, read_label_names
    from .predictors.prompted.activation_maps import scored_bundle

    names = label_names if label_names is None or isinstance(label_names, Mapping) else read_label_names(label_names)
    source = None if labels is None else open_labels(labels)
    if source is not None:
        names = value_names(source, names)
    by_name = source is not None and bool(source.format)
    return draft(scored_bundle(bundle_of(model)), names, unmatched=unmatched, by_name=by_name)[0]


def calibrate(
    model: Location | Bundle | Predictor,
    images: Location,
    labels: Location,
    *,
    alpha: str | float,
    taxonomy: Location | Taxonomy | None = None,
    group: Group | None = None,
    unit: Unit = "pixel",
    rule: RuleChoice | None = None,
    control: Control = "miscoverage",
    delta: str | float | None = None,
    ids: Sequence[str] | None = None,
    min_images: int | None = None,
    unseen: Unseen = "never",
    on_small_n: SmallSample = "refuse",
    provider: Provider = "cpu",
    tile: int | None = None,
    overlap: int = 0,
    workers: int | None = None,
    progress: bool = False,
) -> Calibration:
    """Compute conformal thresholds from labeled images, and measure how well they hold on held-out ones.

    Parameters
    ----------
    model
        A bundle, its folder, or a predictor.
    images, labels
        Source of the labeled images, and the folder of their label maps, under the same names.
    alpha
        Error rate to aim for, above 0 and below 1: with 0.05, the true class is ruled out on up to 5 % of the pixels.
    taxonomy
        Class mapping or its file; the model's own classes if None.
    group, unit, rule
        Classes that share a threshold (``class`` if None, or ``pooled`` for the unit ``image``); the exchangeable
        unit; how the prediction set decides the label (``agree`` if None).
    control, delta
        The error whose rate ``alpha`` bounds; with ``delta`` the false-label rate holds except with that probability.
    ids
        Names of the images to use; all if None.
    min_images, unseen, on_small_n
        Fewest images for a threshold of a class's own (ceil(1 / alpha) - 1 if None); whether classes that calibration
        never saw are emitted; treatment of an alpha that the number of images does not allow.
    provider, tile, overlap, workers
        Runtime; side and overlap of tiles in pixels; images in progress at the same time (one per core if None).
    progress
        Show a progress bar.

    Raises :class:`CalibrationError`, :class:`UsageError`, :class:`TaxonomyError`.
    """
    from .calibration import calibrate as calibration_module
    from .inputs.labels import open_labels
    from .inputs.sources import open_source

    predictor, classes = predictor_of(model, taxonomy, provider, tile, overlap)
    with counter_if("calibrating", progress) as observer:
        return calibration_module.calibrate(
            predictor,
            open_source(images),
            open_labels(labels),
            classes,
            alpha=alpha,
            group=group,
            unit=unit,
            rule=rule,
            control=control,
            delta=delta,
            ids=None if ids is None else frozenset(ids),
            min_images=min_images,
            unseen=unseen,
            on_small_n=on_small_n,
            workers=workers or usable_processors(),
            progress=observer,
        )


def label(
    model: Location | Bundle | Predictor,
    images: Location,
    store: Location,
    *,
    calibration: Location | Calibration | None = None,
    threshold: float | None = None,
    taxonomy: Location | Taxonomy | None = None,
    weight: Weight = "none",
    weight_levels: int = 256,
    limit: int | None = None,
    retry_rejects: bool = False,
    provider: Provider = "cpu",
    tile: int | None = None,
    overlap: int = 0,
    workers: int | None = None,
    progress: bool = False,
) -> Progress:
    """Label every image of a source that the store does not hold yet; calling it again continues the run.

    Parameters
    ----------
    model, images, store
        A bundle, its folder or a predictor; the source; the folder of the label store.
    calibration, threshold
        Keep the pixels that a calibration supports, or those with at least this confidence; every pixel if both are
        None.
    taxonomy
        Class mapping or its file; the model's own classes if None.
    weight, weight_levels
        Weight of each kept pixel, and the number of distinct weights.
    limit, retry_rejects
        Stop after this many inputs; try inputs again that were rejected before.
    provider, tile, overlap, workers
        Runtime; side and overlap of tiles in pixels; images in progress at the same time (one per core if None).
    progress
        Show a progress bar.

    Returns the counts of this run. Raises :class:`StoreMismatch` if the store holds labels made with other options,
    :class:`StoreError`, :class:`CalibrationMismatch`, :class:`SessionError`, :class:`SourceError`.
    """
    from .calibration.calibration import Calibration
    from .inputs.sources import open_source
    from .labeling import label_run
    from .labeling.selection import Selection

    if calibration is not None and threshold is not None:
        raise UsageError("give calibration or threshold, not both")
    if calibration is not None:
        record = calibration if isinstance(calibration, Calibration) else Calibration.load(calibration)
        selection = Selection.conformal(record, weight=weight, weight_levels=weight_levels)
    elif threshold is not None:
        selection = Selection.threshold(threshold, weight=weight, weight_levels=weight_levels)
    else:
        selection = Selection.argmax(weight=weight, weight_levels=weight_levels)
    predictor, classes = predictor_of(model, taxonomy, provider, tile, overlap)
    with run_display_if(progress) as observer:
        return label_run.label(
            predictor,
            open_source(images),
            store,
            classes,
            selection,
            limit=limit,
            retry_rejects=retry_rejects,
            workers=workers,
            observer=observer,
        )


def export_labels(
    store: Location | LabelStore,
    output: Location,
    format: OutputFormat = "png",
    *,
    images: ImageMode | None = None,
    min_kept: float = 0.0,
    weights: bool = False,
    ignored: Ignored | None = None,
    calibration: Location | Calibration | None = None,
    progress: bool = False,
) -> ExportSummary:
    """Write the labels of a store as files that other tools read; ``progress`` shows a progress bar.

    The other parameters and the errors are those of :func:`maskmill.engine.labeling.export_labels.export_labels`.
    """
    from .calibration.calibration import Calibration
    from .labeling import export_labels as exporting

    record = Calibration.load(calibration) if isinstance(calibration, str | os.PathLike) else calibration
    with counter_if("exporting", progress) as observer:
        return exporting.export_labels(
            store_of(store),
            output,
            format,
            images=images,
            min_kept=min_kept,
            weights=weights,
            ignored=ignored,
            calibration=record,
            progress=observer,
        )


def import_labels(
    store: Location | LabelStore,
    reviewed: Location,
    *,
    reviewer: str,
    format: InputFormat | None = None,
    note: str | None = None,
    progress: bool = False,
) -> ImportSummary:
    """Read corrected labels of any input format into the reviews of a store; ``progress`` shows a progress bar.

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
    store: Location | LabelStore,
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
        The label store; the page to write, which loads nothing from the network.
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
    from .calibration.calibration import Calibration
    from .inputs.labels import open_labels
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
            calibration=Calibration.load(calibration) if isinstance(calibration, str | os.PathLike) else calibration,
            predictor=None if model is None else open_model(opened, Path(model), provider),
            num_pictures=pictures,
            workers=workers or usable_processors(),
            progress=observer,
        )


def bundle_of(model: Location | Bundle) -> Bundle:
    """Return the bundle, or load it from its folder."""
    from .model.bundle import Bundle

    return model if isinstance(model, Bundle) else Bundle.load(model)


def store_of(store: Location | LabelStore) -> LabelStore:
    """Return the store, or open it from its folder."""
    from .store.label_store import LabelStore

    return store if isinstance(store, LabelStore) else LabelStore.open(store)


def predictor_of(
    model: Location | Bundle | Predictor,
    taxonomy: Location | Taxonomy | None,
    provider: Provider,
    tile: int | None,
    overlap: int,
    precision: str | None = None,
) -> tuple[Predictor, Taxonomy]:
    """Open a semantic bundle, or accept a predictor, with its class mapping."""
    from .model.bundle import Bundle
    from .model.taxonomy import Taxonomy
    from .predictors.open import ModelOptions, load_taxonomy, open_predictor

    if isinstance(model, str | os.PathLike | Bundle):
        folder = model.path if isinstance(model, Bundle) else Path(model)
        options = ModelOptions(provider=provider, precision=precision, tile=tile, overlap=overlap)
        predictor, classes = open_predictor(
            folder, None if isinstance(taxonomy, Taxonomy | None) else Path(taxonomy), options=options
        )
        return predictor, taxonomy if isinstance(taxonomy, Taxonomy) else classes
    if isinstance(taxonomy, Taxonomy):
        return model, taxonomy
    return model, load_taxonomy(model.bundle.path, None if taxonomy is None else Path(taxonomy))


def image_of(image: Location | NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the image, (H, W, 3) uint8 RGB, or decode it from its file; raises :class:`UsageError`."""
    from .inputs.images import decode_image

    if not isinstance(image, str | os.PathLike):
        return image
    try:
        return decode_image(Path(image).read_bytes())
    except OSError as error:
        raise UsageError(f"cannot read {image}: {error}") from error


def class_names_of(classes: Location | Sequence[str]) -> list[str]:
    """Class names in order, from a sequence or a file."""
    from .model.files import read_ordered_class_names

    return read_ordered_class_names(classes) if isinstance(classes, str | os.PathLike) else list(classes)


@contextmanager
def counter_if(name: str, progress: bool) -> Iterator[Callable[[int, int], None] | None]:
    """Show a bar of (done, total) if ``progress``; yields its observer, or None."""
    if not progress:
        yield None
        return
    from .report.display import counter

    with counter(name, quiet=False) as observer:
        yield observer


@contextmanager
def run_display_if(progress: bool) -> Iterator[Callable[[Progress], None] | None]:
    """Show the progress of a labeling run if ``progress``; yields its observer, or None."""
    if not progress:
        yield None
        return
    from .report.display import run_display

    with run_display(as_json=False) as observer:
        yield observer
