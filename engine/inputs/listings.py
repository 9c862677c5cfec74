"""Entries of list files (text, CSV, Parquet) and members of tar archives."""

from __future__ import annotations

import csv
import io
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator
from typing import IO, NamedTuple

from ...errors import SourceError, UsageError
from ..model.files import list_lines

LISTS = (".txt", ".csv", ".parquet")
"""Endings of list files."""
COLUMNS = ("image", "uri", "path", "url")
"""Columns of a CSV or Parquet list that hold the images, the first that is there."""


def list_entries(file: IO[bytes], name: str) -> Iterator[str]:
    """Yield the entries of the text, CSV or Parquet list ``name``, in order.

    Text has one entry per line, see :func:`maskmill.engine.model.files.list_lines`. A CSV file has a header with one of
    :data:`COLUMNS`. Raises :class:`SourceError` for anything else.
    """
    ending = os.path.splitext(name)[1].lower()
    if ending == ".parquet":
        yield from _parquet_entries(file, name)
    elif ending == ".csv":
        yield from _csv_entries(file, name)
    else:
        yield from list_lines(_text_lines(file, name))


def _text_lines(file: IO[bytes], name: str) -> Iterator[str]:
    for number, line in enumerate(file, start=1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise SourceError(f"{name}, line {number}: a list holds one path or URL per line in UTF-8") from error
        if "\0" in text:
            raise SourceError(f"{name}, line {number}: a list holds one path or URL per line, got binary data")
        yield text


def _csv_entries(file: IO[bytes], name: str) -> Iterator[str]:
    rows = csv.reader(_text_lines(file, name))
    try:
        header = [column.strip() for column in next(rows, [])]
        columns = [column for column in COLUMNS if column in header]
        if not columns:
            raise SourceError(
                f"{name} needs a header line with a column named {', '.join(COLUMNS[:-1])} or {COLUMNS[-1]}; "
                f"its first line is {', '.join(header) or 'empty'}"
            )
        place = header.index(columns[0])
        for row in rows:
            if not any(value.strip() for value in row):
                continue
            if len(row) <= place or not row[place].strip():
                raise SourceError(f"{name}, line {rows.line_num}: the column {columns[0]} is empty")
            yield row[place].strip()
    except csv.Error as error:
        raise SourceError(f"{name} is not a CSV file: {error}") from error


def _parquet_entries(file: IO[bytes], name: str) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(file)
        schema = table.schema_arrow
        strings = [
            column.name for column in schema if pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
        ]
        columns = [column for column in COLUMNS if column in strings]
        if not columns and len(strings) != 1:
            raise SourceError(
                f"{name} needs a column of strings named {', '.join(COLUMNS[:-1])} or {COLUMNS[-1]}, or only one "
                f"column of strings; it has {', '.join(schema.names)}"
            )
        row = 0
        for batch in table.iter_batches(columns=[(columns or strings)[0]]):
            for entry in batch.column(0).to_pylist():
                row += 1
                if not entry:
                    raise SourceError(f"{name}, row {row}: the path is missing")
                yield entry
    except pa.ArrowException as error:
        raise SourceError(f"{name} is not a Parquet file that can be read: {error}") from error


class Member(NamedTuple):
    """One member of a tar archive, or the reason why there is none."""

    name: str
    """Path inside the archive; for damage the empty string."""
    size: int = 0
    """Bytes."""
    offset: int = 0
    """First byte in the archive."""
    problem: str = ""
    """Fault of the member, or of the archive from here on; empty if it can be read."""


def tar_members(file: IO[bytes], name: str) -> Iterator[Member]:
    """Yield the members of a tar archive that can be read at random: regular files and links to them.

    Links inside the archive are followed; a link that leads nowhere, a sparse file and damage become members with a
    ``problem``. After damage nothing more can be read.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    files: dict[str, Member] = {}
    links: list[tuple[str, str]] = []
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (info := tar.next()) is not None:
                # tarfile would keep every member it has met
                tar.members = []  # type: ignore[attr-defined]
                if info.islnk() or info.issym():
                    links.append((info.name, _target(info)))
                elif info.isreg() and info.sparse is not None:
                    yield Member(info.name, problem="it is stored as a sparse file, which is not read; pack it again")
                elif info.isreg():
                    member = Member(info.name, info.size, info.offset_data)
                    if info.offset_data + info.size > size:
                        raise tarfile.ReadError(f"{info.name} needs {info.size:,} bytes, more than there are")
                    files[info.name] = member
                    yield member
            end = tar.offset
        file.seek(end)
        if file.read(512).strip(b"\0"):
            # tarfile takes a damaged header for the end of the archive
            raise tarfile.ReadError(f"no header at byte {end:,}")
    except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
        yield Member(
            "", problem=f"the tar archive {name} is cut short, damaged, or compressed (then unpack it first): {error}"
        )
    targets = dict(links)
    for link, target in links:
        visited = {link}
        while target in targets and target not in visited:
            visited.add(target)
            target = targets[target]
        member = files.get(target)
        if member is None:
            yield Member(link, problem=f"it is a link to {target}, which the archive does not hold")
        else:
            yield Member(link, member.size, member.offset)


def _target(info: tarfile.TarInfo) -> str:
    """Path inside the archive that a link names: symbolic links start at their own folder, hard links at the root."""
    if info.islnk():
        return info.linkname
    return os.path.normpath(os.path.join(os.path.dirname(info.name), info.linkname)).replace("\\", "/")


def choose_pictures(
    members: Iterable[Member], archive: str, ending: str | None, is_image: Callable[[str], bool]
) -> Iterator[Member]:
    """Yield the pictures among members, for an archive of WebDataset samples one per sample.

    A sample is a run of members with the same name up to the first dot. ``ending`` is the rest of the name of the
    pictures to take, as in ``jpg`` or ``seg.png``; members that cannot be read are passed through.

    Raises :class:`UsageError` if a sample has several pictures and no ending was chosen.
    """
    sample: list[Member] = []
    for member in members:
        if sample and _sample_of(member.name) != _sample_of(sample[0].name):
            yield from _pictures_of(sample, archive, ending)
            sample = []
        if member.problem and not member.name:
            yield member
        elif is_image(member.name):
            sample.append(member)
    yield from _pictures_of(sample, archive, ending)


def _sample_of(name: str) -> str:
    folder, _, file = name.rpartition("/")
    return f"{folder}/{file.split('.', 1)[0]}"


def _ending_of(name: str) -> str:
    return name.rpartition("/")[2].partition(".")[2].lower()


def _pictures_of(sample: list[Member], archive: str, ending: str | None) -> list[Member]:
    endings = [_ending_of(member.name) for member in sample]
    if ending is not None:
        exact = [member for member, text in zip(sample, endings, strict=True) if text == ending]
        return exact or [member for member in sample if member.name.lower().endswith(f".{ending}")]
    # names with dots of their own, as in 1.rf.ab.jpg and 1.rf.cd.jpg, are no samples: no ending is a plain one
    if len(set(endings)) > 1 and any("." not in text for text in endings):
        raise UsageError(
            f"{archive} holds several pictures per sample ({', '.join(member.name for member in sample[:3])}); choose "
            f"the photos by their ending, as in --image-ending {endings[0]}"
        )
    return sample
