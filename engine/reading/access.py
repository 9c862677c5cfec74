"""How remote files are read: limits of time and size, retries, URL schemes allowed in lists, storage options."""

from __future__ import annotations

import io
import math
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import IO, Any, TypeVar

from ...errors import ImageError, UsageError

MIN_RATE = 16 << 10
"""Smallest average rate in bytes per second, after the time limit of a connection."""
SCHEMES = ("http", "https", "s3", "gs", "gcs", "az", "abfs", "hf")
"""URL schemes that a list may name by default, besides its own."""

EXTRAS = {
    **dict.fromkeys(("s3", "s3a"), "s3"),
    **dict.fromkeys(("gs", "gcs"), "gcs"),
    **dict.fromkeys(("az", "abfs", "abfss", "azure", "adl"), "azure"),
}
"""URL schemes of buckets, with the extra that each needs."""

Result = TypeVar("Result")

HTTP = ("http://", "https://")


class Cancelled(Exception):
    """An interrupted run stopped reading this image; the image itself may be fine."""


@dataclass(frozen=True, kw_only=True)
class Access:
    """Limits of reading files, mainly behind URLs.

    Raises :class:`UsageError` for values out of range.
    """

    timeout: float = 30.0
    """Longest time in seconds to connect, and between two parts of an answer; in (0, 3600]."""
    retries: int = 2
    """Number of further attempts after a temporary failure: no answer, a broken connection, or a server error."""
    schemes: tuple[str, ...] = SCHEMES
    """URL schemes that the entries of a list may have, besides the list's own."""
    max_bytes: int = 1 << 30
    """Largest file in bytes; larger ones are refused before they are read, if their size is known."""
    max_unknown_bytes: int = 1 << 28
    """Limit for files whose size is not known before they are read, in bytes; compressed data count decompressed."""
    storage_options: Mapping[str, Any] = field(default_factory=dict, repr=False, hash=False)
    """Options of the storage of URLs, see :func:`.storage_options.use_storage`; they may hold secrets."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.timeout) and 0 < self.timeout <= 3600):
            raise UsageError(f"--timeout must be more than 0 and at most 3600 seconds, got {self.timeout}")
        if not 0 <= self.retries <= 10:
            raise UsageError(f"--retries must be from 0 to 10, got {self.retries}")
        for scheme in self.schemes:
            if not re.fullmatch(r"[a-z][a-z0-9+.-]*", scheme):
                raise UsageError(f"--schemes lists URL schemes, such as https,s3; got {scheme!r}")

    def seconds_for(self, num_bytes: int) -> float:
        """Return the time that reading ``num_bytes`` may take, in seconds."""
        return self.timeout + num_bytes / MIN_RATE

    def refusal(self, entry: str, list_name: str) -> str:
        """Return the reason why the list ``list_name`` may not contain ``entry``; empty if it may.

        All parts of a chained URL are checked, as in ``zip://a.jpg::https://host/photos.zip``.
        """
        # a list on this machine may name files on it
        allowed = {*self.schemes, *(schemes_of(list_name) or ("file", "local"))}
        for scheme in schemes_of(entry):
            if scheme not in allowed:
                return (
                    f"a list may not name {scheme}:// URLs here; allow it with --schemes "
                    f"{','.join((*self.schemes, scheme))}"
                )
        return ""


_current: ContextVar[Access | None] = ContextVar("access", default=None)


def current_access() -> Access:
    """Return limits and storage options in force, see :func:`limit_reads` and :func:`.storage_options.use_storage`."""
    return _current.get() or Access()


@contextmanager
def limit_reads(*, timeout: float = 30.0, retries: int = 2, schemes: Sequence[str] | None = None) -> Iterator[None]:
    """Limit reads from URLs by sources of images and labels opened in the ``with`` block, after the block as well.

    ``timeout`` is the longest wait for a server in seconds, ``retries`` the number of further attempts after a
    temporary failure, ``schemes`` are the URL schemes that lists may name besides their own (None: http, https and
    object stores). The limits apply to the thread that sets them, and to threads and processes that it starts. Raises
    :class:`UsageError` for values out of range. ::

        with limit_reads(timeout=5, retries=0, schemes=["https"]):
            source = open_source("photos")
    """
    with replace_access(timeout=timeout, retries=retries, schemes=SCHEMES if schemes is None else tuple(schemes)):
        yield


@contextmanager
def replace_access(**fields: Any) -> Iterator[None]:
    """Replace fields of the :class:`Access` in force, in the ``with`` block."""
    token = _current.set(replace(current_access(), **fields))
    try:
        yield
    finally:
        _current.reset(token)


def with_access(access: Access, function: Callable[..., Result], *arguments: Any, **options: Any) -> Result:
    """Call a function under the :class:`Access` of another thread or process, and return its result."""
    token = _current.set(access)
    try:
        return function(*arguments, **options)
    finally:
        _current.reset(token)


def is_bucket(url: str) -> bool:
    """Return True for the URL of a bucket or of an object in one, unless it is chained to another URL."""
    # `::` may be part of a key
    return url.partition("://")[0] in EXTRAS and "://" in url and not re.search("::[a-z][a-z0-9+.-]*://", url)


def chain_of(url: str) -> list[str]:
    """Return the parts of a chained URL, such as ``zip://a.jpg`` and ``s3://b/a.zip``; any other URL is one part."""
    if "://" not in url or url.lower().startswith(HTTP) or is_bucket(url):
        return [url]
    return re.split(r"::(?=[a-z])|::(?=/)", url)


