"""Hold millions of 128-bit digests in memory, 24 bytes each."""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import NDArray

DIGEST_BYTES = 16

_FRESH_LIMIT = 1 << 16


def digest_table(digests: bytes) -> NDArray[np.uint64]:
    """Convert concatenated 16-byte digests to (n, 2) uint64."""
    return np.frombuffer(digests, dtype=np.uint64).reshape(-1, 2)


class DigestIndex:
    """Finds the rows of digests by binary search; ``table`` is (n, 2) uint64."""

    def __init__(self, table: NDArray[np.uint64]) -> None:
        self._rows = np.argsort(table[:, 0])
        self._first = table[self._rows, 0]
        self._second = table[self._rows, 1]

    def find(self, table: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Return the row of each of (m, 2) uint64 digests, (m,) int64; -1 if absent.

        Of digests that share their first half (one pair in 2^64), one may be reported absent; none is confused.
        """
        if not len(self._first):
            return np.full(len(table), -1, dtype=np.int64)
        position = np.minimum(np.searchsorted(self._first, table[:, 0]), len(self._first) - 1)
        matches = (self._first[position] == table[:, 0]) & (self._second[position] == table[:, 1])
        return np.where(matches, self._rows[position], -1)

    def table(self) -> NDArray[np.uint64]:
        """Return the digests, (n, 2) uint64, in any order."""
        return np.stack([self._first, self._second], axis=1)


class DigestSet:
    """Growing set of digests; threads may look up digests while others add some."""

    def __init__(self, table: NDArray[np.uint64]) -> None:
        self._lock = threading.Lock()
        self._fresh: set[bytes] = set()
        self._index = DigestIndex(table)

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._fresh or self._index.find(digest_table(digest))[0] >= 0

    def add(self, digest: bytes) -> None:
        """Add one 16-byte digest."""
        with self._lock:
            self._fresh.add(digest)
            if len(self._fresh) >= _FRESH_LIMIT:
                # the index first: a look-up without the lock then finds every digest in one of the two
                self._index = DigestIndex(np.concatenate([self._index.table(), digest_table(b"".join(self._fresh))]))
                self._fresh = set()
