"""Run a job on a pool of workers, or as one of many processes: the loops of every runner with leases.

::

    progress = run_on(DevicePool(job, devices=(0, 1)), job, observer=print)   # one process per GPU
    progress = run_array(job, observer=print)                                 # this process is one of many
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Literal, Protocol

from ...errors import SessionError, StoreError
from ..labeling.drift import OnDrift
from ..labeling.progress import Progress
from ..labeling.run_log import RunLog
from ..model.storage import is_url
from ..reading import outages
from ..store.waiting.presence import ENDED, describe, new_token
from .driver import Driver
from .job import Job
from .leases import Leases
from .worker import Worker

Runner = Literal["local", "array", "ray"]
"""Place of a run: in this process, as one of many processes with one store, or on a Ray cluster."""

TURN_SECONDS = 0.5
"""Seconds between two steps of a driver."""
Observer = Callable[[Progress], None]


class Pool(Protocol):
    """Workers of a run: processes on this machine, or actors on a cluster."""

    def tend(self, driver: Driver) -> int:
        """Start workers as the driver needs them, and report dead ones to it; returns the number of workers."""
        ...

    def stop(self) -> None:
        """Ask the workers to finish the images in progress and to end."""
        ...

    def close(self) -> None:
        """End the remaining workers."""
        ...


def run_on(
    pool: Pool,
    job: Job,
    *,
    shard_of: tuple[int, int] | None = None,
    limit: int | None = None,
    retry_rejects: bool = False,
    on_drift: OnDrift = "warn",
    observer: Observer | None = None,
    log: RunLog | None = None,
) -> Progress:
    """Run a job on a pool, drive it in this process, and return the counts of the run.

    The options are those of :func:`maskmill.engine.labeling.label_run.label`. An interrupt finishes and commits the
    images in progress. Raises :class:`StoreError` if another driver is at work, and :class:`SessionError` if no worker
    is left.
    """
    leases = Leases(job.store, job.storage_options)
    options: dict[str, Any] = {"shard_of": shard_of, "limit": limit, "retry_rejects": retry_rejects}
    driver = Driver(job, leases, **options, on_drift=on_drift, log=log)
    driver.wait_to_lead()
    state = "failed"
    turn = _Turn(driver)
    interrupted = False
    try:
        while True:
            try:
                num_workers = pool.tend(driver)
                if interrupted and num_workers == 0:
                    turn.take(flush=True)
                    break
                if turn.take():
                    break
                if num_workers == 0:
                    # on a full disk a worker ends without a record of its error
                    reason = f"none could write its error to {job.store}; check that it has space and can be written"
                    raise SessionError(f"no worker is left; {driver.warnings[-1] if driver.num_failures else reason}")
                if observer is not None:
                    observer(driver.progress)
                time.sleep(TURN_SECONDS)
            except KeyboardInterrupt:
                if interrupted:
                    raise
                interrupted = True
                driver.stop()
                pool.stop()
        state = "interrupted" if interrupted else "finished"
    except BaseException:
        pool.stop()
        with suppress(Exception):  # the first error is the one to report
            while pool.tend(driver):
                time.sleep(TURN_SECONDS)
            turn.take(flush=True)
        raise
    finally:
        driver.close(state)
        pool.close()
        driver.forget_workers()
    if observer is not None:
        observer(driver.progress)
    return driver.progress


def run_array(
    job: Job,
    *,
    threads: int | None = None,
    shard_of: tuple[int, int] | None = None,
    limit: int | None = None,
    retry_rejects: bool = False,
    on_drift: OnDrift = "warn",
    observer: Observer | None = None,
    log: RunLog | None = None,
) -> Progress:
    """Label as one of many processes with the same job, such as the tasks of a Slurm array; returns the run's counts.

    One of the processes drives the run beside its own labeling; when it dies, another one does. Parameters and errors
    as :func:`run_on`; an interrupt ends this process, and the run if it is the only one.
    """
    leases = Leases(job.store, job.storage_options)
    options: dict[str, Any] = {"shard_of": shard_of, "limit": limit, "retry_rejects": retry_rejects}
    options |= {"on_drift": on_drift, "log": log}
    duty = _Duty(job, leases, options)
    worker = Worker(job, leases, token=new_token(), threads=threads)
    duty.start()
    state = "failed"
    try:
        worker.run(is_over=duty.is_over, observer=None if observer is None else lambda _: observer(duty.progress))
        interrupted = worker.stop.is_set() and not duty.is_over()
        state = "interrupted" if interrupted else "finished"
        progress = duty.end(state)
    except BaseException:
        state = "failed"
        duty.end(state)
        raise
    finally:
        if log is not None and not log.has_ended:  # a process that does not drive the run
            log.end(state, duty.progress)
    if observer is not None:
        observer(progress)
    return progress


def is_over(leases: Leases, driver: str) -> bool:
    """Return True if the run of a driver has ended, or another driver has taken its place."""
    record = leases.driver()
    return record is None or record["token"] != driver or record["state"] in ENDED


class _Duty:
    """Drives a run in a thread, or waits for the process that drives it."""

    def __init__(self, job: Job, leases: Leases, options: dict[str, Any]) -> None:
        self.progress = Progress()
        self._job, self._leases, self._options = job, leases, options
        self._over = threading.Event()
        self._stop = threading.Event()
        self._state = "interrupted"
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="maskmill-duty", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def is_over(self) -> bool:
        return self._over.is_set()

    def end(self, state: str) -> Progress:
        """End the duty; a driver commits what is finished first. Raises its error."""
        self._state = state
        self._stop.set()
        self._thread.join()
        if self._error is not None and state != "failed":
            raise self._error
        self.progress.interrupted = state == "interrupted"
        return self.progress

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                driver = Driver(self._job, self._leases, **self._options)
                if self._followed(driver) or self._driven(driver):
                    self._over.set()
                    return
        except BaseException as error:
            self._error = error
            self._over.set()

    def _followed(self, driver: Driver) -> bool:
        """Wait until the run is finished, or ``driver`` leads; returns True if it is finished."""
        followed: str | None = None
        while not self._stop.is_set():
            record = self._leases.driver()
            if record is not None and record["state"] not in ENDED and record["version"] != self._job.version:
                raise SessionError(
                    f"this process has maskmill {self._job.version}, the run into {self._job.store} was started with "
                    f"{record['version']} ({describe(record)}); install the same version on every machine"
                )
            if record is not None and record["state"] == "finished" and record["token"] == followed:
                self.progress = Progress.from_record(record["progress"])
                return True
            if driver.lead():
                return False
            if record is not None:
                followed = record["token"]
                self.progress = Progress.from_record(record["progress"])
            self._stop.wait(2 * TURN_SECONDS)
        return False

    def _driven(self, driver: Driver) -> bool:
        """Drive the run; returns True if it is finished, False if another process drives it now."""
        if self._stop.is_set():
            return False
        turn, state = _Turn(driver), "failed"
        try:
            while not self._stop.is_set():
                if driver.is_deposed:
                    return False
                if turn.take():
                    state = "finished"
                    return True
                self.progress = driver.progress
                self._stop.wait(TURN_SECONDS)
            driver.stop()
            turn.take(flush=True)
            state = self._state
        finally:
            driver.close(state)
            self.progress = driver.progress
        return False


class _Turn:
    """Steps of a driver; in a bucket, a failed commit is repeated for some minutes, as its leases are safe."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._failed_since: float | None = None
        self._pause_until = 0.0

    def take(self, *, flush: bool = False) -> bool:
        now = time.monotonic()
        if now < self._pause_until and not flush:
            return False
        try:
            over = self._driver.step(flush=flush)
        except StoreError as error:
            self._failed_since = self._failed_since or now
            if flush or not is_url(self._driver.store) or now - self._failed_since > outages.OUTAGE_SECONDS:
                raise
            self._driver.warnings.append(f"a commit failed and is retried: {error}")
            self._pause_until = now + 10.0
            return False
        self._failed_since = None
        return over
