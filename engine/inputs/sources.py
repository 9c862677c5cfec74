"""Where images come from: every source is a lazy, ordered list of :class:`Item` and a way to read one.

============================  ======================================================================================
``photos/``                   a folder, walked recursively: files with an image extension (:data:`EXTENSIONS`)
``photos.txt``                a text list: one path or URL a line; relative entries start at the list's folder
``photos.parquet``            a Parquet list: the column ``uri``, ``path`` or ``url``, or the only column of strings
``shards/part-0001.tar``      a WebDataset shard: its members with an image extension
``'photos/**/*.jpg'``         a glob: everything that matches
``s3://bucket/photos``        any of these behind any fsspec URL: ``http(s)://``, ``s3://``, ``memory://``, ...
============================  ======================================================================================

Lists and globs are taken as they are: entries may have any extension, and may be folders and shards themselves. Within
a folder, files come first, then subfolders, both sorted by name. A name that cannot be read becomes an item all the
same: reading it raises :class:`ImageError`, and the run records it.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple
from urllib.parse import urljoin, urlsplit

import fsspec

from ...errors import ImageError, MissingPackageError, SourceError, UsageError
from .archives import list_entries, tar_members

EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".avif", ".gif", ".bmp", ".dib"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k"),
)
"""Endings (in any case) of the files that are taken from folders and tar archives."""
_EXTENSIONS = frozenset(EXTENSIONS)

MAX_BYTES = 1 << 30
"""Larger files are refused before they are read."""


class Item(NamedTuple):
    """One image of a source. A tuple, because listing a million files makes a million of them."""

    uri: str
    """Stable name: the absolute path of a local file, else the URL; ``ARCHIVE::MEMBER`` in a tar archive."""
    size: int | None = None
    """Bytes, where known without reading."""
    stamp: str = ""
    """Changes with the content: modification time in ns, ETag or time of last change; empty where unknown."""
    path: str | None = None
    """What to open where it is not the uri: the archive, or a file whose name is not valid UTF-8."""
    offset: int | None = None
    """First byte of the image in its archive."""


class Source:
    """The images that a spec stands for; iterate for :class:`Item`, then :meth:`read` (from any thread)."""

    def __init__(self, spec: str, storage_options: Mapping[str, Any] | None = None) -> None:
        self.spec = spec
        self._options = dict(storage_options or {})

    def __repr__(self) -> str:
        return f"Source({self.spec!r})"

    def __iter__(self) -> Iterator[Item]:
        """Items in a fixed order, found while iterating; raises :class:`SourceError` where there are none."""
        empty = True
        for item in self._items(self.spec, top=True):
            empty = False
            yield item
        if empty:
            raise SourceError(
                f"no images in {self.spec}; folders and archives are searched for {', '.join(EXTENSIONS)}"
            )

    def read(self, item: Item) -> bytes:
        """The bytes of an item; raises :class:`ImageError` of the kind ``unreadable`` or ``too-large``."""
        if item.size is not None and item.size > MAX_BYTES:
            raise ImageError("too-large", f"{item.uri} has {item.size:,} bytes; at most {MAX_BYTES:,} are read")
        location = item.path or item.uri
        try:
            if "://" in location:
                data = self._read_remote(location, item)
            else:
                data = _read_local(location, item)
        except ImageError:
            raise
        except Exception as error:
            # every fsspec filesystem raises exceptions of its own
            raise ImageError("unreadable", f"cannot read {item.uri}: {_reason(error)}") from error
        if item.offset is not None and item.size is not None and len(data) < item.size:
            raise ImageError(
                "truncated", f"{item.uri} has {len(data):,} of {item.size:,} bytes: the archive is cut short"
            )
        return data

    def _read_remote(self, location: str, item: Item) -> bytes:
        filesystem, path = _filesystem(location, self._options)
        if item.offset is None or item.size is None:
            return filesystem.cat_file(path)
        return filesystem.cat_file(path, start=item.offset, end=item.offset + item.size)

    def _items(self, spec: str, *, top: bool = False) -> Iterator[Item]:
        """Items of one path or URL; ``top`` for the source itself, which may be a list or a glob, too."""
        spec = _without_file_scheme(spec)
        if "://" in spec:
            return self._remote_items(spec, top)
        return self._local_items(spec, top)

    def _local_items(self, path: str, top: bool) -> Iterator[Item]:
        try:
            status = os.stat(path)
        except OSError as error:
            if top and glob.has_magic(path) and error.errno == errno.ENOENT:
                yield from self._matches(path)
                return
            if top:
                raise SourceError(f"cannot open the source {path}: {error.strerror}") from error
            yield _local_item(path)
            return
        extension = os.path.splitext(path)[1].lower()
        if stat.S_ISDIR(status.st_mode):
            yield from _walk(path, frozenset({(status.st_dev, status.st_ino)}))
        elif extension == ".tar":
            with open(path, "rb") as file:
                yield from _members(file, path, str(status.st_mtime_ns))
        elif top and extension in (".txt", ".parquet"):
            with open(path, "rb") as file:
                for entry in list_entries(file, path):
                    yield from self._items(entry if "://" in entry else os.path.join(os.path.dirname(path), entry))
        else:
            yield _local_item(path, status)

    def _matches(self, pattern: str) -> Iterator[Item]:
        matches = sorted(glob.glob(pattern, recursive=True))
        if not matches:
            raise SourceError(f"nothing matches {pattern}")
        for path in matches:
            # `**` lists folders beside their files
            if not ("**" in pattern and os.path.isdir(path)):
                yield from self._items(path)

    def _remote_items(self, url: str, top: bool) -> Iterator[Item]:
        extension = _extension(url)
        if not top and extension != ".tar":
            # asking for the size of every entry of a list would cost a request each
            yield Item(url)
            return
        filesystem, path = _filesystem(url, self._options)
        try:
            if extension in EXTENSIONS and not any(character in path for character in "*["):
                info = filesystem.info(path)
                yield Item(url, info.get("size"), _stamp(info))
            elif extension == ".tar" and "*" not in path:
                with filesystem.open(path, "rb") as file:
                    yield from _members(file, url, _stamp(filesystem.info(path)))
            elif top and extension in (".txt", ".parquet"):
                with filesystem.open(path, "rb") as file:
                    for entry in list_entries(file, url):
                        yield from self._items(entry if "://" in entry else _join(url, entry))
            elif "*" in path or "[" in path:
                yield from self._remote_matches(filesystem, path, url)
            else:
                yield from self._remote_folder(filesystem, path, url)
        except SourceError:
            raise
        except Exception as error:
            # every fsspec filesystem raises exceptions of its own
            raise SourceError(f"cannot list {url}: {_reason(error)}") from error

    def _remote_matches(self, filesystem: Any, path: str, url: str) -> Iterator[Item]:
        found = filesystem.glob(path, detail=True)
        if not found:
            raise SourceError(f"nothing matches {url}")
        for name, info in sorted(found.items()):
            location = _location(filesystem, name)
            if info.get("type") == "directory":
                if "**" not in path:
                    yield from self._remote_folder(filesystem, name, location)
            elif name.lower().endswith(".tar"):
                yield from self._items(location)
            else:
                yield Item(location, info.get("size"), _stamp(info))

    def _remote_folder(self, filesystem: Any, path: str, url: str) -> Iterator[Item]:
        if not filesystem.exists(path):
            raise SourceError(f"cannot open the source {url}: it does not exist")
        for name, info in sorted(filesystem.find(path, detail=True).items()):
            if _extension(name) in EXTENSIONS:
                yield Item(_location(filesystem, name), info.get("size"), _stamp(info))


def open_source(spec: str | os.PathLike[str], *, storage_options: Mapping[str, Any] | None = None) -> Source:
    """Open a folder, list, glob, WebDataset shard, image or fsspec URL; see the module's table.

    ``storage_options`` go to the fsspec filesystem of remote sources. Raises :class:`SourceError` where a local source
    does not exist, and :class:`UsageError` for a URL that no installed filesystem serves.
    """
    spec = os.fspath(spec)
    if not spec:
        raise UsageError("a source is a folder, a list, a glob, a tar archive or a URL; got an empty name")
    spec = _without_file_scheme(spec)
    if "://" in spec:
        _filesystem(spec, dict(storage_options or {}))
        return Source(spec, storage_options)
    path = os.path.abspath(os.path.expanduser(spec))
    if not os.path.lexists(path) and not glob.has_magic(path):
        raise SourceError(f"no such file or folder: {path}")
    return Source(path, storage_options)


def shard(items: Iterable[Item], index: int, count: int) -> Iterator[Item]:
    """The items of shard ``index`` of ``count``, counted from 0; by a hash of the uri, so that every run agrees."""
    if count < 1 or not 0 <= index < count:
        raise UsageError(
            f"shards are counted from 0: expected 0 <= I < N, as in 0/{max(count, 1)}; got {index}/{count}"
        )
    return (item for item in items if _bucket(item.uri, count) == index)


def _bucket(uri: str, count: int) -> int:
    return int.from_bytes(hashlib.blake2b(uri.encode(), digest_size=8).digest(), "big") % count


def _walk(folder: str, ancestors: frozenset[tuple[int, int]]) -> Iterator[Item]:
    """Images below a folder. Symbolic links to folders are followed, except to one of the folder's own ancestors."""
    files, folders = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                try:
                    is_folder = entry.is_dir()
                except OSError:
                    # a link that leads to itself
                    is_folder = False
                if is_folder:
                    folders.append(entry.name)
                elif _is_image(entry.name):
                    files.append(entry.name)
    except OSError as error:
        raise SourceError(f"cannot list the folder {folder}: {error.strerror}") from error
    prefix = os.path.join(folder, "")
    for name in sorted(files):
        yield _local_item(prefix + name)
    for name in sorted(folders):
        status = os.stat(prefix + name)
        identity = (status.st_dev, status.st_ino)
        if identity not in ancestors:
            yield from _walk(prefix + name, ancestors | {identity})


