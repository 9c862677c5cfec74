"""History of a store's labeling runs: ``history.jsonl``, one line per run, for the report's figures of speed.

The labels do not depend on it; a store without the file, or with a damaged line, is complete.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..model.storage import is_remote
from .progress import Progress

HISTORY_FILE = "history.jsonl"


def add_run(folder: Path, progress: Progress) -> None:
    """Append the counts and stage times of a run to the history of a store, unless it processed nothing."""
    if not progress.inputs or is_remote(folder):
        return
    line = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "images": progress.images,
        "duplicates": progress.duplicates,
        "rejects": sum(progress.rejects.values()),
        "seconds": progress.seconds,
        "interrupted": progress.interrupted,
        "bottleneck": progress.bottleneck,
        "stages": [vars(stage) for stage in progress.stages],
    }
    with suppress(OSError):  # a full disk: the labels are committed, and figures of speed are worth no error
        file = os.open(folder / HISTORY_FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(file, f"{json.dumps(line)}\n".encode())  # one call: lines of several processes never mix
        finally:
            os.close(file)


def read_history(folder: Path) -> list[dict[str, Any]]:
    """Read the runs of a store, oldest first; lines that cannot be read are left out."""
    try:
        lines = (folder / HISTORY_FILE).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    runs = []
    for line in lines:
        with suppress(ValueError):
            run = json.loads(line)
            if isinstance(run, dict) and isinstance(run.get("stages"), list):
                runs.append(run)
    return runs
