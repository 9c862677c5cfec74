"""Progress of a run, read from its store by any process on any machine.

::

    print(read_status("labels").describe())
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from ...errors import StoreError
from ..labeling.history import read_history
from ..labeling.progress import Progress
from ..labeling.thread_stages import StageTime
from ..store.label_store import LabelStore
from ..store.waiting.presence import (
    BEAT_SECONDS,
    ENDED,
    EXPIRY_SECONDS,
    describe,
    identity,
    is_gone,
    is_silent,
    new_token,
)
from ..store.waiting_count import num_waiting_rows
from .leases import Leases


@dataclass(frozen=True, kw_only=True)
class WorkerStatus:
    """One process that labels."""

    name: str
    """Host and process id."""
    state: str
    """``starting``, ``labeling``, ``silent`` if its records are old, ``interrupted`` or ``dead``."""
    inputs: int
    """Number of inputs that it has processed."""
    images_per_second: float
    """Images labeled per second."""
    seconds_since: float
    """Age of its latest record in seconds, according to the machines' clocks."""
    stalled: str = ""
    """Step that has worked on one image, or batch, for half a minute; empty if there is none."""


@dataclass(frozen=True, kw_only=True)
class Status:
    """State of a store and of the runs that label into it."""

    store: str
    """Name of the store."""
    images: int
    """Number of labeled images in the store."""
    inputs: int
    """Number of inputs in the store, labeled or rejected."""
    rejects: int
    """Number of rejected inputs."""
    run: str
    """State of the latest run: ``labeling``, ``finished``, ``interrupted``, ``drifted`` if a drift alarm stopped it,
    ``failed``, ``dead``, or empty if none is known."""
    planned: int
    """Number of inputs that this run has planned so far."""
    done: int
    """Number of them that are labeled or rejected, committed or not."""
    is_planned: bool
    """True if the run has listed all inputs."""
    limited: bool
    """True if the run was started with a limit that leaves inputs out."""
    waiting: int
    """Number of finished inputs in files that wait for a commit."""
    seconds: float
    """Time since this run started."""
    commits: int = 0
    """Number of commits of this run."""
    commit_seconds: float = 0.0
    """Time of these commits."""
    rejects_by_kind: dict[str, int] = field(default_factory=dict)
    """Rejects of this run that are committed, by kind of error."""
    stages: dict[str, StageTime] = field(default_factory=dict)
    """Items and times of the stages of all workers."""
    workers: list[WorkerStatus] = field(default_factory=list)
    """Processes that label."""
    warnings: list[str] = field(default_factory=list)
    """Faults of this run that did not end it."""

    @property
    def images_per_second(self) -> float:
        """Images per second of all workers that are alive."""
        return sum(worker.images_per_second for worker in self.workers if worker.state == "labeling")

    @property
    def seconds_left(self) -> float | None:
        """Time that the rest of the plan will take; None if it is unknown."""
        rate = self.images_per_second
        return (self.planned - self.done) / rate if self.is_planned and rate > 0 else None

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain data."""
        raw = {name: getattr(self, name) for name in self.__dataclass_fields__}
        raw["workers"] = [vars(worker) for worker in self.workers]
        raw["stages"] = {name: vars(stage) for name, stage in self.stages.items()}
        return raw | {"images_per_second": self.images_per_second, "seconds_left": self.seconds_left}

    def describe(self) -> list[str]:
        """Return the status in words, one line per fact."""
        lines = [f"{self.store}: {self.images:,} images of {self.inputs:,} inputs stored, {self.rejects:,} rejected"]
        if self.run:
            plus = "" if self.is_planned or self.run in ENDED else " or more"
            suffix = f", {max(self.done - self.waiting, 0):,} of them committed" if self.waiting else ""
            lines.append(
                f"run: {self.run}, {self.done:,} of {self.planned:,}{plus} inputs done in {self.seconds:,.0f} s{suffix}"
            )
        if self.run in ("interrupted", "dead") and self.is_planned and self.planned > self.done:
            lines.append(
                f"{self.planned - self.done:,} planned inputs are left; run the same command again to continue"
            )
        elif self.run in ("interrupted", "dead"):
            lines.append("inputs may be left; run the same command again to continue")
        elif self.limited:
            lines.append("--limit leaves more inputs out; run the same command again, or without it, to label them")
        if self.workers:
            seconds_left = self.seconds_left
            suffix = "" if seconds_left is None else f", {_duration(seconds_left)} left"
            lines.append(f"workers: {len(self.workers):,}, {self.images_per_second:,.1f} images/s{suffix}")
        for worker in self.workers:
            stall = f", stalled in {worker.stalled}" if worker.stalled else ""
            lines.append(
                f"  {worker.name}: {worker.state}, {worker.inputs:,} inputs, {worker.images_per_second:.1f} images/s, "
                f"seen {worker.seconds_since:.0f} s ago{stall}"
            )
        return lines + [f"warning: {warning}" for warning in dict.fromkeys(self.warnings)]


def read_status(store: str | os.PathLike[str], options: Mapping[str, Any] | None = None) -> Status:
    """Read the state of a store and of the runs that label into it; raises :class:`StoreError`."""
    leases = Leases(store, options)
    driver = leases.driver()
    outcomes = leases.finished()
    workers = leases.workers()
    waiting = num_waiting_rows(store, options) + sum(done.num_rows for done in outcomes)
    # read last: rows committed meanwhile are then counted twice rather than not at all
    opened_store = LabelStore.open(store, storage_options=options, warn=False)
    summary = opened_store.counts()
    history = read_history(opened_store.path)
    ended = datetime.fromisoformat(history[-1]["time"]).timestamp() if history else 0.0
    # the state of a killed run is outdated once a later run has ended
    records = [record for record in workers.values() if record["time"] > ended or not _has_ended(record)]
    if driver is not None and _is_latest(driver, ended, records):
        is_planned = driver["planned_all"]
        state, progress = driver["state"], Progress.from_record(driver["progress"])
        if state not in ENDED and is_silent(driver):
            state = "dead"
    else:
        driver = None
        state, progress, is_planned = _latest_local_run(history, records)
    reports = Progress.total([Progress.from_record(record["progress"]) for record in records])
    num_done = progress.inputs
    if state == "labeling":  # stored and waiting rows are newer than the run's last record
        num_done = max(num_done, min(summary["inputs"] - progress.stored + waiting, progress.planned))
    if state == "dead":  # its last record may be older than its last rows, and counts inputs that were lost with it
        num_stored = max(summary["inputs"] - progress.stored, 0)
        num_done = min(num_stored + waiting, progress.planned)
        if is_planned and 0 < progress.planned <= num_stored:  # another run committed the rest, or only the end is lost
            state = "finished"
        elif driver is None and all(record["state"] == "interrupted" for record in records):
            state = "interrupted"
    return Status(
        store=str(store),
        images=min(summary["images"], summary["inputs"] - summary["rejects"]),  # labels are committed before inputs
        inputs=summary["inputs"],
        rejects=summary["rejects"],
        run=state,
        planned=progress.planned,
        done=num_done,
        is_planned=is_planned,
        limited=progress.limited,
        waiting=waiting,
        seconds=progress.seconds,
        commits=driver["commits"] if driver else 0,
        commit_seconds=driver["commit_seconds"] if driver else 0.0,
        rejects_by_kind=dict(progress.rejects),
        stages={stage.name: stage for stage in (progress.stages or reports.stages)},
        workers=[_worker(record) for record in records],
        warnings=progress.warnings,
    )


def _is_latest(driver: Mapping[str, Any], ended: float, records: Sequence[Mapping[str, Any]]) -> bool:
    """Return False if a run in one process, started or ended after the run of a driver, has taken its place."""
    if driver["state"] not in ENDED and not is_silent(driver):
        return True
    is_newer = any(record.get("alone") and record["time"] > driver["time"] for record in records)
    return ended <= driver["time"] and not is_newer


def _latest_local_run(
    history: Sequence[Mapping[str, Any]], records: Sequence[Mapping[str, Any]]
) -> tuple[str, Progress, bool]:
    """Return state and counts of the latest run in one process, and whether its number of inputs is known."""
    for state, is_dead in (("labeling", False), ("dead", True)):
        parts = [record for record in records if _has_ended(record) == is_dead]
        if parts:
            counts = [Progress.from_record(record["progress"]) for record in parts]
            total = Progress.total(counts)
            total.stored = min(part.stored for part in counts)
            return state, total, True
    if not history:
        return "", Progress(), False
    latest = history[-1]
    progress = Progress(
        planned=latest.get("planned", 0),
        limited=latest.get("limited", False),
        images=latest["images"],
        duplicates=latest["duplicates"],
        rejects=Counter({"rejected": latest["rejects"]}),
        seconds=latest["seconds"],
    )
    state = "interrupted" if latest["interrupted"] else "drifted" if latest.get("drifted") else "finished"
    return state, progress, True


def _has_ended(record: Mapping[str, Any]) -> bool:
    return record["state"] == "interrupted" or is_gone(record)


@contextmanager
def published(store: str | os.PathLike[str]) -> Iterator[Any]:
    """Show a run in this process to :func:`read_status` on any machine; yields the observer of its counts."""
    leases, token = Leases(store), new_token()
    latest: list[Progress] = []  # empty until the run has opened its store
    ended = threading.Event()

    def write(beat: int, state: str) -> None:
        record = {**identity(), "name": "", "beat": beat, "state": state, "leases": {}, "time": time.time()}
        record |= {"progress": {**latest[0].record(), "low_range": []}, "stalled": latest[0].stalled}
        record["alone"] = True
        with suppress(StoreError):  # a full disk: the run itself reports it
            leases.beat(token, record)

    def publish() -> None:
        beat = 0
        while not ended.wait(BEAT_SECONDS):
            if latest:
                beat += 1
                write(beat, "labeling")

    thread = threading.Thread(target=publish, name="maskmill-status", daemon=True)
    thread.start()
    was_interrupted = False
    try:
        yield lambda progress: latest.__setitem__(slice(None), [progress])
    except KeyboardInterrupt:
        was_interrupted = True
        raise
    finally:
        ended.set()
        thread.join()
        # the history holds runs that ended by themselves with an input at least
        if latest and (was_interrupted or (latest[0].interrupted and not latest[0].inputs)):
            write(0, "interrupted")
        else:
            with suppress(StoreError):
                leases.leave(token)


def _worker(record: Mapping[str, Any]) -> WorkerStatus:
    progress = Progress.from_record(record["progress"])
    age = max(0.0, time.time() - record["time"])
    state = record["state"]
    if state != "interrupted":
        state = "dead" if is_gone(record) else "silent" if age > EXPIRY_SECONDS else state
    return WorkerStatus(
        name=describe(record) + (f" ({record['name']})" if record.get("name") else ""),
        state=state,
        inputs=progress.inputs,
        images_per_second=progress.rate,
        seconds_since=age,
        stalled=record.get("stalled", ""),
    )


def _duration(seconds: float) -> str:
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s"
