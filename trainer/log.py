"""Training log: ``log.csv``, and the same figures as TensorBoard events.

Columns of ``log.csv``: ``step`` (finished steps), ``lr`` (of the backbone), ``loss`` (of that step), a column per term
and figure of the objectives (empty in phases without it), ``images_per_second`` and ``waited`` (share of the time spent
waiting for data) since the previous row, and, in rows with an evaluation, the figures on the validation images:
``miou``, ``accuracy``, ``confidence`` (mean of the highest probability), ``ece`` (expected calibration error) and
``temperature`` (which minimizes the negative log-likelihood). When a run resumes, rows after its checkpoint are
dropped.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from ..engine.model.files import read_text
from ..errors import MissingPackageError, TrainingError

_NAME = re.compile(r"[a-zA-Z][\w ./:()-]*")
"""Column; a spreadsheet would run one that begins with another sign, such as =."""
LOG_FILE, EVENTS = "log.csv", "tensorboard"


class RunLog:
    """Context manager that appends rows to the log of a run that starts or resumes at ``step``."""

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

    def _rewritten(self) -> TextIO:
        file = self._path.open("w", newline="", encoding="utf-8")
        self._writer = csv.DictWriter(file, self._columns, restval="")
        self._writer.writeheader()
        self._writer.writerows(self._rows)
        file.flush()
        return file

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Append a row for a finished step."""
        row = {"step": step, **values}
        self._rows.append(row)
        if new := [name for name in row if name not in self._columns]:
            # a new phase has other terms
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
    """Read the rows of the log of a run, as text; an empty list if it has no log yet.

    Raises :class:`TrainingError` for a file that :class:`RunLog` does not write, with other names than words or cells
    that are no numbers.
    """
    path = folder / LOG_FILE
    if not path.is_file():
        return []
    text = read_text(path, "the log", error=TrainingError)
    text = text[: text.rfind("\n") + 1]  # a run that was killed may have left a part of a row
    try:
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
        for row in rows:
            if not all(isinstance(name, str) and _NAME.fullmatch(name) for name in row):
                raise ValueError("a column has no name, or another than a word")
            int(row["step"])
            for cell in filter(None, row.values()):
                float(cell)
    except (ValueError, TypeError, KeyError, csv.Error) as error:
        raise TrainingError(f"{path} is damaged ({error}); delete it, and run the same command again") from error
    return rows
