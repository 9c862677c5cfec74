"""Return memory that was freed to the operating system."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

WORTHWHILE_BYTES = 8 << 20
"""Size of freed rows from which returning their memory is worthwhile: it takes up to some milliseconds."""


def release_memory(num_bytes: int) -> None:
    """Return free memory to the system after rows of ``num_bytes`` bytes were freed.

    The C library keeps freed memory in an area per thread, and each of Lance's threads has one: without this they hold
    a whole commit each after a while. Does nothing with C libraries other than glibc.
    """
    trim = _trim()
    if trim is not None and num_bytes >= WORTHWHILE_BYTES:
        trim(0)


@cache
def _trim() -> Callable[[int], int] | None:
    try:
        return getattr(ctypes.CDLL(None), "malloc_trim", None)
    except (OSError, TypeError):  # a platform without such a C library
        return None