def place_in_chain(parts: Sequence[str]) -> int:
    """Return the index of the part that names a file in a chained URL: 1 in ``simplecache::s3://b/a.jpg``."""
    return next((place for place, part in enumerate(parts) if "://" in part), 0)


def schemes_of(url: str) -> list[str]:
    """Return the schemes of a URL and of the URLs it is chained to; a path in a chain counts as ``file``."""
    return [_scheme(part) for part in chain_of(url)] if "://" in url else []


def _scheme(part: str) -> str:
    scheme, separator, _ = part.partition("://")
    # a single word is also a scheme, as in zip://a.jpg::simplecache::https://host/b.zip
    return scheme.lower() if separator or re.fullmatch("[a-z0-9]+", part) else "file"


@dataclass
class Meter:
    """Counts the bytes and the waiting time of one read, and raises :class:`ImageError` beyond the limits."""

    access: Access
    limit: int
    """Largest number of bytes."""
    cancelled: threading.Event | None = None
    """Set when the run drops images in progress; then :class:`Cancelled` is raised."""
    num_bytes: int = 0
    started: float = field(default_factory=time.monotonic)

    def count(self, chunk: bytes) -> bytes:
        """Count a part that arrived, and return it."""
        self.num_bytes += len(chunk)
        if self.num_bytes > self.limit:
            raise ImageError("too-large", f"it has more than {self.limit:,} bytes, the most that are read")
        self.check()
        return chunk

    def check(self) -> None:
        """Raise an error if the run was cancelled, or if too few bytes have arrived so far."""
        if self.cancelled is not None and self.cancelled.is_set():
            raise Cancelled
        if time.monotonic() - self.started > self.access.seconds_for(self.num_bytes):
            raise ImageError("timeout", slow(self.access, self.num_bytes))


def slow(access: Access, num_bytes: int = 0) -> str:
    """Return the message for an answer that takes too long."""
    if num_bytes:
        return f"it is too slow: {num_bytes:,} bytes arrived within {access.seconds_for(num_bytes):.0f} s (--timeout)"
    return f"no answer within {access.timeout:g} s (--timeout)"


def read_counted(read: Callable[[int], bytes], meter: Meter, part: int = 1 << 18) -> bytes:
    """Read to the end in parts that ``meter`` counts; ``read`` takes a number of bytes."""
    parts = []
    while chunk := read(part):
        parts.append(meter.count(chunk))
    return b"".join(parts)


def metered(file: Any, meter: Meter) -> IO[bytes]:
    """Return a buffered reader of a file behind a URL, whose waits and bytes ``meter`` counts."""
    return io.BufferedReader(_Metered(file, meter), 1 << 18)


class _Metered(io.RawIOBase):
    """File behind a URL for a buffered reader; the time between two reads does not count."""

    def __init__(self, file: Any, meter: Meter) -> None:
        self._file = file
        self._meter = meter

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        started = time.monotonic()
        self._meter.started += started - self._paused if self._paused else 0.0
        data = self._meter.count(self._file.read(len(buffer)))
        self._paused = time.monotonic()
        buffer[: len(data)] = data
        return len(data)

    _paused = 0.0
