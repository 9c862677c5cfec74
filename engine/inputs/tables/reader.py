"""Reading images from tables, one piece at a time; the last few pieces stay in memory.

A piece is the unit that the format reads: a row group of a Parquet file, a record batch of an Arrow file, 64 rows of a
Lance dataset. Workers read the images of a lease in order, so each piece is read about once.
"""

from __future__ import annotations

import os
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import accumulate, repeat
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from ....errors import ImageError, SourceError
from ...model.storage import lance_options, lance_url
from ...reading import remote
from ...reading.access import Access, is_bucket
from ...reading.parquet import open_parquet, texts_of
from ...reading.retries import may_pass
from .columns import Columns, flat_column, image_columns

if TYPE_CHECKING:
    import lance
    import pyarrow as pa

PIECES = 3
"""Number of pieces that stay in memory."""
LANCE_ROWS = 64
"""Rows of a piece of a Lance dataset."""
ENDINGS = (".parquet", ".lance", ".arrow")
"""Endings of tables."""
_TABLES = 64  # open tables
_MOST_DAMAGED_ROWS = 1 << 20  # most rows of a piece: a damaged file may claim any number

Opener = Callable[[], Any]
"""Opens a table behind a URL: a file, or a Lance dataset."""


def opener_of(location: str, options: Mapping[str, Any], access: Access) -> Opener | None:
    """Return the function that opens a table behind a URL; None for a local one."""
    if "://" not in location:
        return None
    if location.endswith(".lance"):
        return partial(_open_lance, location, options, access)

    def opener() -> BinaryIO:
        filesystem, path = remote.filesystem(location, options, access)
        return filesystem.open(path, "rb")

    return opener


def _open_lance(url: str, options: Mapping[str, Any], access: Access) -> lance.LanceDataset:
    import lance

    if not is_bucket(url):
        raise SourceError(f"{url} is neither on a disk nor in a bucket; copy the Lance dataset to one of them")
    return lance.dataset(lance_url(url), storage_options=lance_options(remote.options_for(url, options, access)))


class Table(Protocol):
    """An open table of images."""

    columns: Columns
    starts: list[int]
    """Number of the first row of each piece, followed by the number of all rows."""

    def read(self, piece: int, column: str) -> pa.Array:
        """Read a column of a piece, an Arrow array."""
        ...


class _Parquet:
    def __init__(self, file: Any, name: str) -> None:
        columns = image_columns(open_parquet(file).schema_arrow, name)
        if columns is None:
            raise SourceError(f"{name} has no column of images")
        self.columns: Columns = columns
        self._file = open_parquet(file, filter(None, columns))
        groups = self._file.metadata
        sizes = (groups.row_group(index).num_rows for index in range(groups.num_row_groups))
        self.starts: list[int] = [0, *accumulate(sizes)]

    def read(self, piece: int, column: str) -> pa.Array:
        return flat_column(self._file.read_row_group(piece, columns=[column]), column)


class _Arrow:
    def __init__(self, path: str) -> None:
        import pyarrow as pa

        with pa.memory_map(path) as file:
            reader = pa.ipc.open_stream(file)
            columns = image_columns(reader.schema, path)
            if columns is None:
                raise SourceError(f"{path} has no column of images")
            # the batches are views of the file: nothing is read yet
            self._batches = list(reader)
        self.columns: Columns = columns
        self.starts: list[int] = [0, *accumulate(len(batch) for batch in self._batches)]

    def read(self, piece: int, column: str) -> pa.Array:
        return flat_column(self._batches[piece], column)


class _Lance:
    def __init__(self, path: str, opener: Opener | None) -> None:
        import lance

        self._dataset = lance.dataset(path) if opener is None else opener()
        columns = image_columns(self._dataset.schema, path)
        if columns is None:
            raise SourceError(f"{path} has no column of images")
        self.columns: Columns = columns
        num_rows = self._dataset.count_rows()
        self.starts: list[int] = [*range(0, num_rows, LANCE_ROWS), num_rows]

    def read(self, piece: int, column: str) -> pa.Array:
        rows = list(range(self.starts[piece], self.starts[piece + 1]))
        first = column.split(".")[0]
        return flat_column(self._dataset.take(rows, columns=[first]), column)