def _is_image(name: str) -> bool:
    return name[name.rfind(".") :].lower() in _EXTENSIONS


def _local_item(path: str, status: os.stat_result | None = None) -> Item:
    uri, location = path, None
    if not path.isascii():
        try:
            path.encode()
        except UnicodeEncodeError:
            uri, location = os.fsencode(path).decode("utf-8", "backslashreplace"), path
    try:
        status = status or os.stat(path)
    except OSError:
        # a broken link or a missing entry of a list: reading says what is wrong
        return Item(uri, None, "", location)
    return Item(uri, status.st_size, str(status.st_mtime_ns), location)


def _read_local(path: str, item: Item) -> bytes:
    # O_NONBLOCK: opening a named pipe must not wait for a writer
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with open(descriptor, "rb", buffering=0) as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ImageError("unreadable", f"{path} is not a regular file")
        if item.offset is None:
            if status.st_size > MAX_BYTES:
                raise ImageError("too-large", f"{path} has {status.st_size:,} bytes; at most {MAX_BYTES:,} are read")
            return file.readall()
        file.seek(item.offset)
        return file.read(item.size or 0)


def _members(file: Any, archive: str, stamp: str) -> Iterator[Item]:
    for name, size, offset in tar_members(file, archive):
        if _is_image(name):
            valid = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
            yield Item(f"{archive}::{valid}", size, stamp, archive, offset)


def _filesystem(url: str, options: dict[str, Any]) -> tuple[Any, str]:
    try:
        return fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        if url.startswith("http"):
            raise MissingPackageError("aiohttp", "http", f"reading {url}") from error
        raise UsageError(f"reading {url} needs another package: {error}") from error
    except ValueError as error:
        raise UsageError(f"cannot open {url}: {error}") from error


def _without_file_scheme(spec: str) -> str:
    return _filesystem(spec, {})[1] if spec.startswith(("file://", "local://")) else spec


def _location(filesystem: Any, name: str) -> str:
    return name if "://" in name else filesystem.unstrip_protocol(name)


def _extension(url: str) -> str:
    return os.path.splitext(urlsplit(url).path if url.startswith("http") else url)[1].lower()


def _join(url: str, entry: str) -> str:
    if url.startswith("http"):
        return urljoin(url, entry)
    return f"{url.rpartition('/')[0]}/{entry}"


def _stamp(info: Mapping[str, Any]) -> str:
    for key in (
        "ETag",
        "etag",
        "e_tag",
        "Last-Modified",
        "LastModified",
        "last_modified",
        "updated",
        "mtime",
        "created",
    ):
        if value := info.get(key):
            return str(value)
    return ""


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "it does not exist"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
