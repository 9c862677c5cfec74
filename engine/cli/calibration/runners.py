"""Place of a calibration: this process, one of several processes, or a Ray cluster."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ...calibration.calibration import Calibration
from ...cluster.runner import Runner
from ...formats.open import InputFormat
from ...inputs.labeled_source import LabeledSource, pair_images
from ...inputs.labels import LabelSource, open_labels
from ...inputs.names import read_ids
from ...inputs.sources import Source, open_source
from ...labeling.run_log import RunLog
from ...model.taxonomy import Taxonomy
from ...reading.access import current_access, with_access
from ...reading.geotiff import Windows
from ...runtimes.open import ON_GPU, Provider
from ..runner_options import threads_of


@dataclass(frozen=True, kw_only=True)
class CalibrationImages:
    """Options that name labeled images, as given; every process opens them by itself."""

    images: str | None
    labels: str | None
    reviewed: Sequence[Path]
    pairing: str | None
    as_stored: bool
    format: InputFormat | None
    image_ending: str | None
    ids: Path | None
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
        labels = open_labels(self.labels, pairing=self.pairing, as_stored=self.as_stored, format=self.format)
        return self._source(self.images), labels, classes

    def pair(self, classes: Taxonomy) -> tuple[Source, LabeledSource, Taxonomy]:
        """Open the images and pair them with their labels."""
        source, labels, classes = self.open(classes)
        return source, pair_images(source, labels, classes, ids=self.names), classes

    @property
    def names(self) -> frozenset[str] | None:
        """Names of the images to use; None for all."""
        return read_ids(self.ids) if self.ids else None

    def _source(self, images: str) -> Source:
        return open_source(images, image_ending=self.image_ending, windows=self.windows)


def calibrate_with(
    runner: Runner,
    fit: Callable[..., Calibration],
    output: Path,
    *,
    opening: Callable[[], tuple[Any, Taxonomy]],
    labeled: CalibrationImages,
    grid: tuple[int, int] | None,
    workers: str | None,
    address: str | None,
    cpus_per_worker: int | None,
    gpus_per_worker: float | None,
    provider: Provider,
    log: RunLog,
) -> Calibration:
    """Fit a calibration where ``runner`` says, and write it, except for ``local``.

    ``opening`` opens the model in a worker.
    """
    if runner == "local":
        return fit()
    from ...cluster.calibration.collect import calibrate_array, calibrate_on_ray, work_folder
    from ...cluster.calibration.worker import ObservationJob
    from ...cluster.ray_pool import RaySettings, parse_workers

    # as an interrupt: the others are told, and take over the lease in progress
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if runner == "array":
        return calibrate_array(fit, output, threads=threads_of(workers, runner), log=log)
    low, high = parse_workers(workers)
    settings = RaySettings(
        address=address,
        min_workers=low,
        max_workers=high,
        cpus_per_worker=cpus_per_worker,
        gpus_per_worker=float(provider in ON_GPU) if gpus_per_worker is None else gpus_per_worker,
    )
    access = current_access()
    job = ObservationJob(
        opening=partial(with_access, access, opening),
        pairing=partial(with_access, access, labeled.pair),
        store=work_folder(output),
        grid=grid,
    )
    return calibrate_on_ray(fit, output, job, settings, log)
