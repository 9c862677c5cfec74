"""Sources of images: a folder, list, glob, archive or URL as a lazy, ordered list of :class:`Item`.

============================  ======================================================================================
``photos/``                   a folder, walked recursively: files with an image ending (:data:`EXTENSIONS`)
``photos.txt``                a text list: one path or URL per line; relative entries start at the list's folder
``photos.csv``                a CSV list: the column ``image``, ``uri``, ``path`` or ``url``
``photos.parquet``            a Parquet list: one of these columns, or the only column of strings; or a manifest
``*.parquet``, ``*.lance``    rows of images: a column of bytes, or of ``{bytes, path}`` as ``datasets`` writes them
``my-dataset/``               a data set that ``datasets`` saved with ``save_to_disk``
``shards/part-0001.tar``      a tar archive or WebDataset shard: its members with an image ending
``'photos/**/*.jpg'``         a glob: everything that matches
``s3://bucket/photos``        any of these behind any fsspec URL: ``http(s)://``, ``s3://``, ``memory://``, ...
============================  ======================================================================================

Lists and globs are not filtered: entries may have any ending, and may themselves be folders or shards. Within
a folder, files come first, then subfolders, both sorted by name; symbolic links are followed. Skipped files are counted
in :attr:`Source.skipped`. A file that cannot be read still becomes an item: reading it raises :class:`ImageError`, and
the run records it.
"""

from __future__ import annotations

import errno
import glob
import os
import stat
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

from ...errors import ImageError, SourceError, UsageError
from ..reading import remote
from ..reading.access import Access, Cancelled, Meter, current_access, metered
from ..reading.folders import listed_file, match_remote, walk_folder, walk_remote
from ..reading.geotiff import Windows, read_window, split_window
from ..reading.local import read_local
from ..reading.manifest import manifest_items
from ..reading.read_ahead import ReadAhead
from .archives import Member, choose_pictures, split_member, tar_members
from .image_formats import readable_endings
from .listings import LISTS, Entry, list_entries
from .rasters.windows import windowed
from .tables.listing import is_table, row_of, table_items, tables_at
from .tables.reader import opener_of, read_row

EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".avif", ".gif", ".bmp", ".dib"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k"),
)
"""Endings (in any case) of images in folders and archives, without those of optional packages."""

_EXTENSIONS = frozenset(EXTENSIONS)
FORKS = "resource forks"
"""Kind of skipped file that macOS writes beside others (``._photo.jpg``, ``__MACOSX``)."""
REPEATED = "repeated names in archives"
"""Kind of skipped archive member with the name of an earlier member; the first one is used."""


class Item(NamedTuple):
    """One image of a source. A tuple, because listing a million files makes a million of them."""

    uri: str
    """Stable name: the absolute path of a local file, else the URL; ``ARCHIVE::MEMBER`` in a tar archive."""
    size: int | None = None
    """Bytes, if known without reading."""
    stamp: str = ""
    """Value that changes with the content: modification time in ns, ETag or time of last change; empty if unknown."""
    path: str | None = None
    """File to open if it is not the uri: the archive, or a file whose name is not valid UTF-8."""
    offset: int | None = None
    """First byte of the image in its archive."""
    problem: str = ""
    """Reason why it cannot be read; reading raises it."""


