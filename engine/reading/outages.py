"""Outages of storage: access is retried for minutes if the storage has answered before."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable
from typing import TypeVar

from ...errors import StorageOutageWarning
from .access import Cancelled
from .retries import is_interrupted, wait_for_interrupt

Result = TypeVar("Result")

OUTAGE_SECONDS = 600.0
"""Longest time in seconds for which a failed access is retried."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 20.0
_ANSWERED: set[str] = set()  # places that this process has reached
_AWAY: set[str] = set()  # places that it is waiting for


def wait_out(
    access: Callable[[], Result],
    may_pass: Callable[[Exception], bool],
    place: str | None = None,
    cancelled: threading.Event | None = None,
) -> Result:
    """Call ``access`` until it succeeds or fails for a permanent reason.

    ``may_pass`` returns True for a temporary failure. ``place`` is the URL of a bucket that may be unreachable: the
    first access to it is not retried, since its address may be wrong; nor is any access after an interrupt. Raises the
    last failure, :class:`Cancelled` once ``cancelled`` is set, and :class:`OSError` after :data:`OUTAGE_SECONDS`.
    """
    started, pause = time.monotonic(), _FIRST_PAUSE
    name = place or "the storage"
    while True:
        try:
            result = access()
        except Exception as error:
            # every storage raises exceptions of its own
            if is_interrupted() or not (place is None or place in _ANSWERED) or not may_pass(error):
                raise
            if time.monotonic() - started + pause > OUTAGE_SECONDS:
                _AWAY.discard(name)
                raise OSError(f"the storage does not answer: {error}") from error
            if name not in _AWAY:  # only one of many threads warns
                _AWAY.add(name)
                warnings.warn(
                    f"{name} has not answered since {time.strftime('%H:%M:%S')} ({error}); "
                    f"waiting for up to {OUTAGE_SECONDS / 60:.0f} minutes",
                    StorageOutageWarning,
                    stacklevel=3,
                )
        else:
            _AWAY.discard(name)
            if place is not None:
                _ANSWERED.add(place)
            return result
        if cancelled is None:
            wait_for_interrupt(pause)
        elif cancelled.wait(pause):
            raise Cancelled
        pause = min(2 * pause, _LONGEST_PAUSE)


def has_answered(place: str) -> bool:
    """Return True if this process has reached a place."""
    return place in _ANSWERED
