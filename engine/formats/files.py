"""Files behind any fsspec URL, pictures, and indices into large JSON files that are never decoded as a whole."""

from __future__ import annotations

import io
import json
import mmap
import os
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...errors import UsageError
from ...kernels.cpu.compiled import compiled
from ..model.png import can_hold_samples
from ..model.schema import decode_json
from ..reading import remote
from ..reading.access import current_access
from ..reading.local import read_local

_KEY = re.compile(rb'\s*("(?:[^"\\]|\\.)*")\s*:')

_ALL = 1 << 62

PICTURE_FORMATS = ("PNG", "TIFF", "BMP", "GIF", "JPEG", "WEBP", "AVIF", "PPM", "JPEG2000")
"""Formats that are read. Pillow knows others that run programs: Ghostscript for EPS."""
MAX_PICTURE = 1 << 30
"""Pixels of the largest picture that is read."""


class FileTree:
    """The files below a local folder or fsspec URL, by relative names with ``/``."""

    def __init__(self, location: str | os.PathLike[str]) -> None:
        self.location = os.fspath(location)
        self._filesystem, root = filesystem_of(self.location)
        self._root = root.rstrip("/")
        self._access = current_access()

    @cached_property
    def names(self) -> list[str]:
        """Every file, sorted; hidden files and macOS resource forks are left out."""
        try:
            paths = self._filesystem.find(self._root)
        except Exception as error:
            # every fsspec filesystem raises exceptions of its own
            raise UsageError(f"cannot list {self.location}: {remote.reason(error)}") from error
        relative = (path[len(self._root) :].lstrip("/") for path in paths)
        return sorted(name for name in relative if not any(part.startswith(".") for part in name.split("/")))

    def with_suffix(self, *suffixes: str) -> list[str]:
        """Return the names that end in one of ``suffixes``, in any case."""
        return [name for name in self.names if name.lower().endswith(suffixes)]

    def read(self, name: str) -> bytes:
        """Return the bytes of a file; raises :class:`UsageError`."""
        try:
            if "://" in self.location:
                return remote.read(self.path(name), self._access, {})
            return read_local(f"{self._root}/{name}", self._access.max_bytes)
        except Exception as error:
            # every fsspec filesystem raises exceptions of its own
            raise UsageError(f"cannot read {self.path(name)}: {remote.reason(error)}") from error

    def open(self, name: str) -> BinaryIO:
        """Open a file for reading at any place; raises :class:`OSError` or an exception of the filesystem."""
        return self._filesystem.open(f"{self._root}/{name}", "rb")

    def path(self, name: str) -> str:
        """Return the full name of a file, for messages."""
        return f"{self.location.rstrip('/')}/{name}"

    def __contains__(self, name: str) -> bool:
        return name in self._set

    @cached_property
    def _set(self) -> frozenset[str]:
        return frozenset(self.names)


def filesystem_of(location: str) -> tuple[Any, str]:
    """Open the filesystem of a path or URL; raises :class:`UsageError` if no installed package serves it."""
    if "://" in location:
        return remote.filesystem(location, {}, current_access())
    return fsspec.core.url_to_fs(os.path.abspath(os.path.expanduser(location)))


def is_folder(location: str) -> bool:
    """Return True for a folder, False for a file; raises :class:`UsageError` if there is nothing."""
    filesystem, path = filesystem_of(location)
    try:
        if filesystem.isdir(path):
            return True
        if filesystem.exists(path):
            return False
    except Exception as error:
        raise UsageError(f"cannot open {location}: {remote.reason(error)}") from error
    raise UsageError(f"no labels at {location}: no such file or folder")


def read_bytes(location: str) -> bytes | mmap.mmap:
    """Return the bytes of a file: mapped if it is local, else downloaded; raises :class:`UsageError`."""
    filesystem, path = filesystem_of(location)
    try:
        if "://" not in location and os.path.getsize(path):
            with open(path, "rb") as stream:
                return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        return remote.read(location, current_access(), {}) if "://" in location else b""
    except Exception as error:
        raise UsageError(f"cannot read {location}: {remote.reason(error)}") from error


