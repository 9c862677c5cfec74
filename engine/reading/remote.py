"""Files behind fsspec URLs: opening filesystems, reading within limits, and URLs of listed files."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit

import fsspec
from fsspec.asyn import AsyncFileSystem

from ...errors import ImageError, MissingPackageError, UsageError
from .access import (
    EXTRAS,
    HTTP,
    Access,
    Cancelled,
    Meter,
    chain_of,
    is_bucket,
    place_in_chain,
    read_counted,
    schemes_of,
    slow,
)
from .bucket.client import MissingBucketError
from .bucket.filesystem import bucket_filesystem, chained_through_bucket
from .http import METER, limited_client
from .outages import has_answered, wait_out
from .retries import in_thread, may_pass, pause_before
from .storage_options import options_in_force, options_of

T = TypeVar("T")

_NO_RANGES = "the server ignores byte ranges, so its archives must be downloaded first"
_ARCHIVES = ("zip://", "tar://")  # chained to a URL or path
_KEPT = threading.local()  # archives that each thread keeps open
_POLL = 0.2
"""Seconds between two checks for cancellation."""


def read(
    url: str,
    access: Access,
    options: Mapping[str, Any],
    *,
    offset: int | None = None,
    size: int | None = None,
    cancelled: threading.Event | None = None,
) -> bytes:
    """Return a file's bytes, or ``size`` of them from ``offset`` on, within the limits of ``access``.

    If a bucket that has answered before stops answering, the call waits for it; see :mod:`.outages`. Raises
    :class:`ImageError` (``too-large`` or ``timeout``), :class:`Cancelled`, or the filesystem's own exceptions.
    """
    if not is_bucket(url):
        return _attempts(url, access, options, offset, size, cancelled)
    bucket, path = filesystem(url, options, access)
    place = bucket.place(path)
    attempts = partial(_attempts, url, access, options, offset, size, cancelled)
    serves = partial(bucket.serves, path)
    is_away = False

    def reading() -> bytes:
        nonlocal is_away
        try:
            return attempts()
        except Exception as error:
            if not has_answered(place) or not may_pass(error):
                raise
            is_away = not (serves() if cancelled is None else cancellable(serves, cancelled))
            if is_away:
                raise
        return attempts()  # the outage may just have ended; otherwise only this object fails

    return wait_out(reading, lambda error: is_away and may_pass(error), place, cancelled)


def _attempts(
    url: str,
    access: Access,
    options: Mapping[str, Any],
    offset: int | None,
    size: int | None,
    cancelled: threading.Event | None,
) -> bytes:
    for attempt in range(access.retries + 1):
        try:
            return _attempt(url, access, options, offset, size, cancelled)
        except Exception as error:
            if attempt == access.retries or not may_pass(error):
                raise
            pause = pause_before(attempt + 1)
            if cancelled is None:
                time.sleep(pause)
            elif cancelled.wait(pause):
                raise Cancelled from error
    raise AssertionError("the last attempt returns or raises")


def _attempt(
    url: str,
    access: Access,
    options: Mapping[str, Any],
    offset: int | None,
    size: int | None,
    cancelled: threading.Event | None,
) -> bytes:
    part = {} if offset is None or size is None else {"start": offset, "end": offset + size}
    meter = Meter(access, access.max_bytes if size is not None else access.max_unknown_bytes, cancelled)
    if url.startswith(HTTP):
        system, path = filesystem(url, options, access)
        token = METER.set(meter)
        try:
            # the task inherits the context of this thread, and the client counts on this meter
            future = asyncio.run_coroutine_threadsafe(system._cat_file(path, **part), system.loop)
        finally:
            METER.reset(token)
    elif is_bucket(url):
        bucket, name = filesystem(url, options, access)
        place = (part["start"], part["end"]) if part else None
        meter.limit = access.max_bytes
        future = in_thread(lambda: bucket.fetch(name, meter, place))
    else:
        future = in_thread(lambda: _read_opened(url, options, access, part, size, meter))
    data = _result(future, meter)
    if part and len(data) > part["end"] - part["start"]:
        raise ImageError("unreadable", _NO_RANGES)
    return data


def _read_opened(
    url: str, options: Mapping[str, Any], access: Access, part: Mapping[str, int], size: int | None, meter: Meter
) -> bytes:
    """Read a file, or a part of it, with the blocking calls of its filesystem."""
    if url.startswith(_ARCHIVES):
        with _opened_archive(url, options, access) as (system, path):
            if part:
                return meter.count(system.cat_file(path, **part))
            with system.open(path, "rb") as file:
                return read_counted(file.read, meter)
    system, path = filesystem(url, options, access)
    if part:
        return meter.count(system.cat_file(path, **part))
    if isinstance(system, AsyncFileSystem):
        # object storage sends the whole object, so its size must be known first
        size = system.info(path).get("size") if size is None else size
        if size is not None and size > access.max_bytes:
            raise ImageError("too-large", f"it has {size:,} bytes; at most {access.max_bytes:,} are read")
        if size is not None:
            return system.cat_file(path)
    with system.open(path, "rb") as file:
        return read_counted(file.read, meter)


@contextmanager
def _opened_archive(url: str, options: Mapping[str, Any], access: Access) -> Iterator[tuple[Any, str]]:
    """Open the archive of a chained URL; each thread keeps the last one open until an access fails."""
    first, _, archive_url = url.partition("::")
    key = first.partition("://")[0], archive_url, dict(options), access
    archive = getattr(_KEPT, "archive", None)
    _KEPT.archive = None
    system = archive[1] if archive is not None and archive[0] == key else filesystem(url, options, access)[0]
    yield system, system._strip_protocol(first)
    _KEPT.archive = key, system


def _result(future: concurrent.futures.Future[T], meter: Meter) -> T:
    """Wait for a result, as long as ``meter`` allows."""
    while True:
        try:
            return future.result(timeout=_POLL)
        except TimeoutError as error:
            if future.done():
                raise ImageError("timeout", slow(meter.access)) from error
        try:
            meter.check()
        except BaseException:
            future.cancel()
            raise


def cancellable(function: Callable[[], T], cancelled: threading.Event) -> T:
    """Call a function that reads from URLs; raises :class:`Cancelled` as soon as ``cancelled`` is set."""
    future = in_thread(function)
    while True:
        try:
            return future.result(timeout=_POLL)
        except TimeoutError:
            if future.done():
                raise
        if cancelled.is_set():
            raise Cancelled


def filesystem(url: str, options: Mapping[str, Any], access: Access) -> tuple[Any, str]:
    """Return the fsspec filesystem of a URL, and the path in it.

    Raises :class:`UsageError` if none is installed, or an option is unknown.
    """
    schemes = schemes_of(url)
    try:
        if schemes[-1] in EXTRAS:
            own = options_for(url, options, access)
            return (bucket_filesystem if is_bucket(url) else chained_through_bucket)(url, own, access)
        limited = _limited(url, options, access)
        if url.startswith(HTTP):
            # `::` in a path would be parsed as a chain
            return fsspec.filesystem(url.partition(":")[0], **limited), url
        return fsspec.core.url_to_fs(url, **limited)
    except UsageError:
        raise
    except ImportError as error:
        if url.startswith("http"):
            raise MissingPackageError("aiohttp", "http", f"reading {url}") from error
        raise UsageError(f"reading {url} needs another package: {error}") from error
    except (ValueError, zipfile.BadZipFile, tarfile.TarError) as error:
        fault = "the archive is damaged, or of another kind" if url.startswith(_ARCHIVES) else error
        fault = _NO_RANGES if "range requests" in str(error) else fault
        raise UsageError(f"cannot open {url}: {fault}") from error


def check(url: str, options: Mapping[str, Any], access: Access) -> None:
    """Raise :class:`UsageError` if no installed filesystem serves a URL, or an option is unknown; opens no archive."""
    while url.startswith(_ARCHIVES) and "::" in url:
        url = url.partition("::")[2]
    if "://" in url:
        filesystem(url, options, access)


def options_for(url: str, options: Mapping[str, Any], access: Access) -> dict[str, Any]:
    """Return the storage options of a URL of a bucket; those of ``access`` come second."""
    scheme = schemes_of(url)[-1]
    return options_in_force(scheme, access) | options_of(scheme, options)


def _limited(url: str, options: Mapping[str, Any], access: Access) -> dict[str, Any]:
    """Return the storage options of a URL, which limit its HTTP connections; those of ``access`` come second."""
    schemes = schemes_of(url)
    result = options_in_force(schemes[0], access) | options_of(schemes[0], options)
    for scheme in schemes[1:]:
        # the options of a chain's first part stand beside those of the other parts
        if own := options_in_force(scheme, access):
            result[scheme] = own | dict(result.get(scheme, {}))
    for scheme in {"http", "https"} & set(schemes):
        target = result if scheme == schemes[0] else result.setdefault(scheme, {})
        if target is not result:
            target = result[scheme] = dict(target)
        target.setdefault("get_client", limited_client)
        if target["get_client"] is limited_client:
            target["client_kwargs"] = {"access": access, **target.get("client_kwargs", {})}
    return result


def without_file_scheme(spec: str) -> str:
    """Return a local path for a ``file://`` URL, and any other spec as it is."""
    local = spec.startswith(("file://", "local://")) and "::" not in spec
    return fsspec.core.url_to_fs(spec)[1] if local else spec


