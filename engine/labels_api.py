"""Public functions for labels that exist: exchange with other programs, pictures, reports.

They are thin layers over the modules of this package, like those of :mod:`maskmill.engine.api`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..kernels.processors import usable_processors
from .arguments import Location, calibration_of, counter_if, image_of, store_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .calibration.calibration import Calibration
    from .formats.base import Ignored, ImageMode
    from .formats.open import InputFormat, OutputFormat
    from .inputs.labels import LabelSource
    from .labeling.export_labels import ExportSummary
    from .labeling.import_labels import ImportSummary
    from .report.overlay import Overlay
    from .runtimes.open import Provider
    from .store.label_store import LabelStore


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
    from .labeling import export_labels as exporting

    with counter_if("exporting", progress) as observer:
        return exporting.export_labels(
            store_of(store),
            output,
            format,
            images=images,
            min_kept=min_kept,
            weights=weights,
            ignored=ignored,
            calibration=calibration_of(calibration),
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
            calibration=calibration_of(calibration),
            predictor=None if model is None else open_model(opened, Path(model), provider),
            num_pictures=pictures,
            workers=workers or usable_processors(),
            progress=observer,
        )
