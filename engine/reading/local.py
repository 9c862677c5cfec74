"""Bounded reads of files of this machine."""

from __future__ import annotations

import os
import stat

from ...errors import ImageError


def read_local(path: str, max_bytes: int, offset: int | None = None, size: int | None = None) -> bytes:
    """Return the bytes of a regular file, or ``size`` of them from ``offset`` on.

    Raises :class:`ImageError` for a device, a pipe, or more than ``max_bytes``, and ``OSError``.
    """
    # O_NONBLOCK: opening a named pipe must not wait for a writer
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with open(descriptor, "rb", buffering=0) as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ImageError("unreadable", "it is not a regular file")
        if offset is not None:
            file.seek(offset)
            return file.read(size or 0)
        size = status.st_size
        if size > max_bytes:
            raise ImageError("too-large", f"it has {size:,} bytes; at most {max_bytes:,} are read")
        data = file.read(size + 1)
        if len(data) == size:
            return data
        # a growing file, or one of unknown size
        parts = [data]
        while part := file.read(1 << 20):
            parts.append(part)
            size = sum(map(len, parts))
            if size > max_bytes:
                raise ImageError("too-large", f"it has more than {max_bytes:,} bytes, the most that are read")
        return b"".join(parts)
