"""Small files in a folder: on a local disk, or in a bucket behind an fsspec URL.

::

    folder = open_folder("s3://bucket/labels", {"aws_region": "eu-west-1"})
    folder.write("leases/open/1", data)             # complete or not at all
    if folder.write_once("leases/claims/1", name):  # one of several writers succeeds
        ...

Access to a bucket that has answered before is retried with growing pauses for up to :data:`.outages.OUTAGE_SECONDS`, so
that an outage delays a run but does not end it.
"""

from __future__ import annotations

import atexit
import errno
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import quote

from ...errors import ImageError, MaskmillError, UsageError
from ..reading import remote
from ..reading.access import HTTP, current_access, is_bucket
from ..reading.bucket.client import BucketAnswerError, MissingBucketError, allows_http, check_keys, require_client
from ..reading.local import read_local
from ..reading.outages import wait_out
from ..reading.remote_path import RemotePath, StorageError
from ..reading.retries import in_thread, may_pass
from ..reading.storage_options import options_in_force, options_of
from .publishing import is_temporary, sync_files, write_atomically, write_once

_FINAL = (
    *(MaskmillError, ValueError, FileNotFoundError, FileExistsError, PermissionError),
    *(NotADirectoryError, IsADirectoryError),
)

MAX_COPIED = 1 << 36
"""Most bytes that :func:`fetched` copies."""
MAX_COPIED_FILES = 10_000
"""Most files that :func:`fetched` copies."""
MAX_FILE = 1 << 30
"""Largest file that a :class:`Folder` reads, in bytes."""
_TOO_MUCH = f"more than {MAX_COPIED_FILES:,} files or {MAX_COPIED >> 30} GiB"

_COPIES: list[Path] = []  # their folders
_FETCHED: dict[str, Path] = {}  # local copies that this process made, by URL

_IN_USE: dict[str, tuple[Any, str]] = {}  # filesystem and folder of each bucket that this process writes to

Result = TypeVar("Result")


class Folder(Protocol):
    """Files below one folder, named by relative paths with ``/``; every method may be called from any thread."""

    def read(self, name: str) -> bytes:
        """Return the bytes of a file; raises :class:`FileNotFoundError`, and another ``OSError`` for a huge one."""
        ...

    def write(self, name: str, data: bytes, *, sync: bool = False) -> None:
        """Write a file and replace an older one in one step; with ``sync``, wait until it is on the disk."""
        ...

    def write_once(self, name: str, data: bytes) -> bool:
        """Write a file unless it exists; returns False if it does."""
        ...

    def names(self, folder: str) -> dict[str, int]:
        """Return the files of a subfolder with their sizes in bytes, sorted by name; empty if it does not exist."""
        ...

    def remove(self, name: str) -> None:
        """Delete a file, if it exists."""
        ...


def is_url(location: Any) -> bool:
    """Return True for a URL of a bucket or another remote filesystem; ``file://`` is a local path."""
    text = str(location)
    return "://" in text and not text.startswith(("file://", "local://"))


def location_of(location: str | os.PathLike[str], options: Mapping[str, Any] | None = None) -> Path:
    """Return a path for a path or ``file://`` URL; for other URLs, return an object that is used like a path.

    ``options`` are those of the storage, of buckets the options of the crate object_store, such as ``aws_endpoint``;
    None: those of :func:`maskmill.engine.reading.storage_options.use_storage`. Raises :class:`MissingPackageError` and
    :class:`UsageError` for a URL that no installed filesystem serves and for an unknown option.
    """
    if not isinstance(location, str | os.PathLike):
        return location  # it is such an object already
    text = os.fspath(location)
    if not is_url(text):
        for scheme in ("file://", "local://"):
            if text.startswith(scheme):
                return Path(text.removeprefix(scheme))
        return Path(text)
    scheme = text.partition("://")[0]
    own = options_in_force(scheme) if options is None else options_of(scheme, options)
    if own or not is_bucket(text):
        remote.filesystem(text, own, current_access())
    else:
        require_client(text)  # options may be set later
    place: Any = RemotePath(text, own)
    return place


def is_remote(path: Any) -> bool:
    """Return True for a location that :func:`location_of` made of a URL."""
    return not isinstance(path, str | os.PathLike)


