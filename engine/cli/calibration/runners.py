"""Runners of a calibration: this process, one of several processes, or a Ray cluster."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ...calibration.calibration import Calibration
from ...inputs.labeled_source import LabeledSource, pair_images
from ...inputs.labels import LabelSource
from ...inputs.sources import Source, open_source
from ...labeling.run_log import RunLog
from ...model.taxonomy import Taxonomy
from ...reading.access import current_access, with_access
from ...reading.geotiff import Windows
from ...runtimes.open import Provider
from ..options.runner import RunnerGroup
from ..options.truth import TruthGroup


@dataclass(frozen=True, kw_only=True)
class CalibrationImages:
    """Options that name labeled images, as given; every process opens them by itself."""

    images: str | None
    labels: str | None
    reviewed: Sequence[Path]
    truth: TruthGroup
    image_ending: str | None
    windows: Windows | None = None

    def open(self, classes: Taxonomy) -> tuple[Source, LabelSource, Taxonomy]:
        """Open the images and their labels; returns them with the class mapping that reads the labels."""
        from ...store.reviewed_labels import ReviewedImages, open_reviewed
        from ...store.several.joined import open_stores

        if self.reviewed:
            store = open_stores(self.reviewed)
            source = ReviewedImages(store) if self.images is None else self._source(self.images)
            return source, open_reviewed(store), classes.for_own_labels()
        assert self.labels is not None, "the command has checked that there are labels"
        assert self.images is not None, "the command has checked that there are images"
        return self._source(self.images), self.truth.open(self.labels), classes

    def pair(self, classes: Taxonomy) -> tuple[Source, LabeledSource, Taxonomy]:
        """Open the images and pair them with their labels."""
        source, labels, classes = self.open(classes)
        return source, pair_images(source, labels, classes, ids=self.truth.names), classes

    def _source(self, images: str) -> Source:
        return open_source(images, image_ending=self.image_ending, windows=self.windows)


def calibrate_with(
    place: RunnerGroup,
    fit: Callable[..., Calibration],
    output: Path,
    *,
    opening: Callable[[], tuple[Any, Taxonomy]],
    labeled: CalibrationImages,
    grid: tuple[int, int] | None,
    provider: Provider,
    log: RunLog,
) -> Calibration:
    """Fit a calibration with the runner that ``place`` names, and write it, except for ``local``.

    ``opening`` opens the model in a worker.
    """
    if place.runner == "local":
        return fit()
    from ...cluster.calibration.collect import calibrate_array, calibrate_on_ray, work_folder
    from ...cluster.calibration.worker import ObservationJob

    # handled as an interrupt: the other processes are notified and claim the lease in progress
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if place.runner == "array":
        return calibrate_array(fit, output, threads=place.threads, log=log)
    access = current_access()
    job = ObservationJob(
        opening=partial(with_access, access, opening),
        pairing=partial(with_access, access, labeled.pair),
        store=work_folder(output),
        grid=grid,
    )
    return calibrate_on_ray(fit, output, job, place.ray_settings(provider), log)