def open_picture(data: bytes, where: str, *, header_only: bool = False) -> Image.Image:
    """Return the Pillow image of a file's bytes, decoded unless only its header is needed.

    ``where`` names it in messages. Raises :class:`UsageError` for other formats, damage, more than :data:`MAX_PICTURE`,
    or a header that promises more than the file can hold.
    """
    Image.init()
    fault = f"cannot read the picture {where}:"
    # not Image.open(): it warns, or refuses, by a limit that is global to the process
    for name in filter(Image.OPEN.__contains__, PICTURE_FORMATS):
        factory, accept = Image.OPEN[name]
        if accept is not None and accept(data[:16]) is True:
            break
    else:
        raise UsageError(f"{fault} it is none of {', '.join(PICTURE_FORMATS)}; it starts with {data[:8]!r}")
    try:
        image = factory(io.BytesIO(data), "")
        if image.width * image.height > MAX_PICTURE:
            raise UsageError(f"{fault} it has {image.width}x{image.height} pixels, more than {MAX_PICTURE:,}")
        if not header_only:
            if name == "PNG" and not can_hold_samples(data, *image.size):
                raise UsageError(f"{fault} {len(data):,} bytes cannot hold {image.width}x{image.height} pixels")
            image.load()
    except (UsageError, MemoryError):
        raise
    except Exception as error:
        # damaged files raise nearly every exception from inside Pillow's decoders
        raise UsageError(f"{fault} it is cut short or damaged ({error})") from error
    return image


def json_members(raw: bytes | mmap.mmap, location: str) -> dict[str, tuple[int, int]]:
    """Return the spans of the values of a JSON object's members; raises :class:`UsageError` for anything else."""
    start = _first(raw)
    if start is None or raw[start : start + 1] != b"{":
        raise UsageError(f"{location} is not a JSON object")
    members = {}
    for begin, end in _elements(np.frombuffer(raw, np.uint8), start + 1, _ALL, _SPECIAL).tolist():
        key = _KEY.match(raw, begin, end)
        if key is None:
            raise UsageError(f"{location} is not valid JSON: expected a member at byte {begin:,}")
        name = str(json.loads(key[1]))
        if name in members:
            raise UsageError(f"{location} is not valid JSON: the name {name!r:.80} occurs twice; remove one of them")
        members[name] = key.end(), end
    return members


def json_elements(raw: bytes | mmap.mmap, span: tuple[int, int], what: str, limit: int = _ALL) -> NDArray[np.int64]:
    """Return the spans (n, 2) of the first ``limit`` elements of a JSON array; raises :class:`UsageError`."""
    start, stop = span
    while start < stop and raw[start : start + 1].isspace():
        start += 1
    if raw[start : start + 1] != b"[":
        raise UsageError(f"{what} must be a JSON list")
    return _elements(np.frombuffer(raw, np.uint8), start + 1, limit, _SPECIAL)


def load_json(raw: bytes | mmap.mmap, span: tuple[int, int], what: str) -> Any:
    """Decode one span; raises :class:`UsageError` naming ``what``."""
    try:
        return decode_json(raw[span[0] : span[1]])
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{what} is not valid JSON: {error}") from error


def json_start(raw: bytes | mmap.mmap) -> str:
    """Return the first character of a JSON document that is not white space; empty for an empty file."""
    start = _first(raw)
    return "" if start is None else raw[start : start + 1].decode("latin-1")


def json_document(parts: Iterator[str], path: Path, head: str, tail: str) -> None:
    """Write ``head``, the parts joined by commas and ``tail`` to a file, one part in memory at a time."""
    with path.open("w", encoding="utf-8") as stream:
        stream.write(head)
        for number, part in enumerate(parts):
            stream.write((",\n" if number else "\n") + part)
        stream.write(tail)


def _first(raw: bytes | mmap.mmap) -> int | None:
    head = bytes(raw[: 1 << 16])
    body = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    return len(head) - len(body) if body else None


# 1: quote, 2: opening bracket, 3: closing bracket, 4: comma
_SPECIAL = np.zeros(256, np.uint8)
_SPECIAL[ord('"')] = 1
_SPECIAL[[ord("["), ord("{")]] = 2
_SPECIAL[[ord("]"), ord("}")]] = 3
_SPECIAL[ord(",")] = 4


@compiled()
def _elements(raw, start, limit, special):
    """Return the spans of at most ``limit`` elements of the array or object that opens just before ``start``."""
    spans = np.empty((16, 2), np.int64)
    count, depth, begin, position = 0, 0, start, start
    while position <= raw.size:
        # a missing closing bracket ends the last element; decoding it reports the fault
        kind = special[raw[position]] if position < raw.size else np.uint8(3)
        if kind == 0:
            position += 1
            continue
        if kind == 1:
            position += 1
            while position < raw.size and raw[position] != 34:
                position += 2 if raw[position] == 92 else 1
        elif kind == 2:
            depth += 1
        elif kind == 3 and depth > 0 and position < raw.size:
            depth -= 1
        elif kind == 3 or depth == 0:
            first = begin
            while first < position and raw[first] <= 32:
                first += 1
            if first < position:
                if count == spans.shape[0]:
                    larger = np.empty((2 * count, 2), np.int64)
                    larger[:count] = spans
                    spans = larger
                spans[count, 0], spans[count, 1] = begin, min(position, raw.size)
                count += 1
            begin = position + 1
            if kind == 3 or count == limit:
                break
        position += 1
    return spans[:count]
