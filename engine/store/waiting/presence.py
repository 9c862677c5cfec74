"""Heartbeats of processes: their identity, and whether they are alive.

Every process of a run writes a small record every few seconds, with a number that grows. A process counts as dead if
its record does not change for :data:`EXPIRY_SECONDS` by the clock of the observer, so clocks need not agree; on the
observer's own machine also as soon as its process id no longer exists. If a live process is wrongly considered dead,
time is lost, but never a row.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from ...model.storage import Folder
from ..waiting_count import DRIVER

BEAT_SECONDS = 5.0
"""Seconds between two records of a process."""
EXPIRY_SECONDS = 60.0
"""Seconds without a new record after which a process counts as dead."""
ENDED = ("finished", "interrupted", "failed")
"""States of a driver whose run has ended."""


def new_token() -> str:
    """Return a new name of a process, 12 hexadecimal digits."""
    return secrets.token_hex(6)


def identity() -> dict[str, Any]:
    """Return the identity of this process: host, process id, start time and a name of the machine."""
    return {"host": socket.gethostname(), "process": os.getpid(), "started": _started(os.getpid()), **_machine()}


def is_gone(record: Mapping[str, Any]) -> bool:
    """Return True if a record belongs to a process of this machine that no longer runs."""
    return _is_local(record) and _started(record.get("process")) != record.get("started")


def is_here(record: Mapping[str, Any]) -> bool:
    """Return True if a record belongs to a process that runs on this machine."""
    return _is_local(record) and _started(record.get("process")) == record.get("started")


def is_silent(record: Mapping[str, Any]) -> bool:
    """Return True if the process of a record no longer runs, or the record is old by the clocks of the two machines."""
    moment = record.get("time")
    return is_gone(record) or not isinstance(moment, int | float) or time.time() - moment > 2 * EXPIRY_SECONDS


def is_driven(folder: Folder) -> bool:
    """Return True if a running process commits the finished leases of a store."""
    try:
        record = json.loads(folder.read(DRIVER))
    except (FileNotFoundError, ValueError, RecursionError):
        return False
    return isinstance(record, dict) and record.get("state") not in ENDED and not is_silent(record)


def describe(record: Mapping[str, Any]) -> str:
    """Return host and process id in words."""
    return f"process {record.get('process')} on {record.get('host')}"


class Watcher:
    """Finds the dead ones among the processes that write records."""

    def __init__(self, expiry: float = EXPIRY_SECONDS) -> None:
        self._expiry = expiry
        self._seen: dict[str, tuple[Any, float]] = {}

    def is_dead(self, token: str, record: Mapping[str, Any] | None) -> bool:
        """Return True if the process ``token`` is dead; ``record`` is its latest one, None if there is none."""
        beat = None if record is None else record.get("beat")
        now = time.monotonic()
        last, since = self._seen.get(token, (None, now))
        if token not in self._seen or beat != last:
            since = now
        self._seen[token] = beat, since
        return now - since >= self._expiry or (record is not None and is_gone(record))


def _is_local(record: Mapping[str, Any]) -> bool:
    return bool(record.get("boot")) and {name: record.get(name) for name in ("boot", "pids")} == _machine()


@cache
def _machine() -> dict[str, str]:
    """Return ids of the current boot and of the process namespace; containers have their own process ids."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return {"boot": boot, "pids": os.readlink("/proc/self/ns/pid")}
    except OSError:
        return {"boot": "", "pids": ""}


def _started(process: object) -> str:
    """Return the start time of a process, empty if it does not run; process ids alone are reused."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
