"""What a list file names and a tar archive holds."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import IO

from ...errors import SourceError


def list_entries(file: IO[bytes], name: str) -> Iterator[str]:
    """Entries of the text or Parquet list ``name``, in order; raises :class:`SourceError` where it is neither."""
    if name.lower().endswith(".parquet"):
        yield from _parquet_entries(file, name)
        return
    for number, line in enumerate(file, start=1):
        try:
            entry = line.decode("utf-8-sig" if number == 1 else "utf-8").strip("\r\n")
        except UnicodeDecodeError as error:
            raise SourceError(f"{name}, line {number}: a list holds one path or URL a line in UTF-8") from error
        if "\0" in entry:
            raise SourceError(f"{name}, line {number}: a list holds one path or URL a line, got binary data")
        if entry.strip():
            yield entry


def _parquet_entries(file: IO[bytes], name: str) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(file)
        schema = table.schema_arrow
        strings = [
            column.name for column in schema if pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
        ]
        named = [column for column in ("uri", "path", "url") if column in strings]
        if not named and len(strings) != 1:
            raise SourceError(
                f"{name} needs a column of strings named uri, path or url, or only one column of strings; "
                f"it has {', '.join(schema.names)}"
            )
        row = 0
        for batch in table.iter_batches(columns=[(named or strings)[0]]):
            for entry in batch.column(0).to_pylist():
                row += 1
                if not entry:
                    raise SourceError(f"{name}, row {row}: the path is missing")
                yield entry
    except pa.ArrowException as error:
        raise SourceError(f"{name} is not a Parquet file that can be read: {error}") from error


def tar_members(file: IO[bytes], name: str) -> Iterator[tuple[str, int, int]]:
    """(name, bytes, offset of the first byte) of every regular file in a tar archive that can be read at random.

    Raises :class:`SourceError` where it is cut short, damaged or compressed.
    """
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                # tarfile would keep every member it has met
                tar.members = []  # type: ignore[attr-defined]
                if member.isfile() and member.sparse is None:
                    yield member.name, member.size, member.offset_data
            end = tar.offset
        file.seek(end)
        if file.read(512).strip(b"\0"):
            # tarfile takes a damaged header for the end of the archive
            raise tarfile.ReadError(f"no header at byte {end:,}")
    except tarfile.TarError as error:
        raise SourceError(
            f"the tar archive {name} is cut short, damaged, or compressed (then unpack it first): {error}"
        ) from error
