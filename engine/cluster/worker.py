"""Worker of a run: claims leases, labels them in one continuous pipeline, and returns their rows.

Leases are independent: an image that occurs in two leases is labeled twice and stored once. In a store of at most
:data:`KNOWN_ROWS` images, workers skip those that it holds.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import numpy as np

from ...errors import MaskmillError, StoreError
from ..inputs.sources import Item
from ..labeling.progress import Progress
from ..labeling.writer import Writer
from ..store.label_store import InputRow, LabelRow
from ..store.rows import input_table, label_table
from ..store.waiting.presence import BEAT_SECONDS, identity
from .job import Job
from .leases import ALONE, Leases

KNOWN_ROWS = 20_000_000
"""Size of a store up to which workers remember its images, 24 bytes each."""
POLL_SECONDS = 0.5
"""Seconds between two searches for a lease while there is none."""
_HAND_BACKS = 2  # number of finished leases waiting for the storage at which labeling waits as well


class LeaseWriter(Writer):
    """Collects the results of one lease and returns them when it is complete."""

    def __init__(
        self,
        num_items: int,
        num_targets: int,
        is_known: Callable[[str], bool],
        hand_back: Callable[[Sequence[LabelRow], Sequence[InputRow], Progress], None],
    ) -> None:
        super().__init__(Progress(planned=num_items, kept=np.zeros(num_targets, np.int64)), self)
        self._is_known = is_known
        self._hand_back = hand_back

    def has_id(self, id: str) -> bool:
        """Return True if the store holds the labels of an image."""
        return self._is_known(id)

    def commit(self, labels: Sequence[LabelRow], inputs: Sequence[InputRow]) -> None:
        """Hand back the rows."""
        self._hand_back(labels, inputs, self.progress)

    def idle(self) -> None:
        """Return the rows when every input has a result."""
        if self.progress.inputs >= self.progress.planned:
            self.flush()


class Worker:
    """One process that labels leases::

    Worker(job, Leases("labels"), token=new_token()).run(is_over=lambda: False)
    """

    def __init__(self, job: Job, leases: Leases, *, token: str, threads: int | None = None, name: str = "") -> None:
        self.token = token
        """Token of the worker."""
        self._name = name
        self.stop = threading.Event()
        """Ends the run after the images in progress, as an interrupt does."""
        self.progress = Progress()
        """Counts of all leases of this worker so far, and the times of its stages."""
        self._job = job
        self._leases = leases
        self._threads = threads
        self._writers: dict[str, LeaseWriter] = {}
        self._claim: str | None = None  # latest lease, which may wait for earlier ones
        self._waiting: list[Future[None]] = []
        self._finished: list[Progress] = []
        self._run = Progress()
        self._lock = threading.Lock()
        self._beat = 0
        self._state = "starting"
        self._error: str | None = None

    def run(self, *, is_over: Callable[[], bool], observer: Callable[[Progress], None] | None = None) -> Progress:
        """Label leases until the run is over; returns the counts of this worker.

        ``is_over`` is called before each claim. An interrupt, or :attr:`stop`, finishes the images in
        progress and hands back what is finished. Errors are raised, and left in the worker's record.
        """
        ended = threading.Event()
        beating = threading.Thread(target=self._beat_until, args=(ended,), name="maskmill-beat", daemon=True)
        self.beat()  # before the first claim: a claim without a record belongs to a worker that has left
        beating.start()
        try:
            self._label(is_over, observer)
        except BaseException as error:
            if not isinstance(error, KeyboardInterrupt):
                # class and message: they are shown by the driver, which may run on another machine
                kind = "" if isinstance(error, MaskmillError) else f"{type(error).__name__}: "
                self._error = kind + " ".join(str(error).split())
            raise
        finally:
            ended.set()
            beating.join()
            self._state = "ended"
            with suppress(StoreError):  # the first error is the one to report
                if self._error is not None:
                    self.beat()
                else:
                    self._leases.leave(self.token)
        return self.progress

    def _label(self, is_over: Callable[[], bool], observer: Callable[[Progress], None] | None) -> None:
        stages, store, num_targets = self._job.open(self._threads)
        is_known = store.has_id if len(store) <= KNOWN_ROWS else _unknown
        self.progress = Progress(kept=np.zeros(num_targets, np.int64))
        self._state = "labeling"
        storage = ThreadPoolExecutor(1, thread_name_prefix="maskmill-leases")
        waiting = self._waiting

        def hand_back(lease: str, labels: Sequence[LabelRow], inputs: Sequence[InputRow], progress: Progress) -> None:
            while len(waiting) >= _HAND_BACKS:
                waiting.pop(0).result()
            waiting.append(storage.submit(self._hand_back, lease, labels, inputs, progress))

        def inputs() -> Iterator[tuple[Item, Writer]]:
            for lease, items in self._claimed(is_over):

                def handing(
                    labels: Sequence[LabelRow], rows: Sequence[InputRow], progress: Progress, lease: str = lease
                ) -> None:
                    hand_back(lease, labels, rows, progress)

                writer = LeaseWriter(len(items), num_targets, is_known, handing)
                with self._lock:
                    self._writers[lease] = writer
                for item in items:
                    yield item, writer

        def flush() -> None:
            with self._lock:
                partial = list(self._writers.values())
            for writer in partial:
                writer.flush()
            while waiting:
                waiting.pop(0).result()

        def observe(progress: Progress) -> None:
            self.progress = self._counted(progress)
            if observer is not None:
                observer(self.progress)

        run = self._run
        try:
            stages.execute(inputs(), run, finish=flush, observer=observe, stop=self.stop)
        finally:
            self.stop.set()
            storage.shutdown(wait=True)
            self.progress = self._counted(run)

    def _claimed(self, is_over: Callable[[], bool]) -> Iterator[tuple[str, list[Item]]]:
        while not (self.stop.is_set() or is_over()):
            self._check_storage()
            claim = self._leases.claim(self.token)
            self._claim = None if claim is None else claim[0]
            if claim is not None and claim[0].endswith(ALONE):
                self._wait_for_writers()
                yield claim
                self._wait_for_writers()
            elif claim is not None:
                yield claim
            else:
                self.stop.wait(POLL_SECONDS)

    def _wait_for_writers(self) -> None:
        """Wait until every lease in progress is returned."""
        while self._writers and not self.stop.wait(POLL_SECONDS / 10):
            self._check_storage()

    def _check_storage(self) -> None:
        """Raise the error of a lease that could not be returned."""
        for handed in tuple(self._waiting):
            if handed.done():
                handed.result()

    def _hand_back(
        self, lease: str, labels: Sequence[LabelRow], inputs: Sequence[InputRow], progress: Progress
    ) -> None:
        # the times of the worker's stages so far: a short run may end between two of its records
        meta = {"progress": {**progress.record(), "stages": [asdict(stage) for stage in self._run.stages]}}
        self._leases.finish(lease, self.token, label_table(labels), input_table(inputs), meta)
        with self._lock:
            self._writers.pop(lease, None)
            self._finished = [Progress.total([*self._finished, progress])]

    def _counted(self, run: Progress) -> Progress:
        """Return the counts of all leases, with the times and the state of the run of the stages."""
        with self._lock:
            parts = [*self._finished, *(writer.progress for writer in self._writers.values())]
        total = Progress.total(parts)
        total.stages, total.seconds, total.interrupted = run.stages, run.seconds, run.interrupted
        total.stalled = run.stalled
        return total

    def _beat_until(self, ended: threading.Event) -> None:
        while not ended.wait(BEAT_SECONDS):
            with suppress(StoreError):  # the next beat follows soon, and observers tolerate a missing one
                self.beat()

    def beat(self) -> None:
        """Write the worker's record."""
        self._beat += 1
        with self._lock:
            leases = {lease: writer.progress.inputs for lease, writer in self._writers.items()}
        if self._claim is not None:
            leases.setdefault(self._claim, 0)
        counts = {**self.progress.record(), "low_range": []}  # the files of the leases contain the names
        record: dict[str, Any] = {
            **identity(),
            "name": self._name,
            "beat": self._beat,
            "state": self._state,
            "leases": leases,
            "progress": counts,
            "stalled": self.progress.stalled,
            "time": time.time(),
        }
        if self._error is not None:
            record["error"] = self._error
        self._leases.beat(self.token, record)


def _unknown(id: str) -> bool:
    return False
