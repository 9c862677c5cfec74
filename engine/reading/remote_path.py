"""Paths behind URLs, with the part of :class:`pathlib.Path` that folders in buckets need."""

from __future__ import annotations

import fnmatch
import io
import os
import posixpath
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePosixPath
from types import SimpleNamespace
from typing import IO, TYPE_CHECKING, Any

from ...errors import MaskmillError, StoreError
from . import remote
from .access import current_access
from .bucket.client import MissingBucketError, RefusedError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_OF_FILES = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError)


class StorageError(StoreError, OSError):
    """A storage refuses access or does not answer. Exit status 2 if the bucket is missing or refuses the caller."""


@contextmanager
def storage_errors(url: str, action: str = "read") -> Iterator[None]:
    """Turn the errors of a filesystem into :class:`StorageError`, apart from those of missing and existing files."""
    try:
        yield
    except MaskmillError:
        raise
    except Exception as error:
        # every fsspec filesystem raises exceptions of its own
        if isinstance(error, _OF_FILES) and not isinstance(error, MissingBucketError):
            raise
        reason = error if isinstance(error, MissingBucketError) else remote.reason(error)
        failure = StorageError(f"cannot {action} {url}: {reason}")
        raise failure.of_the_call() if isinstance(error, MissingBucketError | RefusedError) else failure from error


@dataclass(frozen=True)
class RemotePath:
    """A file or folder behind a URL; not an ``os.PathLike``, since ``open`` would treat it as a local path.

    Its methods raise :class:`StorageError` if the storage refuses or fails, and ``FileNotFoundError``.
    """

    url: str
    """URL without a slash at its end."""
    storage_options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Options of the filesystem."""

    def __post_init__(self) -> None:
        scheme, _, rest = self.url.partition("://")
        object.__setattr__(self, "url", f"{scheme}://{rest.rstrip('/')}")

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> RemotePath:
        return RemotePath(f"{self.url}/{name}", self.storage_options)

    @cached_property
    def _located(self) -> tuple[Any, str]:
        return remote.filesystem(self.url, self.storage_options, current_access())

    @property
    def fs(self) -> AbstractFileSystem:
        """Filesystem of fsspec."""
        return self._located[0]

    @property
    def path(self) -> str:
        """Path in the filesystem."""
        return self._located[1]

    @property
    def name(self) -> str:
        """Last part of the URL."""
        return self.url.partition("://")[2].rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """Ending of the name, with its dot."""
        return posixpath.splitext(self.name)[1]

    @property
    def stem(self) -> str:
        """Name without its ending."""
        return posixpath.splitext(self.name)[0]

    @property
    def parent(self) -> RemotePath:
        """The folder that holds this one; a bucket is its own."""
        scheme, _, rest = self.url.partition("://")
        return RemotePath(f"{scheme}://{rest.rpartition('/')[0] or rest}", self.storage_options)

    def with_name(self, name: str) -> RemotePath:
        """Return the path of another name in the same folder."""
        return self.parent / name

    def relative_to(self, other: RemotePath) -> PurePosixPath:
        """Return the part of this path below another one; raises ``ValueError`` if it is elsewhere."""
        return PurePosixPath(self.url).relative_to(PurePosixPath(other.url))

    def absolute(self) -> RemotePath:
        """Return this path."""
        return self

    def exists(self) -> bool:
        """Return True if there is a file or folder."""
        with storage_errors(self.url):
            return self.fs.exists(self.path)

    def is_file(self) -> bool:
        """Return True if there is a file."""
        with storage_errors(self.url):
            return self.fs.isfile(self.path)

    def is_dir(self) -> bool:
        """Return True if there is a folder."""
        with storage_errors(self.url):
            return self.fs.isdir(self.path)

    def iterdir(self) -> Iterator[RemotePath]:
        """Yield the contents of the folder."""
        with storage_errors(self.url):
            names = self.fs.ls(self.path, detail=False)
        for name in names:
            yield self / name.rstrip("/").rpartition("/")[2]

    def glob(self, pattern: str) -> Iterator[RemotePath]:
        """Yield the contents of the folder whose names match ``pattern``; nothing if there is no folder."""
        try:
            yield from (path for path in self.iterdir() if fnmatch.fnmatchcase(path.name, pattern))
        except FileNotFoundError:
            return

    def stat(self) -> SimpleNamespace:
        """Return an object with the size and the time of the last change, ``st_size`` and ``st_mtime``."""
        with storage_errors(self.url):
            info = self.fs.info(self.path)
        changed = info.get("LastModified") or info.get("created")
        return SimpleNamespace(st_size=info["size"], st_mtime=changed.timestamp() if changed else 0.0)

    def open(self, mode: str = "r", encoding: str | None = None) -> IO[Any]:
        """Open the file."""
        with storage_errors(self.url):
            file = self.fs.open(self.path, mode.replace("b", "").replace("t", "") + "b")
        return file if "b" in mode else io.TextIOWrapper(file, encoding=encoding or "utf-8")

    def read_bytes(self) -> bytes:
        """Return the bytes of the file."""
        with storage_errors(self.url):
            return self.fs.cat_file(self.path)

    def read_text(self, encoding: str = "utf-8") -> str:
        """Return the text of the file."""
        return self.read_bytes().decode(encoding)

    def write_bytes(self, data: bytes) -> int:
        """Write the file in one step."""
        with storage_errors(self.url, "write"):
            self.fs.pipe_file(self.path, data)
        return len(data)

    def write_text(self, text: str, encoding: str = "utf-8") -> int:
        """Write a file of text."""
        return self.write_bytes(text.encode(encoding))

    def unlink(self, missing_ok: bool = False) -> None:
        """Delete the file."""
        if not missing_ok or self.exists():
            with storage_errors(self.url, "delete"):
                self.fs.rm_file(self.path)

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """Make a folder; does nothing in a bucket, which has no folders."""
        with storage_errors(self.url, "create"):
            self.fs.makedirs(self.path, exist_ok=True)

    def __reduce__(self) -> tuple[object, ...]:
        return RemotePath, (os.fspath(self.url), dict(self.storage_options))