class Source:
    """The images that a spec describes: iterate to get each :class:`Item`, then :meth:`read` it (from any thread)."""

    def __init__(
        self,
        spec: str,
        storage_options: Mapping[str, Any] | None = None,
        *,
        image_ending: str | None = None,
        endings: frozenset[str] | None = None,
        access: Access | None = None,
        windows: Windows | None = None,
    ) -> None:
        self.spec = spec
        self.windows: Windows | None = windows
        self.access: Access = access or current_access()
        """Limits of reading from URLs."""
        self._cancelled = threading.Event()
        self._ahead = ReadAhead()
        self.skipped: Counter[str] = Counter()
        """Files skipped by the latest iteration, by kind: an ending such as ``.heic``, or :data:`FORKS`."""
        self._options = dict(storage_options or {})
        if image_ending is not None and not image_ending.strip("."):
            raise UsageError("the ending of images is empty; give one, as in --image-ending jpg, or leave it out")
        self._ending = None if image_ending is None else image_ending.lower().lstrip(".")
        self._endings = endings
        self._taken = endings or _EXTENSIONS

    def __repr__(self) -> str:
        return f"Source({self.spec!r})"

    def __getstate__(self) -> dict[str, Any]:
        # events and locks cannot be sent to other processes
        return {name: value for name, value in vars(self).items() if name not in ("_cancelled", "_ahead")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _cancelled=threading.Event(), _ahead=ReadAhead())

    def __iter__(self) -> Iterator[Item]:
        """Yield items in a fixed order, listed while iterating; raises :class:`SourceError` if there are none."""
        self.skipped = Counter()
        self._taken = self._endings or _EXTENSIONS | readable_endings()
        empty = True
        for item in self._items(self.spec, top=True):
            empty = False
            yield item
        if empty:
            endings = (f".{self._ending}",) if self._ending else sorted(self._endings or ()) or EXTENSIONS
            other_files = ", ".join(f"{number} {kind}" for kind, number in self.skipped.most_common(4))
            raise SourceError(
                f"no images in {self.spec}; folders and archives are searched for {', '.join(endings)}"
                + (f", and it holds {other_files}" if other_files else "")
                + ("; copy saved data sets to a disk" if self.skipped[".arrow"] and "://" in self.spec else "")
            )

    def read(self, item: Item) -> bytes:
        """Return the bytes of an item.

        Raises :class:`ImageError` (``unreadable``, ``truncated``, ``too-large`` or ``timeout``), and
        :class:`maskmill.engine.reading.access.Cancelled` after :meth:`cancel`.
        """
        if item.problem:
            raise ImageError("unreadable", f"cannot read {item.uri}: {item.problem}")
        largest = self.access.max_bytes
        if item.size is not None and item.size > largest:
            raise ImageError("too-large", f"{item.uri} has {item.size:,} bytes; at most {largest:,} are read")
        location = item.path or item.uri
        row = row_of(item.uri, item.path)
        try:
            if part := split_window(item.uri):
                data = read_window(item.path or part[0], part[1], largest)
            elif row is not None and item.offset is None:
                reading = partial(read_row, *row, largest, opener_of(row[0], self._options, self.access))
                data = remote.cancellable(reading, self._cancelled) if "://" in row[0] else reading()
            elif "://" in location:
                reading = partial(remote.read, location, self.access, self._options, cancelled=self._cancelled)
                if item.offset is None or item.size is None:
                    data = reading()
                else:
                    data = self._ahead.read(location, item.offset, item.size, reading)
            else:
                data = read_local(location, largest, item.offset, item.size)
        except ImageError as error:
            raise ImageError(error.kind, f"cannot read {item.uri}: {error}") from error
        except Cancelled:
            raise
        except Exception as error:
            # every fsspec filesystem raises exceptions of its own
            raise ImageError("unreadable", f"cannot read {item.uri}: {remote.reason(error)}") from error
        if item.offset is not None and item.size is not None and len(data) < item.size:
            raise ImageError(
                "truncated", f"{item.uri} has {len(data):,} of {item.size:,} bytes: the archive is cut short"
            )
        return data

    def cancel(self) -> None:
        """Make reads in progress, and later ones from URLs, raise ``Cancelled`` soon; from any thread."""
        self._cancelled.set()

    def _takes(self, name: str) -> bool:
        """Return True if a file of a folder or archive is an image; otherwise count it as skipped."""
        base = name.rpartition("/")[2]
        if base.startswith("._") or "__MACOSX/" in name:
            self.skipped[FORKS] += 1
            return False
        ending = base[base.rfind(".") :].lower() if "." in base else ""
        if base.lower().endswith(f".{self._ending}") if self._ending else ending in self._taken:
            return True
        self.skipped[ending or "no ending"] += 1
        return False

    def _items(self, spec: str, *, top: bool = False) -> Iterator[Item]:
        """Yield the items of one path or URL; with ``top`` it is the source itself, which may be a list or a glob.

        A path that cannot be listed is one item with a ``problem``; :class:`SourceError` is raised only for the source
        itself.
        """
        spec = remote.without_file_scheme(spec)
        empty = True
        try:
            for item in self._remote_items(spec, top) if "://" in spec else self._local_items(spec, top):
                empty = False
                yield item
        except UsageError:
            raise
        except Exception as error:
            # every fsspec filesystem raises exceptions of its own
            if top and empty:
                if isinstance(error, SourceError):
                    raise
                raise SourceError(f"cannot list {spec}: {remote.reason(error)}") from error
            yield Item(_printable(spec), problem=f"its list ends early: {remote.reason(error)}")

    def _local_items(self, path: str, top: bool) -> Iterator[Item]:
        try:
            status = os.stat(path)
        except (OSError, ValueError) as error:
            is_missing = isinstance(error, OSError) and error.errno == errno.ENOENT
            if top and is_missing and glob.has_magic(path):
                yield from self._matches(path)
                return
            if top:
                raise SourceError(f"cannot open the source {path}: {remote.reason(error)}") from error
            yield _local_item(path)
            return
        extension = os.path.splitext(path)[1].lower()
        tables = tables_at(path)
        if tables is not None:
            for table in tables:
                yield from map(Item._make, table_items(table, _printable(table), str(os.stat(table).st_mtime_ns)))
        elif stat.S_ISDIR(status.st_mode):
            yield from self._walk(path)
        elif extension == ".tar" and stat.S_ISREG(status.st_mode):
            with open(path, "rb") as file:
                yield from self._members(file, path, str(status.st_mtime_ns))
        elif top and extension in LISTS and stat.S_ISREG(status.st_mode):
            with open(path, "rb") as file:
                yield from self._listed(file, path)
        else:
            yield from windowed(_local_item(path, status), path, self.windows)

    def _listed(self, file: Any, name: str) -> Iterator[Item]:
        """Yield the items of a list or manifest."""
        rows = manifest_items(file, name) if remote.extension(name) == ".parquet" else None
        if rows is None:
            for entry in list_entries(file, name):
                yield from self._entry(entry, name)
            return
        for item in map(Item._make, rows):
            location = item.path or item.uri
            refusal = self.access.refusal(location, name) if "://" in location else ""
            yield item._replace(problem=refusal) if refusal else item

    def _entry(self, entry: Entry, list_name: str) -> Iterator[Item]:
        """Yield the items of a list's entry, relative to the list."""
        if entry.problem:
            yield Item(_printable(entry.name), problem=entry.problem)
        elif "://" not in entry.name:
            remote_list = "://" in list_name
            name = entry.name
            path = remote.join(list_name, name) if remote_list else os.path.join(os.path.dirname(list_name), name)
            yield from self._items(path)
        elif refusal := self.access.refusal(entry.name, list_name):
            yield Item(_printable(entry.name), problem=refusal)
        else:
            yield from self._items(entry.name)

    def _walk(self, folder: str) -> Iterator[Item]:
        for path, problem in walk_folder(folder, self._takes):
            item = Item(_printable(path), problem=problem) if problem else _local_item(path)
            yield from windowed(item, path, None if problem else self.windows)

    def _matches(self, pattern: str) -> Iterator[Item]:
        matches = sorted(glob.glob(pattern, recursive=True))
        if not matches:
            raise SourceError(f"nothing matches {pattern}")
        for path in matches:
            # `**` lists folders beside their files
            if not ("**" in pattern and os.path.isdir(path)):
                yield from self._items(path)

    def _members(self, file: Any, archive: str, stamp: str) -> Iterator[Item]:
        members = self._first_of_each_name(tar_members(file, archive))
        for member in choose_pictures(members, archive, self._ending, self._takes):
            if not member.name:
                yield Item(_printable(archive), None, stamp, problem=member.problem)
                continue
            uri = f"{_printable(archive)}::{_printable(member.name)}"
            yield Item(uri, member.size, stamp, archive, member.offset, member.problem)

    def _first_of_each_name(self, members: Iterable[Member]) -> Iterator[Member]:
        for member in members:
            if member.repeated:
                self.skipped[REPEATED] += 1
            else:
                yield member

    def _remote_items(self, url: str, top: bool) -> Iterator[Item]:
        extension = remote.extension(url)
        if not top and extension not in (".tar", ".parquet", ".lance"):
            # getting the size of every entry of a list would need one request each
            uri = _printable(url)
            yield Item(uri, path=None if uri == url else url)
            return
        filesystem, path = remote.filesystem(url, self._options, self.access)
        if extension in EXTENSIONS and not any(character in path for character in "*["):
            info = filesystem.info(path)
            yield Item(url, info.get("size"), remote.stamp(info))
        elif extension == ".tar" and "*" not in path:
            with filesystem.open(path, "rb") as file:
                yield from self._members(file, url, remote.stamp(filesystem.info(path)))
        elif "*" not in path and is_table(url, filesystem, path):
            opener = opener_of(url, self._options, self.access)
            yield from map(Item._make, table_items(url, _printable(url), remote.stamp(filesystem.info(path)), opener))
        elif extension in LISTS and "*" not in path:
            with filesystem.open(path, "rb") as file:
                meter = Meter(self.access, self.access.max_bytes, self._cancelled)
                yield from self._listed(file if extension == ".parquet" else metered(file, meter), url)
        else:
            yield from self._remote_files(filesystem, path, url, is_pattern="*" in path or "[" in path)

    def _remote_files(self, filesystem: Any, path: str, url: str, is_pattern: bool) -> Iterator[Item]:
        if not (is_pattern or filesystem.exists(path)):
            raise SourceError(f"cannot open the source {url}: it does not exist")
        empty = True
        for listing in (match_remote if is_pattern else walk_remote)(filesystem, path, self._takes):
            empty = False
            name, size, stamp, problem = listed_file(filesystem, *listing, url)
            if is_pattern and not problem and remote.extension(name) in (".tar", ".parquet"):
                yield from self._items(name)
            else:
                yield Item(name, size, stamp, problem=problem)
        if empty and is_pattern:
            raise SourceError(f"nothing matches {url}")


