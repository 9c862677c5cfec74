"""Workers on a Ray cluster: one actor per worker, as many as there are leases for.

Ray places the actors, starts machines for them if it can, and reports which ones died. Inputs and labels do not pass
through Ray: as in every other runner, workers read the source and write finished leases to the store's folder.
"""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass
from typing import Any, Protocol

from ...errors import MaskmillError, MissingPackageError, SessionError, UsageError
from ..store.waiting.presence import new_token
from .leases import Leases
from .runner import is_over
from .worker import Worker

MAX_RESTARTS = 100
"""Number of worker deaths after which no worker is restarted."""
MAX_FAILED_STARTS = 10
"""Number of workers that die before opening their model after which no worker is restarted."""
IDLE_SECONDS = 60.0
"""Time after which workers without a lease end, down to the smallest number."""
NICENESS = "0"
"""Niceness of workers relative to Ray's own processes; Ray's default of 15 starves labeling beside any other work."""
_STALL_SECONDS = 30.0  # seconds after which workers that Ray has no resources for are reported


@dataclass(frozen=True, kw_only=True)
class RaySettings:
    """Size and place of a pool of workers."""

    address: str | None = None
    """Address of the cluster; None: the one of this machine or of ``RAY_ADDRESS``, or a new one on this machine."""
    min_workers: int = 1
    """Smallest number of workers."""
    max_workers: int | None = None
    """Largest number of workers; None: as many as the processors or GPUs of the cluster allow."""
    cpus_per_worker: int | None = None
    """Processors of each worker; None: those of the smallest machine of the cluster, at most 8."""
    gpus_per_worker: float = 0.0
    """GPUs of each worker."""


class Driving(Protocol):
    """Driver as a pool sees it, such as :class:`maskmill.engine.cluster.driver.Driver`."""

    token: str
    lost: set[str]
    num_failures: int
    num_open: int
    warnings: list[str]

    @property
    def workers(self) -> dict[str, dict[str, Any]]:
        """Latest records of the workers, by token."""
        ...

    def has_started(self, token: str) -> bool:
        """Return True if a worker has opened its model."""
        ...


def parse_workers(text: str | None) -> tuple[int, int | None]:
    """Parse ``N`` or ``MIN:MAX``; raises :class:`UsageError`."""
    if text is None:
        return 1, None
    low, colon, high = text.partition(":")
    if not low.isdecimal() or (colon and not high.isdecimal()) or int(low) < 1 or (colon and int(high) < int(low)):
        raise UsageError(f"--workers must be N or MIN:MAX with 1 <= MIN <= MAX, such as 2:8; got {text!r}")
    return int(low), int(high) if colon else int(low)