def fetched(location: str | os.PathLike[str], options: Mapping[str, Any] | None = None) -> Path:
    """Return a local path of a file or folder; a URL is copied to a path that is deleted when the process ends.

    Raises :class:`UsageError` if there is nothing at the URL, a file's name leads out of the folder, or there are more
    than :data:`MAX_COPIED_FILES` files or :data:`MAX_COPIED` bytes.
    """
    path: Any = location_of(location, options)
    if not is_remote(path):
        return path
    if str(path) in _FETCHED:
        return _FETCHED[str(path)]
    folder = Path(tempfile.mkdtemp(prefix="maskmill-"))
    if not _COPIES:
        atexit.register(remove_copies)
    _COPIES.append(folder)
    target = folder / path.name
    system, root = path.fs, path.path.rstrip("/")
    try:
        files = system.find(root, detail=True)
        if not files:
            raise UsageError(f"there is nothing at {path}")
        if len(files) > MAX_COPIED_FILES or sum(info.get("size") or 0 for info in files.values()) > MAX_COPIED:
            raise UsageError(f"{path} holds {_TOO_MUCH}; give the folder of one model")
        remaining_bytes = MAX_COPIED
        for name in files:
            inner = name.removeprefix(root).lstrip("/")
            if name != root and (not name.startswith(f"{root}/") or not stays_below(inner)):
                raise UsageError(f"{path} holds a file whose name leads out of the folder: {name}; do not use it")
            copy = target / inner if name != root else target
            copy.parent.mkdir(parents=True, exist_ok=True)
            remaining_bytes -= _copy(system, name, copy, remaining_bytes)
            if remaining_bytes < 0:
                raise UsageError(f"{path} holds {_TOO_MUCH}; give the folder of one model")
    except UsageError:
        raise
    except Exception as error:
        # each fsspec filesystem raises exceptions of its own
        raise UsageError(f"cannot read {path}: {error}") from error
    _FETCHED[str(path)] = target
    return target


def remove_copies() -> None:
    """Delete all copies of :func:`fetched`, at the end of the process."""
    while _COPIES:
        shutil.rmtree(_COPIES.pop(), ignore_errors=True)


def stays_below(name: str) -> bool:
    """Return True for a relative path of plain names, on any system."""
    return not (re.match("[a-zA-Z]:", name) or set(re.split(r"[/\\]", name)) & {"", ".", ".."})


def _copy(system: Any, name: str, target: Path, limit: int) -> int:
    """Copy a file, and stop soon after ``limit`` bytes; returns the number of bytes."""
    num_bytes = 0
    options = {"block_size": 0} if name.startswith(HTTP) else {}  # servers may ignore byte ranges
    with system.open(name, "rb", **options) as source, target.open("wb") as copy:
        while num_bytes <= limit and (part := source.read(1 << 22)):
            num_bytes += copy.write(part)
    return num_bytes


def shown(text: object) -> str:
    """Return a path or a message with URLs in place of the paths of their copies, see :func:`fetched`."""
    result = str(text)
    for url, copy in _FETCHED.items():
        result = result.replace(str(copy), url)
    return result


def read_file(path: str | os.PathLike[str], max_bytes: int) -> bytes:
    """Return the bytes of a local file or of a file behind a URL.

    Raises :class:`FileNotFoundError`, :class:`OSError`, of which :class:`StorageError` is one, and :class:`ImageError`
    for a larger local file.
    """
    location: Any = location_of(path)
    if not is_remote(location):
        return read_local(os.fspath(location), max_bytes)
    try:
        return location.read_bytes()
    except FileNotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, "it does not exist", str(location)) from error


def folder_bytes(path: Path) -> int:
    """Return the size of all files below a local folder or a folder behind a URL."""
    if is_remote(path):
        place: Any = path
        return sum(info["size"] or 0 for info in place.fs.find(place.path, detail=True).values())
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def write_whole(path: Path, data: bytes) -> None:
    """Write a local file or one behind a URL, replacing an older one in one step; raises :class:`OSError`."""
    if is_remote(path):
        place: Any = path
        place.fs.pipe_file(place.path, data)
    else:
        write_atomically(path, data)


def open_folder(location: Any, options: Mapping[str, Any] | None = None) -> Folder:
    """Return the folder at a path or URL, which need not exist yet.

    Raises :class:`UsageError` for a URL that no installed filesystem serves.
    """
    path: Any = location_of(location, options)
    return RemoteFolder(str(path), path.storage_options) if is_remote(path) else LocalFolder(path)


class LocalFolder:
    """A :class:`Folder` on a local or mounted disk."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, name: str) -> bytes:
        """See :meth:`Folder.read`."""
        try:
            return read_local(os.fspath(self.path / name), MAX_FILE)
        except ImageError as error:
            raise OSError(f"cannot read {self.path / name}: {error}") from error

    def write(self, name: str, data: bytes, *, sync: bool = False) -> None:
        """See :meth:`Folder.write`."""
        path = self.path / name
        folders = [path.parent]
        try:
            write_atomically(path, data, sync=sync)
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            folders = [self.path / folder for folder in Path(name).parents]
            write_atomically(path, data, sync=sync)
        if sync:
            sync_files([], folders)

    def write_once(self, name: str, data: bytes) -> bool:
        """See :meth:`Folder.write_once`."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return write_once(path, data)

    def names(self, folder: str) -> dict[str, int]:
        """See :meth:`Folder.names`."""
        sizes: dict[str, int] = {}
        try:
            for entry in os.scandir(self.path / folder):
                try:
                    if not is_temporary(entry.name) and entry.is_file():
                        sizes[entry.name] = entry.stat().st_size
                except FileNotFoundError:
                    continue  # deleted meanwhile
        except FileNotFoundError:
            return {}
        return dict(sorted(sizes.items()))

    def remove(self, name: str) -> None:
        """See :meth:`Folder.remove`."""
        (self.path / name).unlink(missing_ok=True)


