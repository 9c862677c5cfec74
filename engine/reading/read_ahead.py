"""Read-ahead of archives behind URLs: a shard takes a few large requests instead of one per image."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

LARGEST_BLOCK = 8 << 20
"""Most bytes that are read ahead."""
_SMALLEST_BLOCK = 1 << 20
_GAP = 1 << 20  # largest gap in bytes between sequential reads: headers, labels
_ARCHIVES = 4


class _Archive:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.blocks: list[tuple[int, bytes]] = []  # (first byte, bytes) of the last two requests
        self.end: int | None = None  # first byte after the last request
        self.size = 0  # bytes of the last request


class ReadAhead:
    """The last blocks of the archives that are read; it is thread-safe.

    The first read of an archive is its own request. During sequential reads, blocks grow to :data:`LARGEST_BLOCK`;
    random reads stay single requests.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._archives: OrderedDict[str, _Archive] = OrderedDict()

    def read(self, archive: str, offset: int, size: int, fetch: Callable[..., bytes]) -> bytes:
        """Return ``size`` bytes of an archive from ``offset`` on, fewer at its end; raises what ``fetch`` raises.

        ``fetch`` makes the request; it takes the keywords ``offset`` and ``size``.
        """
        with self._lock:
            place = self._archives.setdefault(archive, _Archive())
            self._archives.move_to_end(archive)
            while len(self._archives) > _ARCHIVES:
                self._archives.popitem(last=False)
        with place.lock:  # if several threads need a block, one reads it
            for start, data in place.blocks:
                if start <= offset and offset + size <= start + len(data):
                    return data[offset - start : offset - start + size]
            # a member that begins in the last block and ends after it is sequential as well
            in_order = place.end is not None and -size <= offset - place.end <= _GAP
            place.size = min(max(4 * place.size, _SMALLEST_BLOCK), LARGEST_BLOCK) if in_order else size
            data = fetch(offset=offset, size=max(size, place.size))
            place.end = offset + len(data)
            place.blocks = [*place.blocks[-1:], (offset, data)] if len(data) <= LARGEST_BLOCK else []
            return data[:size]
