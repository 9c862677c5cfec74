"""Files behind fsspec URLs: opening filesystems, reading, and naming what they list."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import urljoin, urlsplit

import fsspec

from ...errors import MissingPackageError, UsageError


def read(url: str, options: Mapping[str, Any], offset: int | None, size: int | None) -> bytes:
    """Return a file's bytes, or ``size`` of them from ``offset`` on; raises the filesystem's own exceptions."""
    system, path = filesystem(url, options)
    if offset is None or size is None:
        return system.cat_file(path)
    return system.cat_file(path, start=offset, end=offset + size)


def filesystem(url: str, options: Mapping[str, Any]) -> tuple[Any, str]:
    """Return the fsspec filesystem of a URL, and the path in it; raises :class:`UsageError` if none is installed."""
    try:
        return fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        if url.startswith("http"):
            raise MissingPackageError("aiohttp", "http", f"reading {url}") from error
        raise UsageError(f"reading {url} needs another package: {error}") from error
    except ValueError as error:
        raise UsageError(f"cannot open {url}: {error}") from error


def without_file_scheme(spec: str) -> str:
    """Return a local path for a ``file://`` URL, and any other spec as it is."""
    return filesystem(spec, {})[1] if spec.startswith(("file://", "local://")) else spec


def location(system: Any, name: str) -> str:
    """Return the URL of a file that a filesystem lists."""
    return name if "://" in name else system.unstrip_protocol(name)


def extension(url: str) -> str:
    """Return the ending of a URL's path, in lower case."""
    return os.path.splitext(urlsplit(url).path if url.startswith("http") else url)[1].lower()


def join(url: str, entry: str) -> str:
    """Return the URL of a list's entry that is relative to the list."""
    if url.startswith("http"):
        return urljoin(url, entry)
    return f"{url.rpartition('/')[0]}/{entry}"


def stamp(info: Mapping[str, Any]) -> str:
    """Return what changes with a file's content: ETag or time of last change; empty if unknown."""
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


def reason(error: Exception) -> str:
    """Return the reason of a failed access in a few words."""
    if isinstance(error, FileNotFoundError):
        return "it does not exist"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
