"""Members of tar archives and WebDataset shards, and the names that they get: ``ARCHIVE.tar::MEMBER``.

Headers are read by :mod:`tarfile` through a window that bounds what one member may take, so that a hostile archive
costs neither memory nor time; see :func:`tar_members`.
"""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator
from typing import IO, NamedTuple

from ...errors import UsageError
from ..reading.remote import extension

MAX_HEADER = 1 << 20
"""Most bytes of headers per member: long names, extended headers and tables of sparse files."""
MAX_LINKS = 40
"""Longest chain of links that is followed, as in Linux."""
_MAX_GLOBAL = 1000
"""Most entries of the headers that apply to all members."""


_TABLES = (".parquet", ".lance", ".arrow")
_ROW = re.compile(r"(?P<row>\d+)(?:/(?P<name>.*))?", re.DOTALL)


def split_member(uri: str) -> tuple[str, str] | None:
    """Return (archive, member), or (table, name or number of the row); None for any other file's name.

    ``::`` in other names has no meaning: a local file may be called ``a::b.jpg``.
    """
    start = uri.find("::")
    while start >= 0:
        archive, member = uri[:start], uri[start + 2 :]
        ending = extension(archive)
        # zip://a.tar::s3://bucket/b.zip is an archive in an archive
        chained = "://" in archive and ("://" in member or member.startswith("/"))
        if ending == ".tar" and not chained:
            return archive, member
        if ending in _TABLES and (row := _ROW.fullmatch(member)):
            return archive, row["name"] or row["row"]
        start = uri.find("::", start + 2)
    return None


def archives_of(uris: Iterable[str]) -> list[str]:
    """Return the archives that hold images, sorted, each once."""
    return sorted({member[0] for uri in uris if (member := split_member(uri))})


class Member(NamedTuple):
    """One member of a tar archive, or a fault in its place."""

    name: str
    """Path inside the archive; empty for damage."""
    size: int = 0
    """Bytes."""
    offset: int = 0
    """First byte in the archive."""
    problem: str = ""
    """Fault of the member, or of the rest of the archive; empty if it can be read."""
    repeated: bool = False
    """True if an earlier member has the same name."""


def tar_members(file: IO[bytes], name: str) -> Iterator[Member]:
    """Yield the members of a tar archive that can be read at random: regular files and links to them.

    Links inside the archive are followed; broken links, sparse files and damage become members with a ``problem``.
    Nothing after damage is read. Damage is an invalid header, a member that is larger than the archive or has a
    negative size, or headers of one member beyond :data:`MAX_HEADER`.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    window = _HeaderWindow(file)
    files: dict[str, tuple[int, int]] = {}
    links: dict[str, str] = {}
    try:
        with tarfile.open(fileobj=window, mode="r:") as tar:  # type: ignore[call-overload]
            while (info := tar.next()) is not None:
                window.left = MAX_HEADER
                # tarfile would keep every member in memory
                tar.members = []  # type: ignore[attr-defined]
                end = info.offset_data + info.size
                if info.size < 0 or end > size or info.offset_data <= info.offset or len(tar.pax_headers) > _MAX_GLOBAL:
                    raise tarfile.ReadError(f"{info.name[:200]} needs {info.size:,} bytes, more than the archive has")
                if info.islnk() or info.issym():
                    repeated = info.name in files or info.name in links
                    if repeated:
                        yield Member(info.name, repeated=True)
                    else:
                        links[info.name] = _target(info)
                elif info.isreg() and info.sparse is not None:
                    yield Member(info.name, problem="it is stored as a sparse file, which is not read; pack it again")
                elif info.isreg():
                    repeated = info.name in files or info.name in links
                    files.setdefault(info.name, (info.size, info.offset_data))
                    yield Member(info.name, info.size, info.offset_data, repeated=repeated)
            end = tar.offset
        file.seek(end)
        if file.read(512).strip(b"\0"):
            # tarfile treats a damaged header as the end of the archive
            raise tarfile.ReadError(f"no header at byte {end:,}")
    except (tarfile.TarError, OSError, ValueError, OverflowError, RecursionError) as error:
        fault = "a member has too many headers" if isinstance(error, RecursionError) else error
        yield Member(
            "", problem=f"the tar archive {name} is cut short, damaged, or compressed (then unpack it first): {fault}"
        )
    for link in links:
        target, steps = links[link], 1
        while target in links and steps < MAX_LINKS:
            target, steps = links[target], steps + 1
        if target in files:
            yield Member(link, *files[target])
        else:
            yield Member(link, problem=f"it is a link to {links[link][:200]}, which the archive does not hold")


class _HeaderWindow:
    """File that lets :mod:`tarfile` read at most :attr:`left` bytes of headers."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.left = MAX_HEADER
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        """Read a header; raises ``tarfile.ReadError`` for more than is left."""
        if not 0 <= size <= self.left:
            raise tarfile.ReadError(f"a member has more than {MAX_HEADER:,} bytes of headers")
        self.left -= size
        return self._file.read(size)


def _target(info: tarfile.TarInfo) -> str:
    """Return the path that a link names: symbolic links start at their own folder, hard links at the root."""
    if info.islnk():
        return info.linkname
    return os.path.normpath(os.path.join(os.path.dirname(info.name), info.linkname)).replace("\\", "/")


def choose_pictures(
    members: Iterable[Member], archive: str, ending: str | None, is_image: Callable[[str], bool]
) -> Iterator[Member]:
    """Yield the pictures among members, for an archive of WebDataset samples one per sample.

    A sample is a run of members with the same name up to the first dot. ``ending`` is the rest of the name of the
    pictures to use, as in ``jpg`` or ``seg.png``; members that cannot be read are passed through.

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
    # names that contain dots, as in 1.rf.ab.jpg and 1.rf.cd.jpg, are not samples: none of their endings is a plain one
    if len(set(endings)) > 1 and any("." not in text for text in endings):
        raise UsageError(
            f"{archive} holds several pictures per sample ({', '.join(member.name for member in sample[:3])}); choose "
            f"the photos by their ending, as in --image-ending {endings[0]}"
        )
    return sample