class RemoteFolder:
    """A :class:`Folder` behind an fsspec URL."""

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        self._system, root = remote.filesystem(url, options, current_access())
        self._root = root.rstrip("/")
        self._place = f"{url.partition('://')[0]}://{self._root.partition('/')[0]}"
        _IN_USE[self._place] = self._system, self._root

    def read(self, name: str) -> bytes:
        """See :meth:`Folder.read`."""
        return self._repeated(lambda: self._system.cat_file(self._path(name)))

    def write(self, name: str, data: bytes, *, sync: bool = False) -> None:
        """See :meth:`Folder.write`; a bucket has a file when its request returns."""
        self._repeated(lambda: self._system.pipe_file(self._path(name), data))

    def write_once(self, name: str, data: bytes) -> bool:
        """See :meth:`Folder.write_once`."""
        try:
            self._repeated(lambda: self._system.pipe_file(self._path(name), data, mode="create"))
        except FileExistsError:
            return self.read(name) == data  # after a retried request, the existing file may be our own
        return True

    def names(self, folder: str) -> dict[str, int]:
        """See :meth:`Folder.names`."""

        def listed() -> list[dict[str, Any]]:
            self._system.invalidate_cache()
            try:
                return self._system.ls(self._path(folder), detail=True)
            except MissingBucketError:
                raise
            except FileNotFoundError:
                return []

        entries = {info["name"].rstrip("/").rpartition("/")[2]: info for info in self._repeated(listed)}
        return {name: entries[name]["size"] or 0 for name in sorted(entries) if entries[name]["type"] == "file"}

    def remove(self, name: str) -> None:
        """See :meth:`Folder.remove`."""

        def remove() -> None:
            try:
                self._system.rm_file(self._path(name))
            except FileNotFoundError:
                return

        self._repeated(remove)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _repeated(self, access: Callable[[], Result]) -> Result:
        return repeated(access, self._place)


def storage_is_silent(seconds: float) -> bool:
    """Return True if a bucket that this process writes to does not answer within ``seconds``."""
    places = [(system, root) for system, root in _IN_USE.values() if hasattr(system, "answers")]
    probes = [in_thread(partial(system.answers, root)) for system, root in places]
    deadline = time.monotonic() + seconds
    try:
        return not all([probe.result(timeout=max(0.0, deadline - time.monotonic())) for probe in probes])
    except TimeoutError:
        return True


def lance_url(path: Any) -> str:
    """Return a path or URL as Lance reads it: it decodes ``%XX`` in a URL, and cuts it at ``#`` and ``?``."""
    if not is_url(path):
        return str(path)
    scheme, _, rest = str(path).partition("://")
    return f"{scheme}://{quote(rest, safe='/@:')}"


def lance_options(options: Mapping[str, Any] | None) -> dict[str, str] | None:
    """Return storage options under the names that Lance uses; None if there are none."""
    result = {key: str(value) for key, value in (options or {}).items()}
    if allows_http(result):
        result.setdefault("allow_http", "true")
    return result or None


def parse_storage_options(texts: list[str] | None) -> dict[str, str]:
    """Parse ``KEY=VALUE`` texts; raises :class:`UsageError`."""
    options: dict[str, str] = {}
    keys: list[str] = []
    for text in texts or []:
        key, equals, value = text.partition("=")
        keys.append(key)
        if not key or not equals:
            raise UsageError(f"--storage-option must be KEY=VALUE, such as aws_region=eu-west-1; got {text!r}")
        options[key] = value
    check_keys(keys)
    return options


def repeated(access: Callable[[], Result], place: str | None = None) -> Result:
    """Call ``access`` until it succeeds or fails for a permanent reason.

    ``place`` is the URL of a bucket that may be out of reach: the first access to it is not retried, since its address
    may be wrong; nor is any access after an interrupt. Raises the permanent error, and :class:`OSError` after
    :data:`.outages.OUTAGE_SECONDS`.
    """
    return wait_out(access, _may_pass, place)


def _may_pass(error: Exception) -> bool:
    # each fsspec filesystem raises exceptions of its own
    cause = error.__cause__ if isinstance(error, StorageError) else error
    return not isinstance(cause, _FINAL) and (not isinstance(cause, BucketAnswerError) or may_pass(cause))