class _Cache:
    """Open tables and the pieces that were read last; it is thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tables: OrderedDict[tuple[str, Any], tuple[Table, threading.Lock]] = OrderedDict()
        self._pieces: OrderedDict[tuple[str, Any, int], Any] = OrderedDict()

    def table(self, path: str, opener: Opener | None) -> tuple[Table, threading.Lock, Any]:
        mark = None
        if opener is None:
            status = os.stat(path)
            mark = status.st_mtime_ns, status.st_size
        with self._lock:
            if (path, mark) in self._tables:
                self._tables.move_to_end((path, mark))
                return (*self._tables[path, mark], mark)
        new_table = open_table(path, opener)
        with self._lock:
            entry = self._tables.setdefault((path, mark), (new_table, threading.Lock()))
            while len(self._tables) > _TABLES:
                self._tables.popitem(last=False)
        return (*entry, mark)

    def piece(self, path: str, opener: Opener | None, row: int) -> tuple[Any, int]:
        """Return the images of the piece that holds a row, and the row's place in it; raises IndexError."""
        table, lock, mark = self.table(path, opener)
        if not 0 <= row < table.starts[-1]:
            raise IndexError(row)
        number = bisect_right(table.starts, row) - 1
        key = path, mark, number
        with lock:  # if several threads need a piece, one reads it
            with self._lock:
                values = self._pieces.get(key)
                if values is not None:
                    self._pieces.move_to_end(key)
            if values is None:
                values = table.read(number, table.columns.image)
                with self._lock:
                    self._pieces[key] = values
                    while len(self._pieces) > PIECES:
                        self._pieces.popitem(last=False)
        return values, row - table.starts[number]


_CACHE = _Cache()


def open_table(path: str, opener: Opener | None = None) -> Table:
    """Open a table of images; raises :class:`SourceError` if it holds none, and the errors of Arrow and Lance."""
    if path.endswith(".lance"):
        return _Lance(path, opener)
    if path.endswith(".arrow"):
        return _Arrow(path)
    return _Parquet(path if opener is None else opener(), path)


def row_names(table: Table) -> Iterator[tuple[str | None, str]]:
    """Yield the name of each row, None if it has none, and the reason why it cannot be read, empty if it can.

    The rows of a damaged piece have a reason. Raises the errors of a server that may be temporary.
    """
    name = table.columns.name
    for piece in range(len(table.starts) - 1):
        size = table.starts[piece + 1] - table.starts[piece]
        if name is None:
            yield from repeat((None, ""), size)
            continue
        try:
            names = texts_of(table.read(piece, name))
        except Exception as error:
            # Arrow and Lance raise exceptions of their own
            if may_pass(error) or size > _MOST_DAMAGED_ROWS:
                raise
            first, last = table.starts[piece], table.starts[piece + 1] - 1
            yield from repeat((None, f"rows {first} to {last} of the table are damaged: {remote.reason(error)}"), size)
        else:
            yield from ((name, "") for name in names)


def read_row(path: str, row: int, largest: int, opener: Opener | None = None) -> bytes:
    """Read the image in a row of a table; raises :class:`ImageError`, and the errors of Arrow and Lance."""
    import pyarrow as pa

    try:
        values, place = _CACHE.piece(path, opener, row)
    except IndexError:
        raise ImageError("unreadable", f"{path} has no row {row}") from None
    value = values[place]
    if isinstance(value, pa.DictionaryScalar):  # several rows share it
        value = value.value
    if value is None or not value.is_valid:
        raise ImageError("unreadable", f"row {row} of {path} holds no image")
    size = value.as_buffer().size
    if size > largest:
        raise ImageError("too-large", f"row {row} of {path} has {size:,} bytes; at most {largest:,} are read")
    return value.as_py()


def piece_of(path: str, row: int, opener: Opener | None = None) -> tuple[str, int]:
    """Return the piece of a table that holds a row."""
    table, _, _ = _CACHE.table(path, opener)
    return path, bisect_right(table.starts, row) - 1
