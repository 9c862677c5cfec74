"""History of a store's labeling runs: one file per run in the folder ``history``, for the speeds in the report.

The labels do not depend on it; a store without the folder, or with a damaged file in it, is complete.
"""

from __future__ import annotations

import json
import secrets
from contextlib import suppress
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..model.storage import open_folder
from .progress import Progress
from .thread_stages import StageTime

HISTORY = "history"

_FIELDS: dict[str, Any] = {
    "time": str,
    "images": int,
    "duplicates": int,
    "rejects": int,
    "seconds": int | float,
    "interrupted": bool,
    "stages": list,
}
_STAGE = {field.name for field in fields(StageTime)}


def add_run(folder: Path, progress: Progress) -> None:
    """Add the counts and stage times of a run to the history of a store, unless it processed no input."""
    if not progress.inputs:
        return
    now = datetime.now(UTC)
    record = {
        "time": now.isoformat(timespec="seconds"),
        "planned": progress.planned,
        "limited": progress.limited,
        "images": progress.images,
        "duplicates": progress.duplicates,
        "rejects": sum(progress.rejects.values()),
        "seconds": progress.seconds,
        "interrupted": progress.interrupted,
        "drifted": progress.drifted,
        "bottleneck": progress.bottleneck,
        "stages": [vars(stage) for stage in progress.stages],
    }
    name = f"{now:%Y%m%dT%H%M%S%f}-{secrets.token_hex(4)}.json"
    with suppress(OSError):  # a full disk: the labels are committed, so missing speed figures are not an error
        open_folder(folder).write(f"{HISTORY}/{name}", f"{json.dumps(record)}\n".encode())


def read_history(folder: Path) -> list[dict[str, Any]]:
    """Read the runs of a store, oldest first; files that cannot be read are left out."""
    files = open_folder(folder)
    try:
        names = list(files.names(HISTORY))
    except OSError:
        return []
    runs = []
    for name in names:
        with suppress(OSError, ValueError, RecursionError):
            run = json.loads(files.read(f"{HISTORY}/{name}"))
            if _is_run(run):
                runs.append(run)
    return runs


def _is_run(run: Any) -> bool:
    """Return True if a value is a record of :func:`add_run`; raises :class:`ValueError` for an invalid time."""
    if not isinstance(run, dict) or not all(isinstance(run.get(name), kind) for name, kind in _FIELDS.items()):
        return False
    datetime.fromisoformat(run["time"])
    return all(isinstance(stage, dict) and stage.keys() == _STAGE for stage in run["stages"])
