"""Count finished images and pass them to the sink in batches: the last stage of a labeling run."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from ..store.label_store import InputRow, LabelRow
from .progress import Progress

COMMIT_ROWS = 512
"""Pass rows on when this many are waiting …"""
COMMIT_SECONDS = 10.0
"""… or when one has waited this long, in seconds …"""
LARGEST_BYTES = 256 << 20
"""… or they hold more than this in memory."""


class Sink(Protocol):
    """Receiver of finished rows, such as :class:`~maskmill.engine.store.waiting.waiting_rows.WaitingRows`."""

    def has_id(self, id: str) -> bool:
        """Return True if the labels of an image exist already, those passed to :meth:`commit` included."""
        ...

    def commit(self, labels: Sequence[LabelRow], inputs: Sequence[InputRow]) -> None:
        """Accept rows, all or nothing."""
        ...


@dataclass(frozen=True, kw_only=True)
class Done:
    """One finished input."""

    input: InputRow
    num_bytes: int
    id: str | None = None
    label: LabelRow | None = None


class Writer:
    """Counts finished inputs and passes them to the sink in batches.

    Without a sink it only counts. ``observer`` is called with every input. Ids of images are remembered until the sink
    has them, those of rejected ones to the end.
    """

    def __init__(self, progress: Progress, sink: Sink | None, observer: Callable[[Done], None] | None = None) -> None:
        self.progress = progress
        """Counts of the inputs that were written."""
        self._sink = sink
        self._observer = observer
        self._claimed: set[str] = set()
        self._claim_lock = threading.Lock()
        self._labels: list[LabelRow] = []
        self._inputs: list[InputRow] = []
        self._labeled: set[str] = set()
        self._rejected: dict[str, InputRow] = {}
        self._waiting: dict[str, list[InputRow]] = {}
        self._since: float | None = None
        self._num_bytes = 0

    def claim(self, id: str) -> bool:
        """Return True if the labels of an image do not exist and no other caller has claimed it."""
        with self._claim_lock:
            known = id in self._claimed or self._knows(id)
            self._claimed.add(id)
        return not known

    def write(self, done: Done) -> None:
        """Accept a finished input; passes rows on when a batch is full or old enough."""
        if self._observer is not None:
            self._observer(done)
        self.progress.input_bytes += done.num_bytes
        if done.label is not None:
            self._add_label(done.label, done.input)
        elif done.input.error is not None:
            self._reject(done.input, done.id)
        elif done.id in self._rejected:
            self._reject(_rejected_like(done.input, self._rejected[done.id]), None)
        elif done.id in self._labeled or self._knows(done.id or ""):
            self._add_duplicate(done.input)
        else:
            # this duplicate finished before its original: its row must not refer to labels that do not exist yet
            self._waiting.setdefault(done.id or "", []).append(done.input)
        self.idle()

    def idle(self) -> None:
        """Pass rows on if enough are waiting, or the oldest has waited long enough."""
        if self._since is None:
            return
        is_late = time.monotonic() - self._since >= COMMIT_SECONDS
        if is_late or len(self._inputs) >= COMMIT_ROWS or self._num_bytes >= LARGEST_BYTES:
            self.flush()

    def flush(self) -> None:
        """Pass on every waiting row."""
        if self._sink is not None and self._inputs:
            self._sink.commit(self._labels, self._inputs)
            with self._claim_lock:
                self._claimed -= self._labeled  # the sink knows them now
            self._labeled.clear()
        self._labels, self._inputs, self._since, self._num_bytes = [], [], None, 0

    def _knows(self, id: str) -> bool:
        return self._sink is not None and self._sink.has_id(id)

    def _add_label(self, label: LabelRow, row: InputRow) -> None:
        progress = self.progress
        progress.images += 1
        progress.pixels += label.width * label.height
        progress.kept += label.counts
        progress.label_bytes += len(label.label)
        progress.weight_bytes += len(label.weight)
        self._num_bytes += len(label.label) + len(label.weight) + len(label.scores or b"") + len(label.instances or b"")
        self._labels.append(label)
        self._labeled.add(label.id)
        self._append(row)
        for duplicate in self._waiting.pop(label.id, []):
            self._add_duplicate(duplicate)

    def _add_duplicate(self, row: InputRow) -> None:
        self.progress.duplicates += 1
        self._append(row)

    def _reject(self, row: InputRow, id: str | None) -> None:
        self.progress.rejects[row.error or ""] += 1
        self._append(row)
        if id is not None:
            self._rejected[id] = row
            for duplicate in self._waiting.pop(id, []):
                self._reject(_rejected_like(duplicate, row), None)

    def _append(self, row: InputRow) -> None:
        self._inputs.append(row)
        if self._since is None:
            self._since = time.monotonic()


def _rejected_like(row: InputRow, example: InputRow) -> InputRow:
    return replace(row, id=None, error=example.error, message=example.message)
