"""Calibrate with several processes: each runs the model on leases of labeled images, one fits the thresholds.

::

    fit = partial(calibrate, predictor, source, labels, taxonomy, alpha="0.05")
    calibration = calibrate_array(fit, Path("calibration.json"))          # this process is one of several
    calibration = calibrate_on_ray(fit, Path("calibration.json"), job, RaySettings(max_workers=8))

The workers' observations are added in the order of the images, so thresholds, counts and report are bit-identical to
those of one process. The leases are in the folder ``calibration.json.work`` until the calibration is written; after an
interrupt or a crash the same command continues from the finished leases.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ....errors import CalibrationError, StoreError
from ...calibration.calibrate import Collect
from ...calibration.calibration import Calibration
from ...calibration.scores.observe import Observations
from ...inputs.labeled_source import LabeledSource
from ...inputs.sources import Source
from ...labeling.run_log import RunLog
from ...model.storage import open_folder
from ...predictors.base import Predictor
from ...store.waiting.presence import Watcher, describe, identity, is_here, new_token
from ..lease_log import LeaseLog
from ..leases import Finished, Leases
from ..ray_pool import RayPool, RaySettings
from .observation_file import decode_observations
from .worker import POLL_SECONDS, RECORD, ObservationJob, ObservationWorker, Sample, Signs

Fit = Callable[..., Calibration]
"""Calibrates with the function that its keyword argument ``collect`` names."""

_TITLE = "unfinished work of the calibration in"
_MERGE = "merge"  # claim of the process that fits the thresholds


class _FinishedElsewhere(Exception):
    """Another process has written the calibration."""


def work_folder(output: Path) -> str:
    """Return the folder of the unfinished work of a calibration."""
    return f"{os.path.abspath(output)}.work"


def calibrate_array(fit: Fit, output: Path, *, threads: int | None = None, log: RunLog | None = None) -> Calibration:
    """Calibrate as one of several processes with the same options, and write the calibration.

    One of the processes fits the thresholds and writes ``output``; the others read and return that file. ``threads`` is
    the number of images in progress in this process, ``log`` gets the leases that it works on. Raises the errors of
    ``fit``, and :class:`UsageError` if the processes have different options.
    """
    task = _Task(work_folder(output), threads, log or RunLog())
    with task.signs.shown():
        try:
            calibration = fit(collect=task.collect)
        except _FinishedElsewhere:
            calibration = Calibration.load(output)
        else:
            calibration.save(output)
            (Path(task.folder) / RECORD).unlink()  # notifies the other processes
            shutil.rmtree(task.folder, ignore_errors=True)
    _remove_empty(task.folder)
    return calibration


def calibrate_on_ray(
    fit: Fit, output: Path, job: ObservationJob, settings: RaySettings, log: RunLog | None = None
) -> Calibration:
    """Calibrate with workers on a Ray cluster, and write the calibration; ``job.store`` is :func:`work_folder`.

    Raises the errors of ``fit`` and of the workers, and :class:`StoreError` if another process on this machine does the
    same.
    """
    driver = _Driver(job, log or RunLog())
    calibration = fit(collect=driver.collector(settings))
    calibration.save(output)
    shutil.rmtree(job.store, ignore_errors=True)
    return calibration


class _Leases:
    """Leases of a calibration in a folder, and those of dead workers."""

    def __init__(self, folder: str, leases: Leases) -> None:
        self._folder = folder
        self._leases = leases
        self._watcher = Watcher()
        self._parts: list[dict[str, Any]] = []
        self.workers: dict[str, dict[str, Any]] = {}

    def publish(self, sample: Sample, options: Mapping[str, Any]) -> list[str]:
        """Offer all leases of a sample; returns their names in order. ``options`` are those of the fit."""
        sample.join(self._folder, options)
        leases = sample.leases()
        for lease in sorted(set(leases) - set(self._leases.open_names())):
            self._leases.publish(lease, leases[lease])
        return list(leases)

    def finished(self) -> dict[str, Finished]:
        """Return the finished leases, after those of dead workers are released."""
        claims = self._leases.claims()
        self.workers = self._leases.workers()  # after the claims: a worker writes its record before it claims
        outcomes = {done.lease: done for done in self._leases.finished()}
        for lease, worker in claims.items():
            record = self.workers.get(worker)
            if lease not in outcomes and (record is None or self._watcher.is_dead(worker, record)):
                self._leases.release(lease)
        return outcomes

    def merge(self, observations: Observations, sample: Sample, names: list[str]) -> bool:
        """Add the workers' observations, in order.

        Returns False if a file is damaged or missing: its lease is offered again, and a later call continues there.
        """
        files = {done.lease: done for done in self._leases.finished()}
        for name in names[len(self._parts) :]:
            try:
                added, meta = decode_observations(self._leases.data(files[name]))
            except (StoreError, FileNotFoundError, KeyError):
                if name in files:
                    self._leases.forget(files[name])
                self._leases.release(name)
                return False
            for observation in added:
                observations.add(observation)
            self._parts.append(meta)
        observations.finish()
        sample.add_counts(self._parts)
        return True


class _Task:
    """One of several equal processes."""

    def __init__(self, folder: str, threads: int | None, log: RunLog) -> None:
        self.folder = folder
        self._log = log
        self._token = new_token()
        self._leases = Leases(folder, title=_TITLE)
        self.signs = Signs(self._leases, self._token)
        self._threads = threads

    def collect(
        self,
        observations: Observations,
        predictor: Predictor,
        source: Source,
        labeled: LabeledSource,
        *,
        workers: int = 1,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Share the images with the other processes; parameters as :meth:`Observations.collect`."""
        sample = _sample_of(observations, predictor, source, labeled)
        leases = _Leases(self.folder, self._leases)
        names = leases.publish(sample, observations.options)
        while True:
            claim = self._leases.claim(self._token)
            if claim is not None:
                lease, items = claim
                self.signs.busy(lease)
                self._log.write("lease claimed", lease=lease, worker=self._token)
                self._leases.hand_back(lease, self._token, len(items), sample.observe(lease, items, workers))
                self._log.write("lease finished", lease=lease, worker=self._token, inputs=len(items))
                self.signs.idle()
            outcomes = leases.finished()
            if progress is not None:
                progress(sum(done.num_rows for done in outcomes.values()), len(labeled.items))
            if claim is not None:
                continue
            if all(name in outcomes for name in names) and self._leases.take(_MERGE, self._token):
                if leases.merge(observations, sample, names):
                    return
                self._leases.release(_MERGE)
            elif RECORD not in open_folder(self.folder).names(""):
                raise _FinishedElsewhere
            time.sleep(POLL_SECONDS)