class RayPool:
    """Actors on a Ray cluster; one that dies is replaced, one that reports an error is not."""

    def __init__(self, job: Any, settings: RaySettings, worker: Any = Worker) -> None:
        """Connect to the cluster; ``worker`` is the class that does the ``job``.

        Raises :class:`MissingPackageError` without Ray and :class:`SessionError` if the cluster does not answer.
        """
        try:
            import ray
        except ImportError as error:
            raise MissingPackageError("ray", "ray", "--runner ray") from error
        self._ray: Any = ray
        self._own = not ray.is_initialized()
        if self._own:
            try:
                with warnings.catch_warnings():
                    # Ray forks to start programs that do not use Lance
                    warnings.filterwarnings("ignore", "lance is not fork-safe")
                    ray.init(address=settings.address, log_to_driver=False, logging_level="error")
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise SessionError(f"cannot connect to the Ray cluster {settings.address}: {error}") from error
        self._job, self._settings, self._worker = job, settings, worker
        self._cpus = settings.cpus_per_worker or self._default_cpus()
        self._actors: dict[str, Any] = {}
        self._runs: dict[Any, str] = {}
        self._idle_since: dict[str, float] = {}
        self._started: dict[str, float] = {}
        self._num_deaths = self._failed_starts = 0
        self._num_errors = 0
        self._stopping = False

    def tend(self, driver: Driving) -> int:
        """See :meth:`maskmill.engine.cluster.runner.Pool.tend`."""
        if self._runs:
            ended, _ = self._ray.wait(list(self._runs), num_returns=len(self._runs), timeout=0)
            for run in ended:
                self._ended(run, driver)
        if self._stopping:
            return len(self._runs)
        target = min(self._largest(), max(self._settings.min_workers, driver.num_open)) - self._num_errors
        if self._num_deaths <= MAX_RESTARTS and self._failed_starts < MAX_FAILED_STARTS:
            for _ in range(target - len(self._runs)):
                self._start(driver)
        self._end_idle(driver)
        return len(self._runs)

    def stop(self) -> None:
        """See :meth:`maskmill.engine.cluster.runner.Pool.stop`."""
        self._stopping = True
        for actor in self._actors.values():
            actor.stop.remote()

    def close(self) -> None:
        """See :meth:`maskmill.engine.cluster.runner.Pool.close`."""
        self._stopping = True
        for actor in self._actors.values():
            self._ray.kill(actor)
        self._actors, self._runs = {}, {}
        if self._own:
            self._ray.shutdown()

    def _start(self, driver: Driving) -> None:
        token = new_token()
        actor = (
            self._ray.remote(RayWorker)
            .options(
                num_cpus=self._cpus,
                num_gpus=self._settings.gpus_per_worker,
                max_restarts=0,
                max_concurrency=2,
                scheduling_strategy="SPREAD",
                runtime_env={"env_vars": {"RAY_worker_niceness": NICENESS}},
            )
            .remote(token, driver.token, self._job, self._cpus, self._worker)
        )
        self._actors[token] = actor
        self._runs[actor.run.remote()] = token
        self._started[token] = time.monotonic()

    def _ended(self, run: Any, driver: Driving) -> None:
        token = self._runs.pop(run)
        self._actors.pop(token, None)
        self._started.pop(token, None)
        try:
            error = self._ray.get(run)
        except self._ray.exceptions.RayError as problem:
            driver.lost.add(token)
            self._num_deaths += 1
            self._failed_starts += not driver.has_started(token)
            if not isinstance(problem, self._ray.exceptions.RayTaskError):  # the exception is in the worker's record
                driver.num_failures += 1
                driver.warnings.append(f"a worker died: {str(problem).splitlines()[0]}")
            return
        if error is not None:
            self._num_errors += 1
            if error:
                driver.num_failures += 1
                driver.warnings.append(error)

    def _end_idle(self, driver: Driving) -> None:
        """End workers that have found no lease for a while, and report those that wait for a machine."""
        now = time.monotonic()
        workers = driver.workers
        for token in list(self._actors):
            if token in workers:
                self._started.pop(token, None)
            is_idle = token in workers and workers[token]["state"] == "labeling" and not workers[token]["leases"]
            since = self._idle_since.setdefault(token, now) if is_idle else None
            if since is None:
                self._idle_since.pop(token, None)
            elif now - since > IDLE_SECONDS and len(self._runs) > self._settings.min_workers:
                self._actors[token].stop.remote()
        late = [token for token, started in self._started.items() if now - started > _STALL_SECONDS]
        if late:
            driver.warnings.append(
                f"{len(late)} workers have waited {_STALL_SECONDS:.0f} s for {self._cpus} processors and "
                f"{self._settings.gpus_per_worker:g} GPUs each; the cluster has {self._ray.cluster_resources()}"
            )
            for token in late:
                self._started.pop(token)

    def _largest(self) -> int:
        if self._settings.max_workers is not None:
            return self._settings.max_workers
        resources = self._ray.cluster_resources()
        number = int(resources.get("CPU", 1) // self._cpus)
        if self._settings.gpus_per_worker:
            number = min(number, int(resources.get("GPU", 0) // self._settings.gpus_per_worker))
        return max(number, self._settings.min_workers)

    def _default_cpus(self) -> int:
        sizes = [int(node["Resources"].get("CPU", 0)) for node in self._ray.nodes() if node["Alive"]]
        return min([8, *(size for size in sizes if size > 0)])


class RayWorker:
    """Actor that runs a worker; its methods are called at the same time."""

    def __init__(self, token: str, driver: str, job: Any, threads: int, worker: Any) -> None:
        self._leases = Leases(job.store, job.storage_options)
        self._driver = driver
        self._worker = worker(job, self._leases, token=token, threads=threads)

    def run(self) -> str | None:
        """Label leases until the run is over; returns an error, empty if it is in the worker's record."""
        record = self._leases.driver()
        if record is None or record["token"] != self._driver:
            import socket

            return (
                f"the worker on {socket.gethostname()} cannot see the run in the store's folder; put the store on "
                "storage that every machine can reach under the same name, or in a bucket"
            )
        try:
            self._worker.run(is_over=lambda: is_over(self._leases, self._driver))
        except MaskmillError:
            return ""
        return None

    def stop(self) -> None:
        """Finish the images in progress and end."""
        self._worker.stop.set()
