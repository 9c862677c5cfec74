"""Tables of images among files and folders, and the names of their rows."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ....errors import SourceError, UsageError
from ...model.schema import read_json_object
from ...reading.remote import extension
from .columns import image_columns
from .reader import ENDINGS, Opener, open_table, row_names
from .reader import piece_of as read_piece

_ROW = re.compile(rf"(?P<table>.+(?:{'|'.join(map(re.escape, ENDINGS))}))::(?P<row>\d+)(?:/.*)?", re.DOTALL)
_SAVED, _INFO, _SPLITS = "state.json", "dataset_info.json", "dataset_dict.json"


def tables_at(path: str) -> list[str] | None:
    """Return the tables of images at a path: the path itself, or those of a saved data set; None if there are none.

    Raises :class:`SourceError` for a saved data set that is damaged.
    """
    if os.path.isdir(path):
        if path.rstrip("/").endswith(".lance"):
            return [path.rstrip("/")]
        return _saved_tables(path)
    if not os.path.isfile(path):
        return None  # a named pipe, say, which would never answer
    if path.endswith(".arrow"):
        return [path]
    if path.endswith(".parquet"):
        with open(path, "rb") as file:
            return [path] if holds_images(file, path) else None
    return None


def holds_images(file: Any, name: str) -> bool:
    """Return True for a Parquet file with a column of images; lists and manifests have none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return image_columns(pq.read_schema(file), name) is not None
    except pa.ArrowException:
        return False  # the reader of lists reports the fault


def is_table(url: str, filesystem: Any, path: str) -> bool:
    """Return True for the URL of a table of images; ``path`` is its path in the filesystem."""
    if extension(url) == ".parquet":
        with filesystem.open(path, "rb") as file:
            return holds_images(file, url)
    return extension(url) == ".lance"


def table_items(path: str, printable: str, stamp: str, opener: Opener | None = None) -> Iterator[tuple[Any, ...]]:
    """Yield the fields of an item for each row of a table: ``TABLE::ROW`` or ``TABLE::ROW/NAME``.

    Rows in a damaged piece have a problem. Raises :class:`SourceError` if it cannot be read.
    """
    try:
        for row, (name, problem) in enumerate(row_names(open_table(path, opener))):
            uri = f"{printable}::{row}" + (f"/{name}" if name else "")
            yield uri, None, stamp, None if printable == path else path, None, problem
    except SourceError:
        raise
    except Exception as error:
        # Arrow, Lance and every fsspec filesystem raise exceptions of their own
        raise SourceError(f"{path} is not a table of images that can be read: {error}") from error


def row_of(uri: str, path: str | None = None) -> tuple[str, int] | None:
    """Return (table, row) of an image's name, None for other names; ``path`` is the table's file if it differs."""
    if "::" not in uri:
        return None
    match = _ROW.fullmatch(uri)
    return None if match is None else (path or match["table"], int(match["row"]))


def piece_of(uri: str) -> tuple[str, int] | None:
    """Return the piece of a local table that holds an image; None for all other images."""
    place = row_of(uri)
    if place is None or "://" in place[0] or not os.path.exists(place[0]):
        return None
    return read_piece(*place)


def _saved_tables(folder: str) -> list[str] | None:
    """Return the files of a data set that ``datasets`` saved with ``save_to_disk``, in order; None for others."""
    if os.path.isfile(os.path.join(folder, _SPLITS)):
        names = _read(folder, _SPLITS, "splits")
        parts = [os.path.join(folder, name) for name in names]
        return [table for part in parts for table in _saved_tables(part) or []]
    if not all(os.path.isfile(os.path.join(folder, name)) for name in (_SAVED, _INFO)):
        return None
    files = _read(folder, _SAVED, "_data_files")
    return [os.path.join(folder, str(entry["filename"])) for entry in files]


def _read(folder: str, name: str, key: str) -> list[Any]:
    try:
        value = read_json_object(Path(folder) / name)[key]
        names = [entry["filename"] if isinstance(entry, dict) else entry for entry in value]
    except (UsageError, OSError, KeyError, TypeError) as error:
        raise SourceError(f"the saved data set {folder} is damaged: {name} cannot be used ({error})") from error
    if not all(isinstance(entry, str) and os.path.basename(entry) == entry and entry for entry in names):
        raise SourceError(f"the saved data set {folder} is damaged: {name} names files outside the folder")
    return value
