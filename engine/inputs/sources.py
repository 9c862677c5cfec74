"""Sources of images: a folder, list, glob, archive or URL as a lazy, ordered list of :class:`Item`.

============================  ======================================================================================
``photos/``                   a folder, walked recursively: files with an image ending (:data:`EXTENSIONS`)
``photos.txt``                a text list: one path or URL per line; relative entries start at the list's folder
``photos.csv``                a CSV list: the column ``image``, ``uri``, ``path`` or ``url``
``photos.parquet``            a Parquet list: one of these columns, or the only column of strings
``shards/part-0001.tar``      a tar archive or WebDataset shard: its members with an image ending
``'photos/**/*.jpg'``         a glob: everything that matches
``s3://bucket/photos``        any of these behind any fsspec URL: ``http(s)://``, ``s3://``, ``memory://``, ...
============================  ======================================================================================

Lists and globs are taken as they are: entries may have any ending, and may be folders and shards themselves. Within
a folder, files come first, then subfolders, both sorted by name; symbolic links are followed. Files that are passed
over are counted in :attr:`Source.skipped`. A name that cannot be read becomes an item all the same: reading it raises
:class:`ImageError`, and the run records it.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from ...errors import ImageError, SourceError, UsageError
from . import remote
from .image_formats import readable_endings
from .listings import LISTS, choose_pictures, list_entries, tar_members

EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".avif", ".gif", ".bmp", ".dib"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k"),
)
"""Endings (in any case) of the files that are taken from folders and archives, without those of optional packages."""

_EXTENSIONS = frozenset(EXTENSIONS)

MAX_BYTES = 1 << 30
"""Larger files are refused before they are read."""

FORKS = "resource forks"
"""Kind of the files that macOS writes beside others (``._photo.jpg``, ``__MACOSX``); they are no images."""


class Item(NamedTuple):
    """One image of a source. A tuple, because listing a million files makes a million of them."""

    uri: str
    """Stable name: the absolute path of a local file, else the URL; ``ARCHIVE::MEMBER`` in a tar archive."""
    size: int | None = None
    """Bytes, if known without reading."""
    stamp: str = ""
    """Changes with the content: modification time in ns, ETag or time of last change; empty if unknown."""
    path: str | None = None
    """File to open if it is not the uri: the archive, or a file whose name is not valid UTF-8."""
    offset: int | None = None
    """First byte of the image in its archive."""
    problem: str = ""
    """Reason why it cannot be read; reading raises it."""


class Source:
    """The images that a spec stands for; iterate for :class:`Item`, then :meth:`read` (from any thread)."""

    def __init__(
        self,
        spec: str,
        storage_options: Mapping[str, Any] | None = None,
        *,
        image_ending: str | None = None,
        endings: frozenset[str] | None = None,
    ) -> None:
        self.spec = spec
        self.skipped: Counter[str] = Counter()
        """Files passed over by the latest iteration, by kind: an ending such as ``.heic``, or :data:`FORKS`."""
        self._options = dict(storage_options or {})
        self._ending = None if image_ending is None else image_ending.lower().lstrip(".")
        self._endings = endings
        self._taken = endings or _EXTENSIONS

    def __repr__(self) -> str:
        return f"Source({self.spec!r})"

    def __iter__(self) -> Iterator[Item]:
        """Items in a fixed order, listed while iterating; raises :class:`SourceError` if there are none."""
        self.skipped = Counter()
        self._taken = self._endings or _EXTENSIONS | readable_endings()
        empty = True
        for item in self._items(self.spec, top=True):
            empty = False
            yield item
        if empty:
            endings = (f".{self._ending}",) if self._ending else sorted(self._endings or ()) or EXTENSIONS
            others = ", ".join(f"{number} {kind}" for kind, number in self.skipped.most_common(4))
            raise SourceError(
                f"no images in {self.spec}; folders and archives are searched for {', '.join(endings)}"
                + (f", and it holds {others}" if others else "")
            )

    def read(self, item: Item) -> bytes:
        """Return the bytes of an item; raises :class:`ImageError` (``unreadable``, ``truncated`` or ``too-large``)."""
        if item.problem:
            raise ImageError("unreadable", f"cannot read {item.uri}: {item.problem}")
        if item.size is not None and item.size > MAX_BYTES:
            raise ImageError("too-large", f"{item.uri} has {item.size:,} bytes; at most {MAX_BYTES:,} are read")
        location = item.path or item.uri
        try:
            if "://" in location:
                data = remote.read(location, self._options, item.offset, item.size)
            else:
                data = _read_local(location, item)
        except ImageError:
            raise
        except Exception as error:
            # every fsspec filesystem raises exceptions of its own
            raise ImageError("unreadable", f"cannot read {item.uri}: {remote.reason(error)}") from error
        if item.offset is not None and item.size is not None and len(data) < item.size:
            raise ImageError(
                "truncated", f"{item.uri} has {len(data):,} of {item.size:,} bytes: the archive is cut short"
            )
        return data

    def _takes(self, name: str) -> bool:
        """Tell whether a file of a folder or archive is an image; count it if it is not."""
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
        """Items of one path or URL; ``top`` for the source itself, which may be a list or a glob, too."""
        spec = remote.without_file_scheme(spec)
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
            yield from self._walk(path, frozenset({(status.st_dev, status.st_ino)}))
        elif extension == ".tar":
            with open(path, "rb") as file:
                yield from self._members(file, path, str(status.st_mtime_ns))
        elif top and extension in LISTS:
            with open(path, "rb") as file:
                for entry in list_entries(file, path):
                    yield from self._items(entry if "://" in entry else os.path.join(os.path.dirname(path), entry))
        else:
            yield _local_item(path, status)

    def _walk(self, folder: str, ancestors: frozenset[tuple[int, int]]) -> Iterator[Item]:
        """Yield the images below a folder. Links to folders are followed, except to one of the folder's ancestors."""
        files, folders = [], []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    try:
                        is_folder = entry.is_dir()
                    except OSError:
                        # a link that leads to itself
                        is_folder = False
                    (folders if is_folder else files).append(entry.name)
        except OSError as error:
            raise SourceError(f"cannot list the folder {folder}: {error.strerror}") from error
        prefix = os.path.join(folder, "")
        for name in sorted(files):
            if self._takes(name):
                yield _local_item(prefix + name)
        for name in sorted(folders):
            if name == "__MACOSX":
                self.skipped[FORKS] += 1
                continue
            status = os.stat(prefix + name)
            identity = (status.st_dev, status.st_ino)
            if identity not in ancestors:
                yield from self._walk(prefix + name, ancestors | {identity})

    def _matches(self, pattern: str) -> Iterator[Item]:
        matches = sorted(glob.glob(pattern, recursive=True))
        if not matches:
            raise SourceError(f"nothing matches {pattern}")
        for path in matches:
            # `**` lists folders beside their files
            if not ("**" in pattern and os.path.isdir(path)):
                yield from self._items(path)

    def _members(self, file: Any, archive: str, stamp: str) -> Iterator[Item]:
        for member in choose_pictures(tar_members(file, archive), archive, self._ending, self._takes):
            if not member.name:
                yield Item(archive, None, stamp, problem=member.problem)
                continue
            name = member.name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
            yield Item(f"{archive}::{name}", member.size, stamp, archive, member.offset, member.problem)

    def _remote_items(self, url: str, top: bool) -> Iterator[Item]:
        extension = remote.extension(url)
        if not top and extension != ".tar":
            # asking for the size of every entry of a list would cost a request each
            yield Item(url)
            return
        filesystem, path = remote.filesystem(url, self._options)
        try:
            if extension in EXTENSIONS and not any(character in path for character in "*["):
                info = filesystem.info(path)
                yield Item(url, info.get("size"), remote.stamp(info))
            elif extension == ".tar" and "*" not in path:
                with filesystem.open(path, "rb") as file:
                    yield from self._members(file, url, remote.stamp(filesystem.info(path)))
            elif top and extension in LISTS:
                with filesystem.open(path, "rb") as file:
                    for entry in list_entries(file, url):
                        yield from self._items(entry if "://" in entry else remote.join(url, entry))
            elif "*" in path or "[" in path:
                yield from self._remote_matches(filesystem, path, url)
            else:
                yield from self._remote_folder(filesystem, path, url)
        except (SourceError, UsageError):
            raise
        except Exception as error:
            # every fsspec filesystem raises exceptions of its own
            raise SourceError(f"cannot list {url}: {remote.reason(error)}") from error

    def _remote_matches(self, filesystem: Any, path: str, url: str) -> Iterator[Item]:
        matches = filesystem.glob(path, detail=True)
        if not matches:
            raise SourceError(f"nothing matches {url}")
        for name, info in sorted(matches.items()):
            location = remote.location(filesystem, name)
            if info.get("type") == "directory":
                if "**" not in path:
                    yield from self._remote_folder(filesystem, name, location)
            elif name.lower().endswith(".tar"):
                yield from self._items(location)
            else:
                yield Item(location, info.get("size"), remote.stamp(info))

    def _remote_folder(self, filesystem: Any, path: str, url: str) -> Iterator[Item]:
        if not filesystem.exists(path):
            raise SourceError(f"cannot open the source {url}: it does not exist")
        for name, info in sorted(filesystem.find(path, detail=True).items()):
            if self._takes(name):
                yield Item(remote.location(filesystem, name), info.get("size"), remote.stamp(info))