def location(system: Any, name: str, url: str) -> str:
    """Return the URL of a file that the filesystem of ``url`` lists, with the same chain as ``url``."""
    parts = chain_of(url)
    if len(parts) == 1:
        return name if "://" in name else system.unstrip_protocol(name)
    place = place_in_chain(parts)
    parts[place] = name if "://" in name else f"{parts[place].partition('://')[0]}://{name}"
    return "::".join(parts)


def extension(url: str) -> str:
    """Return the ending of a URL's path, in lower case; of a chained URL that of the file, not of its archive."""
    parts = chain_of(url)
    part = parts[place_in_chain(parts)]
    return os.path.splitext(urlsplit(part).path if part.startswith("http") else part)[1].lower()


def join(url: str, entry: str) -> str:
    """Return the URL of a list's entry that is relative to the list."""
    parts = chain_of(url)
    place = place_in_chain(parts)
    folder = parts[place].rpartition("/")[0]
    parts[place] = urljoin(parts[place], entry) if parts[place].startswith("http") else f"{folder}/{entry}"
    return "::".join(parts)


def stamp(info: Mapping[str, Any]) -> str:
    """Return a value that changes with a file's content: ETag or time of last change; empty if unknown."""
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


def reason(error: BaseException) -> str:
    """Return the reason of a failed access in a few words."""
    cause = error.__cause__ if isinstance(error, FileNotFoundError) else error
    status = getattr(cause, "status", None)
    if type(cause).__name__ == "TooManyRedirects":
        return "the server redirects without end"
    if isinstance(status, int) and status != 404:
        return f"the server answers {status} {getattr(cause, 'message', '')}".rstrip()
    if isinstance(error, FileNotFoundError) and not isinstance(error, MissingBucketError):
        return "it does not exist"
    if isinstance(error, TimeoutError) and not error.errno:
        return "no answer in time (--timeout)"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
