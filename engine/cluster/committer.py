"""Committer: merges the rows of finished leases into the store, many at a time.

A merge into a large store costs about the same for 512 rows as for 65,536, so finished leases wait for each other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...errors import StoreError
from ..labeling.progress import Progress
from ..labeling.run_log import RunLog
from ..labeling.thread_stages import StageTime
from ..store.label_store import InputRow, LabelStore
from ..store.waiting.memory import release_memory
from ..store.waiting.row_files import DamagedFile, are_first, last_of_each_uri
from .leases import Finished, Leases
from .records import counts_of

COMMIT_ROWS = 65_536
"""Commit when this many rows are waiting …"""
COMMIT_SECONDS = 300.0
"""… or when a lease has waited this long, in seconds …"""
COMMIT_BYTES = 512 << 20
"""… or when the waiting leases have this size."""


class Committer:
    """Commits finished leases into a store::

    committer = Committer(store, leases, complete=withdraw_or_lease_again)
    committer.step(leases.finished())
    """

    def __init__(
        self,
        store: LabelStore,
        leases: Leases,
        complete: Callable[[Finished, pa.Table], bool],
        log: RunLog | None = None,
    ) -> None:
        """Create a committer; ``complete`` is called with a lease and its committed inputs before its file is deleted.

        It returns False if the lease was committed earlier; its counts are then left out.
        """
        self.progress = Progress()
        """Counts of everything that was committed; an image that two leases hold counts as a duplicate."""
        self.stages: dict[str, list[StageTime]] = {}
        """Items and times of the stages of each worker, as of its last committed lease."""
        self.seconds = 0.0
        """Time in commits."""
        self.num_commits = 0
        """Number of commits."""
        self.num_rows = 0
        """Number of committed inputs."""
        self.store = store
        """Store that is committed to."""
        self._leases = leases
        self._complete = complete
        self._log = log or RunLog()
        self._since: float | None = None
        self._attempted: set[str] = set()  # images of failed commits, which may be stored nevertheless

    def step(self, finished: Sequence[Finished], *, flush: bool = False) -> bool:
        """Commit if enough leases wait or the first has waited long enough; with ``flush`` in any case.

        Returns True if something was committed. Raises :class:`StoreError`; the leases stay then, and the step may be
        repeated.
        """
        if not finished:
            self._since = None
            return False
        self._since = self._since or time.monotonic()
        num_rows, num_bytes = (sum(getattr(done, name) for done in finished) for name in ("num_rows", "num_bytes"))
        is_late = time.monotonic() - self._since >= COMMIT_SECONDS
        if not (flush or is_late or num_rows >= COMMIT_ROWS or num_bytes >= COMMIT_BYTES):
            return False
        for batch in _batches(finished):
            self._commit(batch)
            release_memory(sum(done.num_bytes for done in batch))
        self._since = None
        return True

    def reject(self, row: InputRow) -> None:
        """Commit a reject for an input that crashes every worker, so that no worker can record it."""
        self.store.commit([], [row])
        self.progress.rejects[row.error or ""] += 1

    def _commit(self, batch: Sequence[Finished]) -> None:
        started = time.monotonic()
        parts: list[tuple[Finished, pa.Table, pa.Table, Progress]] = []
        for outcome in batch:
            try:
                rows = self._leases.rows(outcome)
            except DamagedFile:
                # half-written or damaged: its inputs are labeled again
                self._leases.forget(outcome)
                self._leases.release(outcome.lease)
                continue
            if rows is not None:
                parts.append((outcome, rows[0], rows[1], counts_of(rows[2]) or Progress()))
        if not parts:
            return
        labels = pa.concat_tables([part[1] for part in parts])
        inputs = pa.concat_tables([part[2] for part in parts])
        is_known = self.store.are_known(labels["id"])
        if self._attempted:
            is_known &= ~np.array([id in self._attempted for id in labels["id"].to_pylist()], bool)
        is_new = are_first(labels) & ~is_known
        new_labels = labels if is_new.all() else labels.filter(pa.array(is_new))  # which copies them
        try:
            self.store.commit_tables(new_labels, last_of_each_uri(inputs))
        except StoreError:
            self._attempted.update(new_labels["id"].to_pylist())
            raise
        if self._attempted:
            self._attempted.difference_update(new_labels["id"].to_pylist())
        start = 0
        for outcome, part, part_inputs, progress in parts:
            stop = start + len(part)
            if self._complete(outcome, part_inputs):
                _count_duplicates(progress, part.filter(pa.array(~is_new[start:stop])))
                self.stages[outcome.worker], progress.stages = progress.stages, []
                self.progress = Progress.total([self.progress, progress])
            self._leases.forget(outcome)
            start = stop
        seconds = time.monotonic() - started
        self._log.write("commit", inputs=len(inputs), seconds=round(seconds, 4), leases=len(parts))
        for row in inputs.filter(pc.is_valid(inputs["error"])).select(["uri", "error", "message"]).to_pylist():
            self._log.write("reject", uri=row["uri"], kind=row["error"], message=row["message"])
        self.seconds += seconds
        self.num_commits += 1
        self.num_rows += len(inputs)


def _batches(outcomes: Sequence[Finished]) -> list[list[Finished]]:
    batches: list[list[Finished]] = [[]]
    num_rows = num_bytes = 0
    for outcome in outcomes:
        if batches[-1] and (
            num_rows + outcome.num_rows > 2 * COMMIT_ROWS or num_bytes + outcome.num_bytes > 2 * COMMIT_BYTES
        ):
            batches.append([])
            num_rows = num_bytes = 0
        batches[-1].append(outcome)
        num_rows, num_bytes = num_rows + outcome.num_rows, num_bytes + outcome.num_bytes
    return batches


def _count_duplicates(progress: Progress, labels: pa.Table) -> None:
    """Count images as duplicates whose labels another lease, or the store, holds already."""
    if not len(labels):
        return
    progress.images -= len(labels)
    progress.duplicates += len(labels)
    progress.pixels -= int(np.dot(labels["width"].to_numpy().astype(np.int64), labels["height"].to_numpy()))
    progress.kept = progress.kept - np.array(labels["counts"].to_pylist(), np.int64).sum(axis=0)
    progress.label_bytes -= pc.sum(pc.binary_length(labels["label"])).as_py()
    progress.weight_bytes -= pc.sum(pc.binary_length(labels["weight"])).as_py()
