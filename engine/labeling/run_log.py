"""Log of a run: one JSON object per event and line, appended to a file.

======================  ==============================================================================================
``start``               ``store``, ``runner``, ``process``, ``host``; of a calibration, ``store`` is its file
``lease claimed``       ``lease``, ``worker``; of runs with leases
``lease finished``      ``lease``, ``worker``, ``inputs``
``commit``              ``inputs``, ``seconds``; with leases also ``leases``
``reject``              ``uri``, ``kind``, ``message``
``stall``               ``stage`` of one image for half a minute; with leases also ``worker``
``warning``             ``message``, such as the death of a worker
``end``                 ``state`` (finished, interrupted, failed), ``images``, ``duplicates``, ``rejects``, ``seconds``
======================  ==============================================================================================

Every line has ``time`` (UTC) and ``event`` as well. Several processes may write to one file on a local disk.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ...errors import UsageError
from .progress import Progress


class RunLog:
    """Writes events to a file; without a path it writes nothing."""

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        """Open the log; raises :class:`UsageError` if the file cannot be written."""
        self._path = None if path is None else Path(path)
        self._stalled: set[str] = set()
        self.has_ended: bool = False
        """The end of the run was noted."""
        if self._path is not None:
            try:
                self._path.open("ab").close()
            except OSError as error:
                raise UsageError(f"cannot write the log {path}: {error.strerror}; give --log another file") from error

    def write(self, event: str, **fields: Any) -> None:
        """Append an event; on a full disk the line is lost, but the run continues."""
        if self._path is None:
            return
        record = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **fields}
        data = f"{json.dumps(record)}\n".encode()
        with suppress(OSError):
            file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(file, data)  # a single call, so that lines of several processes never mix
            finally:
                os.close(file)

    def start(self, store: Any, runner: str) -> None:
        """Note the start of a run."""
        self.write("start", store=str(store), runner=runner, process=os.getpid(), host=socket.gethostname())

    def stall(self, stage: str, **fields: Any) -> None:
        """Note once that a stage has worked on one image for too long; an empty name means that none has."""
        if stage and stage not in self._stalled:
            self.write("stall", stage=stage, **fields)
        self._stalled = {stage} if stage else set()

    @contextmanager
    def noted(self, output: Any, runner: str) -> Iterator[Progress]:
        """Note the start and the end of other work than labeling; it fills in the images of the yielded counts."""
        self.start(output, runner)
        progress, started, state = Progress(), time.monotonic(), "failed"
        try:
            yield progress
            state = "finished"
        except KeyboardInterrupt:
            state = "interrupted"
            raise
        finally:
            progress.seconds = time.monotonic() - started
            self.end(state, progress)

    def end(self, state: str, progress: Progress) -> None:
        """Note the end of a run and its counts."""
        self.has_ended = True
        self.write(
            "end",
            state=state,
            images=progress.images,
            duplicates=progress.duplicates,
            rejects=dict(progress.rejects),
            seconds=round(progress.seconds, 3),
        )
