"""Driver of a run: plans leases as they are needed, watches the workers, and commits what they finish.

A run has one driver; when it dies, any other process of the run may become the driver. All its state is in the store's
folder: a new driver commits finished leases, withdraws unlabeled ones, and plans the remaining inputs.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from contextlib import suppress
from typing import Any

import pyarrow as pa

from ...errors import StoreError
from ..inputs.sources import Item
from ..labeling.drift import OnDrift, RunWatch
from ..labeling.history import add_run
from ..labeling.progress import Progress
from ..labeling.run_log import RunLog
from ..store.label_store import InputRow, LabelStore
from ..store.waiting.presence import (
    BEAT_SECONDS,
    ENDED,
    EXPIRY_SECONDS,
    Watcher,
    describe,
    identity,
    is_here,
    new_token,
)
from ..store.waiting.waiting_rows import commit_waiting
from .committer import Committer
from .job import Job
from .lease_log import LeaseLog
from .leases import ALONE, ClaimWatcher, Finished, Leases
from .planner import LARGEST_LEASE, SMALLEST_LEASE, Planner

LEASE_SECONDS = 30.0
"""Seconds of work that a lease should contain."""
MAX_DEATHS = 3
"""Number of workers that an input may crash before it is rejected."""
FIRST_LEASE = 64
"""Number of inputs of a lease before the speed of the workers is known."""
_PIECES = 8  # a lease whose workers die is split, to find the input that crashes them


class Driver:
    """Driver of one run: call :meth:`lead` first, then :meth:`step` repeatedly, and :meth:`close` at the end."""

    def __init__(
        self,
        job: Job,
        leases: Leases,
        *,
        shard_of: tuple[int, int] | None = None,
        limit: int | None = None,
        retry_rejects: bool = False,
        on_drift: OnDrift = "warn",
        log: RunLog | None = None,
    ) -> None:
        self.token = new_token()
        """Name of the driver."""
        self.warnings: list[str] = []
        """Faults that did not end the run, such as the death of a worker."""
        self.lost: set[str] = set()
        """Tokens of workers that are known to be dead by the pool that started them."""
        self.num_failures = 0
        """Number of workers that died or reported an error."""
        self._proven: set[str] = set()
        self.num_open = 0
        """Number of leases that are not finished."""
        self.is_deposed = False
        """True once another process drives the run."""
        self.store = job.store
        """Name of the store."""
        self._job = job
        self._leases = leases
        self._plan_options: dict[str, Any] = {"shard_of": shard_of, "limit": limit, "retry_rejects": retry_rejects}
        self._on_drift: OnDrift = on_drift
        self._log = LeaseLog(log or RunLog())
        self._watch: RunWatch | None = None
        self._drifted = False
        self._watcher, self._claim_watcher = Watcher(), ClaimWatcher()
        self._committer: Committer | None = None
        self._planner: Planner | None = None
        self._stop = threading.Event()
        self._deaths: Counter[str] = Counter()
        self._committed: set[str] = set()
        self._lock = threading.Lock()
        self._workers: dict[str, dict[str, Any]] = {}
        self._reports: dict[str, Progress] = {}
        self._claims: dict[str, str] = {}
        self._stalled: set[str] = set()
        self._num_waiting = 0
        self._started = time.monotonic()
        self._beat = 0
        self._state = "starting"
        self._ended = threading.Event()
        self._beating: threading.Thread | None = None

    def lead(self) -> bool:
        """Become the driver of the run; returns False while another process is the driver."""
        record = self._leases.driver()
        dead = None
        if record is not None:
            token = str(record.get("token"))
            over = record.get("state") in ENDED
            if not over and not self._watcher.is_dead(token, record):
                return False
            dead = token
        if not self._leases.lead(self._record(), instead_of=dead):
            return False
        self._beating = threading.Thread(target=self._keep_beating, name="maskmill-driver", daemon=True)
        self._beating.start()
        return True

    def wait_to_lead(self) -> None:
        """Become the driver, or raise :class:`StoreError` if another process shows that it is alive."""
        started = time.monotonic()
        beat = None
        while not self.lead():
            record = self._leases.driver() or {}
            if (beat is not None and record.get("beat") != beat) or is_here(record):
                raise StoreError(
                    f"another run already labels into {self._job.store} ({describe(record)}); wait until it ends, or "
                    "add workers with --runner array"
                )
            beat = record.get("beat")
            if time.monotonic() - started > 2 * EXPIRY_SECONDS:
                raise StoreError(f"cannot become the driver of {self._job.store}: {describe(record)} is")
            time.sleep(BEAT_SECONDS / 5)

    @property
    def progress(self) -> Progress:
        """Counts so far: those of committed inputs, and, as images, the inputs that are not committed yet."""
        total = Progress.total([Progress() if self._committer is None else self._committer.progress])
        with self._lock:
            records = {token: Progress.from_record(record["progress"]) for token, record in self._workers.items()}
            self._reports.update(records)
            committed = {} if self._committer is None else self._committer.stages
            short = [Progress(stages=stages) for token, stages in committed.items() if token not in self._reports]
            workers = Progress.total([*self._reports.values(), *short])
        if self._num_waiting:
            total.images += self._num_waiting
            total.pixels, total.kept = workers.pixels, workers.kept
        total.stages = workers.stages
        total.planned = 0 if self._planner is None else self._planner.planned
        total.limited = self._planner is not None and self._planner.limited
        total.seconds = time.monotonic() - self._started
        total.earlier_rejects = Counter() if self._planner is None else self._planner.earlier_rejects
        total.source.skipped = self._job.source.skipped
        total.interrupted = self._state == "interrupted"
        total.drifted = self._drifted
        total.warnings = list(self.warnings)
        return total

    def has_started(self, token: str) -> bool:
        """Return True if a worker has opened its model: its record says so, or it has claimed a lease."""
        return token in self._proven or token in self._leases.claims().values()

    @property
    def workers(self) -> dict[str, dict[str, Any]]:
        """Latest records of the workers, by token."""
        with self._lock:
            return dict(self._workers)

    def step(self, *, flush: bool = False) -> bool:
        """Perform all pending work without waiting; returns True when every input of the plan is committed.

        ``flush`` commits all finished leases. Raises the errors of planning.
        """
        if self.is_deposed:
            raise StoreError(f"another process now drives the run into {self.store}; this one was silent for a minute")
        if self._planner is None:
            self._begin()
        committer, planner = self._committer, self._planner
        if committer is None or planner is None:
            return False
        planning = planner.is_busy
        if planner.error is not None:
            raise planner.error
        # in this order: a worker writes its record, then claims, then hands back, then deletes its record
        self._claims = self._leases.claims(self._claims)
        self._watch_workers()
        outcomes = self._leases.finished()
        self._log.note(self._claims, outcomes, self.warnings)
        handed_back = {done.lease for done in outcomes}
        for lease, worker in list(self._claims.items()):
            if lease not in handed_back and worker not in self._workers:
                self._lost_lease(lease, worker)
        for lease in self._claim_watcher.lost(self._claims, handed_back, self._workers):
            self._leases.withdraw(lease)
        published = planner.published()
        open_names = self._leases.open_names()
        for lease in published.difference(open_names, self._committed):
            self._lost_inputs(planner.size_of(lease))
        unfinished = [name for name in open_names if name not in handed_back]
        self.num_open = len(unfinished)
        in_progress = {lease: number for record in self._workers.values() for lease, number in record["leases"].items()}
        self._num_waiting = sum(done.num_rows for done in outcomes if done.lease not in self._committed) + sum(
            number for lease, number in in_progress.items() if lease in unfinished
        )
        flush = flush or not (planning or unfinished) or self._look_for_drift()
        if committer.step(outcomes, flush=flush):
            self._num_waiting = 0
        planner.make_room(16 + 3 * len(self._workers) - len(unfinished))
        is_over = not planning and not self._leases.open_names() and not self._leases.finished()
        return is_over and (self._stop.is_set() or not planner.plan_lost())

    def stop(self) -> None:
        """Plan no further leases, and withdraw those that no worker has claimed."""
        self._end_planning()
        if not self.is_deposed:
            self._take_back(keep=set(self._leases.claims(self._claims)))

    def close(self, state: str) -> None:
        """End the run: ``finished``, ``interrupted`` or ``failed``; unfinished leases are withdrawn."""
        self._end_planning()
        self._ended.set()
        if self._beating is not None:
            self._beating.join()
        self._state = state
        with suppress(StoreError):
            self._look_for_another()
            if self.is_deposed:
                return
            self._take_back(keep=set())
        self._log.note({}, (), self.warnings)
        self._log.run.end(state, self.progress)
        if self._committer is not None:
            add_run(self._committer.store.path, self.progress)
        with suppress(StoreError):
            self._leases.report(self._record())

    def forget_workers(self) -> None:
        """Delete the records of workers that were killed at the end."""
        for token in self.workers:
            with suppress(StoreError):
                self._leases.leave(token)

    def _end_planning(self) -> None:
        self._stop.set()
        if self._planner is not None:
            self._planner.end()

    def _begin(self) -> None:
        """Commit an earlier run's finished leases, and plan, unless there is no store yet; may be repeated."""
        self._watch_workers()
        try:
            store = LabelStore.open(self._job.store, storage_options=self._job.storage_options, warn=False)
        except StoreError:
            return  # the first worker that has opened its model creates it
        commit_waiting(store)  # rows of a killed run in one process
        self._committer = Committer(store, self._leases, self._complete, self._log.run)
        claims = self._leases.claims()
        self._watch_workers()
        outcomes = self._leases.finished()
        self._committer.step(outcomes, flush=True)
        busy_leases = {lease for lease, worker in claims.items() if worker in self._workers}
        self._take_back(keep=busy_leases - {done.lease for done in outcomes})
        self._committer.progress = Progress(stored=store.num_inputs)  # without the counts of earlier runs
        self._state = "labeling"
        if self._on_drift == "stop":
            self._watch = RunWatch.of(store, "stop")
        self._planner = Planner(
            self._job,
            self._leases,
            store,
            name=self.token,
            size=self._lease_size,
            watch=self._watch,
            **self._plan_options,
        )
        self._planner.start()

    def _look_for_drift(self) -> bool:
        """End the plan at an alarm; returns True while the watch for drift waits for results to be committed."""
        if self._watch is None or self._drifted:
            return False
        self._watch.poll()
        if self._watch.stop.is_set():
            self._drifted = True
            self.stop()
        return self._watch.is_waiting

    def _take_back(self, keep: set[str]) -> None:
        for lease in self._leases.open_names():
            if lease not in keep:
                self._leases.withdraw(lease)

    def _lease_size(self) -> int:
        """Return the number of inputs that a worker labels in :data:`LEASE_SECONDS`, as far as is known."""
        with self._lock:
            parts = [Progress.from_record(record["progress"]) for record in self._workers.values()]
        rates = [part.inputs / part.seconds for part in parts if part.seconds > 1.0]
        if not rates:
            return FIRST_LEASE
        return int(min(max(LEASE_SECONDS * sum(rates) / len(rates), SMALLEST_LEASE), LARGEST_LEASE))

    def _watch_workers(self) -> None:
        """Read the records of the workers; forget those that are dead or have failed."""
        workers = self._leases.workers()
        for token, record in list(workers.items()):
            if record.get("stalled") and token not in self._stalled:
                self._stalled.add(token)
                self._log.run.write("stall", stage=record["stalled"], worker=token)
                self.warnings.append(f"{describe(record)} is stalled in {record['stalled']}")
            if "error" in record:
                self.num_failures += 1
                self.warnings.append(f"{record.get('name') or describe(record)}: {record['error']}")
            elif token in self.lost or self._watcher.is_dead(token, record):
                self.warnings.append(f"a worker died ({describe(record)}); its leases are labeled again")
            else:
                continue
            self._leases.leave(token)
            del workers[token]
        self._proven.update(token for token, record in workers.items() if record["state"] == "labeling")
        with self._lock:
            self._workers = workers

    def _lost_lease(self, lease: str, worker: str) -> None:
        """Offer the lease of a dead worker again; an input that crashes every worker becomes a reject."""
        del self._claims[lease]
        if self._planner is None or self._committer is None or self._stop.is_set():
            self._leases.withdraw(lease)
            return
        num_deaths = self._deaths.pop(lease, 0) + 1
        items = self._leases.items(lease) or []  # if its file is damaged, step() finds it withdrawn
        if len(items) == 1 and num_deaths >= MAX_DEATHS:
            self._reject(self._committer, items[0])
        elif items:
            size = -(-len(items) // _PIECES) if num_deaths > 1 else len(items)
            for number, start in enumerate(range(0, len(items), size)):
                piece = f"{lease.removesuffix(ALONE)}.{number}{ALONE}"
                # pieces inherit the deaths of their lease; a lease of a single input counts its own deaths
                self._deaths[piece] = num_deaths if size == len(items) else 1
                self._planner.publish(piece, items[start : start + size])
        if items:
            self._planner.size_of(lease)
        self._leases.withdraw(lease)

    def _reject(self, committer: Committer, item: Item) -> None:
        message = f"{MAX_DEATHS} workers died while they labeled {item.uri}; look for their last messages in the log"
        place = {"uri": item.uri, "size": item.size, "stamp": item.stamp, "condition": self._job.conditions()(item.uri)}
        committer.reject(InputRow(**place, id=None, error="crash", message=message))

    def _complete(self, outcome: Finished, inputs: pa.Table) -> bool:
        """Withdraw a committed lease; inputs that its worker did not finish are offered again."""
        if outcome.lease in self._committed:
            return False
        lease, planner = outcome.lease, self._planner
        size = len(self._leases.items(lease) or ()) if planner is None else planner.size_of(lease)
        if planner is not None and outcome.num_rows < size and not self._stop.is_set():
            uris, items = set(inputs["uri"].to_pylist()), self._leases.items(lease)
            open_items = [item for item in items or () if item.uri not in uris]
            if open_items:
                planner.publish(f"{lease}.r", open_items)
            elif items is None:
                self._lost_inputs(size - outcome.num_rows)
        self._leases.withdraw(lease)
        self._committed.add(lease)
        return True

    def _lost_inputs(self, num_inputs: int) -> None:
        if self._planner is not None and not self._stop.is_set():
            self._planner.lose(num_inputs)
            self.warnings.append("the file of a lease was damaged or deleted; missing inputs are planned again")

    def _keep_beating(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            with suppress(StoreError):
                self._look_for_another()
                if self.is_deposed:
                    return
                self._leases.report(self._record())

    def _look_for_another(self) -> None:
        """Set :attr:`is_deposed` if another process considered this one dead and now drives the run."""
        record = self._leases.driver()
        self.is_deposed = record is not None and record.get("token") != self.token

    def _record(self) -> dict[str, Any]:
        self._beat += 1
        return {
            **identity(),
            "token": self.token,
            "version": self._job.version,
            "beat": self._beat,
            "state": self._state,
            "planned_all": self._planner is not None and not self._planner.is_busy,
            "open": self.num_open,
            "workers": len(self._workers),
            "progress": self.progress.record(),
            "commits": 0 if self._committer is None else self._committer.num_commits,
            "commit_seconds": 0.0 if self._committer is None else self._committer.seconds,
            "time": time.time(),
        }
