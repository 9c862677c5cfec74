"""Count finished inputs that wait for a commit, and warn readers that they are not read."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import Any

from ...errors import WaitingRowsWarning
from ..model.storage import open_folder

LEASES = "leases"
"""Folder of a store that holds unfinished work of runs of several processes, see :mod:`maskmill.engine.cluster`."""
WAITING = f"{LEASES}/waiting"
"""Folder of the finished rows of runs in one process."""
DONE = f"{LEASES}/done"
"""Folder of the finished rows of runs of several processes."""
OPEN = f"{LEASES}/open"
"""Folder of the inputs that runs of several processes have planned."""
CLAIMS = f"{LEASES}/claims"
"""Folder of the claims: which worker labels which lease."""
DRIVER = f"{LEASES}/driver.json"
"""Record of the process that commits them."""

_warned: set[str] = set()


def num_waiting_rows(store: str | os.PathLike[str], options: Mapping[str, Any] | None = None) -> int:
    """Count the inputs in files of runs in one process that wait for a commit."""
    return sum(map(_num_rows, open_folder(store, options).names(WAITING)))


def waiting_text(store: str | os.PathLike[str]) -> str:
    """Return a message about the finished inputs that wait for a commit, with advice; empty if there are none."""
    folder = open_folder(store)
    number = sum(map(_num_rows, [*folder.names(WAITING), *folder.names(DONE)]))
    if not number:
        return ""
    return (
        f"{number:,} finished input{' of' if number == 1 else 's of'} {store} wait{'s' if number == 1 else ''} for a "
        "commit and will not be read; unless a run is at work on the store, run its label command again"
    )


def warn_of_waiting_rows(store: str | os.PathLike[str]) -> None:
    """Warn, once per process and store, if finished inputs of a store wait for a commit."""
    if str(store) not in _warned and (text := waiting_text(store)):
        _warned.add(str(store))
        warnings.warn(text, WaitingRowsWarning, stacklevel=3)


def _num_rows(name: str) -> int:
    number = name.rpartition("~")[2]
    return int(number) if number.isdecimal() else 0
