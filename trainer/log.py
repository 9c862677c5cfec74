"""The log of a run: ``log.csv``, and the same figures as TensorBoard events.

Columns of ``log.csv``: ``step`` (finished steps), ``lr`` (of the backbone), ``loss`` (of that step), a column for each
term and figure of the recipe's objectives (empty in stages that do not have it), ``images_per_second`` and ``waited``
(share of the time spent waiting for data) since the row before, and ``miou`` on the validation images, where they were
evaluated at that step. Rows after the checkpoint that a run goes on from are dropped.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import MissingPackageError

LOG_FILE, EVENTS = "log.csv", "tensorboard"


class RunLog:
    """Adds rows to the log of a run that goes on from ``step``; use it in a ``with`` statement."""

    def __init__(self, folder: Path, *, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingPackageError("tensorboard", "train", "the log of a training run") from error
        self._path = folder / LOG_FILE
        self._rows = [row for row in read_log(folder) if int(row["step"]) <= step]
        self._columns = list(self._rows[0]) if self._rows else ["step"]
        self._file = self._rewritten()
        self._events = SummaryWriter(str(folder / EVENTS), purge_step=step + 1)

    def _rewritten(self) -> Any:
        file = self._path.open("w", newline="", encoding="utf-8")
        self._writer = csv.DictWriter(file, self._columns, restval="")
        self._writer.writeheader()
        self._writer.writerows(self._rows)
        file.flush()
        return file

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """A row for a finished step."""
        row = {"step": step, **values}
        self._rows.append(row)
        if new := [name for name in row if name not in self._columns]:
            # another stage has other terms
            self._columns += new
            self._file.close()
            self._file = self._rewritten()
        else:
            self._writer.writerow(row)
            self._file.flush()
        for name, value in values.items():
            self._events.add_scalar(name, value, step)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()
        self._events.close()


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's log, as text; none where it has no log yet."""
    path = folder / LOG_FILE
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