class _Driver:
    """Watches the workers of a pool, and offers the leases of dead workers again."""

    def __init__(self, job: ObservationJob, log: RunLog) -> None:
        self.token = new_token()
        self._log = LeaseLog(log)
        self.lost: set[str] = set()
        self.num_failures = 0
        self.warnings: list[str] = []
        self.num_open = 0
        self._job = job
        self._leases = Leases(job.store, job.storage_options, title=_TITLE)
        self._shared = _Leases(job.store, self._leases)

    @property
    def workers(self) -> dict[str, dict[str, Any]]:
        return self._shared.workers

    def has_started(self, token: str) -> bool:
        return token in self.workers or token in self._leases.claims().values()

    def collector(self, settings: RaySettings) -> Collect:
        """Return the function that lets a pool of workers observe the images."""

        def collect(
            observations: Observations,
            predictor: Predictor,
            source: Source,
            labeled: LabeledSource,
            *,
            workers: int = 1,
            progress: Callable[[int, int], None] | None = None,
        ) -> None:
            sample = _sample_of(observations, predictor, source, labeled)
            names = self._shared.publish(sample, observations.options)
            self._lead()
            pool = RayPool(self._job, settings, ObservationWorker)
            try:
                while True:
                    self._run(pool, names, progress, len(labeled.items))
                    if self._shared.merge(observations, sample, names):
                        return
            finally:
                self._leases.resign()
                pool.close()
                for token in self._leases.workers():
                    self._leases.leave(token)

        return collect

    def _lead(self) -> None:
        other = self._leases.driver()
        if other is not None and is_here(other):
            raise StoreError(f"{describe(other)} already calibrates with {self._job.store}; wait until it ends")
        record = {**identity(), "token": self.token, "state": "labeling"}
        self._leases.lead(record, instead_of=None if other is None else other["token"])

    def _run(
        self, pool: RayPool, names: list[str], progress: Callable[[int, int], None] | None, num_images: int
    ) -> None:
        """Wait until every lease is finished."""
        while True:
            num_workers = pool.tend(self)
            outcomes = self._shared.finished()
            self._log.note(self._leases.claims(), list(outcomes.values()), self.warnings)
            if progress is not None:
                progress(sum(done.num_rows for done in outcomes.values()), num_images)
            self.num_open = sum(name not in outcomes for name in names)
            if not self.num_open:
                return
            for record in self.workers.values():
                if "error" in record:
                    raise CalibrationError(record["error"])
            if num_workers == 0:
                reason = "none could write its error; check that the folder of the run has space and can be written"
                raise CalibrationError(f"no worker is left; {self.warnings[-1] if self.num_failures else reason}")
            time.sleep(POLL_SECONDS)


def _remove_empty(folder: str) -> None:
    """Delete the folders if they are empty; late heartbeats may have created them again."""
    for path, _, _ in os.walk(folder, topdown=False):
        with suppress(OSError):
            os.rmdir(path)


def _sample_of(
    observations: Observations, predictor: Predictor, source: Source, labeled_source: LabeledSource
) -> Sample:
    return Sample(
        predictor=predictor,
        source=source,
        labeled=labeled_source,
        taxonomy=observations.taxonomy,
        grid=observations.spill.grid,
    )