def open_source(
    spec: str | os.PathLike[str],
    *,
    storage_options: Mapping[str, Any] | None = None,
    image_ending: str | None = None,
    access: Access | None = None,
    windows: Windows | None = None,
) -> Source:
    """Open a folder, list, glob, archive, image or fsspec URL; see the module's table.

    ``storage_options`` go to the fsspec filesystem of remote sources. ``image_ending`` selects the files with this
    ending in folders and archives; in WebDataset shards it is the part of the name after the sample's key, as in
    ``jpg``. ``access`` limits reads from URLs; if None, the limits are those of
    :func:`maskmill.engine.reading.access.limit_reads`. ``windows`` cuts local GeoTIFF files that are larger than a
    window; each window is an image of its own.

    Raises :class:`SourceError` if a local source does not exist, and :class:`UsageError` for a URL that no installed
    filesystem serves.
    """
    spec = os.fspath(spec)
    if not spec:
        raise UsageError("a source is a folder, a list, a glob, a tar archive or a URL; got an empty name")
    spec = remote.without_file_scheme(spec)
    if "://" in spec:
        remote.check(spec, dict(storage_options or {}), access or current_access())
        return Source(spec, storage_options, image_ending=image_ending, access=access, windows=windows)
    path = os.path.abspath(os.path.expanduser(spec))
    if not os.path.lexists(path) and not glob.has_magic(path):
        raise SourceError(f"no such file or folder: {path}").of_the_call()
    return Source(path, storage_options, image_ending=image_ending, access=access, windows=windows)


def read_uri(uri: str, storage_options: Mapping[str, Any] | None = None, *, access: Access | None = None) -> bytes:
    """Return the bytes of an image by its uri, as an :class:`Item` had it.

    Raises :class:`ImageError`, or :class:`SourceError` if its archive cannot be listed or does not hold it.
    """
    member = split_member(uri)
    if member is None or row_of(uri) or ("://" not in uri and os.path.lexists(uri)):
        return Source(uri, storage_options, access=access).read(Item(uri))
    source = Source(member[0], storage_options, access=access)
    for item in source:
        if item.uri == uri:
            return source.read(item)
    raise SourceError(f"{uri} no longer exists")


def _printable(name: str) -> str:
    """Return a name that can be written as UTF-8, with escapes for invalid bytes."""
    return name if name.isascii() else os.fsencode(name).decode("utf-8", "backslashreplace")


def _local_item(path: str, status: os.stat_result | None = None) -> Item:
    uri = path if path.isascii() else _printable(path)
    location = None if uri == path else path
    try:
        status = status or os.stat(path)
    except (OSError, ValueError):
        # a broken link or a missing entry of a list: reading it reports the fault
        return Item(uri, None, "", location)
    return Item(uri, status.st_size, str(status.st_mtime_ns), location)