def open_source(
    spec: str | os.PathLike[str],
    *,
    storage_options: Mapping[str, Any] | None = None,
    image_ending: str | None = None,
) -> Source:
    """Open a folder, list, glob, archive, image or fsspec URL; see the module's table.

    ``storage_options`` go to the fsspec filesystem of remote sources. ``image_ending`` takes only the files with this
    ending from folders and archives; in WebDataset shards it is the part of the name after the sample's key, as in
    ``jpg``. Raises :class:`SourceError` if a local source does not exist, and :class:`UsageError` for a URL that no
    installed filesystem serves.
    """
    spec = os.fspath(spec)
    if not spec:
        raise UsageError("a source is a folder, a list, a glob, a tar archive or a URL; got an empty name")
    spec = remote.without_file_scheme(spec)
    if "://" in spec:
        remote.filesystem(spec, dict(storage_options or {}))
        return Source(spec, storage_options, image_ending=image_ending)
    path = os.path.abspath(os.path.expanduser(spec))
    if not os.path.lexists(path) and not glob.has_magic(path):
        raise SourceError(f"no such file or folder: {path}")
    return Source(path, storage_options, image_ending=image_ending)


def read_uri(uri: str, storage_options: Mapping[str, Any] | None = None) -> bytes:
    """Return the bytes of an image by its uri, as an :class:`Item` had it.

    Raises :class:`ImageError`, or :class:`SourceError` if its archive cannot be listed or does not hold it.
    """
    if "::" not in uri:
        return Source(uri, storage_options).read(Item(uri))
    source = Source(uri.split("::", 1)[0], storage_options)
    for item in source:
        if item.uri == uri:
            return source.read(item)
    raise SourceError(f"{uri} is not there any more")


def shard(items: Iterable[Item], index: int, count: int) -> Iterator[Item]:
    """Yield the items of shard ``index`` of ``count``, from 0; by a hash of the uri, so that every run agrees."""
    if count < 1 or not 0 <= index < count:
        raise UsageError(
            f"shards are counted from 0: expected 0 <= I < N, as in 0/{max(count, 1)}; got {index}/{count}"
        )
    return (item for item in items if _bucket(item.uri, count) == index)


def _bucket(uri: str, count: int) -> int:
    return int.from_bytes(hashlib.blake2b(uri.encode(), digest_size=8).digest(), "big") % count


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
