"""Entries of list files: text, CSV and Parquet. An entry that cannot be used has a ``problem``; the others are read."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

from ...checks import name_list
from ...errors import SourceError
from ..model.files import list_lines
from ..reading.parquet import open_parquet, texts_of
from ..reading.remote import extension
from .tables.columns import IMAGE_NAMES, is_bytes

LISTS = (".txt", ".csv", ".parquet")
"""Endings of list files."""
COLUMNS = ("image", "uri", "path", "url")
"""Columns of a CSV or Parquet list that may hold the images, in search order."""
_ROWS = 8192
"""Rows of a Parquet list that are read at once."""
MAX_LINE = 1 << 16
"""Longest line of a list, in bytes."""
MAX_LIST_BYTES = 1 << 30
"""Largest text or CSV list, in bytes."""

_MOST_DAMAGED_ROWS = 1 << 20  # most rows of a row group: a damaged file may claim any number
_TEXT = "a list holds one path or URL per line in UTF-8"


class Entry(NamedTuple):
    """One entry of a list."""

    name: str
    """Path or URL; for an entry that cannot be used, its line."""
    problem: str = ""
    """Reason why it cannot be used."""


def list_entries(file: IO[bytes], name: str) -> Iterator[Entry]:
    """Yield the entries of the text, CSV or Parquet list ``name``, in order.

    Text has one entry per line, see :func:`maskmill.engine.model.files.list_lines`. A CSV file has a header with one of
    :data:`COLUMNS`. Raises :class:`SourceError` for anything else: a file whose first line is not text, or that has
    none of these columns. Later entries that cannot be used have a ``problem``.
    """
    ending = extension(name)
    if ending == ".parquet":
        yield from _parquet_entries(file, name)
    elif ending == ".csv":
        yield from _csv_entries(file, name)
    else:
        for line in _text_lines(file, name):
            if line.problem:
                yield line
            else:
                yield from map(Entry, list_lines([line.name]))


def _text_lines(file: IO[bytes], name: str) -> Iterator[Entry]:
    total = 0
    number = 0
    while line := file.readline(MAX_LINE):
        number += 1
        total += len(line)
        if total > MAX_LIST_BYTES:
            raise SourceError(f"{name} has more than {MAX_LIST_BYTES:,} bytes; split the list")
        problem = ""
        text = ""
        if len(line) == MAX_LINE and not line.endswith(b"\n"):
            problem = f"it is longer than {MAX_LINE:,} bytes"
            while (remainder := file.readline(MAX_LINE)) and not remainder.endswith(b"\n"):
                total += len(remainder)
                if total > MAX_LIST_BYTES:
                    break
        else:
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError:
                problem = _TEXT
            if "\0" in text:
                problem = "a list holds one path or URL per line, got binary data"
        if problem and number == 1:
            raise SourceError(f"{name}, line 1: {problem}")
        yield Entry(f"{name}, line {number}", problem) if problem else Entry(text)


def _csv_entries(file: IO[bytes], name: str) -> Iterator[Entry]:
    problems: list[Entry] = []

    def texts() -> Iterator[str]:
        for line in _text_lines(file, name):
            if line.problem:
                problems.append(line)
                # the CSV reader counts lines
                yield ""
            else:
                yield line.name

    rows = csv.reader(texts())
    try:
        header = [column.strip() for column in next(rows, [])]
        columns = [column for column in COLUMNS if column in header]
        if not columns:
            raise SourceError(
                f"{name} needs a header line with a column named {', '.join(COLUMNS[:-1])} or {COLUMNS[-1]}; "
                f"its first line is {', '.join(header)[:200] or 'empty'}"
            )
        place = header.index(columns[0])
        for row in rows:
            yield from problems
            problems.clear()
            if not any(value.strip() for value in row):
                continue
            if len(row) <= place or not row[place].strip():
                yield Entry(f"{name}, line {rows.line_num}", f"the column {columns[0]} is empty")
            else:
                yield Entry(row[place].strip())
        yield from problems
    except csv.Error as error:
        raise SourceError(f"{name}, line {rows.line_num}, is not CSV: {error}") from error


def _parquet_entries(file: IO[bytes], name: str) -> Iterator[Entry]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(file)
        schema = table.schema_arrow
        strings = [
            column.name for column in schema if pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
        ]
        columns = [column for column in COLUMNS if column in strings]
        data = [column.name for column in schema if is_bytes(column.type)]
        if not columns and (len(strings) != 1 or data):
            hint = f"; {data[0]} holds bytes: rename it to image, if they are images" if data else ""
            raise SourceError(
                f"{name} needs paths in a column of strings named {', '.join(COLUMNS[:-1])} or {COLUMNS[-1]} (or its "
                f"only column of strings), or images in a column of bytes named {', '.join(IMAGE_NAMES[:-1])} or "
                f"{IMAGE_NAMES[-1]}; it has {name_list(schema.names)}{hint}"
            )
        start, column = 0, (columns or strings)[0]
        table = open_parquet(file, [column])
        for group in range(table.num_row_groups):
            yield from _group_entries(table, group, column, start, name)
            start += table.metadata.row_group(group).num_rows
    except (pa.ArrowException, OSError, ValueError) as error:
        raise SourceError(f"{name} is not a Parquet file that can be read: {error}") from error


def _group_entries(table: Any, group: int, column: str, start: int, name: str) -> Iterator[Entry]:
    """Yield the entries of a row group; if it is damaged, the rest of its rows are entries with a problem."""
    import pyarrow as pa

    row, end = start, start + table.metadata.row_group(group).num_rows
    try:
        for batch in table.iter_batches(batch_size=_ROWS, row_groups=[group], columns=[column]):
            for entry in texts_of(batch.column(0)):
                row += 1
                yield Entry(entry) if entry else Entry(f"{name}, row {row}", "the path is missing")
    except (pa.ArrowException, OSError, ValueError) as error:
        if "://" in name or end - row > _MOST_DAMAGED_ROWS:
            raise
        for number in range(row + 1, end + 1):
            yield Entry(f"{name}, row {number}", f"the row group {group} of the list is damaged: {error}")
